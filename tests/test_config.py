"""Bad settings are refused in one clear line, and the schema's tables agree with the code's."""

import copy
import dataclasses
import json
import math
import pathlib
import typing

import pytest

from jepa_jax import cli, describe, recipes
from jepa_jax import config as C
from jepa_jax.config import (
    ActionConditionedConfig,
    DataListConfig,
    EmaOptimConfig,
    EncoderConfig,
    MaskedVideoConfig,
    OptimConfig,
    PeriodicEvalConfig,
    check,
    layouts,
    parts,
    store,
)
from jepa_jax.errors import ConfigError
from jepa_jax.evals import EVALS
from jepa_jax.lookup import load
from jepa_jax.recipes import RECIPES, validate

OLD_RUNS = pathlib.Path(__file__).parent / 'old_runs'


def good() -> MaskedVideoConfig:
    return MaskedVideoConfig(
        name='good', data=C.DataConfig(lists=[DataListConfig(path='clips.txt')])
    )


def put(config, name: str, value) -> None:
    """Sets `a.b[0].c`."""
    *parents, last = name.replace(']', '').replace('[', '.').split('.')
    for part in parents:
        config = config[int(part)] if part.isdigit() else getattr(config, part)
    setattr(config, last, value)


def test_good_configs_pass():
    validate(good())
    validate(good_robot())
    config = good()
    config.optim.steps = 3000  # the public ViT-L file: the run ends inside its warm-up
    validate(config)
    config.masks[0].max_keep = 2047
    config.data.lists.append(DataListConfig(path='b', frames=64, weight=0.1))
    validate(config)


BAD = [
    # one field; words, types
    ({'encoder.size': 'vit_l'}, "encoder.size = 'vit_l'", 'allowed are tiny, vits'),
    ({'encoder.size': 'vitgg'}, 'did you mean vitg?'),
    ({'encoder.position': 'learned'}, "encoder.position = 'learned'", 'rope, sincos'),
    ({'encoder.mlp': 'relu'}, "encoder.mlp = 'relu'", 'gelu, swiglu, swiglu_full'),
    ({'predictor.mlp': ''}, "predictor.mlp = ''", 'gelu'),
    ({'compute_dtype': 'float16'}, "compute_dtype = 'float16'", 'bfloat16, float32'),
    ({'mask_sampler': 'random'}, "mask_sampler = 'random'", 'static, single, reference'),
    ({'optim.schedule': 'cosine'}, "'cosine'", 'did you mean half_cosine?'),
    ({'mesh.remat': 'half'}, "mesh.remat = 'half'", 'full, attention, dots, none'),
    ({'name': 'runs/mine'}, "name = 'runs/mine'", 'without slashes'),
    ({'optim.steps': '10'}, "optim.steps = '10'", 'of type int, found str'),
    ({'optim.steps': 10.0}, 'optim.steps = 10.0', 'of type int, found float'),
    ({'optim.batch': True}, 'optim.batch = True', 'of type int, found bool'),
    ({'probe.enabled': 1}, 'probe.enabled = 1', 'of type bool, found int'),
    ({'optim.lr': math.nan}, 'optim.lr = nan', 'finite'),
    ({'optim.lr': math.inf}, 'optim.lr = inf', 'finite'),
    ({'data.augment.scale': (0.3,)}, 'data.augment.scale = (0.3,)', 'must hold 2 values'),
    ({'data.augment.scale': 0.3}, 'data.augment.scale = 0.3', 'of type tuple'),
    ({'masks[0].aspect_ratio': ('a', 1.0)}, "masks[0].aspect_ratio[0] = 'a'", 'of type float'),
    ({'optim.learning_rate': 1.0}, 'optim.learning_rate: no such field'),
    ({'optim.warm_up': 1}, 'optim.warm_up: no such field', 'did you mean warmup?'),
    ({'masks': []}, 'masks = []', 'at least one MaskConfig'),
    ({'data.lists': []}, 'data.lists = []', 'at least one DataListConfig'),
    ({'masks': ['short']}, "masks[0] = 'short'", 'of type MaskConfig'),
    # one field; ranges
    ({'seed': -1}, 'seed = -1', 'from 0 to'),
    ({'encoder.width': -384}, 'encoder.width = -384', 'at least 0'),
    ({'encoder.patch': 0}, 'encoder.patch = 0', 'more than 0'),
    ({'encoder.tubelet': 0}, 'encoder.tubelet = 0', 'more than 0'),
    ({'predictor.depth': 0}, 'predictor.depth = 0', 'more than 0'),
    ({'masks[1].num_blocks': 0}, 'masks[1].num_blocks = 0', 'more than 0'),
    ({'masks[0].spatial_scale': (0.5, 0.2)}, 'masks[0].spatial_scale', 'LOW <= HIGH'),
    ({'masks[0].spatial_scale': (0.5, 1.2)}, 'masks[0].spatial_scale', 'at most 1'),
    ({'masks[0].temporal_scale': (0.0, 1.0)}, 'masks[0].temporal_scale', 'above 0'),
    ({'masks[0].aspect_ratio': (1.5, 0.75)}, 'masks[0].aspect_ratio', 'LOW <= HIGH'),
    ({'masks[0].max_temporal_keep': 0.0}, 'max_temporal_keep = 0.0', 'above 0'),
    ({'masks[0].max_keep': -1}, 'max_keep = -1', 'at least 0'),
    ({'data.lists[0].weight': 0.0}, 'data.lists[0].weight = 0.0', 'more than 0'),
    ({'data.lists[0].weight': -0.5}, 'data.lists[0].weight = -0.5', 'more than 0'),
    ({'data.augment.scale': (1.0, 0.3)}, 'data.augment.scale', 'LOW <= HIGH'),
    ({'data.augment.ratio': (0.0, 1.0)}, 'data.augment.ratio', 'above 0'),
    ({'data.frames': 0}, 'data.frames = 0', 'more than 0'),
    ({'data.workers': -1}, 'data.workers = -1', 'at least 0'),
    ({'data.attempts': 0}, 'data.attempts = 0', 'more than 0'),
    ({'data.max_failure_share': 1.5}, 'max_failure_share = 1.5', 'from 0 to 1'),
    ({'optim.batch': 0}, 'optim.batch = 0', 'more than 0'),
    ({'optim.steps': 0}, 'optim.steps = 0', 'more than 0'),
    ({'optim.accumulate': -1}, 'optim.accumulate = -1', 'at least 0'),
    ({'optim.warmup': -1}, 'optim.warmup = -1', 'at least 0'),
    ({'optim.lr': 0.0}, 'optim.lr = 0.0', 'more than 0'),
    ({'optim.weight_decay': -0.1}, 'optim.weight_decay = -0.1', 'at least 0'),
    ({'optim.momentum': 1.0}, 'optim.momentum = 1.0', 'less than 1'),
    ({'optim.momentum': -0.1}, 'optim.momentum = -0.1', 'less than 1'),
    ({'optim.final_momentum': 1.1}, 'optim.final_momentum = 1.1', 'from 0 to 1'),
    ({'optim.beta2': 1.0}, 'optim.beta2 = 1.0', 'less than 1'),
    ({'optim.ipe_scale': 0.8}, 'optim.ipe_scale = 0.8', 'at least 1'),
    ({'loss_exponent': 0.5}, 'loss_exponent = 0.5', 'at least 1'),
    ({'mesh.fsdp': 256}, 'mesh.fsdp = 256', 'from 1 to 128'),
    ({'mesh.fsdp': -1}, 'mesh.fsdp = -1', 'from 1 to 128, or 0 to choose'),
    ({'checkpoints.every': 0}, 'checkpoints.every = 0', 'more than 0'),
    ({'checkpoints.keep': 0}, 'checkpoints.keep = 0', 'more than 0'),
    ({'logging.every': 0}, 'logging.every = 0', 'more than 0'),
    ({'probe.seeds': 0}, 'probe.seeds = 0', 'more than 0'),
    # several fields
    ({'encoder.width': 100}, 'encoder.width = 100', 'multiple of encoder.heads = 16'),
    ({'encoder.width': 128}, 'encoder: 8 channels a head', 'at least 12'),
    ({'predictor.width': 100}, 'predictor.width = 100', 'multiple of predictor.heads = 12'),
    ({'predictor.width': 96}, 'predictor: 8 channels a head', 'at least 12'),
    ({'predictor.width': 156}, 'predictor: 13 channels a head', 'an even number'),
    (
        {
            'encoder.position': 'sincos',
            'encoder.uniform_power': False,
            'encoder.width': 100,
            'encoder.heads': 4,
        },
        'encoder.width = 100',
        'multiple of 8',
    ),
    ({'encoder.size': 'tiny', 'mesh.fsdp': 128}, 'mesh.fsdp = 128', 'divide encoder.width = 192'),
    ({'probe.enabled': True}, 'probe.enabled: needs labelled clips', 'synthetic', 'clips.txt'),
    ({'evals': [PeriodicEvalConfig('knn')]}, "evals[0].evaluation = 'knn'", 'linear, probe'),
    ({'evals': [PeriodicEvalConfig(every=-1)]}, 'evals[0].every = -1', 'at least 0'),
    ({'evals': [PeriodicEvalConfig(name='a b')]}, "evals[0].name = 'a b'", 'letters'),
    (
        {'evals': [PeriodicEvalConfig()], 'labels.train': 'gone.csv'},
        'evals[0]: needs labelled clips',
        'labels.train: gone.csv: missing',
    ),
    ({'probe.enabled': True, 'labels.target': 'words'}, "labels.target = 'words'", 'auto, class'),
    ({'probe.enabled': True, 'probe.heads': 7}, 'probe.heads = 7', 'divide encoder.width = 1024'),
    ({'data.crop': 250}, 'data.crop = 250', 'multiple of encoder.patch = 16'),
    ({'data.frames': 15}, 'data.frames = 15', 'multiple of encoder.tubelet = 2'),
    ({'data.lists[0].frames': 7}, 'data.lists[0].frames = 7', 'multiple of encoder.tubelet'),
    (
        {'encoder.position': 'sincos', 'encoder.tubelet': 1},
        "encoder.tubelet = 1: must be 2 or more with encoder.position 'sincos'",
        'clips of 16 frames',
    ),
    ({'data.lists[0].path': ''}, 'data.lists[0].path is empty', '--config.data.lists[0].path='),
    ({'data.frame_step': 4}, 'exactly one of fps, frame_step, duration', 'fps = 4, frame_step = 4'),
    ({'data.fps': 0}, 'exactly one of fps, frame_step, duration', 'fps = 0'),
    ({'masks[1].max_keep': 2048}, 'masks[1].max_keep = 2048', 'less than the 2048 tokens'),
    (
        {'masks[1].full_complement': True, 'masks[1].pred_full_complement': True},
        'masks[1]',
        'exclude each other',
    ),
    ({'optim.accumulate': 7}, 'optim.batch = 3072', 'multiple of optim.accumulate = 7'),
    ({'optim.schedule': 'linear_decay'}, 'optim.warmup = 12000', 'must be 0'),
    ({'optim.anneal': 10}, 'optim.anneal = 10', 'must be 0'),
    (
        {'optim.schedule': 'wsd', 'optim.anneal': 300_000},
        'optim.warmup + optim.anneal = 312000',
        'at most ipe_scale * steps = 300000',
    ),
    (
        {'checkpoints.resume_from': 'a', 'checkpoints.init_from': 'b'},
        'resume_from and checkpoints.init_from are both set',
    ),
    ({'checkpoints.restart_schedule': True}, 'checkpoints.resume_from is empty', 'WORKDIR'),
    ({'objective': 'masked_vide'}, "objective = 'masked_vide'", 'did you mean masked_video?'),
    ({'objective': 'action_conditioned'}, 'is for a ActionConditionedConfig, this config is a Mas'),
]

BAD_ROBOT = [
    ({'encoder_from': ''}, 'encoder_from is empty', '--config.encoder_from='),
    ({'robot.path': ''}, 'robot.path is empty', "kind 'droid' needs --config.robot.path=PATH"),
    ({'robot.frames': 1}, 'robot.frames = 1', 'at least 2'),
    ({'evals': [PeriodicEvalConfig()]}, "evals: objective 'action_conditioned' has no"),
    ({'robot.frame': 'world'}, "robot.frame = 'world'", 'base, camera'),
    ({'rollout.steps': 8}, 'rollout.steps = 8', 'less than robot.frames = 8'),
    ({'ac.conditioning': 'token'}, "ac.conditioning = 'token'", 'did you mean tokens?'),
    (
        {'ac.conditioning': 'adaln', 'ac.use_extrinsics': True},
        "ac.use_extrinsics: needs ac.conditioning = 'tokens'",
    ),
    ({'ac.action_scale': (1.0,) * 6}, 'ac.action_scale', 'must hold 7 values'),
    ({'ac.action_scale': (0.0,) * 7}, 'ac.action_scale', '7 numbers above 0'),
    ({'ac.width': 1000}, 'ac.width = 1000', 'multiple of ac.heads = 16'),
    ({'ac.width': 400}, 'ac: 25 channels a head', 'an even number'),
    ({'encoder.size': 'tiny', 'mesh.fsdp': 128}, 'mesh.fsdp = 128', 'divide encoder.width = 192'),
    ({'data.crop': 250}, 'data.crop = 250', 'multiple of encoder.patch = 16'),
    ({'features_dtype': 'float32'}, "features_dtype = 'float32'", 'float16, bfloat16'),
    ({'augment': True, 'features': 'here'}, 'augment = true', "set features = ''"),
    ({'augment': True}, 'augment = true', 'set data.augment.flip = false'),
    ({'masks': []}, 'masks: no such field'),
    ({'optim.momentum': 0.9}, 'optim.momentum: no such field'),
]


def good_robot() -> ActionConditionedConfig:
    config = ActionConditionedConfig(name='good', encoder_from='vitl')
    config.robot.path = 'droid.csv'
    return config


@pytest.mark.parametrize(
    ('make', 'case'),
    [*((good, case) for case in BAD), *((good_robot, case) for case in BAD_ROBOT)],
    ids=lambda case: ','.join(case[0]) if isinstance(case, tuple) else case.__name__,
)
def test_bad_settings_are_refused_in_one_line(make, case):
    changes, *words = case
    config = make()
    for name, value in changes.items():
        put(config, name, value)
    with pytest.raises(ConfigError) as caught:
        validate(config)
    message = str(caught.value)
    assert '\n' not in message
    for word in words:
        assert word in message


def test_more_frame_counts_than_mask_tokens():
    config = good()
    config.predictor.mask_tokens = 1
    config.data.lists.append(DataListConfig(path='b', frames=32))
    with pytest.raises(ConfigError, match=r'mask_tokens = 1: must be at least 2.*16, 32'):
        validate(config)


def every_part(config) -> list:
    """The config and all parts in it."""
    inner = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inner += [v for v in (value if isinstance(value, list) else [value]) if is_part(v)]
    return [config, *(part for each in inner for part in every_part(each))]


def is_part(value) -> bool:
    return dataclasses.is_dataclass(value)


@pytest.mark.parametrize('name', RECIPES)
def test_every_number_and_pair_has_a_rule(name):
    for part in every_part(load(RECIPES[name].config)()):
        kinds = store.field_types(type(part))
        need = {n for n, k in kinds.items() if k in (int, float) or typing.get_origin(k) is tuple}
        assert need <= set(check.rules_of(type(part))), type(part)


def test_every_rule_has_a_field():
    for kind, rules in check.RULES.items():
        assert set(rules) <= set(store.field_types(kind)), kind


def test_allowed_words_are_those_of_the_code():
    from jepa_jax import nets, optim, sharding
    from jepa_jax.models import ac_predictor, layers
    from jepa_jax.objectives import action_conditioned, masked_pixels, regularisers

    def words(kind, field):
        return check.rules_of(kind)[field].words

    assert words(EmaOptimConfig, 'schedule') == tuple(optim.SCHEDULES)
    assert words(parts.MeshConfig, 'remat') == tuple(nets.REMAT)
    for kind in (EncoderConfig, parts.MaskedPredictorConfig):
        assert words(kind, 'mlp') == tuple(layers.MLPS)
    assert words(parts.ActionPredictorConfig, 'conditioning') == ac_predictor.CONDITIONING
    assert words(parts.RolloutConfig, 'prefix') == action_conditioned.PREFIXES
    assert check.MAX_FSDP == sharding.MAX_FSDP
    assert words(C.MaskedPixelsConfig, 'target') == tuple(masked_pixels.TARGETS)
    for method, variants in regularisers.VARIANTS.items():
        assert C.masked_video.VARIANTS[method] == tuple(variants)
    assert {*words(parts.AgainstCollapseConfig, 'method')} == {
        'ema',
        'none',
        *regularisers.VARIANTS,
    }


def test_rules_hold_for_what_extends_a_part():
    assert check.rules_of(EmaOptimConfig).keys() == {
        *check.RULES[OptimConfig], *check.RULES[EmaOptimConfig]
    }  # fmt: skip


def test_encoder_shape_takes_what_is_set_and_the_rest_from_the_size():
    shape = C.encoder_shape(EncoderConfig(size='vitg', depth=3))
    assert (shape.width, shape.depth, shape.heads) == (1408, 3, 22)
    assert int(shape.width * shape.mlp_ratio) == 6144
    with pytest.raises(ConfigError, match='did you mean vitl?'):
        C.encoder_shape(EncoderConfig(size='vitk'))


def test_json_round_trip_and_differences():
    old, new = good(), good()
    assert store.differences(json.loads(store.to_json(old)), json.loads(store.to_json(new))) == []
    new.optim.lr = 1e-3
    new.masks[1].num_blocks = 3
    new.data.lists.append(DataListConfig(path='more.txt'))
    lines = store.differences(json.loads(store.to_json(old)), json.loads(store.to_json(new)))
    assert [line.split(':')[0] for line in lines] == [
        'data.lists',
        'masks[1].num_blocks',
        'optim.lr',
    ]
    assert lines[2] == 'optim.lr: 0.000525 -> 0.001'


# --- Old names ------------------------------------------------------------------------------------


def test_classes_are_known_under_their_old_names():
    assert C.TrainConfig is MaskedVideoConfig and C.RobotTrainConfig is ActionConditionedConfig
    assert C.DataList is DataListConfig and C.MaskBlocks is C.MaskConfig
    assert C.DecoderConfig is C.MaskedDecoderConfig
    assert C.smoke is recipes.smoke
    with pytest.raises(AttributeError, match="no attribute 'TrainConfiguration'"):
        C.TrainConfiguration  # noqa: B018


OLD_FILE = """from jepa_jax.config import DataList, MaskBlocks, RobotTrainConfig, TrainConfig, smoke


def get_config(arg=''):
    c = RobotTrainConfig(name='old') if arg == 'robot' else TrainConfig(name='old')
    c.optim.stretch = 1.5
    c.optim.loss_exponent = 2.0
    if arg == 'robot':
        c.encoder_from = 'vitl'
    else:
        c.masks = [MaskBlocks(num_blocks=3)]
        c.data.lists = [DataList(path='a.txt')]
    return smoke(c)
"""

OLD_STUDY = """from jepa_jax.config import SimConfig


def get_config():
    c = SimConfig()
    c.pretrain.optim.stretch = 1.5
    c.posttrain.optim.loss_exponent = 2.0
    return c
"""


@pytest.mark.parametrize('arg', ['', ':robot'])
def test_config_files_that_use_old_names_work_on(tmp_path, arg):
    (tmp_path / 'old_file.py').write_text(OLD_FILE)
    config = cli.load(f'{tmp_path}/old_file.py{arg}')
    assert (config.optim.ipe_scale, config.loss_exponent) == (1.5, 2.0)
    assert config.optim.steps == 24
    validate(config)


def test_old_names_within_a_study(tmp_path):
    (tmp_path / 'old_study.py').write_text(OLD_STUDY)
    config = cli.load(f'{tmp_path}/old_study.py', ('study',))
    assert config.pretrain.optim.ipe_scale == 1.5 and config.posttrain.loss_exponent == 2.0
    check.types_and_ranges(config)


def test_fields_that_came_later_say_what_was_done_before():
    """Predictions of SIGReg and VICReg met features until a field said where."""
    for method, space in (('sigreg', 'features'), ('vicreg', 'features'), ('ema', 'expanded')):
        stored = json.loads(store.to_json(good()))
        stored['against_collapse']['method'] = method
        asked = recipes.read_config(stored)  # what says it stays
        assert asked.against_collapse.space == 'expanded'
        del stored['against_collapse']['space']
        assert recipes.read_config(stored).against_collapse.space == space
    del stored['against_collapse']
    assert recipes.read_config(stored).against_collapse.space == 'expanded'


def test_flags_under_old_names_are_those_of_today():
    fields = {name for name, _, _ in store.fields(MaskedVideoConfig())}
    assert store.renamed('optim.stretch', fields) == 'optim.ipe_scale'
    assert store.renamed('optim.loss_exponent', fields) == 'loss_exponent'
    for name in ('optim.lr', 'stretch', 'other.stretch', 'my_optim.stretch'):
        assert store.renamed(name, fields) == name
    fields = {name for name, _, _ in store.fields(C.SimConfig())}
    assert store.renamed('pretrain.optim.stretch', fields) == 'pretrain.optim.ipe_scale'
    assert store.renamed('posttrain.optim.loss_exponent', fields) == 'posttrain.loss_exponent'


@pytest.mark.parametrize('run', ['masked', 'action_conditioned'])
def test_configs_that_old_runs_stored_are_read(run):
    stored = json.loads((OLD_RUNS / run / 'config.json').read_text())
    before = copy.deepcopy(stored)
    config = recipes.read_config(stored)
    validate(config)
    assert stored == before
    again = recipes.read_config(json.loads(store.to_json(config)))
    assert again == config == cli.load(f'{OLD_RUNS}/new_{run}.py')
    assert type(config.masks[0] if run == 'masked' else config.ac).__module__ == parts.__name__


def test_what_a_stored_config_lacks_has_its_default():
    stored = {'name': 'short', 'optim': {'steps': 7, 'stretch': 1.5, 'loss_exponent': 2.0}}
    config = recipes.read_config(stored)
    expected = MaskedVideoConfig(name='short', loss_exponent=2.0)
    expected.optim.steps, expected.optim.ipe_scale = 7, 1.5
    assert config == expected and isinstance(config.data.augment.scale, tuple)


@pytest.mark.parametrize(
    ('stored', 'words'),
    [
        ({'objective': 'masked_vide'}, "'masked_vide': allowed are .*did you mean masked_video?"),
        ({'optim': {'step': 1}}, 'step: no such field; did you mean steps?'),
        ({'objective': 'masked_video', 'robot': {}}, 'robot: no such field'),
    ],
)
def test_stored_configs_of_another_schema_are_refused(stored, words):
    with pytest.raises(ConfigError, match=words):
        recipes.read_config(stored)


# --- Arguments and trials -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arg', 'expected'),
    [
        ('', ('pretrain', False)),
        ('smoke', ('pretrain', True)),
        ('cooldown', ('cooldown', False)),
        ('cooldown,smoke', ('cooldown', True)),
        ('smoke, pretrain', ('pretrain', True)),
    ],
)
def test_parse_arg(arg, expected):
    assert C.parse_arg(arg, 'pretrain', 'cooldown') == expected


@pytest.mark.parametrize(
    ('arg', 'words'),
    [
        ('cooldwn', "argument 'cooldwn': allowed are pretrain, cooldown, smoke; did you mean"),
        ('pretrain,cooldown', 'choose one of pretrain, cooldown'),
    ],
)
def test_parse_arg_refuses(arg, words):
    with pytest.raises(ConfigError, match=words):
        C.parse_arg(arg, 'pretrain', 'cooldown')


def test_smoke_keeps_the_form_of_a_run():
    config = good()
    config.data.lists = [
        DataListConfig(path='a', weight=0.7, frames=16),
        DataListConfig(path='b', weight=0.3, frames=64),
    ]
    config.optim.accumulate = 4
    config.masks[0].max_keep = 512  # a quarter of the 2,048 tokens
    before = copy.deepcopy(config)
    assert recipes.smoke(config) is config
    validate(config)
    assert [item.weight for item in config.data.lists] == [0.7, 0.3]
    assert [item.frames for item in config.data.lists] == [4, 16]
    assert {item.kind for item in config.data.lists} == {'synthetic_few'}
    assert (config.data.crop, config.data.workers) == (64, 2)
    assert config.masks[0].max_keep == 8  # a quarter of 32
    assert config.masks[1].spatial_scale == before.masks[1].spatial_scale
    assert config.optim.schedule == before.optim.schedule
    assert config.optim.warmup / config.optim.steps == pytest.approx(0.05, abs=0.04)
    assert config.optim.accumulate == 2 and config.optim.batch % 16 == 0
    assert config.checkpoints.every < config.optim.steps <= 48


def test_describe_speaks_of_clips():
    config = good()
    config.optim = EmaOptimConfig(batch=256, accumulate=8, steps=60_000, warmup=3_000)
    text = '\n'.join(describe.masked_video(config))
    assert 'batch 256 clips in 8 parts of 32, 60,000 steps = 15,360,000 clips' in text
    assert 'warm-up 3,000 steps = 768,000 clips (released: 36,864,000)' in text
    assert 'do not advise scaling' in text
    # 0.99925 ** 923.85 = 1/2; times 256 clips; over 60,000 steps
    assert 'half-life 924 steps = 236,506 clips = 1.5% of the run' in text
    assert 0.99925 ** (236_506 / 256) == pytest.approx(0.5, rel=1e-5)
    # and the momentum under which 2,838,066 clips halve it
    assert 'takes momentum 0.99993748' in text
    assert 0.99993748 ** (2_838_066 / 256) == pytest.approx(0.5, rel=1e-4)


def test_describe_of_the_released_recipe_compares_nothing():
    text = '\n'.join(describe.masked_video(good()))
    assert 'do not advise' not in text and 'as released' not in text
    config = good()
    config.optim.steps, config.optim.final_momentum = 3000, 1.0
    text = '\n'.join(describe.masked_video(config))
    assert 'ends inside its warm-up' in text
    assert '0.000206 at the last' in text  # 2.0625e-4, reference: vjepa2 §5.3
    assert 'EMA momentum 1 at the end: the target no longer follows' in text


def test_a_part_may_narrow_a_rule_of_what_it_extends(monkeypatch):
    @dataclasses.dataclass
    class Small(OptimConfig):
        pass

    wide = check.RULES[OptimConfig]['batch']
    narrow = dataclasses.replace(wide, words='must be small')
    monkeypatch.setitem(check.RULES, Small, {'batch': narrow})
    assert check.rules_of(Small)['batch'] is narrow
    assert check.rules_of(OptimConfig)['batch'] is wide


@pytest.mark.parametrize('kind', ['rlds', 'npz'])
def test_recordings_may_be_a_split_of_a_folder(kind, tmp_path):
    """Of prepared data sets; in other layouts a colon belongs to the name."""
    config = good_robot()
    config.robot.kind, config.robot.path = kind, f'{tmp_path}:val'
    complaints = list(layouts.missing(config, tmp_path / 'run'))
    if kind == 'rlds':
        assert not complaints and layouts.of_flags(config.robot).path == f'{tmp_path}:val'
        config.robot.path = f'{tmp_path}/none:val'
        complaints = list(layouts.missing(config, tmp_path / 'run'))
    assert len(complaints) == 1 and 'robot.path: ' in complaints[0]
    with pytest.raises(ConfigError, match='robot.path: .* cannot be read: No such file'):
        layouts.of_flags(config.robot)


@pytest.mark.parametrize('name', EVALS)
def test_evaluations_say_which_places_must_be_there(name, tmp_path):
    """Every field of data that names files or folders, in whichever evaluation."""
    config = load(EVALS[name].config)()
    names = {f.name for f in dataclasses.fields(config.data)} & {'train', 'test', 'path', 'videos'}
    assert {f'data.{key}' for key in names} == set(config.places)
    assert not list(layouts.missing_sets(config, tmp_path))  # empty fields name nothing
    for place in config.places:
        put(config, place, str(tmp_path / 'nowhere'))
        (complaint,) = layouts.missing_sets(config, tmp_path)
        assert complaint.startswith(f'{place}: ') and 'No such file' in complaint
        put(config, place, '')


@pytest.mark.parametrize(
    'name, field',
    [
        ('masked_video', 'teacher'),
        ('dense_video', 'teacher'),
        ('action_conditioned', 'encoder_from'),
        ('questions', 'encoder_from'),
        ('questions', 'language.path'),
    ],
)
def test_recipes_say_which_models_they_begin_with(name, field):
    config = load(RECIPES[name].config)()
    put(config, field, 'vitx')
    assert 'vitx' in load(RECIPES[name].models)(config)
