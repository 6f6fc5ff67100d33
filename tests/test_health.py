"""Each measure against brute force or a known answer, and the verdict on runs trained into every
state on purpose."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import entropy, ortho_group
from sklearn.decomposition import PCA
from sklearn.dummy import DummyRegressor
from torch_fill import normal

from jepa_jax import build, health, optim
from jepa_jax.config import MaskedVideoConfig
from jepa_jax.data import Batch, Group
from jepa_jax.loop import _health, _lag
from jepa_jax.masks import Mask
from jepa_jax.sharding import make_mesh, place, put_batch
from jepa_jax.state import init_state
from jepa_jax.step import make_step

# --- Measures -----------------------------------------------------------------------------------


def with_singular_values(values, n: int = 40, seed: int = 0) -> np.ndarray:
    """A matrix [n, D] with these D singular values."""
    left, right = (ortho_group.rvs(k, random_state=seed + k) for k in (n, len(values)))
    return left[:, : len(values)] * np.asarray(values) @ right


def test_golden_row(golden_pixels):
    """E1: normal features; ones with little noise; of rank 8; with an offset that all share. Its
    third column, the participation ratio, is not measured: it counts directions as the effective
    rank does, and no verdict goes by it."""
    plain = normal(47, 256, 64)
    low = normal(48, 256, 8) @ normal(49, 8, 64) / np.sqrt(8)
    rows = plain, 1 + 1e-3 * plain, low, plain + 3 * normal(50, 1, 64)
    for x, (rank, centred, _, std) in zip(rows, golden_pixels['E1_ranks']):
        x = x.astype(np.float64)
        about = x - x.mean(0)
        near = functools.partial(pytest.approx, rel=1e-5)
        assert health.effective_rank(x) == near(rank)
        assert health.effective_rank(about) == near(centred)
        assert health.spread(x)['std'] * np.sqrt(256 / 255) == near(std)  # theirs: over n - 1


@pytest.mark.parametrize('values', [[1] * 9, [5, 0, 0], [2, 1, 1], [9, 3, 1, 0.3, 0.1, 1e-5]])
def test_effective_rank_of_a_known_spectrum(values):
    expected = np.exp(entropy(values))  # scipy normalises, and takes 0 log 0 as 0
    assert health.effective_rank(with_singular_values(values)) == pytest.approx(expected, rel=1e-5)


def test_effective_rank_between_its_bounds():
    rng = np.random.default_rng(1)
    assert health.effective_rank(np.ones((50, 1)) * rng.normal(size=8)) == pytest.approx(
        1, rel=1e-4
    )
    assert health.effective_rank(np.zeros((50, 8))) == pytest.approx(1, rel=1e-4)
    white = health.effective_rank(rng.normal(size=(20_000, 12)))  # covariance: identity
    assert 11.9 < white <= 12
    assert 18 < health.effective_rank(rng.normal(size=(20, 2000))) <= 20  # min(n, D)


def test_spread_is_brute_force():
    x = np.random.default_rng(2).normal(size=(30, 5)) @ np.diag([1, 2, 0.5, 3, 1]) + 1.5
    x[:, 1] += x[:, 0]
    result = health.spread(x)
    pairs = list(itertools.combinations(range(5), 2))
    correlations = [np.corrcoef(x[:, i], x[:, j])[0, 1] for i, j in pairs]
    deviations = [np.sqrt(((c - c.mean()) ** 2).mean()) for c in x.T]
    assert result['cosine'] == pytest.approx(1 - pdist(x, 'cosine').mean())
    assert result['covariance'] == pytest.approx(np.sqrt(np.mean(np.square(correlations))))
    assert result['std'] == pytest.approx(np.mean(deviations))
    assert result['std_min'] == pytest.approx(min(deviations))
    means = np.array([c.mean() for c in x.T])
    rest = ((x - means) ** 2).sum() / (x**2).sum()
    assert result['std_share'] == pytest.approx(rest)


def test_constant_features_and_dead_dimensions_give_numbers():
    row = np.random.default_rng(3).normal(size=6).astype(np.float32)
    result = health.spread(np.repeat(row[None], 100, 0).astype(np.float64))
    assert result['cosine'] == pytest.approx(1)
    assert result['rank'] == pytest.approx(1, rel=1e-4)
    assert abs(result['std_share']) < 1e-12 and result['covariance'] == 0
    x = np.random.default_rng(4).normal(size=(1000, 6))
    x[:, 3] = 0.1 + 1e-8 * x[:, 0]  # rounding, all of it that of another dimension
    assert health.spread(x)['covariance'] < 0.1
    assert all(np.isfinite(v) for v in health.spread(np.zeros((10, 4))).values())


@pytest.mark.parametrize('clips', [2, 5, 40])
@pytest.mark.parametrize('place,content', [(0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (3.0, 1.0)])
def test_clip_share_is_the_share_put_in(clips, place, content):
    result = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        where = place * rng.normal(size=(1, 64, 8))
        result.append(health.clip_share(where + content * rng.normal(size=(clips, 64, 8))))
    assert np.mean(result) == pytest.approx(content**2 / (content**2 + place**2), abs=0.03)


def test_clip_share_sees_what_a_clip_has_everywhere():
    x = np.random.default_rng(5).normal(size=(6, 1, 8)) * np.ones((1, 50, 1))
    assert health.clip_share(x) == 1
    assert health.clip_share(np.ones((4, 5, 6))) == 0


def test_positions_see_the_whole_grid_and_do_not_change():
    at = health.positions(8 * 16 * 16, 24)
    assert len(at) == len(set(at)) == 64 and list(at) == sorted(at)
    t, y, x = np.unravel_index(at, (8, 16, 16))
    assert len(set(t)) == 8 and min(len(set(y)), len(set(x))) > 12  # every 32nd: 8 and 1
    np.testing.assert_array_equal(at, health.positions(8 * 16 * 16, 24))
    assert len(health.positions(2048, 2)) == 512 and len(health.positions(32, 2)) == 32


@pytest.mark.parametrize('clips,count', [(3, 7), (1, 2048), (24, 64), (5, 300), (2000, 4)])
def test_sample_takes_tokens_of_all_clips_up_to_a_bound(clips, count):
    ids = np.arange(clips * count).reshape(clips, count, 1)
    result = health.sample(jnp.asarray(ids, jnp.float32))[..., 0].astype(int)
    assert result.size == min(clips * count, health.SAMPLE) or health.SAMPLE * 0.75 < result.size
    assert result.size <= health.SAMPLE
    row, at = result // count, result % count
    assert (row == row[:, :1]).all() and (at == at[:1]).all()
    assert len(set(row[:, 0])) == len(result) and row.max() >= clips * 0.75 - 1


def made_up(seed: int = 6, **change) -> dict[str, jax.Array]:
    keys = ('target', 'context', 'prediction', 'expected', 'baseline')
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=(6, 10, 4)), jnp.float32) for k in keys} | change


def test_loss_shares_against_a_regressor_that_sees_nothing():
    features = made_up()
    z, targets, baseline = (
        np.asarray(features[k], np.float64).reshape(60, 4)
        for k in ('prediction', 'expected', 'baseline')
    )
    nothing = DummyRegressor(strategy='median').fit(np.zeros((60, 1)), targets)
    constant = np.abs(nothing.predict(np.zeros((60, 1))) - targets).mean()
    result = health.measure(features)
    error = np.abs(z - targets).mean()
    assert result['health/loss_share'] == pytest.approx(error / constant)
    expected = error / np.abs(baseline - targets).mean()
    assert result['health/loss_share_position'] == pytest.approx(expected)
    assert health.measure(made_up(prediction=features['expected']))['health/loss_share'] == 0


def test_one_clip_is_measured_without_what_takes_two():
    one = {k: a[:1] for k, a in made_up().items() if k != 'baseline'}
    result = health.measure(one)
    assert 'health/target_clip_share' not in result
    assert 'health/loss_share_position' not in result and result['health/target_rank'] > 1


def test_features_that_are_not_finite_are_named():
    bad = made_up()['context'].at[0, 0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match='features of context are not finite'):
        health.measure(made_up(context=bad))


def test_lag_of_the_moving_average():
    rng = np.random.default_rng(7)
    a, b = ({'x': rng.normal(size=(3, 4)), 'y': {'z': rng.normal(size=5)}} for _ in range(2))
    flat = [np.concatenate([tree['x'].ravel(), tree['y']['z']]) for tree in (a, b)]
    expected = np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1])
    lag = _lag({'net': a, 'other': b}, {'net': b})  # the other is not averaged
    assert lag.keys() == {'net'} and float(lag['net']) == pytest.approx(expected, rel=1e-5)
    assert float(_lag({'net': a}, {'net': a})['net']) == 0


# --- Runs -----------------------------------------------------------------------------------------

# The thresholds of the verdict lie between runs of seed 0 with weight decays of 20 and 300 (see
# health.verdict): these have other clips, masks, weights, and other decays.
SEED = 10
BATCH = 32
# a program that runs 700 times is worth the passes that conftest.py leaves out
OFTEN = {'xla_backend_optimization_level': 3, 'xla_llvm_disable_expensive_passes': False}
GRID = np.arange(32).reshape(2, 4, 4)  # token ids of 4 frames of 32 pixels


def small_config() -> MaskedVideoConfig:
    c = MaskedVideoConfig(compute_dtype='float32')
    c.encoder.size, c.encoder.patch = 'tiny', 8
    c.encoder.width, c.encoder.depth, c.encoder.heads = 48, 2, 2
    c.predictor.width, c.predictor.depth, c.predictor.heads = 24, 2, 2
    c.predictor.mask_tokens = 1
    c.data.crop, c.data.frames = 32, 4
    c.optim.batch, c.optim.steps, c.optim.warmup = BATCH, 400, 20
    return c


def make_clips(rng: np.random.Generator, count: int) -> np.ndarray:
    """Two squares that move over a shaded background; colours, places, speeds and sizes vary."""
    clips = np.empty((count, 4, 32, 32, 3), np.uint8)
    y, x = np.mgrid[-16:16, -16:16]
    for clip in clips:
        slope = rng.normal(size=2) * rng.uniform(0, 4)
        shade = (slope[0] * y + slope[1] * x)[..., None] + rng.integers(0, 255, 3)
        frames = np.repeat(shade[None], 4, axis=0)
        for _ in range(2):
            place, speed = rng.uniform(0, 24, 2), rng.uniform(-3, 3, 2)
            side, colour = rng.integers(6, 16), rng.integers(0, 255, 3)
            for t, frame in enumerate(frames):
                top, left = np.clip(place + speed * t, 0, 28).astype(int)
                frame[top : top + side, left : left + side] = colour
        clip[:] = frames.clip(0, 255)
    return clips


def make_masks(rng: np.random.Generator, count: int) -> Mask:
    """A block of 3 x 3 tokens of every frame is the target."""
    hidden = np.zeros((count, *GRID.shape), bool)
    for clip, (y, x) in zip(hidden, rng.integers(0, 2, (count, 2))):
        clip[:, y : y + 3, x : x + 3] = True
    ids = np.broadcast_to(GRID, hidden.shape).astype(np.int32)
    return Mask(ids[~hidden].reshape(count, -1), ids[hidden].reshape(count, -1))


class Runs:
    """Training runs of one compiled step: rates, decay and momentum of the config are its
    arguments."""

    def __init__(self):
        config = small_config()
        self.objective = objective = build.masked_video(config)
        self.clips = make_clips(np.random.default_rng(SEED), 768)
        self.held_out = Batch((Group(self.clips[:BATCH], (self.masks(SEED + 1),)),))
        key = jax.random.key(SEED + 1)

        @functools.partial(jax.jit, compiler_options=OFTEN)
        def step(state, batch, lr, weight_decay, momentum):
            c = dataclasses.replace(
                config.optim, start_lr=lr / 10, lr=lr, final_lr=lr,
                weight_decay=weight_decay, final_weight_decay=weight_decay,
                momentum=momentum, final_momentum=momentum,
            )  # fmt: skip
            return make_step(objective, optim.build(c, objective))(state, {}, batch)

        self.step = step
        tx = optim.build(config.optim, objective).tx
        self.start = jax.jit(lambda k: init_state(objective, tx, k))(key)
        self.features = jax.jit(objective.health)

    def masks(self, seed: int) -> Mask:
        return make_masks(np.random.default_rng(seed), BATCH)

    def train(self, steps: int, *, lr=1e-3, weight_decay=0.04, momentum=0.98):
        """Metrics lines with health every 40 steps and at the end, and the last state."""
        rng, state, records = np.random.default_rng(SEED + 2), self.start, []
        for n in range(1, steps + 1):
            rows = rng.integers(BATCH, len(self.clips), BATCH)
            batch = Batch((Group(self.clips[rows], (make_masks(rng, BATCH),)),))
            state, values = self.step(state, batch, lr, weight_decay, momentum)
            if n % 40 == 0 or n in (1, steps):
                result = health.measure(self.features(state.params, state.ema, {}, self.held_out))
                records.append({'step': n, 'loss': float(values['loss'])} | result)
        return records, state

    def tokens(self, state) -> np.ndarray:
        """Target features [n, D] of clips held out."""
        result = self.features(state.params, state.ema, {}, self.held_out)
        return np.asarray(result['target']).reshape(-1, 48)


@pytest.fixture(scope='module')
def runs() -> Runs:
    return Runs()


@pytest.fixture(scope='module')
def healthy(runs):
    return runs.train(240)


def leading(tokens: np.ndarray) -> int:
    """Principal components that hold 99 % of the variance."""
    return int(PCA(0.99, svd_solver='full').fit(tokens).n_components_)


def test_a_run_that_learns_is_healthy(healthy):
    records, _ = healthy
    word, facts = health.verdict(records)
    assert word == 'healthy', facts
    for share in ('health/loss_share', 'health/loss_share_position'):
        begun, early, last = (records[i][share] for i in (0, 1, -1))  # steps 1, 40, 240
        assert last < early < begun, share


@pytest.mark.parametrize('settings', [dict(steps=1), dict(steps=24), dict(steps=40, lr=1e-6)])
def test_a_run_that_has_hardly_begun_is_undertrained(runs, settings):
    records, _ = runs.train(**settings)
    word, facts = health.verdict(records)
    assert word == 'undertrained', facts
    # and it is neither the model nor the data: see the healthy run


def test_a_run_that_loses_directions_is_a_partial_collapse(runs, healthy):
    records, state = runs.train(240, lr=3e-3, weight_decay=25.0)
    word, facts = health.verdict(records)
    assert word == 'partial collapse', facts
    early = healthy[0][1]  # of a run that is healthy in the end
    assert records[-1]['health/loss_share'] < early['health/loss_share']  # which says the opposite
    assert leading(runs.tokens(state)) < leading(runs.tokens(healthy[1])) / 2


def test_a_run_whose_features_become_constant_is_collapsed(runs, healthy):
    records, state = runs.train(200, lr=3e-3, weight_decay=400.0, momentum=0.95)
    word, facts = health.verdict(records)
    assert word == 'collapsed', facts
    assert records[-1]['loss'] < healthy[0][-1]['loss']  # which says the opposite
    tokens = runs.tokens(state)
    assert tokens.std(0).max() < 0.1 * np.sqrt(np.square(tokens).mean())


def test_health_of_an_objective_is_brute_force(runs):
    state, group = runs.start, runs.held_out.groups[0]
    params = state.params | {'encoder': jax.tree.map(lambda a: a * 1.1, state.params['encoder'])}
    result = jax.device_get(runs.features(params, state.ema, {}, runs.held_out))
    h = np.asarray(
        jax.jit(runs.objective.nets['encoder'])(state.ema['encoder'], group.clips), np.float64
    )
    np.testing.assert_allclose(result['target'], h, atol=1e-5)  # so few tokens that all are taken
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    for b, ids in enumerate(np.asarray(group.masks[0].target)):
        others = [i for i in range(BATCH) if i != b]
        np.testing.assert_allclose(result['expected'][b], h[b, ids], atol=1e-4)
        np.testing.assert_allclose(result['baseline'][b], h[others][:, ids].mean(0), atol=1e-4)
    loss, _ = jax.jit(runs.objective.loss)(params, state.ema, {}, runs.held_out, 0)
    error = np.abs(result['prediction'] - result['expected']).mean()
    assert error == pytest.approx(float(loss), abs=1e-6)
    assert result['context'].shape == (BATCH, 14, 48)


def test_health_on_eight_devices_in_parts_is_that_of_the_part(runs):
    state = runs.start
    batch = runs.held_out
    part = jax.tree.map(lambda a: a[::2], batch)
    expected = jax.jit(runs.objective.health)(state.params, state.ema, {}, part)
    mesh = make_mesh(fsdp=2)
    with jax.set_mesh(mesh):
        everywhere = jax.device_put(state, jax.NamedSharding(mesh, jax.P()))
        specs = runs.objective.specs

        @jax.jit
        def spread(state):
            ema = place(state.ema, {'encoder': specs['encoder']})
            return dataclasses.replace(state, params=place(state.params, specs), ema=ema)

        health_of_part = jax.jit(_health(runs.objective, 2))
        features = health_of_part(spread(everywhere), {}, put_batch(batch, mesh))
        assert features['target'].sharding.spec[0] == ('data', 'fsdp')  # it stays where it was
    one, eight = health.measure(expected), health.measure(features)
    assert one.keys() == eight.keys()
    assert eight == pytest.approx(one, rel=1e-4)


# --- Words ----------------------------------------------------------------------------------------

GOOD = {
    'health/target_rank': 12.0,
    'health/target_std_share': 0.9,
    'health/target_clip_share': 0.8,
    'health/context_rank': 12.0,
    'health/context_std_share': 0.9,
    'health/loss_share': 0.5,
    'health/loss_share_position': 0.6,
}


@pytest.mark.parametrize(
    'change,word',
    [
        ({}, 'healthy'),
        ({'target_rank': 1.5}, 'collapsed'),
        ({'context_rank': 1.02}, 'collapsed'),
        ({'context_std_share': 0.001}, 'collapsed'),
        ({'target_std_share': 0.01, 'loss_share': 1.0}, 'collapsed'),
        ({'target_clip_share': 0.01}, 'collapsed'),
        ({'target_rank': 4.0, 'loss_share': 1.0}, 'partial collapse'),
        ({'target_rank': 6.0}, 'healthy'),
        ({'target_clip_share': 0.05}, 'partial collapse'),
        ({'loss_share': 0.95}, 'undertrained'),
        ({'loss_share_position': 1.0}, 'undertrained'),
    ],
)
def test_the_worst_that_holds_is_the_verdict(change, word):
    last = GOOD | {f'health/{k}': v for k, v in change.items()}
    lines = [{'loss': 1.0}, GOOD | {'health/target_rank': 20.0}, *[last] * 3, {'loss': 0.5}]
    result, sentence = health.verdict(lines)
    assert result == word, sentence
    assert f'effective rank {last["health/target_rank"]:.1f} (at most 20.0' in sentence


def test_one_hard_batch_is_not_undertrained():
    hard = GOOD | {'health/loss_share': 1.0, 'health/loss_share_position': 1.0}
    assert health.verdict([GOOD, GOOD, GOOD, hard])[0] == 'healthy'
    assert health.verdict([GOOD, hard, hard, hard])[0] == 'undertrained'


def test_features_of_the_position_alone_are_a_collapse():
    rng = np.random.default_rng(8)
    where = rng.normal(size=(1, 10, 4)) + 0.05 * rng.normal(size=(6, 10, 4))
    result = health.measure(made_up(target=jnp.asarray(where, jnp.float32)))
    assert result['health/target_rank'] > 2 and result['health/target_std_share'] > 0.5
    word, sentence = health.verdict([result])
    assert word == 'collapsed' and 'where a token is' in sentence


def test_nothing_measured_is_unknown():
    assert health.verdict([{'loss': 0.5}])[0] == health.verdict([])[0] == 'unknown'


def test_one_clip_gets_a_verdict():
    short = {k: v for k, v in GOOD.items() if 'clip' not in k and 'position' not in k}
    assert health.verdict([short])[0] == 'healthy'
