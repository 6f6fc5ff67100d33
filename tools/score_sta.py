"""Scores predictions of Ego4D's short-term anticipation of object interactions.

    python -m tools.score_sta --truth fho_sta_val.json --predictions predictions.json [--json FILE]

Both files are as the challenge has them; the result is its mean average precision, top 5, over
nouns: of boxes and nouns, with the verb, with the time to contact, with both; 95 % intervals over
videos. Frames without a prediction count as missed; where there are some, the figures of the
official program, which forgets their objects, stand beside. There is no head that makes such
predictions here: the authors of V-JEPA 2.1 have not published theirs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from jepa_jax import cli, files
from jepa_jax.errors import ConfigError
from jepa_jax.workdir import room_for


def score(truth: str, predictions: str, resamples: int, json_file: str | None) -> None:
    """Reads, scores, prints.

    Raises:
      ConfigError: a file of another layout, or a split whose objects are not told.
    """
    if json_file:
        room_for('--json', json_file)
    from jepa_jax.data.labelled import ego4d_sta
    from jepa_jax.evals.sta import mean_average_precision

    with files.raising(ConfigError):
        split = ego4d_sta.read(Path(truth))
        said = ego4d_sta.predictions(Path(predictions), split)
    if any(frame.objects is None for frame in split.frames):
        raise ConfigError(f'{truth}: has frames without objects, a test split cannot be scored')
    told = [sum(len(frame.objects.nouns) for frame in split.frames), len(split.nouns)]
    silent = sum(not len(said[f.uid].nouns) if f.uid in said else 1 for f in split.frames)
    print(
        f'{len(split.frames):,} frames, {told[0]:,} objects of {told[1]} nouns; {silent:,} frames '
        'have no prediction'
    )
    how = {'mAP, top 5': True} | ({'as the official program counts': False} if silent else {})
    results = {}
    for words, unanswered in how.items():
        figures = mean_average_precision(
            split.frames, said, told[1], unanswered=unanswered, resamples=resamples
        )
        results[words] = {name: dataclasses.asdict(figure) for name, figure in figures.items()}
        print(words)
        for name, f in figures.items():
            print(f'  {name:12} {f.value:6.2f}  ({f.low:.2f} to {f.high:.2f})')
    if json_file:
        about = {'frames': len(split.frames), 'objects': told[0], 'unanswered': silent}
        Path(json_file).write_text(json.dumps(about | results, indent=2) + '\n')


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--truth', required=True, metavar='FILE', help='fho_sta_val.json or fho_sta_train.json')
    add('--predictions', required=True, metavar='FILE', help='as the challenge takes them')
    add('--resamples', type=cli.at_least(0), default=200, metavar='N',
        help='of videos (%(default)s; 0: none)')  # fmt: skip
    add('--json', metavar='FILE', dest='json_file', help='write the figures (no file)')


def main() -> int:
    return cli.run(score, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
