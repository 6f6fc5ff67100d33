"""The family side by side: nine ways to learn from the main job's videos, each for the same FLOPs.

    python -m jepa_jax.train --config=configs/family_tiny.py --workdir=runs/family

Trains I-JEPA and MAE on frames, VideoMAE, V-JEPA 1, V-JEPA 2, V-JEPA 2.1, and V-JEPA 2 without its
moving average, with SIGReg, with VICReg and with nothing against collapse; probes all of them alike
and prints one table, with `report.json` and `family.png` in the workdir. Width, depth, learning
rate and videos are those of `tiny.py`, untuned for any member. Started again it goes on where it
was. Some of it: --config.members=vjepa2,none; three seeds: --config.seeds=3.

`family_tiny.py:smoke` is a few steps of each.
"""

from jepa_jax.config import parse_arg
from jepa_jax.config.family import FamilyConfig
from jepa_jax.recipes import STUDIES, Study

STUDIES['family'] = Study(
    config='jepa_jax.config.family:FamilyConfig',
    check='jepa_jax.family:check',
    stages='jepa_jax.family:stages',
    report='jepa_jax.family:report',
)


def get_config(arg: str = '') -> FamilyConfig:
    _, small = parse_arg(arg, 'pretrain')
    c = FamilyConfig(name='family')
    if small:
        c.name, c.steps, c.videos = 'family-smoke', 4, 'synthetic_few'
        c.probe.steps, c.probe.batch, c.probe.seeds, c.probe.bootstrap = 10, 32, 1, 100
    return c
