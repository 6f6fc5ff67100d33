"""The language model against arrays of `transformers` (Llama and Qwen2, weights by formula), with
and without a cache, on a mesh, with an adapter."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import HERE
from torch_fill import tensor

from jepa_jax.models.adapter import AdapterConfig, merged
from jepa_jax.models.decoder import LOGITS, DecoderConfig, frequencies
from jepa_jax.models.generation import Sampling, Speaker, choose, embeddings
from jepa_jax.sharding import make_mesh, put_batch, put_params
from jepa_jax.weights import language_tables, parts, tables

TINY = DecoderConfig(128, 64, 160, 2, 4, 2, 16, dtype=jnp.float32)
QWEN = dataclasses.replace(TINY, eps=1e-6, theta=1e6, bias=True)
CASES = {  # in the order of the arrays
    'llama31': dataclasses.replace(TINY, scaling=(8.0, 1.0, 4.0, 8192.0)),
    'llama31_short': dataclasses.replace(TINY, scaling=(8.0, 1.0, 4.0, 64.0)),
    'llama3_tied': dataclasses.replace(TINY, tied=True),
    'qwen2': QWEN,
    'qwen2_tied': dataclasses.replace(QWEN, tied=True),
}
SIGMA, TOLERANCE, FAR = 0.15, 1e-4, 5e-4
IDS = np.random.RandomState(7).randint(0, 128, (2, 20))
VISUAL = (np.random.RandomState(11).standard_normal((2, 6, 64)) * 0.15).astype(np.float32)
LENGTH = 26


@pytest.fixture(scope='module')
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(HERE / 'golden/decoder.npz'))


@functools.cache
def make(config: DecoderConfig):
    """The net, and parameters by the formula, through the table that reads released files."""
    net = parts.net('decoder', config)
    links = tables.bind(language_tables.hf_decoder(config)[0], net.abstract)
    arrays = {name: tensor(name, shape, SIGMA) for name, shape in tables.expected(links).items()}
    leaves = {
        k: tables.Leaf(a.shape, a.dtype, functools.partial(np.asarray, a))
        for k, a in arrays.items()
    }
    return net, jax.tree.map(jnp.asarray, jax.tree.map(np.asarray, tables.from_file(links, leaves)))


def spliced(decoder, visual) -> jax.Array:
    """ids[:4], the video, ids[4:]: [2, 26, D]."""
    tokens = np.concatenate([IDS[:, :4], np.zeros((2, 6), int), IDS[:, 4:]], axis=1)
    places = np.full((2, LENGTH), -1)
    places[:, 4:10] = np.arange(6)
    return embeddings(decoder, jnp.asarray(tokens), visual, jnp.asarray(places))


def positions(length: int) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(length), (2, length))


# near, far, and with a video between: rows of one batch, filled up where no token looks
AT = jnp.concatenate([positions(LENGTH), 4000 + 37 * positions(LENGTH), positions(LENGTH)])


@functools.partial(jax.jit, static_argnums=0)
def outputs(net, params):
    """Logits near, far and with a video; the loss of the last 12 tokens and its gradients."""

    def loss(params, visual):
        decoder = net.bind(params)
        text = decoder.embed(jnp.pad(jnp.asarray(IDS), ((0, 0), (0, 6))))
        hidden = decoder(jnp.concatenate([text, text, spliced(decoder, visual)]), AT)
        labels = jnp.full((2, LENGTH), -1).at[:, -13:-1].set(IDS[:, -12:])
        return decoder.loss(hidden[4:], labels).sum() / 24, decoder.logits(hidden)

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, VISUAL)


@pytest.mark.parametrize('case', CASES)
def test_golden(case, golden):
    net, params = make(CASES[case])
    i = list(CASES).index(case)
    (loss, logits), (grads, visual) = outputs(net, params)
    near, far, seen = logits[:2, :20], logits[2:4, :20], logits[4:]
    close = functools.partial(np.testing.assert_allclose, rtol=0)
    close(near[:, ::5, ::8], golden['logits'][i], atol=TOLERANCE)
    close(far[:, ::7, ::8], golden['logits_far'][i], atol=FAR)
    close(seen[:, ::8, ::8], golden['logits_visual'][i], atol=TOLERANCE)
    close(loss, golden['loss'][i], atol=1e-5)
    close(visual[:, ::2, ::8], golden['grad_visual'][i], atol=1e-5)
    blocks = grads['blocks']
    leaves = (
        grads['embed_tokens']['embedding'], blocks['attn']['q']['kernel'][0],
        blocks['attn']['k']['kernel'][0], blocks['mlp']['down']['kernel'][1],
        grads['norm']['scale'],
    )  # fmt: skip
    norms = [np.linalg.norm(leaf) for leaf in leaves]
    np.testing.assert_allclose(norms, golden['grad_norms'][i], rtol=1e-5)


@pytest.mark.parametrize(
    'change', [{'theta': 1e6}, {'scaling': ()}, {'eps': 1e-4}, {'bias': False}], ids=str
)
def test_mutants_are_seen(change, golden):
    case = 'qwen2' if 'bias' in change else 'llama31_short'
    net, params = make(CASES[case])
    wrong = parts.net('decoder', dataclasses.replace(CASES[case], **change))
    if 'bias' in change:
        attn = params['blocks']['attn']
        attn = {name: {'kernel': product['kernel']} for name, product in attn.items()}
        params = {**params, 'blocks': {**params['blocks'], 'attn': attn}}
    decoder = wrong.bind(params)
    logits = decoder.logits(decoder(decoder.embed(jnp.asarray(IDS)), positions(20)))
    off = np.abs(logits[:, ::5, ::8] - golden['logits'][list(CASES).index(case)]).max()
    assert off > 10 * TOLERANCE


def test_frequencies(golden):
    for row, factor in zip(golden['inv_freq'], (8.0, 32.0), strict=True):
        config = dataclasses.replace(TINY, head_dim=128, scaling=(factor, 1.0, 4.0, 8192.0))
        np.testing.assert_allclose(frequencies(config)[::2], row, rtol=1e-6)


GENERATE = jax.jit(
    lambda speaker, params, adapter, x, lengths, **how: speaker.generate(
        params, adapter, x, lengths, jax.random.key(0), **how
    ),
    static_argnames=('speaker', 'most', 'stop', 'how'),
)


@pytest.mark.parametrize('case', ['qwen2_tied'])
def test_greedy_with_a_cache(case, golden):
    """Both inputs as one batch: the shorter is filled up, and what fills it is not seen."""
    net, params = make(CASES[case])
    i, decoder = list(CASES).index(case), net.bind(params)
    text = jnp.pad(
        decoder.embed(jnp.asarray(IDS[:1])), ((0, 0), (0, 6), (0, 0)), constant_values=9.0
    )
    x = jnp.concatenate([text, spliced(decoder, VISUAL)[:1]])
    lengths, speaker = jnp.array([20, 26]), Speaker(net)
    tokens, counts = GENERATE(speaker, params, None, x, lengths, most=12, stop=(), how=Sampling())
    np.testing.assert_array_equal(tokens[0], golden['greedy'][i])
    np.testing.assert_array_equal(tokens[1], golden['greedy_visual'][i])
    assert counts.tolist() == [12, 12]
    # one row stops at its fourth token, the other goes on
    stop = int(golden['greedy'][i][3])
    stops = [
        list(golden[n][i]).index(stop) if stop in golden[n][i] else 12
        for n in ('greedy', 'greedy_visual')
    ]
    _, counts = GENERATE(speaker, params, None, x, lengths, most=12, stop=(stop,), how=Sampling())
    assert counts.tolist() == stops


def test_likelihoods_are_those_of_whole_rows(golden):
    net, params = make(CASES['llama31'])
    decoder, choices = net.bind(params), jnp.array([[5, 9, 77], [40, -1, -1]])
    x = decoder.embed(jnp.asarray(IDS[:1]))
    padded = jnp.pad(x, ((0, 0), (0, 4), (0, 0)), constant_values=3.0)
    speaker = Speaker(net)

    @jax.jit
    def likelihoods(params, x, length, choices):
        logits, cache = speaker.begin(params, None, x, length[None], 2)
        return speaker.likelihoods(params, None, logits, length, cache, choices)

    ours = likelihoods(params, padded, jnp.int32(20), choices)
    whole = jnp.concatenate([jnp.repeat(jnp.asarray(IDS[:1]), 2, 0), jnp.maximum(choices, 0)], 1)
    logits = jax.jit(lambda p: net.bind(p).logits(net(p, net.bind(p).embed(whole), positions(23))))
    chances = np.asarray(jax.nn.log_softmax(logits(params)))
    expected = [
        sum(chances[r, 19 + n, t] for n, t in enumerate(row) if t >= 0)
        for r, row in enumerate(choices.tolist())
    ]
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_packed_rows_do_not_see_each_other():
    net, params = make(CASES['qwen2'])
    decoder = net.bind(params)
    x = decoder.embed(jnp.asarray(IDS))
    alone = decoder(x[:, :7], positions(7))
    packed = jnp.concatenate([x[1:, 10:], x[:1, :7]], axis=1)
    at = jnp.concatenate([jnp.arange(10), jnp.arange(7)])[None]
    segments = jnp.array([[1] * 10 + [2] * 7])
    np.testing.assert_allclose(decoder(packed, at, segments)[0, 10:], alone[0], atol=1e-5)


def test_sampling():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.15, 0.1]])).repeat(4000, 0)
    for how, expected in (
        (Sampling(1.0), [0.5, 0.25, 0.15, 0.1]),
        (Sampling(1.0, top_k=2), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(1.0, top_p=0.7), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(0.5), np.square([0.5, 0.25, 0.15, 0.1]) / 0.345),
        (Sampling(), [1, 0, 0, 0]),
    ):
        drawn = np.bincount(choose(logits, jax.random.key(1), how), minlength=4) / 4000
        np.testing.assert_allclose(drawn, expected, atol=0.03)
    with pytest.raises(ValueError, match='top_p'):
        Sampling(1.0, top_p=0.0)


def test_adapter_starts_as_nothing_and_merges():
    net, params = make(CASES['llama3_tied'])
    config = AdapterConfig.of(net.config, 4, 8.0, 'attn/[qo]|mlp/.*')
    adapter = parts.net('adapter', config).init(jax.random.key(0))
    assert config.kernels == ('attn/q', 'attn/o', 'mlp/gate', 'mlp/up', 'mlp/down')
    run = jax.jit(lambda p, a: net(p, VISUAL, positions(6), adapter=a, scale=config.scale))
    plain = run(params, None)
    np.testing.assert_allclose(run(params, adapter), plain, atol=1e-6)
    adapter = jax.tree.map(
        lambda a: a + 0.05 * jnp.sin(jnp.arange(a.size).reshape(a.shape)), adapter
    )
    changed = run(params, adapter)
    assert np.abs(changed - plain).max() > 0.1
    whole = merged(params, adapter, config.scale)
    np.testing.assert_allclose(run(whole, None), changed, atol=1e-4)
    with pytest.raises(ValueError, match='matches none of attn/q'):
        AdapterConfig.of(net.config, 4, 8.0, 'qkv')


def test_on_a_mesh(golden, monkeypatch):
    """Loss, gradients and words on 4 devices, parameters over 2, the loss in small parts."""
    from jepa_jax.models import decoder as module

    monkeypatch.setattr(module, 'LOGITS', 128 * 5)
    config = CASES['llama31_short']
    net, params = make(config)
    ids = np.concatenate([IDS, IDS])
    labels = np.where(np.arange(20) >= 15, np.roll(ids, -1, 1), -1)

    def loss(params, ids, labels):
        decoder = net.bind(params)
        at = jnp.zeros_like(ids) + jnp.arange(20)
        return decoder.loss(decoder(decoder.embed(ids), at), labels).mean()

    both = jax.jit(jax.value_and_grad(loss))
    expected, grads = both(params, jnp.asarray(ids), jnp.asarray(labels))

    def words(params, ids):
        x = net.bind(params).embed(ids)
        lengths = jnp.zeros_like(ids[:, 0]) + 20
        how = dict(most=4, stop=())
        return Speaker(net).generate(params, None, x, lengths, jax.random.key(0), **how)[0]

    mesh = make_mesh(2, jax.devices()[:4])
    with jax.set_mesh(mesh):
        placed = put_params(params, net.specs, mesh)
        batch = put_batch((ids, labels), mesh)
        value, sharded = both(placed, *batch)
        said = jax.jit(words)(placed, batch[0])
        np.testing.assert_allclose(value, expected, atol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), sharded, grads)
        np.testing.assert_array_equal(np.asarray(said)[0], golden['greedy'][1][:4])
    assert LOGITS > 128 * 5
