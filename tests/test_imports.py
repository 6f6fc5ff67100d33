"""The house: imports point one way, from entry points down to errors, without circles; no file is
too long to be read in one sitting."""

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 'jepa_jax'
LONGEST = 600  # lines of a file

# From the ground up: a module imports from its own floor and from those below. A name stands for
# itself and for all that is in it; the longest one that fits decides.
FLOORS = (
    ('errors',),
    (
        'lookup',
        'files',
        'described',
        'scratch',
        'commands',
        'page',
        'models',
    ),  # models/__init__.py is a table of sizes without JAX
    ('config', 'workdir', 'bucket', 'chips', 'poses'),
    ('recipes', 'cli', 'sharding', 'weights', 'weights.names', 'distributed', 'fetched'),
    ('nets', 'checkpoint', 'released', 'released_jepa'),
    ('models.*', 'masks'),
    ('data', 'flops', 'language', 'weights.parts'),
    ('objectives', 'health', 'sinks', 'metrics', 'watch'),
    ('optim', 'state', 'step', 'build', 'weights.*', 'describe'),
    (
        'memory',
        'golden',
        'inputs',
        'outputs',
        'predictions',
        'encoder',
        'model',
        'embedded',
        'answers',
    ),
    ('pretrained', 'objectives.programs', 'origin', 'home', 'loop'),
    (
        'frozen',
        'questions',
        'start',
        'planning',
        'evals',
        'catalogue',
        'objectives.image_programs',
    ),
    ('looks', 'drawings', 'run_page', 'ending', 'studies'),
    ('sims', 'contrib', 'distillation', 'family', 'video_questions'),
    (
        'train',
        'evaluate',
        'embed',
        'plan',
        'ask',
        'serve_robot',
        'doctor',
        'convert',
        'search',
        'report',
        '__main__',
    ),
)


def modules() -> dict[str, pathlib.Path]:
    """Module of the package, without its first word -> file."""
    result = {}
    for path in sorted(PACKAGE.rglob('*.py')):
        *folders, last = path.relative_to(PACKAGE).with_suffix('').parts
        result['.'.join([*folders, *([] if last == '__init__' else [last])])] = path
    return result


@functools.cache
def imports() -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports, also within functions; what only type
    checkers read apart."""
    known = modules()
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        graph[name] = set()
        tree = ast.parse(path.read_text())
        skipped = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test)
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if id(node) in skipped:
                continue
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f'{path}: relative import'
                names = [f'{node.module}.{alias.name}' for alias in node.names] + [node.module]
            else:
                continue
            for full in names:
                first, _, rest = full.partition('.')
                if first == 'jepa_jax' and rest and rest in known and rest != name:
                    graph[name].add(rest)
        # `from package import name` names the package, too; only what it stands for counts
        for package in [m for m in graph[name] if any(o.startswith(f'{m}.') for o in graph[name])]:
            if known[package].name == '__init__.py' and not takes_from(tree, package, known):
                graph[name].discard(package)
    del graph['']  # the package itself: names that it fetches when they are asked for
    return graph


def takes_from(tree: ast.AST, package: str, known: dict) -> bool:
    """Whether a name that is no module is imported from a package."""
    return any(
        isinstance(node, ast.ImportFrom)
        and node.module == f'jepa_jax.{package}'
        and any(f'{package}.{alias.name}' not in known for alias in node.names)
        for node in ast.walk(tree)
    )


def floor(module: str) -> int:
    best, level = '', None
    for number, names in enumerate(FLOORS):
        for name in names:
            stem = name.removesuffix('.*')
            inside = module.startswith(f'{stem}.')
            fits = inside if name.endswith('.*') else inside or module == name
            if fits and len(name) > len(best):
                best, level = name, number
    assert level is not None, f'jepa_jax.{module} has no floor: give it one in {__file__}'
    return level


def test_every_module_has_a_floor_and_every_floor_a_module():
    for module in imports():
        floor(module)
    for names in FLOORS:
        for name in names:
            stem = name.removesuffix('.*')
            assert any(m == stem or m.startswith(f'{stem}.') for m in imports()), name


def test_no_import_goes_up():
    up = [
        f'{module} imports {other}'
        for module, others in imports().items()
        for other in others
        if floor(other) > floor(module)
    ]
    assert not up, '\n'.join(sorted(up))


def test_no_circle():
    graph, done = imports(), set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        if module in trail:
            pytest.fail('a circle: ' + ' -> '.join((*trail[trail.index(module) :], module)))
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_a_circle_and_a_way_up_are_seen():
    """The graph is not empty, and knows imports within functions and from packages."""
    graph = imports()
    assert 'errors' in graph['config.derived'] and 'loop' in graph['train']
    assert 'config' in graph['build']  # names of the package, not modules in it
    assert floor('models.vit') > floor('models') and floor('train') > floor('loop')


def bound(tree: ast.Module) -> set[str]:
    """Names that a module has once it is read, whichever branch that takes."""
    names, left = set(), list(tree.body)
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(a.asname or a.name).split('.')[0] for a in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        left += ast.iter_child_nodes(node)
    return names


def absent(path: pathlib.Path, known: dict, names: dict[str, set[str]]) -> list[str]:
    """What a file takes of modules of the package and they do not have."""
    tree, ours, lines = ast.parse(path.read_text()), {}, []

    def has(module: str, name: str) -> bool:
        return bool({name, '__getattr__'} & names[module]) or f'{module}.{name}' in known

    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and f'{node.module}.'.startswith('jepa_jax.'):
            place = node.module.partition('.')[2]
            for alias in node.names:
                inner = f'{place}.{alias.name}'.lstrip('.')
                if inner in known:
                    ours[alias.asname or alias.name] = inner
                elif place and not has(place, alias.name):
                    lines.append(f'{path}:{node.lineno}: {alias.name} of {node.module}')
    # names that are also something else, somewhere in the file
    other = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    other |= {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = node.value.id
            if name in ours.keys() - other and not has(ours[name], node.attr):
                lines.append(f'{path}:{node.lineno}: {node.attr} of jepa_jax.{ours[name]}')
    return lines


def test_every_name_that_is_taken_of_a_module_is_there():
    """Also within functions and of modules, as `page.save_figure`, which few tests reach."""
    known = modules()
    names = {name: bound(ast.parse(path.read_text())) for name, path in known.items()}
    others = [
        p
        for folder in ('tools', 'configs', 'docs', 'examples')
        for p in (ROOT / folder).rglob('*.py')
    ]
    lines = [line for path in [*known.values(), *others] for line in absent(path, known, names)]
    assert not lines, '\n'.join(lines)


def test_no_file_is_long():
    long = {
        str(path.relative_to(ROOT)): count
        for path in PACKAGE.rglob('*.py')
        if (count := len(path.read_text().splitlines())) > LONGEST
    }
    assert not long


def test_tables_need_no_jax():
    """Commands answer `--help` and bad settings at once."""
    import subprocess
    import sys

    light = (
        'cli',
        'commands',
        'config',
        'recipes',
        'released',
        'evals',
        'weights.parts',
        'weights.names',
    )
    code = '; '.join(f'import jepa_jax.{name}' for name in light)
    code += '; import sys; print([m for m in ("jax", "flax", "numpy") if m in sys.modules])'
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == '[]'


# identifiers that say nothing of what they hold: `result` or the thing's own name, `expected`,
# `baseline` say more
VAGUE = {'wanted', 'given', 'found', 'guess', 'guesses'}


def vague(source: str) -> list[str]:
    """Variables, arguments, fields, functions and classes of a file with such a word."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append((node.lineno, node.name))
        elif isinstance(node, ast.arg):
            names.append((node.lineno, node.arg))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append((node.lineno, node.id))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.append((node.lineno, node.attr))
    return [f'{line}: {name}' for line, name in names if VAGUE & {*name.lower().split('_')}]


def test_names_say_what_they_hold():
    seen = vague('def f(given): self._found = wanted_now = 1')
    assert sorted(seen) == ['1: _found', '1: given', '1: wanted_now']
    others = ('tools', 'configs', 'examples', 'docs', 'tests')
    folders = (PACKAGE, *(ROOT / name for name in others))
    lines = [
        f'{path.relative_to(ROOT)}:{line}'
        for folder in folders
        for path in sorted(folder.rglob('*.py'))
        for line in vague(path.read_text())
        if ': test_' not in line  # a sentence
    ]
    assert not lines, '\n'.join(lines)
