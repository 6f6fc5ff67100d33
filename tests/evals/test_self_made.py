"""The evaluation of the self-made videos from the config that is typed to its figures."""

import jax
import jax.numpy as jnp
import pytest

from jepa_jax import cli
from jepa_jax.config import SelfMadeConfig
from jepa_jax.errors import ConfigError
from jepa_jax.evals import self_made
from jepa_jax.model import Loaded, Model
from jepa_jax.models.vit import ViTConfig
from jepa_jax.weights.parts import net


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('JEPA_JAX_CACHE', str(tmp_path_factory.mktemp('cache')))
        c = cli.load('self_made:smoke', ('evaluation',))
        assert isinstance(c, SelfMadeConfig)
        yield c


def test_figures_of_all_labels(config, tmp_path):
    shape = ViTConfig(24, 1, 2, 2.0, patch=8, image_size=32, frames=16, dtype=jnp.dtype('float32'))
    model = Model(Loaded(shape, jax.jit(net('encoder', shape).init)(jax.random.key(0))))
    results = self_made.run(model, config, tmp_path)
    assert {*results.results} == {'digit', 'motion', 'side'}
    _, test = self_made.labelled(config.data)
    assert results.data['read'] == len(test.clips) == results.results['side'].n
    for figure in [*results.results.values(), *results.baselines.values()]:
        assert 0 <= figure.low <= figure.value <= figure.high <= 1
    kinds = {name.partition(', ')[2] for name in results.baselines}
    assert {'pixels', 'shuffled'} <= kinds and len(results.sentences) == 3
    assert (tmp_path / 'features.png').stat().st_size > 1000


def test_without_self_made_videos(config):
    data = SelfMadeConfig(name='s').data
    data.lists[0].kind = 'videos'
    with pytest.raises(ConfigError, match='none is self-made'):
        self_made.labelled(data)
