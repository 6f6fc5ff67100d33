"""Evaluates a model as a config says, and writes what came out beside its baselines.

    python -m jepa_jax.evaluate --config=configs/eval/self_made.py --model NAME_OR_PATH

The workdir gets report.json (results and baselines, each with its 95 % interval) and pictures. A
finished evaluation of the same model and settings started again shows its report.
"""

from __future__ import annotations

import argparse
import sys

from jepa_jax import cli
from jepa_jax.config import EvalConfig

FILE = 'report.json'


def evaluate(config: EvalConfig, workdir: str, config_file: str, model: str, encoder: str) -> None:
    """Runs `config` on a model and prints the report.

    Raises:
      ConfigError: settings that cannot work, or the workdir holds another evaluation.
      ZooError, ConvertError, CheckpointError: the model cannot be had.
    """
    del config_file
    from jepa_jax import evals

    row = evals.of(config)  # before the imports that take seconds
    import dataclasses
    import json
    import time
    from pathlib import Path

    import jepa_jax
    from jepa_jax import start
    from jepa_jax.checkpoint import hash_arrays
    from jepa_jax.errors import ConfigError
    from jepa_jax.lookup import load
    from jepa_jax.workdir import lock, write_json

    start.logging_to_terminal()
    start.compilation_cache()
    began = time.monotonic()
    loaded = jepa_jax.load(model, encoder=encoder)
    for line in loaded.about:
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
    with lock(Path(workdir).absolute()) as folder:
        path = folder / FILE
        if path.exists():
            report = json.loads(path.read_text())
            if any(report.get(key) != value for key, value in about.items()):
                raise ConfigError(
                    f'workdir {folder}: holds an evaluation of another model or with other '
                    'settings; name another --workdir'
                )
        else:
            results = load(row.run)(loaded, config, folder)
            figures = {
                group: {name: dataclasses.asdict(f) for name, f in getattr(results, group).items()}
                for group in ('results', 'baselines')
            }
            report = {
                **about,
                'data': results.data,
                **figures,
                'sentences': list(results.sentences),
                'seconds': round(time.monotonic() - began, 1),
                'seed': config.seed,
            }
            write_json(path, report)
    show(report)
    print(f'report: {path}')


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
    add('--model', required=True, metavar='NAME_OR_PATH', help='what `jepa_jax.load` takes')
    add('--encoder', choices=('target', 'online'), default='target', help='(%(default)s)')


def main() -> int:
    return cli.run(evaluate, doc=__doc__, tables=('evaluation',), options=_options)


if __name__ == '__main__':
    sys.exit(main())
