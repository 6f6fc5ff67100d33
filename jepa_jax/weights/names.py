"""Names of models, and whether one can be had; nothing here needs JAX, so that commands refuse a
mistyped name at once."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re

from jepa_jax.bucket import Bucket, is_url
from jepa_jax.errors import ConfigError, ZooError, allowed, nearest
from jepa_jax.models import NEWER, SIZE_ALIASES, SIZES, VERSIONS

HUB = 'hf:'  # before a name of the Hugging Face hub
RANDOM = 'random:'  # before a size
PIN = '@sha256:'  # behind a name or path, before 64 digits


@dataclasses.dataclass(frozen=True)
class Released:
    """A file of the original's release. (reference: vjepa2 §10.2)"""

    file: str  # below the server's address
    size: str  # a key of SIZES
    crop: int  # pixels
    probe_of: str = ''  # the model whose features a probe reads; empty: no probe
    # and the rest: see jepa_jax.model.ProbeHead (reference: §11.2)
    reads: str | tuple[int, ...] = 'last'
    frames: int = 16
    step: int = 4
    segments: int = 1
    version: str = '2.0'  # of V-JEPA; I: I-JEPA; MAE
    local: str = ''  # the file's name in the cache; empty: its own
    folder: str = ''  # of an older release
    patch: int = 16  # pixels
    predictor_depth: int = 12
    tuned: bool = False  # MAE: fine-tuned to classes, which it names


_LEVELS_L, _LEVELS_G = (17, 19, 21, 23), (24, 29, 34, 39)
RELEASED = {
    'vitl': Released('vitl.pt', 'vitl', 256),
    'vith': Released('vith.pt', 'vith', 256),
    'vitg': Released('vitg.pt', 'vitg', 256),
    'vitg-384': Released('vitg-384.pt', 'vitg', 384),
    'ac-vitg': Released('vjepa2-ac-vitg.pt', 'vitg', 256),
    'ssv2-vitl-16x2x3': Released(
        'evals/ssv2-vitl-16x2x3.pt', 'vitl', 256, 'vitl', frames=16, step=4, segments=2
    ),
    'diving48-vitl-256': Released(
        'evals/diving48-vitl-256.pt', 'vitl', 256, 'vitl', _LEVELS_L, frames=32, step=2, segments=4
    ),
    'ek100-vitl-256': Released(
        'evals/ek100-vitl-256.pt', 'vitl', 256, 'vitl', 'future', frames=32
    ),
    'ssv2-vitg-384-64x2x3': Released(
        'evals/ssv2-vitg-384-64x2x3.pt', 'vitg', 384, 'vitg-384', frames=64, step=2, segments=2
    ),
    'diving48-vitg-384-32x4x3': Released(
        'evals/diving48-vitg-384-32x4x3.pt', 'vitg', 384, 'vitg-384', _LEVELS_G,
        frames=32, step=2, segments=4,
    ),
    'ek100-vitg-384': Released(
        'evals/ek100-vitg-384.pt', 'vitg', 384, 'vitg-384', 'future', frames=32
    ),
    # V-JEPA 2.1, B and L distilled from G (reference: vjepa2_1 §1)
    'vitb-21': Released('vjepa2_1_vitb_dist_vitG_384.pt', 'vitb', 384, version='2.1'),
    'vitl-21': Released('vjepa2_1_vitl_dist_vitG_384.pt', 'vitl', 384, version='2.1'),
    'vitg-21': Released('vjepa2_1_vitg_384.pt', 'vitg', 384, version='2.1'),
    # on some disks its own name would be that of the one before
    'vitgigantic-21': Released(
        'vjepa2_1_vitG_384.pt', 'gigantic', 384, version='2.1', local='vjepa2_1_gigantic_384.pt'
    ),
}  # fmt: skip


def _ijepa(file: str, size: str, crop: int, patch: int, **more) -> Released:
    more |= {'version': 'I', 'folder': 'ijepa', 'frames': 1, 'patch': patch}
    return Released(f'{file}.pth.tar', size, crop, **more)


# (reference: family §1.7)
RELEASED |= {
    'ijepa-vith14': _ijepa('IN1K-vit.h.14-300e', 'vith', 224, 14),
    'ijepa-vith16-448': _ijepa('IN1K-vit.h.16-448px-300e', 'vith', 448, 16),
    'ijepa-vith14-22k': _ijepa('IN22K-vit.h.14-900e', 'vith', 224, 14),
    'ijepa-vitg16-22k': _ijepa('IN22K-vit.g.16-600e', 'giant', 224, 16, predictor_depth=16),
}
# MAE's encoders; with their decoders, which draw normalised pixels; fine-tuned to the classes of
# ImageNet (reference: family §3.1)
for _size, _name, _patch in (('vitb', 'base', 16), ('vitl', 'large', 16), ('vith', 'huge', 14)):
    for _more, _file in (
        ('', f'pretrain/mae_pretrain_vit_{_name}.pth'),
        ('-full', f'pretrain/mae_pretrain_vit_{_name}_full.pth'),
        ('-in1k', f'finetune/mae_finetuned_vit_{_name}.pth'),
    ):
        RELEASED[f'mae-{_size}{_more}'] = Released(
            _file, _size, 224, version='MAE', folder='mae', frames=1, patch=_patch,
            tuned=_more == '-in1k',
        )  # fmt: skip
# V-JEPA 1 and its probes: name -> segments (reference: family §2)
_FIRST_PROBES = {'k400': 8, 'ssv2': 2, 'in1k': 1, 'places': 1, 'inat': 1}
for _size, _crop, _name in (
    ('vitl', 224, 'vitl16'),
    ('vith', 224, 'vith16'),
    ('vith', 384, 'vith16-384'),
):
    _model = f'vjepa1-{_size}' + ('-384' if _crop == 384 else '')
    RELEASED[_model] = Released(
        f'{_name}/{_name}.pth.tar', _size, _crop, version='1', folder='jepa',
        local=f'vjepa1_{_name}.pth.tar',
    )  # fmt: skip
    RELEASED |= {
        f'{probe}-{_model}': Released(
            f'{_name}/{probe}-probe.pth.tar', _size, _crop, _model, segments=segments, version='1',
            folder='jepa', local=f'vjepa1_{_name}_{probe}-probe.pth.tar',
        )
        for probe, segments in _FIRST_PROBES.items()
    }  # fmt: skip
# the names of the original's torch.hub
ALIASES = {
    'vjepa2_vit_large': 'vitl',
    'vjepa2_vit_huge': 'vith',
    'vjepa2_vit_giant': 'vitg',
    'vjepa2_vit_giant_384': 'vitg-384',
    'vjepa2_ac_vit_giant': 'ac-vitg',
    'vjepa2_1_vit_base_384': 'vitb-21',
    'vjepa2_1_vit_large_384': 'vitl-21',
    'vjepa2_1_vit_giant_384': 'vitg-21',
    'vjepa2_1_vit_gigantic_384': 'vitgigantic-21',
}
# all that the original's authors have on the Hugging Face hub
PUBLISHED = {
    'facebook/vjepa2-vitl-fpc64-256': 'vitl',
    'facebook/vjepa2-vith-fpc64-256': 'vith',
    'facebook/vjepa2-vitg-fpc64-256': 'vitg',
    'facebook/vjepa2-vitg-fpc64-384': 'vitg-384',
    'facebook/vjepa2-vitl-fpc16-256-ssv2': 'ssv2-vitl-16x2x3',
    'facebook/vjepa2-vitg-fpc64-384-ssv2': 'ssv2-vitg-384-64x2x3',
    'facebook/vjepa2-vitl-fpc32-256-diving48': 'diving48-vitl-256',
    'facebook/vjepa2-vitg-fpc32-384-diving48': 'diving48-vitg-384-32x4x3',
    'facebook/ijepa_vith14_1k': 'ijepa-vith14',
    'facebook/ijepa_vith16_1k': 'ijepa-vith16-448',
    'facebook/ijepa_vith14_22k': 'ijepa-vith14-22k',
    'facebook/ijepa_vitg16_22k': 'ijepa-vitg16-22k',
}
# licence of the weights, by version, as their authors' repositories have it; V-JEPA 2's: see there
LICENCES = {
    '2.0': "the release's",
    '2.1': 'not stated',
    'I': 'CC-BY-NC 4.0',
    '1': 'CC-BY-NC 4.0',
    'MAE': 'CC-BY-NC 4.0',
}
# resident on a CPU, float32, 16 frames of 256 pixels (tiny: 8 of 32): measured, or reckoned
MEMORY = {
    'tiny': '0.32 GiB',
    'vits': '0.71 GiB',
    'vitl': '1.61 GiB',
    'vith': 'about 3 GiB',
    'vitg': 'about 4.5 GiB',
    'vitg-384': 'about 4.5 GiB',
    'ac-vitg': 'about 6 GiB',
}
# weights that come with the package: name -> what they are; see jepa_jax.weights.bundled
BUNDLED = {'tiny': 'the main job, configs/tiny.py: 32 pixels, 8 frames'}


def licence(name: str) -> str:
    """Of the weights that a name stands for; '' of paths and names that are not ours, of which
    nothing is known here."""
    if name.startswith(RANDOM):
        return 'none'
    if name in BUNDLED:
        return 'Apache-2.0'
    published = name.removeprefix(HUB)
    # what lies here under a name of the hub is meant first, and may be anything
    if published in PUBLISHED and not os.path.exists(name):
        name = PUBLISHED[published]
    return LICENCES[RELEASED[name].version] if name in RELEASED else ''


def check(name_or_path: str | os.PathLike) -> None:
    """Refuses what is neither a path that exists nor a name; whether it can be read is not tried.

    Raises:
      ZooError: with the names that there are, and the nearest.
    """
    text, _ = pinned(name_or_path)
    if text.startswith(RANDOM):
        size = text.removeprefix(RANDOM)
        version = VERSIONS['2.1' if size.endswith(NEWER) else '2.0']
        plain = size.removesuffix(NEWER)
        if plain not in version.sizes and plain not in SIZE_ALIASES:
            behind = f', and with {NEWER} behind it any of these in V-JEPA 2.1'
            raise ZooError(f"model '{text}': {allowed(size, SIZES)}{behind}")
    elif is_url(text):
        try:
            Bucket(text)
        except ConfigError as error:
            raise ZooError(f"model '{text}': {error}") from error
    elif text in RELEASED or text in BUNDLED or text in PUBLISHED or text.startswith(HUB):
        return
    elif not os.path.exists(os.path.expanduser(text)):
        raise unknown(text)


def unknown(text: str) -> ZooError:
    """The error for what is no name and no path."""
    if (size := SIZE_ALIASES.get(text, text)) in SIZES:
        others = ', '.join(name for name in RELEASED if f'-{size}-' in f'-{name}-')
        return ZooError(
            f"model '{text}': V-JEPA 2 was not released in this size; {RANDOM}{size} has random "
            'weights, for trials; of a run that you trained give the folder'
            + (f'; others of this size are {others}' if others else '')
        )
    names = [*BUNDLED, *RELEASED, *ALIASES, *PUBLISHED, *(RANDOM + size for size in SIZES)]
    hub = ''
    if re.fullmatch(r'[\w-][\w.-]*/[\w.-]+', text):
        hub = f"; a model of the Hugging Face hub is written '{HUB}{text}'"
    near = nearest(text, names)
    with contextlib.suppress(OSError, ValueError):  # no such folder, or a name that none can have
        folder, file = os.path.split(os.path.expanduser(text))
        files = (os.path.join(folder, name) for name in os.listdir(folder or '.'))
        near = near or nearest(os.path.join(folder, file), files)
    return ZooError(
        f"model '{text}': no such file or folder, and no name{near}{hub}; `jepa models` lists the "
        f'{len(BUNDLED) + len(RELEASED)} names, and {RANDOM}SIZE has random weights'
    )


def pinned(name_or_path: str | os.PathLike) -> tuple[str, str]:
    """The key of RELEASED that a name is an alias of, other names and paths as they are; and the
    @sha256:HEX behind it, or nothing.

    Raises ZooError: a hash that cannot be one.
    """
    text, at, digits = os.fspath(name_or_path).partition(PIN)
    if at and not re.fullmatch('[0-9a-f]{64}', digits):
        raise ZooError(f"'{text}{at}{digits}': a SHA-256 has 64 digits 0-9 a-f")
    return ALIASES.get(text, text), at + digits
