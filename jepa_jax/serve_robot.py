"""A planner that answers over HTTP, for a robot whose own program runs elsewhere.

    python -m jepa_jax.serve_robot --model runs/ac-vitg --workspace 0.3,0.7,-0.3,0.3,0.02,0.4

    POST /goal  body: an .npz with `image` uint8 [H, W, 3]; `state` [7] with --state-weight or
                --gripper-weight; `extrinsics` [6], the camera's pose, for a run with
                robot.frame = 'camera'
    POST /step  body: an .npz with `image`, `state` [7] and, if it is not 0, `age` in seconds;
                what it then waits for its turn counts, too
    GET  /      what is served

The answers are JSON; that of /step has verdict, why, action, target, energy, still, distance and
seconds (see jepa_jax.planning.controller.Step). What cannot be answered has status 400 and the
reason as `error`: nothing should move then. examples/robot_client.py is a client.

It listens on this machine alone unless --host says otherwise. There is no password: whoever reaches
the port can ask for plans and set the goal.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from jepa_jax import cli
from jepa_jax.errors import BadFile, ConvertError, PlanError, UsageError
from jepa_jax.plan import COSTS, PLANNERS
from jepa_jax.weights import names

ARRAYS = ('image', 'state', 'age', 'extrinsics')  # of a request
LARGEST = 2**26  # bytes of a request: two pictures of 3,300 x 3,300


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--model', required=True, help='name or path of a model that predicts actions, or '
        'random:SIZE, such as random:tiny')  # fmt: skip
    add('--workspace', type=cli.numbers(6), required=True, metavar='X0,X1,Y0,Y1,Z0,Z1',
        help="a box in the robot's unit of length that no plan leaves")  # fmt: skip
    add('--host', default='127.0.0.1', help='address to listen on')
    add('--port', type=int, default=8765, help='0: any that is free')
    add('--planner', default='cem', choices=PLANNERS, help='how plans are searched')
    add('--samples', type=int, default=400, help='action sequences tried in an iteration')
    add('--iterations', type=int, default=10, help='of the search')
    add('--horizon', type=int, default=1, help='actions in a plan, of which the first is given')
    add('--elites', type=int, default=10, help='cem: samples kept of an iteration')
    add('--max-step', type=float, default=0.05, help='metres an action may move along an axis')
    add('--cost', default='l1', choices=COSTS, help='distance of features')
    add('--state-weight', type=float, default=0.0, help='of the distance between states')
    add('--gripper-weight', type=float, default=0.0, help='of the distance between how far the '
        'gripper is closed and is at the goal')  # fmt: skip
    add('--gain', type=float, default=0.01, help='share of the energy of doing nothing by which a '
        'plan must be better, or the robot holds')  # fmt: skip
    add('--patience', type=int, default=3, help='times in a row that it holds before it has '
        'arrived')  # fmt: skip
    add('--max-age', type=float, default=0.0, help='seconds that a picture may be old; 0: as long '
        'as an action takes')  # fmt: skip
    for name, kind, text in (
        ('metres', float, "that a unit of the robot's positions is"),
        ('angles', str, 'radians or degrees'),
        ('gripper', str, 'what 1 means: closed or open'),
        ('gripper_range', cli.numbers(2), 'values of the gripper when open and when closed'),
    ):
        add(f'--{name.replace("_", "-")}', dest=name, type=kind, default=None,
            help=f"{text} (as in the run's recordings)")  # fmt: skip
    add('--encoder', default='target', choices=('target', 'online'), help='of two kept by a run')
    add('--dtype', default='float32', choices=('float32', 'bfloat16'),
        help='of products')  # fmt: skip
    add('--force', action='store_true', help='answer with plans also if the model ignores actions')
    add('--seed', type=int, default=0, help='of the search')


def run(
    model: str, host: str, port: int, encoder: str, dtype: str, seed: int,
    cost: str, state_weight: float, gripper_weight: float, max_age: float, force: bool,
    workspace: tuple[float, ...],
    metres: float | None, angles: str | None, gripper: str | None,
    gripper_range: tuple[float, float] | None, **settings: Any,
) -> None:  # fmt: skip
    """Loads, listens, and answers until it is interrupted."""
    names.check(model)
    if not 0 <= port < 2**16:
        raise UsageError(f'--port {port}: must be from 0 to 65535')
    from jepa_jax import start
    from jepa_jax.planning.controller import Robot
    from jepa_jax.planning.world_model import Cost

    measure = Cost(COSTS[cost], state_weight=state_weight, gripper_weight=gripper_weight)
    start.logging_to_terminal()
    start.compilation_cache()
    units = {'metres': metres, 'angles': angles, 'gripper': gripper, 'gripper_range': gripper_range}
    units = {name: value for name, value in units.items() if value is not None}
    robot = Robot.load(model, encoder=encoder, dtype=dtype, seed=seed, **units)
    settings |= {
        'workspace': workspace,
        'cost': measure,
        'max_age': max_age or None,
        'force': force or model.startswith('random:'),
        'seed': seed,
    }
    robot.check(settings)
    try:
        server = serve(robot, settings, host, port)
    except OSError as error:
        raise UsageError(f'--host {host} --port {port}: {error.strerror}') from error
    print(robot)
    print(f'listening on http://{host}:{server.server_port}', flush=True)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print('stopped')


def serve(robot, settings: dict[str, Any], host: str, port: int) -> ThreadingHTTPServer:
    """A server that is bound and not yet serving; settings: of Robot.controller."""
    import numpy as np

    lock = threading.Lock()  # one robot: requests take turns
    controllers: list = []

    def goal(arrays: dict[str, Any], _: float) -> dict[str, Any]:
        state, camera = arrays.get('state'), arrays.get('extrinsics')
        if controllers:
            controllers[0].reset(arrays['image'], state, camera)
            return {'compile_seconds': 0.0}
        controllers.append(
            robot.controller(arrays['image'], goal_state=state, extrinsics=camera, **settings)
        )
        return {'compile_seconds': controllers[0].compile_seconds}

    def step(arrays: dict[str, Any], waited: float) -> dict[str, Any]:
        if not controllers:
            raise PlanError('no goal: POST /goal first')
        if 'state' not in arrays:
            raise PlanError('no array state')
        if 'extrinsics' in arrays:
            raise PlanError('array extrinsics: goes with POST /goal, the camera stands still')
        age = arrays.get('age', np.float64(0))
        if age.shape or age.dtype.kind not in 'fiu':
            raise PlanError(f'age: {age.dtype} {list(age.shape)}, must be one number')
        answer = controllers[0].step(arrays['image'], arrays['state'], age=float(age) + waited)
        values = vars(answer).items()
        return {k: v.tolist() if hasattr(v, 'tolist') else v for k, v in values}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'  # one connection for all steps
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if self.path != '/':
                return self._answer(404, {'error': f'{self.path}: allowed are GET /, POST /goal, '
                                                   '/step'})  # fmt: skip
            self._answer(200, {'model': robot.name, 'about': repr(robot), 'rate': robot.rate})

        def do_POST(self) -> None:
            way = {'/goal': goal, '/step': step}.get(self.path)
            length = self.headers.get('Content-Length', '')
            if way is None or not length.isdecimal() or int(length) > LARGEST:
                self.close_connection = True  # the body is not read
                words = f'{self.path}, {length or "no"} bytes: allowed are /goal and /step, at most'
                return self._answer(400, {'error': f'{words} {LARGEST} bytes'})
            body, came = self.rfile.read(int(length)), time.monotonic()
            try:
                answer = self._ask(way, body, came)
            except (BadFile, PlanError, ConvertError) as error:
                return self._answer(400, {'error': str(error)})
            self._answer(200, answer)

        def _ask(self, way, body: bytes, came: float) -> dict[str, Any]:
            from jepa_jax.data import npz

            arrays = npz.read_all('request', io.BytesIO(body), len(body))
            if unknown := sorted(arrays.keys() - ARRAYS):
                raise PlanError(f'array {unknown[0]}: allowed are {", ".join(ARRAYS)}')
            if 'image' not in arrays:
                raise PlanError('no array image')
            with lock:
                return way(arrays, time.monotonic() - came)

        def _answer(self, status: int, values: dict[str, Any]) -> None:
            body = json.dumps(values).encode()
            self.send_response(status)
            self.send_header('Content-Type', 'application/json')
            self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Not a line for every step."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that is gone is no fault of ours; everything else has its traceback."""
            if isinstance(sys.exc_info()[1], ConnectionError):
                print(f'{client_address[0]} left before it was answered', file=sys.stderr)
            else:
                super().handle_error(request, client_address)

    return Server((host, port), Handler)


def main() -> int:
    return cli.run(run, doc=__doc__, tables=(), options=add_options)


if __name__ == '__main__':
    sys.exit(main())
