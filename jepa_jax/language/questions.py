"""Questions about the self-made videos, whose answers need what, where and which way.

In every video a digit and a ball go round each other, see `data.synthetic`. A view is a window of
it, forwards or backwards. Backwards it has the very same frames and the other motion, so a view and
its reverse, with the same question and the same order of options, are a minimal pair: nothing but
the order of frames tells the answer. (reference: video_qa.md §4)

    path = questions.write('train', folder, clips=80)      # conversations, for training
    for item in questions.items('test', folder, clips=400):  # pairs, for judging
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from jepa_jax.data import synthetic
from jepa_jax.data.stream import hash_of
from jepa_jax.data.synthetic import FPS, FRAMES, MOTIONS, SIDES
from jepa_jax.errors import ConfigError, allowed
from jepa_jax.language.chat import TEMPLATES, Media
from jepa_jax.language.items import LETTERS, Item
from jepa_jax.language.tokenizer import Tokenizer, library

VERSION = 1  # in every draw: change it with anything that changes a question
VOCABULARY = 384
WINDOW = 8  # frames of a view
DIGITS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
PLACES = dict(zip(SIDES, ('on the right', 'below it', 'on the left', 'above it')))
OPEN = (
    'Which way do they go round, clockwise or counterclockwise?',
    'Do they go round clockwise or counterclockwise?',
    'In which direction do the digit and the ball go round?',
)
WHERE = (
    'On which side of the digit is the ball?',
    'Where is the ball, seen from the digit?',
)
WHAT = ('Which digit is it?', 'Which digit goes round with the ball?')
DESCRIBE = ('Describe the video.', 'What happens in the video?')
LETTER = 'Answer with the letter.'
# kind -> share of the questions of training. Those that name the answer in words decide whether
# motion is learnt at all: with letters, yes and no alone it is not
MIXTURE = {
    'motion': 0.20,
    'motion_letter': 0.15,
    'motion_yes_no': 0.15,
    'side': 0.15,
    'side_letter': 0.10,
    'digit': 0.10,
    'caption': 0.15,
}
PAIRED = ('motion', 'motion_letter', 'motion_yes_no')  # kinds whose answer turns with the video


@dataclasses.dataclass(frozen=True)
class View:
    """A window of a self-made video."""

    split: str
    clip: int
    start: int = 0  # frame
    backwards: bool = False

    @property
    def labels(self) -> dict[str, int | str]:
        """`digit`, `side` and `motion` as they are seen."""
        own = synthetic.labels(self.clip)
        turned = MOTIONS.index(own['motion']) ^ self.backwards
        return own | {'motion': MOTIONS[turned]}

    def media(self, folder: Path) -> Media:
        path = folder / 'videos' / f'{self.split}_{self.clip:04d}.mp4'
        start, end = self.start / FPS, (self.start + WINDOW) / FPS
        return Media('video', str(path), start, end, self.backwards)


def views(split: str, clips: int, both: bool = True) -> list[View]:
    """All windows of the first clips that do not overlap, each and its reverse."""
    return [
        View(split, clip, start, backwards)
        for clip in range(clips)
        for start in range(0, FRAMES - WINDOW + 1, WINDOW)
        for backwards in ((False, True) if both else (False,))
    ]


@dataclasses.dataclass(frozen=True)
class Question:
    """A question, the answer, and what else might have been."""

    kind: str
    text: str
    said: str
    choices: tuple[str, ...] = ()  # (): any text


def description(view: View) -> str:
    """What it shows, in a sentence."""
    digit, side, motion = (view.labels[name] for name in ('digit', 'side', 'motion'))
    return f'A {DIGITS[int(digit)]} and a ball go round {motion}, the ball {PLACES[str(side)]}.'


def ask(kind: str, view: View, seed: int = 0) -> Question:
    """A question of a kind about a view, in words drawn from clip, window and seed: the reverse is
    asked the same.

    Raises:
      ConfigError: another kind.
    """
    if kind not in MIXTURE:
        raise ConfigError(f'kind of question {kind!r}: {allowed(kind, MIXTURE)}')
    place = synthetic.SPLITS.index(view.split), view.clip, view.start
    rng = np.random.default_rng([VERSION, seed, list(MIXTURE).index(kind), *place])
    labels = view.labels
    motion, side = str(labels['motion']), str(labels['side'])

    def one_of(texts: tuple[str, ...]) -> str:
        return texts[rng.integers(len(texts))]

    def letters(texts: tuple[str, ...], options: tuple[str, ...], right: str) -> Question:
        options = [options[i] for i in rng.permutation(len(options))]
        listed = ''.join(f'\n{letter}. {o}' for letter, o in zip(LETTERS, options))
        choices = tuple(LETTERS[: len(options)])
        said = choices[options.index(right)]
        return Question(kind, f'{one_of(texts)}{listed}\n{LETTER}', said, choices)

    if kind == 'motion':
        return Question(kind, one_of(OPEN), motion, MOTIONS)
    if kind == 'motion_letter':
        return letters(OPEN, MOTIONS, motion)
    if kind == 'motion_yes_no':
        asked = MOTIONS[rng.integers(2)]
        said = 'yes' if asked == motion else 'no'
        return Question(kind, f'Do they go round {asked}? Answer yes or no.', said, ('yes', 'no'))
    if kind == 'side':
        return Question(kind, one_of(WHERE), PLACES[side], tuple(PLACES.values()))
    if kind == 'side_letter':
        return letters(WHERE, tuple(PLACES.values()), PLACES[side])
    if kind == 'digit':
        return Question(kind, one_of(WHAT), DIGITS[int(labels['digit'])], DIGITS)
    return Question(kind, one_of(DESCRIBE), description(view))


def draw(
    split: str, clips: int, count: int, mixture: Mapping[str, float] = MIXTURE, seed: int = 0
) -> Iterator[tuple[View, Question]]:
    """Questions about views of the first clips, each view in turn.

    Args:
      split: train or test.
      clips: how many.
      count: questions.
      mixture: kind -> share of the questions.
      seed: of kinds and words.
    """
    seen = views(split, clips)
    rng = np.random.default_rng([VERSION, seed, len(seen)])
    kinds, shares = list(mixture), np.asarray(list(mixture.values()), float)
    for number in range(count):
        epoch, place = divmod(number, len(seen))
        if not place:
            order = rng.permutation(len(seen))
        view = seen[order[place]]
        kind = kinds[rng.choice(len(kinds), p=shares / shares.sum())]
        yield view, ask(kind, view, hash_of(seed, epoch) % 2**32)


def write(
    path: str | Path, folder: str | Path, clips: int, count: int,
    mixture: Mapping[str, float] = MIXTURE, seed: int = 0, split: str = 'train', told: bool = False,
) -> Path:  # fmt: skip
    """Writes what `draw` gives of a split, a conversation a line in PLM's form.

    Args:
      path: of the file.
      folder: of the self-made set, see `synthetic.ensure`; paths in the file are relative to it.
      clips, count, mixture, seed, split: as of `draw`.
      told: what a video shows stands before the question, in words, and there is no video: what a
        language model knows that has learnt to read.
    """
    path, folder = Path(path), Path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w', encoding='utf-8') as file:
        for view, question in draw(split, clips, count, mixture, seed):
            media, before = view.media(folder), f'{description(view)}\n' if told else ''
            turns = (('human', before + question.text), ('assistant', question.said))
            row = {
                'video': str(Path(media.path).relative_to(folder)),
                'start': media.start,
                'end': media.end,
                'backwards': media.backwards,
            }
            row = {} if told else row
            row['kind'] = question.kind
            row['conversations'] = [{'from': who, 'value': said} for who, said in turns]
            file.write(json.dumps(row) + '\n')
    return path


def items(
    split: str, folder: str | Path, clips: int, kinds: tuple[str, ...] = (*PAIRED, 'side', 'digit')
) -> list[Item]:
    """Questions with choices about the middle window of each clip: of `PAIRED` kinds about it and
    its reverse, which are a group.
    """
    rows = []
    for kind in kinds:
        for clip in range(clips):
            forwards = View(split, clip, (FRAMES - WINDOW) // 2)
            pair = (forwards, dataclasses.replace(forwards, backwards=True))
            for view in pair if kind in PAIRED else pair[:1]:
                question = ask(kind, view)
                rows.append(
                    Item(
                        id=f'{kind} {split} {clip}{" backwards" * view.backwards}',
                        media=view.media(Path(folder)),
                        question=question.text,
                        choices=question.choices,
                        answer=question.choices.index(question.said),
                        kinds=(kind,),
                        group=f'{kind} {clip}' if kind in PAIRED else '',
                    )
                )
    return rows


@functools.cache
def tokenizer(family: str = 'llama3') -> Tokenizer:
    """A byte-level BPE of VOCABULARY tokens, trained on these questions and answers.

    Raises ConfigError: the library tokenizers is not installed.
    """
    parts = library()
    made = parts.Tokenizer(parts.models.BPE())
    made.pre_tokenizer = parts.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = parts.decoders.ByteLevel()
    trainer = parts.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=['<|endoftext|>', *TEMPLATES[family].special],
        initial_alphabet=parts.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = [TEMPLATES[family].system, 'system\nuser\nassistant\n']
    for _, question in draw('train', 80, 2000):
        words += [question.text, question.said]
    made.train_from_iterator(words, trainer)
    return Tokenizer(made)
