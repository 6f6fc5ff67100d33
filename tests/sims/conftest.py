"""Skips what draws where there is no OpenGL."""

import pytest


@pytest.fixture(scope='session')
def gl():
    panda = pytest.importorskip('jepa_jax.sims.panda', exc_type=ModuleNotFoundError)
    try:
        with panda.Panda(16) as made:
            made.draw()
    except panda.SimError as error:
        pytest.skip(str(error))
