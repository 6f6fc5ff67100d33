"""What serves a page of docs stays apart from what runs."""

import pathlib
import re

from jepa_jax import commands

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_nothing_but_the_table_of_commands_names_it():
    users = {
        path.relative_to(ROOT).as_posix()
        for folder in ('jepa_jax', 'tools', 'configs', 'examples', 'docs')
        for path in (ROOT / folder).rglob('*.py')
        if re.search(r'jepa_jax(\.| import )contrib', path.read_text())
        and path.parent.name != 'contrib'
    }
    assert users == {'jepa_jax/commands.py'}
    rows = [row.module for row in commands.COMMANDS.values() if 'contrib' in row.module]
    assert rows == ['jepa_jax.contrib.measure']
