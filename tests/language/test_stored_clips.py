"""Features of what conversations show, computed once."""

import threading

import numpy as np
import pytest

from jepa_jax.config import ClipsConfig
from jepa_jax.data import features, synthetic
from jepa_jax.language.chat import Media
from jepa_jax.language.sight import Clips, StoredClips

LOOK = Clips(ClipsConfig(frames=2, crop=16))


@pytest.fixture(scope='module')
def media(tmp_path_factory) -> list[Media]:
    folder = tmp_path_factory.mktemp('videos')
    for i in range(6):
        synthetic.write(folder / f'{i}.mp4', np.full((4, 16, 16, 3), 40 * i, np.uint8))
    return [Media('video', str(folder / f'{i}.mp4')) for i in range(6)]


def encode(clips: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """[B, 2, 3]: means of the frames' colours."""
    return clips.mean((2, 3))


def test_processes_take_shares_that_do_not_depend_on_each_other(media, tmp_path):
    """The second looks at what is there after the first has stored a file."""
    store, calls = StoredClips(tmp_path, 'float16', (2, 3)), []

    def first(clips, apart):
        calls.append(clips)
        if len(calls) == 2:
            store.fill(media, LOOK, encode, 1, 1, 2)
        return encode(clips, apart)

    store.fill(media, LOOK, first, 1, 0, 2)
    assert all(features.is_whole(store.file(each)) for each in media)
    assert len(calls) == 3  # each took half


def test_the_next_clips_are_read_meanwhile(media, tmp_path):
    """By threads, while a batch is encoded; what is stored is what reading in turn gives, and what
    cannot be read is left out."""
    begun, beside, done = threading.Semaphore(0), [], []

    class Look(Clips):
        def __call__(self, each):
            begun.release()
            beside.append(threading.get_ident())
            return super().__call__(each)

    def slow(clips, apart):
        if not done:  # has waited for three clips: a pair, and one in place of the bad one
            assert all(begun.acquire(timeout=60) for _ in range(5))
        done.append(len(clips))
        return encode(clips, apart)

    (bad := tmp_path / 'bad.mp4').write_bytes(bytes(4000))
    shown = [media[0], Media('video', str(bad)), *media[1:]]
    (tmp_path / 'a').mkdir(), (tmp_path / 'b').mkdir()
    ahead, turn = (StoredClips(tmp_path / name, 'float16', (2, 3)) for name in 'ab')
    ahead.fill(shown, Look(LOOK.config), slow, 2, threads=2)
    assert threading.get_ident() not in beside
    assert not features.is_whole(ahead.file(shown[1]))
    turn.fill(media, LOOK, encode, 1)
    for each in media:
        np.testing.assert_array_equal(ahead(each), turn(each))
