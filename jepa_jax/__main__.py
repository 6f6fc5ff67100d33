"""`python -m jepa_jax`: the commands that there are; see jepa_jax.commands."""

import sys

from jepa_jax import commands

if __name__ == '__main__':
    sys.exit(commands.main(program='python -m jepa_jax'))
