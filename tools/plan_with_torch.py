"""The action-conditioned predictor and the cross-entropy method in plain PyTorch, for the bench.

Written as one would without thinking of speed beyond the usual: fused attention, no gradients,
tables of the positions computed once, no mask where all may be seen; every step of a rollout runs
all frames so far, as the original does. Layers have the names of the released files. (reference:
vjepa2 §7.1, §7.2, §8.2)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from torch import nn

from . import torch_nets
from .torch_nets import EPS, Block, Tables, fill, tables


def positions(head: int, side: int, frames: int) -> Tables:
    """Of frames of an action, a state and side^2 patches each; [frames * (2 + side^2), head]."""
    cells = torch.arange(side * side)
    y, x = (F.pad(a, (2, 0)) for a in (cells // side, cells % side))
    t = torch.arange(frames).repeat_interleave(2 + side * side)
    return tables(head, (t, y.repeat(frames), x.repeat(frames)))


class Predictor(nn.Module):
    """frames [S, T, N, D], actions and states [S, T, 7] -> the frame after the last, [S, N, D]."""

    def __init__(self, b):
        super().__init__()
        self.side, self.horizon = b.side, b.horizon
        self.predictor_embed = nn.Linear(b.encoder_width, b.width)
        self.action_encoder = nn.Linear(7, b.width)
        self.state_encoder = nn.Linear(7, b.width)
        self.extrinsics_encoder = nn.Linear(6, b.width)  # in the files; has no part in the result
        self.predictor_blocks = nn.ModuleList(Block(b.width, b.heads) for _ in range(b.depth))
        self.predictor_norm = nn.LayerNorm(b.width, EPS)
        self.predictor_proj = nn.Linear(b.width, b.encoder_width)
        size = b.side**2 + 2
        self.tables = [positions(b.width // b.heads, b.side, t + 1) for t in range(b.horizon)]
        frame = torch.arange(b.horizon * size) // size
        self.mask = frame[:, None] >= frame

    def forward(self, frames, actions, states):
        T = frames.shape[1]
        a, s = self.action_encoder(actions), self.state_encoder(states)
        x = torch.cat([a[:, :, None], s[:, :, None], self.predictor_embed(frames)], 2).flatten(1, 2)
        n = x.shape[1]
        mask = self.mask[:n, :n] if T > 1 else None
        for block in self.predictor_blocks:
            x = block(x, self.tables[T - 1], mask)
        x = self.predictor_proj(self.predictor_norm(x[:, -(self.side**2) :]))
        return F.layer_norm(x, x.shape[-1:])


def advance(pose: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """Poses [S, 7] after actions [S, 7]."""
    p, a = pose.float().cpu().numpy(), action.float().cpu().numpy()
    turned = Rotation.from_euler('xyz', a[:, 3:6]) * Rotation.from_euler('xyz', p[:, 3:6])
    closed = np.clip(p[:, 6:] + a[:, 6:], 0, 1)
    new = np.concatenate([p[:, :3] + a[:, :3], turned.as_euler('xyz'), closed], 1)
    return torch.from_numpy(new.astype(np.float32)).to(pose)


def plain(
    b,
    weights: dict[str, np.ndarray],
    inputs: dict[str, np.ndarray],
    at_once: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Callable[[], dict[str, torch.Tensor]]:
    """A function that plans -> actions [H, 7], energies [J, S], elites [J, K].

    The predictor computes in `dtype`; what is drawn, energies and statistics are float32.
    """
    predictor = fill(Predictor(b), weights).eval().to(device, dtype)
    predictor.tables = [tuple(t.to(device, dtype) for t in pair) for pair in predictor.tables]
    predictor.mask = predictor.mask.to(device)
    frame, goal, state, noise = (torch.from_numpy(inputs[k]).to(device) for k in inputs)
    frame, state = frame.to(dtype), state.to(dtype)
    bounds = torch.tensor([b.max_step] * 3 + [0.75], device=device)

    def rollout(actions: torch.Tensor) -> torch.Tensor:
        """actions [S, H, 7] -> energies [S]."""
        S = len(actions)
        frames, states = frame.expand(S, 1, -1, -1), state.expand(S, 1, -1)
        for h in range(b.horizon):
            new = predictor(frames, actions[:, : h + 1].to(dtype), states)
            if h + 1 < b.horizon:
                frames = torch.cat([frames, new[:, None]], 1)
                states = torch.cat([states, advance(states[:, -1], actions[:, h])[:, None]], 1)
        return (new.float() - goal).abs().mean((1, 2))

    def run():
        mean = torch.zeros(b.horizon, 4, device=device)
        std = torch.tensor([b.max_step] * 3 + [1.0], device=device)
        std = std.expand(b.horizon, 4)
        all_energies, all_elites = [], []
        with torch.inference_mode():
            for drawn in noise:
                planned = drawn.transpose(0, 1) * std + mean
                planned = torch.clamp(planned, -bounds, bounds)
                actions = F.pad(planned[..., :3], (0, 4))
                actions[..., 6] = planned[..., 3]
                parts = actions.split(at_once or len(actions))
                energies = torch.cat([rollout(part) for part in parts])
                elites = energies.topk(b.elites, largest=False).indices
                best = planned[elites]
                mean = best.mean(0) * 0.85 + mean * 0.15
                std = best.std(0) * 0.85 + std * 0.15
                all_energies.append(energies)
                all_elites.append(elites)
        plan = torch.zeros(b.horizon, 7, device=device)
        plan[:, :3] = mean[:, :3]
        plan[:, 6] = torch.where(mean[:, 3].abs() < 0.25, 0.0, mean[:, 3])
        energies, elites = torch.stack(all_energies), torch.stack(all_elites)
        return {'actions': plan, 'energies': energies, 'elites': elites}

    return run


def original(
    checkout: str, b, weights: dict[str, np.ndarray], inputs: dict[str, np.ndarray]
) -> Callable[[], dict[str, torch.Tensor]]:
    """The same with the original's predictor, world model and planner (facebookresearch/vjepa2)."""
    torch_nets.original(checkout)
    from notebooks.utils import mpc_utils
    from notebooks.utils.world_model_wrapper import WorldModel
    from src.models.ac_predictor import vit_ac_predictor

    predictor = vit_ac_predictor(
        img_size=(16 * b.side, 16 * b.side), num_frames=2 * b.horizon, embed_dim=b.encoder_width,
        predictor_embed_dim=b.width, depth=b.depth, num_heads=b.heads,
    )  # fmt: skip
    frame, goal, state, noise = (torch.from_numpy(inputs[k]) for k in inputs)
    mpc = {
        'rollout': b.horizon, 'samples': b.samples, 'topk': b.elites, 'cem_steps': b.iterations,
        'momentum_mean': 0.15, 'momentum_std': 0.15, 'maxnorm': b.max_step,
    }  # fmt: skip
    model = WorldModel(None, fill(predictor, weights).eval(), b.side**2, None, mpc, device='cpu')
    draws = iter(())
    energies: list[torch.Tensor] = []
    l1 = mpc_utils.l1

    def objective(a, b):
        energies.append(l1(a, b))
        return energies[-1]

    def randn(*shape, **_):  # what its planner draws from
        drawn = next(draws)
        assert drawn.shape == shape, (drawn.shape, shape)
        return drawn

    def run():
        nonlocal draws
        draws = itertools.chain.from_iterable(noise)
        energies.clear()
        real, torch.randn = torch.randn, randn
        mpc['objective'] = objective
        try:
            with torch.inference_mode():
                plan = model.infer_next_action(*(a[None, None] for a in (frame, state, goal)))
        finally:
            torch.randn = real
        result = torch.stack(energies)
        elites = result.topk(b.elites, largest=False).indices
        return {'actions': plan, 'energies': result, 'elites': elites}

    return run
