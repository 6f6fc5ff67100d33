"""V-JEPA 2.1's objective: golden losses and distances, two steps against plain PyTorch, masks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_dense
from dense_fill import ENCODER, PREDICTOR, fill, wave
from torch_fill import assert_golden

from jepa_jax import build, flops, memory, optim
from jepa_jax.config import DenseVideoConfig, EmaOptimConfig, ProbeConfig
from jepa_jax.data import Batch, Group
from jepa_jax.errors import ConfigError
from jepa_jax.masks import Mask
from jepa_jax.masks.multiblock import ReferenceSampler, reference_batch
from jepa_jax.masks.samplers import mask_sampler
from jepa_jax.objectives import dense_video
from jepa_jax.objectives.dense_video import ContextLoss, DenseVideo, squared_distances
from jepa_jax.objectives.programs import masked_video as programs
from jepa_jax.recipes import validate
from jepa_jax.sharding import make_mesh, put_batch, put_params
from jepa_jax.state import TrainState
from jepa_jax.step import make_step
from jepa_jax.weights import parts, tables

LOSS = 1e-5  # design: loss of a step, parameters after two steps
ALWAYS = ContextLoss(0.5, 0.5, 0, 0, by_distance=True)


def test_golden_targets_and_losses(golden_dense, monkeypatch):
    objective = DenseVideo(ENCODER, PREDICTOR, ALWAYS, groups=1, image_share=0.0)
    params = {'encoder': fill('encoder', ENCODER), 'predictor': fill('predictor', PREDICTOR)}
    mask = Mask(*(golden_dense[name].astype(np.int32) for name in ('masks_enc', 'masks_pred')))
    batch = Batch((Group(wave((2, 3, 4, 96, 96), 0.3), (mask,)),))

    @jax.jit
    def losses(near):  # 0: as if no distance counted
        real = squared_distances
        monkeypatch.setattr(dense_video, 'squared_distances', lambda *a: real(*a) ** near)
        total, metrics = objective.loss(params, params, {}, batch, 0)
        return total, metrics, objective.targets(params, {}, batch.groups[0].clips)

    total, metrics, target = losses(1.0)
    assert_golden(golden_dense, 'target', target, 1e-4)
    expected = dict(zip(('target', 'weighted', 'unweighted', 'total'), golden_dense['losses']))
    assert float(metrics['loss/group0_mask0']) == pytest.approx(expected['target'], abs=LOSS)
    assert float(metrics['loss/group0_mask0_context']) == pytest.approx(
        expected['weighted'], abs=LOSS
    )
    assert float(total) == pytest.approx(expected['total'], abs=LOSS)
    _, metrics, _ = losses(0.0)
    assert float(metrics['loss/group0_mask0_context']) == pytest.approx(
        expected['unweighted'], abs=LOSS
    )


def test_golden_distances(golden_dense):
    ids = (jnp.asarray(golden_dense[name], jnp.int32) for name in ('masks_enc', 'masks_pred'))
    roots = squared_distances(*ids, (2, 6, 6)) ** 0.25
    np.testing.assert_allclose(roots, golden_dense['ctx_dist'], rtol=0, atol=1e-6)


def test_distances_are_those_of_all_pairs():
    """On a grid of three sides, a single target, and clips spread over devices."""
    grid, rng = (3, 4, 5), np.random.default_rng(0)
    for targets in (1, 7):
        rows = np.stack([rng.permutation(60) for _ in range(4)]).astype(np.int32)
        target, context = rows[:, :targets], rows[:, targets:50]
        at = [np.stack(np.unravel_index(ids, grid), -1) for ids in (context, target)]
        apart = np.square(at[0][:, :, None] - at[1][:, None]).sum(-1).min(-1)
        np.testing.assert_array_equal(squared_distances(context, target, grid), apart)
    mesh = make_mesh(2, jax.devices()[:4])
    with jax.set_mesh(mesh):
        ids = put_batch((context, target), mesh)
        there = jax.jit(squared_distances, static_argnums=2)(*ids, grid)
    np.testing.assert_array_equal(there, apart)


def test_golden_schedule(golden_dense):
    loss = ContextLoss(0.5, 0.5, 15_000, 30_000, True)
    for step, weight in golden_dense['lambda_sched']:
        assert 0.5 * float(loss.share(jnp.int32(step))) == pytest.approx(weight, abs=1e-6)
    assert float(ALWAYS.share(jnp.int32(0))) == 1.0


# --- Two steps ----------------------------------------------------------------------------------

SMALL = dataclasses.replace(
    ENCODER, width=24, depth=3, heads=2, patch=4, image_size=16, levels=(0, 0, 1, 2), remat='none'
)
SMALL_PREDICTOR = dataclasses.replace(
    PREDICTOR, encoder_width=24, width=24, depth=1, heads=2, mask_tokens=2, grid=(2, 4, 4),
    remat='none',
)  # fmt: skip
# Adam divides gradients by their size: with a smaller eps, rounding in those of keys' biases, which
# nearly vanish, would move them by more than the tolerance
EPS = 1e-6
OPTIM = EmaOptimConfig(
    eps=EPS,
    batch=4, steps=20, warmup=0, start_lr=1e-3, lr=1e-3, final_lr=1e-3, weight_decay=0.1,
    final_weight_decay=0.1, momentum=0.9, final_momentum=0.9, ipe_scale=1.0,
)  # fmt: skip


def batch(masks: int = 1) -> Batch:
    """Masks of two clips, and one of two images."""
    rng = np.random.default_rng(0)

    def group(T, n, *counts):
        clips = rng.standard_normal((2, T, 16, 16, 3)).astype(np.float32)
        masks = []
        for k, m in counts:
            rows = np.stack([rng.permutation(n) for _ in range(2)]).astype(np.int32)
            masks.append(Mask(np.sort(rows[:, :k]), np.sort(rows[:, k : k + m])))
        return Group(clips, tuple(masks))

    return Batch((group(4, 32, *((10, 16), (8, 20))[:masks]), group(1, 16, (5, 9))))


def to_torch(part: str, config, params: dict) -> dict:
    rules, sizes = tables.table(part, config, 'torch')
    links = tables.bind(rules, parts.shared_net(part, config).abstract, sizes)
    return {
        name: torch.from_numpy(np.array(array)).double()
        for name, array in tables.to_file(links, params)
    }


@pytest.mark.parametrize('masks', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_steps_of_plain_pytorch(masks):
    """Videos and images in one step, each by its own way and weight, the context's loss on the way
    up; AdamW, and the average of the encoder."""
    objective = DenseVideo(
        SMALL, SMALL_PREDICTOR, ContextLoss(0.5, 0.5, -1, 3, True), groups=1, image_share=0.4
    )
    optimizer = optim.build(OPTIM, objective)
    nets = {'encoder': SMALL, 'predictor': SMALL_PREDICTOR}
    params = {part: fill(part, config) for part, config in nets.items()}
    ema = {'encoder': jax.tree.map(jnp.copy, params['encoder'])}
    state = TrainState(jnp.int32(0), params, ema, optimizer.tx.init(params))
    step = jax.jit(make_step(objective, optimizer))

    theirs = {part: to_torch(part, config, params[part]) for part, config in nets.items()}
    target = {k: v.clone() for k, v in theirs['encoder'].items()}
    trained = [(name, p.requires_grad_()) for net in theirs.values() for name, p in net.items()]
    groups = [
        {'params': [p for name, p in trained if ('bias' not in name and p.ndim > 1) == decays],
         'weight_decay': 0.1 * decays}
        for decays in (True, False)
    ]  # fmt: skip
    adam = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999), eps=EPS)
    data = batch(masks)
    inputs = [
        (
            torch.from_numpy(np.moveaxis(group.clips, -1, 1).copy()).double(),
            [[torch.from_numpy(ids).long() for ids in (m.context, m.target)] for m in group.masks],
        )
        for group in data.groups
    ]
    encoding = dict(levels=SMALL.levels, heads=2, patch=4)
    predicting = dict(depth=1, heads=2, side=4)
    for number, weight in enumerate((0.125, 0.25)):
        state, metrics = step(state, {}, data)
        adam.zero_grad()
        loss = torch_dense.loss(
            theirs['encoder'], target, theirs['predictor'], inputs, weight, 0.4, encoding,
            predicting,
        )  # fmt: skip
        loss.backward()
        adam.step()
        with torch.no_grad():
            for name, average in target.items():
                average.mul_(0.9).add_(theirs['encoder'][name], alpha=0.1)
        assert float(metrics['loss']) == pytest.approx(loss.item(), abs=LOSS), number
        norm = torch.sqrt(sum((p.grad**2).sum() for _, p in trained if p.grad is not None))
        assert float(metrics['grad_norm']) == pytest.approx(norm.item(), rel=1e-4), number
        assert float(metrics['context_weight']) == weight
    assert theirs['predictor']['mask_tokens.1'].grad is None  # and ours does not decay
    for part, ours, expected in (
        ('encoder', state.params['encoder'], theirs['encoder']),
        ('predictor', state.params['predictor'], theirs['predictor']),
        ('encoder', state.ema['encoder'], target),
    ):
        for name, array in to_torch(part, nets[part], ours).items():
            off = (array - expected[name].detach()).abs().max().item()
            assert off < LOSS, (part, name, off)


@pytest.mark.slow
def test_a_step_on_four_devices_is_that_on_one():
    objective = DenseVideo(SMALL, SMALL_PREDICTOR, ALWAYS, groups=1)
    params = {'encoder': fill('encoder', SMALL), 'predictor': fill('predictor', SMALL_PREDICTOR)}
    four = jax.tree.map(lambda a: np.concatenate([a, a[::-1]]), batch())

    def loss(params, batch):
        return objective.loss(params, params, {}, batch, 0)[0]

    one, gradient = jax.jit(jax.value_and_grad(loss))(params, four)
    mesh = make_mesh(2, jax.devices()[:4])
    with jax.set_mesh(mesh):
        laid = put_params(params, objective.specs, mesh)
        there, theirs = jax.jit(jax.value_and_grad(loss))(laid, put_batch(four, mesh))
    assert float(there) == pytest.approx(float(one), abs=1e-6)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_what_only_images_train_does_not_decay_without_them():
    objective = DenseVideo(SMALL, SMALL_PREDICTOR, ALWAYS, groups=1, image_share=0.0)
    mask = optim.decay_mask(objective.abstract, objective.unused)
    assert not mask['encoder']['patch_embed_image']['kernel']
    assert not mask['encoder']['modality']['image'] and mask['encoder']['modality']['video']


@pytest.mark.slow
def test_what_only_images_train_has_no_gradient_without_them():
    objective = DenseVideo(SMALL, SMALL_PREDICTOR, ALWAYS, groups=1, image_share=0.0)
    only_videos = Batch(batch().groups[:1])
    params = {'encoder': objective.nets['encoder'], 'predictor': objective.nets['predictor']}
    params = {name: net.abstract for name, net in params.items()}
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape), params)
    grads = jax.jit(jax.grad(lambda p: objective.loss(p, p, {}, only_videos, 0)[0]))(zero)
    for name in objective.unused:
        net, *path = name.split('/')
        leaf = grads[net]
        for key in path:
            leaf = leaf[key]
        assert not np.asarray(leaf).any(), name


def test_what_health_and_traces_are_of():
    """Health of the last level, of a first group of images, too; traces of all levels."""
    objective = DenseVideo(SMALL, SMALL_PREDICTOR, ALWAYS, groups=1)
    params, both = objective.abstract, batch()
    traced = jax.eval_shape(objective.trace, params, params, {}, both)
    assert traced['group1, mask0: prediction'].shape == (2, 9, 4 * 24)
    assert traced['group0, mask0: prediction of the context'].shape == (2, 10, 4 * 24)
    assert traced['group0: target encoder block 02'].shape == (2, 32, 24)
    for groups, targets in ((both.groups, 16), (both.groups[::-1], 9)):
        health = jax.eval_shape(objective.health, params, params, {}, Batch(groups))
        assert {a.shape[-1] for a in health.values()} == {24}
        assert health['prediction'].shape == health['expected'].shape == (2, targets, 24)


# --- The run ------------------------------------------------------------------------------------


def run(**changes) -> DenseVideoConfig:
    config = DenseVideoConfig()
    config.encoder.size = 'tiny'
    config.data.lists[0].path = 'clips.txt'
    images = dataclasses.replace(config.data.lists[0], kind='images', frames=1, weight=1.5)
    config.data.lists.append(images)
    config.optim.batch = 20
    for key, value in changes.items():
        setattr(config, key, value)
    return config


@pytest.mark.parametrize('frames, programs', [(16, 4), (1, 1)])
def test_few_programs_and_the_masks_of_the_original(frames, programs):
    """Shares of the tokens to 2 %, at every time; no token row is padding."""
    config = run()
    sampler = mask_sampler(config, frames, 12)
    shapes = {sampler.shapes(step) for step in range(32)}
    assert len(shapes) == programs
    grid = (config.tubelets(frames), 16, 16)
    name, masks = config.masks_of(frames)
    assert [mask.num_blocks for mask in masks] == ([10] if frames == 1 else [8, 2])
    originals = [ReferenceSampler(mask, grid, name) for mask in masks]
    steps, clips = 60, 72 if frames == 1 else 24
    shares = np.zeros((2, len(masks), 2, grid[0]))
    for step in range(steps):
        for which, rows in (
            (0, zip(*(sampler.sample(step, row) for row in range(4)))),
            (1, reference_batch(originals, 0, step, clips)),
        ):
            for m, drawn in enumerate(rows):
                pairs = list(zip(*drawn)) if which == 0 else drawn
                for side, ids in enumerate(pairs):
                    ids = np.asarray(ids)
                    counts = np.bincount(ids.ravel() // 256, minlength=grid[0])
                    shares[which, m, side] += counts / (256 * len(ids) * steps)
    assert np.abs(shares[0] - shares[1]).mean(-1).max() < 0.02
    context, target = sampler.sample(0, 0)[0]
    assert len({*context, *target}) == len(context) + len(target)
    assert [*context] == sorted(context) and [*target] == sorted(target)


def test_what_a_step_is_worth():
    """Twelve images and eight clips, counted by hand; the estimate of memory knows the levels."""
    config = run()
    vit = build.video_encoder(config)
    predictor = build.predictor(config, vit)
    assert (vit.levels, predictor.levels, predictor.depth) == ((2, 5, 8, 11), 4, 24)
    made = programs(config, 1)
    assert len(made) == 4
    like = made[0].shapes
    assert [g.clips.shape for g in like.groups] == [(8, 16, 256, 256, 3), (12, 1, 256, 256, 3)]
    assert [len(g.masks) for g in like.groups] == [2, 1]
    D, W = 192, 384

    def blocks(tokens, width, depth):
        return 2 * tokens * depth * (4 * width**2 + 2 * tokens * width + 8 * width**2)

    total = 0
    for group, n, tubelet in zip(like.groups, (2048, 256), (2, 1)):
        patches = 2 * tubelet * 16 * 16 * 3 * D
        total += len(group.clips) * (n * patches + blocks(n, D, 12))
        for mask in group.masks:
            k, m = mask.context.shape[1], mask.target.shape[1]
            total += len(group.clips) * (2 * k * patches + 3 * blocks(k, D, 12))
            ends = k * (4 * D * D + D * W) + (k + m) * W * 4 * D
            total += len(group.clips) * 3 * (2 * ends + blocks(k + m, W, 24))
    assert made[0].total == total
    plain = dataclasses.replace(vit, levels=())
    assert flops.encoder(plain, 256, 1) == flops.encoder(vit, 256, 1)
    sizes = memory.estimate(config)
    config.encoder.version = '2.0'
    assert sizes['targets and predictions'] > 3 * memory.estimate(config)['targets and predictions']


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda c: c.data.lists.pop(0), 'only images'),
        (lambda c: setattr(c.encoder, 'version', '2.0'), "encoder.version = '2.0': must be '2.1'"),
        (lambda c: setattr(c.encoder, 'position', 'sincos'), "must be 'rope' in V-JEPA 2.1"),
        (lambda c: setattr(c, 'variance_weight', 1.0), 'variance_weight = 1.0: must be 0'),
        (lambda c: setattr(c.predictor, 'tokens_of', 'masks'), "tokens_of = 'masks': must be"),
        (lambda c: setattr(c.data.lists[0], 'frames', 5), 'must be a multiple of encoder.tubelet'),
        (lambda c: setattr(c.image_masks[0], 'max_keep', 256), r'image_masks\[0\].max_keep = 256'),
        (lambda c: setattr(c.context_loss, 'full', 5), 'context_loss.full = 5: must be at least'),
        (lambda c: setattr(c, 'image_share', 1.0), 'image_share = 1.0: must be above 0 and below'),
    ],
)
def test_what_cannot_work_is_refused(change, words):
    config = run(probe=ProbeConfig())
    validate(config)
    change(config)
    with pytest.raises(ConfigError, match=words):
        validate(config)
