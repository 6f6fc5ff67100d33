"""Frame choice against the numbers that the original gives (reference: vjepa2 §6.1)."""

import numpy as np
import pytest

from jepa_jax.config import DataConfig
from jepa_jax.data.clips import Sampling, Timing, by_time, clip_indices, frame_indices
from jepa_jax.errors import Unsuitable

FOUR = Sampling(fps=4)


def original(length, fpc, fstp, num_clips, draw, overlap):
    """The three cases as §6.1 words them, one clip after the other."""
    clip_len, partition, out = fpc * fstp, length // num_clips, []
    for i in range(num_clips):
        if partition > clip_len:
            end = draw(clip_len, partition) if draw else clip_len
            start = end - clip_len
            row = np.clip(np.linspace(start, end, num=fpc), start, end - 1).astype(np.int64)
            row = row + i * partition
        elif not overlap:
            m = partition // fstp
            row = np.concatenate((np.linspace(0, partition, num=m), np.ones(fpc - m) * partition))
            row = np.clip(row, 0, partition - 1).astype(np.int64) + i * partition
        else:
            top = min(clip_len, length) - 1
            m = top // fstp
            row = np.concatenate((np.linspace(0, top, num=m), np.ones(fpc - m) * top))
            row = np.clip(row, 0, top - 1).astype(np.int64)
            row = row + i * ((length - clip_len) // (num_clips - 1) if length > clip_len else 0)
        out.append(row)
    return np.stack(out)


def test_random_start_is_the_originals_for_its_random_state():
    step = FOUR.step(29.97, 16)
    row = clip_indices(300, 16, step, draw=np.random.RandomState(0).randint)[0]
    assert row[:4].tolist() == [172, 179, 186, 194] and row[-2:].tolist() == [276, 283]


@pytest.mark.parametrize(
    'length, fps, expected',
    [
        (100, 29.97, [0, 7, 15, 23, 30, 38, 46, 53, 61, 69, 76, 84, 92, 99, 99, 99]),
        (60, 25.0, [0, 6, 13, 20, 26, 33, 40, 46, 53] + [59] * 7),
    ],
)
def test_short_video_repeats_its_last_frame(length, fps, expected):
    timing = Timing(length, fps, length / fps)
    rng = np.random.default_rng(0)
    assert frame_indices(timing, 16, FOUR, rng).tolist() == expected


def test_eval_clips_overlap():
    rows = clip_indices(300, 16, 4, num_clips=8, overlap=True)
    assert rows[0, :4].tolist() == [0, 4, 9, 13] and rows[0, -3:].tolist() == [58, 62, 62]
    assert (np.diff(rows, axis=0) == 33).all()


@pytest.mark.parametrize('overlap', [False, True])
@pytest.mark.parametrize('num_clips', [1, 2, 8])
def test_all_cases_match_the_rules(num_clips, overlap):
    for length in [9, 16, 60, 63, 64, 65, 200, 511, 512, 513, 1000]:
        for step in (1, 4, 7):
            for seed in (None, 3):
                draws = [seed if seed is None else np.random.RandomState(seed).randint] * 2
                if seed is not None:
                    draws[1] = np.random.RandomState(seed).randint
                ours = clip_indices(
                    length, 16, step, num_clips=num_clips, draw=draws[0], overlap=overlap
                )
                theirs = original(length, 16, step, num_clips, draws[1], overlap)
                np.testing.assert_array_equal(ours, theirs, f'{length} {step}')
                assert ours.min() >= 0 and ours.max() < length


def test_a_single_frame_is_repeated():
    """There the original asks for frame -1."""
    for overlap in (False, True):
        assert (clip_indices(1, 16, 7, num_clips=2, overlap=overlap) == 0).all()


@pytest.mark.parametrize(
    'fps, step', [(24, 6), (23.976, 6), (25, 6), (29.97, 7), (30, 7), (60, 15)]
)
def test_step_from_fps(fps, step):
    assert FOUR.step(fps, 16) == step


def test_step_from_the_other_rules():
    assert Sampling(duration=4.0).step(29.97, 16) == 7  # int(4 * 30 / 16)
    assert Sampling(frame_step=5).step(29.97, 16) == 5
    assert Sampling.from_config(DataConfig()) == FOUR


@pytest.mark.parametrize('rule', [FOUR, Sampling(duration=1.0)])
def test_slow_video_is_refused(rule):
    with pytest.raises(Unsuitable, match='2.5 frames a second') as caught:
        rule.step(2.5, 16)
    assert caught.value.reason == 'slow'


@pytest.mark.parametrize('rules', [{}, {'fps': 4, 'frame_step': 2}, {'fps': -4}])
def test_exactly_one_rule(rules):
    with pytest.raises(ValueError, match='exactly one of fps, frame_step, duration'):
        Sampling(**rules)


def test_random_starts_are_spread_and_reproducible():
    timing = Timing(300, 30.0, 10.0)
    starts = [frame_indices(timing, 16, FOUR, np.random.default_rng(s))[0] for s in range(2000)]
    again = [frame_indices(timing, 16, FOUR, np.random.default_rng(s))[0] for s in range(20)]
    assert starts[:20] == again
    assert min(starts) == 0 and max(starts) == 187  # ends are drawn from [112, 300)
    assert np.histogram(starts, 4, (0, 188))[0].min() > 420  # of 500 expected


def test_variable_rate_is_sampled_by_time():
    """10 frames a second for 5 s, then 50: the clip's frames stay evenly spread in time."""
    times = np.concatenate([np.arange(50) / 10, 5 + np.arange(250) / 50])
    timing = Timing(300, 299 / times[-1], times[-1] + 0.03, times)
    picked = frame_indices(timing, 16, FOUR)
    gaps = np.diff(times[picked])
    assert gaps.min() > 0.15 and gaps.max() < 0.35  # nominally 16 * 7 / 15 frames of 1 / 30 s
    by_number = np.diff(times[clip_indices(300, 16, 7)[0]])
    assert by_number.max() > 0.6  # what frame numbers would do


def test_even_rate_is_left_alone():
    indices = np.array([0, 3, 299])
    assert by_time(indices, Timing(300, 30.0, 10.0)) is indices
    jittered = np.arange(300) / 30 + np.random.default_rng(0).uniform(-0.01, 0.01, 300)
    np.testing.assert_array_equal(by_time(indices, Timing(300, 30.0, 10.0, jittered)), indices)
