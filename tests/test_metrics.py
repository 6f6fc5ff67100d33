"""Rows on disk after kills and full disks, TensorBoard events, what the screen shows."""

import builtins
import errno
import io
import json
import logging
import math
import os
import struct
import sys

import numpy as np
import pytest

from jepa_jax import metrics, start
from jepa_jax.metrics import Metrics, read


def write(workdir, steps, start=0, total=100):
    with Metrics(workdir, start_step=start, total_steps=total, terminal=False) as writer:
        for step in steps:
            writer.write(step, {'loss': 1 / step, 'health/rank': step})


def rows(steps):
    return [{'step': s, 'loss': 1 / s, 'health/rank': float(s)} for s in steps]


def test_rows(tmp_path):
    write(tmp_path, [10, 20])
    lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows([10, 20]) == read(tmp_path)


def test_values_are_exact(tmp_path):
    values = np.random.default_rng(0).normal(size=50).astype(np.float32)
    with Metrics(tmp_path, start_step=0, total_steps=9, terminal=False) as writer:
        writer.write(1, {str(i): value for i, value in enumerate(values)})
    (row,) = read(tmp_path)
    assert [np.float32(row[str(i)]) for i in range(50)] == list(values)


def test_not_finite_is_text(tmp_path):
    values = {'a': math.nan, 'b': math.inf, 'c': -math.inf, 'd': np.float32('nan')}
    with Metrics(tmp_path, start_step=0, total_steps=9, terminal=False) as writer:
        writer.write(1, values)

    def refuse(name):
        raise AssertionError(f'{name} is not JSON')

    line = json.loads((tmp_path / 'metrics.jsonl').read_text(), parse_constant=refuse)
    assert line == {'step': 1, 'a': 'nan', 'b': 'inf', 'c': '-inf', 'd': 'nan'}
    (row,) = read(tmp_path)
    assert math.isnan(row['a']) and (row['b'], row['c']) == (math.inf, -math.inf)


def test_steps_increase(tmp_path):
    with Metrics(tmp_path, start_step=5, total_steps=9, terminal=False) as writer:
        for step in (5, 4):
            with pytest.raises(ValueError, match=f'row of step {step} after step 5'):
                writer.write(step, {})
        writer.write(6, {})


def test_cut_back(tmp_path):
    write(tmp_path, [10, 20, 30])
    whole = (tmp_path / 'metrics.jsonl').read_bytes()
    write(tmp_path, [30], start=20)
    assert (tmp_path / 'metrics.jsonl').read_bytes() == whole
    write(tmp_path, [], start=0)
    assert read(tmp_path) == []


@pytest.mark.parametrize('cut', [1, 5, 30])
def test_torn_last_line(tmp_path, cut):
    write(tmp_path, [10, 20])
    path = tmp_path / 'metrics.jsonl'
    os.truncate(path, path.stat().st_size - cut)
    assert read(tmp_path) == rows([10])
    write(tmp_path, [20, 30], start=10)
    assert read(tmp_path) == rows([10, 20, 30])


def test_torn_last_line_of_a_step_that_is_kept(tmp_path):
    write(tmp_path, [10, 20])
    path = tmp_path / 'metrics.jsonl'
    os.truncate(path, path.stat().st_size - 1)
    write(tmp_path, [30], start=20)
    assert read(tmp_path) == rows([10, 30])


def test_damaged_line_in_the_middle(tmp_path, caplog):
    write(tmp_path, [10, 20, 30])
    path = tmp_path / 'metrics.jsonl'
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'\0\xff\n' + lines[2])
    with pytest.raises(ValueError, match='metrics.jsonl, line 2'):
        read(tmp_path)
    write(tmp_path, [40], start=30)
    assert '1 damaged lines removed' in caplog.text
    assert read(tmp_path) == rows([10, 30, 40])


class FullDisk:
    """A file that takes so many bytes more, then none until there is space."""

    def __init__(self, file, space):
        self.file, self.space = file, space

    def write(self, content):
        if not self.space:
            raise OSError(errno.ENOSPC, 'No space left on device')
        taken = self.file.write(content[: self.space])
        self.space -= taken
        return taken

    def close(self):
        self.file.close()


def test_full_disk_loses_nothing(tmp_path, caplog):
    with Metrics(tmp_path, start_step=0, total_steps=100, terminal=False) as writer:
        disk = writer._file = FullDisk(writer._file, 70)
        for step in (10, 20, 30, 40):
            if step == 40:
                disk.space = 10**6
            writer.write(step, {'loss': 1 / step, 'health/rank': step})
    assert read(tmp_path) == rows([10, 20, 30, 40])
    assert caplog.text.count('No space left') == 1


def test_full_disk_at_the_end_is_told(tmp_path, caplog):
    with Metrics(tmp_path, start_step=0, total_steps=100, terminal=False) as writer:
        writer._file = FullDisk(writer._file, 5)
        writer.write(10, {'loss': 1})
    assert 'of metrics.jsonl are lost' in caplog.text


# The screen


class FullLog(io.StringIO):
    def write(self, _):
        raise OSError(errno.ENOSPC, 'No space left on device')


def test_a_log_on_a_full_disk_ends_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'stdout', FullLog())
    monkeypatch.setattr(sys, 'stderr', FullLog())
    with Metrics(tmp_path, start_step=0, total_steps=20, terminal=False) as writer:
        writer.write(10, {'loss': 0.1})
        writer.write(20, {'loss': 0.05})
    terminal = start._Terminal()
    terminal.handle(logging.LogRecord('jepa_jax', logging.ERROR, '', 0, 'not saved', (), None))
    assert read(tmp_path) == [{'step': 10, 'loss': 0.1}, {'step': 20, 'loss': 0.05}]


def test_lines_are_few(tmp_path, capsys):
    now = [0.0]
    with Metrics(
        tmp_path, start_step=0, total_steps=20_000, terminal=False, clock=lambda: now[0]
    ) as writer:
        for step in range(10, 20_001, 10):
            now[0] += 5.0
            writer.write(step, {'loss': 0.5, 'clips_per_s': 64.0})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'step 10/20,000  loss 0.5000  64.0 clips/s  2:46:35 left'
    assert lines[-1].startswith('step 20,000/20,000') and lines[-1].endswith('00:00 left')
    assert 160 < len(lines) < 220  # 2.8 hours, a line a minute and some at the beginning


def test_bar(tmp_path, capsys):
    with Metrics(tmp_path, start_step=40, total_steps=100, terminal=True) as writer:
        writer.write(100, {'loss': 0.25})
    shown = capsys.readouterr().out
    assert '40/100' in shown and '100/100' in shown and 'loss 0.2500' in shown


def test_compiling_is_said_and_no_part_of_the_time_left(tmp_path, capsys):
    """Steps of 20 s, of which two compile for 50 s more, and a look at health that does for 30."""
    now = [0.0]
    with Metrics(
        tmp_path, start_step=0, total_steps=10, terminal=False, clock=lambda: now[0]
    ) as writer:
        for step in range(1, 7):
            if compiles := step in (1, 3):
                writer.compiling()
            now[0] += 20.0 + 50.0 * compiles
            if compiles:
                writer.compiled(70.0)
            if step == 5:  # as a look at health does
                now[0] += 30.0
                writer.compiled(30.0, steps=0)
            row = {'clips_per_s': 4.0} | ({'compile_s': 70.0} if compiles else {})
            writer.write(step, {'loss': 0.5} | row)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ['step 0/10  compiling', 'step 1/10  loss 0.5000  all compiling so far']
    assert lines[2:4] == [
        'step 2/10  loss 0.5000  4.0 clips/s  02:40 left',
        'step 3/10  loss 0.5000  02:20 left',
    ]
    assert lines[-1] == 'step 6/10  loss 0.5000  4.0 clips/s  01:20 left'
    (tmp_path / 'bar').mkdir()
    with Metrics(tmp_path / 'bar', start_step=0, total_steps=10, terminal=True) as writer:
        writer.compiling()
    assert 'compiling' in capsys.readouterr().out


def test_other_processes_are_silent(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(metrics.jax, 'process_index', lambda: 1)
    write(tmp_path, [10])
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out


# TensorBoard


def events(folder):
    """Every event, read from the record format itself: length, its checksum, bytes, checksum."""
    pytest.importorskip('tensorboardX')
    from tensorboardX.proto.event_pb2 import Event

    result = []
    for path in sorted(folder.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from('<Q', content, at)
            result.append(Event.FromString(content[at + 12 : at + 12 + length]))
            at += length + 16
        assert at == len(content)
    return result


def test_events(tmp_path):
    write(tmp_path, [10, 20])
    write(tmp_path, [20], start=10)
    result = events(tmp_path / 'tensorboard')
    scalars = [(e.step, v.tag, v.simple_value) for e in result for v in e.summary.value]
    assert (20, 'health/rank', 20.0) in scalars and len(scalars) == 6
    assert scalars[0] == (10, 'loss', np.float32(0.1))
    assert [e.step for e in result if e.HasField('session_log')] == [1, 11]  # hides the first 20


def test_full_disk_ends_events_only(tmp_path, caplog):
    pytest.importorskip('tensorboardX')
    with Metrics(tmp_path, start_step=0, total_steps=100, terminal=False) as writer:

        def full(_):
            raise OSError(errno.ENOSPC, 'No space left on device')

        writer._sinks[0]._records.write = full
        for step in (10, 20):
            writer.write(step, {'loss': 1 / step, 'health/rank': step})
    assert caplog.text.count('no more TensorBoard events') == 1
    assert read(tmp_path) == rows([10, 20])


def test_without_tensorboard(tmp_path, monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith('tensorboardX'):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', absent)
    write(tmp_path, [10])
    assert read(tmp_path) == rows([10]) and not (tmp_path / 'tensorboard').exists()


def test_speed_is_a_mean_over_steps_of_different_shapes():
    worth = [metrics.Workload(flops, tokens, 4e12) for flops, tokens in ((1e12, 100), (3e12, 300))]
    result = metrics.speed(worth, seconds=2.0)
    assert result['tokens_per_s'] == 100  # 200 tokens a step
    assert result['mfu'] == 0.25  # 1e12 FLOP/s of 4e12
    assert 0.01 < result['memory_gib'] < 1000
    unknown = [metrics.Workload(1e12, 100, None)]
    assert 'mfu' not in metrics.speed(unknown, seconds=1.0)
