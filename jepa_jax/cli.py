"""The command line of every entry point: flags in, exit status and one clear line out.

    def train(config: RunConfig, workdir: str, config_file: str) -> None: ...

    def main() -> int:
        return cli.run(train, doc=__doc__)

Nothing heavy is imported here, and an entry point should import what is heavy inside its function,
so that `--help` and mistyped flags answer at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import glob
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from jepa_jax import files
from jepa_jax.config import store
from jepa_jax.errors import (
    FAILED,
    OK,
    QUEUE_AGAIN,
    STOPPED,
    UNUSABLE,
    USAGE,
    ConfigError,
    Interrupted,
    Unusable,
    UsageError,
    nearest,
    printable,
)
from jepa_jax.lookup import import_file

# Shown by `--help`; the whole schema is jepa_jax/config/.
USEFUL = {
    'data.lists[0].path': 'list file, folder, manifest or prepared dataset to read',
    'data.lists[0].kind': 'what the path is: videos, synthetic, ...',
    'data.crop': 'pixels, square',
    'data.frames': 'frames a clip',
    'data.fps': 'frames a second to sample at',
    'data.workers': 'processes that decode; 0: threads of the main process',
    'encoder.size': 'tiny, vits, vitb, vitl, vith, vitg, ...',
    'optim.batch': 'clips a step, over all devices',
    'optim.accumulate': 'parts of a batch: same update, less memory; 0: chosen',
    'optim.steps': 'length of the run',
    'optim.lr': 'learning rate after the warm-up',
    'optim.momentum': "of the target's moving average",
    'mesh.fsdp': 'devices that share one copy of the parameters; 0: chosen',
    'checkpoints.every': 'steps between saves',
    'checkpoints.resume_from': 'run to resume from, with its optimizer',
    'checkpoints.init_from': 'run to take the weights of',
}
OVERRIDE = re.compile(r'--?(?:no)?config\.([^=]*)')
KINDS_OF_CONFIG = {
    'objective': 'a run (RunConfig)',
    'study': 'a study (StudyConfig)',
    'evaluation': 'an evaluation (EvalConfig)',
}
KINDS = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'text'}


class _Parser(argparse.ArgumentParser):
    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        # what is a value though it begins with a dash: lists of numbers, too
        self._negative_number_matcher = re.compile(r'-\.?\d[\d.,eE+-]*$')

    def error(self, message: str):
        raise UsageError(message)


def run(
    main: Callable[..., Any],
    *,
    doc: str,
    tables: Sequence[str] = ('objective',),
    options: Callable[[argparse.ArgumentParser], Any] | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Parses the command line, calls `main`, and returns the exit status.

    Args:
      main: called as main(config, workdir, config_file, **options), without tables as
        main(**options).
      doc: the entry point's docstring, shown by `--help`.
      tables: of what kind the config that `configs/*.py:get_config(arg)` returns may be: objective
        (a run), study, evaluation; empty: the command takes no config.
      options: adds flags of the entry point's own to the parser.
      argv: what follows the command's name (default: the process's own).

    Returns:
      0: success, also `--help`. 1: the run failed; an error meant for the user is one line on
      stderr, anything else is a fault of ours and shows its traceback. 2: command line or config
      file are at fault. 3: what came out should not be used. 75: interrupted, queue it again. 130:
      stopped by hand. `--debug` shows every traceback.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = '--debug' in argv
    parser = _parser(doc, tables, options)
    try:
        try:
            arguments = _parse(parser, tables, argv)
        except SystemExit as done:  # argparse after --help
            return int(done.code or 0)
        except (UsageError, ConfigError) as error:
            return _report(error, debug, USAGE)
        flags.FLAGS.mark_as_parsed()  # worker processes of grain read absl's flags
        main(**arguments)
        return OK
    except Unusable as error:
        return _report(error, debug, UNUSABLE)
    except Interrupted as stop:
        advice = 'start the same command again to resume'
        print(f'interrupted: {_line(stop)}; {advice}', file=sys.stderr)
        return QUEUE_AGAIN
    except KeyboardInterrupt:
        print('stopped by hand', file=sys.stderr)
        return STOPPED
    except Exception as error:
        return _report(error, debug or not _is_message(error), FAILED)


def _report(error: Exception, trace: bool, status: int) -> int:
    if trace:
        traceback.print_exception(error)
    print(f'error: {_line(error)}', file=sys.stderr)
    return status


def _is_message(error: Exception) -> bool:
    """Whether it speaks to the user: an OSError, a type of ours, a ValueError of our own code."""

    def ours(module: str | None) -> bool:
        return (module or '').split('.')[0] in (__package__, 'tools')

    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return (
        isinstance(error, OSError)
        or ours(type(error).__module__)
        or (isinstance(error, ValueError) and ours(frame.f_globals.get('__package__')))
    )


def _line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f'{error.filename}: ' if error.filename else ''
        return printable(f'{where}{error.strerror}')
    return printable(' '.join(str(error).split())) or type(error).__name__


def _parser(doc: str, tables: Sequence[str], options) -> argparse.ArgumentParser:
    spec = getattr(sys.modules['__main__'], '__spec__', None)  # set by `python -m`
    usage = '%(prog)s --config=FILE[:ARG,ARG] [--config.FIELD=VALUE ...] [--workdir=DIR] [...]'
    rows = (f'  --config.{name:24} {words}' for name, words in USEFUL.items())
    parser = _Parser(
        prog=f'python -m {spec.name}' if spec else Path(sys.argv[0]).name,
        usage=usage if tables else None,
        description=doc.strip(),
        epilog='\n'.join(('fields most often set:', *rows)) if 'objective' in tables else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if tables:
        parser.add_argument('--config', metavar='FILE[:ARG,ARG]', help='a file of configs/')
        parser.add_argument(
            '--workdir', metavar='DIR', help='folder of the run (default: runs/NAME of the config)'
        )
    if options:
        options(parser)
    parser.add_argument(
        '--limits', metavar='NAME=N,...', help=f'what a file may cost: {", ".join(files.LIMITS)}'
    )
    parser.add_argument('--debug', action='store_true', help='show the traceback of every error')
    return parser


def _parse(
    parser: argparse.ArgumentParser, tables: Sequence[str], argv: list[str]
) -> dict[str, Any]:
    known, rest = parser.parse_known_args(argv)
    arguments = vars(known)
    del arguments['debug']
    if limits := arguments.pop('limits'):
        files.set_limits(limits)
    if not tables:
        if rest:
            raise UsageError(_unknown(rest[0], parser))
        return arguments
    source = arguments.pop('config')
    if not source:
        raise UsageError(f'--config is missing: --config=FILE{_offer()}')
    first = next(i for i, a in enumerate(argv) if a == '--config' or a.startswith('--config='))
    if early := [a for a in argv[:first] if OVERRIDE.match(a)]:
        raise UsageError(f'{early[0]} stands before --config: put it behind what it changes')
    built = _override(load(source, tables), rest, parser)
    file = source.partition(':')[0]
    name = built.name or Path(file).stem
    arguments['workdir'] = arguments['workdir'] or os.path.join('runs', name)
    return {'config': built, 'config_file': os.path.abspath(file), **arguments}


def numbers(count: int) -> Callable[[str], tuple[float, ...]]:
    """The type of a flag that holds `count` finite numbers, `a,b`."""

    def parse(text: str) -> tuple[float, ...]:
        values = tuple(float(part) for part in text.strip('() ').split(','))
        if len(values) != count or not all(math.isfinite(value) for value in values):
            raise ValueError
        return values

    parse.__name__ = f'list of {count} numbers'  # argparse says `invalid ... value`
    return parse


def add_fields(parser: argparse.ArgumentParser, kind: type, but: Sequence[str] = ()) -> None:
    """A flag for every field of a dataclass: --no_NAME for what is true unless told otherwise."""
    for field in dataclasses.fields(kind):
        if field.name in but:
            continue
        if field.default is True:
            parser.add_argument(f'--no_{field.name}', dest=field.name, action='store_false')
        else:
            pair = isinstance(field.default, tuple)
            of = numbers(len(field.default)) if pair else type(field.default)
            parser.add_argument(f'--{field.name}', type=of, default=field.default)


def load(source: str, tables: Sequence[str] = ('objective',)) -> Any:
    """What `get_config(ARG)` of a config file returns; source: `FILE[:ARG]`.

    Raises:
      UsageError: no such file, a file that does not run, or one that returns something else.
    """
    path, _, arg = source.partition(':')
    if not os.path.isfile(path):
        raise UsageError(f'--config={source}: no file {path}{_offer(path)}')
    try:
        module = import_file(path, again=True)
        built = module.get_config(arg) if arg else module.get_config()
    except ConfigError as error:
        raise UsageError(f'--config={source}: {error}') from error
    except Exception as error:  # whatever a file of the user's may raise
        raise UsageError(f'{path}: {type(error).__name__}: {error}') from error
    if getattr(built, 'table', None) not in tables:
        raise UsageError(
            f'{path}: get_config returned {type(built).__name__}, must be a config of '
            f'{" or ".join(KINDS_OF_CONFIG[table] for table in tables)}'
        )
    store.adopt_old_names(built)
    return built


def _override(config: Any, argv: list[str], parser: argparse.ArgumentParser) -> Any:
    """The config with every `--config.FIELD=VALUE`, or `--config.FIELD VALUE`, applied."""
    kinds = {name: kind for name, kind, _ in store.fields(config)}
    argv = [_renamed(flag, kinds) for flag in argv]
    for flag in argv:
        match = OVERRIDE.match(flag)
        if not match and re.match(r'-[^\d.]', flag):  # a negative number is a value
            raise UsageError(_unknown(flag, parser))
        if match and match[1] not in kinds:
            raise UsageError(f'{flag}: no field {match[1]}{_near_field(match[1], kinds)}')
    values = flags.FlagValues()
    try:
        holder = config_flags.DEFINE_config_dataclass(
            'config', config, flag_values=values, sys_argv=['', *argv]
        )
        left = values(['', *argv])[1:]
    except flags.Error as error:
        raise UsageError(_flag_error(error, argv, kinds)) from error
    if left:
        raise UsageError(f"'{left[0]}' follows no flag")
    return holder.value


def _renamed(flag: str, kinds: dict[str, Any]) -> str:
    """A flag under the name that its field has today."""
    match = OVERRIDE.match(flag)
    if not match or match[1] in kinds:
        return flag
    name = store.renamed(match[1], kinds)
    return flag[: match.start(1)] + name + flag[match.end(1) :]


def _flag_error(error: Exception, argv: list[str], kinds: dict[str, Any]) -> str:
    match = re.match(r'flag --config\.([^=]+)=(.*?): ', str(error), flags=re.S)
    if not match:
        return str(error)
    kind = kinds[match[1]]
    return f'{match[1]} = {match[2]!r}: must be {KINDS.get(kind, kind)}'


def _near_field(name: str, names) -> str:
    """The field whose name is nearest, also if it lives in another part of the config."""
    last = name.rsplit('.', 1)[-1]
    same = [name for name in names if name.rsplit('.', 1)[-1] == last]
    return f'; did you mean {same[0]}?' if same else nearest(name, names)


def _unknown(argument: str, parser: argparse.ArgumentParser) -> str:
    flag = argument.split('=')[0]
    return f'unknown flag {flag}{nearest(flag, parser._option_string_actions)}'


def _offer(path: str = '') -> str:
    paths = sorted(glob.glob('configs/*.py'))
    near = nearest(path, paths) if path else ''
    return near or (f', such as {", ".join(paths)}' if paths else '')
