"""Tiny replicas of the benchmarks' official files, with wrong, missing and damaged entries."""

import csv
import importlib.util
import json
import pathlib

import pytest

from jepa_jax.config.qa import SETS as PARTS
from jepa_jax.config.qa import QuestionSetConfig
from jepa_jax.errors import BadFile, ConfigError
from jepa_jax.evals import of, qa_files, qa_sets

ROOT = pathlib.Path(__file__).resolve().parents[2]


def put(path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def table(path, *rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w', newline='') as file:
        csv.writer(file).writerows(rows)


def read(name, path, **more):
    result = qa_sets.read(QuestionSetConfig(name, path=str(path), **more))
    return {item.id: item for item in result.items}, result.problems, result.notes


def test_perceptiontest(tmp_path):
    asked = {'id': 3, 'question': 'What is it?', 'options': ['cup', 'pan', 'pot'], 'answer_id': 1,
             'area': 'physics', 'reasoning': 'predictive', 'tag': ['x']}  # fmt: skip
    about = {'frame_rate': 25.0, 'num_frames': 200}
    videos = {
        'video_1': {'metadata': about, 'mc_question': [asked, {**asked, 'id': 4}]},
        'video_2': {'metadata': {}, 'mc_question': [asked]},
        'video_3': {'metadata': about, 'mc_question': [{**asked, 'answer_id': 3}]},
        'video_4': {'metadata': about, 'mc_question': [{**asked, 'options': ['cup', 'pan']}]},
        'video_5': {'metadata': about},
        '../video_6': {'metadata': about, 'mc_question': [asked]},
        'video_7': 'none',
    }
    put(tmp_path / 'mc_question_valid.json', videos)
    put(tmp_path / 'cut_frame_mapping_valid.json', {'video_1': 150, 'video_2': 10})
    items, problems, notes = read('perceptiontest', tmp_path)
    first = items['video_1 3']
    assert list(items) == ['video_1 3', 'video_1 4'] and not notes
    assert first.question == (
        'What is it?\nA. cup\nB. pan\nC. pot\n'
        "Answer with the option's letter from the given choices directly."
    )
    assert (first.answer, first.choices, first.kinds) == (
        1,
        ('A', 'B', 'C'),
        ('physics', 'predictive'),
    )
    assert first.media.path == str(tmp_path / 'videos/video_1.mp4') and first.media.end == 6.0
    for line, words in zip(problems, (
        'video_2: metadata.frame_rate is None', 'video_3: answer_id is 3: must be from 0 to 2',
        "video_4: options is ['cup', 'pan']: must be a list of 3 to 3", 'video_5: no list mc_quest',
        "video_6: '../video_6.mp4' leads out", 'video_7: must be an object, is a str',
    ), strict=True):  # fmt: skip
        assert words in line and 'mc_question_valid.json' in line
    # of the test split nobody knows the answers; its videos are cut already
    del asked['answer_id']
    put(tmp_path / 'all_test.json', {'video_9': {'mc_question': [asked]}})
    items, _, notes = read('perceptiontest', tmp_path, part='test')
    assert items['video_9 3'].answer == -1 and not notes
    (tmp_path / 'cut_frame_mapping_valid.json').unlink()
    assert 'not cut' in read('perceptiontest', tmp_path)[2][0]


def test_mvp(tmp_path):
    pytest.importorskip('pyarrow')
    import pyarrow
    import pyarrow.parquet

    row = {'video_id': 'p7_1', 'video_path': '/ssv2/1.webm', 'question': 'Where?',
           'candidates': "['left to right', 'right to left']",
           'answer': 'left to right'}  # fmt: skip
    other = {**row, 'video_id': 'p7_2', 'video_path': 'ssv2/2.webm', 'answer': 'right to left'}
    put(
        tmp_path / 'human_object_interactions_mini.jsonl',
        ''.join(
            json.dumps(r) + '\n'
            for r in (
                row, other, {**row, 'video_id': 'p8_1'}, {**row, 'answer': 'up'},
                {**row, 'candidates': "__import__('os')"}, {**row, 'candidates': '[' * 9999},
                {**row, 'video_path': '/../../etc/x'}, {**row, 'candidates': ['a', 'a']}, row,
            )
        ),
    )  # fmt: skip
    folder = tmp_path / 'temporal_reasoning'
    folder.mkdir()
    rows = pyarrow.Table.from_pylist(
        [{**r, 'candidates': ['x', 'y'], 'answer': 'y'} for r in (row, other)]
    )
    pyarrow.parquet.write_table(rows, folder / 'mini-00000-of-00001.parquet')
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'videos').mkdir()
    (tmp_path / 'videos/ssv2').symlink_to(tmp_path / 'elsewhere')  # where the set lies
    items, problems, notes = read('mvp', tmp_path)
    assert list(items) == [
        f'{s} {v}'
        for s in ('human_object_interactions', 'temporal_reasoning')
        for v in ('p7_1', 'p7_2')
    ]
    first = items['human_object_interactions p7_1']
    assert first.question == (
        'Question: Where?\nOption:\n(A) left to right\n(B) right to left \nEven when unsure, '
        "always answer with a single letter from A or B, format exactly like: 'Answer: A/B'."
    )
    assert (
        first.group == 'human_object_interactions p7'
        and first.subset == 'human_object_interactions'
    )
    assert [item.answer for item in items.values()] == [0, 1, 1, 1]
    assert first.media.path == str(tmp_path / 'videos/ssv2/1.webm')
    assert len(notes) == 2 and 'intuitive_physics is not in the figures' in notes[1]
    said = '\n'.join(problems)
    for words in (
        "answer is 'up': none of the 2 options", 'line 5: candidates', 'line 6: candidates',
        'leads out of', "options that are equal: 'a'", 'p8: 1 of 2 questions of the pair',
    ):  # fmt: skip
        assert words in said
    (folder / 'mini-00000-of-00001.parquet').write_bytes(b'PAR1 and no more')
    with pytest.raises(BadFile, match='parquet: not_text'):
        read('mvp', tmp_path)


def test_all_pieces_of_a_file_are_read_and_of_several_files_none(tmp_path):
    def row(number):
        return {'video_id': f'p{number // 2}_{number % 2}', 'video_path': f'{number}.mp4',
                'question': 'Where?', 'candidates': ['left', 'right'],
                'answer': ('left', 'right')[number % 2]}  # fmt: skip

    def rows(*numbers):
        return ''.join(json.dumps(row(n)) + '\n' for n in numbers)

    folder = tmp_path / 'temporal_reasoning'
    put(folder / 'full-00000-of-00002.jsonl', rows(0, 1, 2))
    with pytest.raises(ConfigError, match='has 1 of 2 pieces of temporal_reasoning/full-00000-of'):
        read('mvp', tmp_path, part='full')
    put(folder / 'full-00001-of-00002.jsonl', rows(3))
    result = qa_sets.read(QuestionSetConfig('mvp', 'full', str(tmp_path)))
    assert [item.media.path[-5:] for item in result.items] == ['0.mp4', '1.mp4', '2.mp4', '3.mp4']
    assert result.files == [f'temporal_reasoning/full-0000{i}-of-00002.jsonl' for i in (0, 1)]
    put(folder / 'full-extra.jsonl', rows(4, 5))
    with pytest.raises(ConfigError, match='has temporal.*, temporal.*, temporal.*extra.jsonl, one'):
        read('mvp', tmp_path, part='full')
    # one that is named is the file of one subset alone
    items, _, notes = read('mvp', folder / 'full-extra.jsonl', part='full')
    assert list(items) == ['temporal_reasoning p2_0', 'temporal_reasoning p2_1']
    assert len(notes) == 3


def test_tempcompass(tmp_path):
    question = 'What is the man doing?\nA. dunking\nB. dribbling'
    bad = [{'question': 'What?', 'answer': 'A. x'}, {'question': question, 'answer': 'C. no'}]
    put(
        tmp_path / 'questions/multi-choice.json',
        {
            '10': {'action': [{'question': question, 'answer': 'A. dunking'}], 'order': []},
            '11': {'speed': bad[:1]}, '12': {'speed': bad[1:]}, '13': {'speed': 'x'}, '14': [],
        },
    )  # fmt: skip
    items, problems, _ = read('tempcompass', tmp_path)
    (item,) = items.values()
    assert item.question == f'{question}\nPlease directly give the best option:'
    assert (item.choices, item.options, item.answer) == (
        ('A', 'B'), ('A. dunking', 'B. dribbling'), 0,
    )  # fmt: skip
    assert item.media.path == str(tmp_path / 'videos/10.mp4') and item.kinds == ('action',)
    assert [p.split(': ', 1)[0][-2:] for p in problems] == ['11', '12', '13', '14']
    put(tmp_path / 'questions/yes_no.json', {'1': {'order': [{'question': 'Up?', 'answer': 'no'}]}})
    (item,) = read('tempcompass', tmp_path, part='yes_no')[0].values()
    assert (item.choices, item.answer) == (('yes', 'no'), 1)
    assert item.question == 'Up?\nPlease answer yes or no:'
    match = 'Which fits?\nCaption A: He runs.\nCaption B: He jumps.'
    row = {'question': match, 'answer': 'Caption B: He jumps.'}
    put(tmp_path / 'questions/caption_matching.json', {'1': {'action': [row]}})
    (item,) = read('tempcompass', tmp_path, part='caption_matching')[0].values()
    assert (item.choices, item.answer) == (('A', 'B'), 1)
    with pytest.raises(ConfigError, match='captioning.*judge'):
        config = get_config('tempcompass')
        config.data.path, config.data.part = str(tmp_path), 'captioning'
        of(config)


def test_temporalbench(tmp_path):
    row = {'idx': 1, 'video_name': 'short_video/a.mp4', 'question': 'Which? A. x B. y', 'GT': 'B',
           'dataset': 'Ego', 'category': 5}  # fmt: skip
    rows = [row, {**row, 'idx': 2, 'GT': 'a'}, {**row, 'idx': 3, 'GT': 'C'}, {**row, 'idx': 2}]
    put(tmp_path / 'temporalbench_short_qa.json', [*rows, {**row, 'idx': 4, 'video_name': ''}, 3])
    items, problems, _ = read('temporalbench', tmp_path)
    assert [(i.answer, i.group) for i in items.values()] == [
        (1, row['video_name']),
        (0, row['video_name']),
    ]
    assert items['1'].kinds == ('Ego', 'direction') and items['1'].question == row['question']
    assert items['1'].media.path == str(tmp_path / 'short_video/a.mp4')
    assert [p.split(' json ')[-1] for p in problems][-1] == '2: listed twice'
    assert len(problems) == 4
    with pytest.raises(ConfigError, match='has no temporalbench_long_qa.json'):
        read('temporalbench', tmp_path, part='long_qa')


def test_tomato(tmp_path):
    row = {'question': 'How often?', 'options': ['Once.', 'Twice.', 'Thrice.'], 'answer': 2,
           'key': '0007-04', 'demonstration_type': 'human'}  # fmt: skip
    for kind in qa_sets.TOMATO:
        put(tmp_path / f'data/{kind}.json', {'1': row})
    put(
        tmp_path / 'data/count.json',
        {'1': row, '2': {**row, 'answer': '2'}, '3': {**row, 'key': None}},
    )
    items, problems, _ = read('tomato', tmp_path)
    assert len(items) == 6 and len(problems) == 2
    item = items['shape&trend 1']
    assert (item.answer, item.choices, item.kinds) == (2, ('A', 'B', 'C'), ('shape&trend', 'human'))
    assert item.media.path == str(tmp_path / 'videos/human/0007-04.mp4')
    assert "{'A': 'Once.', 'B': 'Twice.', 'C': 'Thrice.'}" in item.question
    items, _, notes = read('tomato', tmp_path / 'data/rotation.json')
    assert [*items] == ['rotation 1'] and len(notes) == 5


@pytest.mark.parametrize('name', ['mvbench', 'tvbench'])
def test_tasks_of_mvbench_and_tvbench(tmp_path, name):
    row = {
        'video': 'a.mp4',
        'question': 'Which way?',
        'candidates': ['Up.', 'Down.'],
        'answer': 'Down.',
    }
    rows = [
        row,
        {**row, 'start': 1.5, 'end': 4},
        {**row, 'answer': 'up'},
        {**row, 'start': 3, 'end': 2},
    ]
    put(tmp_path / 'json/action_antonym.json', rows)
    items, problems, notes = read(name, tmp_path)
    first, second = items.values()
    assert first.question == {
        'mvbench': 'Question:Which way?\nOption:\n(A) Up.\n(B) Down.\nOnly give the best option.',
        'tvbench': 'Which way?\nA. Up.\nB. Down.\nAnswer with the option letter only.',
    }[name]  # fmt: skip
    folder = {'mvbench': 'ssv2_video_mp4', 'tvbench': 'action_antonym'}[name]
    assert first.media.path == str(tmp_path / 'video' / folder / 'a.mp4')
    assert (second.media.start, second.media.end, second.answer) == (1.5, 4.0, 1)
    assert first.subset == {'mvbench': 'action_antonym', 'tvbench': ''}[name]
    assert len(problems) == 2 and 'entry 4: ends at 2 s' in problems[1]
    assert len(notes) == {'mvbench': 19, 'tvbench': 9}[name]
    alone, _, notes = read(name, tmp_path / 'json/action_antonym.json')
    assert alone.keys() == items.keys()  # of one task, not of all
    assert 'action_count is not in the figures: data.path is the file of another' in notes


def test_causalvqa(tmp_path):
    header = ('qid', 'type', 'question', 'choices1', 'correct1', 'choices2', 'correct2',
              'difficulty', 'renamed_video')  # fmt: skip
    lists = '1. it falls|2. it flies|3. it stays', '1. it stays|2. it falls|3. it flies'
    row = ('q1', 'planning', 'What then?', lists[0], '1', lists[1], '2', 'easy', 'a.mp4')
    hidden = ('q2', *row[1:4], '', lists[1], '', *row[7:])
    table(tmp_path / 'debug.csv', header, row, hidden, ('q3', *row[1:4], '7', *row[5:]),
          ('q4', *row[1:3], 'nothing', *row[4:]))  # fmt: skip
    items, problems, _ = read('causalvqa', tmp_path)
    assert list(items) == ['q1 1', 'q1 2', 'q2 1', 'q2 2']
    assert [i.answer for i in items.values()] == [0, 1, -1, -1]
    assert items['q1 2'].options == ('it stays', 'it falls', 'it flies')
    assert items['q1 1'].group == 'q1' and items['q1 1'].subset == 'planning easy'
    assert "correct1 is '7': none of the 3" in problems[0] and 'line 5: choices1' in problems[1]
    table(tmp_path / 'main.csv', header, ('q5', *row[1:]))
    with pytest.raises(ConfigError, match='has debug.csv, main.csv, one is read: .* name one, --c'):
        read('causalvqa', tmp_path)
    assert list(read('causalvqa', tmp_path / 'main.csv')[0]) == ['q5 1', 'q5 2']
    (tmp_path / 'main.csv').unlink()
    table(tmp_path / 'debug.csv', header[1:], row[1:])
    with pytest.raises(BadFile, match='no column qid'):
        read('causalvqa', tmp_path)


def test_intphys2(tmp_path):
    table(
        tmp_path / 'Main/metadata.csv', ('SceneIndex', 'name', 'type', 'condition', 'Difficulty'),
        ('1', 'abc', '1_Possible', 'permanence_fixed', 'Easy'),
        ('1', 'abd', '2_Impossible', 'permanence_fixed', 'Easy'), ('1', 'abe', 'What', 'x', ''),
    )  # fmt: skip
    items, problems, _ = read('intphys2', tmp_path)
    assert [(i.answer, i.rule) for i in items.values()] == [
        (0, 'intphys2_yes_no'),
        (1, 'intphys2_yes_no'),
    ]
    assert items['abc'].media.path == str(tmp_path / 'Main/Videos/abc.mp4')
    assert items['abc'].kinds == ('permanence', 'Easy') and "type is 'What'" in problems[0]
    assert (
        'permanence' not in items['abc'].question
    )  # nothing of the answer leaks into the question
    other, _, _ = read('intphys2', tmp_path, prompt='possible')
    assert other['abd'].choices == ('Possible', 'Impossible') and other['abd'].answer == 1


def test_files_that_are_not_there_or_hold_nothing(tmp_path):
    for name in (n for n in qa_sets.SETS if n != 'self_made'):
        with pytest.raises(ConfigError, match=f'data.path.*({name}|has no)'):
            read(name, tmp_path)
    put(tmp_path / 'x.json', '{"a"')
    with pytest.raises(BadFile, match='x.json: not_text'):
        qa_files.rows_of(tmp_path / 'x.json')
    # ends of lines of other kinds within a text are none of the file's
    path = tmp_path / 'x.jsonl'
    path.write_bytes('{"a": "x\u2028y\u0085z"}\r\n\n{"a": 2}\n'.encode())
    assert qa_files.rows_of(path) == [
        ('line 1', {'a': 'x\u2028y\u0085z'}), ('line 3', {'a': 2}),
    ]  # fmt: skip
    path.write_text('{"a": 1}\n\n{"a":\n')
    with pytest.raises(BadFile, match='x.jsonl: not_text: line 3: Expecting value: column 6'):
        qa_files.rows_of(path)


def get_config(name, arg=''):
    path = ROOT / f'configs/eval/{name}.py'
    spec = importlib.util.spec_from_file_location('c', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def test_every_set_has_a_config_and_every_part_a_word():
    files = {'intphys2': 'intphys2_qa', 'self_made': 'self_made_qa'}
    assert list(qa_sets.SETS) == list(PARTS)
    for name, parts in PARTS.items():
        for part in parts:
            config = get_config(files.get(name, name), part)
            config.data.path = 'somewhere'
            assert (config.data.set, config.data.part) == (name, part) and of(config)
    assert get_config('intphys2_qa', 'Debug,possible').data.prompt == 'possible'
    assert get_config('mvp', 'smoke').data.most == 4
    for field, value, words in (
        ('part', 'half', "data.part = 'half': allowed are mini, full"),
        ('prompt', 'yes_no', "data.prompt = 'yes_no'"),
        ('path', '', "data.path is empty: set 'mvp' needs its folder"),
        ('set', 'mvpp', 'did you mean mvp'),
    ):
        config = get_config('mvp')
        config.data.path = 'somewhere'
        setattr(config.data, field, value)
        with pytest.raises(ConfigError, match=words):
            of(config)
