"""Figures of answers that a model gave before, without the model.

    python -m tools.score_answers --config=configs/eval/mvp.py --workdir=DIR --config.data.path=SET

DIR is where `evaluate` asked: its answers.jsonl is read and scored again, by the rules of this
version and with the config's resamples. The table is printed, and nothing is written.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from jepa_jax import cli
from jepa_jax.config.qa import QAConfig
from jepa_jax.errors import ConfigError


def score(config: QAConfig, workdir: str, config_file: str) -> None:
    """Scores the answers of a workdir.

    Raises:
      ConfigError: the config is of another evaluation, or the answers are to other questions.
      BadFile: there are no answers.
    """
    del config_file
    from jepa_jax import evals, evaluate

    evals.of(config)
    if config.evaluation != 'qa':
        raise ConfigError(f'evaluation = {config.evaluation!r}: only qa keeps answers')
    from jepa_jax.evals import qa

    results = qa.scored_again(config, Path(workdir) / qa.FILE)
    evaluate.show({
        'results': {k: dataclasses.asdict(v) for k, v in results.results.items()},
        'baselines': {k: dataclasses.asdict(v) for k, v in results.baselines.items()},
        'sentences': results.sentences,
    })  # fmt: skip


def main() -> int:
    return cli.run(score, doc=__doc__, tables=('evaluation',))


if __name__ == '__main__':
    sys.exit(main())
