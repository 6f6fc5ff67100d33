"""A frozen teacher in place of the average, and pixels in place of features: losses against plain
PyTorch and by hand, the floor, runs, what is counted, what is refused."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_dense
from dense_fill import fill
from small_run import arrays, assert_same_arrays, copy_until, rows
from test_dense_video import ALWAYS, SMALL, SMALL_PREDICTOR, batch, to_torch

from jepa_jax import build, checkpoint, cli, distillation, flops, frozen, memory
from jepa_jax.config import DenseVideoConfig, EncoderConfig, MaskedVideoConfig, encoder_shape
from jepa_jax.data import Batch, Group
from jepa_jax.errors import ConfigError, UsageError, ZooError
from jepa_jax.masks import Mask
from jepa_jax.models import tokens
from jepa_jax.models.layers import standardise
from jepa_jax.objectives.dense_video import DenseVideo
from jepa_jax.objectives.masked_video import MaskedVideo
from jepa_jax.objectives.pixels import cubes
from jepa_jax.objectives.programs import masked_video as programs
from jepa_jax.origin import Origin
from jepa_jax.recipes import validate
from jepa_jax.sharding import make_mesh, put_batch
from jepa_jax.weights import names
from jepa_jax.weights.read import read
from jepa_jax.weights.write import write

TEACHER = dataclasses.replace(SMALL, width=36, depth=2, heads=3, levels=(0, 0, 0, 1))
FLAT = dataclasses.replace(ALWAYS, by_distance=False)  # where all is target nothing is near
STUDENT_PREDICTOR = dataclasses.replace(SMALL_PREDICTOR, levels=1, out_width=36)


def test_a_teacher_of_another_width_and_depth_against_plain_pytorch():
    """Videos and images; both losses on the last level; no gradient for the norms before."""
    objective = DenseVideo(
        SMALL, STUDENT_PREDICTOR, ALWAYS, groups=1, image_share=0.4, teacher=TEACHER
    )
    nets = {'encoder': SMALL, 'predictor': STUDENT_PREDICTOR}
    params = {part: fill(part, config) for part, config in nets.items()}
    above = fill('encoder', TEACHER)
    data = batch()

    @jax.jit
    def step(params, above):
        return jax.value_and_grad(
            lambda p: objective.loss(p, {}, {'teacher': above}, data, jnp.int32(0))[0]
        )(params)

    ours, gradient = step(params, above)
    theirs = {part: to_torch(part, config, params[part]) for part, config in nets.items()}
    for net in theirs.values():
        for parameter in net.values():
            parameter.requires_grad_()
    inputs = [
        (
            torch.from_numpy(np.moveaxis(group.clips, -1, 1).copy()).double(),
            [[torch.from_numpy(ids).long() for ids in (m.context, m.target)] for m in group.masks],
        )
        for group in data.groups
    ]
    expected = torch_dense.loss(
        theirs['encoder'], to_torch('encoder', TEACHER, above), theirs['predictor'], inputs, 0.5,
        0.4, dict(levels=SMALL.levels, heads=2, patch=4), dict(depth=1, heads=2, side=4),
        taught=dict(levels=TEACHER.levels, heads=3, patch=4),
    )  # fmt: skip
    expected.backward()
    assert float(ours) == pytest.approx(expected.item(), abs=1e-5)
    for part, config in nets.items():
        for name, array in to_torch(part, config, gradient[part]).items():
            grad = theirs[part][name].grad
            idle = f'{part}: {name}'
            if grad is None:
                assert not array.any(), idle
            else:
                np.testing.assert_allclose(array, grad, rtol=0, atol=1e-5, err_msg=idle)
    idle = {name for name in objective.unused if name.startswith('encoder/norms')}
    assert idle == {f'encoder/norms/{i}/{leaf}' for i in range(3) for leaf in ('scale', 'bias')}
    seen = jax.eval_shape(objective.health, params, params, {'teacher': above}, data)
    assert {name: seen[name].shape[-1] for name in seen} == {
        'target': 24, 'context': 24, 'prediction': 36, 'expected': 36, 'baseline': 36,
    }  # fmt: skip
    traced = jax.eval_shape(objective.trace, params, params, {'teacher': above}, data)
    assert traced['group0: target encoder block 01'].shape == (2, 32, 36)
    assert traced['group0, mask0: prediction of the context'].shape == (2, 10, 36)


@pytest.mark.parametrize('kind', [MaskedVideo, DenseVideo])
def test_a_student_that_is_its_teacher_is_at_the_floor(kind):
    """Without masks and with a predictor that passes on what it gets, nothing is left to learn."""
    old = dataclasses.replace(SMALL, modalities=False, interpolate=False, rope='tiled', levels=())
    config, more = (old, {}) if kind is MaskedVideo else (SMALL, {'context_loss': FLAT})
    objective = kind(config, dataclasses.replace(SMALL_PREDICTOR, levels=1), groups=1,
                     teacher=config, **more)  # fmt: skip
    params = jax.jit(objective.nets['encoder'].init)(jax.random.key(0))
    moved = jax.tree.map(lambda a: 1.1 * a, params)
    clips = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)
    ids = np.tile(np.arange(32, dtype=np.int32), (2, 1))
    whole = Batch((Group(clips, (Mask(ids, ids),)),))

    def passes_on(params, x, *ids, **how):
        return standardise(x) if kind is MaskedVideo else (standardise(x),) * 2

    objective.nets['predictor'] = passes_on
    loss = jax.jit(
        lambda teacher: objective.loss(
            {'encoder': params, 'predictor': {}}, {'encoder': moved}, {'teacher': teacher}, whole,
            jnp.int32(0),
        )[0]
    )  # fmt: skip
    assert float(loss(params)) < 1e-6 < 1e-3 < float(loss(moved))


def test_pixels_of_a_token_have_mean_0_and_deviation_1():
    """By hand, of uint8 and of what is normalised already. (reference: family §3.2)"""
    clips = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 16, 3), np.uint8)

    def of(clips):
        return cubes(tokens.cut(jnp.asarray(clips), 2, 8))

    ours = np.asarray(of(clips))
    assert ours.shape == (2, 4, 2 * 8 * 8 * 3)
    for n, (t, y, x) in enumerate(((0, 0, 0), (0, 0, 8), (2, 0, 0), (2, 0, 8))):
        cube = clips[:, t : t + 2, y : y + 8, x : x + 8].astype(np.float64) / 255
        axes = (1, 2, 3)
        expected = cube - cube.mean(axes, keepdims=True)
        expected /= cube.std(axes, ddof=1, keepdims=True) + 1e-6
        np.testing.assert_allclose(ours[:, n], expected.reshape(2, -1), rtol=0, atol=1e-5)
    floats = (clips / np.float32(255) - np.float32(tokens.MEAN)) / np.float32(tokens.STD)
    np.testing.assert_allclose(of(floats), ours, rtol=0, atol=1e-4)
    mesh = make_mesh(1, jax.devices()[:2])
    with jax.set_mesh(mesh):
        spread = jax.jit(of)(put_batch(clips, mesh))
    np.testing.assert_allclose(spread, ours, rtol=0, atol=1e-5)


def test_a_loss_of_pixels_reads_no_target_encoder():
    """Half the squared error of what the predictor says, by hand."""
    config = run(target='pixels', loss_exponent=2.0)
    objective = build.masked_video(config)
    assert objective.nets['predictor'].config.predicted_width == 2 * 16 * 16 * 3
    said = {}

    def zero(params, x, context, target, slot):
        said['z'] = jnp.zeros((*target.shape, 2 * 16 * 16 * 3))
        return said['z']

    objective.nets['encoder'] = lambda params, clips, ids: None
    objective.nets['predictor'] = zero
    clips = np.random.default_rng(0).integers(0, 256, (1, 2, 32, 32, 3), np.uint8)
    mask = Mask(np.array([[0, 3]], np.int32), np.array([[1, 2]], np.int32))
    total, _ = objective.loss(
        {'encoder': {}, 'predictor': {}}, {}, {}, Batch((Group(clips, (mask,)),)), 0
    )
    pixels = 512  # of a colour and token: unbiased, so that squares add up to one less
    assert float(total) == pytest.approx(0.5 * (pixels - 1) / pixels, abs=1e-5)


# --- What is counted and refused ----------------------------------------------------------------


def run(kind=MaskedVideoConfig, **changes):
    config = kind()
    config.encoder.size = config.teacher_encoder.size = 'tiny'
    config.data.lists[0].path = 'clips.txt'
    config.optim.batch, config.mask_sampler = 8, 'single'
    for key, value in changes.items():
        setattr(config, key, value)
    return config


def test_work_and_memory_of_a_teacher_are_counted():
    plain, taught = run(), run(teacher='vitl')
    taught.teacher_encoder.size = 'vitl'
    before, after = (programs(config, 1)[0] for config in (plain, taught))
    above = build.teacher(taught)
    assert (above.width, above.depth, above.image_size, above.frames) == (1024, 24, 256, 16)
    assert after.flops['target'] == 8 * flops.encoder(above, 2048)
    assert after.flops['context'] == before.flops['context']
    hidden = sum(mask.target.shape[1] for mask in after.shapes.groups[0].masks)
    wider = 3 * 2 * 384 * (1024 - 192) * hidden
    assert after.flops['predictor'] - before.flops['predictor'] == 8 * wider
    sizes, without = memory.estimate(taught), memory.estimate(plain)
    net = build.masked_video(taught).frozen['teacher']
    parameters = sum(a.size for a in jax.tree.leaves(net.abstract))
    assert parameters == 303_885_312  # (reference: vjepa2 §1)
    assert sizes['frozen nets'] == pytest.approx(4 * parameters / 2**30)
    assert without['frozen nets'] == 0
    assert sizes['targets and predictions'] > without['targets and predictions']
    pixels = run(target='pixels')
    assert programs(pixels, 1)[0].flops['target'] == 0


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda c: setattr(c.teacher_encoder, 'patch', 8), 'teacher_encoder.patch = 8: must be'),
        (lambda c: setattr(c.teacher_encoder, 'tubelet', 1), 'teacher_encoder.tubelet = 1: must'),
        (lambda c: setattr(c.teacher_encoder, 'version', '2.1'), "teacher_encoder.version = '2.1'"),
        (lambda c: setattr(c, 'target', 'pixels'), "target = 'pixels': must be 'features' with a"),
        (lambda c: setattr(c, 'target', 'voxels'), "target = 'voxels'"),
        (lambda c: setattr(c.mesh, 'fsdp', 5), 'mesh.fsdp = 5'),
        (
            lambda c: setattr(c.against_collapse, 'method', 'none'),
            "must be 'ema' with teacher",
        ),
    ],
)
def test_what_cannot_be_taught_is_refused(change, words):
    config = run(teacher='vitl')
    validate(config)
    change(config)
    with pytest.raises(ConfigError, match=words):
        validate(config)
    dense = run(DenseVideoConfig, target='pixels')
    with pytest.raises(ConfigError, match="must be 'features' in V-JEPA 2.1"):
        validate(dense)


def test_a_name_that_is_none_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / 'clips.txt').touch()
    config = run(teacher='vitx')
    config.data.lists[0].path = str(tmp_path / 'clips.txt')
    with pytest.raises(ZooError, match="'vitx'"):
        validate(config, tmp_path / 'run')


def of_tiny() -> MaskedVideoConfig:
    """A student of the encoder that comes with the package."""
    config = run(teacher='tiny')
    config.data.crop, config.data.frames, config.data.fps = 32, 8, 8
    config.encoder.patch = 8
    config.teacher_encoder = EncoderConfig('tiny', width=96, depth=4, heads=4, patch=8)
    return config


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda c: setattr(c.data, 'crop', 48), 'trained at crop 32, data.crop = 48 here'),
        (lambda c: setattr(c.data, 'fps', 4), 'trained at fps 8, data.fps = 4 here'),
        (lambda c: setattr(c.teacher_encoder, 'width', 48), 'another encoder.*width 96 and 48'),
        (lambda c: setattr(c.teacher_encoder, 'patch', 16), 'patch 8 and 16'),
        (lambda c: setattr(c, 'version', '2.1'), 'is of V-JEPA 2.0, objective'),
        (lambda c: None, ''),
    ],
)
def test_a_teacher_of_other_clips_is_refused_by_name(change, words):
    """The encoder that comes with the package, of 32 pixels and 8 frames a second."""
    config = of_tiny()
    change(config)
    objective = build.masked_video(config)
    if not words:
        prepared = frozen.teacher(config, objective, Origin())
        assert prepared.frozen['teacher']['norm']['scale'].shape == (96,)
        return
    with pytest.raises(ConfigError, match=f"teacher = 'tiny': .*{words}"):
        frozen.teacher(config, objective, Origin())
    if 'trained at' in words:
        config.teacher_other_view = True
        assert frozen.teacher(config, objective, Origin()).frozen


# --- Recipes and the study ----------------------------------------------------------------------


@pytest.mark.parametrize(
    'name, teacher, shape',
    [
        ('vits_distill', 'vitl', (1024, 24)),
        ('vits_distill:vitg', 'vitg', (1408, 40)),
        ('vitb_distill', 'vitg', (1408, 40)),
        ('vitb_distill:cooldown', 'vitg', (1408, 40)),
        ('vitb_distill:21', 'vitgigantic-21', (1664, 48)),
        ('vits_distill:salt', '', None),
        ('tiny_distill', 'tiny', (96, 4)),
        ('tiny_distill:21', 'runs/tiny_21', (96, 4)),
        ('tiny_distill:salt', '', None),
    ],
)
def test_recipes(name, teacher, shape):
    config = cli.load(name)
    config.data.lists[0].path = 'clips.txt'
    if 'cooldown' in name:
        config.checkpoints.resume_from = 'runs/x'
    validate(config)
    assert config.teacher == teacher and config.predictor.depth in (2, 12)
    assert (config.target == 'pixels') == ('salt' in name) == (config.loss_exponent == 2)
    if teacher:
        if not teacher.startswith('runs/'):  # of one's own
            names.check(teacher)
        above = encoder_shape(config.teacher_encoder)
        assert (above.width, above.depth) == shape
        assert encoder_shape(config.encoder).width < above.width
    small = cli.load(name + (',' if ':' in name else ':') + 'smoke')
    validate(small)
    assert small.teacher == ('random' if teacher else '') and small.optim.steps == 24


def test_two_teachers_are_refused():
    for words in ('vitl,vitg', 'salt,vitl'):
        with pytest.raises(UsageError, match='choose at most one of'):
            cli.load(f'vits_distill:{words}')


def test_the_study_holds_runs_of_one_student_against_each_other(tmp_path):
    config = cli.load('tiny_distill:study', ('study',))
    stages = {stage.name: stage.config for stage in distillation.stages(config, tmp_path)}
    for run in stages.values():
        validate(run)
    shapes = {name: (run.encoder, run.data) for name, run in stages.items()}
    assert len({str(s) for n, s in shapes.items() if n != 'salt_teacher'}) == 1
    assert {n: (r.optim.steps, Path(r.teacher).name) for n, r in stages.items()} == {
        'distilled': (1300, 'tiny'), 'ema': (1300, ''), 'ema_slow': (1300, ''),
        'salt_teacher': (1000, ''), 'salt': (1300, 'salt_teacher'), 'ema_long': (2300, ''),
    }  # fmt: skip
    config.student.optim.batch = 128
    (*_, long) = distillation.stages(config, tmp_path)
    assert long.config.optim.steps == 1300 + 250  # the teacher's 32,000 clips, 128 a step
    config.student.optim.batch = 32
    assert stages['ema_slow'].optim.momentum == 0.998 != stages['ema'].optim.momentum
    for number, name in enumerate(stages):
        middle = 0.5 + 0.1 * number
        probes = {
            which: {'mean': middle, 'low': middle - 0.04, 'high': middle + 0.04}
            for which in ('target', 'random', 'pixels')
        }
        (tmp_path / name).mkdir()
        told = {'probes': {'motion': probes}, 'verdict': 'healthy'}
        (tmp_path / name / 'report.json').write_text(json.dumps(told))
    distillation.report(config, tmp_path)
    report = json.loads((tmp_path / 'report.json').read_text())
    assert [*report['rows']] == ['untrained', 'pixels', *stages]
    assert report['sentences'] == [
        'motion: distilled 0.500 (0.460 to 0.540), behind ema_slow 0.700 (0.660 to 0.740)',
        'motion: salt 0.900 (0.860 to 0.940), ahead of ema_slow 0.700 (0.660 to 0.740)',
    ]
    page = (tmp_path / 'report.md').read_text()
    assert '| salt | salt_teacher | 1300 | 32 | 0.900 (0.860 to 0.940) |' in page
    config.student.teacher = ''
    with pytest.raises(ConfigError, match='student.teacher is empty'):
        distillation.check(config, tmp_path)


# --- A run ----------------------------------------------------------------------------------------


def test_the_teacher_of_a_run_is_the_one_that_it_keeps(tmp_path):
    """Bit for bit, whatever its name stands for by now; another run takes the one it names."""
    config = of_tiny()
    objective = build.masked_video(config)
    began = frozen.teacher(config, objective, Origin()).frozen
    assert jax.tree.structure(began['teacher']) == jax.tree.structure(
        objective.frozen['teacher'].abstract
    )
    with checkpoint.Checkpoints(tmp_path / 'checkpoints', keep=1) as checkpoints:
        checkpoints.keep_frozen(began)
        assert checkpoints.save(4, {'step': jnp.int32(4)}, {})
    (folder,) = (tmp_path / 'frozen').iterdir()
    config.teacher = 'nowhere'
    resumed = frozen.teacher(config, objective, Origin(tmp_path / 'checkpoints/4', same_run=True))
    for a, b in zip(jax.tree.leaves(resumed.frozen), jax.tree.leaves(began), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
    with pytest.raises(ZooError, match="'nowhere'"):
        frozen.teacher(config, objective, Origin(tmp_path / 'checkpoints/4'))


@pytest.mark.slow
def test_a_run_keeps_its_teacher_and_resumes_bit_for_bit(runs, tmp_path):
    """The teacher is gone when the run is resumed; its copy has the bits it had."""
    above = runs.finished()
    copy = runs.workdir()
    copy_until(16, above, copy)
    student = ('encoder.width=36', 'encoder.heads=3', 'encoder.depth=1', 'optim.steps=8')
    more = (*student, f'teacher={copy}', 'teacher_encoder.width=24', 'teacher_encoder.depth=2',
            'teacher_encoder.heads=2', 'teacher_encoder.patch=8')  # fmt: skip
    unbroken = runs.workdir()
    done = runs.run(unbroken, *more)
    assert done.returncode == 0, done.stderr
    assert 'predicts features of the frozen teacher' in done.stderr
    resumed = runs.workdir()
    copy_until(4, unbroken, resumed)
    copy.rename(copy.with_name('away'))
    done = runs.run(resumed, *more)
    assert done.returncode == 0 and 'resumes from step 4' in done.stderr, done.stderr
    assert rows(resumed) == rows(unbroken) and len(rows(resumed)) == 8
    assert_same_arrays(arrays(resumed, 8), arrays(unbroken, 8))
    (folder,) = (resumed / 'frozen').iterdir()
    kept = checkpoint.read_on_host(resumed / 'checkpoints/8', 'frozen/teacher')
    original = read(above).params('target')
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(original), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
    # what is released: the student's average, without its teacher
    weights = read(resumed)
    assert {*weights.nets} == {'online', 'target', 'predictor'}
    assert any('distilled from' in note and str(copy) in note for note in weights.notes)
    assert weights.predictor.out_width == 24
    for kind, name in (('hf', 'hf'), ('torch', 'student.pt')):
        notes = write(weights, tmp_path / name, kind)
        assert ('dropped: predictor' in notes) == (kind == 'hf')  # which has no width of its own
        back = read(tmp_path / name)
        assert getattr(back.predictor, 'out_width', 24) == 24
        pairs = (jax.tree.leaves(each.params('target')) for each in (back, weights))
        for a, b in zip(*pairs, strict=True):
            np.testing.assert_array_equal(a, b)
