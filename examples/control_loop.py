"""Closes the loop on the simulated arm, through what a robot's own program would call and nothing
else.

    python examples/control_loop.py --model runs/sim-panda --episodes 10
    python examples/control_loop.py --model http://127.0.0.1:8765      # the same, from a server

The arm reaches for a place that a picture shows. Needs `pip install 'jepa_jax[sim]'` and a model
that was trained on the simulator, such as that of `configs/sim_panda.py:ci`.
"""

import argparse
import statistics
import sys
import time

import numpy as np
from robot_client import Planner

import jepa_jax
from jepa_jax.errors import PlanError, ZooError

try:
    from jepa_jax.sims.panda import WORKSPACE
    from jepa_jax.sims.tasks import NEAR, PandaEnv
except ModuleNotFoundError as missing:
    raise SystemExit(f'error: {missing}') from None


class Local:
    """The model in this process, with the two calls of the client."""

    def __init__(self, name: str, size: int):
        self._robot = jepa_jax.Robot.load(name, size=(size, size))
        self._controller = None

    def goal(self, image) -> None:
        if self._controller:
            return self._controller.reset(image)
        box = WORKSPACE.T.ravel().tolist()
        self._controller = self._robot.controller(
            image, workspace=box, samples=64, iterations=4, max_step=0.075
        )

    def step(self, image, state) -> dict:
        return vars(self._controller.step(image, state))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', required=True, help='run, or address of a server')
    parser.add_argument('--episodes', type=int, default=10, help='(%(default)s)')
    parser.add_argument('--size', type=int, default=64, help='pixels of a picture (%(default)s)')
    asked = parser.parse_args()
    remote = asked.model.startswith('http:')
    planner = Planner(asked.model) if remote else Local(asked.model, asked.size)
    ends, taken = [], []
    for episode in range(asked.episodes):
        env = PandaEnv('reach', asked.size)
        seen, _ = env.reset(seed=10_000 + episode)
        planner.goal(seen['goal_image'])
        verdicts, ended = [], False
        while not ended:
            began = time.monotonic()
            step = planner.step(seen['image'], seen['state'])
            taken.append(time.monotonic() - began)
            verdicts.append(step['verdict'])
            seen, _, _, ended, info = env.step(np.asarray(step['action']))
        env.close()
        ends.append(info['distance'])
        print(f'episode {episode}: {100 * ends[-1]:.1f} cm from the goal; {", ".join(verdicts)}')
    near = sum(end < NEAR for end in ends)
    print(
        f'{near} of {len(ends)} within {100 * NEAR:g} cm; a step took '
        f'{1000 * statistics.median(taken):.0f} ms in the median'
    )


if __name__ == '__main__':
    try:
        main()
    except ConnectionError as error:
        sys.exit(f'error: no server answers: {error}; start one: jepa serve-robot')
    except (PlanError, ZooError, RuntimeError) as error:  # of the model here, or of the server
        sys.exit(f'error: {error}')
