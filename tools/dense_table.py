"""What the dense objective of V-JEPA 2.1 buys: two finished runs of small models side by side.

    python -m jepa_jax.train --config=configs/tiny.py
    python -m jepa_jax.train --config=configs/tiny_21.py
    python -m tools.dense_table runs/tiny runs/tiny_21 --out runs/dense_table

Evaluates both by segmentation and by labels carried through videos (configs/eval/segmentation.py,
propagation.py, on self-made videos), each beside an untrained encoder of its own shape and pixels,
takes motion, digit and side from the probes of their reports, and writes OUT/table.md and
table.json: value and 95 % interval of each, and what the second run gains on the first, paired by
picture or object; and OUT/features.png, the principal components of both on one video. Started
again it makes what is missing. About two hours on two cores for runs of configs/tiny.py; `--arg
smoke` is a few minutes and means nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from jepa_jax import cli
from jepa_jax.errors import ConfigError

# evaluation -> its figures, and what is paired
FIGURES = {
    'segmentation': ({'mIoU': ''}, 'IoU of a picture'),
    'propagation': ({'J&F': '', 'J': ', J', 'F': ', F'}, 'J&F of an object'),
}
SHOWN = 12  # frames of the picture
BASELINES = {'random': 'untrained', 'pixels': 'pixels'}


def make(models: list[str], out: str, arg: str) -> None:
    """Evaluates what has not been evaluated, and writes the table.

    Raises:
      ConfigError: a run is not finished, or made no probe.
    """
    from jepa_jax.evaluate import evaluate
    from jepa_jax.workdir import write_json

    reports = [_probes(model) for model in models]
    folder, rows = Path(out), {}
    for task, (figures, paired) in FIGURES.items():
        config = cli.load(f'{task}:{arg}' if arg else task, ('evaluation',))
        evaluate(config, str(folder / task), '', models, 'target', '')
        report = json.loads((folder / task / 'report.json').read_text())
        for figure, suffix in figures.items():
            rows[f'{task}, {figure}'] = _evaluated(report, models, figure, suffix)
        gain = f'{models[1]} over {models[0]}: {paired}'
        rows[f'{task}, {paired}, gain'] = {'gain': report['results'][gain]}
    for label in reports[0]:
        if label in reports[1]:
            row = {}
            for model, probes in zip(models, reports):
                for name, word in {'target': '', **BASELINES}.items():
                    probe = probes[label][name]
                    row[_key(model, word)] = {**probe, 'value': probe['mean']}
            rows[label] = row
    write_json(folder / 'table.json', rows)
    draw(models, folder / 'features.png')
    text = '\n'.join(table(rows, models)) + '\n'
    (folder / 'table.md').write_text(text)
    print(text, end='')


def draw(models: list[str], path: Path) -> None:
    """The features of one self-made video as colours, of both runs and of an untrained encoder."""
    import numpy as np

    import jepa_jax
    from jepa_jax.data import labelled_scenes
    from jepa_jax.evals import own
    from jepa_jax.evals.pictures import plot_features

    loaded = {model: jepa_jax.load(model) for model in models}
    loaded['untrained'] = own.untrained(loaded[models[0]], 1)
    clip = labelled_scenes.video('test', 0).frames[:SHOWN]
    rows = {
        name: np.asarray(model.encode(clip[None])).reshape(*model.config.grid(*clip.shape[:3]), -1)
        for name, model in loaded.items()
    }
    plot_features(clip, rows, path, 'Features of one self-made video over time')


def _probes(model: str) -> dict[str, Any]:
    path = Path(model, 'report.json')
    if not path.is_file():
        raise ConfigError(f'{model}: no report.json, must be a finished run')
    probes = json.loads(path.read_text()).get('probes')
    if not probes:
        raise ConfigError(f'{path}: has no probes, --config.probe.enabled=true makes them')
    return probes


def _key(model: str, word: str) -> str:
    return f'{model}, {word}' if word else model


def _evaluated(report: dict, models: list[str], figure: str, suffix: str) -> dict[str, Any]:
    row = {}
    for model in models:
        row[_key(model, '')] = report['results'][f'{model}: {figure}']
        for name, word in BASELINES.items():
            row[_key(model, word)] = report['baselines'][f'{model}: {name}{suffix}']
    return row


def table(rows: dict[str, dict[str, Any]], models: list[str]) -> list[str]:
    """Markdown."""
    words = ('', *BASELINES.values())
    columns = [_key(model, word) for word in words for model in models] + ['gain']
    lines = [f'| | {" | ".join(columns)} |', '|---' * (1 + len(columns)) + '|']
    for name, row in rows.items():
        cells = []
        for column in columns:
            f = row.get(column)
            cells.append(f'{f["value"]:.3f} [{f["low"]:.3f}, {f["high"]:.3f}]' if f else '')
        lines.append(f'| {name} | {" | ".join(cells)} |')
    return lines


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        'models', nargs=2, metavar='RUN', help='finished runs; the second is held against the first'
    )
    add('--out', required=True, metavar='DIR', help='folder of the evaluations and the table')
    add('--arg', default='', metavar='ARG', help='of both evaluations, such as smoke (none)')


def main() -> int:
    return cli.run(make, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
