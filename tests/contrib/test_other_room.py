"""Round the wall through the command: what is learned is kept, and rows are those asked for."""

import pytest

from jepa_jax.contrib import measure
from jepa_jax.errors import ConfigError

# as the command passes them, small
SETTINGS = dict(
    rows='learned', planner='cem', hold=10, samples=8, iterations=1, elites=2, std=1.0,
    min_std=0.1, episodes=2, seed=0, learn_seed=0, layouts=20, head_steps=2, steps=2, width=32,
    depth=1, keep=None, kick=0.5,
)  # fmt: skip


@pytest.mark.slow
def test_learned_once_and_kept(tmp_path, capsys):
    kept = tmp_path / 'rooms.npz'
    settings = SETTINGS | {'keep': str(kept)}
    measure.run('measure', **settings | {'rows': 'place,learned'})
    lines, written = capsys.readouterr().out.splitlines(), kept.stat().st_mtime_ns
    assert [line.split(',')[0] for line in lines[:2]] == ['distance', 'dynamics']
    names = [line.split(' | ')[0].strip('| ') for line in lines[4:]]
    assert names == ['the rules', 'learned predictor']
    assert all(' of 2 (' in line for line in lines[4:])
    measure.run('measure', **settings)  # learns nothing anew
    again = capsys.readouterr()
    assert kept.stat().st_mtime_ns == written
    before, after = (row.split(' | ')[:8] for row in (lines[-1], again.out.splitlines()[-1]))
    assert after == before
    with pytest.raises(ConfigError, match='was learned with .*"width": 32'):
        measure.run('measure', **settings | {'width': 48})


@pytest.mark.parametrize(
    'changed, words',
    [
        ({'rows': 'place, plaec'}, "--rows 'plaec': allowed are place, time, learned, untrained"),
        ({'hold': 7}, '--hold 7: must divide 90 and 200'),
        ({'episodes': 0}, '--episodes 0: must be at least 1'),
    ],
)
def test_bad_settings(changed, words):
    with pytest.raises(ConfigError, match=words):
        measure.run('measure', **SETTINGS | changed)
