"""The suite for a GPU: its parts and their time, without one."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tools import gpu_suite

ROOT = pathlib.Path(__file__).resolve().parents[2]

# a part that reports a figure, then does as its name says
PART = """
import json, pathlib, sys, time
name, path = sys.argv[1:]
pathlib.Path(path).write_text(json.dumps({'figure': name}))
if name == 'fails':
    sys.exit('error: no such kernel')
if name == 'hangs':
    time.sleep(600)
"""


def command(name: str, path: pathlib.Path) -> list[str]:
    return [sys.executable, '-c', PART, name, str(path)]


@pytest.mark.slow
def test_a_part_that_fails_or_hangs_stops_no_other(tmp_path):
    out = tmp_path / 'gpu.json'
    parts = {'fails': 60.0, 'hangs': 1.0, 'works': 60.0}
    # the second has its own time and no more, as the third has its to come
    assert not gpu_suite.suite(out, parts, command, 61.0 + 60.0, tiny=True)
    result = json.loads(out.read_text())
    assert result['tiny'] and list(result['parts']) == list(parts)
    status = {name: row['status'] for name, row in result['parts'].items()}
    assert status == {'fails': 'failed', 'hangs': 'no time', 'works': 'ok'}
    assert result['parts']['fails']['error'] == 'error: no such kernel'
    for name, row in result['parts'].items():  # what was measured before is kept
        assert row['figures'] == {'figure': name}
    assert gpu_suite.suite(out, {'works': 60.0}, command, 60.0)


def test_the_script_keeps_to_the_folder_that_it_is_typed_in(tmp_path):
    (tmp_path / 'clone/tools/wheels').mkdir(parents=True)
    (tmp_path / 'clone/tools/wheels/old.whl').touch()
    (tmp_path / 'python').write_text('#!/bin/bash\necho "$@"\n')
    (tmp_path / 'python').chmod(0o755)
    script = shutil.copy(ROOT / 'tools/on_gpu.sh', tmp_path / 'clone/tools')

    def said(*flags: str) -> str:
        done = subprocess.run(
            ['bash', script, *flags], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, 'PYTHON': str(tmp_path / 'python')},
        )  # fmt: skip
        return done.stdout

    for flags in (['--out', 'a b.json'], ['--out=a b.json'], ['--out', f'{tmp_path}/a b.json']):
        assert said('--tiny', *flags).replace('=', ' ').endswith(f'--out {tmp_path}/a b.json\n')
    assert said('--wheels').startswith('-m pip download')
    assert not (tmp_path / 'clone/tools/wheels/old.whl').exists()


def test_what_is_late_is_not_started(tmp_path):
    out = tmp_path / 'gpu.json'
    assert not gpu_suite.suite(out, {'works': 60.0}, command, 0.0)
    row = json.loads(out.read_text())['parts']['works']
    assert row['status'] == 'no time' and 'figures' not in row


def test_parts_and_their_time(capsys):
    assert sum(gpu_suite.PARTS.values()) <= gpu_suite.SECONDS <= 540
    with pytest.raises(SystemExit) as stop:
        gpu_suite.main(['--parts', 'attention,nothing'])
    assert stop.value.code == 2 and 'nothing: allowed are machine' in capsys.readouterr().err


def test_wheels_that_are_needed(tmp_path):
    for name in ('numpy-1.0', 'numpy-999.0', 'no_such_package-1.0'):
        (tmp_path / f'{name}-py3-none-any.whl').touch()
    needed = [path.name.partition('-py3')[0] for path in gpu_suite.missing(tmp_path)]
    assert needed == ['no_such_package-1.0', 'numpy-999.0']


@pytest.mark.slow
@pytest.mark.ci
def test_every_part_on_a_cpu(tmp_path):
    """In 90 seconds on two free cores; machines differ by two and CI runs two processes, hence the
    bound."""
    out = tmp_path / 'gpu.json'
    done = subprocess.run(
        ['bash', str(ROOT / 'tools/on_gpu.sh'), '--tiny', '--out', str(out), '--seconds', '1500'],
        cwd=tmp_path, env=os.environ | {'PYTHON': sys.executable}, capture_output=True, text=True,
        timeout=1600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    parts = result['parts']
    assert parts.keys() == gpu_suite.PARTS.keys()
    took = {name: row['seconds'] for name, row in parts.items()}
    assert result['seconds'] < 300, took
    figures = {name: row['figures'] for name, row in parts.items()}
    assert figures['attention']['ViT-g, all tokens, bfloat16']['chosen']
    assert figures['step_vitg']['programs'][0]['mfu'] > 0
    assert figures['embed']['tiny']['transformers']['apart']['features'] < 1e-4
    assert figures['plan']['agreement']['torch']['apart']['others'] == 0  # of the elites
    assert 0 <= figures['run']['data_wait_share'] <= 1
