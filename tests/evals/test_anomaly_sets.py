"""Video of cameras: own lists and labels, and small replicas of the official layouts, with entries
that are missing, wrong or damaged."""

import av
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from jepa_jax.config.anomaly import CameraConfig
from jepa_jax.errors import BadFile, ConfigError
from jepa_jax.evals import anomaly_sets, normality
from jepa_jax.evals.anomaly_sets import Labels


def frames(path, count: int, suffix: str, grey: int = 90) -> None:
    path.mkdir(parents=True)
    for i in range(1, count + 1):
        Image.new('L', (24, 16), grey + i).save(path / f'{i:03d}{suffix}')


def avi(path, count: int, fps: int = 25) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('mpeg4', rate=fps)
        stream.width, stream.height, stream.pix_fmt = 32, 16, 'yuv420p'
        stream.codec_context.thread_count = 1
        for i in range(count):
            image = np.full((16, 32, 3), 8 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format='rgb24')))
        container.mux(stream.encode())


def marked(video, count: int) -> list[int]:
    """Which of `count` frames at 10 a second are labelled."""
    return np.flatnonzero(video.labels.of(video.path, np.arange(count) / 10)).tolist()


def test_ped2(tmp_path):
    root = tmp_path / 'UCSDped2'
    for name in (
        'Train/Train001',
        'Train/Train002',
        'Test/Test001',
        'Test/Test002',
        'Test/Test004',
    ):
        frames(root / name, 6, '.tif')
    (root / 'Test/Test001_gt').mkdir()
    (root / 'Test/UCSDped2.m').write_text(
        'TestVideoFile = {};\nTestVideoFile{end+1}.gt_frame = [2:4];\n'
        'TestVideoFile{end+1}.gt_frame = [1:2, 5:6];\nTestVideoFile{end+1}.gt_frame = [1:3];\n'
    )
    data = CameraConfig(kind='ped2', path=str(tmp_path), rate=10.0, fps=5.0)
    footage = anomaly_sets.read(data)
    assert [v.path[-8:] for v in footage.train] == ['Train001', 'Train002']
    assert [v.path[-7:] for v in footage.test] == ['Test001', 'Test002']
    # the file counts from 1 and means both ends
    assert [marked(v, 6) for v in footage.test] == [[1, 2, 3], [0, 1, 4, 5]]
    assert [p.split('ped2/')[1] for p in footage.problems] == [
        'Test/Test003: missing', 'Test/Test004: no entry in UCSDped2.m'
    ]  # fmt: skip
    assert '2 training videos can be used, the official release has 16' in str(
        anomaly_sets.other_counts('ped2', footage)
    )
    source, seconds = normality.opened(footage.test[0].path, data)
    assert source.numbers.tolist() == [0, 2, 4] and np.allclose(seconds, np.arange(6) / 10)
    assert source.read(source.numbers)[:, 0, 0, 0].tolist() == [91, 93, 95]
    with pytest.raises(BadFile, match='mismatch: labels 1 to 3, and .* ends at frame 2'):
        marked(footage.test[0], 3)
    (root / 'Test/UCSDped2.m').write_text('gt_frame = [4:2];')
    with pytest.raises(ConfigError, match="entry 1: '4:2' is no first:last"):
        anomaly_sets.read(data)


@pytest.mark.parametrize('compressed', [False, True])
def test_avenue(tmp_path, compressed):
    root = tmp_path / 'Avenue Dataset'
    avi(root / 'training_videos/01.avi', 4)
    for name in ('01', '02', '03', '10'):
        avi(root / f'testing_videos/{name}.avi', 4)
    place = root / 'ground_truth_demo/testing_label_mask'
    place.mkdir(parents=True)
    for name, odd in (('1', (1, 2)), ('10', ()), ('4', ())):
        cells = np.empty((1, 4), object)
        for i in range(4):
            cells[0, i] = np.zeros((5, 6), np.uint8)
            cells[0, i][2, 3] = i in odd  # one pixel is enough
        savemat(place / f'{name}_label.mat', {'volLabel': cells}, do_compression=compressed)
    (place / '2_label.mat').write_bytes((place / '1_label.mat').read_bytes()[:200])
    footage = anomaly_sets.read(CameraConfig(kind='avenue', path=str(tmp_path)))
    assert [v.path[-6:] for v in footage.train + footage.test] == ['01.avi', '01.avi', '10.avi']
    assert [marked(v, 4) for v in footage.test] == [[1, 2], []]
    damaged, without, alone = sorted(footage.problems, key=lambda p: ('video' in p, p))
    assert '2_label.mat: not_array' in damaged
    assert '03.avi: its labels are missing' in without + alone
    assert '4_label.mat: its video is missing' in without + alone
    with pytest.raises(BadFile, match='mismatch: .*4 labels, and .*01.avi has 5 frames'):
        marked(footage.test[0], 5)


def test_labels_that_unpack_to_much(tmp_path, monkeypatch):
    cells = np.empty((1, 2), object)
    cells[0, :] = [np.zeros((200, 200), np.uint8)] * 2
    savemat(tmp_path / 'a.mat', {'volLabel': cells}, do_compression=True)
    assert not anomaly_sets.volume_labels(tmp_path / 'a.mat').any()
    monkeypatch.setenv('JEPA_JAX_LIMITS', 'decoded=50000')
    with pytest.raises(BadFile, match='a.mat: decoded'):
        anomaly_sets.volume_labels(tmp_path / 'a.mat')


def test_shanghaitech(tmp_path):
    avi(tmp_path / 'training/videos/01_001.avi', 4)
    for name in ('01_0014', '01_0015', '02_0001'):
        frames(tmp_path / 'testing/frames' / name, 3, '.jpg')
    masks = tmp_path / 'testing/test_frame_mask'
    masks.mkdir()
    np.save(masks / '01_0014.npy', np.array([0, 1, 1], np.uint8))
    np.save(masks / '01_0015.npy', np.array([0, 2, 1]))
    np.save(masks / '03_0001.npy', np.zeros(3))
    footage = anomaly_sets.read(CameraConfig(kind='shanghaitech', path=str(tmp_path)))
    assert [v.path[-10:] for v in footage.train] == ['01_001.avi']
    assert [v.path[-7:] for v in footage.test] == ['01_0014']
    assert marked(footage.test[0], 3) == [1, 2]
    damaged, without, alone = footage.problems
    assert 'frame 1 is 2: must be 0 or 1' in damaged
    assert '02_0001: its labels are missing' in without and '03_0001.npy: its video' in alone


def test_own_video(tmp_path):
    """Folders below folders, folders of frames, a list and a csv name the same."""
    for name in ('a/x.mp4', 'a/b/y.avi'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b'.')
    frames(tmp_path / 'a/frames', 2, '.png')
    (tmp_path / 'a/notes.txt').write_text('.')
    listed = [str(tmp_path / 'a' / n) for n in ('x.mp4', 'b/y.avi', 'frames')]
    assert anomaly_sets.paths_of(str(tmp_path / 'a'), 'data.train') == listed
    (tmp_path / 'list.txt').write_text('# normal\na/x.mp4\n\na/b/y.avi\na/frames\na/x.mp4\n')
    assert anomaly_sets.paths_of(str(tmp_path / 'list.txt'), 'data.train') == listed
    (tmp_path / 'list.csv').write_text('path,note\na/x.mp4,1\na/b/y.avi,2\na/frames,3\n')
    assert anomaly_sets.paths_of(str(tmp_path / 'list.csv'), 'data.train') == listed
    assert anomaly_sets.paths_of(listed[0], 'data.train') == listed[:1]


def own(tmp_path, table: str = '', **data) -> anomaly_sets.Footage:
    for name in ('n.mp4', 'p.mp4', 'q.mp4'):
        (tmp_path / name).write_bytes(b'.')
    (tmp_path / 'test.txt').write_text('p.mp4\nq.mp4\n')
    if table:
        (tmp_path / 'labels.csv').write_text(table)
        data['labels'] = str(tmp_path / 'labels.csv')
    chosen = {'train': str(tmp_path / 'n.mp4'), 'test': str(tmp_path / 'test.txt')} | data
    return anomaly_sets.read(CameraConfig(**chosen))


def test_labels_by_frame_and_by_second(tmp_path):
    table = 'path,first,last,kind\np.mp4,2,3,fast\np.mp4,7,7,\nq.mp4,,,\n'
    footage = own(tmp_path, table)
    assert [marked(v, 10) for v in footage.test] == [[2, 3, 7], []]
    assert [v.kind for v in footage.test] == ['fast', '']
    footage = own(tmp_path, 'path,start,end\np.mp4,0.2,0.45\nq.mp4,,\n')
    assert [marked(v, 10) for v in footage.test] == [[2, 3, 4], []]
    table = (tmp_path / 'labels.csv').read_text()
    (tmp_path / 'both.csv').write_text(table)  # one csv that names the videos and has their labels
    same = own(tmp_path, test=str(tmp_path / 'both.csv'))
    assert [marked(v, 10) for v in same.test] == [[2, 3, 4], []]
    np.save(tmp_path / 'p.npy', np.array([False, True, False]))
    (tmp_path / 'q.txt').write_text('0 0\n1\n')
    footage = own(tmp_path, labels=str(tmp_path))
    assert [marked(v, 3) for v in footage.test] == [[1], [2]]
    assert own(tmp_path).test[0].labels is None


def test_one_video_whatever_it_is_called(tmp_path, monkeypatch):
    """From here and from the root, and by a link: its labels are its own, and it is not both normal
    and to be judged."""
    monkeypatch.chdir(tmp_path)
    table = 'path,first,last\np.mp4,2,3\nlink.mp4,,\n'
    (tmp_path / 'link.mp4').symlink_to('q.mp4')
    (tmp_path / 'here.csv').write_text(table)
    for footage in (own(tmp_path, table), own(tmp_path, labels='here.csv')):
        assert [marked(v, 10) for v in footage.test] == [[2, 3], []]
    for normal in ('link.mp4', 'q.mp4'):
        with pytest.raises(ConfigError, match='q.mp4 is in the normal video as well'):
            own(tmp_path, train=normal)


@pytest.mark.parametrize(
    ('table', 'words'),
    [
        ('path,first,last\np.mp4,2,3\n', 'no row for .*q.mp4; a row without first and last'),
        ('path,first,last\np.mp4,2,1\n', 'line 2: last 1 is before 2'),
        ('path,first,last\np.mp4,2,x\n', "line 2: last 'x' is no number of a frame"),
        ('path,first,last\np.mp4,2,\n', "line 2: last '' is no number of a frame"),
        ('path,first,last\np.mp4,1.5,3\n', "line 2: first '1.5' is no number of a frame"),
        ('path,start,end\np.mp4,-1,3\n', "line 2: start '-1' is no number of seconds"),
        ('path,first,last\nr.mp4,2,3\n', "line 2: 'r.mp4' is none of the videos"),
        ('path,from,to\np.mp4,2,3\n', 'no columns first and last'),
        ('file,first,last\np.mp4,2,3\n', 'the header has no column path'),
    ],
)
def test_tables_of_labels_that_are_wrong(tmp_path, table, words):
    with pytest.raises(ConfigError, match=words):
        own(tmp_path, table)


@pytest.mark.parametrize(
    ('data', 'words'),
    [
        ({'train': 'nowhere'}, "data.train = 'nowhere': no such file or folder"),
        ({'train': '{}/empty'}, 'no video and no folder of frames in it'),
        ({'train': '{}/test.txt'}, 'data.test: .*p.mp4 is in the normal video as well'),
        ({'labels': '{}/nowhere.csv'}, 'data.labels = .*no such file'),
        ({'labels': '{}/empty'}, 'has no p.npy or p.txt for .*p.mp4'),
        ({'kind': 'ped2', 'path': '{}'}, 'has no folder Test: not ped2'),
        ({'kind': 'self_made_few', 'path': '{}'}, 'data.path: .*holds other files'),
    ],
)
def test_settings_that_are_wrong(tmp_path, data, words):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ConfigError, match=words):
        own(tmp_path, **{k: v.format(tmp_path) for k, v in data.items()})


def test_labels_that_do_not_fit():
    """Longer and shorter than the video, and spans beyond its end."""
    at = np.arange(4) / 2
    assert Labels('l', None, ((0.5, 9.0),), seconds=True).of('v', at).tolist() == [0, 1, 1, 1]
    # a moment between two frames is of the one that is shown then
    assert Labels('l', None, ((0.6, 0.7),), seconds=True).of('v', at).tolist() == [0, 1, 0, 0]
    for labels, words in (
        (Labels('l', np.zeros(3, bool)), '3 labels, and v has 4 frames'),
        (Labels('l', np.zeros(5, bool)), '5 labels, and v has 4 frames'),
        (Labels('l', None, ((2, 4),)), 'labels 2 to 4, and v ends at frame 3'),
        (Labels('l', None, ((2, 3),), seconds=True), 'labels 2 to 3, and v ends at 2 s'),
    ):
        with pytest.raises(BadFile, match=words):
            labels.of('v', at)
