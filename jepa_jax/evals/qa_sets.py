"""Benchmarks of answers about videos: files to questions, how they are put, how they count.

Layouts and prompts are those of the releases and of lmms-eval (reference: video_qa.md §2); of two
whose instructions are long, TOMATO and CausalVQA, the wording is ours, and so is IntPhys 2's.
"""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from jepa_jax.config.qa import SETS as PARTS
from jepa_jax.config.qa import QuestionSetConfig
from jepa_jax.data import synthetic
from jepa_jax.data.labelled.records import json_of
from jepa_jax.errors import ConfigError, NoFile
from jepa_jax.evals.physics_sets import TYPE, table
from jepa_jax.evals.qa_files import (
    Read,
    among,
    letters,
    listed,
    number,
    one,
    pieces,
    rows_of,
    seconds,
    text,
    texts,
    video,
)  # fmt: skip
from jepa_jax.language import questions
from jepa_jax.language.chat import Media
from jepa_jax.language.items import HIDDEN, LETTERS, Item


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A set of questions."""

    title: str
    read: Callable[[QuestionSetConfig], Read]
    together: str = ''  # what groups of items are called: pairs, videos; '': they are not counted
    metric: str = 'accuracy'  # what `published` are of
    published: dict[str, float] = dataclasses.field(default_factory=dict)  # percent
    notes: tuple[str, ...] = ()  # sentences for every report


def read(data: QuestionSetConfig) -> Read:
    """The questions that a config names.

    Raises:
      ConfigError: files that are not there, or no question that can be used.
      BadFile: a file that cannot be read at all.
    """
    data = dataclasses.replace(data, part=data.part or PARTS[data.set][0])
    bench = SETS[data.set]
    result = bench.read(data).checked()
    if bench.together == 'pairs':
        _pairs(result)
    if not result.items:
        first = f': {result.problems[0]}' if result.problems else ''
        raise ConfigError(f'data.path = {data.path!r}: no question of {data.set} in it{first}')
    path = Path(data.path).expanduser()
    folder = path.parent if path.is_file() else path
    result.files = [os.path.relpath(file, folder) for file in result.files]
    return result


def _pairs(result: Read) -> None:
    """Leaves out questions of pairs whose other one is lacking."""
    groups = defaultdict(list)
    for item in result.items:
        groups[item.group].append(item)
    alone = {name for name, group in groups.items() if name and len(group) != 2}
    for name in sorted(alone):
        result.problems.append(f'{name}: {len(groups[name])} of 2 questions of the pair')
    result.items = [item for item in result.items if item.group not in alone]


def _places(data: QuestionSetConfig, below: str = '') -> tuple[Path, Path]:
    """The folder of the files, and that of the videos: `below` it if nothing else is said."""
    path = Path(data.path).expanduser()
    folder = path.parent if path.is_file() else path
    return path, Path(data.videos).expanduser() if data.videos else folder / below


# --- Perception Test ------------------------------------------------------------------------------


def _perceptiontest(data: QuestionSetConfig) -> Read:
    """`mc_question_valid.json` or `all_valid.json`: video -> metadata and mc_question; videos/;
    `cut_frame_mapping_valid.json` says before which frame a video is to be cut."""
    path, videos = _places(data, 'videos')
    file = one(path, [f'mc_question_{data.part}.json', f'all_{data.part}.json'], 'questions')
    known, result, cuts = json_of(file, dict), Read(videos=str(videos)), {}
    mapping = file.with_name(f'cut_frame_mapping_{data.part}.json')
    if mapping.is_file():
        cuts = json_of(mapping, dict)
        result.files.append(str(mapping))
    elif data.part != 'test':
        result.notes.append(f'videos are not cut: there is no {mapping.name} beside the questions')

    def make(place: str, row: dict) -> list[Item]:
        asked = row.get('mc_question')
        if not isinstance(asked, list):
            raise ValueError('no list mc_question')
        about, end = row.get('metadata') or {}, 0.0
        if place in cuts:
            rate = about.get('frame_rate') if isinstance(about, dict) else None
            if not isinstance(rate, int | float) or not 0 < rate < 1e4:
                raise ValueError(f'metadata.frame_rate is {rate!r:.80}: where is the cut?')
            end = number(cuts, place, 2**31) / rate
        media = Media('video', video(videos, f'{place}.mp4'), end=end)
        items = []
        for each in asked:
            options, question = texts(each, 'options', 3, 3), text(each, 'question')
            hidden = each.get('answer_id') is None
            items.append(
                Item(
                    id=f'{place} {text(each, "id")}',
                    media=media,
                    question=f'{question}\n{listed(options, "{letter}. {option}")}\n'
                    "Answer with the option's letter from the given choices directly.",
                    choices=letters(options),
                    answer=HIDDEN if hidden else number(each, 'answer_id', 3),
                    options=options,
                    kinds=tuple(str(each[k]) for k in ('area', 'reasoning') if each.get(k)),
                    rule='perceptiontest',
                )
            )
        return items

    result.take(file, known.items(), make)
    return result


# --- MVP (MVPBench) -------------------------------------------------------------------------------

MVP = (
    'human_object_interactions', 'robot_object_interactions', 'intuitive_physics',
    'temporal_reasoning',
)  # fmt: skip
# folders of videos, which may be links to where these sets lie
SOURCES = (
    'pt', 'ssv2', 'language_table', 'intphys', 'inflevel', 'grasp', 'clevrer', 'star', 'vinoground',
)  # fmt: skip


ANOTHER = 'data.path is the file of another'


def _mvp(data: QuestionSetConfig) -> Read:
    """Rows of the four subsets, `SUBSET/mini*.parquet` or `SUBSET_mini.jsonl` and the like, in one
    file or all pieces of it, `SUBSET/full-00000-of-00002.parquet`; videos lie as their publishers
    name them, a folder a source."""
    path, videos = _places(data, 'videos')
    result = Read(videos=str(videos))
    for subset in MVP:
        patterns = [
            f'{subset}{between}{data.part}*{suffix}'
            for suffix in ('.parquet', '.jsonl', '.json', '.csv')
            for between in ('/', '_', '-')
        ]
        try:
            if path.is_file() and subset not in f'{path.parent.name}/{path.name}':
                raise NoFile(ANOTHER)
            parts = pieces(path, patterns, 'rows of the subset')
        except NoFile as error:
            result.notes.append(f'{subset} is not in the figures: {error}')
            continue

        def make(place: str, row: dict, subset: str = subset) -> list[Item]:
            name, options = text(row, 'video_id'), texts(row, 'candidates', 2, 2)
            source, _, rest = text(row, 'video_path').lstrip('/').partition('/')
            known = source in SOURCES and rest
            place = video(videos / source, rest) if known else video(videos, f'{source}/{rest}')
            return [
                Item(
                    id=f'{subset} {name}',
                    media=Media('video', place),
                    question=f'Question: {text(row, "question")}\nOption:\n'
                    f'{listed(options, "({letter}) {option}")} \nEven when unsure, always answer '
                    "with a single letter from A or B, format exactly like: 'Answer: A/B'.",
                    choices=letters(options),
                    answer=among(options, row.get('answer')),
                    options=options,
                    kinds=(subset,),
                    group=f'{subset} {name.rpartition("_")[0]}',
                    subset=subset,
                    rule='mvp',
                )
            ]

        for file in parts:
            result.take(file, rows_of(file), make)
    return result


# --- TempCompass ----------------------------------------------------------------------------------


def _tempcompass(data: QuestionSetConfig) -> Read:
    """`questions/TASK.json`: video -> aspect -> questions with their answers; `videos/ID.mp4`."""
    path, videos = _places(data, 'videos')
    task = data.part
    file = one(path, [f'questions/{task}.json', f'{task}.json'], 'questions of the task')
    rule = {
        'multi-choice': 'tempcompass_choice',
        'yes_no': 'tempcompass_yes_no',
        'caption_matching': 'tempcompass_matching',
    }[task]
    ends = (
        'Please answer yes or no:' if task == 'yes_no' else 'Please directly give the best option:'
    )

    def make(place: str, row: dict) -> list[Item]:
        media, items = Media('video', video(videos, f'{place}.mp4')), []
        for aspect, asked in row.items():
            if not isinstance(asked, list):
                raise ValueError(f'{aspect}: no list of questions')
            for index, each in enumerate(asked):
                if not isinstance(each, dict):
                    raise ValueError(f'{aspect} {index}: no object')
                question, answer = text(each, 'question'), text(each, 'answer')
                choices, options = _lines(task, question)
                items.append(
                    Item(
                        id=f'{place} {aspect} {index}',
                        media=media,
                        question=f'{question}\n{ends}',
                        choices=choices,
                        answer=among(options or choices, answer),
                        options=options,
                        kinds=(aspect,),
                        rule=rule,
                    )
                )
        return items

    result = Read(videos=str(videos))
    result.take(file, json_of(file, dict).items(), make)
    return result


def _lines(task: str, question: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What may be answered, and the options' lines of a question. Raises ValueError."""
    if task == 'yes_no':
        return ('yes', 'no'), ()
    lines = tuple(line for line in question.split('\n')[1:] if line.strip())
    mark = '. ' if task == 'multi-choice' else ': '
    names = [line.split(mark)[0].split(' ')[-1] for line in lines if mark in line]
    if len(names) < max(2, len(lines)):
        raise ValueError(f'{question!r:.80}: options must be lines, such as A{mark}this')
    return tuple(names), lines


# --- TemporalBench --------------------------------------------------------------------------------

CATEGORIES = (
    'order', 'frequency', 'type', 'magnitude', 'direction', 'effector', 'others', 'event order',
)  # fmt: skip


def _temporalbench(data: QuestionSetConfig) -> Read:
    """`temporalbench_short_qa.json`: a list whose questions hold both options and the instruction;
    paths of videos are relative."""
    path, videos = _places(data)
    file = one(path, [f'temporalbench_{data.part}.json'], 'questions')

    def make(place: str, row: dict) -> list[Item]:
        name, kinds = text(row, 'video_name'), []
        if row.get('dataset'):
            kinds.append(str(row['dataset']))
        if data.part == 'short_qa' and row.get('category') is not None:
            kind = row['category']
            known = str(kind).isdigit() and 1 <= int(kind) <= len(CATEGORIES)
            kinds.append(CATEGORIES[int(kind) - 1] if known else str(kind))
        return [
            Item(
                id=text(row, 'idx'),
                media=Media('video', video(videos, name)),
                question=text(row, 'question'),
                choices=('A', 'B'),
                answer=among('AB', text(row, 'GT').strip().upper(), 'GT'),
                kinds=tuple(kinds),
                group=name,
                rule='temporalbench',
            )
        ]

    result = Read(videos=str(videos))
    result.take(file, rows_of(file), make)
    return result


# --- TOMATO ---------------------------------------------------------------------------------------

TOMATO = ('count', 'direction', 'rotation', 'shape&trend', 'velocity&frequency', 'visual_cues')


def _tomato(data: QuestionSetConfig) -> Read:
    """`data/TYPE.json`: id -> question, options, index of the answer; `videos/KIND/KEY.mp4`."""
    path, videos = _places(data, 'videos')
    result = Read(videos=str(videos))
    for kind in TOMATO:
        if path.is_file() and path.stem != kind:
            result.notes.append(f'{kind} is not in the figures: {ANOTHER}')
            continue
        file = one(path, [f'data/{kind}.json', f'{kind}.json'], 'questions')

        def make(place: str, row: dict, kind: str = kind) -> list[Item]:
            options, shown = texts(row, 'options', 2, 7), text(row, 'demonstration_type')
            lines = dict(zip(LETTERS, options))
            return [
                Item(
                    id=f'{kind} {place}',
                    media=Media('video', video(videos, f'{shown}/{text(row, "key")}.mp4')),
                    question='The frames were taken evenly from a video, in their order. Answer '
                    'the question by what they show, not by what is likely in general.\n'
                    f'Question: {text(row, "question")}\nOptions: {lines}\n'
                    'Answer with the letter of one option; if you are not sure, guess.',
                    choices=letters(options),
                    answer=number(row, 'answer', len(options)),
                    options=options,
                    kinds=(kind, shown),
                    rule='tomato',
                )
            ]

        result.take(file, json_of(file, dict).items(), make)
    return result


# --- MVBench and TVBench --------------------------------------------------------------------------

# task -> folder of its videos in the release
MVBENCH = {
    'action_antonym': 'ssv2_video_mp4',
    'action_count': 'perception/videos',
    'action_localization': 'sta/sta_video_segment',
    'action_prediction': 'star/Charades_segment',
    'action_sequence': 'star/Charades_segment',
    'character_order': 'perception/videos',
    'counterfactual_inference': 'clevrer/video_validation',
    'egocentric_navigation': 'vlnqa',
    'episodic_reasoning': 'tvqa/video_fps3_hq_segment',
    'fine_grained_action': 'Moments_in_Time_Raw/videos',
    'fine_grained_pose': 'nturgbd_convert',
    'moving_attribute': 'clevrer/video_validation',
    'moving_count': 'clevrer/video_validation',
    'moving_direction': 'clevrer/video_validation',
    'object_existence': 'clevrer/video_validation',
    'object_interaction': 'star/Charades_segment',
    'object_shuffle': 'perception/videos',
    'scene_transition': 'scene_qa/video',
    'state_change': 'perception/videos',
    'unexpected_action': 'FunQA_test/test',
}
TVBENCH = (
    'action_antonym', 'action_count', 'action_localization', 'action_sequence',
    'egocentric_sequence', 'moving_direction', 'object_count', 'object_shuffle',
    'scene_transition', 'unexpected_action',
)  # fmt: skip


def _tasks(data: QuestionSetConfig, folders: dict[str, str], name: str) -> Read:
    """`json/TASK.json`, a list of video, question, candidates, answer, and of some start and end;
    `video/FOLDER/NAME`."""
    path, videos = _places(data, 'video')
    result = Read(videos=str(videos))
    for task, folder in folders.items():
        try:
            if path.is_file() and path.stem != task:
                raise NoFile(ANOTHER)
            file = one(path, [f'json/{task}.json', f'{task}.json'], 'questions of the task')
        except NoFile as error:
            result.notes.append(f'{task} is not in the figures: {error}')
            continue

        def make(place: str, row: dict, task: str = task, folder: str = folder) -> list[Item]:
            options, question = texts(row, 'candidates'), text(row, 'question')
            start, end = seconds(row, 'start'), seconds(row, 'end')
            if end and end <= start:
                raise ValueError(f'ends at {end:g} s, before its start')
            put = f'{question}\n{listed(options, "{letter}. {option}")}\n'
            put += 'Answer with the option letter only.'
            if name == 'mvbench':
                put = f'Question:{question}\nOption:\n{listed(options, "({letter}) {option}")}\n'
                put += 'Only give the best option.'
            return [
                Item(
                    id=f'{task} {place}',
                    media=Media('video', video(videos / folder, text(row, 'video')), start, end),
                    question=put,
                    choices=letters(options),
                    answer=among(options, row.get('answer')),
                    options=options,
                    kinds=(task,),
                    subset=task if name == 'mvbench' else '',
                    rule=name,
                )
            ]

        result.take(file, rows_of(file), make)
    return result


def _mvbench(data: QuestionSetConfig) -> Read:
    return _tasks(data, MVBENCH, 'mvbench')


def _tvbench(data: QuestionSetConfig) -> Read:
    return _tasks(data, {task: task for task in TVBENCH}, 'tvbench')


# --- CausalVQA ------------------------------------------------------------------------------------


def _causalvqa(data: QuestionSetConfig) -> Read:
    """A csv; every row is two items with the same video and question, and two lists of options
    `N. text|N. text`, of which `correct` names the digit."""
    path, videos = _places(data, 'videos')
    parts = pieces(path, ['*.csv'], 'the table of questions')
    columns = ('qid', 'type', 'question', 'choices1', 'choices2', 'difficulty', 'renamed_video')

    def make(place: str, row: dict) -> list[Item]:
        items, kinds = [], (text(row, 'type'), text(row, 'difficulty'))
        for half in '12':
            parts = [part.strip() for part in text(row, f'choices{half}').split('|')]
            digits, options = [p[:1] for p in parts], tuple(p[3:].strip() for p in parts)
            if not 2 <= len(options) <= 5 or not all(options) or not all(map(str.isdigit, digits)):
                raise ValueError(
                    f'choices{half} is {row[f"choices{half}"]!r:.80}: no list N. text|'
                )
            correct = (row.get(f'correct{half}') or '').strip().removesuffix('.0')
            answer = among(digits, correct, f'correct{half}') if correct else HIDDEN
            items.append(
                Item(
                    id=f'{text(row, "qid")} {half}',
                    media=Media('video', video(videos, text(row, 'renamed_video'))),
                    question=f'Question:{text(row, "question")}\nOption:\n'
                    f'{listed(options, "({letter}) {option}")}\n'
                    'Give the letter of the best option, as in: Your Answer Letter: X END',
                    choices=letters(options),
                    answer=answer,
                    options=options,
                    kinds=kinds,
                    group=text(row, 'qid'),
                    subset=' '.join(kinds),
                    rule='causalvqa',
                )
            )
        return items

    result = Read(videos=str(videos))
    for file in parts:
        rows = enumerate(table(file, columns), 2)
        result.take(file, ((f'line {n}', row) for n, row in rows), make)
    return result


# --- IntPhys 2 ------------------------------------------------------------------------------------

# way to ask -> what is said, the two answers
INTPHYS2 = {
    'yes_no': (
        'Does everything in this video obey the laws of physics as they are in the real world? '
        'Answer yes or no.',
        ('yes', 'no'),
    ),
    'one_zero': (
        'Could what this video shows happen in the real world? Answer 1 if it could and 0 if it '
        'could not.',
        ('1', '0'),
    ),
    'possible': (
        'Is what this video shows possible or impossible? Answer with one word, Possible or '
        'Impossible.',
        ('Possible', 'Impossible'),
    ),
}


def _intphys2(data: QuestionSetConfig) -> Read:
    """`Main/metadata.csv` and its videos, a question each; four videos are a scene."""
    path, _ = _places(data)
    file = one(path, [f'{data.part}/metadata.csv', 'metadata.csv'], 'the table of videos')
    rows = table(file, ('SceneIndex', 'type', 'condition'))
    column = next((name for name in ('file_name', 'filename', 'name') if name in rows[0]), None)
    if column is None:
        raise ConfigError(f'{file}: no column file_name, filename or name')
    way = data.prompt or 'yes_no'
    said, choices = INTPHYS2[way]
    folder = Path(data.videos).expanduser() if data.videos else file.parent

    def make(place: str, row: dict) -> list[Item]:
        word, name = TYPE.fullmatch(row['type'].strip()), Path(text(row, column))
        if not word:
            raise ValueError(f'type is {row["type"]!r:.80}: must be 1_Possible or the like')
        kinds = [row['condition'].split('_')[0].lower()]
        kinds += [row['Difficulty']] if row.get('Difficulty') else []
        where = name if name.suffix else Path('Videos') / f'{name}.mp4'
        return [
            Item(
                id=str(name),
                media=Media('video', video(folder, str(where))),
                question=said,
                choices=choices,
                answer=int(word[2].lower() == 'impossible'),
                kinds=tuple(kinds),
                group=f'scene {row["SceneIndex"]}',
                rule=f'intphys2_{way}',
            )
        ]

    result = Read(videos=str(folder))
    result.take(file, ((f'line {n}', row) for n, row in enumerate(rows, 2)), make)
    return result


# --- Self-made ------------------------------------------------------------------------------------


def _self_made(data: QuestionSetConfig) -> Read:
    """Questions about the self-made videos, which are made where they are missing."""
    kind = 'synthetic_few' if data.part == 'few' else 'synthetic'
    try:
        folder = synthetic.ensure(kind, data.path).parent
    except ValueError as error:  # a folder that holds something else
        raise ConfigError(f'data.path: {error}') from error
    clips = synthetic.COUNTS[kind]['test']
    return Read(questions.items('test', folder, clips), videos=str(folder))


VJEPA = 'V-JEPA 2 g-384 with Llama-3.1-8B'
PLM, INTERN, QWEN2, QWEN25 = 'PLM-8B', 'InternVL2.5-8B', 'Qwen2-VL-7B', 'Qwen2.5-VL-7B'
SETS: dict[str, Benchmark] = {
    'causalvqa': Benchmark(
        'CausalVQA', _causalvqa, 'pairs', 'paired accuracy',
        {'Gemini 2.5 Flash': 62, 'GPT-4o': 51, 'people': 85},
    ),
    'intphys2': Benchmark(
        'IntPhys 2', _intphys2, '', 'accuracy of videos', {'models': 50},
        ('published figures are the best of three prompts and several seeds, this is of one; '
         'people are near perfect',),
    ),
    'mvbench': Benchmark(
        'MVBench', _mvbench, '', 'mean accuracy of tasks',
        {VJEPA: 73.5, PLM: 77.1, INTERN: 72.6, QWEN25: 69.6, QWEN2: 67.0},
    ),
    'mvp': Benchmark(
        'MVP (MVPBench), minimal video pairs', _mvp, 'pairs', 'pair accuracy, mini',
        {VJEPA: 44.5, PLM: 39.7, INTERN: 39.9, QWEN25: 36.7, QWEN2: 29.2, 'people': 92.9},
    ),
    'perceptiontest': Benchmark(
        'Perception Test, multiple choice', _perceptiontest, '', 'accuracy, test set',
        {VJEPA + ', tuned on it': 84.0, PLM: 82.7, QWEN25: 70.5, INTERN: 68.9, QWEN2: 66.9},
    ),
    'self_made': Benchmark('self-made videos', _self_made, 'pairs'),
    'tempcompass': Benchmark(
        'TempCompass', _tempcompass, '', 'accuracy, multi-choice',
        {VJEPA: 76.9, PLM: 72.7, QWEN25: 71.7, INTERN: 68.3, QWEN2: 67.9},
        ('published figures let a judge model decide what no rule matched: none is asked here',),
    ),
    'temporalbench': Benchmark(
        'TemporalBench', _temporalbench, 'videos', 'videos with all questions right, short',
        {VJEPA: 36.7, PLM: 28.3, QWEN25: 24.5, INTERN: 24.3, QWEN2: 20.4, 'people': 67.9},
    ),
    'tomato': Benchmark(
        'TOMATO', _tomato, '', 'accuracy',
        {VJEPA: 40.3, PLM: 33.2, QWEN2: 31.5, INTERN: 29.4, QWEN25: 24.6},
        ('the official rule hands what it cannot match to a judge model, and then to chance: '
         'neither is asked here',),
    ),
    'tvbench': Benchmark(
        'TVBench', _tvbench, '', 'accuracy',
        {VJEPA: 60.6, PLM: 63.5, INTERN: 61.6, QWEN25: 50.5, QWEN2: 46.0},
    ),
}  # fmt: skip
