"""Where arrays live: the mesh, one strict table of parameter specs, and the gather before use.

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

# path -> spec, first match wins; every parameter must match and every row must be used by some
# model of the package. Block parameters have a leading layer axis. Vectors are small and stay
# replicated.
PARAM_RULES = (
    (r'(.*/)?blocks/(attn/qkv|mlp/fc1)/kernel', jax.P(None, 'fsdp', None)),
    (r'(.*/)?blocks/(attn/proj|mlp/fc2)/kernel', jax.P(None, None, 'fsdp')),
    (r'(.*/)?blocks/mlp/fc3/kernel', jax.P(None, None, 'fsdp')),
    (r'(.*/)?blocks/modulation/kernel', jax.P(None, 'fsdp', None)),
    (r'(.*/)?patch_embed/kernel', jax.P(None, 'fsdp')),
    (r'(.*/)?predictor/embed/kernel', jax.P('fsdp', None)),
    (r'(.*/)?predictor/proj/kernel', jax.P(None, 'fsdp')),
    (r'(.*/)?(action|state|extrinsics)_encoder/kernel', jax.P()),
    # the probe's pooler and heads are small, and every device needs them whole
    (r'(.*/)?cross_attention_block/(xattn/(q|kv)|mlp/fc[12])/kernel', jax.P()),
    (r'(.*/)?heads/\w+/kernel', jax.P()),
    (r'(.*/)?query_tokens', jax.P()),
    (r'(.*/)?(bias|scale)', jax.P()),
    (r'(.*/)?mask_tokens/\d+', jax.P()),
)


def path_name(path: tuple) -> str:
    """A key path of a pytree as `encoder/blocks/attn/qkv/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


def spec_for(name: str) -> jax.P:
    """The spec of one parameter; ValueError if no rule matches."""
    for pattern, spec in PARAM_RULES:
        if re.fullmatch(pattern, name):
            return spec
    raise ValueError(f"parameter '{name}' matches no row of sharding.PARAM_RULES: add one")


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


def place(tree):
    """Parameters resharded as the rules say; outside a mesh they are left alone."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.tree.map_with_path(lambda p, a: jax.reshard(a, spec_for(path_name(p))), tree)


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
