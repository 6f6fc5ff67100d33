"""Readers of sets of pairs, on tiny replicas of the official layouts."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from jepa_jax.errors import BadFile
from jepa_jax.evals import physics_sets


def table(path, rows, columns=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w', newline='') as file:
        out = csv.DictWriter(file, columns or list(rows[0]))
        out.writeheader()
        out.writerows(rows)
    return path


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'x')
    return path


def names(pairs):
    return [(p.possible.name, p.impossible.name, p.kind) for p in pairs.pairs]


# A plain list


def test_list_of_pairs(tmp_path):
    for name in 'abcd':
        touch(tmp_path / f'{name}.mp4')
    path = table(
        tmp_path / 'pairs.csv',
        [
            {'possible': 'a.mp4', 'impossible': 'b.mp4', 'kind': 'stop', 'event': '7'},
            {'possible': 'c.mp4', 'impossible': 'gone.mp4', 'kind': 'stop', 'event': ''},
            {'possible': 'c.mp4', 'impossible': 'c.mp4', 'kind': 'stop', 'event': ''},
            {'possible': 'd.mp4', 'impossible': 'a.mp4', 'kind': '', 'event': ''},
        ],
    )
    result = physics_sets.read('pairs', path)
    assert names(result) == [('a.mp4', 'b.mp4', 'stop'), ('d.mp4', 'a.mp4', 'all')]
    assert [p.event for p in result.pairs] == [7, None]
    assert [line.split(':')[0] for line in result.problems] == ['line 3', 'line 4']


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('a,b\n1,2\n', 'no column possible, impossible; it has a, b'),
        ('possible,impossible\n', 'it has no rows'),
        ('possible,impossible\na.mp4\n', 'line 2: not 2 fields'),
        ('possible,impossible\nx.mp4,y.mp4\n', 'no pair of pairs: 1 cannot be used; line 2'),
        ('possible,impossible,event\na.mp4,b.mp4,soon\n', "line 2: event 'soon' is no whole"),
        ('possible,impossible\n\0,\xff', None),
    ],
)
def test_bad_lists_are_refused_in_one_line(tmp_path, text, words):
    touch(tmp_path / 'a.mp4'), touch(tmp_path / 'b.mp4')
    path = tmp_path / 'pairs.csv'
    path.write_bytes(text.encode('latin-1'))
    with pytest.raises(BadFile) as error:
        physics_sets.read('pairs', path)
    assert words is None or words in str(error.value)
    assert '\n' not in str(error.value)


def test_a_list_that_is_absent(tmp_path):
    with pytest.raises(BadFile, match='missing'):
        physics_sets.read('pairs', tmp_path / 'pairs.csv')


# IntPhys 1


def scene(folder, breaks, labels):
    """Four videos of six frames: which changes they have from which frame on."""
    for i, (changes, label) in enumerate(zip(breaks, labels), 1):
        frames = folder / str(i) / 'scene'
        frames.mkdir(parents=True)
        for t in range(6):
            pixels = np.full((4, 4, 3), 10, np.uint8)
            for value, at in changes:
                if t >= at:
                    pixels[value, 0] = 200
            Image.fromarray(pixels).save(frames / f'scene_{t + 1:03d}.png')
        (folder / str(i) / 'status.json').write_text(
            json.dumps({'header': {'is_possible': label, 'length': 6}})
        )


def test_intphys1(tmp_path):
    four = [[], [(0, 2)], [(1, 4)], [(0, 2), (2, 4)]]
    scene(tmp_path / 'dev/O1/01', four, (True, False, False, True))
    scene(tmp_path / 'dev/O3/02', four, (True, False, True, True))  # a pair of two possible ones
    scene(tmp_path / 'dev/O3/03', four, (True, True, False, False))
    (tmp_path / 'dev/O3/04/1/scene').mkdir(parents=True)
    result = physics_sets.read('intphys1', tmp_path)
    numbers = [(p.possible.parts[-2], p.impossible.parts[-2], p.group) for p in result.pairs]
    assert numbers == [
        ('1', '3', 'O1/01'), ('4', '2', 'O1/01'), ('1', '3', 'O3/03'), ('2', '4', 'O3/03'),
    ]  # fmt: skip
    assert [p.kind for p in result.pairs] == ['permanence'] * 2 + ['continuity'] * 2
    assert result.pairs[0].event == 4
    assert len(result.problems) == 2
    assert 'same label' in result.problems[0] and 'status.json' in result.problems[1]


@pytest.mark.parametrize('text', ['', '{', '[]', '{"header": {"is_possible": "yes"}}', '{"a": 1}'])
def test_intphys1_without_answers(tmp_path, text):
    four = [[], [(0, 2)], [(1, 4)], [(0, 2), (2, 4)]]
    scene(tmp_path / 'O1/01', four, (True, False, False, True))
    (tmp_path / 'O1/01/3/status.json').write_text(text)
    with pytest.raises(BadFile, match='status.json'):
        physics_sets.read('intphys1', tmp_path)


def test_intphys1_elsewhere(tmp_path):
    with pytest.raises(BadFile, match='no folder O1, O2 or O3'):
        physics_sets.read('intphys1', tmp_path)


# GRASP


def test_grasp(tmp_path):
    for name in ('P_Collision/1.mp4', 'IP_Collision/1.mp4', 'P_Collision/2.mp4'):
        touch(tmp_path / 'level2' / name)
    touch(tmp_path / 'level2/IP_Gravity/1.mp4')
    result = physics_sets.read('grasp', tmp_path)
    assert names(result) == [('1.mp4', '1.mp4', 'Collision')]
    assert result.pairs[0].possible.parent.name == 'P_Collision'
    assert len(result.problems) == 2
    assert '2.mp4' in result.problems[0] and 'no folder P_Gravity' in result.problems[1]


# InfLevel


def inflevel_row(vid1, vid2, ends=('-1', '-1'), labels=('1', '0')):
    row = {}
    for i, (path, end, label) in enumerate(zip((vid1, vid2), ends, labels), 1):
        row |= {f'vid{i}_path': path, f'vid{i}_label': label}
        row |= {f'vid{i}_{k}_priming_{n}': '-1' for k in ('start', 'end') for n in (1, 2)}
        row[f'vid{i}_end_priming_2'] = end
    return row


def test_inflevel(tmp_path):
    videos = [f'gravity/CAM__CAT__cup__{o}__{t}.mp4' for o in ('ball', 'car') for t in ('A', 'B')]
    for name in videos:
        touch(tmp_path / name)
    rows = [
        inflevel_row(videos[0], videos[1], ('40', '52.0')),
        inflevel_row(videos[2], videos[3], ('7', ''), labels=('0', '1')),
        inflevel_row(videos[0], 'gravity/gone.mp4'),
        inflevel_row(videos[0], videos[1], labels=('1', '1')),
    ]
    result = physics_sets.read('inflevel', table(tmp_path / 'pairs.csv', rows))
    assert [p.primed for p in result.pairs] == [(41, 53), (0, 8)]
    assert result.pairs[1].possible == tmp_path / videos[3]
    assert {p.kind for p in result.pairs} == {'gravity'}
    assert len(result.problems) == 2


def test_inflevel_halves_of_the_simulation_are_one_group(tmp_path):
    """There the object and its cover change places."""
    rows = []
    for cover, thing in (('cup', 'ball'), ('ball', 'cup')):
        both = [f'solidity/CAM__CAT__{cover}__{thing}__{t}.mp4' for t in 'AB']
        for name in both:
            touch(tmp_path / name)
        rows.append(inflevel_row(*both))
    result = physics_sets.read('inflevel', table(tmp_path / 'pairs.csv', rows))
    assert len({p.group for p in result.pairs}) == 1


# IntPhys 2


def intphys2_row(index, name, kind, condition='permanence', **more):
    return {
        'SceneIndex': index, 'name': name, 'file_name': f'Videos/{name}.mp4', 'type': kind,
        'condition': condition, 'Camera': 'Fixed', 'Difficulty': 'Easy', 'env': 'x',
        'game_name': 'y', **more,
    }  # fmt: skip


def test_intphys2(tmp_path):
    rows = [
        intphys2_row('1', 'a', '1_Impossible'),  # which contains `possible`
        intphys2_row('1', 'b', '1_Possible'),
        intphys2_row('1', 'c', '2_Possible'),
        intphys2_row('1', 'd', '2_Impossible'),
        intphys2_row('2', 'e', '1_Possible', 'continuity_swap'),
        intphys2_row('2', 'f', '1_Impossible', 'continuity_swap'),
        intphys2_row('2', 'g', '2_Possible'),
        intphys2_row('2', 'h', 'Possible'),
        intphys2_row('3', 'gone', '1_Possible'),
    ]
    for row in rows[:8]:
        touch(tmp_path / 'Main' / row['file_name'])
    table(tmp_path / 'Main/metadata.csv', rows)
    result = physics_sets.read('intphys2', tmp_path)
    assert names(result) == [
        ('b.mp4', 'a.mp4', 'permanence'),
        ('c.mp4', 'd.mp4', 'permanence'),
        ('e.mp4', 'f.mp4', 'continuity'),
    ]
    assert [p.group for p in result.pairs] == ['scene 1', 'scene 1', 'scene 2']
    assert len(result.problems) == 3 and not result.copies
    assert any('1 possible and 0 impossible' in line for line in result.problems)


def test_intphys2_of_an_older_copy_and_with_several_renders(tmp_path):
    rows = []
    for name, kind in zip('abcd', ('1_Possible', '1_Possible', '1_Impossible', '1_Impossible')):
        row = intphys2_row('0', name, kind)
        row['filename'] = row.pop('file_name').removesuffix('.mp4').removeprefix('Videos/')
        rows.append(row)
        touch(tmp_path / f'Videos/{name}.mp4')
    result = physics_sets.read('intphys2', table(tmp_path / 'metadata.csv', rows))
    assert [n[:2] for n in names(result)] == [('a.mp4', 'c.mp4'), ('b.mp4', 'd.mp4')]
    assert [[v.name for v in each] for each in result.copies] == [
        ['a.mp4', 'b.mp4'], ['c.mp4', 'd.mp4'],
    ]  # fmt: skip


def test_intphys2_held_out_has_no_answers(tmp_path):
    (tmp_path / 'HeldOut/Videos').mkdir(parents=True)
    with pytest.raises(BadFile, match='metadata.csv: missing'):
        physics_sets.read('intphys2', tmp_path / 'HeldOut')
