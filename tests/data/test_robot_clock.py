"""Time in recordings: the rate and the row of each picture are those of the recording's own clock,
whatever its video says. Pictures tell by their grey in which row they were taken."""

import json
import logging
import pathlib
from fractions import Fraction

import av
import h5py
import numpy as np
import pytest

from jepa_jax.config import ActionConditionedConfig, RobotConfig
from jepa_jax.data import robot
from jepa_jax.data.clips import Timing
from jepa_jax.data.features import FeatureStore
from jepa_jax.data.robot.clock import Clock
from jepa_jax.data.trajectories import RobotStream
from jepa_jax.errors import BadFile
from jepa_jax.models.vit import ViTConfig
from jepa_jax.recipes import smoke
from tools import robot_findings

RATE = 15  # rows a second
BEGIN = 1_686_087_812_000  # milliseconds


def stamps(rows: np.ndarray) -> np.ndarray:
    """When rows are made, milliseconds, as DROID writes them down."""
    return BEGIN + np.rint(np.asarray(rows) * 1000 / RATE).astype(np.int64)


def write(folder: pathlib.Path, rows, greys, fps: float, times=None, **datasets) -> robot.Episode:
    """A DROID recording with states that tell the row, `greys` as the video's pictures at `fps` or
    at `times`, seconds, and timestamps `datasets` by their names after the serial; read back."""
    movies = folder / 'a/recordings/MP4'
    movies.mkdir(parents=True)
    with h5py.File(folder / 'a/trajectory.h5', 'w') as file:
        pose = np.zeros((len(rows), 6))
        pose[:, 0] = np.asarray(rows) / 1000
        file['observation/robot_state/cartesian_position'] = pose
        file['observation/robot_state/gripper_position'] = np.linspace(0, 1, len(rows))
        for name, values in datasets.items():
            place = f'control/{name}' if name == 'step_start' else f'cameras/7_{name}'
            file[f'observation/timestamp/{place}'] = values
    (folder / 'a/metadata_a.json').write_text('{"left_mp4_path": "x/recordings/MP4/7.mp4"}')
    with av.open(str(movies / '7.mp4'), 'w') as container:
        stream = container.add_stream('libx264', rate=fps, options={'qp': '0'})
        stream.width, stream.height, stream.pix_fmt = 48, 32, 'yuv420p'
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 3000)
        for i, grey in enumerate(greys):
            picture = np.full((32, 48, 3), 2 * grey, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format='rgb24')
            if times is not None:
                frame.pts, frame.time_base = round(3000 * times[i]), Fraction(1, 3000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return robot.open_recordings(RobotConfig(path=str(folder))).episode(0)


def pieces(episode: robot.Episode, frames: int = 3, fps: float = 4.0) -> list[np.ndarray]:
    """The rows of all pieces of an episode, which their pictures are asserted to be of."""
    count = []
    robot.cut(episode, frames, fps, lambda n: count.append(n) or 0)
    result = []
    for start in range(count[0]):
        piece = robot.cut(episode, frames, fps, lambda n, start=start: start)
        rows = np.rint(1000 * piece.states[:, 0]).astype(int)
        np.testing.assert_allclose(piece.frames.mean((1, 2, 3)), 2 * rows, atol=1.5)
        moved = np.diff(piece.states[:, 0])
        np.testing.assert_allclose(piece.actions[:, 0], moved, atol=1e-6)
        result.append(rows)
    return result


def test_the_clock_is_believed_before_the_video(tmp_path):
    """15 rows a second in a video that says 60: every 4th, 0.27 s apart."""
    rows = np.arange(40)
    episode = write(tmp_path, rows, rows, 60, frame_received=stamps(rows))
    assert pieces(episode) == [pytest.approx([i, i + 4, i + 8]) for i in range(40 - 3 * 4 + 1)]
    assert episode.notes == [
        "the video says 60 frames a second, the recording's own clock 15: the clock is believed"
    ]
    seen = []
    episode.read(lambda timing: seen.append(timing) or np.array([0]))
    assert (seen[0].fps, seen[0].frames, seen[0].variable) == (15, 40, False)


def test_a_video_that_agrees_is_passed_without_a_word(tmp_path):
    rows = np.arange(40)
    jitter = np.random.default_rng(0).integers(-9, 10, 40)
    episode = write(tmp_path, rows, rows, 15, frame_received=stamps(rows) + jitter)
    assert len(pieces(episode)) == 29 and not episode.notes


@pytest.mark.parametrize(
    'datasets, note',
    [
        ({}, "no timestamps: the rate is the video's"),
        ({'frame_received': np.zeros(40)}, 'no milliseconds'),
        ({'frame_received': np.full(40, np.nan)}, 'no milliseconds'),
        ({'frame_received': stamps(np.arange(40)) / 1000}, 'no milliseconds'),
        ({'frame_received': stamps(np.arange(40))[:0]}, 'no milliseconds'),
    ],
    ids=range(5),
)
def test_without_a_clock_the_rate_is_that_of_the_video(datasets, note, tmp_path):
    rows = np.arange(40)
    episode = write(tmp_path, rows, rows, 8, **datasets)
    assert pieces(episode)[0].tolist() == [0, 2, 4] and note in episode.notes[0]


def test_rows_and_pictures_that_were_lost(tmp_path):
    """Rows 14 to 19 were never recorded: no piece goes across, and each is 0.27 s apart."""
    rows = np.concatenate([np.arange(14), np.arange(20, 40)])
    episode = write(tmp_path, rows, rows, 60, frame_received=stamps(rows))
    result = pieces(episode)
    assert '6 pictures were lost, by the clock of the recording' in episode.notes
    steps = np.diff(result, axis=1)
    assert ((steps >= 3) & (steps <= 5)).all()  # a third off at most, where that one was lost
    assert [r.tolist() for r in result[:6]] == [[i, i + 4, i + 8] for i in range(6)]
    assert [r.tolist() for r in result[-1:]] == [[31, 35, 39]]
    assert not any(r[0] < 14 < r[-1] and r[0] < 5 for r in result)


def test_one_lost_picture_does_not_shift_the_others(tmp_path):
    """Rows 9 and 21 have the stamp of the picture before them, and the video lacks them."""
    rows = np.arange(40)
    received = stamps(rows)
    received[[9, 21]] = received[[8, 20]]
    greys = np.delete(rows, [9, 21])
    episode = write(tmp_path, rows, greys, 60, frame_received=received)
    result = pieces(episode)
    assert not {9, 21} & set(np.ravel(result))
    assert '2 rows have no picture of their own' in episode.notes
    # a picture next to a lost one serves, 0.2 or 0.33 s away
    assert [1, 5, 10] in [r.tolist() for r in result] or [1, 5, 8] in [r.tolist() for r in result]


def test_a_doubled_picture_is_not_taken_for_a_later_one(tmp_path):
    """As many frames as rows, but row 9 was given the picture of row 8 again."""
    rows = np.arange(40)
    received = stamps(rows)
    received[9] = received[8]
    greys = rows.copy()
    greys[9] = 8
    episode = write(tmp_path, rows, greys, 15, frame_received=received)
    assert 9 not in np.ravel(pieces(episode))


def test_a_video_of_another_rate_is_matched_by_time(tmp_path):
    """A camera that takes 30 pictures a second beside 15 rows; and one whose times have a gap."""
    rows = np.arange(40)
    twice = write(tmp_path / 'twice', rows, np.repeat(rows, 2), 30, frame_received=stamps(rows))
    assert [r.tolist() for r in pieces(twice)] == [[i, i + 4, i + 8] for i in range(29)]
    assert twice.notes == ['40 states for 80 frames of video: matched by time']
    there = np.concatenate([np.arange(10), np.arange(16, 40)])
    gap = write(tmp_path / 'gap', rows, there, 15, times=there / 15, frame_received=stamps(rows))
    result = pieces(gap)
    assert not set(range(10, 16)) & set(np.ravel(result)) and [16, 20, 24] in map(list, result)


def test_pictures_with_times_of_their_own(tmp_path):
    """DROID's own reader looks for SERIAL_timestamps.json beside the video; and a list of stamps
    that is as long as there are pictures, not rows."""
    rows, there = np.arange(40), np.delete(np.arange(40), [5, 6, 30])
    episode = write(tmp_path / 'a', rows, there, 60, frame_received=stamps(rows))
    with pytest.raises(BadFile, match='40 states for 37 frames'):
        pieces(episode)  # nothing says which were lost
    path = tmp_path / 'a/a/recordings/MP4/7_timestamps.json'
    path.write_text(json.dumps(stamps(there).tolist()))
    episode = robot.open_recordings(RobotConfig(path=str(tmp_path / 'a'))).episode(0)
    assert not {5, 6, 30} & set(np.ravel(pieces(episode)))
    other = write(
        tmp_path / 'b', rows, there, 60, frame_received=stamps(there), step_start=stamps(rows) + 9
    )
    assert not {5, 6, 30} & set(np.ravel(pieces(other)))


def test_only_the_metadata_is_metadata(tmp_path):
    rows = np.arange(20)
    write(tmp_path, rows, rows, 15)
    for name in ('a.json', 'aggregated.json', 'z.json'):
        (tmp_path / 'a' / name).write_text('[1, 2')
    recordings = robot.open_recordings(RobotConfig(path=str(tmp_path)))
    assert len(pieces(recordings.episode(0))) == 20 - 12 + 1


def test_clocks():
    exact = Clock.of(BEGIN + np.arange(100) * 1000 / 14.93)
    assert exact.fps == 15 and exact.even  # clocks are never exact
    assert Clock.of(BEGIN + np.arange(100) * 400.0).fps == 2.5
    assert Clock.of(np.array([BEGIN])) is None and Clock.of(np.array([])) is None
    assert Clock.of(np.full(9, float(BEGIN))) is None
    ends = Clock.of(np.array([1e300, 1.0, 2.0]))  # one wild stamp hides what is after it
    assert ends is None
    seconds = np.array([0, 1, 2, 3, 7, 8, 9, 10]) * 0.25
    timing = Timing(8, 4.0, 2.0, seconds)
    assert robot.kept(timing, 4.0).tolist() == list(range(8))
    assert robot.kept(timing, 2.0).tolist() == [0, 2, 4, 6]
    places = robot.unbroken(seconds, 8, 3, 0.25)
    assert places.tolist() == [0, 1, 4, 5]


def test_the_check_shows_the_clock(tmp_path):
    rows = np.concatenate([np.arange(14), np.arange(20, 60)])
    write(tmp_path, rows, rows, 60, frame_received=stamps(rows))
    data = RobotConfig(path=str(tmp_path))
    recordings = robot.open_recordings(data)
    findings = robot_findings.measure(recordings, data, 32, 10)
    said = '\n'.join(robot_findings.report(findings, data, 32))
    for words in ('recorded at 15 frames a second', 'the model sees 3.75 frames a second, one in 4',
                  '1 of 1 episodes: 6 pictures were lost', '1 of 1 episodes: the video says 60',
                  'as recorded: positions in 1 m, angles in radians, gripper 1 is'):  # fmt: skip
        assert words in said


def test_features_of_a_recording_with_a_gap(tmp_path, caplog):
    """The pieces of stored features do not go across it, and a disagreement is counted once."""
    rows = np.concatenate([np.arange(0, 22), np.arange(61, 110)])
    write(tmp_path / 'set', rows, rows, 60, frame_received=stamps(rows))
    config = smoke(ActionConditionedConfig(name='robot'))
    config.data.workers, config.features = 0, str(tmp_path / 'features')
    config.robot = RobotConfig('droid', str(tmp_path / 'set'), frames=4)
    store = FeatureStore(config, ViTConfig(48, 2, 2), 'abc')
    recordings = robot.open_recordings(config.robot)
    with caplog.at_level(logging.WARNING):
        store.fill(
            recordings, lambda frames: frames[:, :1, :1].astype(np.float32).reshape(-1, 1, 3)
        )
    assert 'features: 1 of 1 episodes: the video says 60 frames a second' in caplog.text
    numbers, _ = store.read(recordings, 0)
    kept = rows[numbers]
    assert kept.tolist() == [0, 4, 8, 12, 16, 20, *range(61, 110, 4)]
    with RobotStream(config, store) as stream, stream.batches(0) as hosts:
        batch = next(hosts).batch
        assert any('the video says 60' in line for line in stream.describe())
    for states, features in zip(batch.states, batch.features):
        seen = np.rint(1000 * states[:, 0]).astype(int)
        np.testing.assert_array_equal(np.diff(seen), 4)
        np.testing.assert_allclose(np.float32(features[:, 0, 0]), 2 * seen, atol=1.5)
