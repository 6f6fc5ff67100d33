"""Recordings as NumPy files: the layout for data of one's own."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from jepa_jax.config import RobotConfig
from jepa_jax.data import npz
from jepa_jax.data.robot.contract import STATE, as_contract, fit_extrinsics
from jepa_jax.data.robot.episodes import Episode, state_of
from jepa_jax.data.sources import VIDEOS
from jepa_jax.errors import BadFile, ConfigError


class Npz:
    """A folder of NAME.npz with `states` [T, 7] (or [1, T, 7]) and either `observations` uint8
    [T, H, W, 3] and `fps`, or a video NAME.mp4 beside it."""

    def __init__(self, data: RobotConfig) -> None:
        path, self._data = Path(data.path), data
        if not path.is_dir():
            raise ConfigError(f'robot.path = {data.path!r}: no such folder')
        self._files = sorted(str(p) for p in path.rglob('*.npz'))
        if not self._files:
            raise ConfigError(f'robot.path = {data.path!r}: no .npz file in or below it')

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        return self._files[index]

    def state(self, index: int) -> str:
        path = self._files[index]
        return state_of(path, *_videos_beside(path))

    def episode(self, index: int) -> Episode:
        path = self._files[index]
        arrays, notes = npz.load_all(path), []
        if 'states' not in arrays:
            held = ', '.join(arrays) or 'nothing'
            raise BadFile(path, 'bad_state', f'no array states; it holds {held}')
        for key in ('states', 'observations', 'extrinsics'):
            if key in arrays and arrays[key].ndim == (5 if key == 'observations' else 3):
                if len(arrays[key]) != 1:
                    raise BadFile(path, 'bad_state', f'{key} holds {len(arrays[key])} episodes')
                arrays[key] = arrays[key][0]
        if 'actions' in arrays and (arrays['actions'].shape or (0,))[-1] != len(STATE):
            # those of the right width are not used: the contract's are differences of states
            raise BadFile(
                path,
                'bad_action',
                f'actions have shape {list(arrays["actions"].shape)}, must have [T - 1, 7], '
                'differences of states',
            )
        extrinsics = fit_extrinsics(
            arrays.get('extrinsics'),
            arrays['states'].shape[0] if arrays['states'].ndim else 0,
            notes,
        )
        states = as_contract(path, arrays['states'], self._data, extrinsics)
        if (pixels := arrays.get('observations')) is not None:
            if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
                kind = f'{pixels.dtype} {list(pixels.shape)}'
                raise BadFile(
                    path, 'not_array', f'observations: {kind}, must be uint8 [T, H, W, 3]'
                )
            if 'fps' not in arrays:
                raise BadFile(path, 'bad_state', 'observations need fps, frames a second, beside')
            return Episode(
                path, states, fps=_fps(path, arrays['fps']), pixels=pixels,
                extrinsics=extrinsics, notes=notes,
            )  # fmt: skip
        if not (videos := _videos_beside(path)):
            stem = os.path.splitext(path)[0]
            held = ', '.join(arrays)
            words = f'neither observations nor a video {stem}.mp4; it holds {held}'
            raise BadFile(path, 'no_camera', words)
        return Episode(path, states, videos[0], extrinsics=extrinsics, notes=notes)


def _fps(path: str, value: np.ndarray) -> float:
    if value.size != 1 or value.dtype.kind not in 'fiu' or not 0 < value.item() < 1e4:
        text = f'{value.item():g}' if value.size == 1 and value.dtype.kind in 'fiu' else ''
        raise BadFile(path, 'bad_state', f'fps is {text or value.dtype}: must be a number above 0')
    return float(value.item())


def _videos_beside(path: str) -> list[str]:
    """The video with the name of an .npz file, if it is there."""
    stem = os.path.splitext(path)[0]
    return [stem + end for end in sorted(VIDEOS) if os.path.exists(stem + end)][:1]
