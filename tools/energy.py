"""The energy of runs: which clips belong together, as far as a model can tell.

    python -m tools.energy runs/family/seed0/* --out energy
    python -m tools.energy --demo

A run of masked_video, dense_video, masked_image or masked_pixels gives clips x, y an energy
F(x, y): how far its prediction from the tokens in sight of x is from what it would have to meet in
y (features; of MAE and VideoMAE pixels). Beside it, for every encoder, that of a joint embedding:
how far the mean features of the first half of x and of the second half of y are apart. Clips are
test videos of the main job. Printed, by run and kind of energy:

  own, other  mean F(x, x) and mean F(x, y) over clips y other than x
  gap         share of `other` that `own` lacks; 0: flat
  first       share of clips x whose own y has the least energy of all; 1 / clips by chance
  auc         share of pairs of an own and another y that are in order; 0.5 by chance
  basin       share of F(x, y moved by 4 pixels) that F(x, y) lacks; 0: flat

and drawn, energy.png: F over where y is moved to, each run's in its own units of `other`. A gap
alone says nothing of a run whose `other` is near zero: that is printed, too.

--demo: why L1 with a stop-gradient need not collapse, in one dimension, by numbers; no run is read.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepa_jax import cli
from jepa_jax.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

REACH, STEP, FAR = 8, 2, 4  # pixels: of the picture, between its points, of `basin`
PIXELS = 'masked_pixels'
WIDE = 2000  # pixels of the picture at most


def energy(runs: list[str], out: str, clips: int, kind: str, seed: int, demo: bool) -> None:
    """Prints, and writes energy.json and energy.png to `out`.

    Raises:
      ConfigError: no run, or one whose objective has no such energy.
    """
    if demo:
        print(table_of_demo(demonstrate(seed=seed)))
        return
    if not runs:
        raise ConfigError('no run is named: python -m tools.energy RUN ..., or --demo')
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {}
    for run, title in zip(runs, titles(runs)):
        rows[title] = row = of_run(Path(run), clips, kind, seed)
        for name, one in row.items():
            figures = ', '.join(f'{k} {one[k]:.4g}' for k in FIGURES)
            print(f'{title}, {name}: {figures}', flush=True)
    (folder / 'energy.json').write_text(json.dumps(rows, indent=2) + '\n')
    draw(rows, folder / 'energy.png')
    print(folder / 'energy.png')


def titles(runs: list[str]) -> list[str]:
    """Names of the folders; of those of one name, paths as they were typed."""
    names = [Path(run).name for run in runs]
    return [name if names.count(name) == 1 else run for name, run in zip(names, runs)]


FIGURES = ('own', 'other', 'gap', 'first', 'auc', 'basin')


# --- Of runs --------------------------------------------------------------------------------------


def of_run(folder: Path, clips: int, kind: str, seed: int) -> dict[str, dict[str, Any]]:
    """Kind of energy -> its figures, and `landscape`, F over displacements [rows, columns]."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jepa_jax import recipes
    from jepa_jax.lookup import load
    from jepa_jax.weights.read import read

    path = folder / 'config.json'
    if not path.exists():
        raise ConfigError(f'{folder}: no run, it has no config.json')
    config = recipes.read_config(json.loads(path.read_text()))
    if config.objective not in ('masked_video', 'dense_video', 'masked_image', PIXELS):
        raise ConfigError(f"{folder}: objective '{config.objective}' has no such energy")
    config.optim.batch, config.optim.accumulate, config.mesh.fsdp = clips, 1, 1
    recipe = recipes.of(config)
    objective = load(recipe.build)(config)
    weights = read(folder, weights_only=True)
    params = {name: weights.params(_stored(name)) for name in objective.nets}
    ema = {name: weights.params('target') for name in objective.ema}
    batch = load(recipe.programs)(config, 1)[0].batch(seed)
    group = batch.groups[0]
    videos = test_clips(config, clips, kind)
    frames = group.clips.shape[1]
    seen = videos[:, :frames]

    def placed(x):
        return dataclasses.replace(batch, groups=(dataclasses.replace(group, clips=x),))

    predict, expect = functions(objective, params, ema, config.objective)
    said, ids = jax.jit(predict)(placed(seen))
    expect, far = jax.jit(expect), jax.jit(distances(config.objective == PIXELS))

    def predictive(y: np.ndarray, pairs: bool):
        return np.asarray(far(said, ids, expect(placed(y[:, :frames])), pairs))

    net, encoder = objective.encoder(params, ema, {})
    half = videos.shape[1] // 2
    means = jax.jit(lambda x: net(encoder, x).mean(1))
    first = means(videos[:, :half])

    def joint(y: np.ndarray, pairs: bool):
        second = means(y[:, half:])
        apart = jnp.abs(first[:, None] - (second[None] if pairs else second[:, None])).mean(-1)
        return np.asarray(apart if pairs else apart[:, 0])

    title = 'generative' if config.objective == PIXELS else 'predictive'
    return {name: figures(videos, f) for name, f in ((title, predictive), ('joint', joint))}


def _stored(name: str) -> str:
    """The name of a trained net in `weights.nets`."""
    return 'online' if name == 'encoder' else name


def test_clips(config: Any, count: int, kind: str) -> np.ndarray:
    """uint8 [count, 8, crop, crop, 3] of the main job's test videos, at a run's crop."""
    from jepa_jax.config import DataListConfig
    from jepa_jax.data import synthetic
    from jepa_jax.evals.entries import made
    from jepa_jax.evals.video import read_clips

    synthetic.ensure(kind)
    labelled = made(DataListConfig(kind=kind))
    paths = labelled.paths[labelled.test][:count]
    if len(paths) < count:
        raise ConfigError(f'--clips {count}: there are {len(paths)} test videos')
    view = dataclasses.replace(
        config.data, frames=max(8, config.data.frames), fps=8, frame_step=0, duration=0.0
    )
    return read_clips(list(paths), view)


def functions(objective: Any, params: dict, ema: dict, name: str):
    """batch -> what is said of targets [B, M, P] and their ids [B, M]; batch -> what every token
    would have to be met by [B, N, P]."""
    from jepa_jax.objectives.masked_image import first_target

    def predict(batch):
        batch = first_target(batch) if name == 'masked_image' else batch
        group = batch.groups[0]
        mask = group.masks[0]
        said = objective.seen(params, group, mask)[1]
        if name != PIXELS:
            said = objective.said(params, said)
        return said, mask.target

    def expect(batch):
        clips = batch.groups[0].clips
        if name == PIXELS:
            return objective.targets(clips)
        features = objective.nets['encoder'](objective.target(params, ema), clips)
        return objective.met(params, features)

    return predict, expect


def distances(squared: bool):
    """(said [B, M, P], ids [B, M], expected [B, N, P], pairs) -> energies [B], or of all pairs
    [B, B], x along the first axis."""
    import jax
    import jax.numpy as jnp

    def apart(said, ids, expected):
        error = said - jnp.take(expected, ids, axis=0)
        return (jnp.square(error) if squared else jnp.abs(error)).mean()

    own = jax.vmap(apart)
    every = jax.vmap(jax.vmap(apart, (None, None, 0)), (0, 0, None))

    def far(said, ids, expected, pairs):
        return jax.lax.cond(
            pairs, lambda: every(said, ids, expected), lambda: jnp.diag(own(said, ids, expected))
        )

    return far


def figures(videos: np.ndarray, f) -> dict[str, Any]:
    """FIGURES and the landscape of an energy f(videos y, pairs) -> [B, B] or [B]."""
    import numpy as np

    matrix = f(videos, True)
    own = np.diag(matrix)
    off = matrix[~np.eye(len(matrix), dtype=bool)].reshape(len(matrix), -1)
    steps = range(-REACH, REACH + 1, STEP)

    def moved(dy: int, dx: int) -> float:
        energies = f(np.roll(videos, (dy, dx), (2, 3)), False)
        return float(np.mean(np.diag(energies) if energies.ndim == 2 else energies))

    landscape = [[moved(dy, dx) for dx in steps] for dy in steps]
    at = [moved(*d) for d in ((FAR, 0), (-FAR, 0), (0, FAR), (0, -FAR))]
    return {
        'own': float(own.mean()),
        'other': float(off.mean()),
        'gap': share(own.mean(), off.mean()),
        'first': float((own[:, None] < off).all(1).mean()),
        'auc': float((own[:, None] < off).mean() + 0.5 * (own[:, None] == off).mean()),
        'basin': share(own.mean(), np.mean(at)),
        'landscape': landscape,
    }


def share(low: float, high: float) -> float:
    """Of `high` that `low` lacks; 0 where both vanish."""
    return float(1 - low / high) if high > 1e-12 else 0.0


def draw(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Landscapes, a row a run and a column a kind of energy, in units of `other`."""
    import numpy as np
    from matplotlib.figure import Figure

    from jepa_jax.page import save_figure

    columns = max(map(len, rows.values()))
    figure = Figure(figsize=(2.6 * len(rows), 2.7 * columns), layout='constrained')
    axes = np.atleast_2d(figure.subplots(columns, len(rows), squeeze=False))
    for column, (run, kinds) in enumerate(rows.items()):
        for line, (name, one) in enumerate(kinds.items()):
            ax, scale = axes[line, column], max(one['other'], 1e-12)
            ends = [-REACH - STEP / 2, REACH + STEP / 2]
            image = ax.imshow(
                np.asarray(one['landscape']) / scale, extent=(*ends, *ends), vmin=0, vmax=1.2,
                origin='lower', cmap='viridis',
            )  # fmt: skip
            ax.set_title(f'{run}, {name}\nother {one["other"]:.2g}, gap {one["gap"]:.2f}', size=8)
            ax.tick_params(labelsize=6)
    figure.colorbar(image, ax=axes, label='energy over that of another clip', shrink=0.6)
    figure.supxlabel('moved right, pixels', size=8)
    figure.supylabel('moved down, pixels', size=8)
    dpi = min(130, WIDE // figure.get_size_inches()[0])
    save_figure(figure, path, dpi=dpi, colours=64)


# --- One dimension --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Demo:
    """At an encoder's scale: losses and what their gradient says of the scale."""

    scale: float
    deviation: float  # mean absolute deviation of y around its median, given the code
    slope: float  # of it, along the scale
    stopped: float  # gradient of the scale with the best predictor and fixed targets, by sampling
    free: float  # with targets that the same encoder makes, through which the gradient passes


def demonstrate(
    correlation: float = 0.9,
    scales: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0),
    samples: int = 400_000,
    seed: int = 0,
) -> list[Demo]:
    """x and y are normal with a correlation; the encoder's code of x is z = scale x + noise, both
    of deviation 1, so that a small scale says little and 0 is collapse. For L1 the best prediction
    of y from z is the median of y given z, and the loss it leaves is y's mean absolute deviation
    around that. The gradient of the scale through that predictor, targets fixed, is then the slope
    of this deviation: it points to codes that say more. (V-JEPA's own argument, 2404.08471 §3.1)
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    x, noise, rest = rng.standard_normal((3, samples))
    y = correlation * x + math.sqrt(1 - correlation**2) * rest
    rows = []
    for s in scales:
        left = 1 - correlation**2 * s**2 / (1 + s**2)  # variance of y given z
        deviation = math.sqrt(2 / math.pi * left)
        slope = -deviation / left * correlation**2 * s / (1 + s**2) ** 2
        z = s * x + noise
        weight = correlation * s / (1 + s**2)  # the median of y is weight * z
        sign = np.sign(weight * z - y)
        stopped = (sign * weight * x).mean()  # the predictor is the best: it need not be moved
        # both sides of one scale: |s weight z - s y|, and its gradient along s through both
        free = (np.sign(s * (weight * z - y)) * (s * weight * x - y)).mean()
        rows.append(Demo(s, deviation, slope, float(stopped), float(free)))
    return rows


def table_of_demo(rows: list[Demo]) -> str:
    """Markdown."""
    head = (
        '| scale of the encoder | deviation of y given the code | its slope | gradient, targets '
        'fixed | gradient, targets made by the encoder |'
    )
    lines = [head, '|---|---|---|---|---|']
    for r in rows:
        lines.append(
            f'| {r.scale:g} | {r.deviation:.4f} | {r.slope:+.4f} | {r.stopped:+.4f} | '
            f'{r.free:+.4f} |'
        )
    return '\n'.join(lines)


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('runs', metavar='RUN', nargs='*', help='workdirs of runs')
    add('--out', default='energy', help='folder for energy.json and energy.png (%(default)s)')
    add('--clips', type=cli.count, default=32, help='test videos (%(default)s)')
    add('--kind', default='synthetic', choices=('synthetic', 'synthetic_few'), help='of videos')
    add('--seed', type=int, default=0, help='of masks, and of the demo (%(default)s)')
    add('--demo', action='store_true', help='the one-dimensional demo alone')


def main() -> int:
    return cli.run(energy, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
