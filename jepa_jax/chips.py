"""Published peaks of accelerators, by the name that JAX has for a device."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one JAX device can do at best, as its maker states it."""

    flops: float  # dense bfloat16, FLOP/s
    memory: float = 0.0  # bytes; 0 where only `flops` is needed so far
    bandwidth: float = 0.0  # of that memory, bytes/s
    interconnect: float = 0.0  # all links of a chip in one direction together, bytes/s


# TPUs: the "system architecture" pages of cloud.google.com/tpu/docs (v4, v5e, v5p, v6e), read in
# 2026; an interconnect stated for both directions is halved. v5e's 16 GB and v6e's 32 GB are taken
# as decimal, the smaller reading. NVIDIA: data sheets, without sparsity.
CHIPS = {
    'TPU v4': Chip(275e12, 32 * 2**30, 1228e9, 300e9),
    'TPU v5 lite': Chip(197e12, 16e9, 800e9, 200e9),  # v5e
    'TPU v5': Chip(459e12, 95 * 2**30, 2765e9, 600e9),  # v5p
    'TPU v6 lite': Chip(918e12, 32e9, 1600e9, 400e9),  # v6e
    'NVIDIA A100-SXM4-40GB': Chip(312e12),
    'NVIDIA A100-SXM4-80GB': Chip(312e12),
    'NVIDIA A100 80GB PCIe': Chip(312e12),
    'NVIDIA H100 PCIe': Chip(756e12),
    'NVIDIA H100 80GB HBM3': Chip(989e12),
    'NVIDIA H200': Chip(989e12),
    'NVIDIA L4': Chip(121e12),
    'NVIDIA L40S': Chip(362e12),
}

# short names -> JAX's
TPUS = {'v4': 'TPU v4', 'v5e': 'TPU v5 lite', 'v5p': 'TPU v5', 'v6e': 'TPU v6 lite'}
SIDES = {'v4': 3, 'v5e': 2, 'v5p': 3, 'v6e': 2}  # dimensions of a slice of TPUs
GPUS = {
    'a100': 'NVIDIA A100-SXM4-80GB', 'h100': 'NVIDIA H100 80GB HBM3', 'h200': 'NVIDIA H200',
}  # fmt: skip


def peak_flops(kind: str, dtype: str) -> float | None:
    """FLOP/s of a device of that kind for products of `dtype`; None where no figure is known."""
    chip = CHIPS.get(kind)
    return chip.flops if chip and dtype == 'bfloat16' else None
