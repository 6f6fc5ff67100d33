"""Networks. Letters used in every shape:

B batch, T H W frames and pixels, t h w token grid, N tokens (t*h*w, row-major), K context tokens, M
target tokens, D width, F MLP width, A heads, C head dim, L layers, G masks, P values in a patch.
Video is channels last, [B, T, H, W, 3].
"""

import dataclasses
import importlib
import sys
import types


@dataclasses.dataclass(frozen=True)
class Size:
    """Dimensions of an encoder (reference: vjepa2 §1.1)."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0


# vitg is the original's vit_giant_xformers: 22 heads of 64. giant and gigantic are its siblings
# with other head counts; 2.0's gigantic asks for an MLP ratio of 64/13 by a misspelt keyword and
# really has 4.
SIZES = {
    'tiny': Size(192, 12, 3),
    'vits': Size(384, 12, 6),
    'vitb': Size(768, 12, 12),
    'vitl': Size(1024, 24, 16),
    'vith': Size(1280, 32, 16),
    'vitg': Size(1408, 40, 22, 48 / 11),
    'giant': Size(1408, 40, 16, 48 / 11),
    'gigantic': Size(1664, 48, 26),
    'gigantic_16_heads': Size(1664, 48, 16),
}
# other names -> keys of SIZES; configs that are stored have them
SIZE_ALIASES = {'small': 'vits', 'base': 'vitb'}


@dataclasses.dataclass(frozen=True)
class Version:
    """What encoders and predictors of a version of V-JEPA have in common, beside their size."""

    sizes: dict[str, Size]
    rope: str  # flavour: a key of rope.FLAVOURS
    interpolate: bool = False  # rope: rows and columns of any grid spread over that of 256 pixels
    modalities: bool = False  # images have a patchifier of their own, and tokens know what they are
    levels: int = 0  # outputs of the encoder at as many depths, each with its norm; 0: the last

    def blocks(self, depth: int) -> tuple[int, ...]:
        """The blocks, from 0, that the levels of an encoder are the outputs of. The fewer its
        blocks, the likelier that several levels are the same."""
        if (depth, self.levels) == (48, 4):
            return 11, 23, 37, 47  # the third is not where the paper has it (reference: 2.1 §0.3)
        return tuple(max(0, depth * i // self.levels - 1) for i in range(1, self.levels + 1))

    def encoder(self, depth: int) -> dict:
        """Fields of vit.ViTConfig."""
        return {**self.predictor(), 'levels': self.blocks(depth)}

    def predictor(self) -> dict:
        """Fields of predictor.PredictorConfig."""
        names = 'rope', 'interpolate', 'modalities'
        return {name: getattr(self, name) for name in names}


VERSIONS = {
    '2.0': Version(SIZES, rope='tiled'),
    '2.1': Version(
        {**SIZES, 'gigantic': Size(1664, 48, 26, 64 / 13)},
        rope='paired',
        interpolate=True,
        modalities=True,
        levels=4,
    ),
}
NEWER = '-21'  # behind a size of random weights: of V-JEPA 2.1


class _Models(types.ModuleType):
    """This package, which is also the function that `jepa_jax.models()` calls: a name cannot be
    both otherwise, since importing a package sets it as an attribute of the one above."""

    def __call__(self):
        """The names that `jepa_jax.load` takes: see jepa_jax.catalogue.models."""
        return importlib.import_module('jepa_jax.catalogue').models()


sys.modules[__name__].__class__ = _Models
