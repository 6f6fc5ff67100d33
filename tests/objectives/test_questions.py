"""Questions about videos: what the loss sees and what it does not, against sums by hand."""

import dataclasses
import functools
import json
import re
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_jax import build, flops, recipes
from jepa_jax import questions as prepared
from jepa_jax.config import MixtureConfig, QuestionsConfig
from jepa_jax.config.questions import LanguageConfig
from jepa_jax.errors import BadFile, ZooError
from jepa_jax.models.adapter import AdapterConfig
from jepa_jax.models.decoder import DecoderConfig
from jepa_jax.models.projector import ProjectorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.objectives.questions import HeldOut, Questions
from jepa_jax.sharding import make_mesh, put_batch, put_params, put_rows
from jepa_jax.weights import language, parts
from jepa_jax.weights.contents import StoredNet, Weights

VIT = ViTConfig(24, 1, 2, patch=8, image_size=16, frames=4, dtype=jnp.float32)
LLM = DecoderConfig(32, 16, 24, 2, 4, 2, 4, dtype=jnp.float32, tied=True)
PROJECTOR = ProjectorConfig(24, 16, (2, 2, 2), pool=2, dtype=jnp.float32)  # 2 tokens a clip
LORA = AdapterConfig.of(LLM, 2, 4.0, 'attn/.*')
B, S, M = 4, 14, 2


@pytest.mark.parametrize('joined', [False, True])
def test_a_projector_starts_on_standardised_channels(joined, tmp_path):
    """It gives of features what the drawn one gives of standardised ones; one cannot be read."""
    rng = np.random.default_rng(1)
    scale, offset = 10.0 ** rng.uniform(-2, 2, 24), 50 * rng.normal(size=24)
    features = {f'{i}.mp4': scale * rng.normal(size=(1, 8, 24)) + offset for i in range(5)}
    said = {'human': '<video>What?', 'gpt': 'noise'}
    talk = [{'from': who, 'value': text} for who, text in said.items()]
    rows = ({'video': name, 'conversations': talk} for name in features)
    path = tmp_path / 'talks.jsonl'
    path.write_text('\n'.join(map(json.dumps, rows)))
    config = QuestionsConfig(seed=3)
    config.data.mixture = [MixtureConfig(str(path))]
    of_clip = dataclasses.replace(PROJECTOR, joined=joined)
    one = Questions(VIT, of_clip, LLM, features=True)

    def store(media):
        name = media.path.rpartition('/')[2]
        if name == '4.mp4':
            raise BadFile(media.path, 'missing', '')
        return features[name]

    params = prepared._standardised(one, store, config)
    drawn = one.net('projector').init(jax.random.fold_in(jax.random.key(3), 3))
    seen = np.concatenate([features[f'{i}.mp4'] for i in range(4)])
    standard = (seen - seen.mean((0, 1))) / seen.std((0, 1))
    expected = one.net('projector')(drawn, standard.astype(np.float32))
    ours = one.net('projector')(params, seen.astype(np.float32))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-3 * np.abs(expected).max())
    deviation = seen.std((0, 1)) + 1e-6
    kernel = np.asarray(drawn['fc1']['kernel']) / np.tile(deviation, 1 + joined)[:, None]
    np.testing.assert_allclose(params['fc1']['kernel'], kernel, rtol=1e-6)


def test_channels_are_measured_on_drawn_media_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, 'MEASURED', 4)
    talk = [{'from': 'human', 'value': '<video>What?'}, {'from': 'gpt', 'value': 'noise'}]
    rows = [{'video': f'{i}.mp4', 'conversations': talk} for i in range(40)]
    path = tmp_path / 'talks.jsonl'
    path.write_text('\n'.join(map(json.dumps, rows)))
    one, looked, alive = Questions(VIT, PROJECTOR, LLM, features=True), [], []

    def store(media):
        looked.append(media.path)
        alive[:] = [each for each in alive if each() is not None]
        assert len(alive) < 2
        alive.append(weakref.ref(features := np.full((1, 8, 24), len(looked), np.float32)))
        return features

    for seed in (1, 2):
        config = QuestionsConfig(seed=seed)
        config.data.mixture = [MixtureConfig(str(path))]
        prepared._standardised(one, store, config)
    first = [str(tmp_path / f'{i}.mp4') for i in range(4)]
    assert len(looked) == 8 and looked[:4] != looked[4:] != first != looked[:4]


@pytest.mark.parametrize('pool', [1, 2])
def test_times_joined(pool):
    """A place's tokens of all times, side by side, are one: by hand."""
    config = ProjectorConfig(4, 6, (3, 2, 2), pool=pool, joined=True, dtype=jnp.float32)
    projector = parts.net('projector', config)
    params = projector.init(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(6, 12, 4)).astype(np.float32)
    rows = x.reshape(6, 3, 4, 4).transpose(0, 2, 1, 3).reshape(6, 4, 12)
    for name in ('fc1', 'fc2'):
        rows = rows @ params[name]['kernel'] + params[name]['bias']
        rows = np.asarray(jax.nn.gelu(rows, approximate=False)) if name == 'fc1' else rows
    expected = rows.mean(1, keepdims=True) if pool == 2 else rows
    assert config.tokens == expected.shape[1] and config.read == (4, 12)
    np.testing.assert_allclose(projector(params, x), expected, rtol=0, atol=1e-5)
    spread = 1 / np.sqrt(12)  # of the first layer, which reads twelve numbers
    assert 0.7 * spread < np.std(params['fc1']['kernel']) < 1.3 * spread


# config.json of Meta-Llama-3-8B-Instruct and of Qwen2.5-14B, and sizes that they are near
PUBLISHED = [
    (
        'llama31-8b', {},
        dict(model_type='llama', vocab_size=128256, hidden_size=4096, intermediate_size=14336,
             num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
             rms_norm_eps=1e-5, rope_theta=500000.0, rope_scaling=None, tie_word_embeddings=False),
        {'scaling': (1.0, 0.0, 0.0, 0.0)},
    ),
    (
        'qwen2-7b', dict(width=5120, hidden=13824, depth=48, heads=40, kv_heads=8),
        dict(model_type='qwen2', vocab_size=152064, hidden_size=5120, intermediate_size=13824,
             num_hidden_layers=48, num_attention_heads=40, num_key_value_heads=8,
             rms_norm_eps=1e-5, rope_theta=1000000.0, tie_word_embeddings=False),
        {'eps': 1e-5},
    ),
    (
        'qwen25-0.5b', {},
        dict(model_type='llama', vocab_size=151936, hidden_size=896, intermediate_size=4864,
             num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
             rms_norm_eps=1e-6, rope_theta=1e5, tie_word_embeddings=False,
             rope_scaling=dict(rope_type='llama3', factor=8.0, low_freq_factor=1.0,
                               high_freq_factor=4.0, original_max_position_embeddings=8192)),
        dict(theta=1e5, scaling=(8.0, 1.0, 4.0, 8192.0), bias='no', tied='no'),
    ),
]  # fmt: skip


@pytest.mark.parametrize(('size', 'own', 'values', 'added'), PUBLISHED, ids=lambda v: str(v)[:12])
def test_what_a_folder_says_of_its_model_needs_no_field(
    size, own, values, added, tmp_path, monkeypatch
):
    """It is in the run's config then, by which the run goes on without the folder."""
    config = QuestionsConfig(encoder_from='random')
    config.language = LanguageConfig('folder', size=size, **own)
    config.data.mixture = [MixtureConfig('talks.jsonl')]
    model = language.decoder({**values, 'where': 'folder', 'stored': 'bfloat16'}, {}, None)
    weights = Weights(None, 'hf', {'language': StoredNet('decoder', model, {})})
    monkeypatch.setattr(prepared.zoo, 'find', lambda path: weights)
    assert prepared.differences(model, build.decoder(config))  # refused, were nothing read
    settled = prepared.settle(config, tmp_path)
    assert not prepared.differences(model, build.decoder(settled))
    assert settled.language == dataclasses.replace(config.language, **added)
    recipes.validate(settled)

    def gone(path):
        raise ZooError(path)

    monkeypatch.setattr(prepared.zoo, 'find', gone)
    assert prepared.settle(config, tmp_path) == config  # to be missed where it is needed
    (tmp_path / 'config.json').write_text(json.dumps(dataclasses.asdict(settled)))
    assert prepared.settle(config, tmp_path) == settled
    monkeypatch.setattr(prepared.zoo, 'find', lambda path: weights)
    other = dataclasses.replace(config.language, theta=7.0)  # what is set is held against the files
    settled = prepared.settle(dataclasses.replace(config, language=other), tmp_path / 'other')
    lines = prepared.differences(model, build.decoder(settled))
    assert lines == [f'theta {values["rope_theta"]} and 7.0']


def make(**settings) -> tuple[Questions, dict, dict]:
    objective = Questions(VIT, PROJECTOR, LLM, LORA, **settings)
    params = drawn(objective.abstract)
    frozen = {name: drawn(net.abstract) for name, net in objective.frozen.items()}
    return objective, params, frozen


def drawn(abstract: dict) -> dict:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: rng.standard_normal(a.shape, np.float32) * 0.2, abstract)


def batch() -> dict[str, np.ndarray]:
    """Two conversations a row, a clip each, and a place of padding."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 32, (B, S), np.int32)
    labels = np.full((B, S), -1, np.int32)
    labels[:, 4:6], labels[1:, 11:12] = tokens[:, 5:7], tokens[1:, 12:13]
    segments = np.tile([1] * 7 + [2] * 6 + [0], (B, 1)).astype(np.int32)
    positions = np.tile([*range(7), *range(6), 0], (B, 1)).astype(np.int32)
    visual = np.full((B, S), -1, np.int32)
    visual[:, 1:3], visual[:, 8:10] = (0, 1), (2, 3)
    table = rng.integers(0, 256, (B, M, 4, 16, 16, 3), np.uint8)
    return dict(
        tokens=tokens, labels=labels, positions=positions, segments=segments, visual=visual,
        table=table,
    )  # fmt: skip


@functools.cache
def losses():
    objective, params, frozen = make()
    return objective, params, frozen, jax.jit(functools.partial(objective.loss, params, {}, frozen))


def test_loss_is_of_answers_alone():
    objective, params, frozen, loss = losses()
    data = batch()
    value, metrics = loss(data, 0)
    spans = (0, 7), (7, 13)

    @jax.jit
    def by_hand(params, frozen):
        """Logarithms of the chances of all words, each conversation alone."""
        clips = data['table'].reshape(B * M, 4, 16, 16, 3)
        seen = objective.net('encoder')(frozen['encoder'], clips)
        x = seen @ params['projector']['fc1']['kernel'] + params['projector']['fc1']['bias']
        x = jax.nn.gelu(x, approximate=False) @ params['projector']['fc2']['kernel']
        x = (x + params['projector']['fc2']['bias']).reshape(B, M, 2, 2, 2, 16).mean((3, 4))
        llm, chances = parts.net('decoder', LLM).bind(frozen['decoder']), []
        for m, (start, stop) in enumerate(spans):
            words = llm.embed(data['tokens'][:, start:stop]).at[:, 1:3].set(x[:, m])
            at = jnp.broadcast_to(jnp.arange(stop - start), words.shape[:2])
            hidden = llm(words, at, adapter=params['adapter'], scale=2.0)
            chances.append(jax.nn.log_softmax(llm.logits(hidden)))
        return chances

    lost = [[] for _ in range(B)]
    for (start, stop), chances in zip(spans, map(np.asarray, by_hand(params, frozen))):
        for b, p in np.argwhere(data['labels'][:, start:stop] >= 0):
            lost[b].append(-chances[b, p, data['labels'][b, start + p]])
    np.testing.assert_allclose(value, np.mean([np.mean(each) for each in lost]), atol=1e-5)
    np.testing.assert_allclose(metrics['loss/tokens'], np.mean(sum(lost, [])), atol=1e-5)


def test_a_video_is_seen_in_its_own_conversation_alone():
    _, _, _, loss = losses()
    data = batch()
    data['labels'][:, 7:] = -1
    before = loss(data, 0)[0]
    for place, changes in ((0, True), (1, False)):
        other = {**data, 'table': data['table'].copy()}
        other['table'][:, place] = 255 - other['table'][:, place]
        assert (abs(loss(other, 0)[0] - before) > 1e-6) == changes


def test_features_in_place_of_frames_and_on_a_mesh():
    objective, params, frozen, loss = losses()
    data = batch()
    clips = data['table'].reshape(B * M, 4, 16, 16, 3)
    features = np.asarray(objective.net('encoder')(frozen['encoder'], clips))
    stored, _, _ = make(features=True)
    assert list(stored.kept) == ['encoder'] and list(stored.frozen) == ['decoder']
    data['table'] = features.reshape(B, M, 8, 24)
    mesh = make_mesh(2, jax.devices()[:4])
    with jax.set_mesh(mesh):
        on = [put_params(params, stored.specs, mesh)]
        specs = {'decoder': stored.frozen['decoder'].specs}
        on.append(put_params({'decoder': frozen['decoder']}, specs, mesh))
        step = jax.jit(jax.value_and_grad(lambda p, f, b: stored.loss(p, {}, f, b, 0)[0]))
        value, grads = step(*on, put_batch(data, mesh))
    np.testing.assert_allclose(value, loss(batch(), 0)[0], atol=1e-5)
    assert set(grads) == {'projector', 'adapter'}
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads['projector']))


def test_tiles_are_read_one_by_one():
    """On a mesh: of a clip of tiles every tubelet is as if it were alone, the other clips are as
    without tiles."""
    objective, params, frozen, _ = losses()
    table, tiles = batch()['table'], np.zeros((B, M), bool)
    tiles[:, 1] = True
    clips = table.reshape(B * M, 4, 16, 16, 3)
    net, weights = objective.net('encoder'), frozen['encoder']
    whole = np.asarray(net(weights, clips)).reshape(B, M, 8, 24)
    alone = np.asarray(net(weights, clips.reshape(-1, 2, 16, 16, 3))).reshape(B, M, 8, 24)
    assert np.abs(whole - alone).max() > 0.01
    expected = np.where(tiles[..., None, None], alone, whole)
    projector = objective.net('projector')
    expected = projector(params['projector'], expected.reshape(B * M, 8, 24))
    mesh = make_mesh(2, jax.devices()[:4])
    with jax.set_mesh(mesh):
        on = [put_params({'projector': params['projector']}, {'projector': projector.specs}, mesh)]
        on.append(put_params({'encoder': weights}, {'encoder': net.specs}, mesh))
        seen = jax.jit(objective.visual)(*on, *put_batch((table, tiles), mesh))
    np.testing.assert_allclose(seen, np.reshape(expected, (B, -1, 16)), atol=1e-5)


def test_health_says_what_is_said():
    objective, params, frozen = make(features=True)[0], *losses()[1:3]
    data = batch()
    clips = data['table'].reshape(B * M, 4, 16, 16, 3)
    encoder = objective.net('encoder')
    data['table'] = np.asarray(encoder(frozen['encoder'], clips)).reshape(B, M, 8, 24)
    rows = {k: v[:3].copy() for k, v in data.items()}
    rows['labels'][:, 7:] = -1
    prompts = {
        'tokens': rows['tokens'][:, :6], 'visual': rows['visual'][:, :6],
        'lengths': np.array([5, 6, 6], np.int32),
    }  # fmt: skip
    objective.held = HeldOut(rows, prompts, ('a', 'b', 'a'), (), 3)
    asked = params, {}, {'decoder': frozen['decoder']}, objective.examined
    health = jax.jit(objective.health)(*asked)
    measured = objective.measure(health)
    expected = np.exp(losses()[3]({**batch(), **{'labels': _first(batch())}}, 0)[1]['loss/tokens'])
    np.testing.assert_allclose(measured['health/perplexity'], expected, rtol=1e-4)
    assert measured['health/empty_answers'] == 0
    assert measured['health/same_expected'] == pytest.approx(2 / 3)
    said = {tuple(row) for row in np.asarray(health['tokens'])[:3].tolist()}
    assert (measured['health/same_answers'] == 1) == (len(said) == 1)
    # whatever is said first ends the answer: nothing is said
    first = tuple(np.asarray(health['tokens'])[:3, 0].tolist())
    objective.held = dataclasses.replace(objective.held, stop=first)
    health = jax.jit(objective.health)(*asked)
    measured = objective.measure(health)
    assert measured['health/empty_answers'] == 1
    assert objective.verdict([measured])[0] == 'silent'


def test_held_out_rows_are_no_part_of_the_health_program():
    """On a mesh, whose devices they are spread over: they are features, gigabytes in large runs."""
    objective, params, frozen = make(features=True)[0], *losses()[1:3]
    rows = {k: v[:3] for k, v in batch().items()}
    rows['table'] = np.random.default_rng(1).standard_normal((3, M, 8, 24)).astype(np.float16)
    prompts = {
        'tokens': rows['tokens'][:, :6], 'visual': rows['visual'][:, :6],
        'lengths': np.array([5, 6, 6], np.int32),
    }  # fmt: skip
    objective.held = HeldOut(rows, prompts, ('a', 'b', 'a'), (1,), 2)
    alone = jax.jit(objective.health)(params, {}, {'decoder': frozen['decoder']}, (rows, prompts))
    mesh = make_mesh(2, jax.devices()[:4])
    with jax.set_mesh(mesh):
        decoder = {'decoder': objective.frozen['decoder'].specs}
        on = [put_params(params, objective.specs, mesh), {}]
        on.append(put_params({'decoder': frozen['decoder']}, decoder, mesh))
        on.append(put_rows(objective.examined, mesh))
        table = on[-1][0]['table']
        assert table.shape[0] == 4 and table.addressable_shards[0].data.shape[0] == 1
        lowered = jax.jit(objective.health).lower(*on)
        spread = lowered.compile()(*on)
    largest = max(map(len, re.findall(r'dense<(.*?)>', lowered.as_text())))
    assert largest < rows['table'].nbytes
    for name, values in alone.items():
        np.testing.assert_allclose(spread[name][:3], values, atol=1e-5)
    assert (np.asarray(spread['lost'])[3] == np.asarray(spread['lost'])[0]).all()


def _first(data: dict) -> np.ndarray:
    """Labels of the first three rows' first conversations."""
    labels = data['labels'].copy()
    labels[:, 7:], labels[3:] = -1, -1
    return labels


def test_flops():
    """By hand, of one token a row: no pairs but its own."""
    c = dataclasses.replace(LLM, depth=1)
    layer = 16 * (16 + 8 + 8 + 16) + 3 * 16 * 24
    once = layer + 16 * 32
    assert flops.language(c, 1, trained=True) == 2 * 3 * (once + 2 * 16)
    assert flops.language(c, 1) == 2 * (2 * once + 3 * 2 * 16)
    lora = AdapterConfig.of(c, 2, 4.0, 'attn/q')
    assert flops.language(c, 1, lora) - flops.language(c, 1) == 2 * 3 * 2 * (16 + 16)
    assert flops.projected(PROJECTOR, 1, False) == 2 * 8 * (2 * 24 * 16 + 3 * 16 * 16)


def test_a_pooler_is_spread_over_a_mesh():
    """Traced alone: every device reads its own clips."""
    pooler = dataclasses.replace(PROJECTOR, kind='pooler', pool=1, queries=3, heads=4, depth=2)
    objective = Questions(VIT, pooler, LLM, features=True)
    mesh = make_mesh(2, jax.devices()[:4])

    def on_mesh(leaf, spec):
        sharding = jax.NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    net = objective.nets['projector']
    params = {'projector': jax.tree.map(on_mesh, net.abstract, net.specs)}
    table = on_mesh(np.zeros((B, M, 8, 24), np.float32), jax.P(('data', 'fsdp')))
    with jax.set_mesh(mesh):
        seen = jax.eval_shape(lambda p, t: objective.visual(p, {}, t), params, table)
    assert seen.shape == (B, M * 3, 16) and seen.sharding.spec[0] == ('data', 'fsdp')
