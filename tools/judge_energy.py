"""Whether a model's energy knows the recorded actions: a metric on a set of recordings.

    python -m tools.judge_energy --model runs/ac-vitg --kind npz --path FOLDER [--json FILE]

From pairs of frames, 1 / --fps seconds apart and evenly spread over the episodes: the later frame
is the goal, and actions are judged by the predicted distance from it. Prints, with 95 % intervals
over the pairs,

  still   share of pairs in which the recorded action has less energy than doing nothing
  rank    share of random actions that have more energy than the recorded one; 0.5 is chance
  order   rank correlation, over random actions, of energy with distance from the recorded action
  sign    on an axis, share of pairs in which the recorded action has less energy than the one with
          the opposite sign there; pairs that move by less than --least along it do not count

A closed loop lives by the signs: with them right it comes nearer with every step. The last line is
a verdict: `knows actions` (every sign and `still` above chance, intervals apart), `ignores actions`
(none of the figures above chance), or `partly`, with what is lacking. Recordings of another robot
than the run's own are refused.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from typing import TYPE_CHECKING, Any

from jepa_jax import cli
from jepa_jax.config import RobotConfig, layouts
from jepa_jax.errors import BadFile, ConfigError, DataError
from jepa_jax.workdir import room_for, write_json

if TYPE_CHECKING:
    import numpy as np

AXES = (0, 1, 2)  # x, y, z
BATCH = 16  # frames encoded together


def pairs(data: RobotConfig, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Frames uint8 [E, 2, H, W, 3], states [E, 2, 7] and actions [E, 7] of `count` pairs, in turn
    from every episode and spread over it, fewer where these repeat; and what could not be read.

    Raises:
      DataError: no episode can be read, or their frames differ in size.
    """
    import numpy as np

    from jepa_jax.data import robot

    recordings = robot.open_recordings(data)
    pieces, bad = {}, {}  # by episode and place: intervals are of pairs that differ
    rounds = -(-count // len(recordings))
    chosen = np.unique(np.linspace(0, len(recordings) - 1, min(count, len(recordings))).round())
    for turn in range(rounds):

        def draw(places: int, share: float = (turn + 0.5) / rounds) -> int:
            return int(share * places)

        for i in chosen.astype(int):
            if len(pieces) == count or i in bad:
                continue
            try:
                piece = robot.cut(recordings.episode(int(i)), 2, data.fps, draw)
            except (BadFile, OSError) as error:
                bad[i] = str(error)
            else:
                pieces[i, *piece.numbers] = piece
    if not pieces:
        raise DataError(f'{data.path}: no episode can be read: {next(iter(bad.values()))}')
    if len(sizes := {piece.frames.shape[1:3] for piece in pieces.values()}) > 1:
        words = ', '.join(f'{w} x {h}' for h, w in sorted(sizes))
        raise DataError(f'{data.path}: pictures of {words} pixels: must be of one size')
    names = 'frames', 'states', 'actions'
    stacked = [np.stack([getattr(piece, k) for piece in pieces.values()]) for k in names]
    return stacked[0], stacked[1], stacked[2][:, 0], list(bad.values())


def judge(agent, frames, states, actions, cost, *, samples: int, bound: float, seed: int = 0):
    """planning.energy.judge_actions on pairs of frames; see there."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jepa_jax.planning.energy import judge_actions
    from jepa_jax.planning.world_model import Context, Goal

    E, _, H, W, _ = frames.shape
    seen = agent.fit(frames.reshape(2 * E, H, W, 3))
    fill = np.zeros((-len(seen) % BATCH, *seen.shape[1:]), np.uint8)
    parts = np.concatenate([seen, fill]).reshape(-1, BATCH, *seen.shape[1:])
    features = jnp.concatenate([agent.encode(part) for part in parts])[: 2 * E]
    features = features.reshape(E, 2, *features.shape[1:])
    contexts = Context(features[:, :1], jnp.asarray(states[:, :1]))
    goals = Goal(features[:, 1], jnp.asarray(states[:, 1]))
    return judge_actions(
        agent.world_model, contexts, goals, jnp.asarray(actions), jax.random.key(seed),
        cost=cost, axes=AXES, bound=bound, samples=samples,
    )  # fmt: skip


def summarise(judged: dict[str, np.ndarray], actions: np.ndarray, least: float) -> dict[str, Any]:
    """Means over pairs and their 95 % intervals: of shares Wilson's, of the others by the normal
    approximation."""
    import numpy as np

    from jepa_jax.data.robot import STATE
    from jepa_jax.evals.intervals import wilson

    def share(won: np.ndarray) -> dict[str, float]:
        low, high = wilson(won.sum(), len(won))
        middle = float(won.mean()) if len(won) else float('nan')
        return {'mean': middle, 'low': low, 'high': high, 'pairs': len(won)}

    def mean(values: np.ndarray) -> dict[str, float]:
        half = 1.96 * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float('nan')
        middle = float(values.mean())
        ends = {'low': middle - float(half), 'high': middle + float(half)}
        return {'mean': middle, **ends, 'pairs': len(values)}

    result = {
        'still': share(judged['energy'] < judged['still']),
        'rank': mean(judged['rank']),
        'order': mean(judged['order']),
    }
    for column, axis in enumerate(AXES):
        moves = np.abs(actions[:, axis]) >= least
        result[f'sign {STATE[axis]}'] = share(judged['sign'][moves, column])
    return result


def verdict(rows: dict[str, Any]) -> tuple[str, str]:
    """A word for `summarise`'s rows, and the sentence that says why."""
    chance = {name: 0.0 if name == 'order' else 0.5 for name in rows}
    seen = {name: row for name, row in rows.items() if row['pairs']}
    above = [name for name, row in seen.items() if row['low'] > chance[name]]
    needed = ['still', *(name for name in rows if name.startswith('sign'))]
    lacking = [name for name in needed if name not in above]
    if not above:
        return 'ignores actions', 'no figure is above chance with its interval'
    if not lacking:
        return 'knows actions', 'doing nothing and the wrong sign on every axis cost more'
    words = [
        f'{name} {seen[name]["mean"]:.2f} ({seen[name]["low"]:.2f} to {seen[name]["high"]:.2f})'
        if name in seen
        else f'{name}: no pair moves along it'
        for name in lacking
    ]
    return 'partly', f'not above chance: {"; ".join(words)}'


def run(
    model: str,
    pair_count: int,
    samples: int,
    bound: float,
    least: float,
    cost: str,
    encoder: str,
    dtype: str,
    seed: int,
    crop: int,
    json_file: str | None,
    **fields: Any,
) -> None:
    """Reads, judges, prints."""
    from jepa_jax import start
    from jepa_jax.plan import COSTS
    from jepa_jax.planning.model import known, load
    from jepa_jax.planning.world_model import Cost

    if pair_count < 2:
        raise ConfigError(f'--pairs {pair_count}: must be at least 2')
    if samples < 2:
        raise ConfigError(f'--samples {samples}: must be at least 2')
    if not 0 < bound < math.inf:
        raise ConfigError(f'--bound {bound:g}: must be finite and more than 0 metres')
    if json_file:
        room_for('--json', json_file)
    data = layouts.of_flags(RobotConfig(**fields))
    known(model).check(data)
    frames, states, actions, bad = pairs(data, pair_count)
    start.compilation_cache()
    # a random model is made for squares, as training makes them
    size = (crop, crop) if model.startswith('random:') else frames.shape[2:4]
    agent = load(model, size=size, encoder=encoder, dtype=dtype, seed=seed)
    for line in (*agent.about, *(f'cannot be read: {text}' for text in bad)):
        print(line)
    judged = judge(
        agent, frames, states, actions, Cost(COSTS[cost]), samples=samples, bound=bound, seed=seed
    )
    result = summarise(judged, actions, least)
    drawn = f'{len(actions)} pairs'
    drawn += f' of the {pair_count} asked for' if len(actions) < pair_count else ''
    print(f'{drawn}, {cost} cost, {samples} random actions within {bound:g} m each')
    for name, row in result.items():
        few = '' if row['pairs'] == len(actions) else f', {row["pairs"]} pairs'
        print(f'{name:8} {row["mean"]:7.3f}  ({row["low"]:.3f} to {row["high"]:.3f}{few})')
    word, why = verdict(result)
    print(f'{word}: {why}')
    if json_file:
        settings = {'model': model, **dataclasses.asdict(data), 'cost': cost, 'samples': samples}
        rows = {  # JSON has no NaN: the mean of no pairs
            name: {key: None if math.isnan(value) else value for key, value in row.items()}
            for name, row in result.items()
        }
        write_json(json_file, {**settings, **rows, 'verdict': word, 'why': why})


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--model', required=True, metavar='NAME_OR_PATH', help='name or path, or random:SIZE')
    cli.add_fields(parser, RobotConfig, but=('frames',))
    add('--pairs', type=int, default=64, metavar='N', dest='pair_count', help='of frames')
    add('--samples', type=int, default=64, metavar='N', help='random actions (%(default)s)')
    add('--bound', type=float, default=0.075, metavar='M', help='of random actions (%(default)s)')
    add('--least', type=float, default=0.005, metavar='M',
        help='a motion along an axis that counts for its sign (%(default)s)')  # fmt: skip
    add('--cost', default='l1', choices=('l1', 'l2'), help='distance of features')
    add('--encoder', default='target', choices=('target', 'online'), help='of a run with both')
    add('--dtype', default='float32', choices=('float32', 'bfloat16'), help='of products')
    add('--crop', type=int, default=256, metavar='PIXELS', help='for random models (%(default)s)')
    add('--seed', type=int, default=0, metavar='N', help='of the random actions')
    add('--json', metavar='FILE', dest='json_file', help='write the figures (no file)')


def main() -> int:
    return cli.run(run, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
