"""Recipes of questions have the paper's values (reference: video_qa §1.2, §3.3) and fit where they
say."""

import pathlib

import jax
import pytest

from jepa_jax import build, cli, optim
from jepa_jax.config import QuestionsConfig, horizon
from jepa_jax.config.questions import LANGUAGES, media_places, visual_tokens
from jepa_jax.memory import choose, estimate
from jepa_jax.recipes import validate

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / 'configs/qa'
GB = 10**9


def recipe(name: str) -> QuestionsConfig:
    file, _, arg = name.partition(':')
    c = cli.load(f'{CONFIGS / file}.py' + (f':{arg}' if arg else ''))
    if 'smoke' not in name:
        c.language.path, c.data.mixture[0].path = 'somewhere', 'some.jsonl'
    return c


@pytest.mark.parametrize(
    ('name', 'batch', 'steps', 'warmup', 'rates', 'length', 'frames', 'trains'),
    [
        ('align', 128, 16_000, 96, (1e-4, 1e-6), 1920, 2, ('nothing', False)),
        ('tune:images', 2048, 35_000, 200, (4e-5, 4e-7), 6400, 16, ('all', True)),
        ('tune:videos', 2048, 28_000, 168, (1e-5, 1e-7), 12_800, 32, ('all', True)),
    ],
)
def test_stages(name, batch, steps, warmup, rates, length, frames, trains):
    c = recipe(name)
    validate(c)
    o = c.optim
    assert (c.seed, c.clips.crop, c.encoder.size, c.language.size) == (
        777,
        384,
        'vitg',
        'llama31-8b',
    )
    assert (o.batch, horizon(o), o.warmup, c.data.length) == (batch, steps, warmup, length)
    assert (c.clips.frames, c.language.trains, c.train_encoder) == (frames, *trains)
    assert (o.weight_decay, o.final_weight_decay, o.clip) == (0.05, 0.05, 1.0)
    rate = optim.learning_rate(o)
    assert [float(rate(k)) for k in (warmup - 1, steps - 1)] == pytest.approx(rates, rel=1e-3)
    assert visual_tokens(c) == frames // 2 * 576
    assert c.clips.images == ('repeated' if name == 'align' else 'tiles')
    if name == 'tune:videos':
        assert (o.steps, visual_tokens(c), media_places(c)) == (22_000, 9216, 1)


def test_sizes_are_the_published_ones():
    counts = {
        'llama31-8b': 8_030_261_248, 'llama32-1b': 1_235_814_400, 'qwen2-7b': 7_615_616_512,
        'qwen25-0.5b': 494_032_768, 'qwen25-1.5b': 1_543_714_304,
    }  # fmt: skip
    assert set(counts) | {'tiny'} == set(LANGUAGES)
    for size, count in counts.items():
        c = QuestionsConfig()
        c.language.size = size
        net = build.questions(c).net('decoder')
        assert sum(leaf.size for leaf in jax.tree.leaves(net.abstract)) == count
        assert {leaf.dtype.name for leaf in jax.tree.leaves(net.abstract)} == {'bfloat16'}


@pytest.mark.parametrize(
    ('name', 'devices', 'memory'),
    [
        ('vitl_qwen05b', 1, 24 * GB), ('vitl_qwen05b:align', 1, 24 * GB), ('lora_24gb', 1, 24 * GB),
        ('vitg_llama8b', 64, 80 * GB),
    ],
)  # fmt: skip
def test_fits_where_it_says(name, devices, memory):
    c = choose(recipe(name), devices, memory)
    assert estimate(c, devices)['total'] * 2**30 < 0.85 * memory


@pytest.mark.parametrize('name', ['align', 'tune', 'vitl_qwen05b', 'vitg_llama8b', 'lora_24gb'])
def test_smoke_is_valid(name):
    validate(recipe(f'{name}:smoke'))
