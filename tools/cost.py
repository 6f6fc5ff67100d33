"""Estimates the accelerator memory of a training step, by counting; nothing is compiled.

    python -m tools.estimate_memory --config=configs/vits.py --config.data.lists[0].path=clips.txt

The state is exact. Activations are counted for attention that never stores its scores, and as many
tokens as masks and rollouts can ask for. With full recomputation libtpu planned 17 to 26 % less for
ViT-g and ViT-L at 256 pixels, and 9 % more for ViT-g at 384 pixels and 64 frames (docs/scale.md);
for a small step XLA for the CPU took 8 % less, with `mesh.remat=dots` 22 % less; for a small one
of a robot 8 % less to 20 % more, and with `dots` 25 to 36 % less. Fragmentation comes on top: an
estimate, no measurement.
"""

import sys

from jepa_jax import cli
from jepa_jax.config import MaskedVideoConfig
from jepa_jax.recipes import validate


def report(config: MaskedVideoConfig, workdir: str, devices: int) -> None:
    """Prints the estimate; nothing is written."""
    del workdir
    validate(config)
    from jepa_jax.memory import estimate

    clips = config.optim.batch // (devices * config.optim.accumulate)
    print(f'{config.name}: {clips} clips at a time on each of {devices} devices; GiB, estimated')
    for use, size in estimate(config, devices).items():
        print(f'{size:8.2f}  {use}')


def main() -> int:
    return cli.run(
        report,
        doc=__doc__,
        options=lambda p: p.add_argument(
            '--devices', type=int, default=1, metavar='N', help='devices of the run (default: 1)'
        ),
    )


if __name__ == '__main__':
    sys.exit(main())
