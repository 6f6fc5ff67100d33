"""A study: does a pretrained encoder help to answer when clips are few?

Self-made videos, questions whose answers need content, place and motion, and for motion a pair of
views of the very same frames, forwards and backwards, with the same question. A small language
model learns to read: what is to be seen, told in words, and questions about it. Then a projector
captions, then both learn all questions; with the encoder of the main job, and with one of random
weights. (reference: video_qa §4)
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import html
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax import build, page
from jepa_jax.config import MixtureConfig, QuestionsConfig
from jepa_jax.config.conversations import SELF_MADE
from jepa_jax.config.questions import visual_tokens
from jepa_jax.config.questions_study import QuestionsStudyConfig, counts
from jepa_jax.data import synthetic
from jepa_jax.errors import ConfigError
from jepa_jax.evals import qa, qa_scores
from jepa_jax.language import packing
from jepa_jax.language import questions as self_made
from jepa_jax.language.chat import Media, Turn, encode
from jepa_jax.language.items import Answer, Item
from jepa_jax.language.sight import Clips
from jepa_jax.studies import Stage
from jepa_jax.weights import zoo
from jepa_jax.weights.language import name_of
from jepa_jax.workdir import lock, write_json

ENCODERS = ('trained', 'random')
SEEN, BLIND, SHUFFLED, ONE = CONDITIONS = qa.SEEN, qa.BLIND, qa.SHUFFLED, qa.ONE
FILE = 'report.json'
SINGLE = 'side', 'digit'  # kinds of questions that are told one by one
KINDS = (*self_made.PAIRED, 'side', 'digit')
ROWS = 96  # scored together
SHOWN = 10  # questions on the page

log = logging.getLogger(__name__)


def check(config: QuestionsStudyConfig, folder: Path) -> None:
    """Refuses what cannot work."""
    del folder
    if config.encoder_from and not Path(config.encoder_from).exists():
        raise ConfigError(f'encoder_from = {config.encoder_from!r}: no such run')


def stages(config: QuestionsStudyConfig, folder: Path) -> list[Stage]:
    """The encoder, the questions, and for each seed the words, then for each encoder and number of
    clips the captions and all questions."""
    encoder = Path(config.encoder_from or folder / 'encoder').absolute()
    steps = []
    if not config.encoder_from:
        pretrain = dataclasses.replace(config.pretrain, seed=config.seed)
        steps.append(Stage('encoder', encoder, pretrain))
    data = folder / 'questions'
    steps.append(Stage('questions', data, make=functools.partial(_questions, config)))
    for seed in range(config.seeds):
        words = _run(config, data / 'words.jsonl', 'random', seed)
        words.optim.steps, words.optim.lr = config.words_steps, config.words_lr
        place = folder / f'words_{seed}'
        steps.append(Stage(f'words, seed {seed}', place, words))
        for which in ENCODERS:
            source = str(encoder) if which == 'trained' else 'random'
            for clips in counts(config.clips):
                name = f'{which}_{clips}_{seed}'
                captions = _run(config, data / f'captions_{clips}.jsonl', source, seed)
                captions.language.trains = 'nothing'
                once = len(self_made.views('train', clips)) / captions.optim.batch  # steps
                captions.optim.steps = max(config.align_steps, math.ceil(config.align_times * once))
                captions.optim.lr = config.align_lr
                captions.language.path = str(place)
                steps.append(Stage(f'captions, {name}', folder / f'captions_{name}', captions))
                every = _run(config, data / f'all_{clips}.jsonl', source, seed)
                every.checkpoints.init_from = str(folder / f'captions_{name}')
                every.optim.steps = max(every.optim.steps, math.ceil(config.ask_times * once))
                every.heldout = str(data / 'held.jsonl')
                steps.append(Stage(f'questions, {name}', folder / name, every))
    return steps


def _run(config: QuestionsStudyConfig, path: Path, encoder: str, seed: int) -> QuestionsConfig:
    c = copy.deepcopy(config.answer)
    c.name, c.seed, c.encoder_from = path.stem, config.seed + seed, encoder
    c.encoder = copy.deepcopy(config.pretrain.encoder)
    c.features = str(path.parent.parent / 'features')
    c.data.mixture = [MixtureConfig(str(path))]
    c.language.path, c.language.tokenizer = 'random', SELF_MADE
    return c


def _questions(config: QuestionsStudyConfig, folder: Path) -> None:
    """Writes conversations: told in words, of captions alone, of all kinds."""
    videos = _videos(config)
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / 'videos'
    if not link.exists():
        link.symlink_to(videos / 'videos')
    for clips in counts(config.clips):
        self_made.write(folder / f'all_{clips}.jsonl', videos, clips, config.questions)
        captions = {'caption': 1.0}
        path = folder / f'captions_{clips}.jsonl'
        self_made.write(path, videos, clips, min(config.questions, 6 * clips), captions)
    self_made.write(folder / 'held.jsonl', videos, 80, 160, split='test')
    most = max(counts(config.clips))
    self_made.write(folder / 'words.jsonl', videos, most, config.questions, told=True)


def _videos(config: QuestionsStudyConfig) -> Path:
    """The self-made set that is large enough."""
    few = synthetic.COUNTS['synthetic_few']
    enough = max(counts(config.clips)) <= few['train'] and config.test_clips <= few['test']
    return synthetic.ensure('synthetic_few' if enough else 'synthetic').parent


# --- Scoring --------------------------------------------------------------------------------------


def views(config: QuestionsConfig, item: Item, seed: int) -> dict[str, np.ndarray]:
    """Clips of an item's video by condition; blind has none."""
    clip = Clips(config.clips)(item.media)[0]
    middle = clip[len(clip) // 2]
    return {
        SEEN: clip,
        SHUFFLED: qa.shuffled(clip, item.media, seed),
        ONE: np.repeat(middle[None], len(clip), axis=0),
    }


def likelihoods(
    config: QuestionsConfig, folder: Path, items: list[Item], clips: dict[Media, dict[str, Any]]
) -> dict[str, dict[str, tuple[float, ...]]]:
    """Condition -> item -> logarithm of the likelihood of each choice as a whole answer."""
    objective = build.questions(dataclasses.replace(config, features=''))
    stored = zoo.find(folder)
    params = {'projector': stored.params('projector'), 'decoder': stored.params(name_of(stored))}
    params = jax.tree.map(jnp.asarray, params)
    encoder = jax.tree.map(jnp.asarray, stored.params('target'))
    tokenizer = self_made.tokenizer()
    seen = objective.net('encoder')
    encode_clips = jax.jit(lambda clips: seen(encoder, clips))
    stored_objective = build.questions(dataclasses.replace(config, features='kept'))
    lost = jax.jit(lambda batch: stored_objective.lost(params, {}, batch).sum(1))
    out: dict[str, dict[str, tuple[float, ...]]] = {}
    for condition in CONDITIONS:
        known: dict[Media, np.ndarray] = {}
        if condition != BLIND:
            media = list(clips)
            for start in range(0, len(media), ROWS):
                part = media[start : start + ROWS]
                frames = np.stack([clips[m][condition] for m in part])
                full = np.zeros((ROWS, *frames.shape[1:]), np.uint8)
                full[: len(part)] = frames
                known |= dict(zip(part, np.asarray(encode_clips(full))))
        values: list[float] = []
        for rows in _batches(config, tokenizer, items, known):
            count = rows.pop('count')
            values += (-np.asarray(lost(rows)))[:count].tolist()
        out[condition], place = {}, 0
        for item in items:
            n = len(item.choices)
            out[condition][item.id] = tuple(values[place : place + n])
            place += n
    return out


def _batches(config: QuestionsConfig, tokenizer, items: list[Item], known) -> Iterator[dict]:
    """Rows of one choice each, in the items' order, ROWS at a time."""
    tokens, shape = visual_tokens(config), None
    if known:
        shape = next(iter(known.values())).shape
    else:
        grid = build.questions(dataclasses.replace(config, features='kept')).projector_config
        shape = int(np.prod(grid.grid)), grid.encoder_width
    rows: list[dict[str, np.ndarray]] = []

    def batch() -> dict:
        count = len(rows)
        full = rows + [rows[0]] * (ROWS - count)
        joined = jax.tree.map(lambda *leaves: np.stack(leaves), *full)
        rows.clear()
        return joined | {'count': count}

    for item in items:
        for choice in item.choices:
            parts = (item.media, item.question) if known else (item.question,)
            turns = [Turn('user', parts), Turn('assistant', (choice,))]
            encoded = encode(turns, tokenizer, lambda media: tokens)
            row = packing.pack([encoded], config.data.length, tokenizer.pad).arrays
            table = known[item.media] if known else np.zeros(shape, np.float32)
            rows.append(row | {'table': table[None]})
            if len(rows) == ROWS:
                yield batch()
    if rows:
        yield batch()


# --- The report -----------------------------------------------------------------------------------


def report(config: QuestionsStudyConfig, folder: Path) -> None:
    """Scores every run that is not scored yet, and writes report.json and report.html."""
    with lock(folder) as place:
        _report(config, place)


def _report(config: QuestionsStudyConfig, folder: Path) -> None:
    path = folder / FILE
    stored = json.loads(path.read_text()) if path.exists() else {}
    table: dict[str, Any] = stored.get('qa', {})
    videos = _videos(config)
    items = self_made.items('test', videos, config.test_clips, KINDS)
    shape = _run(config, folder / 'questions/all.jsonl', 'random', 0)  # as all runs have it
    clips = {item.media: views(shape, item, config.seed) for item in items}
    runs = [
        (which, n, seed)
        for n in counts(config.clips)
        for which in ENCODERS
        for seed in range(config.seeds)
    ]
    for which, n, seed in runs:
        name = f'{which}_{n}_{seed}'
        if name in table:
            continue
        said = likelihoods(shape, folder / name, items, clips)
        row: dict[str, Any] = {}
        for condition, each in said.items():
            answers = {key: Answer('', values) for key, values in each.items()}
            scored = qa_scores.score(items, answers)
            figures = qa_scores.figures(scored, 'pairs', config.bootstrap, config.seed)
            row[condition] = {
                label: dataclasses.asdict(figure)
                for label, figure in figures.items()
                if label.startswith(qa_scores.CHOICE)
            }
        row['said'] = {item.id: said[SEEN][item.id] for item in _shown(items, said[SEEN])}
        table[name] = row
        write_json(path, {**stored, 'qa': table})
        log.info('%s: %s', name, _words(row))
    sentences = [f'{name}: {_words(row)}' for name, row in table.items()]
    gates = _gates(config, table)
    sentences += [f'{"holds" if held else "does not hold"}: {words}' for words, held in gates]
    verdict = 'passed' if all(held for _, held in gates) else 'failed'
    write_json(
        path,
        {
            'steps': sum(s.config.optim.steps for s in stages(config, folder) if s.config),
            'verdict': verdict,
            'sentences': sentences,
            'qa': table,
            'gates': [{'name': words, 'passed': held} for words, held in gates],
        },
    )  # fmt: skip
    page.write(folder, config.name, _page(config, table, items, clips, gates))
    for line in sentences:
        log.info('%s', line)


def _shown(items: list[Item], said: dict[str, tuple[float, ...]]) -> list[Item]:
    """Some questions for the page: as many wrong answers as there are, up to a half."""
    spread = items[:: max(1, len(items) // 200)]
    wrong = [i for i in spread if int(np.argmax(said[i.id])) != i.answer][: SHOWN // 2]
    right = [i for i in spread if int(np.argmax(said[i.id])) == i.answer]
    step = max(1, len(right) // max(1, SHOWN - len(wrong)))
    return wrong + right[::step][: SHOWN - len(wrong)]


def _pairs(row: dict[str, Any], condition: str, kind: str = 'motion_letter') -> dict[str, float]:
    return row[condition][f'choice, pairs, {kind}']


def _cells(row: dict[str, Any]) -> list[str]:
    """Pairs of letters about motion under every condition, and questions of other kinds."""
    both = [_pairs(row, name) for name in (SEEN, *CONDITIONS[1:])]
    return [_figure(f) for f in (*both, *(row[SEEN][f'choice, {kind}'] for kind in SINGLE))]


def _words(row: dict[str, Any]) -> str:
    names = 'pairs of letters about motion', *CONDITIONS[1:], *SINGLE
    return ', '.join(f'{name} {cell}' for name, cell in zip(names, _cells(row)))


def _figure(f: dict[str, float]) -> str:
    return f'{f["value"]:.3f} ({f["low"]:.3f} to {f["high"]:.3f})'


def _gates(config: QuestionsStudyConfig, table: dict[str, Any]) -> list[tuple[str, bool]]:
    """What was to hold, said before it was measured: words, and whether it does for every seed."""
    numbers, seeds = counts(config.clips), range(config.seeds)
    gates = []

    def every(test) -> bool:
        return all(test(seed) for seed in seeds)

    def pairs(which: str, n: int, seed: int, condition: str = SEEN) -> dict[str, float]:
        return _pairs(table[f'{which}_{n}_{seed}'], condition)

    for n in numbers:
        if n in (40, 80):
            gates.append((
                f'{n} clips: the trained encoder lies wholly above the random one',
                every(lambda s, n=n: pairs('trained', n, s)['low'] > pairs('random', n, s)['high']),
            ))  # fmt: skip
    most = max(numbers)

    def last(condition: str, test) -> bool:
        return every(lambda s: test(pairs('trained', most, s, condition)['value']))

    gates += [
        (f'{most} clips: trained above .95', last(SEEN, lambda v: v > 0.95)),
        ('blind pairs at 0', last(BLIND, lambda v: v == 0)),
        ('shuffled below .3', last(SHUFFLED, lambda v: v < 0.3)),
    ]
    return gates


def _page(
    config: QuestionsStudyConfig,
    table: dict[str, Any],
    items: list[Item],
    clips: dict[str, dict[str, np.ndarray]],
    gates: list[tuple[str, bool]],
) -> list[str]:
    """Figures, and some questions with their pictures and answers, right and wrong."""
    most = max(counts(config.clips))
    said = table[f'trained_{most}_0']['said']
    rows = [
        (
            name.rpartition('_')[0].replace('_', ', ') + ' clips',
            name.rpartition('_')[2],
            *(cell.replace(' to ', '\u00a0to\u00a0') for cell in _cells(row)),  # in one line
        )
        for name, row in table.items()
    ]
    head = 'encoder', 'seed', 'pairs', *CONDITIONS[1:], *(f'{kind}, single' for kind in SINGLE)
    parts = [
        page.heading(config.name, 1),
        page.paragraph(
            'Answers by letter, the likeliest of those that are offered. Pairs: both questions of '
            'a pair about motion are right, with 95 % intervals over pairs; then the same where '
            'something else was shown in place of the clip.'
        ),
        page.table(head, rows),
        page.heading('What was to hold'),
        page.table(('', ''), [(words, 'holds' if held else 'does not') for words, held in gates]),
        page.heading('Some questions'),
        page.paragraph(f'As answered by the trained encoder after {most} clips.'),
    ]
    for item in (each for each in items if each.id in said):
        frames = np.concatenate(list(clips[item.media][SEEN]), axis=1)
        best = int(np.argmax(said[item.id]))
        mark = 'right' if best == item.answer else f'wrong, it is {item.choices[item.answer]}'
        words = f'{item.question}\n{item.choices[best]} ({mark})'
        parts += [
            page.pixels(frames.repeat(3, axis=0).repeat(3, axis=1), 'frames of the clip'),
            f'<pre>{html.escape(words)}</pre>',
        ]
    return parts
