"""Closed-loop measurements: episodes in the simulator, with a planner or without.

A policy is a function of the episodes and of what they see; `measure` plays them to the end and
counts how many end well. This is simulation, of the scene that the data came from: it says nothing
about a real robot.
"""

from jepa_jax.sims.evaluate.episodes import Episodes as Episodes
from jepa_jax.sims.evaluate.episodes import measure as measure
from jepa_jax.sims.evaluate.judges import judge_cost as judge_cost
from jepa_jax.sims.evaluate.judges import judge_depth as judge_depth
from jepa_jax.sims.evaluate.judges import judge_dynamics as judge_dynamics
from jepa_jax.sims.evaluate.judges import judge_gripper as judge_gripper
from jepa_jax.sims.evaluate.judges import noisy_script as noisy_script
from jepa_jax.sims.evaluate.policies import Encode as Encode
from jepa_jax.sims.evaluate.policies import Policy as Policy
from jepa_jax.sims.evaluate.policies import TrueSimulator as TrueSimulator
from jepa_jax.sims.evaluate.policies import act_at_random as act_at_random
from jepa_jax.sims.evaluate.policies import do_nothing as do_nothing
from jepa_jax.sims.evaluate.policies import follow_script as follow_script
from jepa_jax.sims.evaluate.policies import in_parts as in_parts
from jepa_jax.sims.evaluate.policies import pixels as pixels
from jepa_jax.sims.evaluate.policies import plan_in_simulator as plan_in_simulator
from jepa_jax.sims.evaluate.policies import plan_with as plan_with
from jepa_jax.sims.evaluate.rows import animate_episodes as animate_episodes
from jepa_jax.sims.evaluate.rows import plot_energy as plot_energy
from jepa_jax.sims.evaluate.rows import plot_episodes as plot_episodes
from jepa_jax.sims.evaluate.rows import row as row
from jepa_jax.sims.evaluate.rows import verdict as verdict
