"""Asking about videos: which frames, which baselines, what is kept, and what comes out of it."""

import json
import pathlib
import re
import sys
import types

import numpy as np
import pytest

import jepa_jax
from jepa_jax import evaluate
from jepa_jax.config.qa import QAConfig, QuestionSetConfig
from jepa_jax.data import synthetic
from jepa_jax.errors import BadFile, ConfigError, InputError
from jepa_jax.evals import qa, qa_sets
from jepa_jax.language.chat import Media
from tools import score_answers

FRAMES = 4
ROOT = pathlib.Path(__file__).resolve().parents[2]


class Brightness:
    """Says whether the last frame it sees is lighter than the first; without video, A. As
    `jepa_jax.load` gives it."""

    config = types.SimpleNamespace(frames=FRAMES, image_size=32)
    encoder = types.SimpleNamespace(params={'kernel': np.zeros(2)})
    about = predictor = ac_predictor = probe = ()
    system = ''
    look = types.SimpleNamespace(config=types.SimpleNamespace(frames=FRAMES))

    def __init__(self, mark=0):
        tree = {'kernel': np.full(3, mark)}
        self.weights = types.SimpleNamespace(nets={'projector': types.SimpleNamespace(tree=tree)})
        self.asked = []

    def answerer(self):
        return self

    def ask(self, video, question, *, choices, most):
        video = None if video is None else video.frames
        self.asked.append((None if video is None else video[:, 0, 0, 0].tolist(), question))
        if 'refuse' in question:
            raise InputError('1 placeholders')
        letter = 'A'
        if video is not None:
            assert video.dtype == np.uint8 and video.shape == (FRAMES, 32, 32, 3)
            letter = 'A' if int(video[-1].mean()) >= int(video[0].mean()) else 'B'
        likelihoods = tuple(-float(c != letter) for c in choices)
        return types.SimpleNamespace(text=f'Answer: {letter}'[:most], likelihoods=likelihoods)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """MVP's layout with three pairs, one member of the last of which is damaged."""
    root = tmp_path_factory.mktemp('mvp')
    (root / 'videos').mkdir()
    rows = []
    for number in range(3):
        for member, sign in enumerate((1, -1)):
            name = f'{number}_{member}.mp4'
            ramp = np.clip(np.arange(12) * 16 + 20 + 5 * number, 0, 255)[::sign]
            frames = np.broadcast_to(ramp[:, None, None, None], (12, 32, 32, 3)).astype(np.uint8)
            synthetic.write(root / 'videos' / name, frames)
            rows.append({
                'video_id': f'p{number}_{member}', 'video_path': name, 'question': 'Lighter?',
                'candidates': ['it gets lighter', 'it gets darker'],
                'answer': ('it gets lighter', 'it gets darker')[member],
            })  # fmt: skip
    path = root / 'videos/2_1.mp4'
    path.write_bytes(path.read_bytes()[:300])
    for subset in ('temporal_reasoning', 'intuitive_physics'):
        own = rows if subset == 'temporal_reasoning' else rows[:2]
        lines = ''.join(json.dumps(row) + '\n' for row in own)
        (root / f'{subset}_mini.jsonl').write_text(lines)
    return root


def config(folder, **more):
    return QAConfig(data=QuestionSetConfig('mvp', 'mini', str(folder)), bootstrap=50, **more)


def test_frames_are_those_of_mvbench():
    """index = int(start + seg / 2 + round(seg i)), in frames; by hand."""
    assert qa.segments(100, 25.0, 0.0, 0.0, 4).tolist() == [12, 37, 62, 86]  # seg 24.75
    assert qa.segments(100, 25.0, 1.0, 3.0, 5).tolist() == [30, 40, 50, 60, 70]  # seg 10
    assert qa.segments(100, 25.0, 3.0, 9.0, 2).tolist() == [81, 93]  # to the last frame, seg 12
    assert qa.segments(24, 8.0, 2.0, 3.0, 8).tolist() == list(range(16, 24))  # each of them once
    few = qa.segments(5, 25.0, 0.0, 0.0, 16)
    assert few.min() == 0 and few.max() == 4 and (np.diff(few) >= 0).all()
    with pytest.raises(InputError, match='begins at 9 s, the video ends at 4.00 s'):
        qa.segments(100, 25.0, 9.0, 0.0, 4)


def test_a_model_that_sees_and_its_baselines(folder, tmp_path):
    model = Brightness()
    got = qa.run(model, config(folder), tmp_path)
    value = {name: figure.value for name, figure in {**got.results, **got.baselines}.items()}
    for column in ('official', 'choice'):
        assert value[column] == value[f'{column}, pairs'] == 1
        # who sees nothing, or one frame, says the same of both: half of the items, no pair
        for name in ('blind', 'one frame'):
            assert value[f'{column}: {name}'] == 0.5 and value[f'{column}, pairs: {name}'] == 0
        assert f'{column}, pairs: shuffled frames' in value
    assert (value['chance'], value['chance, pairs']) == (0.5, 0.25)
    assert value['official, pairs answered alike'] == value['official, no rule matched'] == 0
    assert got.results['official, pairs'].n == 3  # of four pairs, over two subsets
    # the damaged video is counted, its question is not asked, its pair does not count
    assert got.data['files'] == ['intuitive_physics_mini.jsonl', 'temporal_reasoning_mini.jsonl']
    assert got.data['expected'] == 8 and got.data['read'] == 6
    assert list(got.data['left_out']) == [str(folder / 'videos/2_1.mp4')]
    said = ' '.join(got.sentences)
    assert (
        '2 questions are left out, with what they are paired with: 1 videos' in said
        and 'V-JEPA 2' in said
        and '44.5' in said
    )
    assert 'human_object_interactions is not in the figures' in said
    assert got.outcomes['official'].tolist() == [1.0] * 6 and len(got.sources) == 6
    page = (tmp_path / 'report.html').read_text()
    assert page.count('data:image/jpeg') == 5 and '5 of 6, drawn at random' in page
    assert '<td>shuffled frames</td><td>Answer: ' in page and '0 of 0, drawn' in page
    # the four conditions, of a video that two subsets ask about
    shown = [seen for seen, _ in model.asked[:8:2]]
    assert shown[0] == sorted(shown[0]) and shown[1] is None
    assert sorted(shown[2]) == shown[0] and shown[2] != shown[0] and len(set(shown[3])) == 1
    assert all('(A) it gets lighter' in question for _, question in model.asked)


def test_answers_are_kept_and_not_asked_for_again(folder, tmp_path, monkeypatch, capsys):
    whole = qa.run(Brightness(), config(folder), tmp_path)
    lines = (tmp_path / qa.FILE).read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 7 * 4
    row = json.loads(lines[1])
    assert (
        row['condition'] == 'video' and row['text'] == 'Answer: A' and row['likelihoods'] == [0, -1]
    )
    # killed in the middle of a line
    (tmp_path / qa.FILE).write_bytes(b''.join(lines[:9]) + lines[9][:20])
    rest = Brightness()
    again = qa.run(rest, config(folder), tmp_path)
    assert len(rest.asked) == 20 and again.results == whole.results
    assert sorted((tmp_path / qa.FILE).read_bytes().splitlines(True)) == sorted(lines)
    # figures without a model
    alone = qa.scored_again(config(folder), tmp_path / qa.FILE)
    assert alone.results == whole.results and alone.baselines == whole.baselines
    monkeypatch.setattr(sys, 'argv', [
        'score-answers', f'--config={ROOT}/configs/eval/mvp.py', f'--workdir={tmp_path}',
        f'--config.data.path={folder}', '--config.bootstrap=50',
    ])  # fmt: skip
    assert score_answers.main() == 0
    shown = capsys.readouterr().out
    assert re.search(r'official, pairs +1.000 +1.000 to 1.000 +3', shown), shown
    few = config(folder)
    few.data.most = 1
    with pytest.raises(ConfigError, match='answers to other questions than those of'):
        qa.scored_again(few, tmp_path / qa.FILE)
    with pytest.raises(ConfigError, match='answers with another model: name another --workdir'):
        qa.run(Brightness(1), config(folder), tmp_path)
    (tmp_path / qa.FILE).write_text(lines[0].decode() + '{"id": 1}\n')
    with pytest.raises(BadFile, match='line 2: no text and likelihoods'):
        qa.load(tmp_path / qa.FILE)
    (tmp_path / qa.FILE).write_text(lines[0].decode() + '{"id"\n')
    with pytest.raises(BadFile, match='line 2: Expecting .:. delimiter: column 6'):
        qa.load(tmp_path / qa.FILE)


def test_answers_are_to_the_same_questions_wherever_the_folder_is(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    first, again = Brightness(), Brightness()
    qa.run(first, config(folder.name), tmp_path)
    qa.run(again, config(folder), tmp_path)
    assert len(first.asked) == 28 and not again.asked
    qa.scored_again(config(folder), tmp_path / qa.FILE)
    # as they were named once: by paths as typed
    items = qa_sets.read(config(folder).data).items
    path = tmp_path / qa.FILE
    about, rest = path.read_text().split('\n', 1)
    about = json.loads(about)
    about['about']['items'] = qa.digest(items)
    path.write_text(f'{json.dumps(about)}\n{rest}')
    qa.run(again, config(folder), tmp_path)
    qa.scored_again(config(folder), path)
    assert not again.asked
    about['about']['items'] = 'x'
    path.write_text(f'{json.dumps(about)}\n{rest}')
    with pytest.raises(ConfigError, match='answers with another items'):
        qa.run(again, config(folder), tmp_path)


@pytest.mark.parametrize('left', ['', '{"about": {"mo'])
def test_a_start_killed_before_its_first_line_begins_anew(folder, tmp_path, left):
    (tmp_path / qa.FILE).write_text(left)
    model = Brightness()
    few = config(folder, likelihoods=False, blind=False, shuffled=False, one_frame=False)
    qa.run(model, few, tmp_path)
    assert len(model.asked) == 7 and len(qa.load(tmp_path / qa.FILE)['video']) == 7


def test_a_report_is_of_the_same_projector(folder, tmp_path, monkeypatch):
    dtypes, again = [], []

    def load(name, encoder, dtype):
        dtypes.append(dtype)
        return Brightness(int(name))

    monkeypatch.setattr(jepa_jax, 'load', load)
    for name in '00':
        report, model = evaluate._evaluate(config(folder), tmp_path, name, 'target')
        again.append(len(model.asked))
    assert again == [28, 0]  # the second time it is shown
    assert report['results']['official, pairs']['value'] == 1
    assert json.loads((tmp_path / 'report.json').read_text())['data']['published']['PLM-8B'] == 39.7
    with pytest.raises(ConfigError, match='other weights, or the files have changed since'):
        (tmp_path / 'report.json').write_text(  # as if the same name were of the same path
            (tmp_path / 'report.json').read_text().replace('"name": "0"', '"name": "1"')
        )
        evaluate._evaluate(config(folder), tmp_path, '1', 'target')
    half = config(folder, compute_dtype='bfloat16')
    with pytest.raises(ConfigError, match='compute_dtype: float32 -> bfloat16'):
        evaluate._evaluate(half, tmp_path, '0', 'target')
    assert dtypes == ['float32'] * 3 + ['bfloat16']
    # answers in one type are not taken for those in another; of before there were two, for float32
    path = tmp_path / qa.FILE
    with pytest.raises(ConfigError, match='answers with another compute_dtype'):
        qa.run(Brightness(), half, tmp_path)
    path.write_text(path.read_text().replace('"compute_dtype": "float32", ', '', 1))
    qa.run(model := Brightness(), config(folder), tmp_path)
    assert not model.asked
    with pytest.raises(ConfigError, match='answers with another compute_dtype'):
        qa.run(Brightness(), half, tmp_path)


def test_what_may_be_left_out(folder, tmp_path):
    few = config(folder, likelihoods=False, blind=False, shuffled=False, one_frame=False)
    few.data.most = 2
    model = Brightness()
    got = qa.run(model, few, tmp_path)
    assert not any('choice' in name for name in got.results) and set(got.baselines) == {
        'chance', 'chance, pairs',
    }  # fmt: skip
    assert len(model.asked) in (3, 4)
    other = tmp_path / 'x'
    other.mkdir()
    for path in folder.glob('*.jsonl'):
        (other / path.name).write_text(path.read_text().replace('Lighter?', 'refuse?', 1))
    few.data.path, few.data.videos, few.data.most = str(other), str(folder / 'videos'), 0
    got = qa.run(Brightness(), few, other)
    assert got.results['official'].n == 2  # one question cannot be put in either file
    assert any('p0_0: 1 placeholders' in line for line in got.data['left_out'].values())


def test_a_part_of_a_video_and_a_folder_of_frames(folder, tmp_path):
    path = str(folder / 'videos/0_0.mp4')
    light = qa.look(Media('video', path), 4)[:, 0, 0, 0]
    back = qa.look(Media('video', path, backwards=True), 4)[:, 0, 0, 0]
    np.testing.assert_array_equal(back, light[::-1])
    part = qa.look(Media('video', path, 0.5, 1.0), 4)[:, 0, 0, 0]  # frames 4 to 7 of 8 a second
    np.testing.assert_allclose(part, 20 + 16 * np.arange(4, 8), atol=3)
    with pytest.raises(BadFile, match='short: begins at 7 s'):
        qa.look(Media('video', path, 7.0), 4)
    import PIL.Image

    for number in range(1, 41):
        PIL.Image.new('RGB', (32, 32), (6 * number,) * 3).save(tmp_path / f'{number:05}.png')

    def files(count, *when):
        return (qa.look(Media('video', str(tmp_path), *when), count)[:, 0, 0, 0] // 6).tolist()

    # MVBench's get_index with first_idx = 1, three a second: from file max(1, round(3 start)) to
    # min(round(3 end), 40), int(first + seg / 2 + round(seg i)). 6 to 30: seg 6; 1 to 6: seg 1.25
    assert files(4, 2.0, 10.0) == [9, 15, 21, 27]
    assert files(4, 0.0, 2.0) == [1, 2, 3, 5]
    assert files(3, 1.0, 2.0) == [3, 4, 5]
    assert files(4, 12.0, 99.0) == [36, 37, 38, 39]  # to the last: seg 1
    assert files(4) == [5, 15, 25, 34]  # all: from 1 to 40, seg 9.75
