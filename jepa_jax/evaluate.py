"""Evaluates a model as a config says, and writes what came out beside its baselines.

    python -m jepa_jax.evaluate --config=configs/eval/own.py --model vitl --config.data.train=clips/

The workdir gets report.json (results and baselines, each with its 95 % interval) and pictures. A
finished evaluation of the same weights, settings and files started again shows its report. With
several --model the results have what each reader gains from the first to the others, paired by
clip. Several processes (see jepa_jax.distributed) make features and train probes together. With
--watch an evaluation that can (anomaly) then judges what arrives in a folder, from a camera or on
standard input, until it is stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jepa_jax import cli, distributed
from jepa_jax.config import EvalConfig, layouts
from jepa_jax.config.store import differences
from jepa_jax.errors import ConfigError
from jepa_jax.weights import names

FILE = 'report.json'
OUTCOMES = 'outcomes.npz'  # how well each test clip was answered
SHARED = ('features', 'probe')  # folders of a workdir that all processes write


def evaluate(
    config: EvalConfig, workdir: str, config_file: str, models: list[str], encoder: str, watch: str
) -> None:
    """Runs `config` on the models and prints the report; several are compared clip by clip. Then
    watches a place, if one is given.

    Raises:
      ConfigError: settings that cannot work, or the workdir holds another evaluation.
      ZooError, ConvertError, CheckpointError: a model cannot be had.
    """
    del config_file
    from jepa_jax import evals

    row = evals.of(config)  # before the imports that take seconds
    if complaint := next(layouts.missing_sets(config, workdir), None):
        raise ConfigError(complaint)
    for model in models:
        names.check(model)
    from jepa_jax import start
    from jepa_jax.errors import UsageError
    from jepa_jax.lookup import load
    from jepa_jax.workdir import lock, write_json

    if watch and not row.watch:
        raise UsageError(f"--watch: evaluation '{config.evaluation}' judges nothing that arrives")
    if watch and len(models) > 1:
        raise UsageError(f'--watch takes one --model, found {len(models)}')
    if twice := [name for name in models if models.count(name) > 1]:
        raise ConfigError(f'--model {twice[0]} is named twice')
    start.logging_to_terminal()
    start.compilation_cache()
    place = Path(workdir).absolute()
    with distributed.session(), distributed.first(lock(place)), _mine(place, len(models)) as folder:
        if len(models) == 1:
            report, loaded = _evaluate(config, folder, models[0], encoder)
        else:
            if (folder / FILE).exists() and not isinstance(_stored(folder / FILE)['model'], list):
                raise ConfigError(
                    f'workdir {folder}: holds an evaluation of one model, which that of '
                    f'{len(models)} would replace; name another --workdir'
                )
            folders = [folder / f'model{i}' for i in range(1, len(models) + 1)]
            for each in folders:
                each.mkdir(exist_ok=True)
            reports = [_evaluate(config, f, m, encoder)[0] for f, m in zip(folders, models)]
            report = _together(reports, folders, config)
            write_json(folder / FILE, report)
            _page(report, folders, folder)
        if folder == place:  # process 0
            show(report)
            print(f'report: {folder / FILE}', flush=True)
        if watch and folder == place:
            load(row.watch)(loaded, config, folder, watch)


@contextlib.contextmanager
def _mine(folder: Path, models: int) -> Iterator[Path]:
    """The workdir, which process 0 alone writes into: the others get a copy of what is there, in
    which `features` and `probe`, that all have their part in, are those of the workdir."""
    import jax

    if not jax.process_index():
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        for part in ('.', *(f'model{i}' for i in range(1, models + 1))):
            own, theirs = Path(scratch, part), folder / part
            own.mkdir(exist_ok=True)
            for name in SHARED:
                (own / name).symlink_to(theirs / name)
            for name in (FILE, OUTCOMES):
                if (theirs / name).exists():
                    shutil.copy(theirs / name, own)
        yield Path(scratch)


def _stored(path: Path) -> dict:
    """A report that is there. Raises ConfigError: it is none."""
    from jepa_jax import files
    from jepa_jax.errors import BadFile

    try:
        report = files.read_json(path)
        if missing := [key for key in ('model', 'results', 'baselines') if key not in report]:
            raise BadFile(path, 'corrupt', f'has no {missing[0]}')
    except BadFile as error:
        raise ConfigError(f'{error}; delete it, and the evaluation is made again') from error
    return report


def _evaluate(config: EvalConfig, folder, model: str, encoder: str) -> tuple[dict, Any]:
    """The report of one model, from the folder if it is there, and the model."""
    import dataclasses
    import json
    import time

    import jax
    import numpy as np

    import jepa_jax
    from jepa_jax import evals
    from jepa_jax.checkpoint import hash_arrays
    from jepa_jax.lookup import load
    from jepa_jax.workdir import write_json

    row, began = evals.of(config), time.monotonic()
    loaded = jepa_jax.load(model, encoder=encoder, dtype=config.compute_dtype)
    for line in () if jax.process_index() else loaded.about:
        print(line)
    about = {
        'evaluation': config.evaluation,
        'protocol': row.protocol,
        'model': {
            'name': model,
            'hash': hash_arrays(loaded.encoder.params),
            'encoder': encoder,
            'frames': loaded.config.frames,
            'crop': loaded.config.image_size,
        },
        'config': json.loads(json.dumps(dataclasses.asdict(config))),
    }
    parts = loaded.predictor, loaded.ac_predictor, loaded.probe
    # of a model that answers questions: projector, language model and what else is stored
    weights = getattr(loaded, 'weights', None)  # a model made in Python has none
    stored = weights.nets.values() if weights else ()
    kept = {
        # beside the encoder
        'nets': [
            *(hash_arrays(part.params) for part in parts if part),
            *(hash_arrays(net.tree) for net in stored),
        ],
        'contents': load(row.contents)(config) if row.contents else '',
    }
    path = folder / FILE
    if path.exists():
        report = _stored(path)
        for words, facts in (
            ('another model or with other settings', about),
            # which reports of older programs lack
            ('other weights, or the files have changed since', report.keys() & kept.keys()),
        ):
            reported = {key: report.get(key) for key in facts}
            if lines := differences(reported, {key: (about | kept)[key] for key in facts}):
                shown = '; '.join(line for line in lines if len(line) < 200)  # not hashes of nets
                raise ConfigError(
                    f'workdir {folder}: holds an evaluation of {words}'
                    f'{f" ({shown})" if facts is about and shown else ""}; name another --workdir'
                )
        return report, loaded
    results = load(row.run)(loaded, config, folder)
    figures = {
        group: {name: dataclasses.asdict(f) for name, f in getattr(results, group).items()}
        for group in ('results', 'baselines')
    }
    if results.outcomes:
        np.savez(folder / OUTCOMES, sources=results.sources, **results.outcomes)
    report = {
        **about,
        **kept,
        'data': results.data,
        **figures,
        'sentences': list(results.sentences),
        'seconds': round(time.monotonic() - began, 1),
        'seed': config.seed,
    }
    write_json(path, report)
    return report, loaded


def _together(reports: list[dict], folders: list, config: EvalConfig) -> dict:
    """One report of several, with what each reader gains from the first model to the others."""
    import dataclasses

    import numpy as np

    from jepa_jax.data import npz
    from jepa_jax.evals import Figure
    from jepa_jax.evals.intervals import bootstrap

    names = [report['model']['name'] for report in reports]
    results, baselines = (
        {f'{n}: {k}': v for n, r in zip(names, reports) for k, v in r[group].items()}
        for group in ('results', 'baselines')
    )
    tables = [
        npz.load_all(folder / OUTCOMES) if (folder / OUTCOMES).exists() else {}
        for folder in folders
    ]
    first, *others = tables
    for name, other in zip(names[1:], others):
        for reader in (k for k in other if k in first and k != 'sources'):
            gain = other[reader] - first[reader] if len(other[reader]) == len(first[reader]) else []
            if not len(gain) or (other['sources'] != first['sources']).any():
                raise ConfigError(f'{name} was tested on other clips than {names[0]}')
            known = np.isfinite(gain)  # depth has none of a picture without a pixel in range
            if not known.any():
                continue
            gain = gain[known]
            (ends,) = bootstrap(
                first['sources'][known],
                lambda rows, gain=gain: (gain[rows].mean(),),
                config.bootstrap,
                config.seed,
            )
            figure = Figure(float(np.mean(gain)), *ends, len(gain))
            results[f'{name} over {names[0]}: {reader}'] = dataclasses.asdict(figure)
    return {
        'evaluation': config.evaluation,
        'protocol': reports[0]['protocol'],
        'model': [report['model'] for report in reports],
        'config': reports[0]['config'],
        'data': reports[0]['data'],
        'results': results,
        'baselines': baselines,
        'sentences': [f'{n}: {line}' for n, r in zip(names, reports) for line in r['sentences']],
        'seconds': sum(report['seconds'] for report in reports),
        'seed': config.seed,
    }


def _page(report: dict, folders: list[Path], folder: Path) -> None:
    """Several models side by side, with what each has of its own."""
    from jepa_jax import page

    pages = [
        (model['name'], f'{each.name}/{page.FILE}')
        for model, each in zip(report['model'], folders)
        if (each / page.FILE).exists()
    ]
    rows = [
        (name, f'{f["value"]:.3f}', f'{f["low"]:.3f} to {f["high"]:.3f}', str(f['n']))
        for kind in ('results', 'baselines')
        for name, f in report[kind].items()
    ]
    title = ' and '.join(model['name'] for model in report['model'])
    parts = [
        page.heading(title, 1),
        page.paragraph(f'{report["protocol"]}. One over another: paired by clip.'),
        page.links(pages),
        page.table(('', 'value', '95 % interval', 'n'), rows),
        *map(page.paragraph, report['sentences']),
    ]
    page.write(folder, title, parts)


def show(report: dict) -> None:
    """Prints results and baselines as a table, then the sentences."""
    rows = [
        (kind, name, f'{f["value"]:.3f}', f'{f["low"]:.3f} to {f["high"]:.3f}', str(f['n']))
        for kind in ('results', 'baselines')
        for name, f in report[kind].items()
    ]
    rows.insert(0, ('', '', 'value', '95 % interval', 'n'))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        print('  '.join(word.ljust(width) for word, width in zip(row, widths)).rstrip())
    for line in report['sentences']:
        print(line)


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        '--model', required=True, action='append', dest='models', metavar='NAME_OR_PATH',
        help='what `jepa_jax.load` takes; several are compared',
    )  # fmt: skip
    add(
        '--watch', default='', metavar='PLACE',
        help='a folder, a camera as /dev/video0, or - (nothing: the report alone)',
    )  # fmt: skip
    add('--encoder', choices=('target', 'online'), default='target', help='of a run with both')


def main() -> int:
    return distributed.leave(
        cli.run(evaluate, doc=__doc__, tables=('evaluation',), options=_options)
    )


if __name__ == '__main__':
    sys.exit(main())
