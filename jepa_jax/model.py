"""A model ready for use: pixels in, features, predictions and classes out.

The model owns the normalisation: it takes uint8 pixels, and floats only when told that they are
normalised. Its encoder looks both ways in time, so forecasting goes through `predict`, which never
shows the encoder what is to be predicted.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax import inputs
from jepa_jax.data import decode
from jepa_jax.data.clips import Sampling, Timing, frame_indices
from jepa_jax.data.views import eval_view
from jepa_jax.data.windows import Input, Window, length, open_input, spread, windows
from jepa_jax.errors import InputError
from jepa_jax.inputs import FPS
from jepa_jax.models.pooler import (
    AttentiveClassifier,
    AttentivePooler,
    PoolerConfig,
    average_tokens,
)
from jepa_jax.models.predictor import Predictor
from jepa_jax.models.vit import ViT, ViTConfig
from jepa_jax.nets import Net
from jepa_jax.predictions import Fill as Fill
from jepa_jax.predictions import Future as Future
from jepa_jax.predictions import Prediction as Prediction
from jepa_jax.weights.shapes import size_of

FRAMES = 16  # of a window, unless asked otherwise
POOLS = ('none', 'mean', 'attentive')


@dataclasses.dataclass(frozen=True)
class Features:
    """What an encoder says of the windows of one input."""

    clips: np.ndarray  # [n, T, H, W, 3]: what was fed
    numbers: np.ndarray  # [n, T] int64: which frames of the input
    seconds: np.ndarray  # [n, T] float64: when they are shown in the input
    # [N, 3] float32, in each window: seconds from its first frame to the middle of the token's
    # frames, then y and x of the middle of its patch in pixels of `clips`, where pixel i spans i to
    # i + 1
    coords: np.ndarray
    grid: tuple[int, int, int]  # tokens in time, y, x
    tokens: np.ndarray | None = None  # [n, N, D] float32, row-major on the grid; if not pooled
    pooled: np.ndarray | None = None  # [n, D], or [n, queries, D] of an attentive probe
    levels: np.ndarray | None = None  # [n, L, N or pooled, D]: after the blocks asked for


@dataclasses.dataclass(frozen=True)
class Classes:
    """The likeliest classes of a clip, by head of the probe."""

    top: dict[str, list[tuple[int, str, float]]]  # (class, its label or '', probability)

    def __str__(self) -> str:
        lines = []
        for head, rows in self.top.items():
            lines += [f'{head}:'] if len(self.top) > 1 else []
            lines += [f'{p:8.2%}  {number:5d}  {label}'.rstrip() for number, label, p in rows]
        return '\n'.join(lines)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What shapes a net, and its weights."""

    config: Any  # ViTConfig, PredictorConfig, ...
    params: dict


@dataclasses.dataclass(frozen=True)
class ProbeHead:
    """An attentive probe and how its clips are made. (reference: vjepa2 §9.1, §11.2)"""

    config: PoolerConfig
    classes: dict[str, int]  # head -> number of classes
    params: dict
    # 'last' block | these blocks, one after the other | 'future': the last and then what the
    # predictor expects one second later (action anticipation)
    reads: str | tuple[int, ...] = 'last'
    frames: int = FRAMES
    step: int = 4  # every n-th frame of the video; with 'future' as many as make 8 a second
    segments: int = 1  # clips of a video that are read together
    # and of those that were made here:
    fps: float = 0.0  # frames a second, in place of `step`
    crop: int = 0  # pixels; 0: as the model was trained
    tokens: int = 0  # most tokens of a clip, as means over boxes; 0: all
    several: bool = False  # a video may have several labels: a probability for each
    labels: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


class Encoder:
    """A function from clips to features.

    tokens = encoder(clips)  # uint8 [B, T, H, W, 3] -> float32 [B, N, D]
    """

    def __init__(self, config: ViTConfig, params: dict):
        self.config, self.params = config, params
        net = Net(lambda rngs: ViT(config, rngs=rngs))

        def run(params, clips, keep=None, levels=()):
            return net(params, clips, keep, levels=levels)

        self._run = jax.jit(run, static_argnames='levels')

    def __call__(
        self,
        clips: np.ndarray | jax.Array,
        keep: jax.Array | None = None,
        *,
        levels: tuple[int, ...] = (),
    ) -> Any:
        """Features of the clips' tokens, row-major over time, y, x.

        Args:
          clips: [B, T, H, W, 3], uint8, or floats with ImageNet's mean and deviation taken out. Any
            multiple of the tubelet and the patch; nothing is resized.
          keep: int32 [B, K]: token ids, where the encoder is to see these alone.
          levels: blocks, from 0; then a list, the features after each of them.

        Returns:
          [B, N or K, D] float32.

        Raises:
          InputError: another shape, or pixels that cannot have been meant.
        """
        if clips.ndim != 5 or clips.shape[-1] != 3:
            raise InputError(f'clips {list(clips.shape)}: must be [B, T, H, W, 3], channels last')
        if isinstance(clips, np.ndarray):  # of those on a device the values are not looked at
            inputs.check_pixels(clips, clips.dtype != np.uint8)
        return self._run(self.params, jnp.asarray(clips), keep, levels=levels)

    def __repr__(self) -> str:
        return f'Encoder({_shape(self.config, self.params)})'


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
    ):
        """about: lines that tell where the weights are from and what was chosen; name: of the
        model, or its path; which: the encoder is `target`, `online`, or what else people say."""
        self.config: ViTConfig = encoder.config
        self.encoder = Encoder(encoder.config, encoder.params)
        self.predictor, self.ac_predictor = predictor, ac_predictor
        self.probe = probe
        self.about = tuple(about)
        self.name, self.which = name, which
        self._answers = functools.cache(self._make_answers)
        self._sizes: dict[tuple, int] = {}  # shape of a clip -> largest batch of them so far

    def __repr__(self) -> str:
        c, size = self.config, size_of(self.config)
        name = size if self.name in ('', size) else f'{self.name}, size {size}'
        line = (
            f'Model({name}: {self.which or "its"} encoder of {_shape(c, self.encoder.params)}, '
            f'crop {c.image_size}, computes in {np.dtype(c.dtype).name})'
        )
        more = [
            f'{title} of {_shape(net.config, net.params)}'
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
        video: str | os.PathLike | np.ndarray,
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
    ) -> Features:
        """Features of a video, an image, a folder of frames, a .npy file, or an array.

        All of them are held in memory: for long videos take `stream`, or pool.

        Args:
          video: a path; or uint8 [T, H, W, 3], cut into windows like a video; or [n, T, H, W, 3],
            windows already.
          frames: of each window; None: 16. An image is one frame where the model has a way of its
            own for images, else as many, or one tubelet.
          fps: frames a second to sample a video at, or that an array or a folder has.
          crop: pixels of the evaluation view; None: as the model was trained.
          preprocess: 'eval': short side to crop * 256 / 224, middle cut out, by the original's rule
            to the pixel; 'none': as it is, any multiple of the patch, not only squares.
          pool: 'none': all tokens; 'mean' over them; 'attentive': the probe's pooler.
          layers: blocks (from 0) whose features to return too, through the final norm.
          stride: sampled frames from one window to the next; None: no overlap but at the end.
          batch: windows that go through the encoder together.
          normalised: floats with ImageNet's mean and deviation taken out; else only uint8.

        Raises:
          BadFile: a file that cannot be read. InputError: pixels or settings that cannot be used.
        """
        inputs.check_video(video, preprocess, normalised)
        if isinstance(video, np.ndarray) and video.ndim == 5:
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
    ) -> Iterator[Window]:
        """The windows of an input as the encoder is to see them; arguments as of `embed`.

        Raises:
          BadFile, InputError: as `embed`; when the first window is asked for.
        """
        c = self.config
        if not fps > 0:
            raise InputError(f'fps {fps}: must be above 0')
        source = video if isinstance(video, Input) else open_input(video, fps)
        if source.kind == 'image' and (c.modalities or frames is None):
            frames = c.tubelet_of(1)
        frames = FRAMES if frames is None else frames
        tubelet = c.tubelet_of(frames)
        if frames < tubelet or frames % tubelet:
            raise InputError(f'frames {frames}: must be a multiple of {tubelet}, the tubelet')
        frames = length(source, frames, c.tubelet_of(len(source.numbers)))
        stride = frames if stride is None else stride
        if stride < 1:
            raise InputError(f'stride {stride}: must be at least 1')
        yield from windows(source, frames, stride, self._view(source, crop, preprocess))

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
        layers = tuple(layers)
        if pool not in POOLS:
            raise InputError(f"pool '{pool}': allowed are {', '.join(POOLS)}")
        if pool == 'attentive':
            self._need_probe('pool attentive')
        if list(layers) != sorted(set(layers)) or not all(0 <= i < depth for i in layers):
            raise InputError(f'layers {layers}: must ascend within 0 to {depth - 1}')
        if batch < 1:
            raise InputError(f'batch {batch}: must be at least 1')
        if layers and pool == 'attentive':
            raise InputError('layers with pool attentive: a probe reads the layers it was made for')

        def run(group: list[Window]) -> Iterator[tuple[Window, dict[str, np.ndarray]]]:
            clips = np.stack([window.clip for window in group])
            inputs.check_pixels(clips, normalised, decoded=True)
            shape = clips.shape[1:]
            # a last, smaller batch is filled up: compiling takes longer than a few rows
            size = self._sizes[shape] = max(len(clips), self._sizes.get(shape, 0))
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
        context: np.ndarray,
        targets: Fill | Future,
        *,
        fps: float = FPS,
        mask_index: int = 0,
        normalised: bool = False,
    ) -> Prediction:
        """What the predictor expects where the encoder is not allowed to look.

        Masked tokens are taken out before the encoder, as in training, so what is to be predicted
        cannot leak into the context.

        Args:
          context: [T, H, W, 3] or [B, T, H, W, 3], uint8 or normalised floats. For Fill the whole
            clip, of which the masked part is not looked at; for Future the past alone.
          targets: the task.
          fps: frames a second of the clip.
          mask_index: which mask token asks. Pretraining with one frame count, as of all released
            models, trains token 0 alone; the original's anticipation and transformers ask with
            token 1, which then is as it began (reference: vjepa2 §3).
          normalised: as in `embed`.

        Raises:
          InputError: no predictor, or a task that does not fit the clip.
        """
        if self.predictor is None:
            raise InputError('these weights have no predictor: predict needs one')
        clips = np.asarray(context)
        clips = clips[None] if clips.ndim == 4 else clips
        inputs.check_pixels(clips, normalised)
        c = self.config
        T = clips.shape[1]
        units = c.tubelet_of(T), c.patch, c.patch
        for name, side, unit in zip(('frames', 'height', 'width'), clips.shape[1:4], units):
            if side < unit or side % unit:
                raise InputError(f'context {name} {side}: must be a multiple of {unit}')
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
            if targets.seconds <= 0 or targets.skip < 0:
                raise InputError(f'{targets}: seconds must be above 0 and skip not below')
            if c.modalities and T == 1:
                raise InputError('context of one frame: an image has no future, give a clip')
            tubelets = max(1, int(targets.seconds * fps / c.tubelet))
            begin = t + int(targets.skip * fps / c.tubelet)
            seen = np.arange(t * h * w)
            hidden = np.arange(begin * h * w, (begin + tubelets) * h * w)
        else:
            raise InputError(f'targets {targets!r}: must be a Fill or a Future')
        clips = jnp.asarray(clips)
        keep = jnp.asarray(np.tile(seen.astype(np.int32), (len(clips), 1)))
        asked = jnp.asarray(np.tile(hidden.astype(np.int32), (len(clips), 1)))
        _, x = self.seen(lambda levels: self.encoder(clips, keep, levels=levels))
        z, said = self._answers(grid)(
            self.predictor.params, x, keep, asked, mask_index=mask_index, image=T == 1
        )
        coords = self.coords(grid, 1 / fps, T, hidden)
        said = None if said is None else np.asarray(said)
        return Prediction(np.asarray(z), hidden, coords, np.asarray(x), seen, said)

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

    def classify(self, video: str | os.PathLike | np.ndarray, *, top: int = 5) -> Classes:
        """The probe's likeliest classes for a video, or for a clip uint8 [T, H, W, 3] of the size
        that the encoder is to see.

        A video is sampled as the original's evaluation does, from its start instead of at random,
        and seen once, in the middle; published numbers average over more views.

        Raises:
          BadFile, InputError: as `embed`; or there is no probe.
        """
        probe = self._need_probe('classify')
        if isinstance(video, np.ndarray):
            inputs.check_pixels(video, False)
            if video.ndim != 4:
                raise InputError(f'clip {list(video.shape)}: must be [T, H, W, 3]')
            clips = video[None]
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
        # the segments' tokens, one after the other
        return self._classifier(params, x.reshape(len(clips), -1, x.shape[-1]))

    def _probe_clips(self, path: str, probe: ProbeHead) -> np.ndarray:
        """[segments, T, crop, crop, 3]"""
        crop = probe.crop or self.config.image_size
        if probe.fps:
            source = open_input(path, probe.fps)
            places = spread(len(source.numbers), probe.frames, probe.segments)
            frames = eval_view(source.read(source.numbers[places.ravel()]), crop)
            return frames.reshape(*places.shape, *frames.shape[1:])

        def choose(timing: Timing) -> np.ndarray:
            if probe.reads == 'future':  # what comes after the file is anticipated
                step = max(1, int(timing.fps / 8))
                span = probe.frames * step
                return np.arange(timing.frames - span, timing.frames, step).clip(0)
            rule = Sampling(frame_step=probe.step)
            return frame_indices(timing, probe.frames, rule, num_clips=probe.segments, overlap=True)

        frames = eval_view(decode.read_frames(path, choose), crop)
        return frames.reshape(-1, probe.frames, *frames.shape[1:])

    def _probe_reads(self, clips: jax.Array) -> jax.Array:
        """Clips [B, T, H, W, 3] -> the tokens [B, n, D] that the probe was trained on."""
        reads = self.probe.reads
        if reads == 'last':
            grid = self.config.grid(*clips.shape[1:4])
            return average_tokens(self.encode(clips), grid, self.probe.tokens)
        if reads != 'future':
            return jnp.concatenate(self.encode(clips, tuple(reads)), axis=1)
        predictor = self.need_predictor('this probe').params
        x, context = self.seen(lambda levels: self.encode(clips, levels))
        z = self.later(context, self.config.grid(*clips.shape[1:4]), predictor)
        return jnp.concatenate([x, z], axis=1)

    def later(self, x: jax.Array, grid: tuple[int, int, int], predictor: dict) -> jax.Array:
        """What `seen` takes of clips, [B, t h w, L D] -> what the predictor, with these weights,
        expects of the tubelet one second after them at 8 frames a second: [B, h w, D], of several
        levels the last. (reference: vjepa2 §9.4; vjepa2_1 §11: so wide as the encoder is, also of a
        teacher that is wider)
        """
        t, h, w = grid
        first = (t + int(8 / self.config.tubelet)) * h * w
        none = jnp.zeros_like(x[..., 0], jnp.int32)  # lies on the devices that x lies on
        ids, asked = none + jnp.arange(t * h * w), none[:, : h * w] + first + jnp.arange(h * w)
        return self.fill_in(grid)(predictor, x, ids, asked, mask_index=1)[..., -self.config.width :]

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
        return jax.jit(Net(lambda rngs: AttentivePooler(self.probe.config, rngs=rngs)))

    def _need_probe(self, why: str) -> ProbeHead:
        if self.probe is None:
            raise InputError(f'{why}: these weights have no probe')
        return self.probe


def _shape(config: Any, params: dict) -> str:
    """`303.9 M parameters, 24 blocks, width 1024, 16 heads`"""
    count = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6
    return (
        f'{count:.3g} M parameters, {config.depth} blocks, width {config.width}, '
        f'{config.heads} heads'
    )
