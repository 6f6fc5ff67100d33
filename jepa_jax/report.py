"""Makes the page of a training run anew, report.html, while it runs or afterwards.

    jepa report runs/mine

The page has the verdict, curves with the range of healthy runs, clips with their masks, features of
two clips over training, bad files, the config, and the command to go on, in one file that can be
sent to somebody. Nothing is trained or read from the lists; a run that ends writes it by itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from jepa_jax import bucket, cli
from jepa_jax.errors import ConfigError


def run(run: str | Path) -> None:
    """Writes the page, and says where.

    Raises:
      ConfigError: no training run is there.
    """
    if bucket.is_url(run):
        raise ConfigError(
            f'{run}: must be a folder; the run put its page into the bucket, as report.html, and a '
            'copy of all that is there is a run like any other'
        )
    run = Path(run)
    if not (run / 'config.json').is_file():
        raise ConfigError(f'{run}: no training run, which has a config.json and metrics.jsonl')
    from jepa_jax import ending, run_page
    from jepa_jax.lookup import load
    from jepa_jax.recipes import of

    config = run_page.read_config(run)
    objective = load(of(config).build)(config)
    path = run / ending.FILE
    report = json.loads(path.read_text()) if path.exists() else None
    print(f'page: {run_page.write(run, config, objective, report)}')


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('run', help='workdir of the run')


def main() -> int:
    return cli.run(run, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
