"""What an array is called, and how it lies, in each kind of file: one table a net, both directions.

A row says: this array of the file is that leaf of the net, rearranged so. Reading a row from left
to right converts to our layout, from right to left back. Nothing is converted, dropped or skipped
without a row.

In names and paths `{i}` counts from 0. A count in the name alone is our leading layer axis; a count
in both is a leaf each; a count in the path alone is the leading axis in the file. `{part}` stands
for several arrays of the file that are one of ours, and for the axis `part` of the pattern.
(reference: vjepa2 §10.1, §10.4)
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import einops
import jax
import numpy as np

from jepa_jax.errors import ConvertError
from jepa_jax.lookup import load
from jepa_jax.sharding import path_name
from jepa_jax.weights import parts


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row. `path` None: the array is known, and dropped; `why` then says why."""

    name: str  # in the file
    path: str | None  # in the net
    pattern: str  # einops, file -> ours, without the layer axis
    parts: tuple[str, ...] = ()
    why: str = ''


def affine(name: str, path: str, vector: str = 'd -> d', matrix: str = 'o i -> i o', **more):
    return (
        Rule(f'{name}.weight', f'{path}/kernel', matrix, **more),
        Rule(f'{name}.bias', f'{path}/bias', vector, **more),
    )


def norm(name: str, path: str):
    return (
        Rule(f'{name}.weight', f'{path}/scale', 'd -> d'),
        Rule(f'{name}.bias', f'{path}/bias', 'd -> d'),
    )


def _mlp(name: str, path: str):
    return (
        *affine(f'{name}.fc1', f'{path}/fc1'),
        *affine(f'{name}.fc2', f'{path}/fc2'),
        *affine(f'{name}.fc3', f'{path}/fc3'),  # SwiGLU only
    )


def block(name: str, path: str):
    return (
        *norm(f'{name}.norm1', f'{path}/norm1'),
        *affine(f'{name}.attn.qkv', f'{path}/attn/qkv'),
        *affine(f'{name}.attn.proj', f'{path}/attn/proj'),
        *norm(f'{name}.norm2', f'{path}/norm2'),
        *_mlp(f'{name}.mlp', f'{path}/mlp'),
    )


def split(name: str, path: str, *parts: str):
    """An affine map that the file keeps as several."""
    return affine(name, path, 'part o -> (part o)', 'part o i -> i (part o)', parts=parts)


# What the original's files call the nets: entry -> ours. Its training files have both encoders, the
# target being the moving average of the online one.
DISTILLED = 'ema_encoder'  # the target of students of V-JEPA 2.1
TORCH_NETS = {
    'encoder': 'online',
    DISTILLED: 'target',
    'target_encoder': 'target',
    'predictor': 'predictor',
}
TORCH_PROBES = 'classifiers'  # a list of them
FIRST_PROBE = 'classifier'  # V-JEPA 1's

# arrays of the original that no gradient may ever reach: tokens that no clip asked for, what is of
# images where there are none, and tables of positions
MAYBE_IDLE = ('mask_tokens.', 'extrinsics_encoder.', 'patch_embed_img.', 'img_mod_embed')
MAYBE_IDLE += ('pos_embed', 'predictor_pos_embed')

VIDEO, IMAGE = 'd c t y x -> (t y x c) d', 'd c y x -> (y x c) d'
SINCOS = 'a sin-cos table, computed and not learned'

# The original's names, in the order in which its modules register them: the order of the indices of
# its optimizer. (reference: vjepa2 §5.4)
ENCODER = (
    Rule('pos_embed', None, '', why=SINCOS),
    *affine('patch_embed.proj', 'patch_embed', matrix=VIDEO),
    *block('blocks.{i}', 'blocks'),
    *norm('norm', 'norm'),
)
# of V-JEPA 2.1 (reference: vjepa2_1 §8)
_MODALITY = tuple(
    Rule(f'{name}_mod_embed', f'modality/{ours}', 'a b d -> a b d')
    for name, ours in (('img', 'image'), ('video', 'video'))
)
DENSE_ENCODER = (
    *_MODALITY,
    *affine('patch_embed.proj', 'patch_embed', matrix=VIDEO),
    # one frame, whatever the tubelet of videos
    *affine('patch_embed_img.proj', 'patch_embed_image', matrix='d c 1 y x -> (y x c) d'),
    *block('blocks.{i}', 'blocks'),
    *norm('norms_block.{i}', 'norms/{i}'),
)
IMAGE_ENCODER = tuple(
    dataclasses.replace(rule, pattern=IMAGE) if rule.pattern == VIDEO else rule for rule in ENCODER
)
PREDICTOR = (
    Rule('predictor_pos_embed', None, '', why=SINCOS),
    *affine('predictor_embed', 'embed'),
    Rule('mask_tokens.{i}', 'mask_tokens/{i}', 'a b d -> a b d'),
    *block('predictor_blocks.{i}', 'blocks'),
    *norm('predictor_norm', 'norm'),
    *affine('predictor_proj', 'proj'),
)
# of I-JEPA (reference: family §1.8), in the order of its optimizer
IMAGE_PREDICTOR = (
    Rule('mask_token', 'mask_tokens/0', 'a b d -> a b d'),
    *(rule for rule in PREDICTOR if not rule.name.startswith('mask_tokens')),
)
DENSE_PREDICTOR = (
    *_MODALITY,
    Rule('mask_tokens.{i}', 'mask_tokens/{i}', 'a b d -> a b d'),
    *affine('predictor_embed.0', 'fuse'),
    *affine('predictor_embed.2', 'embed'),
    *block('predictor_blocks.{i}', 'blocks'),
    *norm('predictor_norm', 'norm'),
    *affine('predictor_proj', 'proj'),
    *affine('predictor_proj_context', 'proj_context'),
)
# with one level nothing is fused
DENSE_PREDICTOR_OF_ONE = tuple(
    dataclasses.replace(rule, name=rule.name.replace('predictor_embed.2', 'predictor_embed'))
    for rule in DENSE_PREDICTOR
    if not rule.name.startswith('predictor_embed.0')
)
AC_PREDICTOR = (
    *affine('predictor_embed', 'embed'),
    *affine('action_encoder', 'action_encoder'),
    *affine('state_encoder', 'state_encoder'),
    *affine('extrinsics_encoder', 'extrinsics_encoder'),
    *block('predictor_blocks.{i}', 'blocks'),
    *norm('predictor_norm', 'norm'),
    *affine('predictor_proj', 'proj'),
)
HEADS = {
    'linear': 'linear',
    'verb': 'verb_classifier',
    'noun': 'noun_classifier',
    'action': 'action_classifier',
}
_CROSS = 'pooler/cross_attention_block'
PROBE = (
    Rule('pooler.query_tokens', 'pooler/query_tokens', 'a q d -> a q d'),
    *norm('pooler.cross_attention_block.norm1', f'{_CROSS}/norm1'),
    *affine('pooler.cross_attention_block.xattn.q', f'{_CROSS}/xattn/q'),
    *affine('pooler.cross_attention_block.xattn.kv', f'{_CROSS}/xattn/kv'),
    *affine('pooler.cross_attention_block.xattn.proj', f'{_CROSS}/xattn/proj'),  # V-JEPA 1
    *norm('pooler.cross_attention_block.norm2', f'{_CROSS}/norm2'),
    *_mlp('pooler.cross_attention_block.mlp', f'{_CROSS}/mlp'),
    *block('pooler.blocks.{i}', 'pooler/blocks'),
    *(rule for ours, name in HEADS.items() for rule in affine(name, f'heads/{ours}')),
)

# The names of `transformers`.


def _hf_block(name: str, path: str):
    return (
        *norm(f'{name}.norm1', f'{path}/norm1'),
        *split(f'{name}.attention.{{part}}', f'{path}/attn/qkv', 'query', 'key', 'value'),
        *affine(f'{name}.attention.proj', f'{path}/attn/proj'),
        *norm(f'{name}.norm2', f'{path}/norm2'),
        *affine(f'{name}.mlp.fc1', f'{path}/mlp/fc1'),
        *affine(f'{name}.mlp.fc2', f'{path}/mlp/fc2'),
    )


HF_ENCODER = (
    *affine('encoder.embeddings.patch_embeddings.proj', 'patch_embed', matrix=VIDEO),
    *_hf_block('encoder.layer.{i}', 'blocks'),
    *norm('encoder.layernorm', 'norm'),
)
_LAYER = 'encoder.layer.{i}'
HF_IJEPA = (
    Rule('embeddings.position_embeddings', None, '', why=SINCOS),
    *affine('embeddings.patch_embeddings.projection', 'patch_embed', matrix=IMAGE),
    *norm(f'{_LAYER}.layernorm_before', 'blocks/norm1'),
    *split(f'{_LAYER}.attention.attention.{{part}}', 'blocks/attn/qkv', 'query', 'key', 'value'),
    *affine(f'{_LAYER}.attention.output.dense', 'blocks/attn/proj'),
    *norm(f'{_LAYER}.layernorm_after', 'blocks/norm2'),
    *affine(f'{_LAYER}.intermediate.dense', 'blocks/mlp/fc1'),
    *affine(f'{_LAYER}.output.dense', 'blocks/mlp/fc2'),
    *norm('layernorm', 'norm'),
)
HF_PREDICTOR = (
    *affine('predictor.embeddings.predictor_embeddings', 'embed'),
    Rule('predictor.embeddings.mask_tokens', 'mask_tokens/{i}', 'a b d -> a b d'),
    *_hf_block('predictor.layer.{i}', 'blocks'),
    *norm('predictor.layernorm', 'norm'),
    *affine('predictor.proj', 'proj'),
)
_SELF, _HF_CROSS = 'pooler.self_attention_layers.{i}', 'pooler.cross_attention_layer'
HF_PROBE = (
    Rule('pooler.query_tokens', 'pooler/query_tokens', 'a q d -> a q d'),
    *norm(f'{_SELF}.layer_norm1', 'pooler/blocks/norm1'),
    *split(f'{_SELF}.self_attn.{{part}}', 'pooler/blocks/attn/qkv', 'q_proj', 'k_proj', 'v_proj'),
    *affine(f'{_SELF}.self_attn.out_proj', 'pooler/blocks/attn/proj'),
    *norm(f'{_SELF}.layer_norm2', 'pooler/blocks/norm2'),
    *affine(f'{_SELF}.mlp.fc1', 'pooler/blocks/mlp/fc1'),
    *affine(f'{_SELF}.mlp.fc2', 'pooler/blocks/mlp/fc2'),
    *norm(f'{_HF_CROSS}.layer_norm1', f'{_CROSS}/norm1'),
    *affine(f'{_HF_CROSS}.cross_attn.q_proj', f'{_CROSS}/xattn/q'),
    *split(f'{_HF_CROSS}.cross_attn.{{part}}', f'{_CROSS}/xattn/kv', 'k_proj', 'v_proj'),
    *norm(f'{_HF_CROSS}.layer_norm2', f'{_CROSS}/norm2'),
    *affine(f'{_HF_CROSS}.mlp.fc1', f'{_CROSS}/mlp/fc1'),
    *affine(f'{_HF_CROSS}.mlp.fc2', f'{_CROSS}/mlp/fc2'),
    *affine('classifier', 'heads/linear'),
)


# The rows of a part in a kind of file: a net's config -> rules, and sizes that patterns do not tell

Table = tuple[tuple[Rule, ...], dict[str, int]]


def patch_sizes(config) -> dict[str, int]:
    return {'c': 3, 't': config.tubelet, 'y': config.patch, 'x': config.patch}


def torch_encoder(config) -> Table:
    if config.modalities:
        return DENSE_ENCODER, patch_sizes(config)
    rules = ENCODER if config.tubelet > 1 else IMAGE_ENCODER
    return with_table(rules, config), patch_sizes(config)


def with_table(rules: tuple[Rule, ...], config) -> tuple[Rule, ...]:
    """The rows of a net whose table of positions is a weight, where it is one."""
    if not config.stored_table:
        return rules
    return tuple(
        Rule(rule.name, 'table', '1 n d -> n d') if rule.why == SINCOS else rule for rule in rules
    )


def torch_predictor(config) -> Table:
    if config.modalities:
        return (DENSE_PREDICTOR if config.levels > 1 else DENSE_PREDICTOR_OF_ONE), {}
    return with_table(PREDICTOR if config.grid[0] else IMAGE_PREDICTOR, config), {}


def torch_ac_predictor(config) -> Table:
    return AC_PREDICTOR, {}


def torch_probe(config) -> Table:
    return PROBE, {}


def hf_encoder(config) -> Table:
    if parts.version_of('encoder', config) == parts.IMAGES:
        return with_table(HF_IJEPA, config), patch_sizes(config)
    _refuse_dense(config)
    return HF_ENCODER, patch_sizes(config)


def hf_predictor(config) -> Table:
    _refuse_dense(config)
    return HF_PREDICTOR, {}


def _refuse_dense(config) -> None:
    if config.modalities:
        raise ConvertError('V-JEPA 2.1, which a VJEPA2Model cannot have: use torch or jax')


def hf_probe(config) -> Table:
    return HF_PROBE, {}


def table(part: str, config, format: str) -> Table:
    """The rows of a part in a kind of file, torch or hf.

    Raises:
      ConvertError: such files cannot hold the part.
    """
    kind = parts.PARTS[part]
    if format not in kind.files:
        raise ConvertError(
            f"{part}: a {kind.title} has no place in files of format '{format}'; "
            f'allowed are {", ".join(("jax", *kind.files))}'
        )
    return load(kind.files[format].rules)(config)


# Arrays that are read when they are needed


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """An array that is not read yet. `np.asarray(leaf)` reads it and keeps nothing; so does
    `jnp.asarray` of that."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.read(), dtype=dtype)


def finite(where: str, leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """Leaves that refuse, when they are read, to hold NaN or infinity: ConvertError."""

    def guarded(name: str, leaf: Leaf) -> Leaf:
        def read() -> np.ndarray:
            array = np.asarray(leaf)
            if count := not_finite(array):
                raise ConvertError(
                    f'{where}: {name}: {count:,} of {array.size:,} numbers are NaN or infinite '
                    '(convert --allow-nonfinite, load(allow_nonfinite=True))'
                )
            return array

        return Leaf(leaf.shape, leaf.dtype, read)

    return {name: guarded(name, leaf) for name, leaf in leaves.items()}


def not_finite(array: np.ndarray) -> int:
    """How many of an array's numbers are NaN or infinite."""
    if array.dtype.itemsize == 2:
        array = array.astype(np.float32)  # numpy itself does not know bfloat16
    if array.dtype.kind != 'f' or not array.size:
        return 0
    if np.isfinite(array.min()) and np.isfinite(array.max()):  # four times as fast as counting
        return 0
    return array.size - int(np.isfinite(array).sum())


def flatten(tree: Mapping) -> dict[str, object]:
    """Nested dicts as `{'blocks/norm1/scale': leaf}`."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def nest(flat: Mapping[str, object]) -> dict:
    """The inverse of `flatten`."""
    tree: dict = {}
    for name, leaf in flat.items():
        *parents, last = name.split('/')
        functools.reduce(lambda node, part: node.setdefault(part, {}), parents, tree)[last] = leaf
    return tree


# Applying a table

COLUMNS = 16  # of four bytes: a line of a cache


@dataclasses.dataclass(frozen=True)
class Link:
    """A leaf of ours and the arrays of the file that it comes from."""

    rule: Rule
    path: str
    shape: tuple[int, ...]  # ours
    keys: tuple[tuple[str, ...], ...]  # for each layer (one if there is no layer axis), each part
    index: int | None  # of the leading axis in the file, where the count is in the path alone
    sizes: Mapping[str, int]  # of axes that a pattern alone does not tell
    first: int = 0  # of its layers, the number of the first: where a leaf is one of several

    @property
    def layered(self) -> bool:
        return '{i}' in self.rule.name and '{i}' not in self.rule.path

    def ours(self, fetch: Callable[[str], np.ndarray]) -> np.ndarray:
        """The leaf, from the file's arrays by name; memory of its own."""
        out = None
        for i, names in enumerate(self.keys):
            layer = self._layer(names, fetch)
            if out is None:
                out = _aligned(self.shape, layer.dtype)
            # a copy also where none is needed: a view would keep the file mapped, and show what is
            # written into it later
            _fill(out[i, ...] if self.layered else out, layer)
        return out

    def _layer(self, names: tuple[str, ...], fetch: Callable[[str], np.ndarray]) -> np.ndarray:
        arrays = [fetch(name) for name in names]
        whole = arrays if self.rule.parts else arrays[0]
        if self.index is not None:
            whole = whole[self.index]
        return _rearrange(whole, self.rule.pattern, self.sizes)

    def theirs(self, leaf: np.ndarray) -> Iterable[tuple[str, np.ndarray]]:
        """The file's arrays (name, array) of a leaf; views of it where possible."""
        left, right = self.rule.pattern.split(' -> ')
        sizes = {'part': len(self.rule.parts), **self.sizes}
        for layer, names in zip(leaf if self.layered else [leaf], self.keys):
            whole = _rearrange(layer, f'{right} -> {left}', sizes)
            for array, name in zip(whole if self.rule.parts else [whole], names):
                yield name, array

    def form(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """The file's names and the shape that each must have (without the axis of `index`)."""
        nothing = np.broadcast_to(np.float32(0), self.shape)
        return sum(self.keys, ()), next(iter(self.theirs(nothing)))[1].shape


def contiguous(array: np.ndarray) -> np.ndarray:
    """An array with its numbers in order: itself, or a copy."""
    if array.flags.c_contiguous:
        return array
    out = np.empty(array.shape, array.dtype)
    _fill(out, array)
    return out


def _fill(out: np.ndarray, array: np.ndarray) -> None:
    """`out[...] = array`; of a transposed matrix a few columns at a time, which a cache holds: 7
    times as fast as numpy, which walks along one of the two and jumps in the other."""
    if array.ndim == 2 and array.flags.f_contiguous:
        for i in range(0, array.shape[1], COLUMNS):
            out[:, i : i + COLUMNS] = array[:, i : i + COLUMNS]
    else:
        out[...] = array


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory at an address that XLA takes over on a CPU; numpy's own it would copy."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _rearrange(array, pattern: str, sizes: Mapping[str, int]) -> np.ndarray:
    words = re.findall(r'\w+', pattern)
    return einops.rearrange(array, pattern, **{k: n for k, n in sizes.items() if k in words})


def bind(rules: tuple[Rule, ...], abstract: Mapping, sizes: Mapping[str, int] = {}) -> list[Link]:  # noqa: B006
    """The rows that a net uses, a link for each of its leaves, in the table's order.

    Args:
      abstract: nested dict of anything with a shape, as `Net.abstract`.
      sizes: of axes that a pattern alone does not tell, such as the patch's.

    Raises:
      ConvertError: a leaf has no row: this kind of file cannot hold the net.
    """
    leaves = flatten(abstract)
    links = []
    for rule in rules:
        if rule.path is None:
            continue
        pattern = re.compile(re.escape(rule.path).replace(r'\{i\}', r'(\d+)'))
        matches = [(m, p) for p in leaves if (m := pattern.fullmatch(p))]
        for match, path in sorted(matches, key=lambda pair: [int(g) for g in pair[0].groups()]):
            shape = tuple(leaves.pop(path).shape)
            counted = '{i}' in rule.path
            if '{i}' not in rule.name:
                layers = [rule.name]
            elif counted:
                layers = [rule.name.replace('{i}', match[1])]
            else:
                layers = [rule.name.replace('{i}', str(i)) for i in range(shape[0])]
            keys = tuple(
                tuple(name.replace('{part}', part) for part in rule.parts or ('',))
                for name in layers
            )
            index = int(match[1]) if counted and '{i}' not in rule.name else None
            first = int(match[1]) if counted and '{i}' in rule.name else 0
            links.append(Link(rule, path, shape, keys, index, sizes, first))
    if leaves:
        raise ConvertError(f'{next(iter(leaves))} has no place in this kind of file')
    return links


def expected(links: list[Link]) -> dict[str, tuple[int, ...]]:
    """The shape of every array that the file must have, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for link in links:
        names, shape = link.form()
        if link.index is not None:  # one array holds the leaves of all links of the rule
            shape = (sum(other.rule is link.rule for other in links), *shape)
        shapes |= dict.fromkeys(names, shape)
    return shapes


def to_file(
    links: list[Link], tree: Mapping, dtype: Any = np.float32
) -> Iterator[tuple[str, np.ndarray]]:
    """The file's arrays (name, array) of a net; a leaf is read when its turn comes. dtype: of all
    of them, None: as each is."""
    leaves = flatten(tree)
    together: dict[str, list[np.ndarray]] = {}
    for link in links:
        for name, array in link.theirs(np.asarray(leaves[link.path], dtype)):
            if link.index is None:
                yield name, array
            else:
                together.setdefault(name, []).append(array)
    for name, arrays in together.items():
        yield name, np.stack(arrays)


def from_file(links: list[Link], arrays: Mapping[str, Leaf]) -> dict:
    """A net's nested dict of leaves that are read from the file's when needed."""

    def fetch(name: str) -> np.ndarray:
        return np.asarray(arrays[name])

    return nest(
        {
            link.path: Leaf(
                link.shape, arrays[link.keys[0][0]].dtype, functools.partial(link.ours, fetch)
            )
            for link in links
        }
    )


def file_order(links: list[Link]) -> list[str]:
    """The file's names as the original's modules register them: block by block."""
    rows: dict[str, tuple] = {}
    groups: dict[str, int] = {}
    for number, link in enumerate(links):
        group = groups.setdefault(link.rule.name.split('{i}')[0], number)
        for layer, names in enumerate(link.keys, start=link.first):
            for name in names:
                rows.setdefault(name, (group, layer, number))
    return sorted(rows, key=rows.__getitem__)


def dropped(rules: tuple[Rule, ...], names: Iterable[str]) -> dict[str, str]:
    """The names that the table knows and drops, and why."""
    rows = {rule.name: rule.why for rule in rules if rule.path is None}
    return {name: rows[name] for name in names if name in rows}


def compare(
    where: str,
    links: list[Link],
    rules: tuple[Rule, ...],
    shapes: Mapping[str, tuple[int, ...]],
    allow_missing: Iterable[str] = (),
) -> set[str]:
    """Compares a file's names and shapes with what a net needs.

    Args:
      where: file and part, for the message.
      allow_missing: names, or patterns like `norm.*`, that the file may lack.

    Returns:
      The names that are missing, all allowed.

    Raises:
      ConvertError: a name is missing or unknown, or a shape is wrong: one line, names the first.
    """
    allowed = tuple(allow_missing)
    needed = expected(links)
    known = dropped(rules, shapes)
    missing = [name for name in needed if name not in shapes]
    forgiven = {n for n in missing if any(fnmatch.fnmatchcase(n, pattern) for pattern in allowed)}
    wrong = [f'{name} is missing' for name in missing if name not in forgiven]
    wrong += [f'{n} is not known' for n in shapes if n not in needed and n not in known]
    wrong += [
        f'{name} has shape {list(shapes[name])}, must have {list(shape)}'
        for name, shape in needed.items()
        if name in shapes and tuple(shapes[name]) != shape
    ]
    if wrong:
        more = f' (and {len(wrong) - 1} more)' if len(wrong) > 1 else ''
        raise ConvertError(f'{where}: {wrong[0]}{more}')
    return forgiven
