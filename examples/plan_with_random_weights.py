"""A plan from a start image to a goal image, with the parts of the planner in one's own hands.

    python examples/plan_with_random_weights.py [--model random:tiny]

With random weights the plan means nothing: it shows what goes in and what comes out. With
`ac-vitg`, or a run of `jepa train --config=ac_vitg`, give pictures of your own robot.
"""

import argparse

import jax
import numpy as np

from jepa_jax.planning.cem import CEM, end_effector
from jepa_jax.planning.model import load
from jepa_jax.planning.world_model import Context, Cost, Goal


def main(argv: list[str] | None = None) -> tuple[np.ndarray, dict]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='random:tiny', help='name or path (%(default)s)')
    options = parser.parse_args(argv)

    # where the robot is and what it should look like: a bright square that is to move right
    images = np.full((2, 32, 32, 3), 60, np.uint8)
    images[0, 12:20, 4:12] = images[1, 12:20, 20:28] = 220
    # x, y, z in metres, roll, pitch, yaw in radians, closedness of the gripper
    state = np.array([[0.4, 0.0, 0.3, np.pi, 0.0, 0.0, 0.0]], np.float32)

    model = load(options.model, size=images.shape[1:3])
    print('\n'.join(model.about))
    features = model.encode(model.fit(images))  # [2, N, D]
    planner = CEM(
        space=end_effector(0.05, workspace=(0.3, 0.6, -0.3, 0.3, 0.1, 0.5), start=state[0, :3]),
        cost=Cost(exponent=1),
        samples=32,
        elites=4,
        iterations=3,
        horizon=2,
    )
    solve = jax.jit(planner.solve)  # compiled once, for every plan of these shapes
    actions, diagnostics = solve(
        model.world_model, Context(features[:1], state), Goal(features[1], None), jax.random.key(0)
    )
    actions, diagnostics = np.asarray(actions), jax.device_get(diagnostics)
    print(f'energies of the search: {diagnostics["energies"]}')
    print(f'actions, x y z roll pitch yaw gripper:\n{actions.round(4)}')
    return actions, diagnostics


if __name__ == '__main__':
    main()
