"""Eight CPU devices for every test, programs compiled quickly, flags parsed as grain's workers want
them, and the golden arrays."""

import json
import math
import os
import pathlib
import sys

from jepa_jax.errors import SimError

os.environ['JAX_PLATFORMS'] = 'cpu'  # before jax is imported anywhere
# XLA as always, LLVM without its expensive passes, here and in the processes that tests start: most
# programs run for less time than they compile. CI runs the tests marked `ci` with all passes (0)
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [
    str(HERE),
    str(HERE.parent),
    str(HERE / 'data'),
]  # torch_fill; configs and tools, which are not installed

jax.config.update('jax_num_cpu_devices', 8)
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope='session')
def golden_models() -> dict[str, np.ndarray]:
    return dict(np.load(HERE / 'golden/models.npz'))


@pytest.fixture(scope='session')
def golden_step() -> dict[str, np.ndarray]:
    return dict(np.load(HERE / 'golden/step.npz'))


@pytest.fixture(scope='session')
def golden_ac() -> dict[str, np.ndarray]:
    return dict(np.load(HERE / 'golden/ac.npz'))


@pytest.fixture(scope='session')
def golden_dense() -> dict[str, np.ndarray]:
    return dict(np.load(HERE / 'golden/dense.npz'))


@pytest.fixture(scope='session')
def golden_jepa() -> dict[str, np.ndarray]:
    return dict(np.load(HERE / 'golden/family_jepa.npz'))


@pytest.fixture(scope='session')
def golden_benchmark() -> dict[str, np.ndarray]:
    return dict(np.load(HERE / 'golden/evaluations_benchmark.npz'))


@pytest.fixture(scope='session')
def golden_tasks() -> dict[str, np.ndarray]:
    return dict(np.load(HERE / 'golden/evaluations_dense.npz'))


@pytest.fixture(scope='session')
def golden_pixels() -> dict[str, np.ndarray]:
    """MAE, VideoMAE, VICReg and SIGReg: arrays of one file, which has one member for all."""
    stored = np.load(HERE / 'golden/family_pixels.npz')
    about = json.loads(stored['index'].tobytes())
    arrays = {
        name: stored['values'][start : start + math.prod(shape)].reshape(shape)
        for name, (start, *shape) in about['index'].items()
    }
    return arrays | {name: text.split('\n') for name, text in about['names'].items()}


@pytest.fixture(scope='session')
def runs(tmp_path_factory):
    import small_run

    return small_run.Runs(tmp_path_factory.mktemp('runs'))


@pytest.fixture(scope='session')
def gl():
    """Skips what draws where there is no OpenGL."""
    panda = pytest.importorskip('jepa_jax.sims.panda', exc_type=ModuleNotFoundError)
    try:
        with panda.Panda(16) as made:
            made.draw()
    except SimError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def scheduled_as_others():
    """SVT-AV1, which writes videos of tests, gives its process real-time priority where it may
    (as root), and never takes it back: all others on a core would starve."""
    yield
    if hasattr(os, 'sched_getscheduler') and os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
