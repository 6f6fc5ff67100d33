"""What an objective may ask of state, step and optimizer: averages of some nets or none, frozen
nets, rates, randomness by step."""

import dataclasses
import functools
import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_jax import objectives, optim
from jepa_jax.config import EmaOptimConfig, OptimConfig
from jepa_jax.errors import ConfigError
from jepa_jax.models.layers import Linear
from jepa_jax.nets import Net
from jepa_jax.objectives import Objective
from jepa_jax.sharding import VECTORS
from jepa_jax.state import TrainState, init_state
from jepa_jax.step import gradients, make_step

WIDTH = 3
OPTIM = dict(
    batch=4, steps=10, warmup=0, lr=0.1, final_lr=0.1, weight_decay=0.1, final_weight_decay=0.1,
    ipe_scale=1.0,
)  # fmt: skip


def linear() -> Net:
    rules = (r'kernel', jax.P()), *VECTORS
    return Net(lambda rngs: Linear(WIDTH, WIDTH, dtype=jnp.float32, rngs=rngs), rules=rules)


class Toy(Objective):
    """A student and its head meet a frozen teacher and whatever is averaged, with some noise."""

    def __init__(self, ema: tuple[str, ...] = (), **settings):
        self.nets = {'student': linear(), 'head': linear(), 'other': linear()}
        self.frozen = {'teacher': linear()}
        self.ema = ema
        vars(self).update(settings)

    def loss(self, params, ema, frozen, batch, step):
        target = self.frozen['teacher'](frozen['teacher'], batch)
        for name in self.ema:
            target = target + self.nets[name](ema[name], batch)
        key = jax.random.fold_in(jax.random.key(0), step)
        target = target + 0.01 * jax.random.normal(key, target.shape[1:])
        hidden = self.nets['student'](params['student'], batch)
        made = self.nets['head'](params['head'], hidden) + self.nets['other'](
            params['other'], batch
        )
        return jnp.square(made - target).mean(), {'seen': jnp.float32(step)}


def test_objectives_keep_to_the_protocol():
    """A method of its name is that of the protocol: the loop calls it as such."""
    for module in pkgutil.iter_modules(objectives.__path__):
        importlib.import_module(f'{objectives.__name__}.{module.name}')
    kinds = Objective.__subclasses__()
    for kind in kinds:  # grows on the way
        kinds += kind.__subclasses__()
        for name in vars(kind).keys() & vars(Objective).keys():
            if inspect.isfunction(vars(Objective)[name]) and name != '__init__':
                ours, theirs = (inspect.signature(getattr(k, name)) for k in (kind, Objective))
                assert list(ours.parameters) == list(theirs.parameters), (kind, name)
    assert any(kind.__name__ == 'RegularisedVideo' for kind in kinds)


@dataclasses.dataclass
class Started:
    objective: Toy
    optimizer: optim.Optimizer
    state: TrainState
    frozen: dict
    step: object


def start(ema: tuple[str, ...] = (), kind=EmaOptimConfig, accumulate: int = 1, **settings):
    objective = Toy(ema, **settings)
    config = kind(**OPTIM, **({'momentum': 0.8, 'final_momentum': 1.0} if ema else {}))
    optimizer = optim.build(config, objective)
    state = jax.jit(lambda key: init_state(objective, optimizer.tx, key))(jax.random.key(1))
    frozen = {'teacher': objective.frozen['teacher'].init(jax.random.key(2))}
    step = jax.jit(make_step(objective, optimizer, accumulate), donate_argnums=0)
    return Started(objective, optimizer, state, frozen, step)


def batches(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(4, WIDTH)).astype(np.float32) for _ in range(count)]


def host(tree):
    return jax.tree.map(np.array, tree)


def assert_near(ours, theirs, **tolerance):
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), ours, theirs)


@pytest.mark.parametrize('ema', [(), ('student',), ('head', 'student')])
def test_averages_follow_their_nets(ema):
    """average <- m average + (1 - m) net, of the net after its update; m from .8 to 1 in 10
    steps."""
    run = start(ema, kind=EmaOptimConfig if ema else OptimConfig)
    state = run.state
    assert set(state.ema) == set(ema)
    for name in ema:  # exact copies, and memory of their own: the state is donated
        jax.tree.map(np.testing.assert_array_equal, state.ema[name], state.params[name])
    expected = host(state.ema)
    for n, batch in enumerate(batches(3)):
        state, metrics = run.step(state, run.frozen, batch)
        m = 0.8 + 0.2 * n / 10
        nets = {name: host(state.params[name]) for name in ema}
        expected = jax.tree.map(lambda a, p, m=m: m * a + (1 - m) * p, expected, nets)
        assert_near(host(state.ema), expected, rtol=1e-5, atol=1e-6)
        assert ('momentum' in metrics) == bool(ema)
        if ema:
            assert float(metrics['momentum']) == pytest.approx(m, abs=1e-6)
    for name in ema:  # and they are no copies any more
        kernels = (np.asarray(tree[name]['kernel']) for tree in (state.ema, state.params))
        assert np.abs(np.subtract(*kernels)).max() > 0.01


def test_frozen_nets_are_no_part_of_the_state_and_get_no_gradient():
    run = start(('student',))
    fields = {field.name for field in dataclasses.fields(TrainState)}
    assert fields == {'step', 'params', 'ema', 'opt_state'}
    assert set(run.state.params) == set(run.state.opt_state[0].mu) == set(run.objective.nets)
    (batch,) = batches(1)
    (_, metrics), grads = gradients(run.objective, run.state, run.frozen, batch)
    assert set(grads) == set(run.objective.nets)
    before = host(run.frozen)
    state, _ = run.step(run.state, run.frozen, batch)
    state, _ = run.step(state, run.frozen, batch)  # only the state was donated
    jax.tree.map(np.testing.assert_array_equal, run.frozen, before)
    # and the loss does see them
    zero = jax.tree.map(jnp.zeros_like, run.frozen)
    losses = [
        run.objective.loss(state.params, state.ema, f, batch, 0)[0] for f in (run.frozen, zero)
    ]
    assert float(losses[0]) != float(losses[1])


def test_a_net_with_a_rate_of_a_tenth_moves_a_tenth():
    """Decay included: the update of AdamW is the rate times all of it."""
    plain, slow = start(), start(rates={'head': 0.1, 'other': 0.0})
    before = host(plain.state.params)
    grads = jax.tree.map(lambda a: a + 0.1, plain.state.params)
    moved, less = (
        host(run.optimizer.tx.update(grads, run.state.opt_state, run.state.params)[0])
        for run in (plain, slow)
    )
    jax.tree.map(np.testing.assert_array_equal, less['student'], moved['student'])
    assert np.abs(moved['head']['kernel']).max() > 0.01
    assert_near(less['head'], jax.tree.map(lambda a: a / 10, moved['head']), rtol=1e-6)
    for leaf in jax.tree.leaves(less['other']):
        assert not leaf.any()
    # in a step, too
    state, _ = slow.step(slow.state, slow.frozen, batches(1)[0])
    jax.tree.map(np.testing.assert_array_equal, state.params['other'], before['other'])
    change = np.abs(np.asarray(state.params['head']['kernel']) - before['head']['kernel'])
    assert change.max() == pytest.approx(0.01, rel=0.2)  # Adam's first step is the rate itself


def test_a_loss_of_the_whole_batch_takes_no_batch_in_parts():
    whole = Toy(whole_batch=True)
    assert optim.build(OptimConfig(**OPTIM), whole).ema_rate is None
    for accumulate in (2, 4):
        with pytest.raises(ConfigError, match=f'optim.accumulate = {accumulate}: must be 1'):
            optim.build(OptimConfig(**OPTIM, accumulate=accumulate), whole)
    optim.build(OptimConfig(**OPTIM, accumulate=2), Toy())


@pytest.mark.parametrize('accumulate', [1, 2])
def test_the_loss_is_told_the_step(accumulate):
    """The same in all parts of a batch, so that noise is a function of the seed and the step."""
    run = start(accumulate=accumulate)
    state = run.state
    for n, batch in enumerate(batches(2)):
        state, metrics = run.step(state, run.frozen, batch)
        assert float(metrics['seen']) == n
    assert int(state.step) == 2


def test_one_net_gets_the_key_itself_several_get_their_own():
    several = Toy()
    key = jax.random.key(3)
    made = [np.asarray(params['kernel']) for params in several.init(key).values()]
    assert not np.array_equal(made[0], made[1])
    one = Toy()
    one.nets = {'student': several.nets['student']}
    jax.tree.map(
        np.testing.assert_array_equal, one.init(key)['student'], one.nets['student'].init(key)
    )
