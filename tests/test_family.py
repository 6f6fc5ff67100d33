"""The study of the family: equal FLOPs, and its table of what was measured."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jepa_jax import family, recipes
from jepa_jax.config.family import FamilyConfig
from jepa_jax.errors import ConfigError
from jepa_jax.family import MEMBERS, member, members, step_flops
from jepa_jax.released_jepa import first_recipe


def test_members_cost_the_same():
    config = FamilyConfig(steps=200)
    runs = {name: member(config, name, 1) for name in MEMBERS}
    budget = 200 * step_flops('vjepa2')
    for name, run in runs.items():
        recipes.validate(run)
        assert run.optim.steps * step_flops(name) == pytest.approx(budget, rel=0.01), name
        assert run.seed == config.seed + 1
        encoder = run.encoder
        assert (encoder.width, encoder.depth, encoder.heads) == (96, 4, 4)
    assert runs['vjepa2'].optim.steps == 200
    methods = [runs[n].against_collapse.method for n in ('vjepa2', 'sigreg', 'vicreg', 'none')]
    assert methods == ['ema', 'sigreg', 'vicreg', 'none']


def test_vjepa1_is_set_as_its_recipe():
    """What docs/family.md lists as its own; clipping begins at the recipe's share of the run."""
    ours, theirs = member(FamilyConfig(), 'vjepa1', 0), first_recipe('vjepa1_vitl', '')
    for name in ('position', 'shorter', 'rescale'):
        assert getattr(ours.encoder, name) == getattr(theirs.encoder, name), name
    for name in ('mask_tokens', 'tokens_of'):
        assert getattr(ours.predictor, name) == getattr(theirs.predictor, name), name
    assert ours.optim.clip == theirs.optim.clip == 10
    share = [run.optim.clip_from / run.optim.steps for run in (ours, theirs)]
    assert share[0] == pytest.approx(share[1], abs=1 / ours.optim.steps)
    assert ours.optim.final_momentum == theirs.optim.final_momentum == 1


def test_flags_set_fields_of_the_study():
    """config_flags wants types, not their names."""
    assert all(isinstance(f.type, type) for f in dataclasses.fields(FamilyConfig))


def test_members_by_name():
    assert members(FamilyConfig(members='mae, vjepa2')) == ['mae', 'vjepa2']
    assert members(FamilyConfig()) == list(MEMBERS)
    with pytest.raises(ConfigError, match="members 'vjepa3'.*vjepa2"):
        members(FamilyConfig(members='vjepa3'))


def test_table_and_plot(tmp_path):
    config = FamilyConfig()
    right = np.arange(40) < 30
    one = {
        'correct': {'motion': [right.tolist()] * 2, 'digit': [(~right).tolist()]},
        'rank': 12.0, 'rank_of_clips': 3.0, 'clip_share': 0.5, 'verdict': 'healthy',
        'seconds': 9.0, 'steps': 20, 'flops': 1e9,
    }  # fmt: skip
    baselines = {name: {'motion': [[1, 0]], 'digit': [[0, 0]]} for name in ('untrained', 'pixels')}
    row = family.summary(config, 'mae', [one, {**one, 'rank': 14.0}])
    assert row['rank'] == 13 and row['verdicts'] == ['healthy', 'healthy']
    motion = row['probes']['motion']
    assert motion['mean'] == 0.75 and 0.5 < motion['low'] < 0.75 < motion['high'] < 0.95
    assert row['seeds'] == [{'motion': 0.75, 'digit': 0.25}] * 2
    rows = {'baselines': baselines, 'mae': row}
    lines = family.table(rows).splitlines()
    assert lines[2].startswith('| MAE (frames) | 0.750 (')
    assert '); 0.750 0.750 |' in lines[2] and ' | healthy | 20 | 9 |' in lines[2]
    alone = family.table({'baselines': baselines, 'mae': family.summary(config, 'mae', [one])})
    assert ';' not in alone
    assert lines[3].startswith('| untrained | 0.500 | 0.000 |')
    family.plot(rows, tmp_path / 'family.png')
    assert (tmp_path / 'family.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.slow
def test_a_study_again_and_its_energies(runs):
    """Two members, a few steps each; started again nothing is trained or judged twice; then what
    they know apart."""
    workdir = runs.workdir()
    root = pathlib.Path(family.__file__).parent.parent

    def run(module, *arguments):
        done = subprocess.run(
            [sys.executable, '-m', module, *arguments], cwd=root, env=runs.environment,
            capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    start = 'jepa_jax.train', '--config=configs/family_tiny.py:smoke', f'--workdir={workdir}'
    said = run(*start, '--config.members=vjepa2,mae')
    assert '| MAE (frames) |' in said and '| untrained |' in said
    kept = [
        p for p in workdir.rglob('*') if p.suffix in ('.json', '.jsonl') and p.parent != workdir
    ]
    kept = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in [*kept, workdir / 'baselines.json']}
    assert len([p for p in kept if p.name == family.LAST]) == 2
    rows = json.loads((workdir / 'report.json').read_text())
    again = run(*start, '--config.members=vjepa2,mae')
    assert again.count('is finished: ') == 2 and 'probes: ' not in again
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in kept} == kept
    assert json.loads((workdir / 'report.json').read_text()) == rows

    out = workdir / 'energy'
    members = (str(workdir / f'seed0/{name}') for name in ('vjepa2', 'mae'))
    few = '--clips=4', '--kind=synthetic_few', f'--out={out}'
    said = run('tools.energy', *members, *few)
    assert 'vjepa2, predictive: own ' in said and 'mae, generative: own ' in said
    energies = json.loads((out / 'energy.json').read_text())
    assert {name: list(one) for name, one in energies.items()} == {
        'vjepa2': ['predictive', 'joint'], 'mae': ['generative', 'joint'],
    }  # fmt: skip
    assert all(one['other'] > 0 for each in energies.values() for one in each.values())
    assert (out / 'energy.png').read_bytes().startswith(b'\x89PNG')
