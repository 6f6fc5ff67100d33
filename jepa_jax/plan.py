"""Plans a robot's actions from a first frame to a goal image.

    python -m jepa_jax.plan --model NAME_OR_PATH --input FILE.npz --out DIR
    python -m jepa_jax.plan --model RUN --kind lerobot --input DATA_SET --episode 3 --to 8 --out DIR

FILE.npz holds `observations` uint8 [1, T, H, W, 3] and `states` float32 [1, T, 7]: x, y, z in
metres, roll, pitch, yaw in radians, closedness of the gripper from 0 to 1. The first frame and
state are where the robot is, the last frame is the goal, unless --goal names an image.

With --kind, --input is recordings in a layout that training reads. What else is needed to read them
(camera, columns, units) is as in the recordings that RUN was trained on, unless a flag says
otherwise. --from and --to count frames at --fps a second. Of a run with robot.frame = 'camera'
poses, actions and --workspace are in the frame of the camera, and the input must be such
recordings.

DIR gets plan.json (actions, energies, seconds per action) and pictures: plan.png, and
landscape.png, the energy of one action over two of its axes.

Exit status 3: the plan is written and should not be used, because the energy hardly depends on the
actions, or the model's own run ended with the verdict that it ignores them. --force makes it 0.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from jepa_jax import cli
from jepa_jax.config import RobotConfig, layouts
from jepa_jax.config.layouts import READERS
from jepa_jax.errors import BadFile, InputError, Unusable
from jepa_jax.weights import names

PLANNERS = ('cem', 'mppi', 'adam', 'cem_adam', 'collocation')
KINDS = tuple(kind for kind in READERS if kind != 'synthetic')  # made by us, in no folder
UNITS = {'metres', 'angles', 'gripper_range'}
COSTS = {'l1': 1, 'l2': 2}
RECORDING = 10  # states that tell in which units they are, even if each alone is possible


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--model', required=True, help='name or path of a model that predicts actions, or '
        'random:SIZE, such as random:tiny')  # fmt: skip
    add('--input', required=True, metavar='FILE.npz', help='where the robot is and its goal; with '
        '--kind the folder of recordings')  # fmt: skip
    add('--kind', default='file', choices=('file', *KINDS), help='of the input: one .npz, or '
        'recordings as training reads them (%(default)s)')  # fmt: skip
    add('--episode', type=int, default=0, help='of the recordings, from 0 (%(default)s)')
    add('--from', dest='first', type=int, default=0, metavar='N', help='frame of the episode where '
        'the robot is (%(default)s)')  # fmt: skip
    add('--to', dest='last', type=int, default=-1, metavar='N', help='frame that is the goal; -1: '
        'the last')  # fmt: skip
    for name, kind, text in (
        ('camera', str, 'which pictures'),
        ('columns', str, 'that are the seven numbers of the state'),
        ('state', str, 'lerobot: features that the columns are in'),
        ('action', str, "lerobot: features of the commanded pose; '': none"),
        ('action_columns', str, 'lerobot: the seven numbers among those'),
        ('fps', float, 'frames a second, as many as the model takes actions'),
        ('recorded_fps', float, 'rlds: frames a second of the recordings'),
        ('frame', str, 'of positions: base or camera'),
        ('robot', str, 'name of the robot'),
        ('gripper', str, 'what 1 means: closed or open'),
    ):
        add(
            f'--{name.replace("_", "-")}',
            dest=name,
            type=kind,
            help=f"with --kind: {text} (as in the model's recordings)",
        )
    add('--out', required=True, metavar='DIR', help='folder for plan.json and pictures')
    add(
        '--goal',
        default='',
        metavar='FILE',
        help='image of the goal, as large as the frames (the last)',
    )
    add('--planner', default='cem', choices=PLANNERS, help='docs/simulator.md compares them')
    add('--samples', type=int, default=400, help='action sequences tried in an iteration')
    add('--iterations', type=int, default=10, help='of the search')
    add('--horizon', type=int, default=2, help='actions in a plan')
    add('--elites', type=int, default=10, help='cem: samples kept of an iteration')
    add('--max-step', type=float, default=0.05, help='metres an action may move along an axis')
    add('--workspace', type=cli.numbers(6), default=(), metavar='X0,X1,Y0,Y1,Z0,Z1',
        help='metres: a box that the plan does not leave; steps end at its walls '
        '(no box)')  # fmt: skip
    add('--metres', type=float, help='that a unit of the positions is: 0.001 for millimetres (1)')
    add('--angles', choices=('radians', 'degrees'), help='of the states (radians)')
    add('--gripper-range', type=cli.numbers(2), metavar='OPEN,CLOSED',
        help='values of the gripper when open and when closed (0,1)')  # fmt: skip
    add('--force', action='store_true', help='exit status 0 also for a plan that is not usable')
    add('--cost', default='l1', choices=COSTS, help='distance of features: absolute or square')
    add('--cost-steps', default='last', choices=('last', 'all'), help='frames that are compared')
    add('--state-weight', type=float, default=0.0, help='of the distance between states')
    add('--gripper-weight', type=float, default=0.0, help='of the distance between how far the '
        'gripper is closed and is at the goal')  # fmt: skip
    add('--encoder', default='target', choices=('target', 'online'), help='of a run with both')
    add('--dtype', default='float32', choices=('float32', 'bfloat16'), help='of products')
    add('--at-once', type=int, default=0, help='samples run at once, to save memory; 0: as many as '
        'suit a CPU, on an accelerator all')  # fmt: skip
    add('--axes', default='dx,dz', help='of the landscape, two of dx dy dz droll dpitch dyaw '
        'dgripper')  # fmt: skip
    add('--seed', type=int, default=0, help='of samples and random weights')


def run(
    model: str,
    input: str,
    out: str,
    kind: str,
    episode: int,
    first: int,
    last: int,
    goal: str,
    planner: str,
    samples: int,
    iterations: int,
    horizon: int,
    elites: int,
    max_step: float,
    workspace: tuple[float, ...],
    force: bool,
    cost: str,
    cost_steps: str,
    state_weight: float,
    gripper_weight: float,
    encoder: str,
    dtype: str,
    at_once: int,
    axes: str,
    seed: int,
    **recordings: Any,
) -> None:
    """Reads, plans, writes, and says what came out."""
    names.check(model)
    recordings = {name: value for name, value in recordings.items() if value is not None}
    if kind == 'file':
        if extra := sorted(recordings.keys() - UNITS):
            raise InputError(
                f'--{extra[0].replace("_", "-")}: needs --kind, one of {", ".join(KINDS)}'
            )
        for flag, value, default in (('episode', episode, 0), ('from', first, 0), ('to', last, -1)):
            if value != default:
                raise InputError(f'--{flag} {value}: needs --kind, one of {", ".join(KINDS)}')
        observations, states, looks = read_episode(input, RobotConfig(**recordings), bool(goal))
        moves = None
    else:
        observations, states, moves = read_recording(
            model, dict(recordings, kind=kind, path=input), episode, first, last, bool(goal)
        )
        looks = []
    import dataclasses
    import pathlib
    import time

    import jax
    import numpy as np

    from jepa_jax import poses, start
    from jepa_jax.planning import energy
    from jepa_jax.planning.cem import end_effector, solver
    from jepa_jax.planning.model import DEPENDS, known, load
    from jepa_jax.planning.world_model import Context, Cost, Goal, energies
    from jepa_jax.workdir import room_for, write_json

    if kind == 'file' and known(model).by_camera:
        raise InputError(
            f"{input}: '{model}' was trained with robot.frame = 'camera', and a file does not say "
            'where the camera was: recordings with extrinsics are planned on with --kind'
        )
    pair = read_axes(axes)
    space = end_effector(max_step, workspace=workspace, start=states[0, :3].tolist())
    measure = Cost(COSTS[cost], cost_steps, state_weight, gripper_weight=gripper_weight)
    search = solver(planner, space, measure, samples=samples, iterations=iterations,
                    horizon=horizon, elites=elites)  # fmt: skip
    start.logging_to_terminal()
    start.compilation_cache()
    images = np.stack(
        [observations[0], read_goal(goal, observations) if goal else observations[-1]]
    )
    room_for('--out', out, folder=True)
    agent = load(model, size=images.shape[1:3], encoder=encoder, dtype=dtype, seed=seed)
    measured, ended = agent.known.measured, agent.known.ended
    looks += measured.beyond(states) if measured else []
    for line in (*agent.about, *(f'look: {text}' for text in looks)):
        print(line)
    if agent.known.by_camera:
        print("poses, actions and --workspace are in the camera's frame, as in training")
    print(within_reach(states[0], horizon, max_step, workspace))
    world_model = dataclasses.replace(agent.world_model, at_once=at_once)

    began = time.perf_counter()
    images = agent.fit(images)
    features = jax.block_until_ready(agent.encode(images))
    encode_seconds = time.perf_counter() - began
    context = Context(features[:1], states[:1])
    target = Goal(features[1], None if goal else states[-1])
    key = jax.random.key(seed)
    began = time.perf_counter()
    solve = jax.jit(search.solve).lower(world_model, context, target, key).compile()
    compile_seconds = time.perf_counter() - began
    began = time.perf_counter()
    actions, solution = jax.block_until_ready(solve(world_model, context, target, key))
    seconds = time.perf_counter() - began
    actions, solution = np.asarray(actions), jax.device_get(solution)

    def energy_of(action: np.ndarray) -> float:
        return float(energies(world_model, context, target, action[None], measure)[0])

    still = energy_of(np.zeros_like(actions))
    end = states[0]
    for action in actions:
        end = poses.apply(end, action)
    marks = {'first planned action': actions[0], 'whole plan': poses.difference(states[0], end)}
    true = None
    if len(states) == 2 and not goal:
        true = np.asarray(poses.difference(states[0], states[1])) if moves is None else moves[0]
        marks = {'true action': true, **marks}
    reach = [abs(float(mark[axis])) for mark in marks.values() for axis in pair]
    values = np.linspace(-1, 1, 15) * max(0.075, 1.1 * max(reach))
    one_step = dataclasses.replace(measure, steps='last')
    around = np.zeros(7, np.float32) if true is None else true
    field = energy.landscape(
        world_model, context, target, one_step, axes=pair, values=values, around=around
    )

    depends = float(field.max() - field.min()) / max(still, 1e-12)
    problems = []
    if depends < DEPENDS:
        problems.append(
            f'the predictor ignores actions: the energy of those tried differs by {depends:.2%} of '
            f'that of doing nothing, must by {DEPENDS:.1%}'
        )
    if ended and ended[0] == 'ignores actions':
        problems.append(f'the run ended with the verdict: {ended[1]}')

    folder = pathlib.Path(out)
    others = 'zero' if true is None else 'as in the true action'
    energy.draw_landscape(
        field, values, pair, folder / 'landscape.png', marks=marks,
        title=f'{model}: energy of one action, its other numbers {others}',
    )  # fmt: skip
    energy.draw_plan(
        images[0], images[1], solution, actions, folder / 'plan.png',
        title=f'{model}: {planner}, {samples} samples, {iterations} iterations, horizon {horizon}',
    )  # fmt: skip
    report = {
        'model': model,
        'input': input,
        'episode': None if kind == 'file' else episode,
        'goal': goal or 'last frame',
        'planner': planner,
        'samples': samples,
        'iterations': iterations,
        'horizon': horizon,
        'cost': cost,
        'seed': seed,
        'actions': actions.tolist(),
        'energies': solution['energies'].tolist(),
        'best': solution['best'].tolist(),
        'energy': float(solution['energy']),
        'energy_of_doing_nothing': still,
        'energy_range_over_doing_nothing': depends,
        'usable': not problems,
        'problems': problems,
        'looks': looks,
        'workspace': list(workspace),
        'true_action': None if true is None else true.tolist(),
        'seconds_per_action': seconds,
        'compile_seconds': compile_seconds,
        'encode_seconds': encode_seconds,
    }
    write_json(folder / 'plan.json', report)
    print(f'energies: {" ".join(f"{e:.6f}" for e in solution["energies"])}')
    print(
        f'energy of the plan {solution["energy"]:.6f}, of doing nothing {still:.6f}; that of the '
        f'actions tried differs by {depends:.2%}'
    )
    if ended:
        print(f'the run ended: {ended[1]}')
    header = ' '.join(f'{name:>8}' for name in energy.AXES)
    print(f'{"":8}{header}')
    for h, action in enumerate(actions):
        print(f'step {h + 1:<3}' + ' '.join(f'{x:8.4f}' for x in action))
    if true is not None:
        print(f'{"true":8}' + ' '.join(f'{x:8.4f}' for x in true))
    print(
        f'{seconds:.2f} s per action (compiling took {compile_seconds:.1f} s, encoding both '
        f'frames {encode_seconds:.1f} s); {folder}/plan.json, plan.png, landscape.png'
    )
    conclude(problems, force or model.startswith('random:'))


def conclude(problems: list[str], force: bool) -> None:
    """Says why a plan is not usable, if it is not.

    Raises:
      Unusable: and nothing forces it.
    """
    if not problems:
        return
    words = f'not usable: {"; ".join(problems)}'
    if not force:
        raise Unusable(f'{words} (--force: exit status 0 all the same)')
    print(words)


def within_reach(start, horizon: int, max_step: float, workspace: tuple[float, ...]) -> str:
    """How far a plan can go from a state, in words."""
    far = horizon * max_step
    ranges = []
    for i, name in enumerate('xyz'):
        low, high = start[i] - far, start[i] + far
        if workspace:
            low, high = max(low, workspace[2 * i]), min(high, workspace[2 * i + 1])
        ranges.append(f'{name} {low:.3f} to {high:.3f}')
    box = 'within the workspace' if workspace else 'no --workspace is set'
    return f'the plan may go up to {far:.3g} m along an axis: {", ".join(ranges)} m ({box})'


def read_episode(path: str, units: RobotConfig, alone: bool = False):
    """observations uint8 [T, H, W, 3] and states float32 [T, 7] of an npz file, and what may be
    wrong with them, in words.

    units: of the states as they are in the file.
    alone: one frame will do, as the goal is elsewhere.

    Raises:
      BadFile: no npz.
      InputError: names the array, what was found and what is allowed.
    """
    import numpy as np

    from jepa_jax.data import npz
    from jepa_jax.data.robot.contract import as_flag, opening_problem, rescaled, unit_problems

    if not path.endswith('.npz'):
        raise InputError(f'{path}: must be an .npz file with observations and states')
    if not units.metres > 0 or units.metres == float('inf'):
        raise InputError(f'--metres {units.metres:g}: must be more than 0')
    if any(units.gripper_range) and units.gripper_range[0] == units.gripper_range[1]:
        raise InputError('--gripper-range: the values when open and when closed must differ')
    arrays = npz.load_all(path)
    for name, axes, kind in (('observations', 5, np.uint8), ('states', 3, np.floating)):
        if name not in arrays:
            raise InputError(f'{path}: no array {name}; it holds {", ".join(arrays) or "nothing"}')
        a = arrays[name]
        shape = '[1, T, H, W, 3]' if axes == 5 else '[1, T, 7]'
        last = 3 if axes == 5 else 7
        if a.ndim != axes or len(a) != 1 or a.shape[-1] != last or not a.size:
            raise InputError(f'{path}: {name} has shape {list(a.shape)}, must have {shape}')
        if not np.issubdtype(a.dtype, kind):
            expected = 'uint8' if axes == 5 else 'float32'
            raise InputError(f'{path}: {name} is of type {a.dtype}, must be {expected}')
    if 'actions' in arrays and (arrays['actions'].shape or (0,))[-1] != 7:
        raise InputError(
            f'{path}: actions has shape {list(arrays["actions"].shape)}, must have [1, T - 1, 7]: '
            'a plan is of x, y, z, roll, pitch, yaw and gripper, as differences of states'
        )
    observations, states = arrays['observations'][0], arrays['states'][0]
    if len(observations) != len(states):
        raise InputError(
            f'{path}: {len(observations)} observations and {len(states)} states: must be as many'
        )
    if len(observations) < 2 - alone:
        raise InputError(f'{path}: 1 frame: must hold at least 2, where the robot is and the goal')
    if not np.isfinite(states).all():
        frame, entry = np.argwhere(~np.isfinite(states))[0]
        raise InputError(
            f'{path}: states[0, {frame}, {entry}] is {states[frame, entry]}: must be finite'
        )
    states = rescaled(path, states, units)
    if problems := unit_problems(states, units, as_flag):
        raise BadFile(path, 'bad_units', '; '.join(problems))
    opening = opening_problem([states[:, 6]], units, as_flag)
    if opening and len(states) >= RECORDING:  # of a few moments it may well be true
        raise BadFile(path, 'bad_units', opening)
    return observations, np.float32(states), [opening] if opening else []


def read_recording(
    model: str, fields: dict[str, Any], episode: int, first: int, last: int, alone: bool = False
):
    """observations uint8 [2, H, W, 3], frames `first` and `last` of an episode, states float32
    [T, 7] from the one to the other, and actions float32 [T - 1, 7] as the model saw them.

    fields: fields of RobotConfig; the others are those of the model's own recordings.
    alone: only frame `first`, [1, H, W, 3], as the goal is elsewhere.

    Raises:
      ConfigError: they are of another robot than the model's, or cannot be read so.
      InputError: an episode or frame that is not there.
      BadFile: the episode cannot be read.
    """
    import dataclasses

    import numpy as np

    from jepa_jax.data import robot
    from jepa_jax.data.robot.contract import as_flag
    from jepa_jax.planning.model import known

    trained = known(model)
    recordings = trained.recordings or RobotConfig()
    data = layouts.of_flags(dataclasses.replace(recordings, **layouts.in_place(fields)))
    trained.check(data)
    episodes = robot.open_recordings(data)
    if not 0 <= episode < len(episodes):
        raise InputError(f'--episode {episode}: {data.path} has 0 to {len(episodes) - 1}')
    try:
        read = episodes.episode(episode)
    except BadFile as error:
        if error.reason != 'bad_units':
            raise
        unchecked = robot.open_recordings(dataclasses.replace(data, check_units=False))
        states = unchecked.episode(episode).states  # said again, in flags of this command
        words = '; '.join(robot.unit_problems(states, data, as_flag))
        raise BadFile(episodes.name(episode), 'bad_units', words) from error
    frames: list = []

    def choose(timing) -> np.ndarray:
        frames.append(robot.kept(timing, data.fps))
        places = [first] if alone else [first, last % len(frames[0])]
        return frames[0][np.clip(places, 0, len(frames[0]) - 1)]

    observations = read.read(choose)
    count = len(frames[0])
    last = count - 1 if last == -1 else last
    if not 0 <= first < last + alone < count + alone:
        raise InputError(
            f'--from {first} --to {last}: {read.name} has frames 0 to {count - 1} at {data.fps:g} '
            'a second' + ('' if alone else ', and the goal comes later')
        )
    numbers = frames[0][first : last + 1]
    return observations, np.float32(read.states[numbers]), np.float32(read.actions(numbers))


def read_goal(path: str, observations):
    """An image [H, W, 3] uint8 of the size of the frames."""
    from jepa_jax.data import pictures

    image = pictures.read_image(path)
    if image.shape != observations.shape[1:]:
        raise InputError(
            f'{path}: the goal has {image.shape[1]} x {image.shape[0]} pixels, must have '
            f'{observations.shape[2]} x {observations.shape[1]} as the frames, from the same camera'
        )
    return image


def read_axes(text: str) -> tuple[int, int]:
    from jepa_jax.planning.energy import AXES

    names = text.split(',')
    if len(names) != 2 or names[0] == names[1] or not set(names) <= set(AXES):
        raise InputError(f"--axes '{text}': must be two of {', '.join(AXES)}, as dx,dz")
    return AXES.index(names[0]), AXES.index(names[1])


def main() -> int:
    return cli.run(run, doc=__doc__, tables=(), options=add_options)


if __name__ == '__main__':
    sys.exit(main())
