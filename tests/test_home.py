"""Runs whose workdir is in a bucket, against moto's server for S3 and gcp-storage-emulator for GCS,
both of which speak the stores' own language over HTTP."""

import contextlib
import dataclasses
import hashlib
import http.server
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from PIL import Image
from small_run import ROOT, STEPS, assert_same_run, parents, rows

import jepa_jax
from jepa_jax import bucket, fetched, home, recipes, start, train
from jepa_jax.bucket import Bucket, _amazon
from jepa_jax.checkpoint import Checkpoints, find, problems, read_on_host
from jepa_jax.config import DataConfig, DataListConfig, MaskedVideoConfig, layouts
from jepa_jax.data.sources import open_source
from jepa_jax.errors import BucketError, CheckpointError, ConfigError, ZooError
from jepa_jax.metrics import read
from jepa_jax.weights import names

FROZEN = {'scale': np.arange(6, dtype=np.float32)}
ELSEWHERE = {'pid': 7, 'host': 'other', 'since': 'today', 'mark': 'jepa_jax-00000000-7-7-'}


@pytest.fixture(scope='module')
def amazon():
    """Variables that lead to a server of S3 with one bucket, `runs`."""
    server = pytest.importorskip('moto.server').ThreadedMotoServer('127.0.0.1', 0, verbose=False)
    server.start()
    address = 'http://{}:{}'.format(*server.get_host_and_port())
    urllib.request.urlopen(urllib.request.Request(f'{address}/runs', method='PUT')).close()
    keys = {'AWS_ACCESS_KEY_ID': 'a', 'AWS_SECRET_ACCESS_KEY': 'b', 'AWS_REGION': 'us-east-1'}
    yield {**keys, 'AWS_ENDPOINT_URL': address}
    server.stop()


@pytest.fixture
def s3(amazon, monkeypatch, tmp_path):
    for name, value in {**amazon, 'JEPA_JAX_CACHE': str(tmp_path / 'cache')}.items():
        monkeypatch.setenv(name, value)
    return f's3://runs/{tmp_path.name}'


@pytest.fixture(scope='module')
def google():
    emulator = pytest.importorskip('gcp_storage_emulator.server')
    server = emulator.create_server('127.0.0.1', 0, in_memory=True)
    read = emulator._read_data
    with pytest.MonkeyPatch.context() as patched:
        # it takes no object without bytes
        patched.setattr(emulator, '_read_data', lambda *asked: read(*asked) or b'')
        server.start()
        yield 'http://{}:{}'.format(*server._api._httpd.server_address)
        server.stop()


@pytest.fixture(params=['s3', 'gs'])
def url(request, monkeypatch, tmp_path):
    """Of a run that is not there yet, in each kind of bucket."""
    if request.param == 's3':
        return request.getfixturevalue('s3')
    address = request.getfixturevalue('google')
    name = tmp_path.name.replace('_', '-')  # one a test: the emulator lists all that is in a bucket
    made = json.dumps({'name': name}).encode()
    headers = {'Content-Type': 'application/json'}
    urllib.request.urlopen(urllib.request.Request(f'{address}/storage/v1/b', made, headers)).close()
    monkeypatch.setenv('TENSORSTORE_GCS_HTTP_URL', address)
    monkeypatch.setenv('JEPA_JAX_CACHE', str(tmp_path / 'cache'))
    return f'gs://{name}/run'


def state(step):
    return {'w': jnp.full((3, 5), step, jnp.float32), 'step': jnp.int32(step)}


def save(place, *steps, keep=2):
    """As a run does it: rows first, then the checkpoint."""
    with Checkpoints(place.folder / 'checkpoints', keep=keep, publish=place.publish) as saves:
        saves.keep_frozen({'teacher': FROZEN})
        for step in steps:
            with (place.folder / 'metrics.jsonl').open('a') as file:
                file.write(f'{{"step": {step}}}\n')
            saves.save(step, state(step), {'step': step})
        saves.wait()
        assert not saves.failures, saves.last_error


def steps_of(objects) -> dict[int, bool]:
    """Steps with a manifest -> whether each of the files that it lists is there as it says."""
    result = {}
    for name, content in objects.items():
        match name.split('/'):
            case ['checkpoints', step, 'manifest.json']:
                listed = json.loads(content)['manifest']['files']
                result[int(step)] = all(
                    hashlib.sha256(objects.get(f'checkpoints/{step}/{file}', b'')).hexdigest()
                    == row['sha256']
                    for file, row in listed.items()
                )
    return result


def contents(url):
    bucket = Bucket(url)
    return {name: bucket.read(name)[0] for name in bucket.names()}


def copy(objects, folder):
    for name, content in objects.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_a_run_goes_on_where_its_bucket_is(url, tmp_path, monkeypatch):
    """On another machine, that is without the first one's folder: the newest checkpoint alone is
    fetched, older ones are known and removed when their time comes."""
    with home.of(url) as place:
        assert place.name == url and not any(p for p in place.folder.iterdir() if p.name != '.lock')
        save(place, 10, 20, 30)
        (place.folder / 'report.html').write_text('a page')
    assert not place.folder.exists()
    held = contents(url)
    assert steps_of(held) == {20: True, 30: True}
    assert held['report.html'] == b'a page' and held['metrics.jsonl'].count(b'\n') == 3
    assert not {'.lock'} & held.keys()
    Bucket(url).write('checkpoints/40/half', b'what a killed save left')
    Bucket(url).write('checkpoints/notes.txt', b'not ours')

    monkeypatch.setenv('JEPA_JAX_CACHE', str(tmp_path / 'other'))
    with home.of(url) as place:
        assert not list((place.folder / 'checkpoints/20').glob('**/d/*'))
        with Checkpoints(place.folder / 'checkpoints', keep=2) as saves:
            assert saves.steps() == [20, 30] and saves.latest() == 30
            result, extra = saves.restore(30, jax.eval_shape(lambda: state(0)), only=('w', 'step'))
            kept = read_on_host(saves.directory / '30', 'frozen/teacher')
        np.testing.assert_array_equal(kept['scale'], FROZEN['scale'])
        np.testing.assert_array_equal(result['w'], np.full((3, 5), 30))
        assert extra == {'step': 30}
        save(place, 40)
    held = contents(url)
    assert steps_of(held) == {30: True, 40: True}
    assert not [name for name in held if name.startswith(('checkpoints/20', 'checkpoints/40/half'))]
    assert held['checkpoints/notes.txt'] == b'not ours'


def test_small_files_go_while_it_runs(s3, monkeypatch):
    monkeypatch.setattr(home, 'BEAT', 0.05)
    monkeypatch.setattr(home, 'SMALL', 2)
    with home.of(s3) as place:
        (place.folder / 'metrics.jsonl').write_text('a row')
        (place.folder / 'checkpoints/10').mkdir(parents=True)
        (place.folder / 'checkpoints/10/half').write_text('goes with its save')
        end = time.monotonic() + 20
        while 'metrics.jsonl' not in Bucket(s3).names() and time.monotonic() < end:
            time.sleep(0.05)
        assert {*Bucket(s3).names()} == {'.lock', 'metrics.jsonl'}


def test_a_damaged_checkpoint_is_passed_over(s3):
    with home.of(s3) as place:
        save(place, 10, 20)
    bucket = Bucket(s3)
    name = next(n for n in bucket.names() if n.startswith('checkpoints/20/') and '/d/' in n)
    bucket.write(name, bytes(len(bucket.read(name)[0])))
    with home.of(s3) as place, Checkpoints(place.folder / 'checkpoints', keep=2) as saves:
        assert saves.latest() == 10


def test_killed_at_any_moment(s3, monkeypatch):
    """After every single request: what has a manifest is whole, a checkpoint that was there stays
    until a newer one is, and its rows are there before it is."""
    write, objects, moments, turn = Bucket.write, {}, [], threading.Lock()

    def watched(self, name, content, over=None):
        with turn:
            result = write(self, name, content, over)
            objects[name] = content
            moments.append({n: c for n, c in objects.items() if c is not None})
        return result

    monkeypatch.setattr(Bucket, 'write', watched)
    with home.of(s3) as place:
        save(place, 10, keep=1)
        save(place, 20, 30, keep=1)
    seen = [steps_of(moment) for moment in moments]
    assert len(seen) > 30 and all(all(steps.values()) for steps in seen)
    first = next(i for i, steps in enumerate(seen) if steps)
    assert all(seen[first:]) and set().union(*seen) == {10, 20, 30} and seen[-1] == {30: True}
    newest = [max(steps, default=0) for steps in seen]
    assert newest == sorted(newest)
    for step, moment in zip(newest, moments):
        assert not step or b'"step": %d' % step in moment['metrics.jsonl']


def test_a_save_that_does_not_arrive_has_failed(s3, monkeypatch):
    write = Bucket.write

    def away(self, name, content, over=None):
        if name.startswith('checkpoints/20/') and content is not None:
            raise BucketError(f'{self.url}: away')
        return write(self, name, content, over)

    with home.of(s3) as place:
        folder = place.folder / 'checkpoints'
        with Checkpoints(folder, keep=2, publish=place.publish) as saves:
            saves.save(10, state(10), {})
            saves.wait()
            with monkeypatch.context() as patched:
                patched.setattr(Bucket, 'write', away)
                saves.save(20, state(20), {})
                saves.wait()
            assert saves.last_error == f'step 20 is not saved: {s3}: away'
            assert saves.steps() == [10]
            saves.save(20, state(20), {})
            saves.wait()
            assert (saves.failures, saves.last_error) == (1, '')
    assert steps_of(contents(s3)) == {10: True, 20: True}


def test_one_run_at_a_time(s3, monkeypatch):
    monkeypatch.setattr(home, 'LOST', 1.0)
    bucket, sign = Bucket(s3), json.dumps(ELSEWHERE).encode()
    with home.of(s3):
        with pytest.raises(ConfigError, match=f'workdir {s3} is in use by process {os.getpid()}'):
            home.of(s3).__enter__()
    told, words = [], 'taken over by another run; what is not there lies in'
    with monkeypatch.context() as patched, pytest.raises(BucketError, match=words):
        patched.setattr(home, 'BEAT', 0.05)
        patched.setattr(home.os, 'kill', lambda *what: told.append(what))
        with home.of(s3):
            bucket.write('.lock', sign)  # what should not happen
            end = time.monotonic() + 20
            while not told and time.monotonic() < end:
                time.sleep(0.01)
    assert told == [(os.getpid(), signal.SIGTERM)]
    with home.of(s3):  # it gave no sign of life
        pass
    done = threading.Event()

    def beat():
        while not done.wait(0.1):
            bucket.write('.lock', sign + str(time.monotonic()).encode())

    bucket.write('.lock', sign)
    other = threading.Thread(target=beat)
    other.start()
    try:
        with pytest.raises(ConfigError, match='is in use by process 7 on other since today; stop'):
            home.of(s3).__enter__()
    finally:
        done.set()
        other.join()


def test_a_dead_process_of_this_machine_holds_nothing(s3, monkeypatch):
    child = subprocess.Popen(['sleep', '60'])
    mark = home.scratch.mark().replace(f'-{os.getpid()}-', f'-{child.pid}-')
    began = home.scratch._began(child.pid)
    mark = f'{mark.rsplit("-", 2)[0]}-{began}-'
    Bucket(s3).write('.lock', json.dumps({**ELSEWHERE, 'mark': mark}).encode())
    with pytest.raises(ConfigError, match='in use by process 7'):
        home.of(s3).__enter__()
    child.kill()
    child.wait()
    monkeypatch.setattr(home._Lease, '_changes', None)  # is not asked
    with home.of(s3):
        pass


def test_what_cannot_be_reached_is_one_line(s3, monkeypatch):
    with pytest.raises(ConfigError, match='^workdir s3://absent/run: NOT_FOUND: NoSuchBucket: '):
        home.of('s3://absent/run').__enter__()
    with pytest.raises(ConfigError, match='^workdir s3://absent/run: NOT_FOUND: NoSuchBucket: '):
        recipes.validate(_of('videos', s3), 's3://absent/run')  # before JAX is imported
    with socket.create_server(('127.0.0.1', 0)) as silent:
        for port, answer in ((1, 20.0), (silent.getsockname()[1], 1.0)):
            monkeypatch.setattr('jepa_jax.bucket.ANSWER', answer)
            monkeypatch.setenv('AWS_ENDPOINT_URL', f'http://127.0.0.1:{port}')
            began = time.monotonic()
            with pytest.raises(ConfigError, match=f'^workdir {s3}: .*(connect|no answer)') as said:
                home.of(s3).__enter__()
            assert time.monotonic() - began < 30 and '\n' not in str(said.value)


class Slow:
    """A bucket in memory whose answers take a while, but for the lock's."""

    url, wait = 's3://slow/run', 0.0

    def __init__(self):
        self.objects, self.signs, self.turn = {'there': b'x'}, [], threading.Lock()

    def check(self):
        pass

    def names(self):
        return sorted(self.objects)

    def read(self, name, unlike=b''):
        if name != '.lock':
            time.sleep(self.wait)
        content = self.objects.get(name)
        return content, str(hash(content)).encode() if content else b''

    def write(self, name, content, over=None):
        if name != '.lock':
            time.sleep(self.wait)
        with self.turn:
            if name == '.lock':
                if over and over != self.read(name)[1]:
                    return b''
                self.signs.append(time.monotonic())
            if content is None:
                self.objects.pop(name, None)
            else:
                self.objects[name] = content
            return self.read('.lock')[1]


def test_a_run_gives_signs_of_life_whatever_is_on_its_way(tmp_path, monkeypatch):
    """While it fetches, puts what is small, and puts what is left at the end: each takes longer
    than after which a run counts as dead."""
    monkeypatch.setenv('JEPA_JAX_CACHE', str(tmp_path))
    monkeypatch.setattr(home, 'BEAT', 0.02)
    monkeypatch.setattr(home, 'SMALL', 1)
    monkeypatch.setattr(Slow, 'wait', 0.6)
    slow = Slow()
    place = home.BucketHome(slow)
    with place.held():
        (place.folder / 'trace').write_bytes(b'x')
        time.sleep(0.2)  # it is on its way
        (place.folder / 'last').write_bytes(b'x')
    assert slow.objects.keys() == {'there', 'trace', 'last'}
    assert slow.signs[-1] - slow.signs[0] > 1.7
    assert np.diff(slow.signs).max() < 0.5


@pytest.mark.parametrize('names_left', ['abc', 'a'])
def test_what_is_left_is_put_over_no_other_run(names_left, tmp_path, monkeypatch):
    monkeypatch.setenv('JEPA_JAX_CACHE', str(tmp_path))
    monkeypatch.setattr(home, 'BEAT', 0.02)
    monkeypatch.setattr(home, '_AT_ONCE', 1)
    monkeypatch.setattr(home, 'SMALL', 10**6)  # all of it at the end
    monkeypatch.setattr(home.os, 'kill', lambda *what: pytest.fail('it ends anyway'))
    slow = Slow()
    place = home.BucketHome(slow)
    write = slow.write

    def taken(name, content, over=None):
        if name != '.lock':
            write('.lock', json.dumps(ELSEWHERE).encode())
            end = time.monotonic() + 20
            while not place._lease._lost and time.monotonic() < end:
                time.sleep(0.01)
        return write(name, content, over)

    slow.write = taken
    with pytest.raises(BucketError, match='has been taken over by another run; what is not there'):
        with place.held():
            for name in names_left:
                (place.folder / name).write_bytes(b'x')
    assert len(slow.objects) == 3  # what was there, the lock, and what was on its way
    assert json.loads(slow.objects['.lock']) == ELSEWHERE


@pytest.mark.parametrize(
    'address', ['s3://runs', 's3://runs/', 's3://R/x', 'gs://b/../x', 's3:///x']
)
def test_no_address(address):
    with pytest.raises(ConfigError, match='must be gs://BUCKET/FOLDER or s3://BUCKET/FOLDER'):
        Bucket(address)


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(file, 'png')
    return file.getvalue()


def test_a_list_in_a_bucket_is_copied_once(url):
    """What has changed there is copied again, what is gone there goes."""
    bucket, data = Bucket(url), DataConfig(frames=1)
    for name, value in (('a/0.png', 10), ('a/1.png', 20), ('b.png', 30)):
        bucket.write(name, png(value))

    def pixels():
        source = open_source(DataListConfig(kind='images', path=url), data)
        read = [source.read(i, 1, np.random.default_rng(0)) for i in range(len(source))]
        return [int(clip.max()) for clip in read], source

    values, source = pixels()
    assert values == [10, 20, 30]
    if url.startswith('gs'):
        return  # the emulator does not say which state of an object it gives
    times = {
        path: path.stat().st_mtime_ns for path in (Path(source.name(i)) for i in range(len(source)))
    }
    assert pixels()[0] == [10, 20, 30]
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    bucket.write('a/1.png', png(21))
    bucket.write('b.png', None)
    assert pixels()[0] == [10, 21]

    bucket.write('list.txt', ''.join(f'{path}\n' for path in [*times][:2]).encode())
    copied = fetched.local(f'{url}/list.txt')
    assert copied.name == 'list.txt' and copied.read_text().count('\n') == 2
    assert fetched.local(f'{url}/list.txt') == copied


def test_what_aws_configure_left_is_used(s3, tmp_path, monkeypatch, capfd):
    """Without a word on the terminal."""
    (tmp_path / '.aws').mkdir()
    credentials = tmp_path / '.aws/credentials'
    credentials.write_text('[default]\naws_access_key_id = a\naws_secret_access_key = b\n')
    monkeypatch.setenv('HOME', str(tmp_path))
    for name in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', 'AWS_REGION'):
        monkeypatch.delenv(name)
    Bucket(s3).write('x', b'1')
    assert Bucket(s3).names() == ['x']
    said = capfd.readouterr().err  # the server of the test says what it is asked
    assert not [line for line in said.splitlines() if not line.startswith('127.0.0.1 ')]
    monkeypatch.setenv('AWS_PROFILE', 'work')
    with pytest.raises(ConfigError, match="'work': no such profile .*; profiles there: default$"):
        Bucket(s3)
    with credentials.open('a') as file:
        file.write('[work]\naws_access_key_id = a\naws_secret_access_key = b\n')
    (tmp_path / '.aws/config').write_text('[profile work]\nregion = eu-west-1\ns3 =\n  x = 1\n')
    assert Bucket(s3).names() == ['x']
    credentials.write_text('aws_access_key_id = a\n')
    with pytest.raises(ConfigError, match='credentials of S3: File contains no section headers'):
        Bucket(s3)
    assert _amazon({'AWS_ACCESS_KEY_ID': 'a'})['aws_credentials'] == {'type': 'environment'}
    credentials.write_text('[work]\naws_access_key_id = a\naws_secret_access_key = b\n')
    spec = _amazon(dict(os.environ))
    assert spec['aws_region'] == 'eu-west-1' and spec['aws_credentials']['profile'] == 'work'


def test_no_credentials_at_all(s3, tmp_path, monkeypatch, capfd):
    """What is public can be read; else that is one line."""
    Bucket(s3).write('x', b'1')
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.delenv('AWS_ACCESS_KEY_ID')
    monkeypatch.setattr(bucket, '_METADATA', '127.0.0.1:9')
    with pytest.raises(BucketError, match='DENIED.*; asked without credentials: set AWS_ACCESS'):
        Bucket(s3).read('x')
    address = f'{os.environ["AWS_ENDPOINT_URL"]}/{s3.removeprefix("s3://")}/open'
    headers = {'x-amz-acl': 'public-read', 'Authorization': 'AWS a:b', 'Content-Type': 'text/plain'}
    asked = urllib.request.Request(address, b'2', headers, method='PUT')
    urllib.request.urlopen(asked).close()
    assert Bucket(s3).read('open')[0] == b'2'
    said = capfd.readouterr().err
    assert not [line for line in said.splitlines() if not line.startswith('127.0.0.1 ')]

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_PUT(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(('127.0.0.1', 0), Metadata) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        monkeypatch.setattr(bucket, '_METADATA', f'127.0.0.1:{server.server_port}')
        assert bucket._has_role()
        thread.join()


@pytest.mark.parametrize(
    'environment, kind',
    [
        ({}, 'imds'),
        ({'AWS_ACCESS_KEY_ID': 'a', 'AWS_PROFILE': 'none'}, 'environment'),
        ({'AWS_CONTAINER_CREDENTIALS_RELATIVE_URI': '/x'}, 'ecs'),
        ({'AWS_WEB_IDENTITY_TOKEN_FILE': '/x'}, 'default'),
    ],
)
def test_where_credentials_are_looked_for(environment, kind, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert _amazon(environment)['aws_credentials']['type'] == kind
    tensorstore.KvStore.Spec({'driver': 's3', 'bucket': 'runs', **_amazon(environment)})


def test_a_list_that_is_not_there_is_one_line(s3):
    for path, words in ((f'{s3}/x', 'nothing is there'), ('s3://absent/x', 'NoSuchBucket')):
        with pytest.raises(ConfigError, match=rf'^data.lists\[0\].path: .*{path}.*{words}') as said:
            open_source(DataListConfig(path=path), DataConfig())
        assert '\n' not in str(said.value)
    assert not list(layouts.missing(_of('videos', s3), 'absent'))
    assert 'mount the bucket' in next(layouts.missing(_of('tfds', s3), 'absent'))


def test_a_run_in_a_bucket_is_a_model(runs, s3, tmp_path, caplog):
    """Its newest checkpoint is copied, or the one that is named."""
    run, bucket = runs.finished(), Bucket(s3)
    for path in run.rglob('*'):
        if path.is_file() and not path.name.startswith('.'):
            bucket.write(path.relative_to(run).as_posix(), path.read_bytes())
    bucket.write('checkpoints/99/half', b'of a save under way')
    steps = [path.name for path in (run / 'checkpoints').iterdir()]
    assert str(STEPS) in steps and len(steps) > 1
    clips = np.random.default_rng(0).integers(0, 256, (1, 4, 32, 32, 3), np.uint8)
    ours, theirs = (jepa_jax.load(place).encode(clips) for place in (s3, str(run)))
    np.testing.assert_array_equal(ours, theirs)
    copied = list(tmp_path.glob('cache/buckets/data-*/files/checkpoints/*'))
    assert [path.name for path in copied] == [str(STEPS)]
    caplog.clear()
    with caplog.at_level('INFO', 'jepa_jax'):
        assert find(s3).name == str(STEPS)
    assert 'copied' not in caplog.text  # all of it is there
    earlier = min(steps, key=int)
    for name in (earlier, str(STEPS)):
        folder = find(f'{s3}/checkpoints/{name}')
        assert folder.name == name and not problems(folder)
    assert [p for p in bucket.names() if p.startswith('checkpoints/99')]  # nothing is removed there


def test_a_model_that_is_not_there_is_one_line(s3):
    for url, words in ((f'{s3}/x', 'nothing is there'), ('s3://absent/x', 'NoSuchBucket')):
        with pytest.raises(ZooError, match=rf"^model '{url}': .*{words}") as said:
            jepa_jax.load(url)
        assert '\n' not in str(said.value)
        with pytest.raises(CheckpointError, match=words):
            find(url)
    with pytest.raises(ZooError, match='must be gs://BUCKET/FOLDER'):
        names.check('s3://B/x')
    config = MaskedVideoConfig()
    config.checkpoints.init_from = 's3://B/x'
    assert 'init_from = s3://B/x: must be gs://' in next(layouts.missing(config, 'absent'))


def _of(kind, path):
    config = MaskedVideoConfig()
    config.data.lists = [DataListConfig(kind=kind, path=path)]
    return config


def test_a_finished_run_is_left_as_it_is(s3, monkeypatch, caplog):
    monkeypatch.setattr(start, 'logging_to_terminal', lambda: None)
    monkeypatch.setattr(start, 'compilation_cache', lambda use: None)
    config, bucket = _of('synthetic', ''), Bucket(s3)
    report = {'steps': config.optim.steps, 'verdict': 'healthy'}
    for name, value in (('report.json', report), ('config.json', dataclasses.asdict(config))):
        bucket.write(name, json.dumps(value).encode())
    before = contents(s3)
    with caplog.at_level('INFO', 'jepa_jax'):
        train.train(config, s3, False, False, 'config.py')
    assert f'{s3} is finished: healthy' in caplog.messages and contents(s3) == before


class Address(str):
    """A workdir for small_run."""

    name = 'in_a_bucket'


@pytest.mark.slow
def test_killed_and_resumed(runs, amazon, tmp_path, monkeypatch):
    """Equal to a run in a folder that nobody stopped, bit for bit."""
    for name, value in amazon.items():
        monkeypatch.setitem(runs.environment, name, value)
        monkeypatch.setenv(name, value)
    url = Address('s3://runs/killed')
    bucket = Bucket(url)
    with runs.start(url, 'data.workers=0') as run:
        run.until(lambda: time.sleep(0.2) or 'checkpoints/8/manifest.json' in bucket.names())
        assert run.kill() == -signal.SIGKILL
    assert 'report.json' not in bucket.names()
    shutil.rmtree(runs.folder / 'cache/buckets')  # another machine
    done = runs.run(url, 'data.workers=0')
    assert done.returncode == 0, done.stderr
    assert 'resumes from step' in done.stderr and f'report: {url}/report.json' in done.stderr
    copy(contents(url), tmp_path / 'copy')
    assert len(rows(tmp_path / 'copy')) == STEPS
    assert_same_run(tmp_path / 'copy', runs.finished())
    page = (tmp_path / 'copy/report.html').read_text()
    assert f'--workdir={url}' in page and 'cache/buckets' not in page
    with contextlib.suppress(FileNotFoundError):
        assert not any(p.is_dir() for p in (runs.folder / 'cache/buckets').rglob('*'))


MACHINE = """import os

from jepa_jax import scratch

if process := os.environ.get('JEPA_JAX_PROCESS'):  # as if it ran on a machine of its own
    os.environ['JEPA_JAX_CACHE'] = os.environ['JEPA_JAX_CACHE'].format(process)
    scratch._place = lambda: f'{process}0000000'
"""


def together(runs, folder, url, *flags, cache='cache/machine{}', meanwhile=lambda launcher: None):
    """Exit status and log of a run of two processes, each as if on a machine of its own."""
    (folder / 'site').mkdir(exist_ok=True)
    (folder / 'site/sitecustomize.py').write_text(MACHINE)
    environment = {
        **runs.environment, 'PYTHON': sys.executable, 'DEVICES_PER_PROCESS': '4',
        'PYTHONPATH': f'{folder / "site"}:{runs.environment["PYTHONPATH"]}',
        'JEPA_JAX_CACHE': str(folder / cache), 'GRACE': '5',
    }  # fmt: skip
    command = ['bash', ROOT / 'launch/local.sh', '2', '--no-compilation-cache', *flags]
    command += runs.command(url, 'data.workers=0', 'mesh.fsdp=8')[3:]
    with (folder / 'log').open('wb') as log:
        launched = subprocess.Popen(
            command, cwd=runs.folder, env=environment, stdout=log, stderr=log
        )
        try:
            meanwhile(launched.pid)
            status = launched.wait(600)
        finally:
            launched.terminate()
    return status, (folder / 'log').read_text(errors='replace')


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists('/proc/self/stat'), reason='reads /proc')
def test_a_run_of_two_machines(runs, amazon, tmp_path, monkeypatch):
    """Killed, and resumed on other machines: every step as in one process of as many devices."""
    for name, value in amazon.items():
        monkeypatch.setitem(runs.environment, name, value)
        monkeypatch.setenv(name, value)
    url = Address('s3://runs/machines')
    bucket = Bucket(url)

    def kill(launcher):
        end = time.monotonic() + 300
        while 'checkpoints/8/manifest.json' not in bucket.names():
            alive = [pid for pid, parent in parents().items() if parent == launcher]
            assert alive and time.monotonic() < end, (tmp_path / 'log').read_text()
            time.sleep(0.1)
        # both: a collective of this version of Gloo may wait long for one that is gone
        for pid in alive:
            os.kill(pid, signal.SIGKILL)

    status, log = together(runs, tmp_path, url, meanwhile=kill)
    assert status == 75, log
    assert 'report.json' not in bucket.names()
    assert all(steps_of(contents(url)).values()) and 8 in steps_of(contents(url))
    shutil.rmtree(tmp_path / 'cache')  # other machines
    status, log = together(runs, tmp_path, url, '--profile')
    assert status == 0, log
    assert 'resumes from step' in log
    for machine in range(2):  # nothing is left there
        left = (tmp_path / f'cache/machine{machine}').rglob('buckets/**/*')
        assert not [path for path in left if path.is_file() and path.name != '.lock']
    held = contents(url)
    assert all(steps_of(held).values()) and '.lock' not in held
    assert [name for name in held if name.endswith('.xplane.pb')]

    alone = runs.workdir()
    done = subprocess.run(
        runs.command(alone, 'data.workers=0', 'mesh.fsdp=8'), cwd=runs.folder, timeout=600,
        env={**runs.environment, 'JAX_NUM_CPU_DEVICES': '8'}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    copy(held, tmp_path / 'copy')
    ours, theirs = ({r['step']: r['loss'] for r in read(w)} for w in (tmp_path / 'copy', alone))
    assert sorted(ours) == sorted(theirs) == list(range(1, STEPS + 1))
    np.testing.assert_allclose([ours[n] for n in theirs], [*theirs.values()], rtol=1e-6)
    for part in ('params/encoder', 'ema/encoder'):
        one, other = (
            read_on_host(w / f'checkpoints/{STEPS}', part) for w in (tmp_path / 'copy', alone)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, other)


@pytest.mark.slow
def test_two_machines_whose_cache_is_one_disk(runs, amazon, tmp_path, monkeypatch):
    """They write their parts of a checkpoint there, as for any folder that both see."""
    for name, value in amazon.items():
        monkeypatch.setitem(runs.environment, name, value)
        monkeypatch.setenv(name, value)
    url = Address('s3://runs/disk')
    status, log = together(runs, tmp_path, url, cache='cache')
    assert status == 0, log
    held = contents(url)
    assert steps_of(held)[STEPS] and '.lock' not in held
    parts = {name.split('/')[3] for name in held if '/ocdbt.process_' in name}
    assert len(parts) == 2, parts


def test_another_machine_of_a_run_adds_what_only_it_has(s3, tmp_path, monkeypatch):
    with home.of(s3) as place:
        save(place, 10)
        (place.folder / 'report.html').write_text('of process 0')
        place.publish()
        with monkeypatch.context() as there:
            there.setenv('JEPA_JAX_CACHE', str(tmp_path / 'other'))
            other = home.BucketHome(Bucket(s3))
            with other.copied():
                assert other.folder != place.folder
                assert (other.folder / 'report.html').read_text() == 'of process 0'
                with Checkpoints(other.folder / 'checkpoints', keep=2, shared=False) as saves:
                    assert saves.latest() == 10
                (place.folder / 'report.html').write_text('newer')
                place.publish()
                (other.folder / 'profile').mkdir()
                (other.folder / 'profile/its.trace').write_bytes(b'what it did')
            assert not other.folder.exists()
        held = contents(s3)
        assert held['profile/its.trace'] == b'what it did' and held['report.html'] == b'newer'
        assert '.lock' in held  # process 0's still
    held = contents(s3)
    assert 'profile/its.trace' in held and steps_of(held) == {10: True}


def test_one_process_writes_what_others_do_not_see(tmp_path):
    """As process 0 of several machines does it: what is read is what was to be saved."""
    folder = tmp_path / 'checkpoints'
    with Checkpoints(folder, keep=2, shared=False) as saves:
        saves.keep_frozen({'teacher': FROZEN})
        before = state(3)
        assert saves.save(3, before, {'step': 3})
        saves.wait()
        assert not saves.failures, saves.last_error
        saved, extra = saves.restore(3, jax.eval_shape(lambda: state(0)), only=('w', 'step'))
    assert extra == {'step': 3}
    jax.tree.map(np.testing.assert_array_equal, saved, before)
    held = read_on_host(folder / '3', 'frozen/teacher')
    np.testing.assert_array_equal(held['scale'], FROZEN['scale'])
