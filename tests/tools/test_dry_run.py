"""Counting what a compiled program does, and the dry run for a slice that is not there."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from conftest import HERE

from jepa_jax.errors import ConfigError
from tools.dry_run import _Expected, _holds_scores, objections, slice_devices
from tools.hlo import Array, Collective, Program


def test_products_count_as_often_as_their_loops_run():
    def f(x, w, v):
        def outer(x, w):
            x = jax.lax.fori_loop(0, 3, lambda _, x: x @ w, x)
            return jnp.tanh(x), None

        x = jax.lax.scan(outer, x, w)[0]
        y = jax.lax.cond(x[0, 0] > 0, lambda: (x @ v).sum(), lambda: 0.0)
        return y + jnp.einsum('bij,bkj->bik', x.reshape(2, 4, 64), x.reshape(2, 4, 64)).sum()

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((8, 64), (5, 64, 64), (64, 32))]
    program = Program(jax.jit(f).lower(*shapes).compile().as_text())
    expected = 5 * 3 * 2 * 8 * 64 * 64 + 2 * 8 * 64 * 32 + 2 * 2 * 4 * 4 * 64
    assert program.flops() == expected
    assert not program.unknown_loops


# as libtpu writes them, shortened: batched scores as a dilated convolution, a collective that runs
# beside the products (written down three times), a reduce-scatter, a kernel, a counted loop
TPU = """\
HloModule jit_step

%start.1 (p: bf16[1,48,384]) -> (bf16[1,96,384], u32[]) {
  %p = bf16[1,48,384]{2,1,0} parameter(0)
  %g.1 = bf16[1,96,384]{2,1,0} all-gather(%p), channel_id=140, replica_groups=mesh['axis_0'=2,\
'axis_1'=1,'axis_2'=2], device_ids=([2,2]T(1,0)) {'axis_0'}, dimensions={1}
  ROOT %c.1 = (bf16[1,96,384]{2,1,0}, u32[]) custom-call(%g.1), \
custom_call_target="AsyncCollectiveStart"
}

%done.1 (p.1: bf16[1,48,384]) -> bf16[1,96,384] {
  %p.1 = bf16[1,48,384]{2,1,0} parameter(0)
  ROOT %g.2 = bf16[1,96,384]{2,1,0} all-gather(%p.1), channel_id=140, replica_groups=mesh[\
'axis_0'=2,'axis_1'=1,'axis_2'=2], device_ids=([2,2]T(1,0)) {'axis_0'}, dimensions={1}
}

%all-reduce-scatter.3 (p.2: f32[1024,1024]) -> f32[256,1024] {
  %p.2 = f32[1024,1024]{1,0} parameter(0)
  %r.1 = f32[1024,1024]{1,0} all-reduce(%p.2), channel_id=2, \
replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %s.1 = f32[256,1024]{1,0} dynamic-slice(%r.1), dynamic_slice_sizes={256,1024}
}

%body (b: (s32[], bf16[1,48,384], f32[1024,1024], f32[8,64,4,24])) -> (s32[]) {
  %b = (s32[], bf16[1,48,384], f32[1024,1024], f32[8,64,4,24], bf16[2,4,512,64]) parameter(0)
  %w = bf16[1,48,384]{2,1,0} get-tuple-element(%b), index=1
  %dw = f32[1024,1024]{1,0} get-tuple-element(%b), index=2
  %q = f32[8,64,4,24]{3,2,1,0} get-tuple-element(%b), index=3
  %k = bf16[2,4,512,64]{3,2,1,0} get-tuple-element(%b), index=4
  %m = s8[1,1,1]{2,1,0} constant({...})
  %f.1 = (bf16[1,96,384]{2,1,0}, u32[]) fusion(%w), kind=kCustom, calls=%start.1
  %f.2 = bf16[1,96,384]{2,1,0} fusion(%w), kind=kCustom, calls=%done.1
  %f.3 = f32[256,1024]{1,0} fusion(%dw), kind=kCustom, calls=%all-reduce-scatter.3
  %a = f32[8,4,64,64]{3,2,1,0} convolution(%q, %q), \
window={size=8x4 stride=7x3 lhs_dilate=8x4}, dim_labels=0b1f_0o1i->01bf
  %splash_mha_dkv_no_residuals.1 = (bf16[2,4,512,64]{3,2,1,0}) custom-call(%m, %k, %k, %k), \
custom_call_target="tpu_custom_call"
}

%condition (b.1: (s32[])) -> pred[] {
  %n = s32[] constant(6)
  %b.1 = (s32[]) parameter(0)
  %i = s32[] get-tuple-element(%b.1), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[16]) -> f32[16] {
  %x = f32[16]{0} parameter(0)
  %t = (s32[]) tuple(%x)
  %l = (s32[]) while(%t), condition=%condition, body=%body
  ROOT %r.2 = f32[16]{0} all-reduce(%x), channel_id=9, replica_groups=[2,8]<=[16], to_apply=%add
}
"""


def test_reads_what_libtpu_writes():
    program = Program(TPU)
    scores = 2 * 8 * 4 * 64 * 64 * 24
    kernel = 4 * 2 * 2 * 4 * 512 * 512 * 64
    assert program.flops() == 6 * (scores + kernel)
    assert program.kernels() == {'splash_mha_dkv_no_residuals': 6}
    assert not program.unknown_loops and not program.uncounted_kernels
    found = [(c.kind, c.group, c.times, c.bytes) for c in program.collectives()]
    assert found == [
        ('all-gather', 2, 6, 2 * 96 * 384),
        ('reduce-scatter', 4, 6, 4 * 1024 * 1024),
        ('all-reduce', 8, 1, 64),
    ]
    gather, scatter, reduce = program.collectives()
    assert gather.received == 6 * 96 * 384  # half of the result is here already
    assert scatter.received == 6 * 4 * 1024 * 1024 * 3 / 4
    assert reduce.received == 2 * 64 * 7 / 8


def collective(kind: str, *dims: int) -> Collective:
    return Collective(kind, (Array('f32', dims, False),), 8, 1, 'somewhere')


def test_what_parameters_and_gradients_move_is_expected():
    """176 columns of ViT-g on a device, which libtpu pads to 192 and puts right."""
    kernels = {'qkv': (40, 1408, 4224), 'proj': (40, 1408, 1408)}
    abstract = {
        'blocks': {
            'attn': {
                name: {'kernel': jax.ShapeDtypeStruct(shape, jnp.float32)}
                for name, shape in kernels.items()
            }
        }
    }
    expected = _Expected(abstract, fsdp=8)
    for kind, *dims in [
        ('all-gather', 1, 1408, 4224),
        ('reduce-scatter', 1408, 4224),
        ('reduce-scatter', 1536, 4224),
        ('all-reduce', 40, 176, 4224),
        ('all-reduce', 64, 1024),  # few elements
        ('collective-permute', 112, 4224),
    ]:
        assert expected.holds(collective(kind, *dims)), (kind, dims)
    for kind, *dims in [
        ('all-gather', 48, 576, 1408),  # activations
        ('all-reduce', 2048, 4224),  # more than padding
        ('collective-permute', 8, 1024),  # few elements, but of no parameter
        ('collective-permute', 1408, 4224),  # a whole one
    ]:
        assert not expected.holds(collective(kind, *dims)), (kind, dims)


def test_scores_are_recognised():
    tokens = {2048, 495, 1463}
    assert _holds_scores((24, 22, 2048, 2048), tokens)
    assert _holds_scores((528, 1536, 1536), tokens)  # padded to a kernel's blocks
    assert not _holds_scores((24, 2048, 1408), tokens)
    assert not _holds_scores((24, 2048, 2048 * 3), tokens)


def test_objections():
    fine = {
        'memory_fraction': 0.5, 'score_buffers': [], 'unexpected_collectives': [],
        'uncounted_kernels': [], 'loops_of_unknown_length': 0,
    }  # fmt: skip
    assert objections(fine) == []
    bad = {'memory_fraction': 0.9, 'score_buffers': ['f32[2,2048,2048]'],
           'unexpected_collectives': ['all-to-all of f32[9]'], 'uncounted_kernels': ['k'],
           'loops_of_unknown_length': 2}  # fmt: skip
    assert len(objections(bad)) == 5


@pytest.mark.parametrize('topology', ['v5p', 'v3:2x2', 'v5e:2', 'v5e:2x2x'])
def test_topologies_are_checked_first(topology):
    with pytest.raises(ConfigError, match=f'--topology {topology}: must be KIND:AxB'):
        slice_devices(topology)


@pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason="needs libtpu, of the extra [tpu]: pip install '.[tpu]'",
)
def test_step_for_tpus(tmp_path):
    """The real step of a small model for four TPUs: the kernel, the collectives, the memory."""
    command = [
        sys.executable, '-m', 'tools.dry_run', '--config=configs/tiny.py', '--topology=v5e:2x2',
        '--config.data.crop=64', '--config.compute_dtype=bfloat16', '--config.mesh.fsdp=2',
        '--config.mesh.remat=full', '--config.encoder.depth=2', '--json', tmp_path / 'found.json',
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=HERE.parent, env=os.environ | {'PYTHONPATH': str(HERE.parent)},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'fits' in done.stdout and 'MFU at most' in done.stdout
    found = json.loads((tmp_path / 'found.json').read_text())
    assert found['devices'] == 4 and found['device'] == 'TPU v5 lite'
    assert {name.partition('_mha_')[2].split('_')[0] for name in found['kernels']} == {
        'fwd', 'dq', 'dkv',
    }  # fmt: skip
    assert found['score_buffers'] == found['unexpected_collectives'] == []
    assert found['collectives'].keys() >= {'all-gather', 'all-reduce', 'reduce-scatter'}
    # 24 rows of a device are padded to 32, and put right
    permutes = {k: n for k, n in found['collectives'].items() if k == 'collective-permute'}
    assert found['collectives_for_padding'] == permutes
    # with full recomputation the trained parts run forward twice, and kernels pad
    assert 1.1 < found['recomputation'] < 2.0
    assert 0 < found['memory_fraction'] < 0.85 and 0 < found['mfu_ceiling'] < 1
    assert found['step_seconds_bound'] == max(found['seconds_at_least'].values())
