"""What is left to be looked at of answers about videos: report.html."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from jepa_jax import page
from jepa_jax.errors import BadFile
from jepa_jax.evals import Results
from jepa_jax.evals.qa_scores import Scored
from jepa_jax.language.items import Answer, Item

SHOWN = 5  # questions that were answered right, and as many that were not
FRAMES = 6  # of each video


def write(
    folder: Path,
    title: str,
    results: Results,
    scored: Scored,
    answers: Mapping[str, Mapping[str, Answer]],
    look: Callable[[Item], np.ndarray],
    seed: int,
) -> None:
    """Writes the page.

    Args:
      folder: of the page.
      title: of the set.
      results: as reported.
      scored: of the model that saw the videos.
      answers: by condition and item, the first condition with video.
      look: item -> its frames [T, H, W, 3].
      seed: of the draw of questions.
    """
    parts = [
        f'<h1>{html.escape(title)}</h1>',
        *(f'<p>{html.escape(line)}</p>' for line in results.sentences),
        page.table(
            ('', 'value', '95 % interval', 'n'),
            [
                (name, f'{f.value:.3f}', f'{f.low:.3f} to {f.high:.3f}', str(f.n))
                for name, f in [*results.results.items(), *results.baselines.items()]
            ],
        ),
    ]
    for column, verdicts in list(scored.columns.items())[:1]:
        for right, words in ((True, 'right'), (False, 'not right')):
            own = [item for item, v in zip(scored.items, verdicts) if v.right is right]
            parts.append(f'<h2>Answers that are {words}, by the column {html.escape(column)}</h2>')
            parts.append(f'<p>{min(len(own), SHOWN)} of {len(own)}, drawn at random.</p>')
            order = np.random.default_rng(seed).permutation(len(own))[:SHOWN]
            parts += [_question(own[i], answers, look) for i in order]
    page.write(folder, title, parts)


def _question(
    item: Item, answers: Mapping[str, Mapping[str, Answer]], look: Callable[[Item], np.ndarray]
) -> str:
    try:
        frames = look(item)
        even = np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int)
        picture = page.strip(frames[even])
    except BadFile as error:
        picture = html.escape(str(error))
    rows = [(name, known[item.id].text, *_shares(known[item.id])) for name, known in
            answers.items() if item.id in known]  # fmt: skip
    names: Sequence[str] = item.choices if any(len(row) > 2 for row in rows) else ()
    right = item.options[item.answer] if item.options else item.choices[item.answer]
    return (
        f'<h3>{html.escape(item.id)}</h3><p>{picture}</p><pre>{html.escape(item.question)}</pre>'
        f'<p>Right: <b>{html.escape(item.choices[item.answer])}</b>, {html.escape(right)}</p>'
        + page.table(('shown', 'said', *names), rows)
    )


def _shares(answer: Answer) -> list[str]:
    """Of each choice, by its likelihood."""
    if not answer.likelihoods:
        return []
    shares = np.exp(np.asarray(answer.likelihoods) - max(answer.likelihoods))
    return [f'{share:.0%}' for share in shares / shares.sum()]
