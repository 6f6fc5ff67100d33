"""Our own checkpoints: runs, folders of older programs, a net that a user brought."""

import dataclasses
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jepa_jax import checkpoint, convert, objectives, recipes
from jepa_jax.config import ActionConditionedConfig
from jepa_jax.config.runs import RunConfig
from jepa_jax.errors import ConvertError
from jepa_jax.models.ac_predictor import ACPredictorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.recipes import RECIPES, Recipe
from jepa_jax.sharding import VECTORS
from jepa_jax.weights import own, parts, zoo
from jepa_jax.weights.parts import PARTS, Part
from jepa_jax.weights.tables import flatten, nest

VIT = ViTConfig(24, 2, 2, patch=8, image_size=32, frames=4, dtype=jnp.float32)
AC = ACPredictorConfig(24, 24, 1, 2, grid=(4, 4), residual=True, dtype=jnp.float32)


def arrays(part: str, config, place: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of a net by their names in a checkpoint."""
    rng = np.random.default_rng(seed)
    leaves = flatten(parts.net(part, config).abstract)
    return {f'{place}/{n}': rng.standard_normal(a.shape, np.float32) for n, a in leaves.items()}


def optimizer(nets: dict[str, dict[str, np.ndarray]], step: int) -> dict[str, np.ndarray]:
    """The state of `optim.optimizer` beside nets by name: moments that tell the leaves apart."""
    number = np.int32(step)
    named = {'step': number, own.COUNT: number}
    named |= dict.fromkeys(('opt_state/1/inner_state/count', 'opt_state/2/count'), number)
    for net, leaves in nets.items():
        for i, (name, array) in enumerate(leaves.items()):
            path = name.removeprefix(f'params/{net}/')
            named[f'{own.MU}/{net}/{path}'] = np.full_like(array, i)
            named[f'{own.NU}/{net}/{path}'] = np.full_like(array, i + 0.5)
    return named


def stored(folder) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, read by Orbax's own rules."""
    tree, _ = checkpoint.restore(folder, checkpoint.stored_abstract(folder))
    return {name: np.asarray(leaf) for name, leaf in flatten(tree).items()}


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name, strict=True)


@pytest.fixture
def built(monkeypatch):
    """The nets of a run on recordings, until jepa_jax.build makes them from its config."""
    if hasattr(objectives, 'Objective'):
        return

    def build(config):
        frozen = {'encoder': parts.net('encoder', VIT)}
        nets = {'predictor': parts.net('ac_predictor', AC)}
        return types.SimpleNamespace(nets=nets, ema=(), frozen=frozen, kept={})

    row = dataclasses.replace(RECIPES['action_conditioned'], build='a_build:build')
    monkeypatch.setitem(RECIPES, 'action_conditioned', row)
    module = types.ModuleType('a_build')
    module.build = build
    monkeypatch.setitem(sys.modules, 'a_build', module)


def recordings() -> dict:
    """The config of a run on recordings, as old ones stored it: without an objective."""
    config = ActionConditionedConfig(name='ac', compute_dtype='float32')
    e, a = config.encoder, config.ac
    e.width, e.depth, e.heads, e.patch = 24, 2, 2, 8
    a.width, a.depth, a.heads, a.residual = 24, 1, 2, True
    config.data.crop = 32
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    del values['objective']
    return values


def test_a_run_on_recordings_with_its_optimizer(built, tmp_path):
    """There and back, and to PyTorch and back: arrays, moments and config."""
    frozen, trained = arrays('encoder', VIT, 'frozen/encoder'), {}
    trained['predictor'] = arrays('ac_predictor', AC, 'params/predictor', 1)
    everything = {**frozen, **trained['predictor'], **optimizer(trained, 7)}
    checkpoint.write(tmp_path / 'run', everything, step=7, extra={'config': recordings()})
    weights = convert.read(tmp_path / 'run')
    assert list(weights.nets) == ['ac_predictor', 'target'] and weights.alone
    assert (weights.predictor.residual, weights.encoder.patch) == (True, 8)
    assert weights.training.step == 7 and list(weights.training.mu) == ['ac_predictor']
    convert.write(weights, tmp_path / 'ours', 'jax')
    assert_same(stored(tmp_path / 'ours'), everything)
    convert.write(weights, tmp_path / 'a.pt', 'torch')
    back = convert.read(tmp_path / 'a.pt')
    assert back.training.config['objective'] == 'action_conditioned'
    assert back.training.hyper['betas'] == [0.9, 0.999]
    convert.write(back, tmp_path / 'back', 'jax')
    again = stored(tmp_path / 'back')
    for name, array in {**trained['predictor'], **optimizer(trained, 7)}.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)
    for name, array in frozen.items():
        name = name.replace('frozen/', 'params/')
        np.testing.assert_array_equal(again[name], array, err_msg=name)
    extra = checkpoint.read_manifest(tmp_path / 'ours')['extra']
    assert type(recipes.read_config(extra['config'])) is ActionConditionedConfig


def test_what_is_known_of_a_robot_goes_along(built, tmp_path):
    """Its units, what its recordings held and how its run ended, from each place of a run into each
    format, with the optimizer and without; where its recordings lie does not."""
    trained = {'predictor': arrays('ac_predictor', AC, 'params/predictor', 1)}
    everything = {**arrays('encoder', VIT, 'frozen/encoder'), **trained['predictor']}
    everything |= optimizer(trained, 7)
    config = recordings()
    config['robot'] |= {'metres': 0.001, 'path': '/somewhere'}
    extra, run = {'config': config, 'measured': {'episodes': 3}}, tmp_path / 'run'
    checkpoint.write(run / 'checkpoints/7', everything, step=7, extra=extra)
    told = {'recordings': {**config['robot'], 'path': ''}, 'measured': {'episodes': 3}}
    assert convert.read(run).robot == told  # one that goes on has no verdict
    report = {'verdict': 'ignores actions', 'sentences': ['ignores actions: so']}
    (run / 'report.json').write_text(json.dumps(report))
    told['verdict'] = ['ignores actions', 'ignores actions: so']
    for n, place in enumerate((run, run / 'checkpoints', run / 'checkpoints/7')):
        weights = convert.read(place, weights_only=n == 0)
        for to, name in (('jax', f'ours{n}'), ('torch', f'{n}.pt')):
            convert.write(weights, tmp_path / name, to)
            assert convert.read(tmp_path / name).robot == zoo.robot_of(tmp_path / name) == told
    (run / 'report.json').write_text('{')
    with pytest.raises(ConvertError, match='report.json'):
        convert.read(run)


def test_an_optimizer_that_is_not_known_is_not_dropped(built, tmp_path):
    trained = {'predictor': arrays('ac_predictor', AC, 'params/predictor')}
    everything = {**trained['predictor'], **optimizer(trained, 1)}
    everything['opt_state/3/trace'] = np.zeros(2, np.float32)
    checkpoint.write(tmp_path / 'run', everything, step=1, extra={'config': recordings()})
    with pytest.raises(ConvertError, match='opt_state/3/trace is not known here: --weights-only'):
        convert.read(tmp_path / 'run')
    assert convert.read(tmp_path / 'run', weights_only=True).training is None


# Folders that older programs converted


def test_rows_of_the_first_format(tmp_path):
    """`model` had a row a part, and the configs alone in it."""
    everything = arrays('encoder', VIT, 'params/encoder') | arrays(
        'ac_predictor', AC, 'params/predictor'
    )
    everything |= arrays('encoder', VIT, 'ema/encoder', 1)
    rows = {
        part: dataclasses.asdict(config) | {'dtype': 'float32'}
        for part, config in (('encoder', VIT), ('ac_predictor', AC))
    }
    checkpoint.write(tmp_path / 'old', everything, step=0, extra={'model': rows, 'version': '2.0'})
    weights = convert.read(tmp_path / 'old')
    assert list(weights.nets) == ['online', 'target', 'ac_predictor']
    assert (weights.encoder, weights.predictor) == (VIT, AC)
    for name, place in (('online', 'params'), ('target', 'ema')):
        scale = weights.params(name)['norm']['scale']
        np.testing.assert_array_equal(scale, everything[f'{place}/encoder/norm/scale'])
    convert.write(weights, tmp_path / 'new', 'jax')
    assert_same(stored(tmp_path / 'new'), everything)
    assert convert.read(tmp_path / 'new').encoder == VIT


def test_what_the_manifest_does_not_describe(tmp_path):
    row = {'part': 'encoder', 'config': parts.json_of('encoder', VIT)}
    everything = arrays('encoder', VIT, 'params/encoder')
    more = {**everything, 'params/decoder/bias': np.zeros(3, np.float32)}
    for i, (leaves, extra, words) in enumerate(
        [
            (everything, {}, 'neither config nor model'),
            (more, {'model': {'encoder': row}}, 'params/decoder/bias is of no net'),
            (everything, {'model': {'encoder': {**row, 'part': 'enc'}}}, 'did you mean encoder'),
            (everything, {'model': {'encoder': {'part': 'encoder', 'config': {'w': 1}}}}, "'w'"),
            (everything, {'config': {'objective': 'other'}}, 'objective'),
        ]
    ):
        checkpoint.write(tmp_path / str(i), leaves, step=0, extra=extra)
        with pytest.raises(ConvertError, match=words):
            convert.read(tmp_path / str(i))


# A net that a user brought


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    width: int
    factors: tuple[float, ...] = (1.0, 2.0)


class Toy(nnx.Module):
    def __init__(self, config: ToyConfig, *, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones(config.width))


@dataclasses.dataclass
class ToyRunConfig(RunConfig):
    objective: str = 'toy'
    width: int = 5


def toy_rules(config):
    return VECTORS


def toy_build(config):
    toy = parts.net('toy', ToyConfig(config.width))
    teacher = parts.net('toy', ToyConfig(3))
    return types.SimpleNamespace(
        nets={'toy': toy}, ema=('toy',), frozen={'teacher': teacher}, kept={}
    )


def test_a_net_of_a_users_travels_between_our_checkpoints(monkeypatch, tmp_path):
    """A row of PARTS and one of RECIPES, as a config file adds them; nothing else knows of them."""
    here = __name__
    row = Part('toy net', f'{here}:ToyConfig', f'{here}:Toy', f'{here}:toy_rules')
    monkeypatch.setitem(PARTS, 'toy', row)
    recipe = Recipe(f'{here}:ToyRunConfig', f'{here}:toy_build', '', '', '', '')
    monkeypatch.setitem(RECIPES, 'toy', recipe)
    rng = np.random.default_rng(0)
    trained = {'toy': {'params/toy/scale': rng.standard_normal(5, np.float32)}}
    everything = {
        **trained['toy'],
        'ema/toy/scale': rng.standard_normal(5, np.float32),
        'frozen/teacher/scale': rng.standard_normal(3, np.float32),
        **optimizer(trained, 9),
    }
    config = dataclasses.asdict(ToyRunConfig(name='toy'))
    extra = {'config': json.loads(json.dumps(config))}
    checkpoint.write(tmp_path / 'run', everything, step=9, extra=extra)
    weights = convert.read(tmp_path / 'run')
    assert list(weights.nets) == ['toy', 'ema/toy', 'frozen/teacher']
    assert weights.version == '' and weights.encoder is None and weights.summary()
    convert.write(weights, tmp_path / 'one', 'jax')
    assert_same(stored(tmp_path / 'one'), everything)
    weights = convert.read(tmp_path / 'one')  # by its own description, no longer by the recipe
    assert weights.nets['toy'].config == ToyConfig(5)
    convert.write(weights, tmp_path / 'two', 'jax')
    assert_same(stored(tmp_path / 'two'), everything)
    with pytest.raises(ConvertError, match="toy net has no place in files of format 'torch'"):
        convert.write(weights, tmp_path / 'a.pt', 'torch')
    rows = {**weights.nets, 'online': convert_encoder()}
    with pytest.raises(ConvertError, match="toy net has no place in files of format 'hf'"):
        convert.write(dataclasses.replace(weights, nets=rows), tmp_path / 'hf', 'hf')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['one', 'run', 'two']


def convert_encoder():
    from jepa_jax.weights.contents import StoredNet

    leaves = arrays('encoder', VIT, 'x')
    tree = nest({name.removeprefix('x/'): a for name, a in leaves.items()})
    return StoredNet('encoder', VIT, tree)


def test_sixteen_bits_of_a_frozen_net(built, tmp_path):
    """They stay as they are here, and are widened in other files."""
    frozen = arrays('encoder', VIT, 'frozen/encoder')
    frozen = {name: a.astype(jnp.bfloat16) for name, a in frozen.items()}
    everything = {**frozen, **arrays('ac_predictor', AC, 'params/predictor')}
    checkpoint.write(tmp_path / 'run', everything, step=1, extra={'config': recordings()})
    weights = convert.read(tmp_path / 'run')
    convert.write(weights, tmp_path / 'ours', 'jax')
    assert_same(stored(tmp_path / 'ours'), everything)
    convert.write(weights, tmp_path / 'a.pt', 'torch')
    ours = convert.read(tmp_path / 'a.pt').params('target')
    for name, leaf in flatten(ours).items():
        expected = frozen[f'frozen/encoder/{name}'].astype(np.float32)
        np.testing.assert_array_equal(leaf, expected, err_msg=name, strict=True)
    assert jax.tree.leaves(ours)
