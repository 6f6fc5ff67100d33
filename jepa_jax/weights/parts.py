"""The kinds of nets that the program knows, a row each.

Rows name what they load as `module:name`, so that this table needs no JAX. A new kind of net is a
file in models/ and a row here; a file given to `--config` may add its own. A part without `files`
exists in our checkpoints alone.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

from jepa_jax.errors import ConvertError
from jepa_jax.lookup import load, row
from jepa_jax.models import VERSIONS

_HERE = 'jepa_jax.weights.parts'


@dataclasses.dataclass(frozen=True)
class Format:
    """How a kind of foreign file holds a part, each as `module:name`."""

    rules: str  # config -> rules of jepa_jax.weights.tables, and sizes that patterns do not tell
    # torch: shapes.Reader, where, shapes by name, config of the encoder beside it -> config
    # hf: values of config.json, shapes by name, config of the encoder beside it -> config
    config: str
    computed: str = ''  # config -> arrays by name that the file has and we compute
    known: str = ''  # config -> fields of ours, and the only values that its program computes with


@dataclasses.dataclass(frozen=True)
class Part:
    """A kind of net, each as `module:name`."""

    title: str  # for people
    config: str  # a frozen dataclass: all that shapes it
    module: str  # config, rngs= -> the Flax module
    sharding: str  # config -> jepa_jax.sharding.Rules
    version: str = f'{_HERE}:no_version'  # config -> of V-JEPA, as '2.0', or ''
    to_json: str = f'{_HERE}:to_json'  # config -> what JSON holds
    from_json: str = f'{_HERE}:from_json'  # class of configs, JSON -> config
    # config -> fields and their numbers, none of which is more than the arrays of a file can have
    counts: str = f'{_HERE}:no_counts'
    files: Mapping[str, Format] = dataclasses.field(default_factory=dict)  # torch, hf


_SHAPES, _TABLES = 'jepa_jax.weights.shapes', 'jepa_jax.weights.tables'
_PIXELS, _PIXEL_FILES = 'jepa_jax.weights.pixel_tables', 'jepa_jax.weights.pixel_files'
_HF_PIXELS = 'jepa_jax.weights.hf_pixels'
_TORCH, _HF = 'jepa_jax.weights.torch_files', 'jepa_jax.weights.hf_files'

PARTS: dict[str, Part] = {
    'encoder': Part(
        title='encoder',
        config='jepa_jax.models.vit:ViTConfig',
        module='jepa_jax.models.vit:ViT',
        sharding='jepa_jax.models.vit:sharding',
        counts=f'{_HERE}:blocks',
        version=f'{_HERE}:version_of_encoder',
        files={
            'torch': Format(
                f'{_PIXELS}:torch_encoder',
                f'{_PIXEL_FILES}:encoder',
                f'{_PIXEL_FILES}:table',
                f'{_TORCH}:known_of_encoder',
            ),
            'hf': Format(
                f'{_PIXELS}:hf_encoder', f'{_HF_PIXELS}:encoder', f'{_PIXEL_FILES}:hf_table'
            ),
        },
    ),
    'predictor': Part(
        title='predictor',
        config='jepa_jax.models.predictor:PredictorConfig',
        module='jepa_jax.models.predictor:Predictor',
        sharding='jepa_jax.models.predictor:sharding',
        counts=f'{_HERE}:blocks_and_tokens',
        version=f'{_HERE}:version_of_predictor',
        files={
            'torch': Format(
                f'{_TABLES}:torch_predictor',
                f'{_SHAPES}:predictor',
                f'{_TORCH}:predictor_table',
                f'{_TORCH}:known_of_predictor',
            ),
            'hf': Format(f'{_TABLES}:hf_predictor', f'{_HF}:predictor'),
        },
    ),
    'pixel_decoder': Part(
        title='decoder of pixels',
        config='jepa_jax.models.pixel_decoder:PixelDecoderConfig',
        module='jepa_jax.models.pixel_decoder:PixelDecoder',
        sharding='jepa_jax.models.pixel_decoder:sharding',
        counts=f'{_HERE}:blocks',
        version=f'{_HERE}:version_of_pixel_decoder',
        files={
            'torch': Format(
                f'{_PIXELS}:torch_decoder',
                f'{_PIXEL_FILES}:decoder',
                f'{_PIXEL_FILES}:decoder_table',
            ),
            'hf': Format(
                f'{_PIXELS}:hf_decoder',
                f'{_HF_PIXELS}:decoder',
                f'{_PIXEL_FILES}:hf_decoder_table',
            ),
        },
    ),
    'ac_predictor': Part(
        title='action-conditioned predictor',
        config='jepa_jax.models.ac_predictor:ACPredictorConfig',
        module='jepa_jax.models.ac_predictor:ACPredictor',
        sharding='jepa_jax.models.ac_predictor:sharding',
        counts=f'{_HERE}:blocks',
        version=f'{_HERE}:version_of_rope',
        files={
            'torch': Format(
                f'{_TABLES}:torch_ac_predictor',
                f'{_SHAPES}:ac_predictor',
                known=f'{_TORCH}:known_of_ac_predictor',
            )
        },
    ),
    'expander': Part(
        title='expander',
        config='jepa_jax.models.expander:ExpanderConfig',
        module='jepa_jax.models.expander:Expander',
        sharding='jepa_jax.models.expander:sharding',
    ),
    'probe': Part(
        title='probe',
        config='jepa_jax.models.pooler:PoolerConfig',
        module='jepa_jax.models.pooler:classifier',
        sharding='jepa_jax.models.pooler:sharding',
        counts=f'{_HERE}:counts_of_probe',
        to_json=f'{_HERE}:probe_to_json',
        from_json=f'{_HERE}:probe_from_json',
        files={
            'torch': Format(f'{_PIXELS}:torch_probe', f'{_PIXEL_FILES}:probe'),
            'hf': Format(f'{_PIXELS}:hf_probe', f'{_HF_PIXELS}:probe'),
        },
    ),
    'decoder': Part(
        title='language model',
        config='jepa_jax.models.decoder:DecoderConfig',
        module='jepa_jax.models.decoder:Decoder',
        sharding='jepa_jax.models.decoder:sharding',
        counts=f'{_HERE}:blocks',
        from_json=f'{_HERE}:decoder_from_json',
        files={
            'hf': Format(
                'jepa_jax.weights.language_tables:hf_decoder', 'jepa_jax.weights.language:decoder'
            )
        },
    ),
    'adapter': Part(
        title='adapter of the language model',
        config='jepa_jax.models.adapter:AdapterConfig',
        module='jepa_jax.models.adapter:Adapter',
        sharding='jepa_jax.models.adapter:sharding',
        counts=f'{_HERE}:blocks',
    ),
    'projector': Part(
        title='projector of visual tokens',
        config='jepa_jax.models.projector:ProjectorConfig',
        module='jepa_jax.models.projector:Projector',
        sharding='jepa_jax.models.projector:sharding',
        counts=f'{_HERE}:blocks_and_queries',
    ),
}

IMAGES = 'I'  # the version of I-JEPA's nets
MAE, VIDEOMAE = 'MAE', 'VideoMAE'  # and of others that are no V-JEPA
TEACHER = 'teacher'  # the name of a frozen net that nobody needs once its run is over
LARGEST = 2**16  # a width, depth, frame or pixel count that a file may claim
# likewise of a language model, whose vocabulary and base of positions are large
LARGEST_OF_DECODERS = 2**24


def net(part: str, config: Any):
    """The jepa_jax.nets.Net of a part.

    Raises:
      ConfigError: no such part.
    """
    from jepa_jax.nets import Net

    kind = row(PARTS, 'part', part)
    module, rules = load(kind.module), load(kind.sharding)(config)
    return Net(lambda rngs: module(config, rngs=rngs), rules=rules, part=part, config=config)


def shared_net(part: str, config: Any):
    """Likewise, one for all that ask for the same: for names and shapes."""
    return _shared_net(part, json.dumps(json_of(part, config)))


@functools.lru_cache(16)
def _shared_net(part: str, text: str):
    return net(part, config_of(part, json.loads(text)))


def abstract(where: str, part: str, config: Any, forms: Mapping[str, tuple[int, ...]]) -> dict:
    """Names and shapes of a net that a file describes, once it is plausible.

    forms: shapes of the file's arrays.

    Raises:
      ConvertError: no net has this config, or it would have more layers than there are arrays.
    """
    most = max([len(forms), *(size for form in forms.values() for size in form)], default=0)
    for field, count in load(row(PARTS, 'part', part).counts)(config).items():
        if count > most:
            raise ConvertError(f'{where}: {field} {count:,}, which its arrays do not have')
    try:
        return shared_net(part, config).abstract
    except (ValueError, TypeError, KeyError, ArithmeticError, AssertionError) as error:
        text = ' '.join(str(error).split())[:200] or type(error).__name__
        raise ConvertError(f'{where}: no {part} has this config ({text})') from error


def no_counts(config: Any) -> dict[str, int]:
    """Of parts that stack nothing."""
    del config
    return {}


def blocks(config: Any) -> dict[str, int]:
    """Of a stack of blocks."""
    return {'depth': config.depth}


def blocks_and_tokens(config: Any) -> dict[str, int]:
    """Of a predictor of masked tokens."""
    return {'depth': config.depth, 'mask_tokens': config.mask_tokens}


def blocks_and_queries(config: Any) -> dict[str, int]:
    """Of a pooler."""
    return {'depth': config.depth, 'queries': config.queries}


def counts_of_probe(probe: tuple[Any, dict[str, int]]) -> dict[str, int]:
    """Of a probe's two settings."""
    return blocks_and_queries(probe[0])


def version_of(part: str, config: Any) -> str:
    """Of V-JEPA: '1', '2.0' or '2.1'; IMAGES of I-JEPA; '' for nets that no version has."""
    return load(row(PARTS, 'part', part).version)(config)


def called(version: str) -> str:
    """A version of `version_of` for people."""
    if version in (MAE, VIDEOMAE, ''):
        return version
    return 'I-JEPA' if version == IMAGES else f'V-JEPA {version}'


def no_version(config: Any) -> str:
    """Of parts that are alike in all versions, or in none."""
    del config
    return ''


def version_of_encoder(config: Any) -> str:
    """MAE's encoders have a token of their own, VideoMAE's keys no bias."""
    if config.class_token:
        return MAE
    if not config.key_bias:
        return VIDEOMAE
    image = config.tubelet == 1
    if config.position == 'sincos' and image and config.axes == 'xy':
        return IMAGES
    if config.position == 'sincos' and config.shorter == 'resized' and not image:
        return '1'
    return version_of_rope(config)


def version_of_predictor(config: Any) -> str:
    """I-JEPA's are of images, with tables whose columns come first."""
    if config.position == 'sincos' and config.grid[0] == 0 and config.axes == 'xy':
        return IMAGES
    return version_of_rope(config)


def version_of_pixel_decoder(config: Any) -> str:
    """Of MAE or VideoMAE, as of their encoders; others have no version."""
    if config.class_token:
        return MAE
    return '' if config.key_bias else VIDEOMAE


def version_of_rope(config: Any) -> str:
    """Of parts whose positions alone differ from version to version."""
    return next((name for name, version in VERSIONS.items() if version.rope == config.rope), '')


# Configs as JSON


def json_of(part: str, config: Any) -> Any:
    """A part's config as JSON holds it; raises as `net`."""
    return load(row(PARTS, 'part', part).to_json)(config)


def config_of(part: str, values: Any) -> Any:
    """The inverse of `json_of`; raises TypeError for a field that the config does not have."""
    kind = row(PARTS, 'part', part)
    return load(kind.from_json)(load(kind.config), values)


def to_json(config: Any) -> dict[str, Any]:
    """Of a dataclass of numbers, words, tuples of them, and a `dtype`."""
    import jax.numpy as jnp

    values = dataclasses.asdict(config)
    return values | ({'dtype': jnp.dtype(config.dtype).name} if 'dtype' in values else {})


def from_json(kind: type, values: dict[str, Any], largest: int = LARGEST) -> Any:
    """The inverse of `to_json`; largest: that a number may be.

    Raises:
      TypeError: not the fields of such a config, or a value that none can have.
    """
    import jax.numpy as jnp

    if not isinstance(values, dict):
        raise TypeError(f'a config is a {type(values).__name__}, must be an object')
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    config = kind(**values | ({'dtype': jnp.dtype(values['dtype'])} if 'dtype' in values else {}))
    for field in dataclasses.fields(config):
        named = getattr(field.type, '__name__', field.type)  # text in modules that postpone it
        value = getattr(config, field.name)
        if value is not None and not _fits(named, value, largest):
            raise TypeError(f'{field.name} = {str(value)[:50]!r}: not what a config can have')
    return config


def decoder_from_json(kind: type, values: dict[str, Any]) -> Any:
    """Likewise, of a language model."""
    return from_json(kind, values, LARGEST_OF_DECODERS)


def _fits(kind: str, value: Any, largest: int = LARGEST) -> bool:
    """Whether a value out of a file is one that a field of that annotation may have."""
    if kind == 'int':
        return type(value) is int and 0 <= value <= largest
    if kind == 'float':
        return type(value) in (int, float) and abs(value) <= largest
    if kind in ('bool', 'str'):
        return type(value).__name__ == kind
    if kind.startswith('tuple'):
        items = value if type(value) is tuple else (None,)
        return len(items) <= 1024 and all(
            type(item) in (int, float, str) and _fits(type(item).__name__, item, largest)
            for item in items
        )
    return True


def probe_to_json(probe: tuple[Any, dict[str, int]]) -> dict[str, Any]:
    """Of a probe's two settings. Classes are pairs: their order is that of the queries, and JSON's
    may change."""
    pooler, classes = probe
    return {'pooler': to_json(pooler), 'classes': [[k, v] for k, v in classes.items()]}


def probe_from_json(kind: type, values: dict[str, Any]) -> tuple[Any, dict[str, int]]:
    """The inverse of `probe_to_json`."""
    pooler, classes = from_json(kind, values['pooler']), dict(values['classes'])
    if not all(_fits('str', k) and _fits('int', v) for k, v in classes.items()):
        raise TypeError('classes must be names and numbers')
    return pooler, classes


# Encoders compared


def differences(a: Any, b: Any) -> list[str]:
    """In what two ViTConfigs would give other features from the same weights, or need other
    weights: `heads 16 and 12`, a line each. Number type and recomputation are no difference, nor is
    what only sin-cos positions know where both have RoPE."""
    names = ['width', 'depth', 'heads', 'mlp', 'patch', 'tubelet', 'position']
    names += ['modalities', 'levels', 'class_token', 'key_bias']
    if a.position == b.position == 'rope':
        names += ['rope', 'interpolate']
    elif a.position == b.position:
        names += ['uniform_power', 'image_size', 'stored_table']
        # an image model's table knows no time
        names += ['frames', 'shorter'] if a.tubelet > 1 else ['axes']
    lines = [
        f'{name} {getattr(a, name)} and {getattr(b, name)}'
        for name in names
        if getattr(a, name) != getattr(b, name)
    ]
    if (a.width, a.mlp) == (b.width, b.mlp) and _hidden(a) != _hidden(b):
        lines.append(f'mlp_ratio {a.mlp_ratio:g} and {b.mlp_ratio:g}')
    return lines


def _hidden(config: Any) -> int:
    """Width of the MLP's hidden layer: several ratios give the same."""
    from jepa_jax.models.layers import MLPS

    return MLPS[config.mlp][1](int(config.width * config.mlp_ratio))
