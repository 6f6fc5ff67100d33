"""Every line of docs/from_the_original.md: commands, names, config keys; and none is missing.

Keys and values are those of the original's yaml files (reference: vjepa2 §11).
"""

import pathlib
import re
import shlex

import pytest

from jepa_jax import cli, commands
from jepa_jax.config import store
from jepa_jax.models import SIZE_ALIASES, SIZES
from jepa_jax.weights import names

PAGE = pathlib.Path(__file__).parent.parent / 'docs/from_the_original.md'

PRETRAIN = """
app folder nodes tasks_per_node cpus_per_task mem_per_gpu
data.dataset_type data.datasets data.datasets_weights data.batch_size data.crop_size data.patch_size
data.dataset_fpcs data.fps data.tubelet_size data.num_workers data.persistent_workers data.pin_mem
data_aug.auto_augment data_aug.motion_shift data_aug.random_resize_aspect_ratio
data_aug.random_resize_scale data_aug.reprob loss.loss_exp
mask.aspect_ratio mask.num_blocks mask.spatial_scale mask.temporal_scale mask.max_temporal_keep
mask.max_keep mask.full_complement mask.pred_full_complement
meta.dtype meta.eval_freq meta.load_checkpoint meta.read_checkpoint meta.save_every_freq meta.seed
meta.use_sdpa meta.skip_batches meta.sync_gc
model.model_name model.pred_depth model.pred_embed_dim model.pred_num_heads model.uniform_power
model.use_activation_checkpointing model.use_mask_tokens model.zero_init_mask_tokens model.use_rope
model.use_silu model.use_pred_silu model.wide_silu model.compile_model
optimization.is_anneal optimization.anneal_ckpt optimization.resume_anneal optimization.ema
optimization.epochs optimization.ipe optimization.ipe_scale optimization.start_lr optimization.lr
optimization.final_lr optimization.warmup optimization.weight_decay optimization.final_weight_decay
optimization.betas optimization.eps
"""
DROID = """
data.camera_views data.stereo_view data.camera_frame data_aug.horizontal_flip
data_aug.random_resize_scale loss.auto_steps loss.normalize_reps loss.reg_coeff
meta.pretrain_checkpoint meta.context_encoder_key meta.target_encoder_key meta.load_predictor
meta.resume_checkpoint model.pred_is_frame_causal model.use_extrinsics optimization.anneal
optimization.enc_lr_scale
"""
EVALS = """
eval_name folder val_only tag resume_checkpoint
experiment.classifier.num_probe_blocks experiment.classifier.num_heads
experiment.data.dataset_type experiment.data.dataset_train experiment.data.dataset_val
experiment.data.num_classes experiment.data.frames_per_clip experiment.data.frame_step
experiment.data.num_segments experiment.data.num_views_per_segment experiment.data.resolution
experiment.optimization.batch_size experiment.optimization.num_epochs
experiment.optimization.multihead_kwargs experiment.optimization.use_bfloat16
experiment.optimization.use_pos_embed
model_kwargs.checkpoint model_kwargs.checkpoint_key model_kwargs.module_name model_kwargs.out_layers
"""
SECTIONS = {
    'Keys of `app: vjepa`': ('vitl', 'objective', PRETRAIN),
    'Keys of `app: vjepa_droid`': ('ac_vitg', 'objective', DROID),
    'Keys of the evaluations': ('k400', 'evaluation', EVALS),
}
# config -> key -> the released file's value, in our unit
VALUES = {
    'vitg': {
        'data.batch_size': 16 * 8 * 24,
        'data.crop_size': 256,
        'data.dataset_fpcs': 16,
        'data.fps': 4,
        'data.patch_size': 16,
        'data.tubelet_size': 2,
        'data.datasets': 'k710_train_paths.csv',
        'data.datasets_weights': 0.335,
        'data.num_workers': 8 * 8,
        'data_aug.random_resize_aspect_ratio': (0.75, 1.35),
        'data_aug.random_resize_scale': (0.3, 1.0),
        'data_aug.motion_shift': False,
        'loss.loss_exp': 1.0,
        'meta.dtype': 'bfloat16',
        'meta.seed': 239,
        'model.model_name': 'vitg',
        'model.pred_depth': 12,
        'model.pred_embed_dim': 384,
        'model.pred_num_heads': 12,
        'model.zero_init_mask_tokens': True,
        'model.uniform_power': True,
        'model.use_rope': 'rope',
        'mask.num_blocks': 8,
        'mask.spatial_scale': (0.15, 0.15),
        'mask.aspect_ratio': (0.75, 1.5),
        'mask.temporal_scale': (1.0, 1.0),
        'optimization.ema': 0.99925,
        'optimization.epochs': 800 * 300,
        'optimization.warmup': 40 * 300,
        'optimization.ipe_scale': 1.25,
        'optimization.start_lr': 1e-4,
        'optimization.lr': 5.25e-4,
        'optimization.final_lr': 5.25e-4,
        'optimization.weight_decay': 0.04,
        'optimization.betas': 0.9,
        'optimization.eps': 1e-8,
    },
    'vitg:cooldown': {
        'data.batch_size': 64 * 8 * 6,
        'data.dataset_fpcs': 64,
        'optimization.final_lr': 1e-6,
        'optimization.is_anneal': True,
    },
    'ac_vitg': {
        'data.batch_size': 4 * 8 * 8,
        'data.dataset_fpcs': 8,
        'data.fps': 4,
        'data.camera_views': 'left_mp4_path',
        'loss.auto_steps': 2,
        'loss.normalize_reps': True,
        'model.pred_depth': 24,
        'model.pred_embed_dim': 1024,
        'model.pred_num_heads': 16,
        'model.use_extrinsics': False,
        'optimization.epochs': 315 * 300,
        'optimization.warmup': 15 * 300,
        'optimization.anneal': 15 * 300,
        'optimization.start_lr': 7.5e-5,
        'optimization.lr': 4.25e-4,
        'optimization.final_lr': 0.0,
    },
    'k400': {
        'experiment.data.frames_per_clip': 16,
        'experiment.data.frame_step': 4,
        'experiment.data.num_segments': 8,
        'experiment.data.num_views_per_segment': 3,
        'experiment.optimization.batch_size': 4 * 8 * 8,
        'experiment.optimization.num_epochs': 20,
        'experiment.classifier.num_heads': 16,
        'experiment.classifier.num_probe_blocks': 4,
    },
}


def rows(title: str) -> list[list[str]]:
    """Cells of the tables below a heading, without those of heads."""
    text = PAGE.read_text().split(f'\n## {title}\n')[1].split('\n## ')[0]
    lines = [line for line in text.splitlines() if line.startswith('|')]
    cells = [[cell.strip() for cell in line.strip('|').split(' | ')] for line in lines]
    heads = {i - 1 for i, line in enumerate(lines) if set(line) <= set('|- ')}
    return [c for i, c in enumerate(cells) if i not in heads and i - 1 not in heads]


def config(name: str):
    table = 'evaluation' if name == 'k400' else 'objective'
    return cli.load(name, (table,))


@pytest.mark.parametrize('title', SECTIONS)
def test_every_key_has_a_line_and_every_field_is_one(title):
    name, _, keys = SECTIONS[title]
    fields = {field for field, _, _ in store.fields(config(name))}
    lines = rows(title)
    there = [line[0].strip('`') for line in lines]
    assert len(set(there)) == len(there)
    assert set(keys.split()) <= set(there), set(keys.split()) - set(there)
    for key, field, words in lines:
        mentioned = re.findall(r'`(\w[\w.\[\]]*)`', words.split('--')[0])
        paths = {m for m in mentioned if '.' in m or '[' in m}
        assert paths <= fields, f'{key}: {paths - fields}'
        if field == 'none':
            assert len(words) > 5, f'{key}: why not'
        else:
            assert field.strip('`') in fields, f'{key}: {field}'


@pytest.mark.parametrize('name', VALUES)
def test_the_recipes_have_the_released_values(name):
    title = next(t for t, (n, *_) in SECTIONS.items() if n.split('_')[0][:2] == name[:2])
    field_of = {line[0].strip('`'): line[1].strip('`') for line in rows('Keys of `app: vjepa`')}
    field_of |= {line[0].strip('`'): line[1].strip('`') for line in rows(title)}
    values = {field: value for field, _, value in store.fields(config(name))}
    assert {key: values[field_of[key]] for key in VALUES[name]} == VALUES[name]


def test_commands():
    lines = rows('Commands')
    assert len(lines) == 10
    for _, ours, _ in lines:
        program, command, *flags = shlex.split(ours.strip('`').replace('*', 'x'))
        assert program == 'jepa' and command in commands.COMMANDS
        for flag in flags:
            if flag.startswith('--config='):
                table = 'evaluation' if command == 'evaluate' else 'objective'
                cli.load(flag.removeprefix('--config='), (table,))
        if '--model' in flags:
            names.check(flags[flags.index('--model') + 1])


def test_names():
    import jepa_jax

    told = {line[0].strip('`'): line[1].strip('`') for line in rows('Names')}
    hub = {name: told[name] for name in told if name.startswith('vjepa2_')}
    assert hub.pop('vjepa2_preprocessor').removeprefix('jepa_jax.') in dir(jepa_jax)
    assert hub == names.ALIASES
    for there, here in hub.items():
        assert names.pinned(there)[0] == here and here in names.RELEASED
    assert {name for name in told if name.startswith('facebook/')} == set(names.PUBLISHED)
    sizes = {name: told[name] for name in told if name.startswith('vit_')}
    # width, depth and heads of the original's factories (reference: vjepa2 §1.1)
    shapes = {
        'vit_tiny': (192, 12, 3),
        'vit_small': (384, 12, 6),
        'vit_base': (768, 12, 12),
        'vit_large': (1024, 24, 16),
        'vit_huge': (1280, 32, 16),
        'vit_giant_xformers': (1408, 40, 22),
        'vit_giant': (1408, 40, 16),
        'vit_gigantic_xformers': (1664, 48, 26),
        'vit_gigantic': (1664, 48, 16),
    }
    assert {n: (s.width, s.depth, s.heads) for n, k in sizes.items() for s in (SIZES[k],)} == shapes
    assert set(sizes.values()) == set(SIZES) and set(SIZE_ALIASES.values()) <= set(SIZES)
