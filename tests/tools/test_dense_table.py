"""The table of two runs: what comes from their reports, and what from evaluations."""

import json

import pytest

from jepa_jax import evaluate
from jepa_jax.errors import ConfigError
from tools import dense_table


def figure(value: float) -> dict:
    return {'value': value, 'low': value - 0.1, 'high': value + 0.1, 'n': 8}


def test_each_figure_is_where_it_belongs(tmp_path, monkeypatch, capsys):
    models = [str(tmp_path / name) for name in ('old', 'new')]
    asked = []

    def evaluated(config, workdir, config_file, names, encoder, watch):
        asked.append((config.evaluation, encoder))
        assert names == models
        figures, paired = dense_table.FIGURES[config.evaluation]
        results, baselines = {}, {}
        for m, model in enumerate(models):
            for k, (name, suffix) in enumerate(figures.items()):
                results[f'{model}: {name}'] = figure(0.5 + m / 10 + k / 100)
                baselines[f'{model}: random{suffix}'] = figure(0.3 + m / 10)
                baselines[f'{model}: pixels{suffix}'] = figure(0.2)
        results[f'{models[1]} over {models[0]}: {paired}'] = figure(0.1)
        path = tmp_path / 'out' / config.evaluation / 'report.json'
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({'results': results, 'baselines': baselines}))

    monkeypatch.setattr(evaluate, 'evaluate', evaluated)
    drawn = []
    monkeypatch.setattr(dense_table, 'draw', lambda names, path: drawn.append(path))
    with pytest.raises(ConfigError, match='must be a finished run'):
        dense_table.make(models, str(tmp_path / 'out'), '')
    for m, model in enumerate(models):
        probe = {
            which: {'mean': value + m / 100, 'low': value - 0.1, 'high': value + 0.1}
            for which, value in (('target', 0.9), ('random', 0.4), ('pixels', 0.3))
        }
        (tmp_path / model).mkdir()
        report = {'probes': {'motion': probe, 'digit': probe}}
        (tmp_path / model / 'report.json').write_text(json.dumps(report))
    dense_table.make(models, str(tmp_path / 'out'), '')
    assert asked == [('segmentation', 'target'), ('propagation', 'target')]
    assert drawn == [tmp_path / 'out/features.png']
    lines = (tmp_path / 'out/table.md').read_text().splitlines()
    assert capsys.readouterr().out.splitlines() == lines
    header, rows = lines[0], {line.split(' | ')[0][2:]: line for line in lines[2:]}
    assert [cell.strip() for cell in header.strip('|').split('|')][1:] == [
        *models, *(f'{model}, untrained' for model in models),
        *(f'{model}, pixels' for model in models), 'gain',
    ]  # fmt: skip
    assert '| 0.520 [0.420, 0.620] | 0.620 [' in rows['propagation, F']
    assert '| 0.300 [0.200, 0.400] | 0.400 [' in rows['propagation, F']
    assert rows['segmentation, IoU of a picture, gain'].endswith('| 0.100 [0.000, 0.200] |')
    assert '| 0.900 [0.800, 1.000] | 0.910 [' in rows['motion']
