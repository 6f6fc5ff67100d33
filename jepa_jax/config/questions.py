"""A run on questions about videos: an encoder, a projector and a language model that answers."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

from jepa_jax.config.check import (
    AT_LEAST_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    RULES,
    OneOf,
    Rule,
    crop_fits,
    transformer,
)
from jepa_jax.config.conversations import ConversationsConfig
from jepa_jax.config.derived import encoder_shape
from jepa_jax.config.parts import EncoderConfig
from jepa_jax.config.runs import RunConfig


@dataclass(frozen=True)
class LanguageSize:
    """A published language model's dimensions. (reference: video_qa §3.3)"""

    vocabulary: int
    width: int
    hidden: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    theta: float
    scaling: tuple[float, ...] = ()
    bias: bool = False
    tied: bool = False


_LLAMA, _QWEN = dict(eps=1e-5, theta=5e5), dict(eps=1e-6, theta=1e6, bias=True)
LANGUAGES = {
    'llama31-8b': LanguageSize(
        128256, 4096, 14336, 32, 32, 8, 128, **_LLAMA, scaling=(8.0, 1.0, 4.0, 8192.0)
    ),
    'llama32-1b': LanguageSize(
        128256, 2048, 8192, 16, 32, 8, 64, **_LLAMA, scaling=(32.0, 1.0, 4.0, 8192.0), tied=True
    ),
    'qwen2-7b': LanguageSize(152064, 3584, 18944, 28, 28, 4, 128, **_QWEN),
    'qwen25-0.5b': LanguageSize(151936, 896, 4864, 24, 14, 2, 64, **_QWEN, tied=True),
    'qwen25-1.5b': LanguageSize(151936, 1536, 8960, 28, 12, 2, 128, **_QWEN, tied=True),
    'tiny': LanguageSize(384, 64, 160, 2, 4, 2, 16, eps=1e-6, theta=1e4, tied=True),
}
TRAINS = ('nothing', 'adapter', 'all')


@dataclass
class LanguageConfig:
    """The language model, and what of it is trained."""

    path: str = ''  # a folder that transformers reads, one of ours, hf:OWNER/MODEL; 'random': drawn
    tokenizer: str = ''  # tokenizer.json or its folder; empty: that of `path`
    size: str = 'qwen25-0.5b'  # a key of LANGUAGES; the folder must be of these dimensions
    vocabulary: int = 0  # 0: as the size says; so below
    width: int = 0
    hidden: int = 0
    depth: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    # what is read from the folder where it is not set here, and is as the size says without one
    eps: float = 0.0  # of its norms; 0: as the folder says; so below
    theta: float = 0.0  # base of the rotary frequencies
    # of the rotary frequencies: factor, low, high, positions trained on before; NOT_SCALED: none
    scaling: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    bias: str = ''  # of queries, keys and values: yes | no; '': as the folder says; so below
    tied: str = ''  # whether the embedding also makes the logits
    trains: str = 'nothing'  # nothing | adapter (LoRA) | all
    rank: int = 16  # of the adapter
    alpha: float = 32.0  # its products count alpha / rank
    kernels: str = '.*'  # pattern of names: attn/q attn/k attn/v attn/o mlp/gate mlp/up mlp/down
    rate: float = 1.0  # factor on the learning rate of language model or adapter


@dataclass
class VisualProjectorConfig:
    """From the encoder's tokens to those that the language model reads."""

    kind: str = 'mlp'  # mlp: two layers, a token each | pooler: learned queries that read all
    hidden: int = 0  # mlp: width of its hidden layer; 0: that of the language model
    pool: int = 1  # mlp: means over so many rows and columns of tokens
    joined: bool = False  # mlp: a place's tokens of all times, side by side, are one
    # mlp: its first layer starts as one of features whose channels have mean 0 and deviation 1
    standardised: bool = False
    queries: int = 0  # pooler: tokens that come out; 0: a quarter of what goes in
    depth: int = 1  # pooler: blocks
    heads: int = 16  # pooler


@dataclass
class ClipsConfig:
    """How a video becomes a clip: so many frames, evenly over all of it."""

    frames: int = 16
    fps: float = 0.0  # frames a second out of which they are taken; 0: all frames of the video
    crop: int = 256  # pixels, square
    view: str = 'whole'  # whole: squeezed to the square | middle: cut as evaluations do
    # an image: repeated over all frames | tiles: cut into squares, one in every tubelet
    images: str = 'repeated'


@dataclass
class QuestionsConfig(RunConfig):
    """A run that teaches a language model to answer from an encoder's features."""

    objective: str = 'questions'
    encoder_from: str = ''  # name or path of the encoder; 'random': drawn
    train_encoder: bool = False
    encoder_rate: float = 1.0  # factor on its learning rate
    features: str = ''  # folder for features of a frozen encoder, computed once; empty: anew
    features_dtype: str = 'float16'  # as stored: float16 | bfloat16
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    clips: ClipsConfig = field(default_factory=ClipsConfig)
    data: ConversationsConfig = field(default_factory=ConversationsConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    projector: VisualProjectorConfig = field(default_factory=VisualProjectorConfig)
    heldout: str = ''  # conversations that health is measured on, as data.mixture[i].path
    heldout_folder: str = ''  # that paths in it are relative to; empty: as of data.mixture[0]
    heldout_rows: int = 8  # of them
    answer_tokens: int = 24  # that health lets the model say, at most


# that a config may set in place of its size's
DIMENSIONS = 'vocabulary', 'width', 'hidden', 'depth', 'heads', 'kv_heads', 'head_dim'

# that a folder says itself
READ = 'eps', 'theta', 'scaling', 'bias', 'tied'
NOT_SCALED = (1.0, 0.0, 0.0, 0.0)
UNSET = (0.0, 0.0, 0.0, 0.0)

RULES[LanguageConfig] = {
    'size': OneOf(tuple(LANGUAGES)),
    **dict.fromkeys((*DIMENSIONS, 'eps', 'theta'), NOT_NEGATIVE),
    'scaling': Rule(
        lambda v: v in (UNSET, NOT_SCALED) or min(v) > 0 and v[1] < v[2],
        'factor, low < high, positions, all above 0; (1, 0, 0, 0): none; (0, 0, 0, 0): as the '
        'folder says',
    ),
    'bias': OneOf(('', 'yes', 'no')),
    'tied': OneOf(('', 'yes', 'no')),
    'trains': OneOf(TRAINS),
    'rank': POSITIVE,
    'alpha': POSITIVE,
    'rate': POSITIVE,
}
RULES[VisualProjectorConfig] = {
    'kind': OneOf(('mlp', 'pooler')),
    'hidden': NOT_NEGATIVE,
    'pool': AT_LEAST_ONE,
    'queries': NOT_NEGATIVE,
    'depth': POSITIVE,
    'heads': POSITIVE,
}
RULES[ClipsConfig] = {
    'frames': POSITIVE,
    'fps': NOT_NEGATIVE,
    'crop': POSITIVE,
    'view': OneOf(('whole', 'middle')),
    'images': OneOf(('repeated', 'tiles')),
}
RULES[QuestionsConfig] = {
    'encoder_rate': POSITIVE,
    'features_dtype': OneOf(('float16', 'bfloat16')),
    'heldout_rows': Rule(lambda v: 1 <= v <= 64, 'from 1 to 64'),
    'answer_tokens': POSITIVE,
}


def language_shape(language: LanguageConfig) -> LanguageSize:
    """Dimensions: those set, the others as the size says."""
    size = LANGUAGES[language.size]
    values = {f.name: getattr(size, f.name) for f in fields(LanguageSize)}
    names = *DIMENSIONS, 'eps', 'theta'
    own = {name: value for name in names if (value := getattr(language, name))}
    if language.scaling != UNSET:
        own['scaling'] = () if language.scaling == NOT_SCALED else language.scaling
    own |= {name: value == 'yes' for name in ('bias', 'tied') if (value := getattr(language, name))}
    return LanguageSize(**values | own)


def as_read(language: LanguageConfig, says: dict[str, Any]) -> LanguageConfig:
    """The config with what files say, by the names of READ, where it is not set and is not as the
    size says."""
    now, added = language_shape(language), {}
    for name in READ:
        value, unset = says[name], getattr(LanguageConfig, name)
        if getattr(language, name) == unset and value != getattr(now, name):
            added[name] = (value or NOT_SCALED) if name == 'scaling' else value
            if name in ('bias', 'tied'):
                added[name] = 'yes' if value else 'no'
    return replace(language, **added)


def clip_grid(config: QuestionsConfig) -> tuple[int, int, int]:
    """(t, h, w) of a clip's tokens."""
    side = config.clips.crop // config.encoder.patch
    return config.clips.frames // config.encoder.tubelet, side, side


def visual_tokens(config: QuestionsConfig) -> int:
    """That the language model reads of a video or image."""
    t, h, w = clip_grid(config)
    if config.projector.kind == 'mlp':
        return (1 if config.projector.joined else t) * h * w // config.projector.pool**2
    return config.projector.queries or max(1, t * h * w // 4)


def media_places(config: QuestionsConfig) -> int:
    """Videos and images of a sequence, at most."""
    return (config.data.visual or config.data.length) // visual_tokens(config)


def models(config: QuestionsConfig) -> tuple[str, ...]:
    """The encoder and the language model."""
    return config.encoder_from, config.language.path


def check(config: QuestionsConfig) -> Iterator[str]:
    """Complaints about what no single field is to blame for."""
    encoder, clips, projector = config.encoder, config.clips, config.projector
    shape, language = encoder_shape(encoder), language_shape(config.language)
    yield from transformer(config, 'encoder', shape.width, shape.heads, encoder.position)
    yield from crop_fits(clips.crop, encoder)
    if clips.frames % encoder.tubelet:
        yield f'clips.frames = {clips.frames}: must be a multiple of {encoder.tubelet}, a tubelet'
    if clips.images == 'tiles' and clips.frames < 3 * encoder.tubelet:
        yield (
            f"clips.images = 'tiles' with clips.frames = {clips.frames}: a tile fills "
            f'{encoder.tubelet} frames, and the whole and two tiles are the least'
        )
    if language.width % (config.mesh.fsdp or 1):
        yield f'mesh.fsdp = {config.mesh.fsdp}: must divide language.width = {language.width}'
    if language.heads % language.kv_heads:
        yield (
            f'language.heads = {language.heads}: must be a multiple of language.kv_heads = '
            f'{language.kv_heads}'
        )
    _, side, _ = clip_grid(config)
    if projector.kind == 'mlp' and side % projector.pool:
        yield f'projector.pool = {projector.pool}: must divide the {side} rows of a frame'
    for name in ('joined', 'standardised'):
        if projector.kind == 'pooler' and getattr(projector, name):
            yield f"projector.{name} = true: is of kind 'mlp', this one is a pooler"
    if projector.standardised and not config.features:
        yield 'projector.standardised = true: is measured on kept features; name a folder, features'
    if projector.kind == 'pooler' and shape.width % projector.heads:
        yield f'projector.heads = {projector.heads}: must divide encoder.width = {shape.width}'
    for name, value in (('encoder_from', config.encoder_from), ('path', config.language.path)):
        if not value:
            where = 'language.path' if name == 'path' else name
            yield f"{where} is empty: name the weights, --config.{where}=PATH ('random': drawn)"
    if not config.language.tokenizer and config.language.path == 'random':
        yield "language.tokenizer is empty: language.path = 'random' brings none"
    for i, item in enumerate(config.data.mixture):
        if not item.path:
            yield f'data.mixture[{i}].path is empty: name a file of conversations'
    if config.features and config.train_encoder:
        yield (
            f'train_encoder = true with features = {config.features!r}: features are computed '
            "once; set features = ''"
        )
    if not media_places(config):
        most = config.data.visual or config.data.length
        yield (
            f'data.visual, data.length: {most} places for visual tokens, a clip has '
            f'{visual_tokens(config)}'
        )
