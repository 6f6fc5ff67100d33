"""Terms against collapse: golden values and gradients of VICReg, eb_jepa, LeJEPA; the objective
without a moving average, alone and over devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from torch_fill import assert_whole, mask_pair, normal, tensor

from jepa_jax import build, describe, flops, optim
from jepa_jax.config import (
    AgainstCollapseConfig,
    DataListConfig,
    MaskedVideoConfig,
    OptimConfig,
)
from jepa_jax.data import Batch, Group
from jepa_jax.errors import ConfigError
from jepa_jax.masks import Mask
from jepa_jax.models.expander import EPS, BatchNorm, ExpanderConfig
from jepa_jax.models.layers import standardise
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.objectives.programs import masked_video as programs
from jepa_jax.objectives.regularised_video import RegularisedVideo, Regulariser
from jepa_jax.objectives.regularisers import (
    SIGREG,
    VICREG,
    Vicreg,
    covariance_term,
    directions,
    epps_pulley,
    sigreg,
    std_term,
)
from jepa_jax.recipes import validate
from jepa_jax.sharding import make_mesh, put_batch, put_params
from jepa_jax.weights.parts import net

RELATIVE = 1e-5  # of the reference page, for values and gradients of these terms


def near(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=RELATIVE, atol=RELATIVE * np.abs(theirs).max())


# --- Golden ---------------------------------------------------------------------------------------


def two_views(x: jax.Array, y: jax.Array, variant: Vicreg) -> dict[str, jax.Array]:
    """VICReg of two views [B, D] of the same samples: total, prediction, std, covariance. []

    The first variant halves the sum of the two views' std terms, as its code does, not its paper.
    """
    prediction = jnp.square(x - y).mean()
    std = (std_term(x) + std_term(y)) / (1 if variant.mean else 2)
    covariance = sum(covariance_term(z, mean=variant.mean) for z in (x, y))
    terms = {'std': std, 'covariance': covariance}
    return {'total': variant.total(prediction, terms), 'prediction': prediction, **terms}


def test_vicreg(golden_pixels):
    x, y = normal(31, 16, 24) * 0.7 + 0.3, normal(31, 16, 24) * 0.6 + normal(32, 16, 24) * 0.5
    x, y = np.float32(x), np.float32(y)
    names = 'total', 'prediction', 'std', 'covariance'
    terms = two_views(x, y, VICREG['vicreg'])
    near(np.array([terms[n] for n in names]), golden_pixels['R1_total_sim_std_cov'])
    grads = jax.grad(lambda x, y: two_views(x, y, VICREG['vicreg'])['total'], (0, 1))(x, y)
    for grad, name in zip(grads, 'xy'):
        near(grad[::4], golden_pixels[f'R1_grad_{name}'])
        assert_whole(golden_pixels, f'R1_grad_{name}', grad)
    terms = two_views(x, y, VICREG['eb_jepa'])
    near(np.array([terms[n] for n in names]), golden_pixels['R5_eb_vicreg_loss_inv_var_cov'])
    same = two_views(x, x, VICREG['vicreg'])
    for name, value in VICREG['vicreg'].of(jnp.asarray(x), None).items():
        near(value, same[name])


def test_terms_of_features_of_pixels(golden_pixels):
    """eb_jepa's video model: every clip, frame and pixel is a sample."""
    z = jnp.asarray(normal(35, 2, 6, 3, 2, 2).transpose(0, 2, 3, 4, 1).reshape(24, 6))
    std, covariance = std_term(z), covariance_term(z, mean=True)
    ours = 10 * std + 100 * covariance, std + covariance, std, covariance
    near(np.array(ours), golden_pixels['R6_eb_vc_weighted_unweighted_std_cov'])


def test_terms_of_whole_frames(golden_pixels):
    """eb_jepa's action-conditioned model: samples are frames, or their pixels, of all times or the
    first; weights 8 and 16, and 12 of the change from frame to frame."""
    x = jnp.asarray(normal(36, 5, 6, 3, 2, 2).transpose(0, 2, 3, 4, 1))  # [B, T, H, W, C]
    change = jnp.square(x[:, 1:] - x[:, :-1]).mean()
    rows = []
    for channels in (24, 6):
        for part in (x, x[:, :1]):
            part = part.swapaxes(2, 4) if channels == 24 else part
            z = part.reshape(-1, channels)
            terms = covariance_term(z, mean=True), std_term(z), change
            rows.append([np.dot((8, 16, 12), terms), sum(terms), *terms])
    near(np.array(rows), golden_pixels['R7_eb_ac_regulariser'])


def test_learning_rate_of_vicreg(golden_pixels):
    """100 epochs of 2,503 steps at a batch of 512: ten to rise from 0, then to a thousandth."""
    config = OptimConfig(
        schedule='half_cosine', steps=250_300, warmup=25_030, start_lr=0.0, lr=0.6, final_lr=6e-4,
        ipe_scale=1.0,
    )  # fmt: skip
    rate = optim.learning_rate(config)
    for step, lr in golden_pixels['R4_lr_step']:
        assert float(rate(int(step))) == pytest.approx(lr, abs=1e-6)


def test_expander(golden_pixels):
    config = ExpanderConfig(48, (64, 64), 32)
    made = net('expander', config)

    def leaf(path, a):
        kind, at, name = (key.key for key in path)
        number = 3 * int(at) + (kind == 'norms')  # of [Linear, BatchNorm, ReLU] x 2, Linear
        shape = a.shape[::-1] if name == 'kernel' else a.shape
        word = 'bias' if name == 'bias' else 'weight'
        value = tensor(f'projector.{number}.{word}', shape, 0.05)
        return value.T if name == 'kernel' else value + (name == 'scale')

    params = jax.tree.map_with_path(leaf, made.abstract)
    assert len(jax.tree.leaves(params)) == 9  # the last one has no bias
    out = made(params, normal(34, 16, 48))
    np.testing.assert_allclose(out[::4], golden_pixels['R2_expander_out'], rtol=0, atol=1e-5)
    assert_whole(golden_pixels, 'R2_expander_out', out)
    # torch's running averages after one batch say what it took for mean and variance of that batch;
    # ours keeps none, so what it took is told from two rows that went in and came out
    first = normal(34, 16, 48) @ params['layers']['0']['kernel'] + params['layers']['0']['bias']
    first, normed = map(np.float64, (first, nnx.jit(BatchNorm(64))(jnp.asarray(first))))
    rows = normed.argmin(0)[None], normed.argmax(0)[None]  # far apart, so that little is lost
    (x0, x1), (y0, y1) = ([np.take_along_axis(a, r, 0)[0] for r in rows] for a in (first, normed))
    deviation = (x1 - x0) / (y1 - y0)
    mean, variance = x0 - deviation * y0, np.square(deviation) - EPS
    averages = 0.1 * mean, 0.9 + 0.1 * variance * 16 / 15
    for ours, name in zip(averages, ('mean', 'var')):
        theirs = golden_pixels[f'R2_bn1_running_{name}']
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_distance_from_normal(golden_pixels):
    xs = normal(41, 64, 8) * np.linspace(0.2, 2, 8) + np.linspace(-0.5, 0.5, 8)
    for variant, row in (
        ('lejepa', 'S1_epps_pulley_17_t3'),
        ('eb_jepa', 'S1d_eb_jepa_10_points'),
        ('paper', 'S1e_paper_17_points_-5..5'),
    ):
        near(epps_pulley(jnp.asarray(xs, jnp.float32), SIGREG[variant]), golden_pixels[row])
    finer = dataclasses.replace(SIGREG['lejepa'], points=41, reach=5.0)
    near(epps_pulley(jnp.asarray(xs, jnp.float32), finer), golden_pixels['S1b_epps_pulley_41_t5'])


def test_what_sigreg_says_of_known_features():
    """Figures of the reference (family §4.2) for 256 samples; whether the term grows with their
    number depends on the variant; rows that end in a LayerNorm do not reach a normal sample's."""
    z = np.random.default_rng(0).standard_normal((256, 64)).astype(np.float32)
    along = directions(jax.random.key(0), 64, 1024)
    term = jax.jit(sigreg, static_argnums=2)

    def of(z, variant='lejepa'):
        return float(term(z, along, SIGREG[variant]))

    assert of(z) == pytest.approx(np.sqrt(2 * np.pi) * (1 - 1 / np.sqrt(3)), abs=0.2)
    for features, expected in ((0 * z, 103), (z / 2, 39), (2 * z, 62)):
        assert of(features) == pytest.approx(expected, rel=0.05)
    assert of(0 * z[:128]) == pytest.approx(103 / 2, rel=0.01)
    assert of(0 * z[:128], 'eb_jepa') == pytest.approx(of(0 * z, 'eb_jepa'), rel=1e-5)
    offset = 2 * np.random.default_rng(1).standard_normal(64).astype(np.float32)
    assert of(np.asarray(standardise(jnp.asarray(z + offset)))) > 50


@pytest.mark.parametrize('variant', [*VICREG.values(), *SIGREG.values()])
def test_what_samples_that_are_all_alike_cost(variant):
    """Written before a run starts; it is what the terms say of such samples."""
    terms = variant.of(jnp.zeros((32, 8)), jax.random.key(0))
    np.testing.assert_allclose(variant.collapsed(32), variant.total(0.0, terms), rtol=1e-5)


def test_sigregs_weight_depends_on_the_batch():
    assert SIGREG['lejepa'].collapsed(256) == pytest.approx(0.02 * 103, rel=5e-3)  # as published
    assert SIGREG['lejepa'].collapsed(32) == pytest.approx(0.02 * 103 / 8, rel=5e-3)
    line = next(line for line in describe.masked_video(config(method='sigreg')) if 'alike' in line)
    assert line.endswith(', 0.064 for samples all alike')  # of a batch of 8


def test_sigreg_along_the_packages_directions(golden_pixels):
    z = jnp.asarray(normal(42, 64, 24) * 0.8 + 0.1, jnp.float32)
    term = jax.value_and_grad(lambda z, along: sigreg(z, along, SIGREG['lejepa']))
    values, grads = zip(*(term(z, golden_pixels[f'S2_directions_step{i}']) for i in range(2)))
    near(np.array(values), golden_pixels['S2_sliced_loss_steps01'])
    near(grads[0][::8], golden_pixels['S2_grad_step0'])
    assert_whole(golden_pixels, 'S2_grad_step0', grads[0])


def test_sigreg_of_whole_losses(golden_pixels):
    raw = normal(44, 24, 32)
    along = jnp.asarray(raw / np.linalg.norm(raw, axis=0))
    views = jnp.asarray(normal(43, 3, 32, 24) * 0.9 + 0.2, jnp.float32)

    def minimal(views):
        # each view apart, samples first
        term = sigreg(views.transpose(1, 0, 2), along, SIGREG['minimal'])
        invariance = jnp.square(views - views.mean(0)).mean()
        return SIGREG['minimal'].total(invariance, {'sigreg': term}), (invariance, term)

    (total, parts), grad = jax.value_and_grad(minimal, has_aux=True)(views)
    near(np.array([total, *parts]), golden_pixels['S3_lejepa_total_inv_sigreg'])
    near(grad[:, ::8], golden_pixels['S3_grad'])
    assert_whole(golden_pixels, 'S3_grad', grad)

    one = jnp.asarray(normal(45, 32, 24))
    two = jnp.asarray(normal(45, 32, 24) * 0.8 + 0.3 * normal(46, 32, 24), jnp.float32)

    def bcs(one):
        term = (sigreg(one, along, SIGREG['eb_jepa']) + sigreg(two, along, SIGREG['eb_jepa'])) / 2
        error = jnp.square(one - two).mean()
        return SIGREG['eb_jepa'].total(error, {'sigreg': term}), (term, error)

    (total, parts), grad = jax.value_and_grad(bcs, has_aux=True)(one)
    near(np.array([total, *parts]), golden_pixels['S4_bcs_loss_bcs_inv'])
    near(grad[::4], golden_pixels['S4_grad_z1'])
    assert_whole(golden_pixels, 'S4_grad_z1', grad)


# --- The objective --------------------------------------------------------------------------------

ENCODER = ViTConfig(
    24, 1, 2, patch=8, position='sincos', image_size=32, frames=4, dtype=jnp.float32, remat='none'
)
PREDICTOR = PredictorConfig(
    24, 24, 1, 2, mask_tokens=1, position='sincos', grid=(2, 4, 4), dtype=jnp.float32, remat='none'
)
BOTH = 'clips', 'positions'


def objective(terms=None, stop_gradient=False, expander=True) -> RegularisedVideo:
    regulariser = Regulariser(terms, BOTH if terms else (), 4, stop_gradient)
    config = ExpanderConfig(24, (16, 16), 8) if terms and expander else None
    return RegularisedVideo(ENCODER, PREDICTOR, regulariser, config, groups=1, seed=3)


def batch() -> Batch:
    clips = np.random.default_rng(0).integers(0, 256, (8, 4, 32, 32, 3), np.uint8)
    return Batch((Group(clips, (Mask(*mask_pair(1, 8, 32, 10, 12)),)),))


@pytest.fixture(scope='module')
def params():
    """One draw for all; the expander's included."""
    rng = np.random.default_rng(0)
    abstract = objective(VICREG['vicreg']).abstract
    return jax.tree.map(lambda a: np.float32(0.1 * rng.standard_normal(a.shape)), abstract)


def test_eight_devices_see_the_whole_batch(params):
    """Values and gradients of both kinds of terms, expander included."""
    terms = VICREG['vicreg'], dataclasses.replace(SIGREG['minimal'], directions=8)
    both = [objective(t) for t in terms]
    features = jnp.asarray(normal(5, 16, 8, 24))

    def loss(params, features):
        total = 0.0
        for one in both:
            for z in one.regularised(params, features):
                total += sum(one.regulariser.terms.of(z, jax.random.key(0)).values())
        return total

    grad = jax.jit(jax.value_and_grad(loss, (0, 1)))
    expander = {'expander': params['expander']}
    alone, mesh = grad(expander, features), make_mesh(2)
    with jax.set_mesh(mesh):
        assert jax.device_count() == 8
        there = put_params(params, both[0].specs, mesh)
        spread = grad({'expander': there['expander']}, put_batch(features, mesh))
    assert float(spread[0]) == pytest.approx(float(alone[0]), rel=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5),
        *map(jax.device_get, (spread[1], alone[1])),
    )


def test_losses_of_eight_devices_are_those_of_one(params):
    """Whole losses with VICReg and with SIGReg, executed: values, and gradients of all nets."""
    terms = VICREG['vicreg'], dataclasses.replace(SIGREG['minimal'], directions=8)
    both = [objective(t) for t in terms]

    @jax.jit
    def grad(params, batch):
        return [jax.value_and_grad(o.loss, has_aux=True)(params, {}, {}, batch, 3) for o in both]

    alone, mesh = jax.device_get(grad(params, batch())), make_mesh(2)
    with jax.set_mesh(mesh):
        assert jax.device_count() == 8
        there = put_params(params, both[0].specs, mesh)
        spread = jax.device_get(grad(there, put_batch(batch(), mesh)))
    for ((one, _), ours), ((many, _), theirs) in zip(alone, spread):
        assert float(many) == pytest.approx(float(one), rel=1e-5)
        for name in ours:  # biases before a batch norm have none but rounding
            a, b = (ravel_pytree(tree[name])[0] for tree in (ours, theirs))
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max(), err_msg=name)
            assert np.abs(a).max() > 1e-4


def test_gradients_pass_through_targets_unless_stopped(monkeypatch):
    """The sum of those of encoder and average where both are one; stopped, the encoder's alone."""
    rng = np.random.default_rng(2)
    tokens = jnp.asarray(rng.standard_normal((8, 32, 6)), jnp.float32)
    keep = jnp.asarray(batch().groups[0].masks[0].context)

    def encoder(p, clips, ids=None):  # linear, so that its gradients are cheap
        x = tokens if ids is None else jnp.take_along_axis(tokens, ids[..., None], axis=1)
        return x @ p

    def predictor(p, x, context, target, g):
        return jnp.broadcast_to(x.mean(1, keepdims=True) @ p, (*target.shape, 5))

    p = {'encoder': normal(7, 6, 5), 'predictor': normal(8, 5, 5)}

    def loss(online, average):
        target = batch().groups[0].masks[0].target
        h = jnp.take_along_axis(standardise(tokens @ average), target[..., None], axis=1)
        seen = jnp.take_along_axis(tokens @ online['encoder'], keep[..., None], axis=1)
        return jnp.abs(seen.mean(1, keepdims=True) @ online['predictor'] - h).mean()

    online, average = jax.grad(loss, (0, 1))(p, p['encoder'])
    for one, expected in (
        (objective(stop_gradient=True), online['encoder']),
        (objective(), online['encoder'] + average),
    ):
        assert one.ema == () and not one.whole_batch and set(one.nets) == set(p)
        monkeypatch.setattr(one, 'nets', {'encoder': encoder, 'predictor': predictor})
        grads = jax.grad(lambda p: one.loss(p, {}, {}, batch(), 0)[0])(p)  # noqa: B023
        np.testing.assert_allclose(grads['encoder'], expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(grads['predictor'], online['predictor'], rtol=0, atol=1e-6)
    assert np.abs(average).max() > 1e-3


def test_features_that_shrink_gain_nothing(params, monkeypatch):
    """Behind the expander a prediction's error stays what it is where features and predictions
    shrink together towards a constant; and the terms look at the very targets that it is held
    against. By hand in NumPy, too."""
    inside, outside = (
        dataclasses.replace(objective(VICREG['vicreg']).regulariser, expanded=e) for e in (1, 0)
    )
    one = objective(VICREG['vicreg'])
    z, t = (normal(seed, 8, 12, 24).astype(np.float32) for seed in (11, 12))

    def error(z, t):
        a, b = one.said(params, jnp.asarray(z)), one.met(params, jnp.asarray(t))
        return float(jnp.abs(a - b).mean())

    def by_hand(x):
        p = params['expander']
        for i in '01':
            x = x @ p['layers'][i]['kernel'] + p['layers'][i]['bias']
            x = (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + 1e-5)
            x = np.maximum(0, x * p['norms'][i]['scale'] + p['norms'][i]['bias'])
        return x @ p['layers']['2']['kernel']

    monkeypatch.setattr(one, 'regulariser', outside)
    # targets are standardised there, token by token
    assert error(z, t / 4 + 3) == pytest.approx(error(z, t), rel=1e-4)
    monkeypatch.setattr(one, 'regulariser', inside)
    whole = error(z, t)
    assert whole == pytest.approx(np.abs(by_hand(z) - by_hand(t)).mean(), rel=1e-4)
    assert error(z / 4 + 3, t / 4 + 3) == pytest.approx(whole, rel=1e-2)
    h = one.met(params, t)
    clips, positions = one.regularised(params, h)
    np.testing.assert_array_equal(clips, h.mean(1))
    assert positions.shape == (8, 4, 8) and np.isin(positions, h).all()
    # health holds predictions against the same targets
    seen = jax.eval_shape(lambda p, b: one.health(p, {}, {}, b), params, batch())
    assert seen['prediction'].shape[-1] == seen['expected'].shape[-1] == 8
    assert seen['target'].shape[-1] == 24


def test_directions_are_drawn_anew_at_every_step(params, monkeypatch):
    """And health looks at the encoder itself."""
    one = objective(dataclasses.replace(SIGREG['lejepa'], directions=4), expander=False)
    monkeypatch.setattr(one, 'errors', lambda *args: ({'loss/group0_mask0': jnp.float32(0)}, []))
    terms = jax.jit(lambda step: one.loss(params, {}, {}, batch(), step)[1]['loss/sigreg'])
    drawn = [float(terms(step)) for step in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert one.target(params, {}) is params['encoder'] is one.encoder(params, {}, {})[1]


# --- Its config -----------------------------------------------------------------------------------


def config(**against) -> MaskedVideoConfig:
    c = MaskedVideoConfig(against_collapse=AgainstCollapseConfig(**against))
    c.encoder.size = 'tiny'
    c.encoder.width, c.encoder.depth, c.encoder.heads = 48, 2, 4
    c.predictor.width, c.predictor.depth, c.predictor.heads = 24, 1, 2
    c.data.crop, c.data.frames, c.data.lists[0].kind = 64, 4, 'synthetic'
    c.optim.batch = 8
    return c


def test_terms_compare_clips_of_one_frame_count():
    """Of one clip there is no variance: the first step would be NaN."""
    c = config(method='vicreg')
    c.data.lists = [DataListConfig(kind='synthetic', frames=n) for n in (4, 8)]
    c.data.lists[0].weight = 9.0
    with pytest.raises(ConfigError, match='0.8 clips of 8 frames a step: must be at least 2'):
        validate(c)
    c.data.lists[1].weight = 3.0
    validate(c)


def test_a_run_names_method_and_variant():
    c = config(method='sigreg', variant='eb_jepa', directions=7, sigreg_weight=3.0)
    validate(c)
    made = build.masked_video(c)
    terms = dataclasses.replace(SIGREG['eb_jepa'], directions=7, weight=3.0)
    assert made.regulariser.terms == terms and made.whole_batch and not made.ema
    assert made.nets['expander'].config.hidden == (256, 256)
    assert build.masked_video(config(method='vicreg')).regulariser.terms == VICREG['vicreg']
    assert set(
        build.masked_video(config(method='vicreg', expander=(0, 0), space='features')).nets
    ) == {
        'encoder',
        'predictor',
    }
    assert build.masked_video(config(method='none')).regulariser.terms is None
    assert build.masked_video(config()).ema == ('encoder',)


@pytest.mark.parametrize(
    'against, words',
    [
        ({'method': 'simsiam'}, 'against_collapse.method'),
        ({'method': 'vicreg', 'variant': 'lejepa'}, "variant = 'lejepa': allowed .* vicreg, eb_j"),
        ({'variant': 'vicreg'}, 'leave it empty'),
        ({'method': 'vicreg', 'expander': (8, 0)}, 'two widths'),
        (
            {'method': 'vicreg', 'expander': (0, 0)},
            "space = 'expanded': must be 'features' without",
        ),
        ({'method': 'vicreg', 'directions': 8}, "directions = 8: means nothing with .*'vicreg'"),
        ({'stop_gradient': True}, "stop_gradient = True: means nothing with method 'ema'"),
    ],
)
def test_settings_that_cannot_work(against, words):
    with pytest.raises(ConfigError, match=words):
        validate(config(**against))


def test_terms_of_a_batch_take_it_whole():
    c = config(method='vicreg')
    c.optim.accumulate = 2
    with pytest.raises(ConfigError, match=r'optim.accumulate = 2: must be 1'):
        validate(c)


def test_flops_count_the_gradient_through_targets():
    """By hand: forward and backward are three times forward, but for pixels."""
    step = {m: programs(config(method=m), 1)[0].flops for m in ('ema', 'none', 'vicreg')}
    vit, forward = build.video_encoder(config()), step['ema']['target']
    pixels = 8 * flops.patch_embed(vit, 32, 4)
    for method in ('none', 'vicreg'):
        assert step[method]['target'] == 3 * forward - pixels
    stopped = programs(config(method='none', stop_gradient=True), 1)[0].flops
    assert stopped == step['ema']
    # 8 clips, each a mean and 16 tokens; 48 -> 256 -> 256 -> 128, three times, then 128 x 128
    # covariances, forward and backward; predictions and targets are expanded alike
    once, terms = 3 * (48 * 256 + 256 * 256 + 256 * 128), 8 * 17 * 2 * 128 * 128
    program = programs(config(method='vicreg'), 1)[0]
    hidden = sum(m.target.shape[1] for m in program.like.groups[0].masks)
    assert step['vicreg']['regulariser'] == 2 * (8 * (32 + hidden) * once + terms)
    apart = programs(config(method='vicreg', space='features'), 1)[0].flops
    assert apart['regulariser'] == 2 * (8 * 17 * once + terms)
