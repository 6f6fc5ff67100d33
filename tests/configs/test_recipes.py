"""The recipes hold the released values (reference: vjepa2 §11.1, paper), and all are valid."""

import copy
import pathlib

import pytest

from jepa_jax import cli, optim
from jepa_jax.config import encoder_shape
from jepa_jax.errors import ConfigError, UsageError
from jepa_jax.memory import choose, estimate
from jepa_jax.recipes import validate

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / 'configs'
ALL = [
    f'{name}:{phase}'
    for name in ('vits', 'vitb', 'vitl', 'vith', 'vitg')
    for phase in ('pretrain', 'cooldown')
] + ['vitg_384:cooldown', 'vitg_512:cooldown', 'tiny:pretrain']
RELEASED = [name for name in ALL if name.startswith(('vitl', 'vith', 'vitg'))]


def recipe(name):
    file, _, arg = name.partition(':')
    return cli.load(f'{CONFIGS / file}.py' + (f':{arg}' if arg else ''))


@pytest.mark.parametrize('name', RELEASED)
def test_values_common_to_all_released_files(name):
    c = recipe(name)
    assert c.seed == 239 and c.compute_dtype == 'bfloat16'
    assert [(x.path, x.weight, x.kind) for x in c.data.lists] == [
        ('k710_train_paths.csv', 0.335, 'videos'),
        ('ssv2_train_paths.csv', 0.1, 'videos'),
        ('howto_320p.csv', 0.565, 'videos'),
    ]
    assert (c.data.fps, c.data.frame_step, c.data.duration) == (4, 0, 0)
    a = c.data.augment
    assert (a.scale, a.ratio, a.flip, a.motion_shift) == ((0.3, 1.0), (0.75, 1.35), True, False)
    e, p, o = c.encoder, c.predictor, c.optim
    assert (e.patch, e.tubelet, e.position, e.uniform_power, e.mlp) == (16, 2, 'rope', True, 'gelu')
    assert (p.width, p.depth, p.heads, p.mlp_ratio) == (384, 12, 12, 4.0)
    assert (p.zero_init_mask_tokens, p.mask_tokens, p.mlp) == (True, 10, 'gelu')
    assert (o.batch, o.lr, o.ipe_scale) == (3072, 5.25e-4, 1.25)
    assert (o.accumulate, c.mesh.fsdp) == (0, 0)  # chosen by devices and memory
    assert (o.weight_decay, o.final_weight_decay) == (0.04, 0.04)
    assert (o.momentum, o.final_momentum) == (0.99925, 0.99925)
    assert (o.beta1, o.beta2, o.eps, c.loss_exponent) == (0.9, 0.999, 1e-8, 1.0)
    assert c.checkpoints.every == 300 and c.checkpoints.keep_every == 50 * 300


@pytest.mark.parametrize('name', ALL)
def test_masks_are_the_released_ones(name):
    masks = [
        (m.num_blocks, m.spatial_scale, m.temporal_scale, m.aspect_ratio)
        for m in recipe(name).masks
    ]
    assert masks == [
        (8, (0.15, 0.15), (1.0, 1.0), (0.75, 1.5)),
        (2, (0.7, 0.7), (1.0, 1.0), (0.75, 1.5)),
    ]
    for m in recipe(name).masks:
        assert (m.max_temporal_keep, m.max_keep, m.full_complement, m.inverse) == (
            1.0,
            0,
            False,
            False,
        )


@pytest.mark.parametrize(
    ('name', 'shape', 'crop', 'frames', 'steps', 'warmup', 'schedule', 'ends'),
    [  # learning rate at the first and at the last step
        *(
            row
            for file, shape in (
                ('vitl', (1024, 24, 16, 4096)),
                ('vith', (1280, 32, 16, 5120)),
                ('vitg', (1408, 40, 22, 6144)),
            )
            for row in (
                (
                    f'{file}:pretrain',
                    shape,
                    256,
                    16,
                    240_000,
                    12_000,
                    'warmup_cosine',
                    (1.0003541667e-4, 5.25e-4),
                ),
                (
                    f'{file}:cooldown',
                    shape,
                    256,
                    64,
                    12_000,
                    0,
                    'linear_decay',
                    (5.2496507e-4, 1.058e-4),
                ),
            )
        ),
        *(
            (
                f'vitg_{crop}:cooldown',
                (1408, 40, 22, 6144),
                crop,
                64,
                12_000,
                0,
                'linear_decay',
                (5.2496507e-4, 1.058e-4),
            )
            for crop in (384, 512)
        ),
    ],
)
def test_released_recipe(name, shape, crop, frames, steps, warmup, schedule, ends):
    c = recipe(name)
    s = encoder_shape(c.encoder)
    assert (s.width, s.depth, s.heads, int(s.width * s.mlp_ratio)) == shape
    assert (c.data.crop, c.data.frames) == (crop, frames)
    assert all(item.frames in (0, frames) for item in c.data.lists)
    assert (c.optim.steps, c.optim.warmup, c.optim.schedule) == (steps, warmup, schedule)
    rate = optim.learning_rate(c.optim)
    assert [float(rate(0)), float(rate(steps - 1))] == pytest.approx(ends, rel=1e-6)
    assert c.checkpoints.restart_schedule == name.endswith('cooldown')


@pytest.mark.parametrize('name', ALL)
def test_valid_once_the_user_has_named_what_is_his(name):
    c = recipe(name)
    if name.endswith('cooldown'):
        c.data.lists[0].path = 'clips.txt'
        with pytest.raises(ConfigError, match='checkpoints.resume_from is empty'):
            validate(c)
        c.checkpoints.resume_from = 'runs/x'
    elif name.startswith(('vits', 'vitb')):
        with pytest.raises(ConfigError, match=r'data.lists\[0\].path is empty'):
            validate(c)
        c.data.lists[0].path = 'clips.txt'
    validate(c)


@pytest.mark.parametrize('name', ALL)
def test_smoke_is_small_and_valid(name):
    big, c = recipe(name), recipe(f'{name},smoke')
    validate(c)
    assert c.name == f'{big.name}-smoke'
    assert {item.kind for item in c.data.lists} == {'synthetic_few'}
    assert c.data.workers == 2 and c.optim.steps <= 48
    assert c.optim.steps // c.checkpoints.every >= 3
    # as the first trials were stored, which are resumed with these values
    assert c.optim.accumulate == (2 if name.startswith(('vits', 'vitb')) else 1)
    assert c.mesh.fsdp == 1
    assert (c.optim.warmup > 0) == (big.optim.warmup > 0)
    assert (c.optim.schedule, c.optim.lr) == (big.optim.schedule, big.optim.lr)
    assert c.masks == big.masks and c.mask_sampler == 'single'  # one program to compile
    # the span of a clip fits the self-made videos: 24 frames at 8 a second
    assert c.data.frames * 8 // c.data.fps <= 24


@pytest.mark.parametrize('size', ['vitl', 'vith', 'vitg'])
def test_the_paper_mixture(size):
    """VM22M: SSv2, Kinetics, HowTo100M, curated YT-1B, ImageNet as clips; final rate 1e-6."""
    c, public = recipe(f'{size}:paper'), recipe(size)
    assert [x.weight for x in c.data.lists] == [0.056, 0.188, 0.318, 0.188, 0.25]
    assert sum(x.weight for x in c.data.lists) == pytest.approx(1)
    assert [x.kind for x in c.data.lists] == ['videos'] * 4 + ['images']
    assert len({x.path for x in c.data.lists}) == 5
    c.data.lists, c.name = public.data.lists, public.name
    assert c == public  # all else is as released
    cooldown = recipe(f'{size}:cooldown,paper')
    rate = optim.learning_rate(cooldown.optim)
    assert float(rate(cooldown.optim.steps - 1)) == pytest.approx(1e-6, rel=1e-4)
    assert cooldown.name == f'{size}-cooldown-paper' != recipe(f'{size}:cooldown').name


def test_post_training_on_16_frames():
    c, released = recipe('ac_vitg:frames_16'), recipe('ac_vitg')
    assert (released.robot.frames, c.robot.frames) == (8, 16)
    assert recipe('ac_vitg:pretrain') == released and c.name != released.name
    c.robot.frames, c.name = released.robot.frames, released.name
    assert c == released


def test_default_argument_and_names():
    assert recipe('vitl').name == recipe('vitl:pretrain').name == 'vitl-pretrain'
    assert recipe('vitg_384').name == 'vitg_384-cooldown'
    names = [recipe(name).name for name in ALL]
    assert len(set(names)) == len(names)  # they are the default workdirs


@pytest.mark.parametrize('name', ['vitl:small', 'vitg_384:pretrain', 'tiny:cooldown'])
def test_unknown_arguments_list_the_choices(name):
    with pytest.raises(UsageError, match=r'argument .*: allowed are .*smoke'):
        recipe(name)


@pytest.mark.parametrize('file', sorted(CONFIGS.glob('*.py')), ids=lambda f: f.stem)
def test_every_config_says_how_to_run_it(file):
    text = file.read_text()
    assert f'python -m jepa_jax.train --config=configs/{file.name}' in text
    smallest = {'sim_panda': '`:ci`'}  # several stages: it has sizes of its own
    assert smallest.get(file.stem, f'`{file.name}:smoke`') in text


@pytest.mark.parametrize(
    'name', ['vits:pretrain', 'vits:cooldown', 'vitb:pretrain', 'vitb:cooldown']
)
def test_memory_table_of_the_docs_is_the_estimate(name):
    c = recipe(name)
    c.data.lists[0].path, c.checkpoints.restart_schedule = 'clips.txt', False
    c = choose(c, devices=1, memory=24 * 2**30)
    sizes = estimate(c)
    assert sizes.pop('frozen nets') == 0  # the table has no column for them
    total = sizes.pop('total')
    numbers = [f'{size:.2f}' for size in sizes.values()]
    rows = c.optim.batch // c.optim.accumulate
    row = [f'`{name.removesuffix(":pretrain")}`', str(rows), *numbers]
    table = (CONFIGS.parent / 'docs/recipes.md').read_text()
    assert '| ' + ' | '.join(row) + f' | {total:.1f} |' in table


RUNS = {  # the studies beside them are runs made of runs
    path.stem: config
    for path in sorted(CONFIGS.glob('*.py'))
    if (config := cli.load(str(path), ('objective', 'study'))).table == 'objective'
}


@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize('name', RUNS)
def test_the_command_as_typed_runs_on_any_device_count(name, devices):
    """`--config=configs/vitg.py` was refused on 1 and 4 devices, as 8 shards were asked for."""
    c = copy.deepcopy(RUNS[name])
    assert c.optim.batch % devices == 0
    # what the command names besides: data, and what a run begins with
    if c.objective == 'action_conditioned':
        c.encoder_from, c.robot.path = 'vitg', 'recordings.txt'
    else:
        for entry in c.data.lists:
            entry.path = 'clips.txt'
    # one clip of 64 frames asks for more than an H100 has, and then the estimate says how much
    gib = {'vitg_384': 139, 'vitg_512': 256}.get(name, 80)
    if gib > 80:
        c.checkpoints.resume_from = 'runs/vitg-pretrain'
    c = choose(c, devices, memory=gib * 2**30)
    assert devices % c.mesh.fsdp == 0 and c.optim.batch % (devices * c.optim.accumulate) == 0
    assert estimate(c, devices)['total'] < gib
