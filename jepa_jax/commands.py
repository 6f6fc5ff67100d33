"""The table of entry points. `jepa NAME ...` and `python -m jepa_jax NAME ...` run a row of it; the
long forms, `python -m jepa_jax.train ...` and `python -m tools.cost ...`, are the same programs.

A row is all that a new one needs: its module has `main() -> int`, which calls `jepa_jax.cli.run`.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from jepa_jax import __version__
from jepa_jax.errors import OK, USAGE, allowed, reader_left
from jepa_jax.lookup import shipped


@dataclasses.dataclass(frozen=True)
class Command:
    """An entry point."""

    module: str  # `tools.x` is jepa_jax.tools.x where the package is installed
    words: str  # what it does, a line
    daily: bool = True  # else it measures or looks into the program itself, and is listed below


COMMANDS: dict[str, Command] = {
    'train': Command('jepa_jax.train', 'pretrain, or post-train on recordings of a robot'),
    'evaluate': Command('jepa_jax.evaluate', 'what features tell of labelled clips'),
    'embed': Command('jepa_jax.embed', 'features of videos, images, folders and arrays'),
    'search': Command('jepa_jax.search', 'the nearest windows of embedded videos'),
    'ask': Command('jepa_jax.ask', 'questions about videos'),
    'plan': Command('jepa_jax.plan', "a robot's actions to a goal image"),
    'serve-robot': Command('jepa_jax.serve_robot', 'plans over HTTP, one action at a time'),
    'report': Command('jepa_jax.report', 'the page of a training run, made anew'),
    'models': Command('jepa_jax.catalogue', 'names of models: size, memory, licence, what they do'),
    'convert': Command('jepa_jax.convert', 'weights between PyTorch, Hugging Face and here'),
    'doctor': Command('jepa_jax.doctor', 'what works here; is a model what it should be'),
    'index': Command('tools.index_videos', 'which videos are bad, before a run'),
    'shards': Command('tools.make_shards', 'decode videos once, for lists that are read often'),
    'check-robot': Command('tools.check_robot_data', 'what recordings of a robot hold'),
    'collect': Command('jepa_jax.sims.collect', 'recordings of the simulated arm'),
    'cost': Command('tools.cost', 'memory, FLOPs and speed of a config, without running it'),
    'inspect': Command('tools.inspect_checkpoint', 'what a checkpoint holds', False),
    'judge-energy': Command('tools.judge_energy', 'does the energy tell actions apart', False),
    'energy': Command('tools.energy', 'which clips belong together, as a run sees it', False),
    'score-answers': Command('tools.score_answers', 'figures of kept answers to questions', False),
    'two-rooms': Command('jepa_jax.contrib.measure', 'planning round a wall, measured', False),
    'dense-table': Command('tools.dense_table', 'dense features of two runs compared', False),
    'score-sta': Command('tools.score_sta', "Ego4D's short-term anticipation", False),
    'measure-masks': Command('tools.measure_masks', "masks against the original's", False),
    'make-bundled': Command('tools.make_bundled', 'the weights that come with the package', False),
    'dry-run': Command('tools.dry_run', 'cost by its old name', False),
    'bench-data': Command('tools.bench_data', 'clips a second from disk to batch', False),
    'bench-embed': Command('tools.bench_embed', 'features against transformers', False),
    'bench-plan': Command('tools.bench_plan', 'planning against PyTorch', False),
    'bench-probe': Command('tools.bench_probe', 'readers of features', False),
    'bench-step': Command('tools.bench_step', 'a training step on this machine', False),
    'bench-vs-torch': Command('tools.bench_vs_torch', 'all of it beside PyTorch', False),
    'growth': Command('tools.growth', 'how cost grows with sizes', False),
    'lowered': Command('tools.lowered', "a GPU's step, read without one", False),
}


def module(name: str) -> ModuleType:
    """The module of a row."""
    path = COMMANDS[name].module
    if path.startswith('tools.'):
        folder = shipped('tools')
        if folder.parent.name == 'jepa_jax':
            path = f'jepa_jax.{path}'
        elif str(folder.parent) not in sys.path:  # a clone; first, for `tools` is a common name
            sys.path.insert(0, str(folder.parent))
    return importlib.import_module(path)


def main(argv: Sequence[str] | None = None, program: str = 'jepa') -> int:
    """Runs the row that the first argument names; without one, or with --help, lists them."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ['--help']
    if name in ('-h', '--help', 'help'):
        try:
            print(listing(program), flush=True)
        except BrokenPipeError:
            reader_left()
        return OK
    if name == '--version':
        print(f'jepa_jax {__version__}')
        return OK
    if name not in COMMANDS:
        print(f"error: no command '{name}': {allowed(name, COMMANDS)}", file=sys.stderr)
        return USAGE
    sys.argv = [f'{program} {name}', *rest]
    return module(name).main()


def listing(program: str) -> str:
    """The table as text."""
    width = max(map(len, COMMANDS))
    lines = [f'usage: {program} COMMAND ...    ({program} COMMAND --help: its flags)', '']
    for daily in (True, False):
        rows = (item for item in COMMANDS.items() if item[1].daily == daily)
        lines += (f'  {name:{width}}  {row.words}' for name, row in rows)
        lines += ['', 'looking into the program itself:'] if daily else []
    return '\n'.join(lines)
