"""MuJoCo, imported as this machine can draw with it, and where it draws.

Physics needs the `mujoco` wheel alone; pictures need OpenGL, which a machine without a screen has
from EGL (libegl1 and libgl1-mesa-dri of Debian and Ubuntu, software is enough). Import `mujoco`
from here: it chooses how it draws when it is imported first.
"""

from __future__ import annotations

import concurrent.futures
import ctypes.util
import os
import sys

import numpy as np

from jepa_jax.errors import SimError

# MuJoCo looks for a screen unless told otherwise before its import, which fails where EGL is named
# and absent
if sys.platform == 'linux' and 'mujoco' not in sys.modules and ctypes.util.find_library('EGL'):
    os.environ.setdefault('MUJOCO_GL', 'egl')
# Mesa draws in software with threads of its own, which small pictures only wait for: without them
# one takes 3.4 ms in place of 10 to 17 on two busy cores
os.environ.setdefault('LP_NUM_THREADS', '0')

try:
    import mujoco
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "the simulated robot needs MuJoCo: pip install 'jepa_jax[sim]'", name=missing.name
    ) from missing

# An OpenGL context belongs to one thread; callers may be on any, such as one of a JAX callback
_thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix='mujoco-draws')


class Camera:
    """A fixed camera of a model, and what it sees."""

    def __init__(self, model: mujoco.MjModel, name: str, size: int):
        """size: pixels of the square picture; the model draws with twice as many along an edge."""
        self._model, self._size = model, size
        self._scene: mujoco.MjvScene | None = None
        self._view = mujoco.MjvCamera()
        self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._view.fixedcamid = model.camera(name).id

    def draw(self, data: mujoco.MjData) -> np.ndarray:
        """A picture uint8 [size, size, 3], averaged from one of twice the size.

        Raises:
          SimError: there is no OpenGL on this machine.
        """
        return _thread.submit(self._draw, data).result()

    def _draw(self, data: mujoco.MjData) -> np.ndarray:
        if self._scene is None:
            self._scene = mujoco.MjvScene(self._model, maxgeom=100)
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0  # nothing here mirrors
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(
            self._model, data, mujoco.MjvOption(), None, self._view, everything, self._scene
        )
        image = _canvas(self._model).draw(self._scene)
        image = image.reshape(self._size, 2, self._size, 2, 3)
        return ((image.sum((1, 3), dtype=np.uint16) + 2) // 4).astype(np.uint8)

    def close(self) -> None:
        """Lets what is drawn go; drawing still works."""
        self._scene = None


class _Canvas:
    """Where MuJoCo draws: an OpenGL context with shapes, textures and buffers, as a model asks for.

    Making one takes a quarter of a second or more, so scenes share it: they differ in colours,
    sizes and places, which are not part of it.
    """

    def __init__(self, model: mujoco.MjModel):
        size = model.vis.global_.offwidth
        try:
            self._context = mujoco.GLContext(size, size)
            self._context.make_current()
            self._kept = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._kept)
        except Exception as error:  # of any kind, as MuJoCo, PyOpenGL and the driver like
            way = os.environ.get('MUJOCO_GL', 'not set')
            raise SimError(
                f'this machine cannot draw ({type(error).__name__}: {error}): physics works, '
                'pictures need OpenGL. On Debian or Ubuntu: apt-get install libegl1 '
                'libgl1-mesa-dri, and set MUJOCO_GL=egl before MuJoCo is imported (it is '
                f'{way})'
            ) from error
        self._area = mujoco.MjrRect(0, 0, size, size)

    def draw(self, scene: mujoco.MjvScene) -> np.ndarray:
        """Pixels uint8 [size, size, 3]."""
        self._context.make_current()
        mujoco.mjr_render(self._area, scene, self._kept)
        image = np.empty((self._area.height, self._area.width, 3), np.uint8)
        mujoco.mjr_readPixels(image, None, self._area, self._kept)
        return image[::-1]  # OpenGL counts rows from below


_canvases: dict[tuple[int, int], _Canvas] = {}  # by pixels of pictures and of shadow maps


def _canvas(model: mujoco.MjModel) -> _Canvas:
    key = model.vis.global_.offwidth, model.vis.quality.shadowsize
    if key not in _canvases:
        _canvases[key] = _Canvas(model)
    return _canvases[key]
