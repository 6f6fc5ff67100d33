"""The bfloat16 step for a GPU, read without one."""

import jax
import jax.numpy as jnp

from jepa_jax import cli
from tools import lowered


def small():
    config = cli.load('configs/vitg.py')
    config.encoder.width, config.encoder.depth, config.encoder.heads = 128, 2, 2
    config.predictor.width, config.predictor.depth, config.predictor.heads = 64, 2, 2
    config.optim.batch, config.data.crop = 2, 128
    del config.masks[1:]
    return config


def test_step_in_bfloat16_for_a_gpu():
    config = small()
    result = lowered.read(*lowered.lower(config))
    # every product takes bfloat16, the gradients' too: none in float32, by name or otherwise
    assert list(result['products']) == ['bf16 x bf16 -> bf16'] and not result['float32_products']
    # the target's, and those of encoder and predictor, which full recomputation calls again
    assert result['attention_calls'] == {
        '__cudnn$fmhaSoftmax': 1 + 2 * 2,
        '__cudnn$fmhaSoftmaxBackward': 2,
    }
    assert result['donated_arrays'] == result['state_arrays'] > 100
    assert not result['scores']


def test_attention_may_be_kept():
    """mesh.remat=attention: cuDNN's kernel is called once forward and once backward."""
    config = small()
    config.mesh.remat = 'attention'
    calls = lowered.read(*lowered.lower(config))['attention_calls']
    assert calls == {'__cudnn$fmhaSoftmax': 1 + 2, '__cudnn$fmhaSoftmaxBackward': 2}


def test_what_should_not_be_is_found():
    """A product in float32 by the name of its place, scores, and a state that is not donated."""

    def step(x):
        with jax.named_scope('careless'):
            return jnp.einsum('bqc,bkc->bqk', x, x)

    x = jax.ShapeDtypeStruct((2, 1024, 8), jnp.float32)
    for donate, count in ((), 0), ((0,), 1):
        text = jax.jit(lambda x: (step(x), x + 1), donate_argnums=donate).lower(x)
        result = lowered.read(text.as_text(debug_info=True), [x], frozenset({1024}))
        assert result['products'] == {'f32 x f32 -> f32': 1}
        ((name, times),) = result['float32_products'].items()
        assert 'careless' in name and times == 1
        assert result['scores'] == [(2, 1024, 1024)]
        assert (result['donated_arrays'], result['state_arrays']) == (count, 1)
