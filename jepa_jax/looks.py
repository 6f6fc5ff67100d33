"""What a run looks like while it learns, for its report: samples with their masks, and the features
of the same few clips at some moments.

    pictures/
      samples.npz           clips of the first batch, small, and their masks
      clips.npz             what the features are of, to go on with after a restart
      features_00000100.npz three principal components of their features after step 100
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from scipy import linalg

from jepa_jax import scratch
from jepa_jax.evals import pictures
from jepa_jax.health import local_rows
from jepa_jax.metrics import Metrics
from jepa_jax.nets import ONCE
from jepa_jax.objectives import HIDDEN, SEEN, Objective, Sample
from jepa_jax.sharding import put_batch
from jepa_jax.state import TrainState

log = logging.getLogger(__name__)

FOLDER = 'pictures'
COUNT = 2  # clips
COLUMNS = 8  # most times of a clip that are drawn
SIDE = 96  # pixels of a frame that is drawn, and a token's square at least 1
SHADES = {SEEN: 1.0, HIDDEN: 0.15}  # of a frame's brightness under its tokens
LEFT_OUT_SHADE = 0.5
GAP = 2  # pixels between pictures


def moments(steps: int, count: int) -> set[int]:
    """After which steps of a run features are looked at: the first, and each time that the run has
    become twice as long, up to its end; `count` in all, none if 0."""
    return {1, *(steps >> k for k in range(count - 1))} - {0} if count and steps else set()


class Looks:
    """The moments of one run at which its features are written down."""

    def __init__(
        self,
        objective: Objective,
        mesh: jax.sharding.Mesh,
        workdir: Path,
        *,
        steps: int,
        count: int,
        examples: Callable[[int], list[tuple[np.ndarray, str]]] = lambda count: [],
    ):
        """steps: of the run; count: of moments (logging.pictures); examples: the stream's, for
        batches without frames."""
        self._objective, self._mesh, self._folder = objective, mesh, workdir / FOLDER
        self._moments = moments(steps, count)
        self._examples = examples
        self._rows: Any = None  # of what is looked at, this process's
        self._run = jax.jit(objective.picture, compiler_options=ONCE)

    def due(self, step: int) -> bool:
        """Whether the state after a step is looked at; the same in all processes."""
        return step in self._moments

    def take(
        self, step: int, state: TrainState, frozen: dict, batch: Any, metrics: Metrics
    ) -> None:
        """Writes what is to be seen of the state after a step; batch: the step's, on the host. The
        first one of a start compiles. A disk that is full is said, and ends nothing."""
        shown = self._objective.shown(batch)
        first = jax.process_index() == 0
        if self._rows is None and shown is not None:
            self._rows = self._chosen(shown)
        features = {}
        if self._rows is not None:
            rows = put_batch(self._rows, self._mesh)
            arrays = self._run(state.params, state.ema, frozen, rows)
            if first:
                features = {k: local_rows(a)[:COUNT] for k, a in arrays.items()}
        if not first:
            return
        try:
            parts = components(features) if features else {}
        except ValueError as error:  # of features that are not finite, which the next step says
            log.warning('step %d: %s', step, error)
            return
        try:
            if not (self._folder / 'samples.npz').exists():
                samples = self._objective.samples(batch, COUNT) or [
                    Sample(frames, words=words) for frames, words in self._examples(COUNT)
                ]
                samples = [thinned(sample) for sample in samples]
                write_samples(self._folder / 'samples.npz', samples)
                for i, sample in enumerate(samples):
                    metrics.picture(step, f'samples/{i}', stacked(draw(sample)))
            if parts:
                _write(self._folder / f'features_{step:08d}.npz', parts)
                for name in features:
                    for i, clip in enumerate(parts[name]):
                        metrics.picture(step, f'{name}/{i}', _row(_painted(clip)))
        except OSError as error:
            log.warning('%s takes no pictures: %s', self._folder, error.strerror or error)

    def _chosen(self, shown: Any) -> Any:
        """Rows for every device of this process, the same clips over and over; those of an earlier
        start if there was one."""
        leaves, tree = jax.tree.flatten(shown)
        leaves = [np.asarray(leaf)[:COUNT] for leaf in leaves]
        if jax.process_index() == 0:
            leaves = self._kept(leaves)
        local = len(self._mesh.local_devices)
        rows = np.arange(-(-COUNT // local) * local) % len(leaves[0])
        return jax.tree.unflatten(tree, [leaf[rows] for leaf in leaves])

    def _kept(self, leaves: list[np.ndarray]) -> list[np.ndarray]:
        path = self._folder / 'clips.npz'
        if path.exists():
            with np.load(path) as stored:
                flat = [stored[name] for name in stored.files]
            if [len(a) for a in flat] == [leaf.nbytes for leaf in leaves]:
                return [a.view(b.dtype).reshape(b.shape) for a, b in zip(flat, leaves)]
        for old in self._folder.glob('features_*.npz'):  # of other clips
            old.unlink()
        try:  # as bytes: numpy's files do not know every type of ours
            flat = [np.frombuffer(leaf.tobytes(), np.uint8) for leaf in leaves]
            _write(path, {f'{i:03d}': a for i, a in enumerate(flat)})
        except OSError as error:
            log.warning('%s cannot be written: %s', path, error.strerror or error)
        return leaves

    def cut_back(self, step: int) -> None:
        """Removes what an earlier start wrote of steps after the one that this start begins at."""
        if jax.process_index() == 0:
            for number, path in features_of(self._folder.parent):
                if number > step:
                    path.unlink()


def components(features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Features [B, t, h, w, D] by name -> their first three principal components [B, t, h, w, 3],
    all along the axes of the first and in units of its deviation; and `shares` [3] of its
    variance."""
    first = np.asarray(next(iter(features.values())), np.float64)
    mean, axes, shares = pictures.principal(first)
    axes = axes / pictures.deviations((first - mean) @ axes.T)[:, None]
    parts = {name: ((a - mean) @ axes.T).astype(np.float32) for name, a in features.items()}
    return {**parts, 'shares': shares}


def features_of(workdir: Path) -> list[tuple[int, Path]]:
    """Steps of which features were written, ascending, and their files."""
    saves = []
    for path in (workdir / FOLDER).glob('features_*.npz'):
        if match := re.fullmatch(r'features_(\d+)', path.stem):
            saves.append((int(match[1]), path))
    return sorted(saves)


def clips_of(workdir: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The clips uint8 [n, *shape] that a run's features are of; None: there are no such."""
    path = workdir / FOLDER / 'clips.npz'
    if not path.exists():
        return None
    with np.load(path) as stored:
        flat = next(iter(stored.values()))
    return flat.reshape(-1, *shape) if len(flat) and len(flat) % np.prod(shape) == 0 else None


def thinned(sample: Sample) -> Sample:
    """A sample with at most COLUMNS frames, a token's time each, at most SIDE pixels high."""
    times = min(COLUMNS, *(len(m) for m in sample.masks.values()), len(sample.frames))
    at = np.arange(times) * len(sample.frames) // times
    frames = np.stack([_scaled(sample.frames[k]) for k in at])
    masks = {k: m[np.arange(times) * len(m) // times] for k, m in sample.masks.items()}
    return Sample(frames, masks, sample.words)


def write_samples(path: Path, samples: list[Sample]) -> None:
    """Writes thinned samples."""
    arrays = {}
    for i, sample in enumerate(samples):
        arrays[f'{i}/frames'], arrays[f'{i}/words'] = sample.frames, np.array(sample.words)
        arrays |= {f'{i}/mask/{name}': mask for name, mask in sample.masks.items()}
    _write(path, arrays)


def read_samples(workdir: Path) -> list[Sample]:
    """Those of a run, [] if there are none."""
    path = workdir / FOLDER / 'samples.npz'
    if not path.exists():
        return []
    with np.load(path) as stored:
        arrays = dict(stored)
    return [
        Sample(
            arrays[f'{i}/frames'],
            {k.split('/', 2)[2]: a for k, a in arrays.items() if k.startswith(f'{i}/mask/')},
            str(arrays[f'{i}/words']),
        )
        for i in range(sum(name.endswith('/frames') for name in arrays))
    ]


def draw(sample: Sample) -> dict[str, np.ndarray]:
    """Rows uint8 [H, W, 3] by name: the frames side by side, and so again under each mask: what is
    hidden is dark, what is in neither part half so."""
    rows = {'frames': _row(sample.frames)}
    for name, mask in sample.masks.items():
        shade = np.full(mask.shape, LEFT_OUT_SHADE)
        for state, value in SHADES.items():
            shade[mask == state] = value
        big = _enlarged(shade, sample.frames.shape[1:3])
        rows[name] = _row((sample.frames * big[..., None]).astype(np.uint8))
    return rows


def drawn_features(workdir: Path) -> dict[str, list[tuple[int, np.ndarray]]]:
    """Name of features and number of the clip -> (step, row uint8 [H, W, 3] of their colours).

    Axes of one moment say nothing of those of another: each is turned so that its colours come as
    near as they can to the moment after it, the last one stays as it is.
    """
    moments, after = [], None
    for step, path in reversed(features_of(workdir)):
        with np.load(path) as stored:
            parts = {k: a.astype(np.float64) for k, a in stored.items() if k != 'shares'}
        leading, turned = next(iter(parts.values())).reshape(-1, 3), np.eye(3)
        if after is not None and after.shape == leading.shape:
            turned, _ = linalg.orthogonal_procrustes(leading, after)
        after = leading @ turned
        moments.append((step, {k: a @ turned for k, a in parts.items()}))
    result: dict[str, list[tuple[int, np.ndarray]]] = {}
    for step, parts in reversed(moments):
        for name, a in parts.items():
            for i, clip in enumerate(_painted(a)):
                times = np.arange(min(COLUMNS, len(clip))) * len(clip) // min(COLUMNS, len(clip))
                result.setdefault(f'{name}, clip {i}', []).append((step, _row(clip[times])))
    return result


def _painted(parts: np.ndarray) -> np.ndarray:
    return (255 * pictures.painted(parts)).astype(np.uint8)


def _row(images: np.ndarray) -> np.ndarray:
    """Images uint8 [k, H, W, 3] side by side, small ones enlarged by whole pixels."""
    factor = max(1, SIDE // images.shape[1])
    images = images.repeat(factor, 1).repeat(factor, 2)
    framed = np.pad(images, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255)
    return np.concatenate(list(framed), axis=1)


def stacked(rows: dict[str, np.ndarray]) -> np.ndarray:
    """Rows of `draw`, one below the other."""
    return np.concatenate(
        [np.pad(r, ((0, GAP), (0, 0), (0, 0)), constant_values=255) for r in rows.values()]
    )


def _scaled(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    if height <= SIDE:
        return frame
    size = max(1, round(width * SIDE / height)), SIDE
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX))


def _enlarged(tokens: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Values of tokens [t, h, w] over the pixels of frames, [t, H, W]."""
    (H, W), (_, h, w) = size, tokens.shape
    return tokens[:, np.arange(H) * h // H][:, :, np.arange(W) * w // W]


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """At once, as workdir.write_text does; without waiting for the disk."""
    path.parent.mkdir(exist_ok=True)
    with scratch.whole(path) as file:
        np.savez_compressed(file, **arrays)
