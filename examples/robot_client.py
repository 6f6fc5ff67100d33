"""Asks a planner of `python -m jepa_jax.serve_robot` what to do; needs NumPy alone.

from robot_client import Planner

planner = Planner('http://127.0.0.1:8765')
planner.goal(picture)                          # uint8 [H, W, 3] from the robot's camera
step = planner.step(picture, pose)             # pose [7]
if step['verdict'] == 'move':
    robot.go_to(step['target'])
"""

import http.client
import io
import json
import urllib.parse

import numpy as np


class Planner:
    def __init__(self, address: str, timeout: float = 300.0):
        """timeout: in seconds; the first goal is answered after compiling."""
        self._connection = http.client.HTTPConnection(
            urllib.parse.urlsplit(address).netloc, timeout=timeout
        )

    def goal(self, image, state=None, extrinsics=None) -> dict:
        more = {'state': state, 'extrinsics': extrinsics}
        more = {name: value for name, value in more.items() if value is not None}
        return self._post('/goal', image=image, **more)

    def step(self, image, state, age: float = 0.0) -> dict:
        return self._post('/step', image=image, state=state, age=age)

    def _post(self, path: str, **arrays) -> dict:
        body = io.BytesIO()
        np.savez(body, **arrays)
        self._connection.request('POST', path, body.getvalue())
        answer = json.load(response := self._connection.getresponse())
        if response.status != 200:
            raise RuntimeError(answer['error'])
        return answer
