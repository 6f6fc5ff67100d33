"""What a model is, read from the names and shapes of its arrays in the original's naming."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

from jepa_jax.errors import ConvertError
from jepa_jax.models import VERSIONS, Size, layers
from jepa_jax.models.ac_predictor import ACPredictorConfig
from jepa_jax.models.pooler import PoolerConfig
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.weights import parts
from jepa_jax.weights.tables import HEADS

Shapes = Mapping[str, tuple[int, ...]]

# only V-JEPA 2.1 has these (reference: vjepa2_1 §8)
NEWER = ('norms_block.', 'img_mod_embed', 'video_mod_embed', 'patch_embed_img.')
NEWER += ('predictor_proj_context.', 'predictor_embed.0.')


@dataclasses.dataclass(frozen=True)
class Choices:
    """What shapes cannot say; None: not told, a default is taken and printed."""

    crop: int | None = None  # pixels, square, of the clips trained on
    frames: int | None = None  # of those clips
    heads: int | None = None  # of the encoder
    predictor_heads: int | None = None
    probe_heads: int | None = None
    position: str | None = None  # rope | sincos, where the file has a sin-cos table
    extrinsics: bool | None = None  # whether an action-conditioned predictor uses camera poses
    shorter: str | None = None  # first | resized: what a sin-cos table does for shorter clips
    raw_positions: bool | None = None  # of V-JEPA 2.1's predictor: not spread over 256 pixels'


def check_number(where: object, option: str, value: int | None) -> None:
    """Raises ConvertError for a number below 1."""
    if value is not None and value < 1:
        raise ConvertError(f'{where}: {option} {value}: must be at least 1')


def check_clips(where: str, config: ViTConfig) -> None:
    """Raises ConvertError for clips of which patches and tubelets would leave a rest."""
    for option, value, part, unit in (
        ('crop', config.image_size, config.patch, 'patch'),
        ('frames', config.frames, config.tubelet_of(config.frames), 'tubelet'),
    ):
        if value % part:
            allowed = f'must be a multiple of {part}, the {unit}; say --{option}'
            raise ConvertError(f'{where}: {option} {value}: {allowed}')


class Reader:
    """What the functions below ask of a file, and in `notes` every default that they took."""

    def __init__(self, where: str, choices: Choices):
        self.where, self.choices = where, choices
        self.notes: list[str] = []

    def default(self, option: str, value, why: str):
        """What the user told, else `value`, noted."""
        told = getattr(self.choices, option)
        if told is not None:
            return told
        note = f'{option} {value} ({why}; --{option.replace("_", "-")} to change)'
        if note not in self.notes:
            self.notes.append(note)
        return value

    def shape(self, name: str, shapes: Shapes, array: str, axes: int) -> tuple[int, ...]:
        """Of an array of net `name`, which must have so many axes."""
        shape = shapes.get(array)
        if shape is None:
            raise ConvertError(f'{self.where}: {name}: {array} is missing')
        if len(shape) != axes:
            raise ConvertError(
                f'{self.where}: {name}: {array} has shape {list(shape)}, must have {axes} axes'
            )
        return shape

    def crop(self, version: str = '2.0', trained: int = 0) -> int:
        if trained:
            return self.default('crop', trained, 'as its table of positions says')
        if version == '2.1':
            return self.default('crop', 384, 'as all that were released of V-JEPA 2.1')
        return self.default('crop', 256, 'shapes do not tell; the -384 files have 384')

    def predictor_heads(self, width: int, usual: type) -> int:
        """Heads of the released predictors for their width."""
        if width == usual.width and self.choices.predictor_heads is None:
            return usual.heads
        return self.default('predictor_heads', usual_heads(width), '64 channels or fewer a head')


# of the tables of V-JEPA 1's files: tokens -> pixels; all have 16 frames
FIRST = {8 * 14 * 14: 224, 8 * 24 * 24: 384}


# The readers of jepa_jax.weights.parts.PARTS: shapes of a net's arrays, by the original's names and
# without prefixes, and the config of the encoder beside it -> config. All raise ConvertError where
# an array that says a size is missing or malformed.


def encoder(reader: Reader, name: str, shapes: Shapes, beside: ViTConfig | None) -> ViTConfig:
    """Of an encoder."""
    patches = shapes.get('patch_embed.proj.weight', ())
    width, *_, patch = reader.shape(
        name, shapes, 'patch_embed.proj.weight', 4 if len(patches) == 4 else 5
    )
    tubelet = patches[2] if len(patches) == 5 else 1
    depth = count(shapes, 'blocks')
    hidden, _ = reader.shape(name, shapes, 'blocks.0.mlp.fc1.weight', 2)
    gated = 'blocks.0.mlp.fc3.weight' in shapes
    version = version_of(shapes)
    sizes = VERSIONS[version].sizes
    size, mlp, ratio = _named(sizes, width, depth, hidden, gated)
    known = [s.heads for s in sizes.values() if s.width == width]
    if size != 'custom' and reader.choices.heads in (None, sizes[size].heads):
        heads = sizes[size].heads
    elif known:
        heads = reader.default('heads', known[0], f'as the named size of width {width}')
    else:
        heads = reader.default('heads', usual_heads(width), '64 channels or fewer a head')
    table, image, trained = shapes.get('pos_embed'), tubelet == 1, 0
    tokens = table[1] if table and len(table) == 3 else 0
    first = (patch, tubelet) == (16, 2) and tokens in FIRST
    if image and math.isqrt(tokens) ** 2 == tokens:
        trained = math.isqrt(tokens) * patch
    elif first:
        trained = FIRST[tokens]
    crop = reader.crop(version, trained)
    why = "as V-JEPA 1's" if first else 'shapes do not tell'
    frames = reader.default('frames', 1 if image else 16 if first else 64, why)
    position, shorter = 'rope', ViTConfig.shorter
    if table:
        usual = 'rope' if size in ('vitl', 'vith', 'vitg') and not trained else 'sincos'
        why = 'the file has a sin-cos table, which RoPE models do not use'
        if trained:
            why = f'its table of positions is {"of images" if image else "as V-JEPA 1 has it"}'
        position = reader.default('position', usual, why)
    if position == 'sincos' and not image:
        why = 'V-JEPA 1 resizes its table, V-JEPA 2 takes the first rows'
        shorter = reader.default('shorter', 'resized' if first else 'first', why)
    if position == 'sincos' and image and size == 'vitg' and reader.choices.heads is None:
        size, heads = 'giant', sizes['giant'].heads  # I-JEPA's, of another number of heads
    config = ViTConfig(
        width,
        depth,
        heads,
        ratio,
        patch,
        tubelet,
        mlp,
        position,
        axes='xy' if image and position == 'sincos' else ViTConfig.axes,  # the table tells
        shorter=shorter,
        image_size=crop,
        frames=frames,
        **VERSIONS[version].encoder(depth),
    )
    t, h, w = config.home
    if position == 'sincos' and table[1:2] != (max(t, 1) * h * w,):
        raise ConvertError(
            f'{reader.where}: {name}: pos_embed has shape {list(table)}, which crop {crop} and '
            f'frames {frames} do not give: say --crop and --frames'
        )
    return config


def predictor(
    reader: Reader, name: str, shapes: Shapes, beside: ViTConfig | None
) -> PredictorConfig:
    """Of a predictor of masked tokens."""
    version, embed, levels = version_of(shapes), 'predictor_embed', 1
    if 'predictor_embed.0.weight' in shapes:  # several levels, which are fused first
        embed = 'predictor_embed.2'
        encoder_width, whole = reader.shape(name, shapes, 'predictor_embed.0.weight', 2)
        levels = whole // max(1, encoder_width)
    width, encoder_width, ratio, mlp = _predictor(reader, name, shapes, beside, embed)
    like = beside or ViTConfig(encoder_width, 0, 0)
    image = beside is not None and beside.home[0] == 0 and beside.position == 'sincos'
    if beside and beside.position == 'sincos':  # whose table has told
        crop, frames = beside.image_size, beside.frames
    else:
        crop = reader.crop(version)
        frames = reader.default('frames', 64, 'shapes do not tell')
    more = VERSIONS[version].predictor()
    if VERSIONS[version].levels:
        out, _ = reader.shape(name, shapes, 'predictor_proj.weight', 2)
        why = "as it was trained; the original's hub has them raw"
        more |= {
            'interpolate': not reader.default('raw_positions', False, why),
            'levels': levels,
            'out_width': 0 if out == levels * encoder_width else out,
            'predict_context': 'predictor_proj_context.weight' in shapes,
        }
    return PredictorConfig(
        encoder_width,
        width,
        depth=count(shapes, 'predictor_blocks'),
        heads=_predictor_heads(reader, width, like),
        mlp_ratio=ratio,
        mask_tokens=1 if image else count(shapes, 'mask_tokens'),
        mlp=mlp,
        position=like.position,
        uniform_power=like.uniform_power,
        grid=like.home if image else like.grid(frames, crop, crop),
        **more,
    )


def _predictor_heads(reader: Reader, width: int, encoder: ViTConfig) -> int:
    """I-JEPA's and V-JEPA 1's predictors have as many as their encoders."""
    known = parts.version_of('encoder', encoder) in ('1', parts.IMAGES)
    if known and encoder.heads and width % encoder.heads == 0:
        return reader.default('predictor_heads', encoder.heads, 'as the encoder')
    return reader.predictor_heads(width, PredictorConfig)


def ac_predictor(
    reader: Reader, name: str, shapes: Shapes, beside: ViTConfig | None
) -> ACPredictorConfig:
    """Of an action-conditioned predictor."""
    width, encoder_width, ratio, mlp = _predictor(reader, name, shapes, beside)
    crop = reader.crop()
    return ACPredictorConfig(
        encoder_width,
        width,
        depth=count(shapes, 'predictor_blocks'),
        heads=reader.predictor_heads(width, ACPredictorConfig),
        mlp_ratio=ratio,
        mlp=mlp,
        grid=(crop // ViTConfig.patch, crop // ViTConfig.patch),
        action_width=reader.shape(name, shapes, 'action_encoder.weight', 2)[1],
        state_width=reader.shape(name, shapes, 'state_encoder.weight', 2)[1],
        extrinsics_width=reader.shape(name, shapes, 'extrinsics_encoder.weight', 2)[1],
        use_extrinsics=reader.default('extrinsics', False, 'their weights are there either way'),
    )


def _predictor(
    reader: Reader,
    name: str,
    shapes: Shapes,
    beside: ViTConfig | None,
    embed: str = 'predictor_embed',
) -> tuple[int, int, float, str]:
    """Width, width of the encoder, MLP ratio and kind: what all predictors have in common."""
    width, encoder_width = reader.shape(name, shapes, f'{embed}.weight', 2)
    hidden, _ = reader.shape(name, shapes, 'predictor_blocks.0.mlp.fc1.weight', 2)
    gated = 'predictor_blocks.0.mlp.fc3.weight' in shapes
    _, mlp, ratio = _named({}, width, 0, hidden, gated)
    if beside and beside.width != encoder_width:
        raise ConvertError(
            f'{reader.where}: {name} is for an encoder of width {encoder_width}, the encoder '
            f'beside it has {beside.width}'
        )
    return width, encoder_width, ratio, mlp


def probe(
    reader: Reader, name: str, shapes: Shapes, beside: ViTConfig | None
) -> tuple[PoolerConfig, dict[str, int]]:
    """Of an attentive classifier; the second value: classes of each head."""
    _, queries, width = reader.shape(name, shapes, 'pooler.query_tokens', 3)
    usual = PoolerConfig.heads if width % PoolerConfig.heads == 0 else usual_heads(width)
    heads = reader.default('probe_heads', usual, 'released probes have 16 whatever the width')
    classes = {
        ours: reader.shape(name, shapes, f'{head}.weight', 2)[0]
        for ours, head in HEADS.items()
        if f'{head}.weight' in shapes
    }
    if len(classes) != queries:
        raise ConvertError(
            f'{reader.where}: {name}: {queries} queries and {len(classes)} heads '
            f'({", ".join(classes) or "none"}), must be as many: linear, or verb, noun, action'
        )
    depth = 1 + count(shapes, 'pooler.blocks')
    # V-JEPA 1's, which has a layer that it does not use, and another order of blocks
    first = 'pooler.cross_attention_block.xattn.proj.weight' in shapes
    more = dict(cross_first=first and depth > 1, spare_projection=first)
    return PoolerConfig(width, heads, depth, queries, **more), classes


def size_of(config: ViTConfig | None) -> str:
    """The size of its version that a config has the dimensions of, or 'custom'."""
    if config is not None:
        version = parts.version_of('encoder', config)
        for name, size in VERSIONS.get(version, VERSIONS['2.0']).sizes.items():
            if all(
                getattr(config, f.name) == getattr(size, f.name) for f in dataclasses.fields(size)
            ):
                return name
    return 'custom'


def newer(names) -> str | None:
    """The first name that only V-JEPA 2.1 has."""
    return next((name for name in names if name.startswith(NEWER)), None)


def version_of(names) -> str:
    """Of V-JEPA, by the original's names of a net's arrays: a key of models.VERSIONS."""
    return '2.1' if newer(names) else '2.0'


def usual_heads(width: int) -> int:
    """Heads of 64 channels, or of the largest even number below that fits, at least 12."""
    channels = next((c for c in range(64, 11, -2) if width % c == 0), width)
    return width // channels


def count(shapes: Shapes, prefix: str) -> int:
    """How many `prefix.N...` there are: one more than the largest N."""
    matches = (re.match(rf'{re.escape(prefix)}\.(\d+)(\.|$)', name) for name in shapes)
    return 1 + max((int(match[1]) for match in matches if match), default=-1)


def _named(
    sizes: Mapping[str, Size], width: int, depth: int, hidden: int, gated: bool
) -> tuple[str, str, float]:
    """Which of the sizes, mlp and mlp_ratio give this width, depth and hidden width."""
    kinds: tuple[tuple[str, Callable], ...] = tuple(
        (kind, make)
        for kind, (_, make) in layers.MLPS.items()
        if (kind != 'gelu') == gated
    )  # fmt: skip
    for name, size in sizes.items():
        if (size.width, size.depth) == (width, depth):
            for kind, make in kinds:
                if make(int(width * size.mlp_ratio)) == hidden:
                    return name, kind, size.mlp_ratio
    for ratio in (4.0, 48 / 11, 64 / 13):
        for kind, make in kinds:
            if make(int(width * ratio)) == hidden:
                return 'custom', kind, ratio
    return 'custom', 'swiglu_full' if gated else 'gelu', mlp_ratio(width, hidden)


def mlp_ratio(width: int, hidden: int) -> float:
    """A ratio whose product with the width rounds down to `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)
