"""A model ready for use: pixels in, features, predictions and classes out.

The model owns the normalisation: it takes uint8 pixels, and floats only when told that they are
normalised. Its encoder looks both ways in time, so forecasting goes through `predict`, which never
shows the encoder what is to be predicted.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax import inputs
from jepa_jax.checkpoint import hash_arrays
from jepa_jax.data import decode
from jepa_jax.data.clips import Timing
from jepa_jax.data.kinds import PICTURES
from jepa_jax.data.labelled.clips import of_video
from jepa_jax.data.labelled.records import Record
from jepa_jax.data.views import eval_view, picture_view
from jepa_jax.data.windows import Input, Window, length, open_input, spread, windows
from jepa_jax.encoder import FRAMES, shape_of
from jepa_jax.encoder import Encoder as Encoder
from jepa_jax.encoder import Loaded as Loaded
from jepa_jax.encoder import ProbeHead as ProbeHead
from jepa_jax.errors import InputError
from jepa_jax.inputs import FPS, Trained
from jepa_jax.models.pooler import AttentiveClassifier, average_tokens, pooler
from jepa_jax.models.predictor import Predictor
from jepa_jax.models.vit import ViTConfig
from jepa_jax.nets import Net
from jepa_jax.outputs import Classes as Classes
from jepa_jax.outputs import Features as Features
from jepa_jax.predictions import Fill as Fill
from jepa_jax.predictions import Future as Future
from jepa_jax.predictions import Prediction as Prediction
from jepa_jax.sharding import batch_spec
from jepa_jax.weights.shapes import size_of

POOLS = ('none', 'mean', 'attentive')


class Model:
    """An encoder, and what came with it: predictor, action-conditioned predictor, probe."""

    def __init__(
        self,
        encoder: Loaded | Encoder,
        *,
        predictor: Loaded | None = None,
        ac_predictor: Loaded | None = None,
        probe: ProbeHead | None = None,
        about: Sequence[str] = (),
        name: str = '',
        which: str = '',
        trained: Trained | None = None,
    ):
        """about: lines that tell where the weights are from and what was chosen; name: of the
        model, or its path; which: the encoder is `target`, `online`, or what else people say;
        trained: on what, where that is known."""
        self.config: ViTConfig = encoder.config
        self.encoder = Encoder(encoder.config, encoder.params)
        self.predictor, self.ac_predictor = predictor, ac_predictor
        self.probe = probe
        self.about = tuple(about)
        self.name, self.which, self.trained = name, which, trained
        self._answers = functools.cache(self._make_answers)
        self._sizes: dict[tuple, int] = {}  # shape of a clip -> largest batch of them so far

    def __repr__(self) -> str:
        c, size = self.config, size_of(self.config)
        name = size if self.name in ('', size) else f'{self.name}, size {size}'
        line = (
            f'Model({name}: {self.which or "its"} encoder of {shape_of(c, self.encoder.params)}, '
            f'crop {c.image_size}, computes in {np.dtype(c.dtype).name})'
        )
        more = [
            f'{title} of {shape_of(net.config, net.params)}'
            for title, net in (
                ('predictor', self.predictor),
                ('action-conditioned predictor', self.ac_predictor),
            )
            if net
        ]
        if self.probe:
            classes = ', '.join(f'{head} {n}' for head, n in self.probe.classes.items())
            more.append(f'probe with classes {classes}')
        return line + ('\n  with ' + '; '.join(more) if more else '')

    # Features

    def embed(
        self,
        video: inputs.Video | Sequence[inputs.Video],
        *,
        frames: int | None = None,
        fps: float = FPS,
        crop: int | None = None,
        preprocess: str = 'eval',
        pool: str = 'none',
        layers: Sequence[int] = (),
        stride: int | None = None,
        batch: int = 1,
        normalised: bool = False,
    ) -> Features | list[Features]:
        """Features of a video, an image, a folder of frames, a .npy file, or an array.

        All of them are held in memory: for long videos take `stream`, or pool.

        Args:
          video: a path; or uint8 [T, H, W, 3], cut into windows like a video, or a list of its
            frames [H, W, 3]; or [n, T, H, W, 3], windows already; or a list of these, which gives a
            list of Features. Arrays may be of any library whose arrays numpy reads: torch, PIL.
          frames: of each window; None: 16. An image is one frame where the model has a way of its
            own for images, else as many, or one tubelet. A model of images (I-JEPA) takes the
            frames of a video one by one.
          fps: frames a second to sample a video at, or that an array or a folder has.
          crop: pixels of the evaluation view; None: as the model was trained.
          preprocess: 'eval': short side to crop * 256 / 224, middle cut out, by the original's rule
            to the pixel; 'none': as it is, any multiple of the patch, not only squares.
          pool: 'none': all tokens; 'mean' over them; 'attentive': the probe's pooler.
          layers: blocks (from 0, or -1 for the last) whose features to return too, through the
            final norm.
          stride: sampled frames from one window to the next; None: no overlap but at the end.
          batch: windows that go through the encoder together.
          normalised: floats with ImageNet's mean and deviation taken out; else only uint8.

        Raises:
          BadFile: a file that cannot be read. InputError: pixels or settings that cannot be used.
        """
        video = inputs.as_arrays(video)
        if isinstance(video, list):
            same = dict(frames=frames, fps=fps, crop=crop, preprocess=preprocess, pool=pool)
            same |= dict(layers=layers, stride=stride, batch=batch, normalised=normalised)
            return [self.embed(one, **same) for one in video]
        inputs.check_video(video, preprocess, normalised)
        inputs.check_rate(fps)
        if isinstance(video, np.ndarray) and video.ndim == 5:
            for name, value in (('frames', frames), ('stride', stride)):
                if value not in (None, video.shape[1]):
                    words = f'must be {video.shape[1]}, as windows [n, T, H, W, 3] are cut already'
                    raise InputError(f'{name} {value}: {words}')
            self._check_frames(video.shape[1])
            self._warn(video.shape[1], video.shape[2:4], crop, preprocess, fps)
            view = self._view(inputs.array_input(video[0], fps), crop, preprocess)
            tubelet = self.config.tubelet_of(video.shape[1])
            source = inputs.array_windows(video, fps, view, tubelet)
        else:
            one = inputs.array_input(video, fps) if isinstance(video, np.ndarray) else video
            source = self.windows(
                one, frames=frames, fps=fps, crop=crop, preprocess=preprocess, stride=stride
            )
        results = self.stream(source, pool=pool, layers=layers, batch=batch, normalised=normalised)
        rows, outputs = zip(*results)
        grid = self.config.grid(*rows[0].clip.shape[:3])
        return Features(
            clips=np.stack([row.clip for row in rows]),
            numbers=np.stack([row.numbers for row in rows]),
            seconds=np.stack([row.seconds for row in rows]),
            coords=self.coords(grid, rows[0].spacing, len(rows[0].clip)),
            grid=grid,
            **{key: np.stack([output[key] for output in outputs]) for key in outputs[0]},
        )

    def windows(
        self,
        video: str | os.PathLike | Input,
        *,
        frames: int | None = None,
        fps: float = FPS,
        crop: int | None = None,
        preprocess: str = 'eval',
        stride: int | None = None,
        start: float = 0.0,
    ) -> Iterator[Window]:
        """The windows of an input as the encoder is to see them; arguments as of `embed`; start:
        the seconds at which the first one begins.

        Raises:
          BadFile, InputError: as `embed`; when the first window is asked for.
        """
        c = self.config
        inputs.check_rate(fps)
        source = video if isinstance(video, Input) else open_input(video, fps)
        source = inputs.from_second(source, start)
        self._check_frames(frames)
        if c.still or source.kind == 'image' and (c.modalities or frames is None):
            frames = c.tubelet_of(1)
        frames = FRAMES if frames is None else frames
        tubelet = c.tubelet_of(frames)
        if frames < tubelet or frames % tubelet:
            raise InputError(f'frames {frames}: must be a multiple of {tubelet}, the tubelet')
        frames = length(source, frames, c.tubelet_of(len(source.numbers)))
        stride = frames if stride is None else stride
        if stride < 1:
            raise InputError(f'stride {stride}: must be at least 1')
        rate = 0 if source.kind == 'image' else fps
        self._warn(frames, source.size, crop, preprocess, rate)
        yield from windows(source, frames, stride, self._view(source, crop, preprocess))

    def _check_frames(self, frames: int | None) -> None:
        """Raises InputError for frames of a window that a model of images cannot take."""
        if self.config.still and frames not in (None, 1):
            raise InputError(f'frames {frames}: must be 1, this is a model of images')

    def _check_sides(self, what: str, clips: np.ndarray) -> None:
        """Raises InputError where a part of clips [B, T, H, W, 3] would be left out."""
        units = self.config.tubelet_of(clips.shape[1]), self.config.patch, self.config.patch
        for name, side, unit in zip(('frames', 'height', 'width'), clips.shape[1:4], units):
            if side < unit or side % unit:
                raise InputError(f'{what} {name} {side}: must be a multiple of {unit}')

    def _warn(self, frames: int, size, crop: int | None, preprocess: str, fps: float) -> None:
        """Says what is beyond what the model was trained on."""
        side = self.config.image_size if crop is None else crop
        size = (side, side) if preprocess == 'eval' else size
        if self.trained and (line := self.trained.exceeded(frames, size, fps)):
            warnings.warn(line, stacklevel=3)

    def _view(self, source: Input, crop: int | None, preprocess: str):
        """What is done to the frames of an input."""
        c = self.config
        return inputs.view(source, crop, preprocess, trained=c.image_size, patch=c.patch)

    def stream(
        self,
        source: Iterable[Window],
        *,
        pool: str = 'none',
        layers: Sequence[int] = (),
        batch: int = 1,
        normalised: bool = False,
    ) -> Iterator[tuple[Window, dict[str, np.ndarray]]]:
        """Each window with its features: `tokens` [N, D] or `pooled`, and `levels` if layers are
        asked for. Windows of one shape that follow each other go through together, up to `batch`.

        Raises:
          InputError: unknown pooling, a layer that is not there, no probe to pool with.
        """
        depth = self.config.depth
        layers = self.blocks(layers)
        if pool not in POOLS:
            raise InputError(f"pool '{pool}': allowed are {', '.join(POOLS)}")
        if pool == 'attentive':
            self._need_probe('pool attentive')
        if batch < 1:
            raise InputError(f'batch {batch}: must be at least 1')
        if layers and pool == 'attentive':
            raise InputError('layers with pool attentive: a probe reads the layers it was made for')

        def run(group: list[Window]) -> Iterator[tuple[Window, dict[str, np.ndarray]]]:
            clips = np.stack([window.clip for window in group])
            inputs.check_pixels(clips, normalised, decoded=True)
            shape = clips.shape[1:]
            # a last, smaller batch is filled up: compiling takes longer than a few rows
            known = self._sizes.get(shape, 0)
            size = max(len(clips), min(batch, known))
            self._sizes[shape] = max(size, known)
            clips = np.concatenate([clips, np.repeat(clips[-1:], size - len(clips), axis=0)])
            if pool == 'attentive':
                reads = self._probe_reads(jnp.asarray(clips))
                outputs = {'pooled': self._pooler(self.probe.params['pooler'], reads)}
            else:
                blocks = tuple(sorted({*layers, depth - 1}))
                levels = self.encode(jnp.asarray(clips), blocks)
                if pool == 'mean':
                    levels = [level.mean(axis=1) for level in levels]
                outputs = {'tokens' if pool == 'none' else 'pooled': levels[-1]}
                if layers:
                    outputs['levels'] = jnp.stack([levels[blocks.index(i)] for i in layers], axis=1)
            outputs = {name: np.asarray(value) for name, value in outputs.items()}
            for i, window in enumerate(group):
                yield window, {name: value[i] for name, value in outputs.items()}

        group: list[Window] = []
        for window in source:
            if group and (len(group) == batch or window.clip.shape != group[0].clip.shape):
                yield from run(group)
                group = []
            group.append(window)
        if group:
            yield from run(group)

    def blocks(self, layers: Sequence[int]) -> tuple[int, ...]:
        """As Encoder.blocks."""
        return self.encoder.blocks(layers)

    def hash(self, probe: bool = False) -> str:
        """Of all that shapes features: configs and weights of the encoder, and of what the probe
        reads with."""
        nets = {'encoder': self.encoder}
        if probe:
            nets |= {'probe': self._need_probe('hash'), 'predictor': self.predictor}
        nets = {name: net for name, net in nets.items() if net}
        text = hash_arrays({name: net.params for name, net in nets.items()})
        text += ''.join(repr(net.config) for net in nets.values())
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def encode(self, clips: np.ndarray | jax.Array, levels: tuple[int, ...] = ()) -> Any:
        """The encoder on clips that are known to be fit: [B, T, H, W, 3], uint8 or normalised ->
        [B, N, D] float32, or a list of those after the blocks `levels`."""
        return self.encoder(jnp.asarray(clips), levels=levels)

    def coords(
        self,
        grid: tuple[int, int, int],
        spacing: float,
        frames: int,
        ids: np.ndarray | None = None,
    ) -> np.ndarray:
        """Where tokens of a clip of so many frames lie, [N, 3] float32: see Features. spacing:
        seconds between frames."""
        t, h, w = grid
        ids = np.arange(t * h * w) if ids is None else ids
        tubelet, patch = self.config.tubelet_of(frames), self.config.patch
        seconds = (ids // (h * w) * tubelet + (tubelet - 1) / 2) * spacing
        y, x = (ids // w % h + 0.5) * patch, (ids % w + 0.5) * patch
        return np.stack([seconds, y, x], axis=1).astype(np.float32)

    # Predictions

    def predict(
        self,
        context: inputs.Video,
        targets: Fill | Future,
        *,
        fps: float = FPS,
        mask_index: int = 0,
        normalised: bool = False,
        start: float = 0.0,
        **viewing: Any,
    ) -> Prediction:
        """What the predictor expects where the encoder is not allowed to look.

        Masked tokens are taken out before the encoder, as in training, so what is to be predicted
        cannot leak into the context.

        Args:
          context: [T, H, W, 3] or [B, T, H, W, 3], uint8 or normalised floats, as they are; or a
            path, of which one window is taken as `embed` would. For Fill the whole clip, of which
            the masked part is not looked at; for Future the past alone.
          targets: the task.
          fps: frames a second of the clip.
          mask_index: which mask token asks. Pretraining with one frame count, as of all released
            models, trains token 0 alone; the original's anticipation and transformers ask with
            token 1, which then is as it began (reference: vjepa2 §3).
          normalised: as in `embed`.
          start: seconds of a path at which the window begins.
          viewing: of a path, as of `embed`: frames, crop, preprocess.

        Raises:
          BadFile: a path that cannot be read.
          InputError: no predictor, or a task that does not fit the clip.
        """
        if self.predictor is None:
            raise InputError('these weights have no predictor: predict needs one')
        context = inputs.as_arrays(context)
        if isinstance(context, list):
            raise InputError('predict takes one clip, or a batch [B, T, H, W, 3], no list of them')
        if isinstance(context, np.ndarray):
            if viewing or start:
                named = ', '.join([*viewing, *(['start'] if start else [])])
                raise InputError(f'{named}: for a path; an array is taken as it is')
            inputs.check_video(context, 'none', normalised)
            inputs.check_rate(fps)
            clips = context[None] if context.ndim == 4 else context
            self._warn(clips.shape[1], clips.shape[2:4], None, 'none', fps)
        else:
            window = next(self.windows(context, fps=fps, start=start, **viewing))
            clips, fps = window.clip[None], 1 / window.spacing if window.spacing else fps
        c = self.config
        T = clips.shape[1]
        self._check_sides('context', clips)
        grid = t, h, w = c.grid(*clips.shape[1:4])
        if isinstance(targets, Fill):
            mask = np.asarray(targets.mask)
            if mask.shape != grid or mask.dtype != bool:
                raise InputError(
                    f'mask {mask.dtype} {list(mask.shape)}: must be bool {list(grid)}, the grid'
                )
            if mask.all() or not mask.any():
                raise InputError(f'mask hides {mask.sum()} of {mask.size} tokens: some must stay')
            seen, hidden = np.flatnonzero(~mask), np.flatnonzero(mask)
        elif isinstance(targets, Future):
            if not (0 < targets.seconds < math.inf and 0 <= targets.skip < math.inf):
                raise InputError(f'{targets}: seconds must be above 0 and skip not below')
            if c.modalities and T == 1:
                raise InputError('context of one frame: an image has no future, give a clip')
            # of 7 times 2 / 24 s are 6.999... tubelets there
            rate = fps / c.tubelet * (1 + 1e-9)
            tubelets = max(1, int(targets.seconds * rate))
            begin = t + int(targets.skip * rate)
            seen = np.arange(t * h * w)
            hidden = np.arange(begin * h * w, (begin + tubelets) * h * w)
        else:
            raise InputError(f'targets {targets!r}: must be a Fill or a Future')
        fed, clips = clips, jnp.asarray(clips)
        keep = jnp.asarray(np.tile(seen.astype(np.int32), (len(clips), 1)))
        asked = jnp.asarray(np.tile(hidden.astype(np.int32), (len(clips), 1)))
        _, x = self.seen(lambda levels: self.encoder(clips, keep, levels=levels))
        z, said = self._answers(grid)(
            self.predictor.params, x, keep, asked, mask_index=mask_index, image=T == 1
        )
        coords = self.coords(grid, 1 / fps, T, hidden)
        said = None if said is None else np.asarray(said)
        return Prediction(np.asarray(z), hidden, coords, np.asarray(x), seen, grid, fed, said)

    def seen(self, encode: Callable[[tuple[int, ...]], Any]) -> tuple[jax.Array, jax.Array]:
        """The encoder's features [B, N, D], and what of it the predictor takes, which may be
        several levels, [B, N, L D].

        encode: the encoder on some clips, levels -> its features, as of `Encoder`.
        """
        if self.need_predictor('this').config.levels == 1:
            return (encode(()),) * 2
        each = encode(self.config.levels)
        return each[-1], jnp.concatenate(each, axis=-1)

    def fill_in(self, grid: tuple[int, int, int]):
        """The predictor for clips of a grid: (params, context, ids, asked, mask_index) -> what it
        expects where it is asked."""
        answers = self._answers(grid)
        return lambda *args, **kwargs: answers(*args, **kwargs)[0]

    def _make_answers(self, grid: tuple[int, int, int]):
        """The predictor for clips of a grid: what it says of tokens that it is asked for and, or
        None, of those in sight. The original builds it for a square size and counts ids on that;
        here they count on the grid that the clip has."""
        config = self.predictor.config
        if config.position == 'rope':
            config = dataclasses.replace(config, grid=grid)
        net = Net(lambda rngs: Predictor(config, rngs=rngs))

        def run(params, x, ids, asked, mask_index, image=False):
            said = net(params, x, ids, asked, mask_index, image=image)
            return said if config.predict_context else (said, None)

        return jax.jit(run, static_argnames=('mask_index', 'image'))

    # Classes

    def classify(self, video: inputs.Video, *, top: int = 5) -> Classes:
        """The probe's likeliest classes for a video, or for a clip uint8 [T, H, W, 3] of the size
        that the encoder is to see.

        A video is sampled as the original's evaluation does, from its start instead of at random,
        and seen once, in the middle; published numbers average over more views.

        Raises:
          BadFile, InputError: as `embed`; or there is no probe.
        """
        probe = self._need_probe('classify')
        if top < 1:
            raise InputError(f'top {top}: must be at least 1')
        video = inputs.as_arrays(video)
        if isinstance(video, list):
            raise InputError('classify takes one video, no list of them')
        if isinstance(video, np.ndarray):
            inputs.check_video(video, 'none', False)
            if video.ndim != 4:
                raise InputError(f'clip {list(video.shape)}: must be [T, H, W, 3]')
            clips = video[None]
            self._check_sides('clip', clips)
        else:
            clips = self._probe_clips(os.fspath(video), probe)
        likeliest = {}
        for head, row in self.logits(clips[None]).items():
            # anticipation was trained with a focal loss on each class, so those do not add up to 1
            each = probe.reads == 'future' or probe.several
            chance = jax.nn.sigmoid(row[0]) if each else jax.nn.softmax(row[0])
            chance = np.asarray(chance, np.float64)
            order = np.argsort(-chance, kind='stable')[:top]
            names = probe.labels.get(head, ())
            likeliest[head] = [
                (int(i), names[i] if i < len(names) else '', float(chance[i])) for i in order
            ]
        return Classes(likeliest)

    def logits(self, clips: np.ndarray) -> dict[str, jax.Array]:
        """What the probe says of examples uint8 [B, segments, T, H, W, 3]: head -> [B, classes]."""
        params = self._need_probe('logits').params
        x = self._probe_reads(jnp.asarray(clips.reshape(-1, *clips.shape[2:])))
        # the segments' tokens, one after the other; on the devices that the examples are on
        joined = jnp.reshape(x, (len(clips), -1, x.shape[-1]), out_sharding=batch_spec(x))
        return self._classifier(params, joined)

    def _probe_clips(self, path: str, probe: ProbeHead) -> np.ndarray:
        """[segments, T, crop, crop, 3]"""
        crop = probe.crop or self.config.image_size
        if probe.fps:
            source = open_input(path, probe.fps)
            places = spread(len(source.numbers), probe.frames, probe.segments)
            frames = eval_view(source.read(source.numbers[places.ravel()]), crop)
            return frames.reshape(*places.shape, *frames.shape[1:])

        def last(timing: Timing) -> np.ndarray:  # what comes after the file is anticipated
            step = max(1, int(timing.fps / 8))
            span = probe.frames * step
            return np.arange(timing.frames - span, timing.frames, step).clip(0)

        if probe.reads == 'future':
            frames = decode.read_frames(path, last)
        else:  # of a folder every n-th picture, whatever its rate
            frames = of_video(Record(path, ()), probe.frames, probe.step, probe.segments, fps=1.0)
        if os.path.splitext(path)[1].lower() in PICTURES:
            frames = np.broadcast_to(picture_view(frames[0], crop), (len(frames), crop, crop, 3))
        else:
            frames = eval_view(frames, crop)
        return frames.reshape(-1, probe.frames, *frames.shape[1:])

    def _probe_reads(self, clips: jax.Array) -> jax.Array:
        """Clips [B, T, H, W, 3] -> the tokens [B, n, D] that the probe was trained on."""
        reads, grid = self.probe.reads, self.config.grid(*clips.shape[1:4])
        grids = [grid, (1, *grid[1:])]  # of what is predicted: one tubelet
        if reads == 'last':
            parts = [self.encode(clips)]
        elif reads == 'future':
            predictor = self.need_predictor('this probe').params
            x, context = self.seen(lambda levels: self.encode(clips, levels))
            parts = [x, self.later(context, grid, predictor)]
        else:
            parts, grids = self.encode(clips, tuple(reads)), [grid] * len(reads)
        kept = [average_tokens(x, g, self.probe.tokens) for x, g in zip(parts, grids)]
        return jnp.concatenate(kept, axis=1)

    def later(
        self, x: jax.Array, grid: tuple[int, int, int], predictor: dict, steps: int = 1
    ) -> jax.Array:
        """What `seen` takes of clips, [B, t h w, L D] -> what the predictor, with these weights,
        expects of the tubelet one second after them at 8 frames a second: [B, h w, D], of several
        levels the last. (reference: vjepa2 §9.4; vjepa2_1 §11: so wide as the encoder is, also of a
        teacher that is wider)

        steps: with more than one, what each expects goes in behind the context, whose first tubelet
          goes, and the next is asked for the same place again: [B, steps h w, D], as the original's
          num_steps. Its released settings have 1, and so has every evaluation here.
        """
        t, h, w = grid
        first = (t + int(8 / self.config.tubelet)) * h * w
        none = jnp.zeros_like(x[..., 0], jnp.int32)  # lies on the devices that x lies on
        ids, asked = none + jnp.arange(t * h * w), none[:, : h * w] + first + jnp.arange(h * w)
        predict, said = self.fill_in(grid), []
        for _ in range(steps):
            said.append(predict(predictor, x, ids, asked, mask_index=1))
            if len(said) < steps:
                x = jnp.concatenate([x[:, h * w :], said[-1]], axis=1)
        return jnp.concatenate(said, axis=1)[..., -self.config.width :]

    def need_predictor(self, why: str) -> Loaded:
        """Raises InputError where there is none."""
        if self.predictor is None:
            raise InputError(f'{why} reads predictions, and there is no predictor with the weights')
        return self.predictor

    @functools.cached_property
    def _classifier(self):
        """tokens [B, N, D] -> head -> logits [B, classes]"""
        config, classes = self.probe.config, self.probe.classes
        return jax.jit(Net(lambda rngs: AttentiveClassifier(config, classes, rngs=rngs)))

    @functools.cached_property
    def _pooler(self):
        """tokens [B, N, D] -> [B, queries, D]"""
        return jax.jit(Net(lambda rngs: pooler(self.probe.config, rngs=rngs)))

    def _need_probe(self, why: str) -> ProbeHead:
        if self.probe is None:
            raise InputError(f'{why}: these weights have no probe')
        return self.probe
