"""What recomputation keeps, against a count by hand."""

import jax

from jepa_jax.config import DataListConfig, MaskedVideoConfig
from tools.bench_step import mask_samplers, programs
from tools.remat import trace


def test_kept_and_computed_again():
    config = MaskedVideoConfig(name='remat')
    config.data.lists = [DataListConfig(kind='synthetic')]
    config.encoder.width, config.encoder.depth, config.encoder.heads = 96, 3, 4
    config.predictor.width, config.predictor.depth, config.predictor.heads = 48, 2, 2
    config.data.crop, config.data.frames, config.optim.batch = 64, 8, 16
    config.compute_dtype = 'float32'
    found = {}
    for config.mesh.remat in ('full', 'dots', 'none'):
        found[config.mesh.remat] = trace(config, jax.devices()[:2])
    samplers = mask_samplers(config, {8: 16})
    largest = max(programs(config, samplers, {8: 16}), key=lambda program: program.flops.total)
    inputs = sum(3 * k * 96 + 2 * (k + m) * 48 for k, m in largest.groups[0].masks)
    assert found['full']['kept_bytes_per_device'] == inputs * 4 * 8  # float32, clips a device
    kept = [each['kept_bytes_per_device'] for each in found.values()]
    flops = [each['flops'] for each in found.values()]
    assert kept == sorted(kept) and len(set(kept)) == 3
    assert flops == sorted(flops, reverse=True) and flops[-1] == largest.flops.total
