"""What a run on questions needs before its first step: weights of encoder and language model, the
tokenizer, features of what the conversations show, and held-out conversations."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax import distributed, recipes, scratch, sharding
from jepa_jax.checkpoint import hash_arrays, leaves, read_on_host
from jepa_jax.config import QuestionsConfig
from jepa_jax.config.conversations import SELF_MADE
from jepa_jax.config.questions import (
    READ,
    LanguageConfig,
    as_read,
    language_shape,
    media_places,
    visual_tokens,
)
from jepa_jax.data import synthetic
from jepa_jax.errors import BadFile, ConfigError, ZooError
from jepa_jax.language import packing
from jepa_jax.language import questions as self_made
from jepa_jax.language.chat import Media, encode, told
from jepa_jax.language.conversations import Conversations
from jepa_jax.language.sight import Always, Clips, StoredClips
from jepa_jax.language.stream import ConversationStream, Sight
from jepa_jax.language.tokenizer import Tokenizer
from jepa_jax.nets import ONCE, Net
from jepa_jax.objectives import Prepared
from jepa_jax.objectives.questions import HeldOut, Questions
from jepa_jax.origin import Origin
from jepa_jax.weights import parts, zoo
from jepa_jax.weights.language import TOKENIZER, name_of, tokenizer_of
from jepa_jax.weights.tables import Leaf, flatten

CLIPS = 8  # encoded together on a device
MEASURED = 512  # videos and images, at most, that channels are measured on

log = logging.getLogger(__name__)


def prepare(config: QuestionsConfig, objective: Questions, origin: Origin) -> Prepared:
    """Reads and computes it.

    Raises:
      ConfigError: weights of other dimensions than the config describes, a tokenizer of another
        model, an adapter that would be lost.
      ZooError, ConvertError, CheckpointError: weights that cannot be had.
      BadFile: of conversations or tokenizer. DataError: nothing that they show can be read.
    """
    config = resolved(config)
    tokenizer = read_tokenizer(config, origin)
    tokenizer.check(objective.decoder_config.vocabulary, _language_folder(config, origin))
    weights = {name: _params(config, objective, origin, name) for name in ('encoder', 'decoder')}
    frozen = {name: weights[name] for name in objective.frozen}
    kept = {name: weights[name] for name in objective.kept}
    initial = {name: weights[name] for name in ('encoder', 'decoder') if name in objective.nets}
    if origin.folder and 'adapter' not in objective.nets and _holds(origin, 'params/adapter'):
        raise ConfigError(
            f'{origin.folder} has an adapter, this run none (language.trains = '
            f"'{config.language.trains}'): merge it first, convert --encoder language"
        )
    if 'adapter' in objective.nets:
        initial['adapter'] = None
    look: Any = Clips(config.clips, config.encoder.tubelet)
    apart = look.apart if config.clips.images == 'tiles' and not config.features else None
    if config.features:
        grid = objective.projector_config.grid
        store = StoredClips.of(
            config.features, config.clips, objective.encoder_config, hash_arrays(kept),
            config.features_dtype, (int(np.prod(grid)), objective.encoder_config.width),
        )  # fmt: skip
        _fill(store, look, config, objective.kept['encoder'], kept['encoder'])
        look = store
        if config.projector.standardised:
            initial['projector'] = _standardised(objective, store, config)
    sight = Sight(
        tokenizer, Always(visual_tokens(config)), look, look.shape,
        np.uint8 if not config.features else jnp.dtype(config.features_dtype),
        media_places(config), apart,
    )  # fmt: skip
    if config.heldout:
        objective.held = _held(config, sight)
    return Prepared(frozen, kept, sight, initial, {TOKENIZER: tokenizer.save})


def settle(config: QuestionsConfig, workdir: pathlib.Path) -> QuestionsConfig:
    """The config with what the language model's files say of it; a run that goes on has it in its
    own config. Files that are not there are missed where they are needed.

    Raises:
      ConvertError, CheckpointError: files that cannot be used.
    """
    path, language = workdir / 'config.json', config.language
    before = recipes.read_config(json.loads(path.read_text())) if path.is_file() else None
    if before and before.objective == config.objective and _same(before.language, language):
        says = dataclasses.asdict(language_shape(before.language))
    elif language.path == 'random':
        return config
    else:
        try:
            weights = zoo.find(language.path)
        except ZooError:
            return config
        if not (key := name_of(weights)):
            return config
        says = {name: getattr(weights.nets[key].config, name) for name in READ}
    return dataclasses.replace(config, language=as_read(language, says))


def _same(a: LanguageConfig, b: LanguageConfig) -> bool:
    return (a.path, a.size) == (b.path, b.size)


def resolved(config: QuestionsConfig) -> QuestionsConfig:
    """The config with files in place of `self_made`: conversations about the videos to train on,
    and about others that are held out."""

    def made(path: str, split: str) -> str:
        return str(_made(split)) if path == SELF_MADE else path

    data = config.data
    mixture = [dataclasses.replace(item, path=made(item.path, 'train')) for item in data.mixture]
    data = dataclasses.replace(data, mixture=mixture)
    config = dataclasses.replace(config, data=data)
    if config.heldout != SELF_MADE:
        return config
    heldout = _made('test')  # which has its videos beside it
    return dataclasses.replace(config, heldout=str(heldout), heldout_folder=str(heldout.parent))


def _made(split: str) -> pathlib.Path:
    folder = synthetic.ensure('synthetic_few').parent
    path = folder / f'questions_{split}-v{self_made.VERSION}.jsonl'
    if not path.exists():
        clips = synthetic.COUNTS['synthetic_few'][split]
        temporary = path.with_name(scratch.prefix(path))
        self_made.write(temporary, folder, clips, 10 * clips, split=split)
        temporary.replace(path)
    return path


def read_tokenizer(config: QuestionsConfig, origin: Origin) -> Tokenizer:
    """The one that the config names, else the run's own, else that beside the language model."""
    if config.language.tokenizer not in ('', SELF_MADE):
        return Tokenizer.read(config.language.tokenizer)
    if origin.folder and (own := tokenizer_of(origin.folder)):
        return Tokenizer.read(own)  # before self_made's, which may have become another since
    if config.language.tokenizer == SELF_MADE:
        return self_made.tokenizer()
    return Tokenizer.read(zoo.find(config.language.path).source)


def _language_folder(config: QuestionsConfig, origin: Origin) -> pathlib.Path | None:
    """Where config.json of the language model may lie; None: nowhere."""
    if origin.folder or config.language.path == 'random':
        return origin.folder and tokenizer_of(origin.folder)
    source = zoo.find(config.language.path).source
    return tokenizer_of(source) or source


def _holds(origin: Origin, place: str) -> bool:
    stored = leaves(origin.folder) if origin.folder else ()
    return any(name.startswith(f'{place}/') for name in stored)


def _params(config: QuestionsConfig, objective: Questions, origin: Origin, name: str) -> Any:
    """Parameters of encoder or language model on the host, read when they are needed; None: those
    that the run is restored with, or drawn ones of a net that is trained."""
    net, trained = objective.net(name), name in objective.nets
    if trained and (
        _holds(origin, f'params/{name}') or not (origin.weights_only or not origin.folder)
    ):
        return None
    path = config.encoder_from if name == 'encoder' else config.language.path
    # what another run never trained is what it was given: a name or path says it as well
    frozen = path == 'random' or not origin.weights_only
    for place in (*([f'frozen/{name}'] if frozen else []), f'params/{name}'):
        if _holds(origin, place):
            if not origin.same_run:
                log.info('%s: as in %s', name, origin.folder)
            return _as_stored(f'{origin.folder}: {place}', net, read_on_host(origin.folder, place))
    if path == 'random':
        if trained:
            return None
        key = jax.random.fold_in(jax.random.key(config.seed), 1 + (name == 'decoder'))
        return jax.device_get(jax.jit(net.init, compiler_options=ONCE)(key))
    weights = zoo.find(path)
    if name == 'encoder':
        if weights.encoder is None:
            raise ConfigError(f'encoder_from = {path!r}: holds no encoder')
        if other := parts.differences(weights.encoder, net.config):
            raise ConfigError(
                f'encoder_from = {path!r}: another encoder than config.encoder describes: '
                f'{"; ".join(other)}'
            )
        return _as_stored(path, net, weights.nets[weights.pick('target')].tree)
    if not (key := name_of(weights)):
        raise ConfigError(f'language.path = {path!r}: holds no language model')
    if other := differences(weights.nets[key].config, net.config):
        raise ConfigError(
            f'language.path = {path!r}: another model than config.language describes: '
            f'{"; ".join(other)}'
        )
    return _as_stored(path, net, weights.nets[key].tree)


def differences(a: Any, b: Any) -> list[str]:
    """In what two language models differ, a line each; types and recomputation are none."""
    names = (f.name for f in dataclasses.fields(a) if f.name not in ('dtype', 'stored', 'remat'))
    return [
        f'{n} {getattr(a, n)} and {getattr(b, n)}' for n in names if getattr(a, n) != getattr(b, n)
    ]


def _as_stored(where: str, net: Net, tree: Any) -> Any:
    """Arrays of the types that the net's have, each read when it is needed.

    Raises:
      ConfigError: they are another net's.
    """
    stored, expected = (
        {n: tuple(a.shape) for n, a in flatten(t).items()} for t in (tree, net.abstract)
    )
    if other := [n for n in expected | stored if stored.get(n) != expected.get(n)]:
        raise ConfigError(
            f'{where}: another {net.part} than the config describes: {other[0]} has shape '
            f'{stored.get(other[0])}, expected {expected.get(other[0])}'
        )

    def one(leaf: Any, like: jax.ShapeDtypeStruct) -> Leaf:
        dtype = np.dtype(like.dtype)
        return Leaf(tuple(like.shape), dtype, functools.partial(np.asarray, leaf, dtype))

    return jax.tree.map(one, tree, net.abstract)


def _fill(store: StoredClips, look: Clips, config: QuestionsConfig, net: Net, params: Any) -> None:
    """Computes the features that are not there yet, on all devices of each process."""
    local = sharding.make_mesh(1, jax.local_devices())
    tiled = config.clips.images == 'tiles'

    @jax.jit
    def encode(params: Any, clips: jax.Array, apart: jax.Array) -> jax.Array:
        return net(params, clips, apart=apart if tiled else None)

    files = [*(m.path for m in config.data.mixture), config.heldout]
    shown = [media for path in files if path for media in _shown(config, path)]
    with jax.set_mesh(local):
        whole = jax.device_put(jax.tree.map(np.asarray, params), jax.NamedSharding(local, jax.P()))

        def features(*clips: np.ndarray) -> np.ndarray:
            split = jax.device_put(clips, jax.NamedSharding(local, sharding.BATCH))
            return np.asarray(encode(whole, *split))

        store.fill(
            shown, look, features, CLIPS * local.size, jax.process_index(), jax.process_count(),
            threads=max(1, config.data.workers),
        )  # fmt: skip
    distributed.any_process(False)  # each reads what the others computed, so waits for them


def _standardised(objective: Questions, store: StoredClips, config: QuestionsConfig) -> dict:
    """A drawn projector whose first layer reads each channel less its mean, over its deviation:
    of channels that lie far from 0 or hardly vary it would else learn late, or never."""
    net = objective.net('projector')
    media = list(
        dict.fromkeys(m for item in config.data.mixture for m in _shown(config, item.path))
    )
    order = np.random.default_rng(config.seed).permutation(len(media))
    seen, tokens, mean, squares = 0, 0, np.zeros(()), np.zeros(())  # squares: off the mean, summed
    for place in order:
        try:
            own = np.asarray(store(media[place]), np.float64)
        except BadFile:  # said when features were made
            continue
        # Chan, Golub and LeVeque: sums about means, so that large ones do not hide small spreads
        count, about = own.shape[0] * own.shape[1], own.mean((0, 1))
        apart, both = about - mean, tokens + count
        squares = squares + np.square(own - about).sum((0, 1))
        squares += np.square(apart) * (tokens * count / both)
        seen, tokens, mean = seen + 1, both, mean + apart * (count / both)
        if seen == MEASURED:
            break
    key = jax.random.fold_in(jax.random.key(config.seed), 3)
    params = jax.device_get(jax.jit(net.init, compiler_options=ONCE)(key))
    if not seen:
        return params
    deviation = np.sqrt(squares / tokens) + 1e-6
    kernel, bias = params['fc1']['kernel'], params['fc1']['bias']
    times = len(kernel) // len(mean)
    mean, deviation = np.tile(mean, times)[:, None], np.tile(deviation, times)[:, None]
    first = {
        'kernel': (kernel / deviation).astype(kernel.dtype),
        'bias': (bias - (mean / deviation * kernel).sum(0)).astype(bias.dtype),
    }
    return params | {'fc1': first}


def _shown(config: QuestionsConfig, path: str) -> Iterator[Media]:
    """Videos and images of the conversations of a file, as often as they come."""
    for turns in _talks(config, path):
        yield from (part for turn in turns for part in turn.parts if isinstance(part, Media))


def _talks(config: QuestionsConfig, path: str) -> Conversations:
    held = config.heldout_folder or next((m.folder for m in config.data.mixture), '')
    folder = next((m.folder for m in config.data.mixture if m.path == path), held)
    return Conversations(path, folder, config.data.placeholder)


def _held(config: QuestionsConfig, sight: Sight) -> HeldOut:
    """The first held-out conversations that fit and can be read."""
    single = dataclasses.replace(config.data, mixture=[], packed=False)
    rows, prompts, expected, places = [], [], [], media_places(config)
    for said in _talks(config, config.heldout):
        turns = told(said, single.system)
        whole = encode(turns, sight.tokenizer, sight.rows).cut(single.length)
        if whole is None or len(whole.media) > places:
            continue
        first = next(i for i, turn in enumerate(turns) if turn.role == 'assistant')
        prompt = encode(turns[:first], sight.tokenizer, sight.rows, answer=True)
        packed = packing.pack([whole], single.length, sight.tokenizer.pad)
        try:
            rows.append(packed.arrays | sight.shown(packed.media, places))
        except BadFile as error:
            log.warning('heldout: left out: %s', error)
            continue
        prompts.append(prompt)
        expected.append(''.join(map(str, turns[first].parts)))
        if len(rows) == config.heldout_rows:
            break
    if not rows:
        raise ConfigError(
            f'heldout: {config.heldout}: no conversation fits into data.length and can be read'
        )
    length = max(len(prompt.tokens) for prompt in prompts)
    arrays = {
        'tokens': np.stack([_filled(p.tokens, length, sight.tokenizer.pad) for p in prompts]),
        'visual': np.stack([_filled(p.visual, length, -1) for p in prompts]),
        'lengths': np.asarray([len(p.tokens) for p in prompts], np.int32),
    }
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    return HeldOut(batch, arrays, tuple(expected), sight.tokenizer.stops, config.answer_tokens)


def _filled(values: np.ndarray, length: int, fill: int) -> np.ndarray:
    return np.pad(values, (0, length - len(values)), constant_values=fill).astype(np.int32)


def stream(config: QuestionsConfig, prepared: Sight, **place: Any) -> ConversationStream:
    """Batches of packed conversations."""
    return ConversationStream(resolved(config), prepared, **place)
