"""The action-conditioned predictor: what the next frame's features will be, given the frames so
far and the action taken at each.

Frames are encoded one by one, so a frame has hw tokens and no tubelets. A token attends to its own
frame and to all frames before it, to none after it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from jepa_jax.models import tokens
from jepa_jax.models.attention import attend
from jepa_jax.models.layers import (
    Block,
    LayerNorm,
    Linear,
    block_sharding,
    joined,
    standardise,
)
from jepa_jax.models.rope import angles
from jepa_jax.models.vit import EPS
from jepa_jax.nets import fold, stack
from jepa_jax.sharding import VECTORS, Rules, batch_spec, gather

CONDITIONING = ('tokens', 'adaln')

# keys and values of past frames, each [L, B, P, A, C] for P past tokens
Past = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class ACPredictorConfig:
    """All that shapes an action-conditioned predictor. (reference: vjepa2 §7.1)"""

    encoder_width: int
    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_ratio: float = 4.0
    mlp: str = 'gelu'  # a key of layers.MLPS
    grid: tuple[int, int] = (16, 16)  # (h, w) tokens of a frame
    action_width: int = 7  # numbers in an action
    state_width: int = 7  # numbers in a state; 0: the model sees none
    extrinsics_width: int = 6  # numbers in a camera pose
    use_extrinsics: bool = False  # else their encoder has weights, as released, and no effect
    # how actions come in. tokens: an action, a state (and a camera pose) token before each frame's
    # patches, as released; adaln: shift, scale and gate of every block from action and state
    conditioning: str = 'tokens'
    action_scale: tuple[float, ...] = ()  # factors of the numbers of an action; (): 1
    state_scale: tuple[float, ...] = ()  # of a state
    residual: bool = False  # add the input frame to the output: predict the change
    rope: str = 'tiled'
    dtype: jnp.dtype = jnp.bfloat16  # of matmul inputs and of the residual stream
    remat: str = 'full'  # a key of nets.REMAT

    @property
    def tokens_per_frame(self) -> int:
        """Patches and, with conditioning 'tokens', the tokens before them."""
        before = 1 + bool(self.state_width) + self.use_extrinsics
        return self.grid[0] * self.grid[1] + before * (self.conditioning == 'tokens')


def attend_frames(q: jax.Array, k: jax.Array, v: jax.Array, frames: int) -> jax.Array:
    """Block-causal attention: queries of a frame see the keys of their own frame and all before.

    q [B, n, A, C] holds the last `frames` frames of k and v [B, P + n, A, C]. -> [B, n, A, C]

    One call a frame, on the keys that it may see: there is no mask, logits are held for one frame
    at a time, and the T (T - 1) / 2 pairs of frames that a mask would hide are not computed.
    On two CPU cores, 8 frames of 258 tokens, gradients included: 0.23 s against 0.51 s with a mask.
    """
    size, past = q.shape[1] // frames, k.shape[1] - q.shape[1]
    parts = []
    for frame in range(frames):
        start, stop = frame * size, (frame + 1) * size
        seen = past + stop
        parts.append(attend(q[:, start:stop], k[:, :seen], v[:, :seen]))
    return parts[0] if frames == 1 else jnp.concatenate(parts, axis=1)


class ACBlock(Block):
    """A transformer block over frames that can start from the keys and values of earlier ones."""

    def __init__(self, c: ACPredictorConfig, *, layer, rngs: nnx.Rngs):
        super().__init__(
            c.width, c.heads, c.mlp_ratio, c.mlp, EPS, dtype=c.dtype, layer=layer, rngs=rngs
        )
        if c.conditioning == 'adaln':  # starts at zero, as the identity
            self.modulation = Linear(
                c.width, 6 * c.width, dtype=c.dtype, rngs=rngs, shrink=float('inf')
            )

    def __call__(
        self,
        x: jax.Array,
        past: Past | None,
        rope,
        frames: int,
        condition: jax.Array | None,
        return_past: bool,
    ) -> tuple[jax.Array, Past | None]:
        """x [B, n, D] of `frames` frames; past: keys and values [B, P, A, C]; condition [B, T, D]
        for adaln. -> x, and with return_past keys and values of past and new tokens."""
        each = (None,) * 6
        if condition is not None:
            modulation = self.modulation(jax.nn.silu(condition))
            modulation = jnp.repeat(modulation, x.shape[1] // frames, axis=1)
            each = jnp.split(modulation.astype(x.dtype), 6, axis=-1)

        def change(x, shift, scale):
            return x if shift is None else x * (1 + scale) + shift

        def weigh(x, gate):
            return x if gate is None else x * gate

        q, k, v = self.attn.split(change(self.norm1(x), *each[:2]), rope)
        if past is not None:
            k, v = (jnp.concatenate(pair, axis=1) for pair in zip(past, (k, v)))
        mixed = joined(attend_frames(q, k, v, frames))
        mixed = self.attn.proj(mixed)
        x = x + weigh(mixed.astype(x.dtype), each[2])
        y = self.mlp(change(self.norm2(x), *each[3:5]))
        return x + weigh(y.astype(x.dtype), each[5]), (k, v) if return_past else None


def sharding(config: ACPredictorConfig) -> Rules:
    """Where the parameters of an ACPredictor lie."""
    modulation = ((r'blocks/modulation/kernel', jax.P(None, 'fsdp', None)),)
    return (
        *block_sharding(config.mlp),
        *(modulation if config.conditioning == 'adaln' else ()),
        (r'embed/kernel', jax.P('fsdp', None)),
        (r'proj/kernel', jax.P(None, 'fsdp')),
        (r'(action|state|extrinsics)_encoder/kernel', jax.P()),
        *VECTORS,
    )


class ACPredictor(nnx.Module):
    """Features of frames, actions and states -> features of the frames after them."""

    def __init__(self, config: ACPredictorConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        if c.conditioning not in CONDITIONING:
            raise ValueError(
                f"conditioning '{c.conditioning}': allowed are {', '.join(CONDITIONING)}"
            )
        if c.use_extrinsics and c.conditioning != 'tokens':
            raise ValueError("use_extrinsics needs conditioning 'tokens'")
        for name in ('action', 'state'):
            scale, width = getattr(c, f'{name}_scale'), getattr(c, f'{name}_width')
            if scale and len(scale) != width:
                raise ValueError(f'{name}_scale has {len(scale)} factors: {name}_width is {width}')
        self.embed = Linear(c.encoder_width, c.width, dtype=c.dtype, rngs=rngs)
        self.action_encoder = Linear(c.action_width, c.width, dtype=c.dtype, rngs=rngs)
        if c.state_width:
            self.state_encoder = Linear(c.state_width, c.width, dtype=c.dtype, rngs=rngs)
        if c.conditioning == 'tokens':
            self.extrinsics_encoder = Linear(c.extrinsics_width, c.width, dtype=c.dtype, rngs=rngs)
        self.blocks = stack(lambda r, layer: ACBlock(c, layer=layer, rngs=r), c.depth, rngs)
        self.norm = LayerNorm(c.width, eps=EPS, rngs=rngs)
        self.proj = Linear(c.width, c.encoder_width, dtype=c.dtype, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        actions: jax.Array,
        states: jax.Array | None = None,
        extrinsics: jax.Array | None = None,
        *,
        past: Past | None = None,
        return_past: bool = False,
    ) -> jax.Array | tuple[jax.Array, Past]:
        """x [B, T*h*w, D] features of T frames, actions [B, T, action_width] taken at them, states
        [B, T, state_width] (None if the width is 0), extrinsics [B, T, extrinsics_width] if used
        -> [B, T*h*w, D] float32, at each frame the prediction of the next.

        past: from an earlier call with return_past, for the frames before x; positions in time go
        on after them. As no frame sees a later one, this equals a call on all frames. return_past:
        also returns the keys and values of all frames so far.
        """
        c = self.config
        h, w = c.grid
        B, T = actions.shape[:2]
        assert x.shape[1] == T * h * w, (x.shape, actions.shape, c.grid)
        z = gather(self.embed)(x)
        z = jnp.reshape(z, (B, T, h * w, c.width), out_sharding=batch_spec(z))
        before = []
        for module, values, used, scale in (
            ('action_encoder', actions, True, c.action_scale),
            ('state_encoder', states, c.state_width > 0, c.state_scale),
            ('extrinsics_encoder', extrinsics, c.use_extrinsics, ()),
        ):
            assert (values is not None) == used, f'{module}: inputs given {values is not None}'
            if used:
                values = values * jnp.asarray(scale, values.dtype) if scale else values
                before.append(gather(getattr(self, module))(values))
        condition = None
        if c.conditioning == 'tokens':
            z = jnp.concatenate([*(token[:, :, None] for token in before), z], axis=2)
        else:
            condition = sum(before)
        size = z.shape[2]
        z = jnp.reshape(z.astype(c.dtype), (B, T * size, c.width), out_sharding=batch_spec(z))
        first = 0 if past is None else past[0].shape[2] // size
        rope = angles(self._positions(first, T), c.width // c.heads, c.rope)
        shared = rope, T, condition, return_past
        z, present = fold(self.blocks, z, *shared, beside=(past,), remat=c.remat)
        z = jnp.reshape(z, (B, T, size, c.width), out_sharding=batch_spec(z))
        z = self.norm(z[:, :, size - h * w :])
        z = gather(self.proj)(jnp.reshape(z, (B, T * h * w, c.width), out_sharding=batch_spec(z)))
        z = z.astype(jnp.float32)
        if c.residual:
            z = z + x.astype(jnp.float32)
        return (z, present) if return_past else z

    def _positions(self, first: int, T: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(t, y, x) of every token of T frames, each [N]. Conditioning tokens have a time and lie
        at y = x = 0, where rope leaves the channels of y and x as they are. (reference: vjepa2
        §7.2)"""
        c = self.config
        h, w = c.grid
        before = c.tokens_per_frame - h * w
        _, y, x = tokens.coordinates(jnp.arange(h * w), h, w)
        t = jnp.repeat(first + jnp.arange(T), before + h * w)
        y, x = (jnp.tile(jnp.pad(a, (before, 0)), T) for a in (y, x))
        return t, y, x


def encode_frames(
    encoder: Callable[..., jax.Array], params: dict, frames: jax.Array, tubelet: int
) -> jax.Array:
    """Standardised features of every frame alone, [B, T, h*w, D] float32.

    encoder: the ViT as a Net; frames [B, T, H, W, 3]. Each frame is repeated to fill a tubelet: in
    a clip, features of a frame would hold something of the frames after it. (reference: vjepa2
    §7.4, §8.3)
    """
    B, T = frames.shape[:2]
    spec = batch_spec(frames)
    alone = jnp.reshape(frames, (B * T, 1, *frames.shape[2:]), out_sharding=spec)
    x = encoder(params, jnp.repeat(alone, tubelet, axis=1))
    return standardise(jnp.reshape(x, (B, T, *x.shape[1:]), out_sharding=spec))
