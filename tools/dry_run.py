"""What the step of a config takes on devices that need not be there: tools.cost by another name.

    python -m tools.dry_run --config=configs/NAME.py [--topology v5p:4x4x4] [--json FILE]

Options and exit status are those of `python -m tools.cost`, whose `--help` says what they mean.
"""

import sys

from jepa_jax import cli

from . import cost


def main() -> int:
    return cli.run(cost.run, doc=__doc__, options=cost._options)


if __name__ == '__main__':
    sys.exit(main())
