"""Where parameters lie: every tensor of ViT-g in a golden file, and bytes of a state a device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import HERE

from jepa_jax import optim
from jepa_jax.config import OptimConfig
from jepa_jax.models.pooler import PoolerConfig
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.objectives import attentive_probe
from jepa_jax.objectives.masked_video import MaskedVideo
from jepa_jax.sharding import concrete, make_mesh, path_name, spec_for
from jepa_jax.state import init_state

GOLDEN = HERE / 'golden/vitg_parameters.txt'


@functools.cache
def vitg(width: int = 1408, patch: int = 16) -> MaskedVideo:
    """ViT-g; with another width the same tensors, and small enough to be drawn."""
    encoder = ViTConfig(width, 40, 22, 48 / 11, patch=patch, dtype=jnp.float32)
    return MaskedVideo(encoder, PredictorConfig(width, dtype=jnp.float32), groups=1)


def drawn(a: np.ndarray, stacked: bool) -> str:
    """How values were initialised, as the values say: 0, 1, or a deviation, of the first and last
    layer where they differ."""
    if (a == 0).all() or (a == 1).all():
        return str(int(a.flat[0]))
    ends = [f'{np.std(part):.2g}' for part in ((a[0], a[-1]) if stacked else (a,))]
    return 'normal ' + ' to '.join(dict.fromkeys(ends))


def table() -> str:
    """One line a parameter of ViT-g and its predictor: path, shape, spec, start, weight decay."""
    objective, small = vitg(), vitg(264, 4)
    shapes = {'encoder': objective.encoder.abstract, 'predictor': objective.predictor.abstract}
    decays = jax.tree.leaves(optim.decay_mask(shapes, objective.unused))
    values = jax.jit(small.init)(jax.random.key(0))
    lines = []
    for (path, leaf), value, decay in zip(
        jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(values), decays, strict=True
    ):
        name = path_name(path)
        spec = ', '.join(map(str, spec_for(name))) or 'replicated'
        start = drawn(np.asarray(value), 'blocks' in name)
        shape = 'x'.join(map(str, leaf.shape))
        lines.append(f'{name:48} {shape:14} {spec:18} {start:26} {"decay" if decay else "-"}')
    return '\n'.join(lines) + '\n'


def test_every_tensor_of_vitg():
    """On purpose changed? `python tests/test_sharding.py` writes the file anew; read its diff."""
    assert table() == GOLDEN.read_text()


def bytes_by_placement(state) -> tuple[int, int]:
    sharded = [leaf for leaf in jax.tree.leaves(state) if 'fsdp' in leaf.sharding.spec]
    every = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return (total := sum(a.size * a.dtype.itemsize for a in sharded)), every - total


@pytest.mark.parametrize('fsdp', [2, 8])
def test_a_device_holds_its_share(fsdp):
    """Exactly total / fsdp of what is sharded, and all of what is small: measured."""
    encoder = ViTConfig(96, 2, 4, patch=8, dtype=jnp.float32)
    predictor = PredictorConfig(96, 48, 2, 2, mask_tokens=2, dtype=jnp.float32)
    objective = MaskedVideo(encoder, predictor, groups=1)
    tx = optim.optimizer(OptimConfig(steps=2, warmup=0), lambda params: optim.decay_mask(params))
    mesh = make_mesh(fsdp)
    with jax.set_mesh(mesh):
        state = jax.jit(lambda key: init_state(objective, tx, key))(jax.random.key(0))
    sharded, replicated = bytes_by_placement(state)
    for device in jax.devices():
        held = sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(state)
            for shard in leaf.addressable_shards
            if shard.device == device
        )
        assert held == sharded / fsdp + replicated
    # moments and target lie as their parameters
    for moments in (state.opt_state[0].mu, state.opt_state[0].nu):
        same = jax.tree.map(lambda a, b: a.sharding == b.sharding, state.params, moments)
        assert all(jax.tree.leaves(same))


def test_what_vitg_replicates_is_small():
    objective = vitg()
    tx = optim.optimizer(OptimConfig(), lambda params: optim.decay_mask(params))
    mesh = make_mesh(8)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(lambda k: init_state(objective, tx, k), jax.random.key(0))
        sharded, replicated = bytes_by_placement(concrete(state, mesh))
    trained = 1_012_173_952 + 22_381_312  # reference: vjepa2 §1.1, §2
    assert sharded + replicated == pytest.approx(4 * (3 * trained + 1_012_173_952), abs=64)
    assert replicated < 0.001 * sharded


def test_every_parameter_of_the_probe_has_a_rule():
    net = attentive_probe.make_net(PoolerConfig(96, heads=4, depth=2, queries=1), {'motion': 2})
    for path, leaf in jax.tree_util.tree_leaves_with_path(net.abstract):
        assert len(spec_for(path_name(path))) <= leaf.ndim
    with pytest.raises(ValueError, match="parameter 'who/knows' matches no row"):
        spec_for('who/knows')


if __name__ == '__main__':
    GOLDEN.write_text(table())
