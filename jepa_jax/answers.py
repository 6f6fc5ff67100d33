"""Questions put to a trained model: `jepa_jax.load(RUN).ask('clip.mp4', 'What happens?')`."""

from __future__ import annotations

import dataclasses
import functools
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.config import ClipsConfig
from jepa_jax.config.check import types_and_ranges
from jepa_jax.data import kinds
from jepa_jax.errors import ConfigError, ConvertError, InputError
from jepa_jax.language import packing
from jepa_jax.language.chat import Media, Turn, encode, told
from jepa_jax.language.conversations import stretches
from jepa_jax.language.sight import Always, Clips, Looked, moments, paced
from jepa_jax.language.tokenizer import Tokenizer
from jepa_jax.models.generation import Sampling, Speaker, choose, embeddings
from jepa_jax.weights import parts, zoo
from jepa_jax.weights.contents import StoredNet, Weights
from jepa_jax.weights.language import name_of, tokenizer_of

# tokens of what is asked, visual ones among them: a program each
LENGTHS = tuple(64 * 2**i for i in range(12))
GREEDY = Sampling()
CHOICES = (4, 16, 64, 256)  # tokens of a choice, likewise

KEPT = 4  # videos whose tokens are kept, in case they are asked about again


@dataclasses.dataclass(frozen=True, eq=False)
class Fixed:
    """Frames that nobody writes to: asked about the same object again, they are known."""

    frames: np.ndarray  # uint8 [T, H, W, 3]


Video = str | os.PathLike | np.ndarray | Fixed | Media


@dataclasses.dataclass(frozen=True)
class Said:
    """An answer, and what it was given for."""

    text: str
    seen: tuple[Looked, ...] = ()
    choices: tuple[str, ...] = ()
    # of each choice as a whole answer, its end included: the logarithm of its likelihood
    likelihoods: tuple[float, ...] = ()

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each choice, from its likelihood; they add up to 1."""
        if not self.choices:
            return ()
        shares = np.exp(np.asarray(self.likelihoods) - max(self.likelihoods))
        return tuple((shares / shares.sum()).tolist())

    @property
    def choice(self) -> str:
        """The likeliest choice; '': there were none."""
        return self.choices[int(np.argmax(self.likelihoods))] if self.choices else ''


class Answerer:
    """Encoder, projector and language model with their weights."""

    def __init__(
        self, nets: dict[str, StoredNet], tokenizer: Tokenizer, clips: ClipsConfig, dtype: str,
        language: Path | None = None, system: str = '',
    ):  # fmt: skip
        """nets: encoder, projector, decoder and, if there is one, adapter; dtype: of matmul inputs;
        language: folder that the language model came from; system: what the system says first, if
        nothing else is said.

        Raises:
          ConvertError: nets that do not fit each other.
          ConfigError: the tokenizer of another model.
        """
        encoder, projector, decoder = (
            nets[name].config for name in ('encoder', 'projector', 'decoder')
        )
        for what, size, width in (
            ('an encoder', encoder.width, projector.encoder_width),
            ('a language model', decoder.width, projector.width),
        ):
            if size != width:
                raise ConvertError(f'{what} of width {size}: the projector is for {width}')
        tokenizer.check(decoder.vocabulary, language)
        grid = encoder.grid(clips.frames, clips.crop, clips.crop)
        if grid != tuple(projector.grid):
            raise ConvertError(
                f'clips of {grid} tokens: the projector is for {tuple(projector.grid)}'
            )
        if adapter := nets.get('adapter'):
            config = adapter.config
            same = decoder.width, decoder.hidden, decoder.depth
            if same != (config.width, config.hidden, config.depth):
                raise ConvertError(
                    'the adapter is for a language model of width, hidden and depth '
                    f'{(config.width, config.hidden, config.depth)}, this one has {same}'
                )
        self.system = system
        self.tokenizer, self.look = tokenizer, Clips(clips, encoder.tubelet)
        made = {}
        self._params = {}
        for name, net in nets.items():
            config = net.config
            if name != 'adapter':
                config = dataclasses.replace(config, dtype=jnp.dtype(dtype))
            if name == 'decoder':  # of its own type, or a smaller one
                types = config.stored, dtype
                stored = min(types, key=lambda name: jnp.dtype(name).itemsize)
                config = dataclasses.replace(config, stored=stored)
            made[name] = parts.net(net.part, config)
            self._params[name] = jax.tree.map(_onto_device, net.tree, made[name].abstract)
        scale = nets['adapter'].config.scale if 'adapter' in nets else 1.0
        self._nets, self._speaker = made, Speaker(made['decoder'], scale)
        self._rows = Always(projector.tokens)
        self._known: dict[Any, tuple[jax.Array, Looked]] = {}  # the last videos

        @jax.jit
        def see(params, clips, apart):
            features = made['encoder'](params['encoder'], clips, apart=apart)
            return made['projector'](params['projector'], features)

        @functools.partial(jax.jit, static_argnames=('room',))
        def begin(params, arrays, visual, room):
            x = self._embedded(params, arrays, visual)
            return self._speaker.begin(
                params['decoder'], params.get('adapter'), x, arrays['lengths'], room
            )

        @functools.partial(jax.jit, donate_argnums=3)
        def follow(params, token, lengths, cache):
            return self._speaker.follow(
                params['decoder'], params.get('adapter'), token, lengths, cache
            )

        @jax.jit
        def likelihoods(params, arrays, logits, cache, choices):
            read = arrays['tokens'].shape[1]
            cache = jax.tree.map(lambda a: a[:, :, :read], cache)  # without the room behind it
            how = params['decoder'], params.get('adapter'), logits, arrays['lengths'][0], cache
            return self._speaker.likelihoods(*how, choices)

        self._see, self._begin, self._follow = see, begin, follow
        self._likelihoods = likelihoods
        self._choose = jax.jit(choose, static_argnums=2)

    @classmethod
    def of(
        cls, weights: Weights, *, encoder_from: str = '', language: str = '', tokenizer: str = '',
        dtype: str = 'float32',
    ) -> Answerer:  # fmt: skip
        """Of a run on questions, or of its projector and adapter alone and the models that they
        belong to.

        Raises:
          ConvertError, ZooError: something is missing, or does not fit.
        """
        nets = {n: net for n, net in weights.nets.items() if n in ('projector', 'adapter')}
        if 'projector' not in nets:
            held = ', '.join(weights.nets)
            raise ConvertError(f'{weights.source} holds {held}, no projector: it answers nothing')
        whose = {'encoder': weights, 'decoder': weights}
        for name, other in (('encoder', encoder_from), ('decoder', language)):
            if other:
                whose[name] = zoo.find(other)
        if whose['encoder'].encoder is None:
            raise ConvertError(f'{weights.source} holds no encoder: name it, --encoder-from')
        if not (key := name_of(whose['decoder'])):
            raise ConvertError(f'{weights.source} holds no language model: name it, --language')
        nets['encoder'] = whose['encoder'].nets[whose['encoder'].pick('target')]
        nets['decoder'] = whose['decoder'].nets[key]
        source = whose['decoder'].source
        folder = tokenizer or tokenizer_of(weights.source) or source
        own = tokenizer_of(source) or source
        if not isinstance(system := weights.reads.get('system', ''), str):
            raise ConvertError(f'{weights.source}: what the system says first is no text')
        return cls(nets, Tokenizer.read(folder), clips_of(weights), dtype, own, system)

    def ask(
        self,
        video: Video | Sequence[Video] | None,
        question: str,
        *,
        choices: Sequence[str] = (),
        turns: Sequence[tuple[str, str]] = (),
        system: str | None = None,
        most: int = 128,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        on_text: Callable[[str], None] | None = None,
    ) -> Said:
        """What the model says to a question.

        Args:
          video: path of a video or image, frames uint8 [T, H, W, 3], or several; a Media says which
            seconds. None: the question alone. They come first, or where <video> stands in the first
            question. Of the last files, as long as they do not change, and of `Fixed` frames, what
            the encoder said is kept.
          choices: of which the likelihoods as whole answers are compared; generated text comes
            beside them.
          turns: earlier questions and what was answered; videos belong to the first.
          system: what the system says first; None: as in training; '': as the family's template.
          most: tokens of the answer; 0, with choices: nothing is generated.
          on_text: is given the answer piece by piece, as it is made.

        Raises:
          InputError: placeholders that are not as many as the videos, an empty question, choices
            that are empty or equal, seconds that no video has, more than fits, nothing asked for.
            BadFile: a video that
            cannot be read.
        """
        videos = [] if video is None else video if isinstance(video, list | tuple) else [video]
        arrays, media = self._asked(videos, question, turns, system)
        check_choices(choices)
        if most < 0:
            raise InputError(f'an answer of {most} tokens: must be at least 0')
        if not most and not choices:
            raise InputError(
                'an answer of 0 tokens, and no choices to compare: nothing is asked for'
            )
        seen = [self._seen(each, which) for each, which in zip(videos, media)]
        visual = jnp.concatenate([tokens for tokens, _ in seen] or [self._nothing()], axis=1)
        looked = tuple(what for _, what in seen)
        logits, cache = self._begin(self._params, arrays, visual, room=most)
        likely = self._likely(arrays, logits, cache, choices) if choices else ()
        text = self._generated(arrays, logits, cache, most, sampling, seed, on_text)
        return Said(text, looked, tuple(choices), likely)

    def _asked(self, videos, question, turns, system) -> tuple[dict, list[Media]]:
        said = [(q, a) for q, a in turns] + [(question, '')]
        if not all(text.strip() for text, _ in said):
            raise InputError('an empty question')
        if not all(text.strip() for _, text in turns):
            raise InputError('an empty answer among the earlier turns')
        media = [media_of(each, i) for i, each in enumerate(videos)]
        for each in media:
            check_seconds(each.start, each.end)
        written = []
        for number, (asked, answered) in enumerate(said):
            own = media if not number else []
            written.append(Turn('user', _parts(asked, own)))
            if number < len(said) - 1:
                written.append(Turn('assistant', (answered,)))
        written = told(written, self.system if system is None else system)
        encoded = encode(written, self.tokenizer, self._rows, answer=True)
        length = _shortest(LENGTHS, len(encoded.tokens), 'the question')
        pad = (0, length - len(encoded.tokens))
        return {
            'tokens': jnp.asarray(np.pad(encoded.tokens, pad)[None]),
            'visual': jnp.asarray(np.pad(encoded.visual, pad, constant_values=-1)[None]),
            'lengths': jnp.asarray([len(encoded.tokens)], jnp.int32),
        }, media

    def _nothing(self) -> jax.Array:
        projector = self._nets['projector'].config
        return jnp.zeros((1, 1, projector.width), projector.dtype)

    def _seen(self, video: Video, media: Media) -> tuple[jax.Array, Looked]:
        """Visual tokens [1, V, D] of a video, and what was looked at."""
        key = _same(video, media)
        if known := self._known.get(key):
            return known
        if isinstance(video, np.ndarray | Fixed):
            clip, looked = self._array(video.frames if isinstance(video, Fixed) else video)
        else:
            clip, looked = self.look.read(media)
        apart = jnp.ones(1, bool) if self.look.apart(media) else None
        tokens = self._see(self._params, jnp.asarray(clip[None]), apart)
        if key is not None:
            self._known[key] = tokens, looked
            if len(self._known) > KEPT:
                del self._known[next(iter(self._known))]
        return tokens, looked

    def _array(self, frames: np.ndarray) -> tuple[np.ndarray, Looked]:
        if frames.ndim != 4 or frames.dtype != np.uint8 or frames.shape[3] != 3 or not len(frames):
            raise InputError(f'frames {frames.dtype} {list(frames.shape)}: uint8 [T, H, W, 3]')
        timing = paced(len(frames), self.look.config)
        numbers = moments(timing, self.look.config)
        looked = Looked(tuple(numbers / timing.fps), timing.seconds, len(set(numbers.tolist())))
        return self.look.view(frames[numbers]), looked

    def _embedded(self, params, arrays, visual) -> jax.Array:
        decoder = self._nets['decoder'].bind(params['decoder'])
        return embeddings(decoder, arrays['tokens'], visual, arrays['visual'])

    def _generated(self, arrays, logits, cache, most, sampling, seed, on_text) -> str:
        ids: list[int] = []
        lengths, said, key = arrays['lengths'], '', jax.random.key(seed)
        for step in range(most):
            token = self._choose(logits, jax.random.fold_in(key, step), sampling)
            if int(token[0]) in self.tokenizer.stops:
                break
            ids.append(int(token[0]))
            if on_text:
                text = self.tokenizer.decode(ids)
                if not text.endswith('\ufffd'):  # half of a character
                    on_text(text[len(said) :])
                    said = text
            if step + 1 < most:
                logits, cache = self._follow(self._params, token, lengths, cache)
                lengths = lengths + 1
        text = self.tokenizer.decode(ids)
        if on_text and text != said:
            on_text(text[len(said) :])
        return text

    def _likely(self, arrays, logits, cache, choices) -> tuple[float, ...]:
        end = self.tokenizer.stops[0]
        ids = [[*self.tokenizer.encode(choice), end] for choice in choices]
        length = _shortest(CHOICES, max(map(len, ids)), 'a choice')
        rows = np.full((len(ids), length), -1, np.int32)
        for row, each in zip(rows, ids):
            row[: len(each)] = each
        values = self._likelihoods(self._params, arrays, logits, cache, rows)
        return tuple(map(float, values))


def check_choices(choices: Sequence[str]) -> None:
    """Raises InputError: empty ones, equal ones, a single one, or a text in place of several."""
    if isinstance(choices, str):  # each of its letters would be one
        raise InputError(f'choices {choices!r}: must be a list of texts')
    if empty := [i for i, choice in enumerate(choices, 1) if not choice.strip()]:
        raise InputError(f'choice {empty[0]} is empty')
    if len(choices) == 1:
        raise InputError(f'choices {choices[0]!r}: at least two are needed')
    twice = [c for i, c in enumerate(choices) if c.strip() in [d.strip() for d in choices[:i]]]
    if twice:
        raise InputError(f'choices that are equal: {twice[0]!r}')


def check_seconds(start: float, end: float) -> None:
    """Raises InputError: nothing can lie between them; an end of 0 is that of the video."""
    for name, value in (('start', start), ('end', end)):
        if not 0 <= value < 1e9:
            raise InputError(f'{name} {value:g}: must be seconds of the video, from 0')
    if end and end <= start:
        raise InputError(f'end {end:g}: must be after the start, {start:g}, or 0: to the end')


def _onto_device(leaf: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.device_put(np.asarray(leaf, like.dtype))


def _shortest(lengths: Sequence[int], tokens: int, what: str) -> int:
    try:
        return packing.shortest(lengths, tokens)
    except ConfigError as error:
        raise InputError(f'{what}: {error}') from None


def media_of(video: Video, number: int = 0) -> Media:
    """What a path, by its content, or frames are. Raises BadFile: no file that can be read."""
    if isinstance(video, Media):
        return video
    if isinstance(video, np.ndarray | Fixed):
        return Media('video', f'array {number}')
    path = os.fspath(video)
    return Media('image' if kinds.kind_of(path) == 'image' else 'video', path)


def _same(video: Video, media: Media) -> Any:
    """What two videos have in common that show the same; None: nobody knows."""
    if isinstance(video, np.ndarray):
        return None
    if isinstance(video, Fixed):
        return weakref.ref(video)  # equal to another one of the same object alone
    try:
        state = os.stat(media.path)
    except OSError:  # for the reader to say
        return None
    return media, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def _parts(text: str, media: list[Media]) -> tuple[str | Media, ...]:
    """Text and videos: those first, or where placeholders stand."""
    texts = stretches(text)
    if len(texts) == 1:
        return (*media, text)
    if len(texts) - 1 != len(media):
        raise InputError(
            f'{len(texts) - 1} placeholders <video> or <image> for {len(media)} videos and '
            'images: must be as many, or none'
        )
    parts: list[str | Media] = []
    for i, stretch in enumerate(texts):
        parts += [media[i - 1]] if i else []
        parts += [stretch] if stretch else []
    return tuple(parts)


def clips_of(weights: Weights) -> ClipsConfig:
    """How the model was shown videos.

    Raises:
      ConvertError: its files do not say.
    """
    values = weights.reads.get('clips')
    try:
        clips = ClipsConfig(**values)
        types_and_ranges(clips)
    except (TypeError, ConfigError) as error:
        raise ConvertError(f'{weights.source} does not say how it was shown videos') from error
    return clips
