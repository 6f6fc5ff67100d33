# %% [markdown]
# # The energy around an action
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/jepa_jax/blob/main/docs/energy_landscape.ipynb)
#
# Planning with V-JEPA 2 looks for the action whose predicted features come nearest to those of a
# goal image. That distance is the *energy*. Two things have to be right for it: the encoder must
# tell places apart, and the predictor must know where an action leads. Here both are looked at
# alone, offline, on a CPU, with a robot that is drawn.

# %%
import dataclasses
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax import poses  # in Colab first: !pip install git+https://github.com/OWNER/jepa_jax
from jepa_jax.planning import energy
from jepa_jax.planning.cem import CEM, end_effector
from jepa_jax.planning.model import load
from jepa_jax.planning.world_model import Context, Cost, Goal

# random weights: nothing is trained. Of the release: 'ac-vitg'; of your own robot: a run's folder
MODEL = 'random:tiny'
FOLDER = Path(tempfile.mkdtemp())


def show(path):
    """The picture here in a notebook, its path in a script."""
    if 'get_ipython' in globals():
        from IPython.display import Image, display

        display(Image(filename=str(path)))
    else:
        print(path)


# %% [markdown]
# ## A robot
#
# A state has seven numbers: x, y, z in metres, three angles, how closed the gripper is. The gripper
# is a disc whose place is x and y and whose size is z, seen from above.

# %%
SIZE = 64  # pixels, of one metre


def draw(states):
    """States [..., 7] -> pictures [..., SIZE, SIZE, 3], 0..1."""
    row, column = (jnp.mgrid[:SIZE, :SIZE] + 0.5) / SIZE - 0.5
    x, y, z = (states[..., i, None, None] for i in range(3))
    apart = jnp.hypot(row - x, column - y)
    inside = jnp.clip((0.4 * z - apart) * SIZE + 0.5, 0, 1)[..., None]
    table = 0.3 + 0.1 * jnp.sin(20 * row) * jnp.sin(26 * column)
    return (1 - inside) * table[..., None] + inside * jnp.array([0.9, 0.6, 0.2])


def as_bytes(pictures):
    return np.round(255 * np.asarray(pictures)).astype(np.uint8)


start = jnp.array([-0.10, 0.05, 0.3, np.pi, 0, 0, 0.5])
true_action = jnp.array([0.04, -0.03, 0, 0, 0, 0, 0])
goal = poses.apply(start, true_action)
frames = as_bytes(draw(jnp.stack([start, goal])))

# %% [markdown]
# ## A model

# %%
agent = load(MODEL, size=(SIZE, SIZE))
print('\n'.join(agent.about))
features = agent.encode(frames)
context, target = Context(features[:1], start[None]), Goal(features[1])

# %% [markdown]
# ## The encoder alone: a predictor that is always right
#
# Anything with a `rollout` is a world model. This one knows the robot: it draws where each action
# leads, and encodes that. What is left is the encoder's part of the energy.


# %%
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawn:
    """Where actions lead, drawn and encoded."""

    def rollout(self, context, actions):
        state, states = jnp.broadcast_to(context.states[-1], (len(actions), 7)), []
        for step in range(actions.shape[1]):
            state = poses.apply(state, actions[:, step])
            states.append(state)
        states = jnp.stack(states, axis=1)  # [S, H, 7]
        pixels = jnp.round(255 * draw(states)).astype(jnp.uint8)
        encoded = agent.encode(pixels.reshape(-1, SIZE, SIZE, 3))
        return encoded.reshape(*states.shape[:2], *encoded.shape[1:]), states


VALUES = np.linspace(-0.075, 0.075, 15)
AXES = (0, 1)  # x and y


def landscape(world_model, title, name):
    """Draws the energy of actions in x and y; returns it, [15, 15]."""
    settings = dict(axes=AXES, values=VALUES, around=np.zeros(7, np.float32))
    field = energy.landscape(world_model, context, target, Cost(), **settings)
    marks = {'true action': np.asarray(true_action)}
    path = FOLDER / f'{name}.png'
    energy.draw_landscape(field, VALUES, AXES, path, title=title, marks=marks)
    show(path)
    return field


drawn = landscape(Drawn(), f'{MODEL}, every action drawn', 'drawn')

# %% [markdown]
# A bowl whose lowest place is the true action: even random features tell these pictures apart, and
# smoothly. A planner finds the action through it:

# %%
planner = CEM(end_effector(0.075), horizon=1, samples=64, iterations=6, elites=8)
solve = jax.jit(planner.solve)
planned, _ = solve(Drawn(), context, target, jax.random.key(0))
for name, action in (('true', true_action), ('planned', planned[0])):
    print(f'{name:8} x {action[0]:+.3f}  y {action[1]:+.3f}  z {action[2]:+.3f} m')

# %% [markdown]
# ## With the model's own predictor
#
# The predictor has to know all this from the features of one picture, the state and the action. An
# untrained one does not: its landscape has nothing to do with the true action. Look at the scale,
# too: where the energy hardly differs between actions, the predictor ignores them.

# %%
learned = landscape(agent.world_model, f"{MODEL}, the model's predictor", 'learned')
for name, field in (('drawn', drawn), ('predicted', learned)):
    x, y = (VALUES[i] for i in np.unravel_index(field.argmin(), field.shape))
    spread = (field.max() - field.min()) / field.mean()
    print(
        f'{name:10} least energy at x {x:+.3f} y {y:+.3f} m; it differs by {spread:.1%} of its mean'
    )

# %% [markdown]
# `python -m jepa_jax.plan` draws this landscape for recordings of your own, and says when a plan
# should not be used; `python -m tools.judge_energy` asks it of many recorded actions.
