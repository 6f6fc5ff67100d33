"""How far planners get in Two Rooms: a dot in a box that a wall with one door divides.

    jepa two-rooms measure [--rows NAME,NAME] [--planner cem|mppi] [--episodes N]
    jepa two-rooms options [--only NAME,NAME] [--steps N] [--table options.md]
    jepa two-rooms loop [--row NAME] [--episodes N]
    jepa two-rooms planners [--only NAME,NAME] [--option NAME] [--episodes N]

Nothing but JAX is needed. Pictures are seen through a simple frozen encoder: dot and walls blurred,
at a few places, one token a frame. Success has its 95 % interval (Wilson's) over the episodes.

measure: start and goal in different rooms, with the rules themselves or a learned model, towards
what looks like the goal or along a learned distance that knows the way round. The task is that of
reference: world_models §2.2: 200 moves, a new plan after every action, a horizon of 90 moves that
ends with the episode, the squared distance summed over its steps as the cost, and the last position
counts, within 4.5 pixels of the goal. Walls and doors lie elsewhere in every episode. An action is
--hold equal moves, so the horizon has so many fewer actions. What the rows are:
jepa_jax/contrib/other_room.py; what they reached: jepa_jax/contrib/two_rooms.md.

options: every option of the action-conditioned predictor, trained and planned with once on a small
scale (jepa_jax/contrib/options.md); the goal is --apart pixels away in the same room. Two rows are
for comparison: the rules themselves in place of a predictor, and one that is not trained. The table
says that every option works and what it costs. Each option is trained once: which is best, runs
this short and few do not say.

planners: one option trained, then every planner with several budgets on the same tasks, and what
each reaches in the time of CEM with 64 samples and 4 iterations, and in what time it reaches as
much. Predictions are made from one frame each.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from jepa_jax import cli
from jepa_jax.errors import ConfigError, allowed

HORIZON = 90  # moves


def names_of(flag: str, text: str, choices: Iterable[str]) -> list[str]:
    """The names of a comma list, all of them among the choices."""
    names = [name.strip() for name in text.split(',')]
    if unknown := [name for name in names if name not in choices]:
        raise ConfigError(f"--{flag} '{unknown[0]}': {allowed(unknown[0], choices)}")
    return names


def play(episode: Callable, seed: int, count: int, warm: bool = False):
    """What `count` episodes return, as one program, and core seconds an episode; warm: without
    compiling."""
    import jax

    run, keys = (
        jax.jit(functools.partial(jax.lax.map, episode)),
        jax.random.split(jax.random.key(seed), count),
    )
    run = run.lower(keys).compile() if warm else run
    begun = time.process_time()
    outcome = jax.device_get(run(keys))
    return outcome, (time.process_time() - begun) / count


def share(won) -> str:
    """How many of the episodes [E] bool, with Wilson's interval."""
    from jepa_jax.evals.intervals import wilson

    low, high = wilson(won.sum(), len(won))
    return f'{won.sum()} of {len(won)} ({low:.2f} to {high:.2f})'


PLANNERS = '## Planners'


def put(path: Path, heading: str, text: str) -> None:
    """Writes a table into a page of tables: under its heading, or before the first one."""
    old = path.read_text() if path.exists() else ''
    above, mark, below = old.partition(f'\n{PLANNERS}\n')
    path.write_text(f'{above}\n{heading}\n{text}' if heading else f'{text}{mark}{below}')


def over_trainings(shares) -> str:
    """The mean of shares of success of several trainings, with Student's interval over them."""
    import numpy as np
    from scipy import stats

    mean, error = np.mean(shares), stats.sem(shares)
    half = stats.t.ppf(0.975, len(shares) - 1) * error
    low, high = max(0.0, mean - half), min(1.0, mean + half)
    return f'{mean:.2f} ({low:.2f} to {high:.2f})'


def measure(o: argparse.Namespace) -> None:
    """Learns what the rows need, plays the episodes and prints a table."""
    from jepa_jax import start
    from jepa_jax.contrib import other_room, two_rooms
    from jepa_jax.planning.cem import CEM, MPPI, ActionSpace
    from jepa_jax.planning.world_model import Cost

    rows = names_of('rows', o.rows, other_room.ROWS)
    if o.hold < 1 or HORIZON % o.hold or two_rooms.STEPS % o.hold:
        raise ConfigError(f'--hold {o.hold}: must divide {HORIZON} and {two_rooms.STEPS}')
    for name in ('episodes', 'layouts', 'steps'):
        if getattr(o, name) < 1:
            raise ConfigError(f'--{name} {getattr(o, name)}: must be at least 1')
    start.compilation_cache()
    reach = two_rooms.MOST * o.hold / 2**0.5
    space = ActionSpace(2, (0, 1), (reach,) * 2, (o.std * reach,) * 2)
    search = space, Cost(2, 'all'), HORIZON // o.hold, o.samples, o.iterations
    if o.planner == 'cem':
        planner, kind = CEM(*search, elites=o.elites), f'{o.elites} elites'
    else:
        planner = MPPI(*search, min_std=o.min_std / o.std)
        kind = f'least deviation {o.min_std:g}'
    view, worlds = None, {}
    if rows != ['place']:
        sizes = {n: getattr(o, n) for n in ('layouts', 'head_steps', 'steps', 'width', 'depth')}
        view, worlds = other_room.worlds_of(rows, sizes, o.hold, o.learn_seed, o.keep)
    print(
        '| where actions lead | distance | planner | moves of an action | budget '
        '| success (95 % interval) | near the goal at any time | pixels from it at the end, mean '
        '| core seconds an episode |\n|---|---|---|---|---|---|---|---|---|',
        flush=True,
    )
    for row in rows:
        episode, words = other_room.episode_of(row, planner, view, worlds, o.hold, o.kick)
        apart, seconds = play(episode, o.seed, o.episodes)
        near = apart < two_rooms.CLOSE
        print(
            f'| {words} | {o.planner} | {o.hold} | {o.samples} x {o.iterations}, {kind}, first '
            f'deviation {o.std:g} | {share(near[:, -1])} | {near.any(1).sum()} '
            f'| {apart[:, -1].mean():.1f} | {seconds:.1f} |',
            flush=True,
        )


def try_options(o: argparse.Namespace) -> None:
    """Trains and plans with each option and prints the table."""
    import jax
    import numpy as np

    from jepa_jax import start
    from jepa_jax.contrib import options, two_rooms

    names = names_of('only', o.only, options.OPTIONS) if o.only else list(options.OPTIONS)
    if o.seeds < 1:
        raise ConfigError(f'--seeds {o.seeds}: must be at least 1')
    start.compilation_cache()
    lines = [
        '| option | what it is | error / copying | with shuffled actions | core ms a step '
        '| success | distance, pixels |',
        '|---|---|---|---|---|---|---|',
    ]
    print('\n'.join(lines), flush=True)

    def add(name: str, words: str, trained: str, option: options.Option, *worlds) -> None:
        """Plays the episodes with each of the worlds and prints a row."""
        played = [
            play(options.episode_of(option, world, o.apart), o.seed, o.episodes)[0]
            for world in worlds
        ]
        won, first, last = (np.concatenate(part) for part in zip(*played))
        words_of = over_trainings([w.mean() for w, *_ in played]) if len(worlds) > 1 else share(won)
        lines.append(
            f'| {name} | {words} | {trained} | {words_of} '
            f'| {first.mean():.1f} to {last.mean():.1f} |'
        )
        print(lines[-1], flush=True)

    plain = options.OPTIONS['plain']
    objective = options.objective_of(plain, o.width, o.depth)
    params = jax.jit(objective.init)(jax.random.key(o.seed))
    rules = functools.partial(two_rooms.TrueRooms, hold=options.HOLD, encode=options.encode)
    add('rules', 'no predictor', '| |', plain, rules)
    add('untrained', 'as `plain`', '| |', plain, options.world_of(plain, objective, params))
    for name in names:
        option = options.OPTIONS[name]
        objective = options.objective_of(option, o.width, o.depth)
        several, seconds = options.train(
            option, objective, o.steps, range(o.seed, o.seed + o.seeds), o.recordings
        )
        means = (
            np.mean([health[f'health/{key}'] for _, health in several])
            for key in ('error_over_copy', 'shuffled_actions')
        )
        trained = f'{" | ".join(f"{mean:.2f}" for mean in means)} | {1000 * seconds:.1f}'
        worlds = [options.world_of(option, objective, params) for params, _ in several]
        add(f'`{name}`', option.words, trained, option, *worlds)
    settings = (
        f'--steps {o.steps} --width {o.width} --depth {o.depth} --episodes {o.episodes} '
        f'--seed {o.seed}{f" --only {o.only}" * bool(o.only)} --apart {o.apart:g}'
        f'{f" --seeds {o.seeds}" * (o.seeds > 1)}'
    )
    trainings = 'once' if o.seeds == 1 else f'{o.seeds} times, as one program'
    of = 'episodes' if o.seeds == 1 else 'trainings (their mean, Student)'
    text = (
        f'Two Rooms, goals up to {o.apart:g} pixels away in the same room; {o.depth} blocks of '
        f'width {o.width}, {o.steps} steps of {options.BATCH} pieces, each option trained '
        f'{trainings}. Success: within {two_rooms.CLOSE} pixels at the end of the episode, with '
        f"its 95 % interval over the {of}. Errors are of each option's own kind, those of "
        f'`l2` squares. `jepa two-rooms options {settings}`\n'
    )
    print('\n' + text)
    if o.table:
        put(Path(o.table), '', text + '\n' + '\n'.join(lines) + '\n')


def try_planners(o: argparse.Namespace) -> None:
    """Trains one predictor, plays the same episodes with every planner and prints the tables."""
    from jepa_jax import start
    from jepa_jax.contrib import options, planners

    names = names_of('only', o.only, planners.BUDGETS) if o.only else list(planners.BUDGETS)
    (name,) = names_of('option', o.option, options.OPTIONS)
    if planners.REFERENCE[0] not in names:
        raise ConfigError(f"--only '{o.only}': must have {planners.REFERENCE[0]}, for comparison")
    start.compilation_cache()
    option = options.OPTIONS[name]
    objective = options.objective_of(option, o.width, o.depth)
    ((params, health),), _ = options.train(
        option, objective, o.steps, range(o.seed, o.seed + 1), o.recordings
    )
    world, rows = options.world_of(option, objective, params, slide=True), []
    for planner in names:
        for samples, iterations in planners.BUDGETS[planner]:
            solve = options.planner_of(
                option, planner, samples, iterations, o.horizon, planners.elites(samples)
            )
            episode = options.episode_of(option, world, o.apart, solve)
            (won, _, _), seconds = play(episode, o.seed + 1, o.episodes, warm=True)
            rows.append(
                planners.Row(
                    planner,
                    samples,
                    iterations,
                    int(won.sum()),
                    o.episodes,
                    seconds / options.STEPS,
                )  # fmt: skip
            )
            row = rows[-1]
            line = f'{planner} {row.budget}: {row.words}, {1000 * row.seconds:.1f} ms'
            print(line, file=sys.stderr, flush=True)
    text = (
        f'Two Rooms, goals up to {o.apart:g} pixels away in the same room; option `{name}`, '
        f'{o.depth} blocks of width {o.width}, {o.steps} steps, trained once (error '
        f'{health["health/error_over_copy"]:.2f} of copying); horizon {o.horizon}, {options.STEPS} '
        f'plans an episode. `jepa two-rooms planners --option {name} --steps {o.steps} '
        f'--episodes {o.episodes} --horizon {o.horizon} --apart {o.apart:g} --seed {o.seed}`\n\n'
        f'{planners.tables(rows)}\n'
    )
    print(text)
    if o.table:
        put(Path(o.table), PLANNERS, f'\n{text}')


def compare_loops(o: argparse.Namespace) -> None:
    """Plays the same episodes from the host, as one program one after the other, and many at once,
    and prints what each costs, and whether they are the same."""
    import jax
    import numpy as np

    from jepa_jax import start
    from jepa_jax.contrib import other_room, two_rooms
    from jepa_jax.planning.cem import CEM, ActionSpace
    from jepa_jax.planning.world_model import ACWorldModel, Cost

    (row,) = names_of('row', o.row, ('place', 'untrained'))
    if not 1 <= o.from_host <= o.episodes:
        raise ConfigError(f'--from-host {o.from_host}: must be from 1 to --episodes {o.episodes}')
    start.compilation_cache()
    reach = two_rooms.MOST * o.hold / 2**0.5
    space = ActionSpace(2, (0, 1), (reach,) * 2, (reach,) * 2)
    search = CEM(
        space, Cost(2, 'all'), HORIZON // o.hold, o.samples, o.iterations, max(2, o.samples // 8)
    )
    dynamics = other_room.dynamics_objective(o.width, o.depth)
    params = jax.jit(dynamics.init)(jax.random.key(o.seed))['predictor']
    net = dynamics.nets['predictor']
    worlds = {'untrained': ACWorldModel(params, net, dynamics.config, 1, 'none', slide=True)}
    loop, words = other_room.loop_of(row, search, None, worlds, o.hold, 0.5)
    keys = jax.random.split(jax.random.key(o.seed), o.episodes)
    tasks = jax.jit(jax.vmap(two_rooms.task))(keys)

    def one(i: int):
        return jax.tree.map(lambda a: a[i], (*tasks, keys))

    def timed(run: Callable):
        """After a first run, which compiles: what came out, core and wall seconds an episode."""
        count = len(run())
        cores, wall = time.process_time(), time.perf_counter()
        paths = np.asarray(run())
        return paths, (time.process_time() - cores) / count, (time.perf_counter() - wall) / count

    mapped = jax.jit(lambda args: jax.lax.map(lambda a: loop.play(*a), args))
    abreast = jax.jit(jax.vmap(loop.play))
    few = o.from_host
    some = jax.tree.map(lambda a: a[:few], (*tasks, keys))
    ways = {
        'from the host': lambda: np.stack([loop.play_from_host(*one(i)) for i in range(few)]),
        'one program, one after the other': lambda: mapped(some),
        f'one program, {o.episodes} at once': lambda: abreast(*tasks, keys),
    }
    print(
        f'{words}: CEM {o.samples} x {o.iterations}, horizon {search.horizon}\n\n'
        '| loop | core ms an episode | wall ms | times as many episodes a core second '
        '| equal to the host, bit for bit |\n|---|---|---|---|---|'
    )
    first = None
    for name, run in ways.items():
        paths, cores, wall = timed(run)
        first = first or (paths, cores)
        same = sum(np.array_equal(a, b) for a, b in zip(first[0], paths))
        print(
            f'| {name} | {1000 * cores:.1f} | {1000 * wall:.1f} | {first[1] / cores:.1f} '
            f'| {same} of {few} |',
            flush=True,
        )


COMMANDS = {
    'measure': measure,
    'options': try_options,
    'planners': try_planners,
    'loop': compare_loops,
}


def run(command: str, **settings) -> None:
    COMMANDS[command](argparse.Namespace(**settings))


def _options(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def command(name: str, words: str, **numbers: tuple[float, str]) -> Callable:
        """numbers: flag -> its default and what it is."""
        add = commands.add_parser(
            name, help=words, description=words, allow_abbrev=False
        ).add_argument
        add('--debug', action='store_true', default=argparse.SUPPRESS, help='show every traceback')
        for flag, (default, about) in numbers.items():
            add(f'--{flag.replace("_", "-")}', type=type(default), default=default,
                metavar='X' if isinstance(default, float) else 'N',
                help=f'{about} (%(default)s)')  # fmt: skip
        return add

    add = command(
        'measure',
        'goals in the other room, with known and learned models',
        hold=(5, 'moves of an action'),
        samples=(64, 'of an iteration'),
        iterations=(8, 'of a plan'),
        elites=(8, 'cem only'),
        std=(1.0, 'deviation of the first samples, in longest actions'),
        min_std=(0.1, 'mppi: the search never narrows below, in longest actions'),
        kick=(
            0.5,
            'pixels, deviation of what throws a dot back that touches something; as published',
        ),
        episodes=(20, 'of a row'),
        seed=(0, 'of the episodes'),
        learn_seed=(0, 'of recordings and training'),
        layouts=(3000, 'recorded'),
        head_steps=(3000, 'of training the head'),
        steps=(10000, 'of training the predictor'),
        width=(192, 'of the predictor'),
        depth=(2, 'of the predictor'),
    )
    rows = 'place,time,learned,untrained'
    add('--rows', default=rows, metavar='NAME,NAME', help='which ones')
    add('--planner', default='cem', choices=('cem', 'mppi'), help='which one')
    add(
        '--keep',
        metavar='FILE.npz',
        help='learn into this file, or take what is there (neither)',
    )
    add = command(
        'options',
        'every option of the predictor, trained and planned with once',
        steps=(400, 'of training'),
        recordings=(2000, 'pieces to train on'),
        width=(64, 'of the predictor'),
        depth=(2, 'of the predictor'),
        episodes=(20, 'of a row'),
        apart=(20.0, 'pixels from start to goal'),
        seed=(0, 'of training and episodes'),
        seeds=(1, 'trainings of each option, as one program'),
    )
    add('--only', default='', metavar='NAME,NAME', help='which options (all)')
    add('--table', metavar='FILE.md', help='write the table (no file)')
    add = command(
        'planners',
        'every planner with several budgets on one trained predictor',
        steps=(800, 'of training'),
        recordings=(2000, 'pieces to train on'),
        width=(64, 'of the predictor'),
        depth=(2, 'of the predictor'),
        horizon=(4, 'actions that a plan looks ahead'),
        episodes=(100, 'of a row'),
        apart=(20.0, 'pixels from start to goal'),
        seed=(0, 'of training; episodes have the next one'),
    )
    add('--only', default='', metavar='NAME,NAME', help='which planners (all)')
    add('--table', metavar='FILE.md', help='write the table under its heading (no file)')
    add('--option', default='adaln', metavar='NAME', help='of the predictor (%(default)s)')
    add = command(
        'loop',
        'what an episode costs from the host, as one program, and many at once',
        hold=(5, 'moves of an action'),
        samples=(64, 'of an iteration'),
        iterations=(8, 'of a plan'),
        episodes=(128, 'at once'),
        from_host=(4, 'of them from the host'),
        width=(192, 'of the predictor'),
        depth=(2, 'of the predictor'),
        seed=(0, 'of the episodes'),
    )
    add('--row', default='place', help='place: the rules; untrained: a predictor (%(default)s)')


def main() -> int:
    return cli.run(run, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
