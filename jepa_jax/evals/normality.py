"""How far windows of video are from what is normal, token by token, and from that a number.

    shown = look(expects, source, seconds, ...)   # errors and features of a video's windows
    detector = fit(...)                            # what normal video has
    detector.scores(shown)['density']              # [w]

A window's first frames are seen, the rest is judged: `surprise`, what the predictor expects against
what the target encoder sees there; `density`, the mean distance of these features to the nearest
normal ones; `copy`, the last features seen instead of the predictor's; `pixels`, likewise. Errors
are taken in units of what each place of the picture has in normal video, and the highest of a
window are averaged, because what is odd is small.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter1d

from jepa_jax import files, scratch
from jepa_jax.config.anomaly import AnomalyConfig, CameraConfig
from jepa_jax.data import decode, kinds, npz, pictures
from jepa_jax.data import windows as cut
from jepa_jax.data.clips import Sampling
from jepa_jax.errors import BadFile, ConfigError, Unsuitable
from jepa_jax.evals import surprise
from jepa_jax.evals.physics import view_of
from jepa_jax.workdir import write_json

VERSION = 1  # in the cache's name: change it with anything that changes a number
READERS = ('surprise', 'density', 'copy', 'pixels')
FILE, ABOUT = 'detector.npz', 'detector.json'

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Shown:
    """What the windows of a video have, token by token of what is judged."""

    errors: dict[str, np.ndarray]  # surprise, copy, pixels: [w, n] float32
    features: np.ndarray  # [w, n, D] float16, standardised
    covers: np.ndarray  # [w, 2]: the first sampled frame that is judged, and the end
    numbers: np.ndarray  # [s] which frames of the file were sampled
    seconds: np.ndarray  # [f] when each frame of the file is shown


def opened(path: str, data: CameraConfig) -> tuple[cut.Input, np.ndarray]:
    """A video with its sampled frames, and when all of its frames are shown, [f] seconds.

    Raises BadFile: it cannot be read, or is a picture.
    """
    kind = 'folder' if os.path.isdir(path) else kinds.kind_of(path)
    if kind == 'image':
        raise BadFile(path, 'short', 'a picture, must be a video or a folder of frames')
    timing = None
    if kind == 'video':
        timing = decode.probe(path)
    elif kind == 'stack':
        timing = pictures.Stack(path).timing
    if timing is not None and timing.fps:
        source = cut.open_input(path, data.fps or timing.fps)
        times = timing.times
        if times is None:
            times = np.arange(timing.frames) / timing.fps
        return source, times - times[0]
    source = cut.open_input(path, data.rate)
    step = step_of(path, data.rate, data.fps)
    every = dataclasses.replace(
        source, numbers=source.numbers[::step], seconds=source.seconds[::step],
        spacing=step * source.spacing,
    )  # fmt: skip
    return every, source.seconds


def step_of(path: str, rate: float, fps: float) -> int:
    """Every which frame of `rate` a second is taken. Raises BadFile: there are too few of them."""
    try:
        return int(Sampling(fps=fps).step(rate, 1)) if fps else 1
    except Unsuitable as error:
        raise BadFile(path, error.reason, error.detail) from error


def crop_of(model, config: AnomalyConfig) -> int:
    """Pixels of a window's side. Raises ConfigError, also where windows do not fit the model."""
    data, c = config.data, model.config
    crop = data.crop or c.image_size
    if crop % c.patch:
        raise ConfigError(f'data.crop = {crop}: must be a multiple of {c.patch}, the patch')
    for name in ('frames', 'ahead'):
        if (value := getattr(data, name)) % c.tubelet:
            raise ConfigError(
                f'data.{name} = {value}: must be a multiple of {c.tubelet}, the tubelet'
            )
    return crop


def errors_of(
    expects: surprise.Expects, clips: np.ndarray, config: AnomalyConfig, predicts: bool
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Errors by reader [B, n] and features [B, n, D] of windows uint8 [B, F, H, W, 3]."""
    data = config.data
    size = -(-len(clips) // config.batch) * config.batch  # one shape, one program
    full = np.concatenate([clips, np.repeat(clips[-1:], size - len(clips), 0)])
    parts = []
    for group in np.split(full, size // config.batch):
        targets = surprise.standardise(expects.target(group))
        tokens = (config.mask_token,) if predicts else ()
        C = data.frames - data.ahead
        rows = surprise.by_token(expects, group, targets, C, data.ahead, tokens)
        own = [rows.copy, rows.pixels, targets[:, -rows.copy.shape[1] :]]
        parts.append([*own, rows.model[:, 0]] if predicts else own)
    copy, pixels, features, *model = (np.concatenate(p)[: len(clips)] for p in zip(*parts))
    names = ('surprise', 'copy', 'pixels') if predicts else ('copy', 'pixels')
    return dict(zip(names, (*model, copy, pixels))), features.astype(np.float16)


def look(
    expects: surprise.Expects,
    path: str,
    config: AnomalyConfig,
    crop: int,
    predicts: bool,
    part: tuple[float, float] = (0.0, 1.0),
) -> Shown:
    """The windows of a video, or of a part of it.

    part: shares of its length at which it begins and ends.

    Raises BadFile: it cannot be read to its end, or is shorter than a window.
    """
    data = config.data
    source, seconds = opened(path, data)
    count = len(source.numbers)
    piece = slice(*(round(share * count) for share in part))
    source = dataclasses.replace(
        source, numbers=source.numbers[piece], seconds=source.seconds[piece]
    )
    count = len(source.numbers)
    if count < data.frames:
        what = f'{count} sampled frames, and a window has {data.frames}'
        raise BadFile(path, 'short', what)
    view = view_of(data.view, crop)
    clips = (w.clip for w in cut.windows(source, data.frames, data.ahead, view))
    parts = []
    for group in _groups(cut.ahead(clips), config.batch):
        parts.append(errors_of(expects, np.stack(group), config, predicts))
    errors = {name: np.concatenate([p[0][name] for p in parts]) for name in parts[0][0]}
    ends = np.array(cut.starts(count, data.frames, data.ahead)) + data.frames
    covers = np.stack([ends - data.ahead, ends], 1)
    features = np.concatenate([p[1] for p in parts])
    return Shown(errors, features, covers, source.numbers, seconds)


def _groups(items: Iterator, size: int) -> Iterator[list]:
    group = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


# --- Kept on disk ---------------------------------------------------------------------------------


class Cache:
    """What videos showed to a model, a file each, in a folder whose name is a hash of the model and
    of how windows are cut and seen."""

    def __init__(self, folder: Path, model: dict[str, Any], config: AnomalyConfig, crop: int):
        """model: hashes of its weights and what shapes it, JSON."""
        view = {k: getattr(config.data, k) for k in ('frames', 'ahead', 'fps', 'rate', 'view')}
        facts = {
            'version': VERSION,
            'model': model,
            'crop': crop,
            'token': config.mask_token,
            **view,
        }
        self.place = folder / _hash(facts)
        self.place.mkdir(parents=True, exist_ok=True)
        scratch.sweep(self.place)
        write_json(self.place / 'about.json', facts)

    def get(self, path: str, part: tuple[float, float], make: Callable[[], Shown]) -> Shown:
        """From the folder if it is there, else made and kept; BadFile of a video goes through."""
        file = self.place / f'{_hash([state(path), part])}.npz'
        if file.exists():
            try:
                return _unpacked(npz.load_all(file))
            except BadFile as error:
                log.warning('made again: %s', error)
        shown = make()
        arrays = {f'errors/{name}': values for name, values in shown.errors.items()}
        rest = ('features', 'covers', 'numbers', 'seconds')
        save(file, arrays | {name: getattr(shown, name) for name in rest})
        return shown


def _unpacked(arrays: dict[str, np.ndarray]) -> Shown:
    errors = {k.split('/')[1]: arrays.pop(k) for k in [k for k in arrays if '/' in k]}
    return Shown(errors, **arrays)


def _hash(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def state(path: str) -> list:
    """A path with size and time of change; of a folder those of its files. Missing: the path."""
    try:
        if os.path.isdir(path):
            entries = sorted(
                (e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in os.scandir(path)
            )
            return [os.path.abspath(path), entries]
        status = os.stat(path)
        return [os.path.abspath(path), status.st_size, status.st_mtime_ns]
    except (OSError, ValueError):
        return [path]


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an .npz, whole or not at all.

    Raises:
      ConfigError: the disk has not enough room.
    """
    need, free = sum(a.nbytes for a in arrays.values()), shutil.disk_usage(path.parent).free
    if need > free:
        raise ConfigError(
            f'{path.parent}: {need / 2**20:.0f} MiB of features to be kept, {free / 2**20:.0f} MiB '
            'are free'
        )
    with scratch.whole(path) as file:
        np.savez(file, **arrays)


# --- Normal, and how far from it ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Detector:
    """What normal video has, and above which score something is not."""

    bank: np.ndarray  # [b, D] float32: normal features
    neighbours: int
    top: float
    middle: dict[str, np.ndarray]  # reader -> [n]: error of each token in normal video
    spread: dict[str, np.ndarray]  # and its deviation
    thresholds: dict[str, float] = dataclasses.field(default_factory=dict)
    made_for: dict[str, Any] = dataclasses.field(default_factory=dict)  # the model's hashes

    @functools.cached_property
    def _nearest(self):
        from sklearn.neighbors import NearestNeighbors

        count = min(self.neighbours, len(self.bank))
        return NearestNeighbors(n_neighbors=count, algorithm='brute').fit(self.bank)

    def errors(self, errors: dict[str, np.ndarray], features: np.ndarray) -> dict[str, np.ndarray]:
        """With that of density: [w, n] by reader."""
        D = features.shape[-1]
        distances, _ = self._nearest.kneighbors(features.reshape(-1, D).astype(np.float32))
        density = distances.mean(1).reshape(features.shape[:2]) / D**0.5
        return errors | {'density': density.astype(np.float32)}

    def scores(self, errors: dict[str, np.ndarray], features: np.ndarray) -> dict[str, np.ndarray]:
        """[w] by reader: the higher, the less normal."""
        return {
            name: highest((values - self.middle[name]) / self.spread[name], self.top)
            for name, values in self.errors(errors, features).items()
        }

    def save(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        arrays = {'bank': self.bank}
        for name in self.middle:
            arrays |= {f'middle/{name}': self.middle[name], f'spread/{name}': self.spread[name]}
        save(folder / FILE, arrays)
        about = {k: getattr(self, k) for k in ('neighbours', 'top', 'thresholds', 'made_for')}
        write_json(folder / ABOUT, about)

    @classmethod
    def load(cls, folder: Path, model: dict[str, Any]) -> Detector:
        """Raises ConfigError: there is none, or one of another model."""
        if not (folder / ABOUT).exists():
            raise ConfigError(f'{folder}: has no detector; delete report.json to have it made')
        about, arrays = files.read_json(folder / ABOUT), npz.load_all(folder / FILE)
        if about['made_for'] != model:
            raise ConfigError(f'{folder}: a detector that was made with another model')
        parts = {
            kind: {k.split('/')[1]: v for k, v in arrays.items() if k.startswith(f'{kind}/')}
            for kind in ('middle', 'spread')
        }
        return cls(arrays['bank'], **parts, **about)


def highest(values: np.ndarray, share: float) -> np.ndarray:
    """[w]: the mean of the highest share of values [w, n], at least of one."""
    count = math.ceil(share * values.shape[1])
    return np.partition(values, -count, axis=1)[:, -count:].mean(1)


def sample(features: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the features [w, n, D], or all, [k, D] float32."""
    flat = features.reshape(-1, features.shape[-1])
    rows = rng.choice(len(flat), min(count, len(flat)), replace=False)
    return flat[np.sort(rows)].astype(np.float32)


def places(errors: Sequence[dict[str, np.ndarray]], by_place: bool) -> tuple[dict, dict]:
    """Mean and deviation by reader, of each token [n], or of all together.

    A deviation below the middle one counts as that: where nothing ever moved, one does not know.
    """
    middle, spread = {}, {}
    for name in errors[0]:
        values = np.concatenate([each[name] for each in errors])
        middle[name], deviation = values.mean(0), values.std(0)
        if not by_place:
            middle[name] = np.full_like(middle[name], values.mean())
            deviation = np.full_like(deviation, values.std())
        spread[name] = np.maximum(deviation, max(float(np.median(deviation)), 1e-6))
    return middle, spread


def by_frame(values: np.ndarray, shown: Shown, smooth: float = 0.0) -> np.ndarray:
    """[f]: a score for every frame of the file, of windows' values [w].

    A value goes to the sampled frames that its window judges, the mean where several do. Frames
    before the first of these take its value, frames that were not sampled that of the last one
    before them.
    """
    total, times = np.zeros(len(shown.numbers)), np.zeros(len(shown.numbers))
    for (first, end), value in zip(shown.covers, values):
        total[first:end] += value
        times[first:end] += 1
    judged = np.flatnonzero(times)
    sampled = (total / np.maximum(times, 1))[np.maximum(np.arange(len(total)), judged[0])]
    at = np.searchsorted(shown.numbers, np.arange(len(shown.seconds)), 'right') - 1
    scores = sampled[at.clip(0)]
    return gaussian_filter1d(scores, smooth, mode='nearest') if smooth else scores


def threshold(scores: np.ndarray, rate: float) -> float:
    """The lowest score of normal frames above which no more than a share `rate` of them lies."""
    ordered = np.sort(scores)
    return float(ordered[len(ordered) - 1 - math.floor(rate * len(ordered))])
