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
# with other head counts; the original's gigantic asks for an MLP ratio of 64/13 by a misspelt
# keyword and really has 4.
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


class _Models(types.ModuleType):
    """This package, which is also the function that `jepa_jax.models()` calls: a name cannot be
    both otherwise, since importing a package sets it as an attribute of the one above."""

    def __call__(self):
        """The names that `jepa_jax.load` takes: see jepa_jax.catalogue.models."""
        return importlib.import_module('jepa_jax.catalogue').models()


sys.modules[__name__].__class__ = _Models
