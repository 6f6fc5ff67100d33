"""The bench of probes: one command with all settings against as many commands with one each."""

import json
import types

import pytest

from tools import bench_probe


def rates_of(command: list[str]) -> list[str]:
    (flag,) = [word for word in command if word.startswith('--config.attentive.rates=')]
    return flag.partition('=')[2].split(',')


def test_commands_try_the_settings_of_the_one(monkeypatch):
    asked = []
    fake = types.SimpleNamespace(run=lambda command, **_: asked.append(command))
    monkeypatch.setattr(bench_probe, 'subprocess', fake)
    row = bench_probe._commands(4)
    every, *alone = map(rates_of, asked)
    assert len(every) == len(set(every)) == 4 and alone == [[rate] for rate in every]
    assert all('--config.attentive.decays=0.01' in command for command in asked)
    workdirs = {next(w for w in command if w.startswith('--workdir')) for command in asked}
    assert len(workdirs) == 5  # nothing is kept from one for another
    assert row['commands'] == 4 and 0 < row['one_command']


def test_figures(tmp_path, capsys):
    path = tmp_path / 'probe.json'
    bench_probe.bench(
        clips=60, width=64, classes=3, heads=2, tokens=2, steps=2, commands=0, json_file=str(path)
    )
    row = json.loads(path.read_text())
    readers = [row[name]['seconds'] for name in ('nearest', 'ridge', 'logistic')]
    assert row['linear_seconds'] == pytest.approx(sum(readers))
    assert row['heads']['steps'] == 2 and min(row['heads'].values()) > 0
    assert '2 heads of 2 steps as one program' in capsys.readouterr().out
