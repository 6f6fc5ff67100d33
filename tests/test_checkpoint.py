"""Round trips, damage, retention, kills and full disks."""

import dataclasses
import json
import logging
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jepa_jax import checkpoint, workdir
from jepa_jax.checkpoint import Checkpoints, files
from jepa_jax.checkpoint import run as run_of_checkpoints
from jepa_jax.errors import CheckpointError, Damaged

ROOT = pathlib.Path(__file__).parent.parent


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: jax.Array
    params: dict
    ema: dict
    opt_state: optax.OptState
    key: jax.Array


def mesh_of(data, fsdp):
    devices = jax.devices()[: data * fsdp]
    kinds = (jax.sharding.AxisType.Explicit,) * 2
    return jax.make_mesh((data, fsdp), ('data', 'fsdp'), devices=devices, axis_types=kinds)


def make_state(mesh, step=3, rows=16):
    """A state in which every number tells its place and step, sharded where it can be."""
    sharded = jax.NamedSharding(mesh, jax.P(None, 'fsdp'))
    whole = jax.NamedSharding(mesh, jax.P())
    weight = np.arange(rows * 8, dtype=np.float32).reshape(rows, 8) + step / 7
    params = {
        'encoder': {'weight': jax.device_put(weight, sharded), 'bias': jnp.full(3, step / 3)},
        'predictor': {'half': jnp.arange(5, dtype=jnp.bfloat16) * step},
    }
    params = jax.tree.map(lambda a: a if a.ndim == 2 else jax.device_put(a, whole), params)
    tx = optax.adamw(optax.constant_schedule(1e-3), weight_decay=0.1)
    with jax.set_mesh(mesh):
        _, opt_state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
        ema = {'encoder': jax.tree.map(lambda a: a + 1, params['encoder'])}
        key = jax.random.fold_in(jax.random.key(5), step)
        return State(jnp.int32(step), params, ema, opt_state, key)


def abstract_of(state, mesh=None):
    def one(leaf):
        sharding = leaf.sharding
        if mesh is not None:
            sharding = jax.NamedSharding(mesh, jax.P('data') if leaf.ndim == 2 else jax.P())
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(one, state)


def plain(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def assert_equal(result, expected):
    assert jax.tree.structure(result) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected)):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(plain(a), plain(b), strict=True)


def saved(directory, *steps, keep=9, **options):
    """Checkpoints of small states, one a step; and the state of the last."""
    with Checkpoints(directory, keep=keep, **options) as series:
        for step in steps:
            state = make_state(mesh_of(2, 4), step)
            assert series.save(step, state, {'config': {'name': 'x'}, 'count': step})
    assert (series.failures, series.last_error) == (0, '')
    return series, state


def flip(path, at=0.5):
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 4
    path.write_bytes(content)


def files_of(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file())


# Round trips


def test_round_trip(tmp_path):
    series, state = saved(tmp_path, 3)
    again = Checkpoints(tmp_path, keep=1)
    assert again.latest() == 3
    result, extra = again.restore(3, abstract_of(state))
    assert_equal(result, state)
    assert extra == {'config': {'name': 'x'}, 'count': 3}
    assert [a.sharding for a in jax.tree.leaves(result)] == [
        a.sharding for a in jax.tree.leaves(state)
    ]
    assert series.steps() == [3] and checkpoint.problems(tmp_path / '3') == []
    assert [path.name for path in tmp_path.iterdir()] == ['3']


@pytest.mark.parametrize('shape', [(1, 1), (8, 1), (4, 2)])
def test_another_mesh(tmp_path, shape):
    _, state = saved(tmp_path, 3)
    template = abstract_of(state, mesh_of(*shape))
    result, _ = checkpoint.restore(tmp_path / '3', template)
    assert_equal(result, state)
    for leaf, want in zip(jax.tree.leaves(result), jax.tree.leaves(template)):
        assert leaf.sharding.is_equivalent_to(want.sharding, leaf.ndim)


def test_abstract_mesh_and_no_sharding(tmp_path):
    _, state = saved(tmp_path, 3)
    mesh = mesh_of(4, 1)
    with jax.set_mesh(mesh):
        inside = jax.eval_shape(lambda: jax.reshard(jnp.zeros((16, 8)), jax.P('data')))
        assert isinstance(inside.sharding.mesh, jax.sharding.AbstractMesh)
        template = {'ema': {'encoder': {'weight': inside}}}
        result, _ = checkpoint.restore(tmp_path / '3', template, only=('ema/encoder/weight',))
    assert result['ema']['encoder']['weight'].sharding == jax.NamedSharding(
        mesh, jax.P('data', None)
    )
    bare = {'step': jax.ShapeDtypeStruct((), jnp.int32)}
    result, _ = checkpoint.restore(tmp_path / '3', bare, only=('step',))
    assert result['step'].devices() == {jax.devices()[0]} and result['step'] == 3


def test_parts(tmp_path):
    _, state = saved(tmp_path, 3)
    folder = checkpoint.find(tmp_path)
    want = {'params': abstract_of(state.params), 'ema': abstract_of(state.ema)}
    result, _ = checkpoint.restore(folder, want, only=('params', 'ema'))
    assert_equal(result, {'params': state.params, 'ema': state.ema})
    without_model = checkpoint.stored_abstract(folder, 'ema')
    result, _ = checkpoint.restore(folder, without_model, only=('ema',))
    assert_equal(result, {'ema': state.ema})
    host = checkpoint.read_on_host(folder, 'ema/encoder')
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(host))
    assert_equal(host, state.ema['encoder'])
    with pytest.raises(CheckpointError, match='3 holds no ema/encode$'):
        checkpoint.read_on_host(folder, 'ema/encode')
    moments = checkpoint.stored_abstract(folder, 'opt_state/0/mu')['opt_state']['0']['mu']
    assert moments['encoder']['weight'].shape == (16, 8)
    with pytest.raises(CheckpointError, match='key is a random key'):
        checkpoint.stored_abstract(folder)
    with pytest.raises(CheckpointError, match='params/encoder/bias is stored but not expected'):
        del want['params']['encoder']['bias']
        checkpoint.restore(folder, want, only=('params', 'ema'))


def test_saved_before_donation(tmp_path):
    """The next step takes over the state's memory while the save is still writing it."""
    state = {'w': jnp.full((2000, 2000), 5.0), 'step': jnp.int32(1)}
    step = jax.jit(lambda s: jax.tree.map(lambda a: a * 0 - 1, s), donate_argnums=0)
    step({'w': jnp.zeros((2000, 2000)), 'step': jnp.int32(0)})  # compiled
    template = abstract_of(state)
    with Checkpoints(tmp_path, keep=1) as series:
        assert series.save(1, state, {})
        state = step(state)
        jax.block_until_ready(state)
    result, _ = checkpoint.restore(tmp_path / '1', template)
    assert float(result['w'].min()) == float(result['w'].max()) == 5.0 and result['step'] == 1


@pytest.mark.parametrize(
    'change, message',
    [
        (
            lambda p: p['encoder'].update(bias=jax.ShapeDtypeStruct((4,), jnp.float32)),
            r'params/encoder/bias is stored as float32\[3\], expected float32\[4\]',
        ),
        (
            lambda p: p['encoder'].update(bias=jax.ShapeDtypeStruct((3,), jnp.bfloat16)),
            r'params/encoder/bias is stored as float32\[3\], expected bfloat16\[3\]',
        ),
        (
            lambda p: p['encoder'].update(scale=p['encoder'].pop('bias')),
            r'params/encoder/bias is stored but not expected \(and 1 more\)',
        ),
        (
            lambda p: p.update(more=jax.ShapeDtypeStruct((3,), jnp.float32)),
            'params/more is not stored',
        ),
    ],
)
def test_strict(tmp_path, change, message):
    _, state = saved(tmp_path, 3)
    template = abstract_of(state)
    change(template.params)
    with pytest.raises(CheckpointError, match=message) as error:
        checkpoint.restore(tmp_path / '3', template)
    assert '\n' not in str(error.value) and str(tmp_path / '3') in str(error.value)


# Damage


@pytest.mark.parametrize('at', [0.0, 0.5, 1.0])
def test_flipped_byte_in_any_file(tmp_path, caplog, at):
    _, state = saved(tmp_path / 'good', 10, 20)
    names = files_of(tmp_path / 'good' / '20')
    assert len(names) >= 6  # arrays, indices, metadata, manifest
    for name in names:
        if not (tmp_path / 'good' / '20' / name).stat().st_size:
            continue
        shutil.rmtree(tmp_path / 'bad', ignore_errors=True)
        shutil.copytree(tmp_path / 'good', tmp_path / 'bad')
        flip(tmp_path / 'bad' / '20' / name, at)
        caplog.clear()
        assert Checkpoints(tmp_path / 'bad', keep=2).latest() == 10
        (record,) = caplog.records
        assert str(tmp_path / 'bad' / '20' / name) in record.getMessage()
        assert 'checkpoint 20 is damaged' in record.getMessage()
        with pytest.raises(Damaged, match='20'):
            checkpoint.restore(tmp_path / 'bad' / '20', abstract_of(state))


def test_truncated_missing_and_unreadable(tmp_path, caplog):
    _, state = saved(tmp_path, 10, 20, 30, 40)

    def big(step):
        return max((tmp_path / step).rglob('*'), key=lambda p: p.is_file() and p.stat().st_size)

    victims = {step: big(step) for step in ('20', '30', '40')}
    size = victims['40'].stat().st_size
    os.truncate(victims['40'], size - 1)
    victims['30'].unlink()
    (tmp_path / '20' / 'manifest.json').write_text('{"manifest": ')
    series = Checkpoints(tmp_path, keep=4)
    assert series.latest() == 10
    lines = [record.getMessage() for record in caplog.records]
    assert f'{victims["40"]} has {size - 1:,} bytes, {size:,} were written' in lines[0]
    assert f'{victims["30"]} is missing' in lines[1]
    assert 'manifest.json is not a manifest (not_text' in lines[2]

    # The run gets to 20 again: it is replaced, and once it is whole the damaged ones go.
    assert not series.save(10, state, {})
    assert series.save(20, make_state(mesh_of(2, 4), 20), {})
    series.close()
    assert series.steps() == [10, 20] and Checkpoints(tmp_path, keep=4).latest() == 20


def test_none_intact_is_refused(tmp_path):
    saved(tmp_path, 10)
    flip(tmp_path / '10' / 'manifest.json')
    with pytest.raises(CheckpointError, match='no checkpoint in .* is intact: .*manifest.json'):
        Checkpoints(tmp_path, keep=1).latest()


def test_unfinished_is_ignored_then_removed(tmp_path, caplog):
    saved(tmp_path, 10, 20)
    (tmp_path / '20' / 'manifest.json').unlink()
    (tmp_path / 'saving-30-1.orbax-checkpoint-tmp').mkdir()
    (tmp_path / 'notes').mkdir()
    assert checkpoint.complete_steps(tmp_path) == [10]
    assert checkpoint.find(tmp_path) == tmp_path / '10'
    assert (tmp_path / '20').exists()  # readers touch nothing
    caplog.clear()
    assert Checkpoints(tmp_path, keep=1).latest() == 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ['10', 'notes']
    assert sum('not finished' in record.getMessage() for record in caplog.records) == 2


def rewrite(folder, **changes):
    path = folder / 'manifest.json'
    manifest = {**json.loads(path.read_text())['manifest'], **changes}
    text = json.dumps({'manifest': manifest, 'sha256': files.digest_of(manifest)})
    path.write_text(text)


def test_format_of_the_future(tmp_path):
    saved(tmp_path, 10, 20)
    rewrite(tmp_path / '20', format=checkpoint.FORMAT + 1)
    with pytest.raises(CheckpointError, match='20 has format 3, known up to 2: update jepa_jax'):
        Checkpoints(tmp_path, keep=1).latest()


def test_older_format_is_upgraded(tmp_path, monkeypatch):
    """Format 0 called the encoder's bias `b`, and kept the count elsewhere."""
    state = make_state(mesh_of(2, 4))
    older = dataclasses.replace(state, params={'encoder': {'b': state.params['encoder']['bias']}})
    with Checkpoints(tmp_path, keep=1) as series:
        series.save(3, older, {'counts': {'bad': 2}})
    rewrite(tmp_path / '3', format=0)
    with pytest.raises(CheckpointError, match='format 0: no rule goes beyond 0'):
        checkpoint.read_manifest(tmp_path / '3')

    def rename(manifest):
        leaves = manifest['leaves']
        leaves['params/encoder/bias'] = leaves.pop('params/encoder/b')
        return {**manifest, 'extra': {'bad': manifest['extra']['counts']['bad']}}

    monkeypatch.setitem(files.UPGRADES, 0, rename)
    newer = dataclasses.replace(
        state, params={'encoder': {'bias': state.params['encoder']['bias']}}
    )
    result, extra = checkpoint.restore(tmp_path / '3', abstract_of(newer))
    assert_equal(result, newer)
    assert extra == {'bad': 2} and checkpoint.read_manifest(tmp_path / '3')['format'] == 2


OLD_RUNS = pathlib.Path(__file__).parent / 'old_runs'


def old_arrays(file):
    """Arrays by the names that they had in format 1."""
    with np.load(OLD_RUNS / f'expected_{file}.npz') as arrays:
        return dict(arrays)


def test_format_1_of_pretraining_had_its_average_as_target():
    folder = OLD_RUNS / 'masked' / 'checkpoints' / '4'
    assert json.loads((folder / 'manifest.json').read_text())['manifest']['format'] == 1
    manifest = checkpoint.read_manifest(folder)
    assert (manifest['format'], manifest['frozen']) == (2, {})
    names = {
        name.replace('target/', 'ema/encoder/') if name.startswith('target/') else name
        for name in old_arrays('masked')
    }
    assert manifest['leaves'].keys() == names == checkpoint.leaves(folder).keys()
    only = ('ema', 'params')
    result, _ = checkpoint.restore(folder, checkpoint.stored_abstract(folder, *only), only=only)
    assert result['ema'].keys() == {'encoder'} and result['params'].keys() == {
        'encoder',
        'predictor',
    }
    assert jax.tree.structure(result['ema']['encoder']) == jax.tree.structure(
        result['params']['encoder']
    )
    assert_equal(checkpoint.read_on_host(folder, 'ema/encoder'), result['ema']['encoder'])


def test_format_1_of_a_run_on_recordings_had_its_frozen_encoder_as_target():
    """It was the target of the pretraining run at its end."""
    folder = OLD_RUNS / 'action_conditioned' / 'checkpoints' / '4'
    assert {name.split('/')[0] for name in checkpoint.leaves(folder)} == {
        'params', 'frozen', 'opt_state', 'step'
    }  # fmt: skip
    encoder = files.named(checkpoint.read_on_host(folder, 'frozen/encoder'))
    expected = {
        name.removeprefix('target/'): array
        for name, array in old_arrays('masked').items()
        if name.startswith('target/')
    }
    assert encoder.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(encoder[name], array, err_msg=name, strict=True)


def test_format_1_without_a_config_is_weights_of_pretraining():
    names = checkpoint.leaves(OLD_RUNS / 'converted')
    assert {name.split('/')[0] for name in names} == {'params', 'ema'}


# Nets that a run never trains


FROZEN = {
    'teacher': {'w': np.arange(48, dtype=np.float32).reshape(4, 12), 'b': np.zeros(3, np.int8)}
}


def frozen_run(folder, *steps, frozen=FROZEN):
    """A run's folder with checkpoints that refer to frozen nets; and where those lie."""
    with Checkpoints(folder / 'checkpoints', keep=9) as series:
        series.keep_frozen(frozen)
        for step in steps:
            assert series.save(step, {'step': jnp.int32(step)}, {})
    assert not series.failures
    return sorted((folder / 'frozen').iterdir())


def test_frozen_nets_are_written_once_and_read_with_every_checkpoint(tmp_path):
    (place,) = frozen_run(tmp_path, 10, 20)
    written = {path: path.stat().st_mtime_ns for path in place.rglob('*')}
    (place.parent / f'saving-{place.name}-7.orbax-checkpoint-tmp').mkdir()  # a killed run's
    assert frozen_run(tmp_path, 30)[0] == place
    assert {path: path.stat().st_mtime_ns for path in place.rglob('*')} == written
    manifests = [checkpoint.read_manifest(tmp_path / f'checkpoints/{s}') for s in (10, 20, 30)]
    assert [m['frozen'] for m in manifests] == [{'teacher': place.name}] * 3
    assert all(m['leaves'].keys() == {'step'} for m in manifests)
    for step in (10, 30):
        folder = tmp_path / 'checkpoints' / str(step)
        assert {name: holder for name, (holder, _) in checkpoint.leaves(folder).items()} == {
            'step': folder, 'frozen/teacher/b': place, 'frozen/teacher/w': place,
        }  # fmt: skip
        result, _ = checkpoint.restore(folder, checkpoint.stored_abstract(folder))
        assert_equal(result, {'step': jnp.int32(step), 'frozen': FROZEN})
        assert_equal(checkpoint.read_on_host(folder, 'frozen/teacher'), FROZEN['teacher'])


def test_frozen_nets_are_told_apart_by_their_weights(tmp_path):
    (before,) = frozen_run(tmp_path, 10)
    other = {'teacher': FROZEN['teacher'] | {'b': np.ones(3, np.int8)}}
    assert len(frozen_run(tmp_path, 20, frozen=other)) == 2
    for step, nets in ((10, FROZEN), (20, other)):
        folder = tmp_path / 'checkpoints' / str(step)
        assert_equal(checkpoint.read_on_host(folder, 'frozen'), nets)
    hashes = [checkpoint.hash_arrays(net) for net in (FROZEN, other, FROZEN['teacher'])]
    assert len(set(hashes)) == 3
    assert checkpoint.hash_arrays(jax.tree.map(jnp.asarray, FROZEN)) == hashes[0]
    assert before.name == checkpoint.hash_arrays({'frozen': FROZEN})


def test_frozen_nets_go_onto_a_mesh(tmp_path):
    frozen_run(tmp_path, 10)
    mesh = mesh_of(2, 4)
    sharded, whole = (jax.NamedSharding(mesh, spec) for spec in (jax.P(None, 'fsdp'), jax.P()))
    template = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharded if a.ndim > 1 else whole),
        {'frozen': FROZEN},
    )
    result, _ = checkpoint.restore(tmp_path / 'checkpoints' / '10', template, only=('frozen',))
    assert_equal(result, {'frozen': FROZEN})
    kernel = result['frozen']['teacher']['w']
    assert kernel.sharding == sharded and kernel.addressable_shards[0].data.shape == (4, 3)


def test_damage_of_a_frozen_net_is_damage_of_its_checkpoints(tmp_path):
    (place,) = frozen_run(tmp_path, 10, 20)
    folder = tmp_path / 'checkpoints' / '20'
    assert checkpoint.problems(folder) == []
    victim = max(
        (p for p in place.rglob('*') if p.is_file() and p.name != 'manifest.json'),
        key=lambda path: path.stat().st_size,
    )
    flip(victim)
    assert checkpoint.problems(folder) == [f'{victim} differs from what was written (SHA-256)']
    with pytest.raises(Damaged, match=f'{victim} differs'):
        checkpoint.restore(folder, checkpoint.stored_abstract(folder))
    with pytest.raises(CheckpointError, match=f'is intact: {victim} differs'):
        Checkpoints(tmp_path / 'checkpoints', keep=1).latest()


def test_an_absent_frozen_net_is_named(tmp_path):
    (place,) = frozen_run(tmp_path, 10)
    shutil.rmtree(place)
    folder = tmp_path / 'checkpoints' / '10'
    assert checkpoint.problems(folder) == [f'the frozen teacher is absent: {place}']
    with pytest.raises(CheckpointError, match=f'frozen teacher in {place}: it is absent'):
        checkpoint.leaves(folder)
    with pytest.raises(Damaged, match=f'the frozen teacher is absent: {place}'):
        checkpoint.restore(folder, {'step': abstract_of(jnp.int32(0))}, only=('step',))
    # a run that is resumed writes it anew, from where it came
    assert frozen_run(tmp_path, 20) == [place] and checkpoint.problems(folder) == []


def test_a_checkpoint_that_was_copied_without_its_frozen_nets_says_so(tmp_path):
    frozen_run(tmp_path / 'run', 10)
    copy = tmp_path / 'elsewhere' / 'best'
    shutil.copytree(tmp_path / 'run' / 'checkpoints' / '10', copy)
    (line,) = checkpoint.problems(checkpoint.find(copy))
    assert line.startswith('the frozen teacher is absent: ')
    with pytest.raises(CheckpointError, match=f'{copy} refers to the frozen teacher in '):
        checkpoint.read_on_host(copy, 'frozen/teacher')
    shutil.copytree(tmp_path / 'run', tmp_path / 'whole')
    moved = tmp_path / 'whole' / 'checkpoints' / '10'
    assert_equal(checkpoint.read_on_host(moved, 'frozen'), FROZEN)


def test_no_room_for_a_frozen_net(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'free_bytes', lambda _: 100)
    with pytest.raises(CheckpointError, match='GiB needed, .* GiB free'):
        frozen_run(tmp_path, 10)
    assert not list((tmp_path / 'frozen').iterdir())


# Which one a path means


@pytest.mark.parametrize('make', ['absent', 'file', 'empty'])
def test_find_refuses(tmp_path, make):
    path = tmp_path / 'x'
    if make == 'file':
        path.write_text('')
    if make == 'empty':
        path.mkdir()
    with pytest.raises(CheckpointError, match='need a workdir, its checkpoints folder'):
        checkpoint.find(path)


def test_find(tmp_path):
    saved(tmp_path / 'run' / 'checkpoints', 10, 20)
    newest = tmp_path / 'run' / 'checkpoints' / '20'
    assert checkpoint.find(tmp_path / 'run') == newest
    assert checkpoint.find(newest.parent) == checkpoint.find(newest) == newest
    moved = newest.rename(tmp_path / 'best')
    assert checkpoint.find(moved) == moved and checkpoint.problems(moved) == []


# Retention and failures


def test_retention(tmp_path):
    series, _ = saved(tmp_path, 5, 10, 15, 20, 25, 30, keep=2, keep_every=10)
    assert series.steps() == [10, 20, 25, 30]
    saved(tmp_path, 35, keep=1)
    assert checkpoint.complete_steps(tmp_path) == [35]
    for keep, keep_every in ((0, 0), (1, -1)):
        with pytest.raises(ValueError, match='at least 1 and 0'):
            Checkpoints(tmp_path, keep=keep, keep_every=keep_every)


def test_old_one_goes_only_after_the_new_is_complete(tmp_path, monkeypatch):
    saved(tmp_path, 10, keep=1)
    seen = []

    def remove(folder):
        whole = not checkpoint.problems(tmp_path / '20')
        seen.append((folder.name, whole, checkpoint.complete_steps(tmp_path)))

    monkeypatch.setattr(run_of_checkpoints, '_remove', remove)
    saved(tmp_path, 20, keep=1)
    assert seen == [('10', True, [10, 20])]


def test_no_space_is_seen_before(tmp_path, monkeypatch, caplog):
    state = make_state(mesh_of(2, 4))
    with Checkpoints(tmp_path, keep=1) as series:
        assert series.save(10, state, {})
        series.wait()
        free = files.free_bytes
        monkeypatch.setattr(files, 'free_bytes', lambda _: 1000)
        assert not series.save(20, state, {})
        assert series.failures == 1 and 'step 20 is not saved: ' in series.last_error
        assert 'GiB free' in series.last_error
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert record.getMessage().endswith('; the last checkpoint is 10')
        monkeypatch.setattr(files, 'free_bytes', free)
        assert series.save(20, state, {})
        series.wait()
        assert series.failures == 1 and not series.last_error and series.latest() == 20


def test_bad_extra_is_a_mistake(tmp_path):
    with Checkpoints(tmp_path, keep=1) as series:
        with pytest.raises(ValueError, match='JSON'):
            series.save(1, {'a': jnp.zeros(3)}, {'x': float('nan')})
    assert series.failures == 0


def test_directory_that_cannot_be_used(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(CheckpointError, match='file cannot hold checkpoints'):
        Checkpoints(tmp_path / 'file', keep=1)


# Other processes: they run this file with the name of a function below

PYTHON = [sys.executable, '-W', 'error', __file__]


def environment():
    return {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}


def numbers(step, size=200_000):
    return {f'w{i}': jnp.full(size, step + i, jnp.float32) for i in range(4)}


def save_forever(directory):
    """Saves steps 10, 20, ... as fast as it can, after the newest there is."""
    with Checkpoints(directory, keep=2) as series:
        step = series.latest() or 0
        while True:
            step += 10
            series.save(step, numbers(step), {'step': step})
            print(step, flush=True)


def die_at(directory, where):
    """SIGKILLs itself at a point of the third save."""

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    with Checkpoints(directory, keep=1) as series:
        for step in (10, 20):
            series.save(step, numbers(step), {'step': step})
        series.wait()
        if where == 'hashing':
            files._hash = die
        if where == 'manifest':
            workdir.write_json = die
        if where == 'rename':
            pathlib.Path.rename = die
        if where == 'retention':
            shutil.rmtree = die
        series.save(30, numbers(30), {'step': 30})


def full_disk(directory, limit):
    """Fails in the second save, at files over `limit` bytes, and goes on."""
    import resource

    logging.basicConfig(format='%(name)s: %(message)s', level=logging.INFO, force=True)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails with EFBIG
    endless = resource.RLIM_INFINITY
    with Checkpoints(directory, keep=2) as series:
        for step, bound in ((10, endless), (20, int(limit)), (30, endless)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (bound, endless))
            series.save(step, numbers(step), {'step': step})
            series.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (endless, endless))
            print('result', step, series.failures, bool(series.last_error), flush=True)
        print('folders', *sorted(os.listdir(directory)), flush=True)


def one_of_two(directory, rank, port):
    """Saves with the other process, and resumes from what is intact."""
    jax.config.update('jax_num_cpu_devices', 2)
    jax.distributed.initialize(f'localhost:{port}', 2, int(rank))
    mesh = mesh_of(2, 2)

    def make(step):
        whole = np.arange(32, dtype=np.float32).reshape(4, 8) + step
        sharding = jax.NamedSharding(mesh, jax.P('data', 'fsdp'))
        return {'w': jax.make_array_from_callback((4, 8), sharding, lambda at: whole[at])}

    with Checkpoints(directory / 'checkpoints', keep=2) as series:
        series.keep_frozen(FROZEN)
        last = series.latest() or 0
        if last:
            assert_equal(checkpoint.read_on_host(series.directory / str(last), 'frozen'), FROZEN)
            result, extra = series.restore(last, abstract_of(make(0)), only=('w',))
            shards = zip(result['w'].addressable_shards, make(last)['w'].addressable_shards)
            assert all(np.array_equal(a.data, b.data) for a, b in shards)
            assert extra == {'step': last}
        for step in (last + 10, last + 20):
            assert series.save(step, make(step), {'step': step})
    assert not series.failures
    print(last, flush=True)


def check_survivor(directory, at_least):
    """What a restart after a kill finds: the newest complete step, right to the last number."""
    before = checkpoint.complete_steps(directory)
    series = Checkpoints(directory, keep=2)
    assert before and series.latest() == before[-1] >= at_least
    result, extra = series.restore(before[-1], abstract_of(numbers(0)))
    assert_equal(result, numbers(before[-1]))
    assert extra == {'step': before[-1]}
    assert sorted(p.name for p in directory.iterdir()) == sorted(map(str, before))
    return before[-1]


def test_killed_at_any_moment(tmp_path):
    reached = 0
    for delay in (0.0, 0.04, 0.09):
        child = subprocess.Popen(
            [*PYTHON, 'save_forever', str(tmp_path)],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        started = [int(child.stdout.readline()) for _ in range(3)]
        time.sleep(delay)
        child.kill()
        child.communicate()
        assert started[0] == reached + 10  # went on where the one before was found
        reached = check_survivor(tmp_path, started[1])


@pytest.mark.parametrize('where', ['hashing', 'manifest', 'rename', 'retention'])
def test_killed_there(tmp_path, where):
    child = subprocess.run([*PYTHON, 'die_at', str(tmp_path), where], env=environment())
    assert child.returncode == -signal.SIGKILL
    assert check_survivor(tmp_path, 10) == (30 if where == 'retention' else 20)


@pytest.mark.parametrize('limit', [100_000, 2_000])
def test_full_disk(tmp_path, limit):
    child = subprocess.run(
        [*PYTHON, 'full_disk', str(tmp_path), str(limit)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines() == [
        'result 10 0 False',
        'result 20 1 True',
        'result 30 1 False',
        'folders 10 30',
    ]
    ours = [line for line in child.stderr.splitlines() if line.startswith('jepa_jax')]
    assert 'step 20 is not saved' in ours[0] and 'the last checkpoint is 10' in ours[0]
    assert 'absl' not in child.stderr
    assert check_survivor(tmp_path, 30) == 30


def test_two_processes(tmp_path):
    def run():
        with socket.create_server(('localhost', 0)) as free:
            port = str(free.getsockname()[1])
        pair = [
            subprocess.Popen(
                [*PYTHON, 'one_of_two', str(tmp_path), str(rank), port],
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        outputs = [process.communicate(timeout=60) for process in pair]
        assert [process.returncode for process in pair] == [0, 0], outputs
        return [int(out.splitlines()[-1]) for out, _ in outputs]

    assert run() == [0, 0]
    saves = tmp_path / 'checkpoints'
    flip(saves / '20' / 'state' / '_METADATA')  # only process 0 looks, both must agree
    assert run() == [10, 10]
    assert checkpoint.complete_steps(saves) == [20, 30]
    assert checkpoint.problems(saves / '20') == checkpoint.problems(saves / '30') == []


def test_inspect(tmp_path):
    saved(tmp_path / 'checkpoints', 10, 20)

    def run(*args):
        command = [sys.executable, '-m', 'tools.inspect_checkpoint', *args]
        return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)

    done = run(str(tmp_path), '--verify', '--params')
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('intact') == 2 and 'step 20' in done.stdout
    assert 'params/predictor/half' in done.stdout and 'bfloat16' in done.stdout
    assert 'config   x' in done.stdout and 'format   2' in done.stdout
    victim = tmp_path / 'checkpoints' / '20' / '_CHECKPOINT_METADATA'
    flip(victim)
    done = run(str(tmp_path), '--verify')
    assert done.returncode == 1 and done.stderr.startswith(f'error: {victim} differs')
    assert len(done.stderr.splitlines()) == 1
    older = tmp_path / 'checkpoints' / '10' / checkpoint.MANIFEST
    older.write_text('{')
    done = run(str(tmp_path))  # the newest one's manifest is whole
    assert done.returncode == 1 and done.stderr.startswith(f'error: {older} is not a manifest')
    (tmp_path / 'begun').mkdir()
    (tmp_path / 'begun/config.json').write_text('{"name": "x"}')
    done = run(str(tmp_path / 'begun'))  # a run, no folder of Hugging Face's
    assert done.returncode == 1 and 'unfinished or no checkpoint' in done.stderr
    assert run('--help').returncode == 0


if __name__ == '__main__':
    globals()[sys.argv[1]](pathlib.Path(sys.argv[2]), *sys.argv[3:])
