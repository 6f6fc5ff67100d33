"""Is what a model says about videos right, and would it have said so without them?

The model is asked each question about its video, then blind, about the same frames in another
order, and about the middle frame alone; what it says is kept in `answers.jsonl`, from which figures
can be made again without it. A video that cannot be read is counted and its questions are not
asked.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from jepa_jax import files
from jepa_jax.answers import Fixed
from jepa_jax.checkpoint import hash_arrays
from jepa_jax.config.qa import QAConfig
from jepa_jax.data import decode
from jepa_jax.data.clips import Timing, by_time
from jepa_jax.data.windows import open_input
from jepa_jax.errors import BadFile, ConfigError, InputError
from jepa_jax.evals import Figure, Results, examples, qa_page, qa_scores, qa_sets
from jepa_jax.language.chat import Media
from jepa_jax.language.items import Answer, Item

log = logging.getLogger(__name__)

FILE = 'answers.jsonl'
EARLIER = {'compute_dtype': 'float32'}  # what first lines did not say before it could be another
SEEN, BLIND, SHUFFLED, ONE = 'video', 'blind', 'shuffled frames', 'one frame'
FOLDER_FPS = 3.0  # of folders of frames (MVBench's episodic reasoning)


class Answerer(Protocol):
    """Whatever answers questions."""

    hash: str  # of its weights
    frames: int  # that it wants of a video

    def answer(self, video: np.ndarray | None, question: str, choices: Sequence[str]) -> Answer:
        """What it says.

        Args:
          video: [T, H, W, 3] uint8, one object, not to be written to, for all questions about it;
            None: no video.
          question: the whole prompt.
          choices: whose likelihoods as answers are asked for; (): none are.

        Raises:
          InputError: the question cannot be put.
        """


class Asked:
    """A model of ours that was trained on questions, as an Answerer."""

    def __init__(self, model, tokens: int) -> None:
        """tokens: of an answer, at most. Raises ConvertError: it was trained on something else."""
        self._model, self._tokens = model.answerer(), tokens
        self.frames = self._model.look.config.frames
        nets = {name: hash_arrays(net.tree) for name, net in model.weights.nets.items()}
        if self._model.system:
            nets['system'] = self._model.system
        self.hash = examples.hash_of(nets)
        self._last: Fixed | None = None

    def answer(self, video: np.ndarray | None, question: str, choices: Sequence[str]) -> Answer:
        if video is not None and (self._last is None or self._last.frames is not video):
            self._last = Fixed(video)
        shown = None if video is None else self._last
        said = self._model.ask(shown, question, choices=choices, most=self._tokens)
        return Answer(said.text, said.likelihoods)


def run(model, config: QAConfig, workdir: Path) -> Results:
    """Asks, judges, and keeps the answers.

    Raises:
      ConvertError: a model that was not trained on questions.
      ConfigError: files that cannot be used, or answers of another model.
    """
    answerer = Asked(model, config.tokens)
    result = qa_sets.read(config.data)
    items = drawn(result.items, config.data.most, config.seed)
    count, path = config.data.frames or answerer.frames, workdir / FILE
    # by paths within the folder; answers of before say those that were typed
    own, older = digest(items, result.videos), digest(items)
    about = {
        'model': answerer.hash,
        'items': older if _begun(path) and _items(path) == older else own,
        'frames': count,
        'tokens': config.tokens,
        'compute_dtype': config.compute_dtype,
        'likelihoods': config.likelihoods,
        'seed': config.seed,
    }
    answers, bad = ask(answerer, items, config, count, path, about)
    for line in (*result.problems, *bad.values()):
        log.warning('%s', line)
    results, scored = report(items, answers, config, result, bad)
    qa_page.write(
        workdir, qa_sets.SETS[config.data.set].title, results, scored, answers,
        lambda item: look(item.media, count), config.seed,
    )  # fmt: skip
    return results


def scored_again(config: QAConfig, path: Path) -> Results:
    """Figures of the answers that a file holds.

    Raises:
      BadFile: there is no such file, or it is damaged.
      ConfigError: its answers are to other questions than the config's.
    """
    answers = load(path)
    result = qa_sets.read(config.data)
    items = drawn(result.items, config.data.most, config.seed)
    if _items(path) not in (digest(items, result.videos), digest(items)):
        raise ConfigError(f'{path}: answers to other questions than those of {config.data.path}')
    return report(items, answers, config, result, {})[0]


def contents(config: QAConfig) -> str:
    """A hash of the questions and of the videos' sizes and times."""
    items = qa_sets.read(config.data).items
    paths = sorted({item.media.path for item in items})
    return examples.hash_of([digest(items), *([p, examples.state_of(p)] for p in paths)])


def digest(items: Sequence[Item], videos: str = '') -> str:
    """A hash of questions; videos: the folder that paths are relative to, however it is called;
    '': paths are hashed as they are."""
    rows = [dataclasses.asdict(item) for item in items]
    for row in rows if videos else ():
        row['media']['path'] = os.path.relpath(row['media']['path'], videos)
    return examples.hash_of(rows)


def drawn(items: Sequence[Item], most: int, seed: int) -> list[Item]:
    """Items of so many groups, drawn at random; of all if 0."""
    names = list(qa_scores.members(items))
    if not most or most >= len(names):
        return list(items)
    order = np.random.default_rng(seed).permutation(len(names))
    kept = {names[i] for i in order[:most]}
    return [item for item in items if (item.group or item.id) in kept]


# --- Frames ---------------------------------------------------------------------------------------


def segments(
    frames: int, fps: float, start: float, end: float, count: int, lowest: int = 0
) -> np.ndarray:
    """Numbers from 0 of `count` frames, from the middles of as many equal stretches between start
    and end (seconds; end 0: the last frame), as MVBench takes them. (reference: video_qa.md §2.4)

    lowest: number of the frame of second 0: it counts files of a folder from 1.

    Raises InputError: the video ends before the start.
    """
    first = max(0, round(start * fps) - lowest)
    last = min(max(0, round(end * fps) - lowest), frames - 1) if end else frames - 1
    if first > last:
        raise InputError(f'begins at {start:g} s, the video ends at {frames / fps:.2f} s')
    if end and round((end - start) * fps) == count:
        return np.minimum(first + np.arange(count), frames - 1)  # each of them once
    size = (last - first) / count
    return np.array([min(int(first + size / 2 + np.round(size * i)), last) for i in range(count)])


def look(media: Media, count: int) -> np.ndarray:
    """[count, H, W, 3] uint8.

    Raises:
      BadFile: they cannot be read.
    """

    def choose(timing: Timing, lowest: int = 0) -> np.ndarray:
        when = media.start, media.end, count, lowest
        try:
            numbers = segments(timing.frames, timing.fps, *when)
        except InputError as error:
            raise BadFile(media.path, 'short', str(error)) from error
        return by_time(numbers, timing)

    if os.path.isdir(media.path):
        opened = open_input(media.path, FOLDER_FPS)
        n = len(opened.numbers)
        frames = opened.read(opened.numbers[choose(Timing(n, FOLDER_FPS, n / FOLDER_FPS), 1)])
    else:
        frames = decode.read_frames(media.path, choose)
    return frames[::-1] if media.backwards else frames


def shuffled(frames: np.ndarray, media: Media, seed: int) -> np.ndarray:
    """The frames in another order, always the same for a video, and for it backwards."""
    key = [seed, *media.path.encode('utf-8', 'surrogateescape')]
    order = np.random.default_rng(key).permutation(len(frames))
    if len(frames) > 2 and (order == np.arange(len(frames))).all():
        order = np.roll(order, 1)
    return frames[order]


# --- Asking ---------------------------------------------------------------------------------------


def conditions(config: QAConfig) -> list[str]:
    """The ways in which each question is asked."""
    also = {BLIND: config.blind, SHUFFLED: config.shuffled, ONE: config.one_frame}
    return [SEEN, *(name for name, asked in also.items() if asked)]


def ask(
    answerer: Answerer, items: Sequence[Item], config: QAConfig, count: int, path: Path,
    about: dict,
) -> tuple[dict[str, dict[str, Answer]], dict[str, str]]:  # fmt: skip
    """Answers by condition and item, and what is wrong with videos that cannot be read, by path,
    and with questions that cannot be put, by id.

    Answers are appended to the file as they come, and those that are there are not asked for again.

    Args:
      answerer: the model.
      items: the questions.
      config: which conditions there are.
      count: frames of a video.
      path: of the file.
      about: what its answers depend on, its first line.

    Raises:
      ConfigError: the file has answers of another model or to other questions.
    """
    answers = {name: {} for name in conditions(config)}
    bad: dict[str, str] = {}
    if _begun(path):
        for name, known in load(path, about).items():
            answers.get(name, {}).update(known)
        os.truncate(path, path.read_bytes().rfind(b'\n') + 1)  # a line that was not finished
    else:
        path.write_text(json.dumps({'about': about}) + '\n')
    by_media: dict[Media, list[Item]] = defaultdict(list)
    for item in items:
        by_media[item.media].append(item)
    bar = tqdm(by_media.items(), 'videos', unit='video', disable=None)
    with open(path, 'a', encoding='utf-8') as file:
        for media, own in bar:
            open_ones = [
                (name, item) for name in answers for item in own if item.id not in answers[name]
            ]
            if not open_ones:
                continue
            try:
                frames = look(media, count)
            except BadFile as error:
                bad[media.path] = str(error)
                continue
            shown = {SEEN: frames, SHUFFLED: shuffled(frames, media, config.seed)}
            shown[ONE] = np.repeat(frames[len(frames) // 2][None], len(frames), axis=0)
            for each in shown.values():
                each.flags.writeable = False
            for name, item in open_ones:
                choices = item.choices if config.likelihoods else ()
                try:
                    said = answerer.answer(shown.get(name), item.question, choices)
                except InputError as error:
                    bad[item.id] = f'{item.id}: {error}'
                    continue
                answers[name][item.id] = said
                row = {'id': item.id, 'condition': name, 'text': said.text}
                row['likelihoods'] = [float(x) for x in said.likelihoods]
                file.write(json.dumps(row) + '\n')
            file.flush()
    return answers, bad


def load(path: Path, about: dict | None = None) -> dict[str, dict[str, Answer]]:
    """The answers of a file, by condition and item; a last line that was not finished is passed
    over.

    Args:
      path: of the file.
      about: what they must depend on; None: anything.

    Raises:
      BadFile: there is no such file, or it is damaged.
      ConfigError: they are of another model or to other questions.
    """
    answers: dict[str, dict[str, Answer]] = defaultdict(dict)
    known = None
    for number, row in _lines(path):
        if number == 1:
            known = row.get('about')
            if not isinstance(known, dict):
                raise BadFile(path, 'not_text', 'line 1 does not say what the answers are of')
            if other := [key for key in about or {} if (EARLIER | known).get(key) != about[key]]:
                raise ConfigError(
                    f'{path}: answers with another {" and ".join(other)}: name another --workdir'
                )
            continue
        text, likely = row.get('text'), row.get('likelihoods')
        numbers = isinstance(likely, list) and all(isinstance(x, int | float) for x in likely)
        if not isinstance(text, str) or not numbers:
            raise BadFile(path, 'not_text', f'line {number}: no text and likelihoods')
        answers[str(row.get('condition'))][str(row.get('id'))] = Answer(text, tuple(likely))
    if known is None:
        raise BadFile(path, 'not_text', 'no line in it is finished')
    return answers


def _begun(path: Path) -> bool:
    """Whether there is a file that has a whole line; one that was killed before has none."""
    return path.exists() and b'\n' in path.read_bytes()


def _items(path: Path) -> object:
    """The digest of the questions that a file answers."""
    about = next((row.get('about') for _, row in _lines(path)), None)
    return about.get('items') if isinstance(about, dict) else None


def _lines(path: Path) -> Iterator[tuple[int, dict]]:
    """Numbers and rows."""
    files.size(path)
    with open(path, 'rb') as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b'\n'):
                return
            row = files.json_line(path, number, line)
            if not isinstance(row, dict):
                raise BadFile(path, 'not_text', f'line {number}: no object')
            yield number, row


# --- Figures --------------------------------------------------------------------------------------


def report(
    items: Sequence[Item],
    answers: dict[str, dict[str, Answer]],
    config: QAConfig,
    result: qa_sets.Read,
    bad: dict[str, str],
) -> tuple[Results, qa_scores.Scored]:
    """Figures of the answers, and of the baselines on the same questions; and the verdicts.

    Raises:
      ConfigError: not a single question was answered.
    """
    bench = qa_sets.SETS[config.data.set]
    complete = [name for name in conditions(config) if name == SEEN or answers.get(name)]
    # a pair of which one video cannot be read says nothing
    asked = [
        item
        for group in qa_scores.members(items).values()
        if all(each.id in answers.get(name, {}) for each in group for name in complete)
        for item in group
    ]
    if not asked:
        first = next(iter(bad.values()), 'no answers')
        raise ConfigError(f'none of {len(items)} questions could be asked: {first}')
    scored = {name: qa_scores.score(asked, answers[name]) for name in complete}
    by_condition = {
        name: qa_scores.figures(each, bench.together, config.bootstrap, config.seed)
        for name, each in scored.items()
    }
    results = by_condition[SEEN]
    main = [n for c in scored[SEEN].columns for n in (f'{c}, {bench.together}', c) if n in results]
    baselines: dict[str, Figure] = {
        f'{name}: {each}': figures[name]
        for each, figures in by_condition.items()
        if each != SEEN
        for name in main
        if name in figures
    }
    baselines |= qa_scores.chance(asked, bench.together)
    empty = sum(not answers[SEEN][item.id].text.strip() for item in asked)
    sentences = [f'{bench.title}: {len(asked)} of {len(items)} questions', *result.notes]
    if len(asked) < len(items):
        sentences.append(
            f'{len(items) - len(asked)} questions are left out, with what they are paired with: '
            f'{len(bad)} videos cannot be read or questions put ({next(iter(bad.values()), "")})'
        )
    if result.problems:
        first = result.problems[0]
        sentences.append(f'{len(result.problems)} entries could not be used: {first} ...')
    if empty:
        sentences.append(f'{empty} answers are empty')
    if not scored[SEEN].items:
        sentences.append(f'the right answers are not public: no figures; {FILE} has what was said')
    sentences += bench.notes
    if bench.published:
        rows = ', '.join(f'{who} {value:g}' for who, value in bench.published.items())
        sentences.append(f'published, {bench.metric} in percent: {rows}')
    known = scored[SEEN]
    outcomes = {
        column: np.array([v.right for v in verdicts], float)
        for column, verdicts in known.columns.items()
        if known.items
    }
    sources = np.array([item.media.path for item in known.items])
    data = {
        'expected': len(items) + len(result.problems),
        'read': len(asked),
        'hash': digest(items, result.videos),
        'videos': len({item.media.path for item in asked}),
        'files': list(result.files),
        'left_out': dict(bad),
        'problems': list(result.problems),
        'published': bench.published,
    }
    return Results(results, baselines, data, tuple(sentences), outcomes, sources), known
