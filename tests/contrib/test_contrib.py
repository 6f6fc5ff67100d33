"""What serves a page of docs stays apart from what runs."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_nothing_but_its_tool_and_tests_imports_it():
    files = [
        *ROOT.glob('jepa_jax/**/*.py'),
        *ROOT.glob('tools/*.py'),
        *ROOT.glob('configs/**/*.py'),
    ]
    users = {
        path.relative_to(ROOT).as_posix()
        for path in files
        if 'jepa_jax.contrib' in path.read_text() and path.parent.name != 'contrib'
    }
    assert users == {'tools/two_rooms.py'}
