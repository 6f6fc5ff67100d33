"""Files of conversations, in the two forms that there are.

LLaVA's: a JSON list, or a line each, `{"video": "a.mp4", "conversations": [{"from": "human",
"value": "<image>\\nWhat moves?"}, {"from": "gpt", "value": "A ball."}]}`: `<image>` or `<video>`
stands where the pixels do, and the newline that parts it from the text is no text. PLM's: lines,
the second speaker is the `assistant`, and without a placeholder the pixels come first. `image` and
`video` are a path or a list of them; `start`, `end` (seconds) and `backwards` (true) may say which
part of the video is meant and which way it runs. A row without either is text alone.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jepa_jax import files
from jepa_jax.data.sources import Names
from jepa_jax.errors import BadFile, allowed, printable
from jepa_jax.language.chat import Media, Turn
from jepa_jax.language.tokenizer import unwritten

PLACEHOLDER = re.compile('<(?:image|video)>')
_PARTED = re.compile(rf'\n?{PLACEHOLDER.pattern}\Z|{PLACEHOLDER.pattern}\n?')
KINDS = ('video', 'image')
SPEAKERS = {
    'human': 'user', 'user': 'user', 'gpt': 'assistant', 'assistant': 'assistant',
    'system': 'system',
}  # fmt: skip


class Conversations:
    """The rows of a file, each checked once and kept as text.

    Args:
      path: of a .jsonl or .json file.
      folder: that paths in it are relative to; empty: the file's own.
      placeholder: 'where' it stands, or 'first': before all that the user says.

    Raises:
      BadFile: with the line (of a JSON list, the entry) and what is wrong there.
    """

    def __init__(self, path: str | os.PathLike, folder: str = '', placeholder: str = 'where'):
        self.path = Path(path).expanduser()
        self._folder = Path(folder or self.path.parent).expanduser()
        self._first = placeholder == 'first'
        rows = list(_rows(self.path))
        if not rows:
            raise BadFile(self.path, 'not_text', 'no conversation in it')
        self._numbers = np.asarray([number for number, _ in rows])
        self._texts = Names(text for _, text in rows)
        for index in range(len(rows)):
            self[index]

    def __len__(self) -> int:
        return len(self._texts)

    def name(self, index: int) -> str:
        """The file and the line, or entry, of a row."""
        word = 'entry' if self.path.suffix.lower() == '.json' else 'line'
        return f'{printable(self.path)} {word} {self._numbers[index]}'

    def __getitem__(self, index: int) -> list[Turn]:
        where = self.name(index)[len(printable(self.path)) + 1 :]
        try:
            with files.reading(self.path, 'not_text'):
                row = json.loads(self._texts[index])
            return turns_of(row, self._folder, self._first)
        except BadFile as error:
            raise BadFile(self.path, 'not_text', f'{where}: {error.detail}') from error
        except ValueError as error:
            raise BadFile(self.path, 'not_text', f'{where}: {error}') from error


def _rows(path: Path):
    """Numbers from 1 and JSON texts."""
    files.bound(path, 'index', size := files.size(path), f'{size:,} bytes')
    with files.reading(path, 'not_text'):
        text = path.read_text('utf-8-sig')
    if path.suffix.lower() != '.json':
        for number, line in enumerate(text.split('\n'), 1):
            if line.strip():
                yield number, line
        return
    with files.reading(path, 'not_text'):
        entries = json.loads(text)
    if not isinstance(entries, list):
        raise BadFile(path, 'not_text', f'must be a list, is a {type(entries).__name__}')
    for number, entry in enumerate(entries, 1):
        yield number, json.dumps(entry)


def turns_of(row: Any, folder: Path, first: bool = False) -> list[Turn]:
    """The turns of a row.

    Args:
      row: as in the file.
      folder: that paths are relative to.
      first: pixels come before all that the user says, wherever a placeholder stands.

    Raises:
      ValueError: what is wrong with it, in one line.
    """
    if not isinstance(row, dict):
        raise ValueError(f'must be an object, is a {type(row).__name__}')
    said = row.get('conversations')
    if not isinstance(said, list) or not said:
        raise ValueError('no list `conversations` in it')
    media = _media(row, folder)
    speakers, texts = zip(*(_said(each, number) for number, each in enumerate(said, 1)))
    _check(speakers, texts)
    places = [len(PLACEHOLDER.findall(text)) for text in texts]
    for number, (count, speaker) in enumerate(zip(places, speakers), 1):
        if count and SPEAKERS[speaker] != 'user':
            raise ValueError(f'turn {number}: a placeholder in what the {speaker} says')
    total = sum(places)
    if not total and media and ('assistant' in speakers or first):
        first = True  # PLM's form has none
    elif total != len(media):
        has = f'{total} placeholder{"s" * (total != 1)} <image> or <video>'
        raise ValueError(f'{has} for {len(media)} {" and ".join(KINDS)} paths: must be as many')
    turns, rest = [], list(media)
    for speaker, text in zip(speakers, texts):
        role, parts = SPEAKERS[speaker], []
        if first:
            text = ''.join(stretches(text))
            if role == 'user':
                parts, rest = rest, []
            parts = [*parts, text] if text else parts
        else:
            for i, stretch in enumerate(stretches(text)):
                parts += [rest.pop(0)] if i else []
                parts += [stretch] if stretch else []
        turns.append(Turn(role, tuple(parts)))
    return turns


def stretches(text: str) -> list[str]:
    """A text at its placeholders, without the newline after one, or before one that ends it."""
    return _PARTED.split(text)


def _said(each: Any, number: int) -> tuple[str, str]:
    """Who says what."""
    who, text = (each.get('from'), each.get('value')) if isinstance(each, dict) else (None, None)
    if who not in SPEAKERS:
        raise ValueError(f'turn {number}: from {printable(repr(who))}: {allowed(who, SPEAKERS)}')
    if not isinstance(text, str):
        raise ValueError(f'turn {number}: its value is no text but a {type(text).__name__}')
    if odd := unwritten(text):
        raise ValueError(f'turn {number}: {odd}')
    return who, text


def _check(speakers: Sequence[str], texts: Sequence[str]) -> None:
    """The user and the assistant in turn, and nobody says nothing."""
    roles = [SPEAKERS[speaker] for speaker in speakers]
    start = int(roles[0] == 'system')
    for number, (role, text) in enumerate(zip(roles[start:], texts[start:]), 1 + start):
        expected = ('user', 'assistant')[(number - 1 - start) % 2]
        if role != expected:
            raise ValueError(f'turn {number}: the {role} speaks where the {expected} should')
        if not text.strip():
            what = 'answer' if role == 'assistant' else 'question'
            raise ValueError(f'turn {number}: an empty {what}')
    if roles[-1] != 'assistant':
        raise ValueError(f'the last turn is the {roles[-1]}s: there is no answer to learn')


def _media(row: dict, folder: Path) -> list[Media]:
    named = [kind for kind in KINDS if row.get(kind) not in (None, [], '')]
    if len(named) > 1:
        raise ValueError('both `video` and `image` in one row')
    if not named:
        return []
    paths = row[named[0]]
    paths = paths if isinstance(paths, list) else [paths]
    if bad := [p for p in paths if not isinstance(p, str) or not p or '\0' in p]:
        raise ValueError(f'`{named[0]}` holds {printable(repr(bad[0]))}: must be a path or several')
    start, end = (_seconds(row, name) for name in ('start', 'end'))
    if end and end <= start:
        raise ValueError(f'ends at {end:g} s, before its start')
    backwards = row.get('backwards', False)
    if not isinstance(backwards, bool):
        raise ValueError(f'`backwards` is {printable(repr(backwards))}: must be true or false')
    return [
        Media(named[0], os.path.join(folder, os.path.expanduser(p)), start, end, backwards)
        for p in paths
    ]


def _seconds(row: dict, name: str) -> float:
    value = row.get(name)
    if value is None:
        return 0.0
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise ValueError(f'`{name}` is {printable(repr(value))}: must be seconds')
    return float(value)
