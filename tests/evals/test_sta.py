"""Ego4D's short-term anticipation: files in the official layout, and the golden figures."""

import json
import pathlib

import numpy as np
import pytest

from jepa_jax.data.labelled import ego4d_sta
from jepa_jax.errors import BadFile, ConfigError
from jepa_jax.evals.sta import SCORES, mean_average_precision
from tools import score_sta

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / 'golden/evaluations_sta.npz')


def rows(table, scored: bool) -> dict[str, list[dict]]:
    """Image -> objects, as the files have them."""
    images: dict[str, list[dict]] = {}
    for image, *box, noun, verb, seconds in table[:, :8].tolist():
        row = dict(zip(('noun_category_id', 'verb_category_id'), (int(noun), int(verb))))
        row |= {'box': box, 'time_to_contact': seconds}
        images.setdefault(f'frame_{int(image)}', []).append(row)
    if scored:
        flat = [row for objects in images.values() for row in objects]
        for row, value in zip(flat, table[:, 8].tolist(), strict=True):
            row['score'] = value
    return images


@pytest.fixture
def files(tmp_path):
    """A replica: six frames of three videos."""
    truth = {
        'info': {
            'video_metadata': {
                f'video_{i}': {'fps': 30.0, 'frame_width': 320, 'frame_height': 240}
                for i in range(3)
            }
        },
        'noun_categories': [
            {'id': i, 'name': name} for i, name in enumerate('cup pan jar'.split())
        ],
        'verb_categories': [{'id': 1, 'name': 'take'}, {'id': 0, 'name': 'put'}],
        'annotations': [
            {'uid': uid, 'video_uid': f'video_{i // 2}', 'frame': 30 * i, 'objects': objects}
            for i, (uid, objects) in enumerate(rows(GOLDEN['sta_gt'], False).items())
        ],
    }
    said = {
        'version': '1.0',
        'challenge': ego4d_sta.CHALLENGE,
        'results': rows(GOLDEN['sta_pred'], True),
    }

    def write(name, content):
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return path

    return truth, said, write


def test_golden(files):
    truth, said, write = files
    split = ego4d_sta.read(write('truth.json', truth))
    assert split.nouns == ('cup', 'pan', 'jar') and split.verbs == ('put', 'take')
    assert split.frames[3].number == 90 and split.frames[3].size == (240, 320)
    answers = ego4d_sta.predictions(write('said.json', said), split)
    for top, name in ((5, 'sta_map'), (1, 'sta_map_no_topk')):
        figures = mean_average_precision(split.frames, answers, 3, top=top, resamples=20)
        values = [figures[score].value for score in SCORES]
        np.testing.assert_allclose(values, GOLDEN[name], rtol=0, atol=1e-9)
        assert all(f.low <= f.value <= f.high or f.low < f.high for f in figures.values())


def test_frames_without_a_prediction(files, tmp_path, capsys):
    """Their objects count; the official program forgets them. By hand: of two nouns nothing."""
    truth, said, write = files
    said['results'] = {'frame_0': [truth['annotations'][0]['objects'][0] | {'score': 1.0}]}
    paths = [str(write(name, content)) for name, content in (('t', truth), ('s', said))]
    score_sta.score(*paths, 0, str(tmp_path / 'scores.json'))
    scores = json.loads((tmp_path / 'scores.json').read_text())
    of_cups = sum(row[5] == 0 for row in GOLDEN['sta_gt'])
    assert scores['mAP, top 5']['all']['value'] == pytest.approx(100 / of_cups / 3)
    assert scores['as the official program counts']['all']['value'] == pytest.approx(100)
    assert scores['unanswered'] == 5
    assert '5 frames have no prediction' in capsys.readouterr().out


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda t, s: t['annotations'][2].update(uid='frame_1'), "'frame_1' stands twice"),
        (lambda t, s: t['annotations'][2].update(video_uid='x'), 'entry 3 has x = None'),
        (lambda t, s: t['annotations'][0]['objects'][0].update(noun_category_id=3), 'out of range'),
        (lambda t, s: t['annotations'][0]['objects'][0].update(box=[5, 5, 1, 9]), 'x1, y1, x2, y2'),
        (lambda t, s: t['annotations'][0]['objects'][0].update(time_to_contact=-1), 'from 0 to'),
        (lambda t, s: t['noun_categories'].pop(0), 'without the ids'),
        (lambda t, s: t.pop('info'), 'has info = None'),
        (lambda t, s: s['results'].update(other=[]), "'other' is not in the split"),
        (lambda t, s: s['results']['frame_0'][0].update(score=float('nan')), 'has score'),
        (lambda t, s: s.update(challenge='lta'), "is of challenge 'lta'"),
        (lambda t, s: t['annotations'][1].pop('objects'), 'has frames without objects'),
    ],
)
def test_refusals(files, change, words):
    truth, said, write = files
    change(truth, said)
    paths = [str(write(name, content)) for name, content in (('t.json', truth), ('s.json', said))]
    with pytest.raises(ConfigError, match=words):
        score_sta.score(*paths, 0, None)


def test_a_file_that_is_none(tmp_path):
    (tmp_path / 'x.json').write_text('[1')
    with pytest.raises(BadFile, match='x.json'):
        ego4d_sta.read(tmp_path / 'x.json')
