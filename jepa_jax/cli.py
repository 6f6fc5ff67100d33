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
import difflib
import glob
import importlib
import importlib.util
import inspect
import io
import logging
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jepa_jax import bucket, files
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
    allowed,
    nearest,
    printable,
    reader_left,
)
from jepa_jax.lookup import import_file, shipped
from jepa_jax.models import SIZE_ALIASES

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
# data.workers of a config that has it, where no flag says it: a launcher knows a process's cores
WORKERS = 'JEPA_JAX_WORKERS'
OVERRIDE = re.compile(r'--?(?:no)?config\.([^=]*)')
KINDS_OF_CONFIG = {
    'objective': 'a run (RunConfig)',
    'study': 'a study (StudyConfig)',
    'evaluation': 'an evaluation (EvalConfig)',
}
KINDS = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'text'}
BEST_KNOWN = ('tiny', 'vits', 'vitl', 'own', 'retrieval', 'ssv2')  # configs
# modules that come with an extra -> its name
EXTRAS = {
    'torch': 'torch',
    'safetensors': 'hf',
    'huggingface_hub': 'hf',
    'transformers': 'test',
    'mujoco': 'sim',
    'h5py': 'robot',
    'pyarrow': 'robot',
    'tensorboardX': 'tensorboard',
    'decord': 'bench',
    'psutil': 'bench',
    'libtpu': 'tpu',
}


class _Help(argparse.RawDescriptionHelpFormatter):
    """Says the default of every flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or '', action.default
        silent = default is None or default in ('', (), [], argparse.SUPPRESS)
        told = re.search(r'\)$|\(%\(default\)', text)  # in words of its own, where they say more
        if action.nargs == 0 or action.required or silent or told:
            return text
        return f'{text} (%(default)s)'.lstrip()


class _Parser(argparse.ArgumentParser):
    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        # what is a value though it begins with a dash: lists of numbers, too
        self._negative_number_matcher = re.compile(r'-\.?\d[\d.,eE+-]*$')
        self.register('type', int, whole)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            words = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(action, f"'{value}': {allowed(value, words)}")

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
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that is no text ends no command
        sys.stdout.reconfigure(errors='backslashreplace')
    try:
        try:
            arguments = _parse(parser, tables, argv)
        except SystemExit as done:  # argparse after --help
            return int(done.code or 0)
        except (UsageError, ConfigError) as error:
            return _report(error, debug, USAGE)
        from absl import flags

        leave_libtpu_alone()
        # of commands that set up no log of their own: warnings as they are, without WARNING:root:
        logging.basicConfig(format='%(message)s')
        flags.FLAGS.mark_as_parsed()  # worker processes of grain read absl's flags
        main(**arguments)
        sys.stdout.flush()
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
    except ModuleNotFoundError as error:
        if not (extra := EXTRAS.get((error.name or '').partition('.')[0])):
            return _report(error, True, FAILED)
        needs = f"needs {error.name}, which is not installed: pip install 'jepa_jax[{extra}]'"
        return _report(UsageError(needs), debug, FAILED)
    except BrokenPipeError as error:
        return FAILED if reader_left() else _report(error, debug, FAILED)
    except Exception as error:
        return _report(error, debug or not _is_message(error), FAILED)


def leave_libtpu_alone(devices: str = '/dev') -> None:
    """Keeps JAX from starting libtpu, which `cost --topology` needs, on a host that has no TPU: it
    would print lines about what the machine lacks. A JAX_PLATFORMS that is set stays."""
    patterns = ('accel*', 'vfio/[0-9]*', 'kfd')  # of TPUs, and of AMD's GPUs
    if any(glob.glob(f'{devices}/{pattern}') for pattern in patterns) or not _installed('libtpu'):
        return
    plugins = ('jax_cuda13_plugin', 'jax_cuda12_plugin')
    cuda = os.path.exists(f'{devices}/nvidiactl') and any(map(_installed, plugins))
    os.environ.setdefault('JAX_PLATFORMS', 'cuda,cpu' if cuda else 'cpu')


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


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
        # JAX's, of a JAX_PLATFORMS that is not here
        or (isinstance(error, RuntimeError) and str(error).startswith('Unable to initialize back'))
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
    long = spec and spec.name != f'{__package__}.__main__'
    usage = '%(prog)s --config=NAME[:ARG,ARG] [--config.FIELD=VALUE ...] [--workdir=DIR] [...]'
    rows = (f'  --config.{name:24} {words}' for name, words in USEFUL.items())
    parser = _Parser(
        prog=f'python -m {spec.name}' if long else Path(sys.argv[0]).name,
        usage=usage if tables else None,
        description=doc.strip(),
        epilog='\n'.join(('fields most often set:', *rows)) if 'objective' in tables else None,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    if tables:
        parser.add_argument(
            '--config', metavar='NAME[:ARG,ARG]', required=True,
            help="a file, or the name of one of configs/, such as "
            f'{", ".join(_known_best(tables))}',
        )  # fmt: skip
        parser.add_argument('--workdir', metavar='DIR', help='folder of the run (runs/NAME)')
    if options:
        options(parser)
    parser.add_argument(
        '--limits', metavar='NAME=N,...',
        help=f'what a file may cost (see SECURITY.md): {", ".join(files.LIMITS)}',
    )  # fmt: skip
    parser.add_argument('--debug', action='store_true', help='show the traceback of every error')
    return parser


def _parse(
    parser: argparse.ArgumentParser, tables: Sequence[str], argv: list[str]
) -> dict[str, Any]:
    if tables and not any(re.match(r'(--config(=.|$)|-h$|--help$)', a) for a in argv):
        shipped_ones, words = _shipped(tables), {a: a.partition(':')[0] for a in argv}
        named = next((a for a, w in words.items() if w in shipped_ones or os.path.isfile(w)), None)
        offer = f'; did you mean --config={named}?' if named else _offer('', tables)
        raise UsageError(f'--config is missing: --config=NAME{offer}')
    try:
        known, rest = parser.parse_known_args([_respelt(argument, parser) for argument in argv])
    except UsageError as error:
        if 'are required' in str(error) and (strange := _strange(argv, parser)):
            raise UsageError(_unknown(strange, parser)) from None
        raise
    arguments = vars(known)
    del arguments['debug']
    if limits := arguments.pop('limits'):
        files.set_limits(limits)
    if not tables:
        if rest:
            raise UsageError(_unknown(rest[0], parser))
        return arguments
    source = arguments.pop('config')
    first = next(i for i, a in enumerate(argv) if a == '--config' or a.startswith('--config='))
    if early := [a for a in argv[:first] if OVERRIDE.match(a)]:
        raise UsageError(f'{early[0]} stands before --config: put it behind what it changes')
    built = _override(load(source, tables), rest, parser)
    file = find(source.partition(':')[0], tables)
    name = built.name or Path(file).stem
    arguments['workdir'] = arguments['workdir'] or os.path.join('runs', name)
    if re.match(r'[A-Za-z][A-Za-z0-9+.-]*://', arguments['workdir']):
        if built.table != 'objective' or not bucket.is_url(arguments['workdir']):
            also = ', or gs:// or s3://' if built.table == 'objective' else ''
            raise UsageError(
                f'--workdir={arguments["workdir"]}: must be a folder of a file system that '
                f'all processes see{also}'
            )
        bucket.Bucket(arguments['workdir'])
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


def add_fields(
    parser: argparse.ArgumentParser, kind: type, but: Sequence[str] = (), dash: str = '_'
) -> None:
    """A flag for every field of a dataclass, with the field's comment as its text: --no_NAME for
    what is true unless told otherwise. dash: between the words of a flag."""
    words = comments(kind)
    for field in dataclasses.fields(kind):
        if field.name in but:
            continue
        name, default = field.name.replace('_', dash), field.default
        settings: dict[str, Any] = {'dest': field.name, 'help': _spelt(words.get(field.name, ''))}
        if isinstance(default, bool):
            action = 'store_false' if default else 'store_true'
            off = f'no{dash}' if default else ''
            settings['help'] = f'do not {settings["help"]}' if default else settings['help']
            parser.add_argument(f'--{off}{name}', action=action, **settings)
        else:
            pair = isinstance(default, tuple)
            of = numbers(len(default)) if pair else type(default)
            mark = {int: 'N', float: 'X'}.get(of, 'A,B' if pair else 'TEXT')
            if default == '':
                settings['help'] += ' (empty)'
            parser.add_argument(f'--{name}', type=of, default=default, metavar=mark, **settings)


def comments(kind: type) -> dict[str, str]:
    """Field of a dataclass -> the comment behind it or above it, as argparse takes text."""
    result, above = {}, []
    for line in map(str.strip, inspect.getsource(kind).splitlines()):
        if line.startswith('#'):
            above.append(line[1:].strip())
            continue
        if match := re.match(r'(\w+): [^#]*(?:# (.*))?$', line):
            result[match[1]] = (match[2] or ' '.join(above)).replace('%', '%%')
        above = []
    return result


def _spelt(words: str) -> str:
    """Words with the keys of the table that they name, in place of its name."""

    def keys(match: re.Match) -> str:
        table = getattr(importlib.import_module(match[2]), match[3])
        return (': ' if match[1] else '') + ' | '.join(table)

    return re.sub(r'(, )?a key of (jepa_jax[\w.]*)\.(\w+)', keys, words)


def load(source: str, tables: Sequence[str] = ('objective',)) -> Any:
    """What `get_config(ARG)` of a config file returns; source: `FILE[:ARG]` or `NAME[:ARG]`.

    Raises:
      UsageError: no such file, a file that does not run, or one that returns something else.
    """
    path, _, arg = source.partition(':')
    path = find(path, tables)
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


def find(text: str, tables: Sequence[str] = ('objective',)) -> str:
    """The file of a config: a path, or the name of one of configs/, also as `configs/NAME.py` where
    there is no such folder.

    Raises:
      UsageError: there is none.
    """
    if os.path.isfile(text):
        return text
    name = _stem(text.removeprefix('configs/').removeprefix('eval/'))
    if (path := _shipped(tables).get(SIZE_ALIASES.get(name, name))) is None:
        raise UsageError(f'--config={text}: no file {text}{_offer(text, tables)}')
    return str(path)


def _known_best(tables: Sequence[str]) -> list[str]:
    """Three configs to name in a help text."""
    names = list(_shipped(tables))
    return sorted(names, key=lambda name: BEST_KNOWN.index(name) if name in BEST_KNOWN else 99)[:3]


def _stem(text: str) -> str:
    return text.removesuffix('.py').replace('-', '_')


def _places(tables: Sequence[str]) -> tuple[str, ...]:
    return ('configs/eval',) if 'evaluation' in tables else ('configs', 'configs/qa')


def _shipped(tables: Sequence[str]) -> dict[str, Path]:
    """Configs that come with the package, by name; those of configs/qa as `qa/NAME`."""
    root, named = shipped('configs').parent, {}
    for place in _places(tables):
        named |= {f'{_group(place)}{p.stem}': p for p in sorted((root / place).glob('*.py'))}
    return named


def _group(place: str) -> str:
    """What names of a folder of configs begin with."""
    return 'qa/' if place.endswith('/qa') else ''


def _override(config: Any, argv: list[str], parser: argparse.ArgumentParser) -> Any:
    """The config with every `--config.FIELD=VALUE`, or `--config.FIELD VALUE`, applied."""
    for match in filter(None, map(OVERRIDE.match, argv)):
        store.begin_list(config, match[1])
    kinds = {name: kind for name, kind, _ in store.fields(config)}
    if (count := os.environ.get(WORKERS)) and 'data.workers' in kinds:
        argv = [f'--config.data.workers={count}', *argv]  # the last one counts
    argv = _whole_numbers([_renamed(flag, kinds) for flag in argv], kinds)
    for flag in argv:
        match = OVERRIDE.match(flag)
        if not match and re.match(r'-[^\d.]', flag):  # a negative number is a value
            raise UsageError(_unknown(flag, parser))
        if match and match[1] not in kinds:
            raise UsageError(f'{flag}: no field {match[1]}{_near_field(match[1], kinds)}')
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    try:
        holder = config_flags.DEFINE_config_dataclass(
            'config', config, flag_values=values, sys_argv=['', *argv]
        )
        left = values(['', *argv])[1:]
    except flags.Error as error:
        raise UsageError(_flag_error(error, kinds)) from error
    if left:
        raise UsageError(f"'{left[0]}' follows no flag")
    return holder.value


def whole(text: str) -> int:
    """A whole number, also as 1e4."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        if (value := float(text)).is_integer():
            return int(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"'{text}': must be a whole number")


def at_least(least: int) -> Callable[[str], int]:
    """The type of a flag that holds a whole number from `least` on."""

    def parse(text: str) -> int:
        if (number := whole(text)) < least:
            raise argparse.ArgumentTypeError(f'{text}: must be at least {least}')
        return number

    return parse


count = at_least(1)


def _whole_numbers(argv: list[str], kinds: dict[str, Any]) -> list[str]:
    """Values of whole-numbered fields as digits."""
    argv = list(argv)
    for i, flag in enumerate(argv):
        match = OVERRIDE.match(flag)
        if not match or kinds.get(match[1]) is not int:
            continue
        name, equals, value = flag.partition('=')
        place = i if equals else i + 1
        text = value if equals else ''.join(argv[place : place + 1])
        try:
            argv[place : place + 1] = [f'{name}={whole(text)}' if equals else str(whole(text))]
        except argparse.ArgumentTypeError:
            continue  # said with the field's name by the flag itself
    return argv


def _renamed(flag: str, kinds: dict[str, Any]) -> str:
    """A flag under the name that its field has today."""
    match = OVERRIDE.match(flag)
    if not match or match[1] in kinds:
        return flag
    name = store.renamed(match[1], kinds)
    return flag[: match.start(1)] + name + flag[match.end(1) :]


def _flag_error(error: Exception, kinds: dict[str, Any]) -> str:
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


def _respelt(argument: str, parser: argparse.ArgumentParser) -> str:
    """A flag as the command spells it: dashes between words are as good as underscores."""
    name, *value = argument.split('=', 1)
    flags = parser._option_string_actions
    if not name.startswith('--') or name in flags:
        return argument
    near = (flag for flag in flags if flag[2:].replace('_', '-') == name[2:].replace('_', '-'))
    return '='.join((next(near, name), *value))


def _strange(argv: list[str], parser: argparse.ArgumentParser) -> str | None:
    """The first flag that neither the command has nor a command within it."""
    flags = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            flags.update(*(inner._option_string_actions for inner in action.choices.values()))
    words = (_respelt(word, parser) for word in argv if not OVERRIDE.match(word))
    return next((w for w in words if w.startswith('--') and w.split('=')[0] not in flags), None)


def _unknown(argument: str, parser: argparse.ArgumentParser) -> str:
    flag = argument.split('=')[0]
    return f'unknown flag {flag}{nearest(flag, parser._option_string_actions)}'


def _offer(text: str, tables: Sequence[str]) -> str:
    """The config whose name is nearest to a path or name; all of them, if none is near."""
    names = {name: name for name in _shipped(tables)}
    for place in _places(tables):
        paths = sorted(glob.glob(f'{place}/*.py'))
        names |= {f'{_group(place)}{Path(path).stem}': path for path in paths}
    near = difflib.get_close_matches(_stem(os.path.basename(text)), names, n=1)
    return f'; did you mean {names[near[0]]}?' if near else f', such as {", ".join(names.values())}'
