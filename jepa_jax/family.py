"""The family side by side: I-JEPA, MAE, VideoMAE, V-JEPA 1, 2 and 2.1, and V-JEPA 2 with other
means against collapse, or none, on the same videos for the same FLOPs; a study.

A workdir has a run for each seed and member, `seed0/vjepa2`, `report.json` and `family.png`. What
is there already is not made again. Rows of a table, docs/family.md says how they are to be
read.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jepa_jax import recipes
from jepa_jax.config import (
    DataListConfig,
    DenseVideoConfig,
    MaskedImageConfig,
    MaskedPixelsConfig,
    MaskedVideoConfig,
    RunConfig,
    cache_root,
)
from jepa_jax.config.family import FamilyConfig
from jepa_jax.errors import ConfigError, allowed
from jepa_jax.lookup import load
from jepa_jax.studies import Stage
from jepa_jax.workdir import lock, write_json

log = logging.getLogger(__name__)

REFERENCE = 'vjepa2'  # whose steps say what every member may cost
CROP, FRAMES, PATCH, IMAGE_PATCH = 32, 8, 8, 4
CLIPS, IMAGES = 32, 128  # a step
TOKENS = 128  # most tokens of a clip that a probe reads
LAST = 'family.json'  # in a run's folder: what was measured of it


# --- The members ----------------------------------------------------------------------------------


def _base(c: Any, videos: str) -> Any:
    """Width, depth, clips and rates of the main job, configs/tiny.py."""
    c.compute_dtype = 'float32'
    c.encoder.size = 'tiny'
    c.encoder.width, c.encoder.depth, c.encoder.heads = 96, 4, 4
    c.encoder.patch = PATCH
    c.mesh.remat = 'none'
    c.data.lists = [DataListConfig(kind=videos)]
    c.data.cache = str(cache_root() / 'clips')
    c.data.crop, c.data.frames, c.data.fps = CROP, FRAMES, 8
    c.data.augment.scale, c.data.augment.flip = (0.5, 1.0), False
    c.optim.batch = CLIPS
    c.optim.start_lr, c.optim.lr, c.optim.final_lr = 2e-4, 1e-3, 1e-5
    c.optim.ipe_scale = 1.0
    return c


def _predicts(c: Any, videos: str) -> Any:
    """Likewise, with its predictor."""
    c = _base(c, videos)
    c.predictor.width, c.predictor.depth, c.predictor.heads = 48, 2, 2
    c.mask_sampler = 'single'
    return c


def _frames(c: Any) -> Any:
    """Single frames, in patches of half the side: with those of videos an image has 16."""
    c.encoder.patch = IMAGE_PATCH
    c.data.frames, c.optim.batch = 1, IMAGES
    return c


def _ijepa(videos: str) -> RunConfig:
    c = _frames(_predicts(MaskedImageConfig(), videos))
    c.masks.min_keep = 3  # of 64 tokens; 10 of 256 as released
    c.optim.weight_decay, c.optim.final_weight_decay = 0.04, 0.4
    return c


def _pixels(c: MaskedPixelsConfig, videos: str) -> MaskedPixelsConfig:
    c = _base(c, videos)
    c.decoder.width, c.decoder.depth, c.decoder.heads = 48, 2, 2
    c.optim.schedule, c.optim.beta2 = 'half_cosine', 0.95
    c.optim.weight_decay = c.optim.final_weight_decay = 0.05
    return c


def _mae(videos: str) -> RunConfig:
    return _frames(_pixels(MaskedPixelsConfig(), videos))


def _videomae(videos: str) -> RunConfig:
    c = _pixels(MaskedPixelsConfig(kind='videomae', target='cubes', mask_ratio=0.9), videos)
    c.encoder.tubelet, c.encoder.axes = 2, 'flat'
    return c


def _vjepa1(videos: str) -> RunConfig:
    c = _predicts(MaskedVideoConfig(), videos)
    c.encoder.position, c.encoder.shorter, c.encoder.rescale = 'sincos', 'resized', False
    c.predictor.heads = c.encoder.heads
    c.predictor.tokens_of, c.predictor.mask_tokens = 'masks', 2
    c.optim.weight_decay, c.optim.final_weight_decay = 0.04, 0.4
    c.optim.clip = 10.0
    return c


def _vjepa2(videos: str, **against: Any) -> RunConfig:
    c = _predicts(MaskedVideoConfig(), videos)
    for name, value in against.items():
        setattr(c.against_collapse, name, value)
    return c


def _sigreg(videos: str) -> RunConfig:
    """The test's statistic grows with the samples: lambda is worth here what it is worth where it
    was published, else collapse costs less than the prediction error that it spares."""
    c = _vjepa2(videos, method='sigreg')
    c.against_collapse.sigreg_weight = 0.02 * 256 / c.optim.batch
    return c


def _vjepa21(videos: str) -> RunConfig:
    return _predicts(DenseVideoConfig(), videos)


def _averaged(c: Any, final: float = 0.0) -> None:
    """The average forgets the same share of the run as in the main job; final: 0 as at first."""
    c.optim.momentum = 0.998 ** max(1.0, 3000 / c.optim.steps)
    c.optim.final_momentum = final or c.optim.momentum


_to_one = functools.partial(_averaged, final=1.0)  # as I-JEPA's and V-JEPA 1's


def _clipped(c: Any) -> None:
    """Gradients are clipped from the same share of the run on as released."""
    _to_one(c)
    c.optim.clip_from = c.optim.steps * 41 // 300


def _dense(c: Any) -> None:
    """The context's loss comes in at the same share of the run as released."""
    _averaged(c)
    c.context_loss.begin, c.context_loss.full = c.optim.steps // 20, c.optim.steps // 10


def _nothing(c: Any) -> None:
    del c


# title; videos -> config; what of it follows from its steps, set in place
MEMBERS: dict[str, tuple[str, Callable[[str], RunConfig], Callable[[Any], None]]] = {
    'ijepa': ('I-JEPA (frames)', _ijepa, _to_one),
    'mae': ('MAE (frames)', _mae, _nothing),
    'videomae': ('VideoMAE', _videomae, _nothing),
    'vjepa1': ('V-JEPA 1', _vjepa1, _clipped),
    'vjepa2': ('V-JEPA 2', _vjepa2, _averaged),
    'vjepa21': ('V-JEPA 2.1', _vjepa21, _dense),
    'sigreg': ('V-JEPA 2, SIGReg', _sigreg, _averaged),
    'vicreg': ('V-JEPA 2, VICReg', functools.partial(_vjepa2, method='vicreg'), _averaged),
    'none': ('V-JEPA 2, nothing', functools.partial(_vjepa2, method='none'), _averaged),
}


def members(config: FamilyConfig) -> list[str]:
    """Keys of MEMBERS.

    Raises:
      ConfigError: a name that is none.
    """
    asked = [name.strip() for name in config.members.split(',') if name.strip()] or list(MEMBERS)
    for name in asked:
        if name not in MEMBERS:
            raise ConfigError(f"members '{name}': {allowed(name, MEMBERS)}")
    return asked


@functools.cache
def step_flops(name: str) -> int:
    """What a member's step is worth: each has one program."""
    config = MEMBERS[name][1]('synthetic')
    (program,) = load(recipes.of(config).programs)(config, 1)
    return program.total


def member(config: FamilyConfig, name: str, seed: int) -> RunConfig:
    """The run of a member, as long as the budget allows."""
    _, make, follow = MEMBERS[name]
    c = make(config.videos)
    o = c.optim
    o.steps = max(1, round(config.steps * step_flops(REFERENCE) / step_flops(name)))
    o.warmup = min(o.steps, max(1, o.steps // 30))
    follow(c)
    c.name, c.seed = f'family-{name}-{seed}', config.seed + seed
    c.checkpoints.every = max(1, o.steps // 4)
    c.checkpoints.keep = 1
    c.logging.every = max(1, o.steps // 50)
    c.logging.health_every = max(1, o.steps // 10)
    return c


# --- The study ------------------------------------------------------------------------------------


def check(config: FamilyConfig, workdir: Path) -> None:
    """Refuses what cannot work; raises ConfigError."""
    del workdir
    members(config)


def runs(config: FamilyConfig, workdir: Path) -> Iterator[tuple[str, int, Path]]:
    """Member, seed, folder."""
    for seed in range(config.seeds):
        for name in members(config):
            yield name, seed, workdir / f'seed{seed}' / name


def stages(config: FamilyConfig, workdir: Path) -> list[Stage]:
    return [
        Stage(f'{name}, seed {seed}', folder, member(config, name, seed))
        for name, seed, folder in runs(config, workdir)
    ]


def report(config: FamilyConfig, workdir: Path) -> None:
    """Probes every member, draws the plot and writes report.json."""
    with lock(workdir) as folder:
        parts = clips(config)
        rows: dict[str, dict[str, Any]] = {'baselines': measured(
            folder / 'baselines.json', config, functools.partial(_baselines, config, parts)
        )}  # fmt: skip
        for name, _, place in runs(config, folder):
            one = measured(
                place / LAST, config, functools.partial(_judge, config, parts, place, name)
            )
            rows.setdefault(name, {}).setdefault('runs', []).append(one)
        for name in members(config):
            rows[name] = summary(config, name, rows[name]['runs'])
        write_json(folder / 'report.json', {'steps': config.steps, 'members': rows})
        plot(rows, folder / 'family.png')
        for line in table(rows).splitlines():
            log.info('%s', line)


def measured(path: Path, config: FamilyConfig, make: Callable[[], dict]) -> dict[str, Any]:
    """What is in a file, or made and written there; made again under other settings of probes."""
    asked = dataclasses.asdict(config.probe) | {'steps of vjepa2': config.steps}
    if path.exists():
        stored = json.loads(path.read_text())
        if stored['asked'] == asked:
            return stored
    made = {'asked': asked, **make()}
    write_json(path, made)
    return made


@dataclasses.dataclass(frozen=True)
class Parts:
    """Labelled clips [n, T, H, W, 3] to learn from and to be judged by."""

    train: np.ndarray
    test: np.ndarray
    labels: dict[str, tuple[np.ndarray, np.ndarray]]  # class numbers of either
    classes: dict[str, int]


def clips(config: FamilyConfig) -> Parts:
    """The main job's, as its probe reads them."""
    from jepa_jax.data import synthetic
    from jepa_jax.evals.entries import made
    from jepa_jax.evals.video import read_clips

    synthetic.ensure(config.videos)
    labelled = made(DataListConfig(kind=config.videos))
    view = MEMBERS[REFERENCE][1](config.videos).data
    every = read_clips(list(labelled.paths), view)
    sides = ~labelled.test, labelled.test
    codes = {k: v.targets.argmax(1) for k, v in labelled.labels.items()}
    return Parts(
        *(every[side] for side in sides),
        {k: tuple(v[side] for side in sides) for k, v in codes.items()},
        {k: len(v.names) for k, v in labelled.labels.items()},
    )


def encoder_of(folder: Path):
    """The encoder of a run that evaluations read, its parameters, and its config."""
    from jepa_jax.weights.parts import net
    from jepa_jax.weights.read import read

    weights = read(folder, weights_only=True)
    config = weights.encoder
    return net('encoder', config), weights.params('target'), config


def features(net: Any, params: dict, config: Any, videos: np.ndarray) -> np.ndarray:
    """Tokens [n, N, D], at most TOKENS of a clip, of frames one by one where the encoder is of
    images; a fixed table says when and where each is, for the frames of images do not."""
    import jax

    from jepa_jax.evals.video import extract
    from jepa_jax.models.pooler import average_tokens, averaged_grid
    from jepa_jax.models.tokens import sincos_table

    grid = config.grid(*videos.shape[1:4])
    table = sincos_table(averaged_grid(grid, TOKENS), config.width, False)

    @jax.jit
    def encode(x):
        return average_tokens(net(params, x), grid, TOKENS)

    return extract(encode, videos, 40) + table


def _accuracy(config: FamilyConfig, parts: Parts, train, test) -> dict[str, list]:
    """Label -> which test clips were told right, a row a probe."""
    from jepa_jax.evals.video import probe

    answers: dict[str, list] = {}
    for label, (ours, theirs) in parts.labels.items():
        for seed in range(config.probe.seeds):
            told = probe(train, ours, test, parts.classes[label], config.probe, seed)
            answers.setdefault(label, []).append((told == theirs).astype(int).tolist())
    return answers


def _judge(config: FamilyConfig, parts: Parts, folder: Path, name: str) -> dict[str, Any]:
    """What a run's encoder tells, and how much its features tell apart."""
    from jepa_jax.health import clip_share, effective_rank

    log.info('probes: %s', folder)
    net, params, vit = encoder_of(folder)
    train, test = (features(net, params, vit, part) for part in (parts.train, parts.test))
    grid = vit.grid(*parts.test.shape[1:4])
    plain = test - test.mean(0)  # the table, and all else that is of the position alone, is gone
    flat = test.reshape(-1, test.shape[-1])[:: max(1, len(test) * test.shape[1] // 2048)]
    own = json.loads((folder / 'report.json').read_text())
    return {
        'correct': _accuracy(config, parts, train, test),
        'rank': effective_rank(flat - flat.mean(0)),
        'rank_of_clips': effective_rank(plain.mean(1)),
        'clip_share': clip_share(test),
        'tokens': grid[0] * grid[1] * grid[2],
        'verdict': own['verdict'],
        'seconds': own['seconds'],
        'steps': own['steps'],
        'flops': own['steps'] * step_flops(name),
    }


def _baselines(config: FamilyConfig, parts: Parts) -> dict[str, Any]:
    """The same probe on the encoder before it is trained, and a linear model on pixels."""
    import jax

    from jepa_jax import build
    from jepa_jax.evals.video import probe_pixels

    c = MEMBERS[REFERENCE][1](config.videos)
    net = build.masked_video(c).nets['encoder']
    params = jax.jit(net.init)(jax.random.key(config.seed + 1))
    sides = (features(net, params, net.config, part) for part in (parts.train, parts.test))
    pixels = {
        label: [(probe_pixels(parts.train, ours, parts.test) == theirs).astype(int).tolist()]
        for label, (ours, theirs) in parts.labels.items()
    }
    return {'untrained': _accuracy(config, parts, *sides), 'pixels': pixels}


def summary(config: FamilyConfig, name: str, made: list[dict[str, Any]]) -> dict[str, Any]:
    """A member's row: accuracies with 95 % intervals over test clips, seeds together."""
    means = ('rank', 'rank_of_clips', 'clip_share', 'seconds', 'steps', 'flops')
    return {
        'title': MEMBERS[name][0],
        'probes': {
            label: _interval([row for one in made for row in one['correct'][label]], config)
            for label in made[0]['correct']
        },
        **{key: float(np.mean([one[key] for one in made])) for key in means},
        'verdicts': [one['verdict'] for one in made],
        'seeds': [
            {label: float(np.mean(rows)) for label, rows in one['correct'].items()}
            for one in made
        ],
    }  # fmt: skip


def _interval(rows: list[list[int]], config: FamilyConfig) -> dict[str, float]:
    from jepa_jax.evals.video import interval

    return interval(np.asarray(rows, bool), config.probe.bootstrap)


def _answers(rows: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The baselines as rows of probes."""
    return {
        name: {k: {'mean': float(np.mean(right))} for k, right in rows['baselines'][name].items()}
        for name in ('untrained', 'pixels')
    }


def table(rows: dict[str, Any]) -> str:
    """Markdown; of several seeds with the accuracy of each."""
    named = [row for name, row in rows.items() if name != 'baselines']
    labels = list(named[0]['probes'])
    head = ['', *labels, 'rank', 'rank of clips', 'verdict', 'steps', 'seconds']
    lines = [f'| {" | ".join(head)} |', '|' + '---|' * len(head)]
    for row in named:
        cells = [
            f'{p["mean"]:.3f} ({p["low"]:.3f} to {p["high"]:.3f})' + _each(row['seeds'], label)
            for label, p in row['probes'].items()
        ]
        words = row['verdicts'] if len({*row['verdicts']}) > 1 else row['verdicts'][:1]
        cells += [f'{row["rank"]:.1f}', f'{row["rank_of_clips"]:.1f}', ', '.join(words)]
        cells += [f'{row["steps"]:,.0f}', f'{row["seconds"]:,.0f}']
        lines.append(f'| {row["title"]} | ' + ' | '.join(cells) + ' |')
    for name, probes in _answers(rows).items():
        cells = [f'{p["mean"]:.3f}' for p in probes.values()] + [''] * 5
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def _each(seeds: list[dict[str, float]], label: str) -> str:
    return '; ' + ' '.join(f'{seed[label]:.3f}' for seed in seeds) if len(seeds) > 1 else ''


def plot(rows: dict[str, Any], path: Path) -> None:
    """Accuracies with their intervals, a panel a label, the seeds by themselves as marks, and
    effective ranks."""
    from matplotlib.figure import Figure

    from jepa_jax.page import save_figure

    named = {name: row for name, row in rows.items() if name != 'baselines'}
    labels = list(next(iter(named.values()))['probes'])
    figure = Figure(
        figsize=(3.2 * (len(labels) + 1), 0.35 * len(named) + 1.4), layout='constrained'
    )
    axes = figure.subplots(1, len(labels) + 1, sharey=True)
    heights = np.arange(len(named))[::-1]
    for ax, label in zip(axes, labels):
        probes = [row['probes'][label] for row in named.values()]
        mean = np.array([p['mean'] for p in probes])
        ends = np.abs([[p[k] for p in probes] - mean for k in ('low', 'high')])
        ax.errorbar(mean, heights, xerr=ends, fmt='o', markersize=4, linewidth=1)
        for height, row in zip(heights, named.values()):
            if len(row['seeds']) > 1:
                each = [seed[label] for seed in row['seeds']]
                ax.plot(each, [height] * len(each), '|', color='tab:orange', markersize=9)
        for (name, answers), style in zip(_answers(rows).items(), ('--', ':')):
            ax.axvline(answers[label]['mean'], color='0.5', linestyle=style, label=name)
        ax.set(title=f'{label}, accuracy', xlim=(0, 1))
    axes[0].set_yticks(heights, [row['title'] for row in named.values()])
    figure.legend(
        *axes[0].get_legend_handles_labels(), fontsize=7, loc='outside lower center', ncols=2
    )
    axes[-1].barh(heights, [row['rank'] for row in named.values()], height=0.6)
    axes[-1].set(title='effective rank of 96', xlim=(0, 96))
    save_figure(figure, path, colours=64)
