"""Where arrays live: the mesh, strict rules for parameters, and the gather before use.

Parameters are stored sharded over `fsdp` along the model's width and gathered layer by layer inside
the scanned block; the batch is sharded over both axes. On an explicit mesh the sharding is part of
an array's type, so moments and moving averages inherit it.
"""

import re

import jax
import numpy as np
from jax.experimental import mesh_utils

AXES = ('data', 'fsdp')
BATCH = jax.P(AXES)
MAX_FSDP = 128  # every width of the family divides by 128, and uneven shards are refused

# (pattern of a parameter's path within its net, where it lies), first match wins. The rules of a
# part are strict: every parameter must match, and every rule must be used.
Rules = tuple[tuple[str, jax.P], ...]
VECTORS: Rules = ((r'(.*/)?(bias|scale)', jax.P()),)  # small, and whole on every device


def path_name(path: tuple) -> str:
    """A key path of a pytree as `encoder/blocks/attn/qkv/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


def specs_for(rules: Rules, abstract):
    """Where each parameter of a net lies: a tree of specs like `abstract`.

    Raises:
      ValueError: a parameter that no rule matches, or a rule that matches none.
    """
    unused = dict.fromkeys(pattern for pattern, _ in rules)

    def spec(path: tuple, _) -> jax.P:
        name = path_name(path)
        for pattern, spec in rules:
            if re.fullmatch(pattern, name):
                unused.pop(pattern, None)
                return spec
        raise ValueError(f"parameter '{name}' matches no sharding rule of its part: add one")

    specs = jax.tree.map_with_path(spec, abstract)
    if unused:
        raise ValueError(f"sharding rule '{next(iter(unused))}' matches no parameter: remove it")
    return specs


def make_mesh(fsdp: int = 1, devices: list | None = None) -> jax.sharding.Mesh:
    """A mesh (data, fsdp) over all devices; `data` takes what `fsdp` leaves."""
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or fsdp > MAX_FSDP or len(devices) % fsdp:
        raise ValueError(
            f'mesh.fsdp = {fsdp}: must divide the {len(devices)} devices and be at most {MAX_FSDP}'
        )
    # 8 does not divide into whole sides of a slice 4x4x4, which jax.make_mesh would insist on
    grid = mesh_utils.create_device_mesh(
        (len(devices) // fsdp, fsdp), devices, allow_split_physical_axes=True
    )
    explicit = (jax.sharding.AxisType.Explicit,) * 2
    return jax.sharding.Mesh(grid, AXES, axis_types=explicit)


def place(tree, specs):
    """Arrays resharded as `specs` say; outside a mesh they are left alone."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.tree.map(jax.reshard, tree, specs)


def put_params(tree, specs, mesh: jax.sharding.Mesh):
    """Host arrays onto the mesh as `specs` say, each device its share, an array at a time."""

    def one(a, spec: jax.P) -> jax.Array:
        a = np.asarray(a)
        sharding = jax.NamedSharding(mesh, spec)
        return jax.make_array_from_callback(a.shape, sharding, lambda index: a[index])

    return jax.tree.map(one, tree, specs)


def platform() -> str:
    """What programs are traced for: 'cpu', 'gpu', 'tpu'. The mesh's devices decide, which need not
    be attached; without a mesh, those of this process."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return device.platform if device else jax.default_backend()


def reduce_late(tree):
    """Parameters whose gradients stay summed over fsdp alone until they leave `tree`: then one sum
    over `data` of each device's share, rather than one a layer and mask. Leaves not sharded over
    `fsdp` are left alone, and everything is outside a mesh."""

    def one(a):
        spec = jax.typeof(a).sharding.spec
        if 'fsdp' not in spec.partitions or 'data' in spec.reduced:
            return a
        return jax.reshard(a, jax.P(*spec.partitions, reduced={'data'}))

    return jax.tree.map(one, tree)


def gather(tree):
    """Un-shards every leaf over `fsdp`, by its own type; outside a mesh they are left alone.

    For activations that are sharded over both axes. Gradients are then summed in the leaf's own
    type and each device receives its share, a reduce-scatter: left to itself XLA sums whole
    gradients in the type of the products and slices them, which moves twice the bytes.
    """

    def drop(entry):
        if isinstance(entry, tuple):
            return tuple(axis for axis in entry if axis != 'fsdp') or None
        return None if entry == 'fsdp' else entry

    def one(a):
        spec = jax.typeof(a).sharding.spec
        if 'fsdp' not in spec.partitions:
            return a
        return jax.reshard(a, jax.P(*map(drop, spec.partitions), reduced=set(AXES)))

    return jax.tree.map(one, reduce_late(tree))


def batch_spec(like: jax.Array) -> jax.P | None:
    """The spec of an array whose first axis is sharded as that of `like`; None outside a mesh.

    For operations that leave an explicit mesh no way to tell where the batch went.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return None
    return jax.P(jax.typeof(like).sharding.spec[0])


def concrete(tree, mesh: jax.sharding.Mesh):
    """The result of jax.eval_shape under a mesh, with shardings on real devices, as restoring wants
    them."""

    def one(s):
        sharding = jax.NamedSharding(mesh, s.sharding.spec if s.sharding else jax.P())
        return jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding)

    return jax.tree.map(one, tree)


def put_batch(batch, mesh: jax.sharding.Mesh):
    """This process's rows of every array (numpy) -> global arrays with the batch over both axes."""
    sharding = jax.NamedSharding(mesh, BATCH)
    return jax.tree.map(
        lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)), batch
    )


def put_rows(rows, mesh: jax.sharding.Mesh):
    """Rows (numpy) that every process has whole -> global arrays with them over both axes; the
    first ones come again, so that the devices have as many each."""
    sharding = jax.NamedSharding(mesh, BATCH)

    def one(a: np.ndarray) -> jax.Array:
        count = -(-len(a) // mesh.size) * mesh.size
        of = lambda at: a[np.arange(count)[at[0]] % len(a)]  # noqa: E731
        return jax.make_array_from_callback((count, *a.shape[1:]), sharding, of)

    return jax.tree.map(one, rows)
