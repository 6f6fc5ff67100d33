"""Features of what conversations show, computed once."""

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
