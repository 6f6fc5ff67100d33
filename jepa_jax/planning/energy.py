"""The energy around a plan: landscapes, figures of merit on recorded actions, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jepa_jax import page
from jepa_jax.planning.world_model import Context, Cost, Goal, WorldModel, energies

AXES = ('dx', 'dy', 'dz', 'droll', 'dpitch', 'dyaw', 'dgripper')
UNITS = ('m', 'm', 'm', 'rad', 'rad', 'rad', 'closedness')


def landscape(
    world_model: WorldModel,
    context: Context,
    goal: Goal,
    cost: Cost,
    *,
    axes: tuple[int, int],
    values: np.ndarray,
    around: np.ndarray,
) -> np.ndarray:
    """Energies of one action over a grid of two of its numbers.

    axes: places of the two in the action; values [n] that each takes; around [U]: what the other
    numbers are. -> [n, n], the first axis along rows. (reference: vjepa2 §8.4, which sums over a
    third axis)
    """
    first, second = np.meshgrid(values, values, indexing='ij')
    actions = np.tile(np.asarray(around, np.float32), (first.size, 1, 1))
    actions[:, 0, axes[0]], actions[:, 0, axes[1]] = first.ravel(), second.ravel()
    grid = jax.jit(energies, static_argnames='cost')(
        world_model, context, goal, jnp.asarray(actions), cost=cost
    )
    return np.asarray(grid).reshape(first.shape)


def judge_actions(
    world_model: WorldModel,
    contexts: Context,
    goals: Goal,
    actions: jax.Array,
    key: jax.Array,
    *,
    cost: Cost,
    axes: Sequence[int] = (0, 1, 2),
    bound: float = 0.075,
    samples: int = 64,
) -> dict[str, np.ndarray]:
    """Whether the energy knows the recorded action, on E pairs of consecutive frames.

    contexts, goals: with a leading axis E; actions [E, U] recorded between them; axes: places that
    are judged; bound: the others' greatest size. Returns, [E] each:
      energy, still: of the recorded action, and of doing nothing.
      rank: share of random actions with more energy than the recorded one; 0.5 is chance.
      order: Spearman correlation, over random actions, of energy with distance from the recorded.
      sign [E, len(axes)]: on each axis, whether the recorded action has less energy than the one
        with the opposite sign there, which is what a closed loop lives by.
    """
    axes = jnp.asarray(axes)

    def one(episode):
        context, goal, action, key = episode
        drawn = jax.random.uniform(key, (samples, len(axes)), minval=-bound, maxval=bound)
        random = jnp.tile(action, (samples, 1)).at[:, axes].set(drawn)
        flipped = jnp.tile(action, (len(axes), 1))
        flipped = flipped.at[jnp.arange(len(axes)), axes].multiply(-1)
        tried = jnp.concatenate([action[None], jnp.zeros_like(action)[None], flipped, random])
        costs = energies(world_model, context, goal, tried[:, None], cost)
        others = costs[2 + len(axes) :]
        apart = jnp.linalg.norm(drawn - action[axes], axis=-1)
        ranks = [jnp.argsort(jnp.argsort(a)).astype(jnp.float32) for a in (others, apart)]
        return {
            'energy': costs[0],
            'still': costs[1],
            'rank': (others > costs[0]).mean(),
            'order': jnp.corrcoef(*ranks)[0, 1],
            'sign': costs[2 : 2 + len(axes)] > costs[0],
        }

    keys = jax.random.split(key, len(actions))
    run = jax.jit(lambda *episodes: jax.lax.map(one, episodes))
    return jax.device_get(run(contexts, goals, actions, keys))


def draw_landscape(
    field: np.ndarray,
    values: np.ndarray,
    axes: tuple[int, int],
    path: str | Path,
    *,
    title: str,
    marks: dict[str, np.ndarray],
) -> None:
    """A landscape as PNG, with a colour bar and marks: name -> action [U]."""
    figure = Figure(figsize=(7.4, 5.8), layout='constrained')
    plot = figure.add_subplot()
    half = (values[1] - values[0]) / 2
    span = (values[0] - half, values[-1] + half)
    image = plot.imshow(field.T, origin='lower', extent=(*span, *span), cmap='viridis')
    figure.colorbar(image, ax=plot, label='energy: predicted distance from the goal')
    lowest = np.unravel_index(field.argmin(), field.shape)
    points = {'least energy on the grid': [values[i] for i in lowest]}
    points |= {name: [action[axis] for axis in axes] for name, action in marks.items()}
    styles = (('s', 'none', 'magenta'), ('*', 'red', 'white'), ('X', 'orange', 'black'))
    for (name, at), (marker, face, edge) in zip(points.items(), (*styles, ('P', 'cyan', 'black'))):
        inside = np.clip(at, *span)
        label = name if np.array_equal(inside, at) else f'{name} (beyond the edge)'
        if name in marks:  # as an arrow from doing nothing
            plot.annotate('', inside, (0, 0), arrowprops={'arrowstyle': '->', 'color': face})
        plot.plot(
            *inside, marker, markersize=13, markerfacecolor=face, markeredgecolor=edge,
            linestyle='none', label=label, clip_on=False,
        )  # fmt: skip
    plot.set_xlim(span)
    plot.set_ylim(span)
    for scale in (plot.xaxis, plot.yaxis):
        scale.set_major_locator(MaxNLocator(7))
    plot.set_xlabel(f'{AXES[axes[0]]} ({UNITS[axes[0]]})')
    plot.set_ylabel(f'{AXES[axes[1]]} ({UNITS[axes[1]]})')
    figure.legend(loc='outside lower center', ncols=2, fontsize=8)
    figure.suptitle(title, fontsize=10)
    page.save_figure(figure, path)


def draw_plan(
    start: np.ndarray,
    goal: np.ndarray,
    diagnostics: dict[str, np.ndarray],
    actions: np.ndarray,
    path: str | Path,
    *,
    title: str,
) -> None:
    """The first frame and the goal [H, W, 3], the energy over the iterations, and the actions
    [H, 7], an axis for each unit, as PNG."""
    figure = Figure(figsize=(15, 3.6), layout='constrained')
    plots = figure.subplots(1, 6, width_ratios=(1, 1, 1.2, 0.7, 0.7, 0.4))
    for plot, image, name in zip(plots, (start, goal), ('now', 'goal')):
        plot.imshow(image)
        plot.set_title(name, fontsize=10)
        plot.set_xticks([])
        plot.set_yticks([])
    iterations = np.arange(1, len(diagnostics['best']) + 1)
    plots[2].plot(iterations, diagnostics['energies'], '.-', label='mean of those kept')
    plots[2].plot(iterations, diagnostics['best'], '.-', label='best sample')
    plots[2].axhline(diagnostics['energy'], color='k', lw=1, ls='--', label='the plan')
    plots[2].set_title('predicted energy', fontsize=10)
    plots[2].set_xlabel('iteration')
    plots[2].set_ylabel('distance from the goal')
    plots[2].grid(alpha=0.3)
    plots[2].legend(fontsize=8)
    width = 0.8 / len(actions)
    for plot, unit in zip(plots[3:], ('m', 'rad', 'closedness')):
        places = [i for i, u in enumerate(UNITS) if u == unit]
        for h, action in enumerate(actions):
            at = np.arange(len(places)) + (h - (len(actions) - 1) / 2) * width
            plot.bar(at, action[places], width, label=f'{h + 1}')
        most = 1.2 * max(np.abs(actions[:, places]).max(), 1e-3)
        plot.set_ylim(-most, most)
        plot.axhline(0, color='k', lw=0.5)
        plot.set_xticks(range(len(places)), [AXES[i] for i in places], rotation=45, fontsize=8)
        plot.set_title(unit, fontsize=9)
        plot.tick_params(axis='y', labelsize=7)
        plot.grid(alpha=0.3, axis='y')
    plot.legend(title='step', fontsize=8, title_fontsize=8)
    figure.suptitle(title, fontsize=10)
    page.save_figure(figure, path)
