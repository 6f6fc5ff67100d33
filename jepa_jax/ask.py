"""Asks a model that was trained on questions (configs/qa) about videos and images.

    python -m jepa_jax.ask --model RUN --video clip.mp4 --question "Which way do they turn?"
    python -m jepa_jax.ask --model RUN --video clip.mp4 --question "What is it?" --choices "a|b|c"
    python -m jepa_jax.ask --model RUN --batch questions.jsonl --out answers.jsonl

The answer is written as it is made; --choices compares how likely each is as a whole answer,
beside the text. What was looked at is said: a video is shown as in training, frames evenly over all
of it, never cut. A line of --batch is {"video": PATH or a list, "question": TEXT} and may have
"choices" (a list), "start" and "end" (seconds) and "backwards"; the answers are the same lines with
`answer`, `shares` and `seen`. A video that cannot be read is counted and gets `error` in place of
an answer, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from jepa_jax import cli
from jepa_jax.errors import BadFile, InputError, InputsFailed, UsageError
from jepa_jax.weights.names import check as check_name


def ask(
    model: str,
    videos: list[str],
    question: str | None,
    choices: str | None,
    batch: str | None,
    out: str | None,
    start: float,
    end: float,
    backwards: bool,
    system: str | None,
    tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int,
    encoder_from: str,
    language: str,
    tokenizer: str,
    dtype: str,
) -> None:
    """Answers one question, or a file of them."""
    if bool(question) == bool(batch):
        raise UsageError('one of --question TEXT and --batch FILE.jsonl is needed')
    if batch and not out:
        raise UsageError('--batch needs --out FILE.jsonl')
    if out and not batch:
        raise UsageError('--out goes with --batch: the answer to --question is printed')
    alone = {
        '--video': videos, '--choices': choices, '--start': start, '--end': end,
        '--backwards': backwards,
    }  # fmt: skip
    if batch and (unread := [flag for flag, value in alone.items() if value]):
        raise UsageError(f'{unread[0]} goes with --question: a line of --batch has its own')
    if tokens < 0:
        raise UsageError(f'--tokens {tokens}: must be at least 0')
    if not tokens and not batch and not choices:
        raise UsageError('--tokens 0: nothing is said, so --choices is needed')
    for name in filter(None, (model, encoder_from, language)):
        check_name(name)
    from jepa_jax import answers  # jax: not for --help
    from jepa_jax import start as starting
    from jepa_jax.language.chat import Media
    from jepa_jax.models.generation import Sampling
    from jepa_jax.weights import zoo
    from jepa_jax.workdir import room_for

    starting.logging_to_terminal()
    starting.compilation_cache()
    try:
        how = Sampling(temperature, top_p, top_k)
    except ValueError as error:
        raise UsageError(str(error)) from error
    offered = choices.split('|') if choices else []
    answers.check_choices(offered)
    answers.check_seconds(start, end)
    rows = _rows(Path(batch)) if batch else []
    if out:
        room_for('--out', out)  # loading a model takes minutes
    ready = answers.Answerer.of(
        zoo.find(model), encoder_from=encoder_from, language=language, tokenizer=tokenizer,
        dtype=dtype,
    )  # fmt: skip
    settings: dict[str, Any] = dict(system=system, most=tokens, sampling=how, seed=seed)

    def shown(paths: list[str], start: float, end: float, backwards: bool) -> list[Media]:
        known = [answers.media_of(path) for path in paths]
        return [Media(m.kind, m.path, start, end, backwards) for m in known]

    if batch:
        _batch(ready, rows, Path(out), shown, settings)
        return
    streaming = sys.stdout.isatty() and tokens > 0
    said = ready.ask(
        shown(videos, start, end, backwards), question, choices=offered, **settings,
        on_text=(lambda text: print(text, end='', flush=True)) if streaming else None,
    )  # fmt: skip
    print('' if streaming else said.text if tokens else said.choice)
    for path, looked in zip(videos, said.seen):
        print(f'({os.path.basename(path)}: {looked.words()})')
    for choice, share in zip(said.choices, said.shares):
        print(f'{share:7.1%}  {choice}{"  <-" if choice == said.choice else ""}')


def _rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of questions. Raises BadFile with the line at fault."""
    from jepa_jax import files

    files.bound(path, 'index', size := files.size(path), f'{size:,} bytes')
    rows = []
    with files.reading(path, 'not_text'):
        lines = path.read_text('utf-8-sig').split('\n')
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = files.json_line(path, number, line)
        if complaint := _complaint(row):
            raise BadFile(path, 'not_text', f'line {number}: {complaint}')
        rows.append(row)
    if not rows:
        raise BadFile(path, 'not_text', 'no question in it')
    return rows


def _complaint(row: Any) -> str:
    if not isinstance(row, dict):
        return 'must be an object'
    videos = row.get('video', [])
    if not isinstance(videos, str) and not (
        isinstance(videos, list) and all(isinstance(v, str) for v in videos)
    ):
        return '`video` must be a path or a list of them'
    if not isinstance(row.get('question'), str) or not row['question'].strip():
        return 'no `question`'
    choices = row.get('choices', [])
    if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
        return '`choices` must be a list of texts'
    for name in ('start', 'end'):
        value = row.get(name, 0)
        if type(value) not in (int, float) or not 0 <= value < 1e9:
            return f'`{name}` must be seconds'
    if not isinstance(row.get('backwards', False), bool):
        return '`backwards` must be true or false'
    return ''


def _batch(ready, rows: list[dict[str, Any]], out: Path, shown, settings: dict[str, Any]) -> None:
    from tqdm import tqdm

    lost = 0
    # half a character in a line goes back as JSON writes it
    with open(out, 'w', encoding='utf-8', errors='backslashreplace') as file:
        for row in tqdm(rows, unit='question', disable=None):
            videos = row.get('video', [])
            videos = [videos] if isinstance(videos, str) else videos
            when = row.get('start', 0.0), row.get('end', 0.0), row.get('backwards', False)
            try:
                choices = row.get('choices', [])
                said = ready.ask(shown(videos, *when), row['question'], choices=choices, **settings)
            except (BadFile, InputError) as error:
                lost += 1
                row = {**row, 'error': str(error)}
            else:
                text = said.text if settings['most'] else said.choice
                row = {**row, 'answer': text, 'seen': [each.words() for each in said.seen]}
                if said.choices:
                    row |= {'choice': said.choice, 'shares': dict(zip(said.choices, said.shares))}
            file.write(json.dumps(row, ensure_ascii=False) + '\n')
    print(f'{out}: {len(rows) - lost} of {len(rows)} questions answered')
    if lost:
        raise InputsFailed(f'{lost} of {len(rows)} questions could not be put, {out} says why')


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--model', required=True, metavar='RUN', help='a run on questions, or what convert makes')
    add(
        '--video', dest='videos', nargs='+', default=[], metavar='FILE',
        help='videos and images that the question is about (none)',
    )  # fmt: skip
    add('--question', metavar='TEXT', help='<video> in it: where a video stands, or first (none)')
    add('--choices', metavar='A|B|C', help='answers to compare (none)')
    add('--batch', metavar='FILE.jsonl', help='a question a line, not --question (none)')
    add('--out', metavar='FILE.jsonl', help='answers of --batch (none)')
    add('--start', type=float, default=0.0, metavar='SECONDS', help='of the videos (%(default)g)')
    add('--end', type=float, default=0.0, metavar='SECONDS', help='of the videos (0: their end)')
    add('--backwards', action='store_true', help='show the last frame first')
    add('--system', metavar='TEXT', help="what the system says first (the model's own)")
    add(
        '--tokens', type=int, default=128, metavar='N',
        help='of an answer, at most; 0: the likeliest of the choices is the answer (%(default)s)',
    )  # fmt: skip
    add(
        '--temperature', type=float, default=0.0, metavar='X',
        help='above 0 the answer is drawn; 0: the likeliest (%(default)g)',
    )  # fmt: skip
    add(
        '--top-p',
        type=float,
        default=1.0,
        metavar='X',
        help='draw among the likeliest share (%(default)g)',
    )
    add(
        '--top-k', type=int, default=0, metavar='N', help='draw among so many; 0: all (%(default)s)'
    )
    add('--seed', type=int, default=0, metavar='N', help='of drawing (%(default)s)')
    add('--encoder-from', default='', metavar='NAME_OR_PATH', help='if RUN has no encoder (RUN)')
    add('--language', default='', metavar='PATH', help='if RUN has no language model (RUN)')
    add('--tokenizer', default='', metavar='PATH', help="tokenizer.json or its folder (RUN's own)")
    add(
        '--dtype',
        choices=('float32', 'bfloat16'),
        default='float32',
        help='computes in (%(default)s)',
    )


def main() -> int:
    return cli.run(ask, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
