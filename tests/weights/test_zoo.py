"""Names, downloads and paths: a loopback server, and files as the original writes them."""

import functools
import gzip
import hashlib
import http.server
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import urllib.request

import numpy as np
import originals
import pytest
import torch

import jepa_jax
from jepa_jax import convert
from jepa_jax.errors import ConvertError, ZooError
from jepa_jax.pretrained import random_configs
from jepa_jax.weights import download, names, zoo

ROOT = pathlib.Path(__file__).resolve().parents[2]
LABELS = {'linear': ('a', 'b', 'c', 'd', 'e', 'f', 'g')}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


class Server:
    """Serves a folder with ranges; `cuts`: bytes after which each next answer ends too early."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.cuts, self.asked = folder, [], []
        self.ranges, self.etag, self.headers, self.length = True, True, {}, None
        self.if_range = True  # whether it knows of If-Range
        self.redirects = {}
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):  # noqa: N802
                server.answer(self)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.http.server_address[1]}/'
        self.thread = threading.Thread(target=self.http.serve_forever)
        self.thread.start()

    def answer(self, handler):
        path = self.folder / handler.path.lstrip('/')
        span = handler.headers.get('Range')
        self.asked.append((handler.path, span))
        if handler.path in self.redirects:
            handler.send_response(302)
            handler.send_header('Location', self.redirects[handler.path])
            handler.send_header('Content-Length', '0')
            handler.end_headers()
            return
        if not path.is_file():
            handler.send_error(404)
            return
        content = path.read_bytes()
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        first = int(span.split('=')[1].rstrip('-')) if span and self.ranges else 0
        if first and self.if_range and handler.headers.get('If-Range', tag) != tag:
            first = 0
        if first > len(content):
            handler.send_error(416)
            return
        handler.send_response(206 if first else 200)
        if first:
            handler.send_header('Content-Range', f'bytes {first}-{len(content) - 1}/{len(content)}')
        if self.etag:
            handler.send_header('ETag', tag)
        rest = content[first:]
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.send_header('Content-Length', str(self.length or len(rest)))
        handler.end_headers()
        if self.cuts:
            handler.wfile.write(rest[: self.cuts.pop(0)])
            handler.wfile.flush()
            handler.connection.shutdown(2)
        else:
            handler.wfile.write(rest)

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """What the server has: a released encoder and a probe, tiny, and noise."""
    folder = tmp_path_factory.mktemp('server')
    (folder / 'evals').mkdir()
    torch.save(originals.released(), folder / 'enc.pt')
    state = {'module.' + k: v for k, v in originals.fill(originals.probe()).items()}
    torch.save({'classifiers': [state]}, folder / 'evals/probe.pt')
    (folder / 'big').write_bytes(np.random.default_rng(0).bytes(3_000_000))
    return folder


@pytest.fixture
def server(files, tmp_path, monkeypatch):
    monkeypatch.setenv('JEPA_JAX_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(download, 'WAIT', 0.0)
    # the released rows with the sizes of the tiny files
    rows = {
        'vitl': zoo.Released('enc.pt', 'custom', 64),
        'mini-probe': zoo.Released('evals/probe.pt', 'tiny', 64, 'vitl', (0, 2), 4, 2, 1),
    }
    monkeypatch.setattr(zoo, 'RELEASED', rows)
    sizes = zoo.SIZES | {'tiny': zoo.SIZES['tiny'].__class__(96, 3, 4)}
    monkeypatch.setattr(zoo, 'SIZES', sizes)
    server = Server(files)
    monkeypatch.setenv('JEPA_JAX_WEIGHTS_URL', server.url)
    yield server
    server.close()


# Downloading


@pytest.mark.parametrize('etag', [True, False])
def test_a_cut_connection_is_gone_on_from(server, files, tmp_path, etag):
    server.etag = etag
    server.cuts = [1_000_000, 0, 500_000]
    download.download(server.url + 'big', tmp_path / 'big')
    assert (tmp_path / 'big').read_bytes() == (files / 'big').read_bytes()
    spans = [span for _, span in server.asked]
    later = ['bytes=1000000-', 'bytes=1000000-', 'bytes=1500000-'] if etag else [None] * 3
    assert spans == [None, *later]
    assert [p.name for p in tmp_path.iterdir()] == ['big']


def test_a_killed_download_is_gone_on_from(server, files, tmp_path):
    content = (files / 'big').read_bytes()
    part_of(server, content[:7], content, tmp_path)
    download.download(server.url + 'big', tmp_path / 'big')
    assert (tmp_path / 'big').read_bytes() == content and server.asked[0][1] == 'bytes=7-'
    assert [p.name for p in tmp_path.iterdir()] == ['big']


def part_of(server, held, content, folder):
    """What a download of `content` left when it was killed."""
    (folder / 'big.part').write_bytes(held)
    etag = f'"{hashlib.sha256(content).hexdigest()}"'
    tag = {'url': server.url + 'big', 'etag': etag, 'total': len(content)}
    (folder / 'big.part.tag').write_text(json.dumps(tag))


@pytest.mark.parametrize('if_range', [True, False])
def test_a_file_that_changed_meanwhile_is_fetched_anew(server, files, tmp_path, if_range):
    """Also from a server that sends the rest of whatever it has."""
    server.if_range = if_range
    content = (files / 'big').read_bytes()
    part_of(server, b'of another version', b'x' * len(content), tmp_path)
    download.download(server.url + 'big', tmp_path / 'big')
    assert (tmp_path / 'big').read_bytes() == content


@pytest.mark.parametrize('tag', [None, '"another"', '{}', 'W/"weak"'])
def test_a_part_that_nobody_vouches_for_is_not_gone_on_from(server, files, tmp_path, tag):
    (tmp_path / 'big.part').write_bytes(b'whatever')
    if tag:
        (tmp_path / 'big.part.tag').write_text(tag)
    download.download(server.url + 'big', tmp_path / 'big')
    assert (tmp_path / 'big').read_bytes() == (files / 'big').read_bytes()
    assert server.asked == [('/big', None)]


def test_a_weak_etag_is_none(server, files, tmp_path):
    server.etag, server.headers, server.cuts = False, {'ETag': 'W/"1"'}, [9]
    download.download(server.url + 'big', tmp_path / 'big')
    assert (tmp_path / 'big').read_bytes() == (files / 'big').read_bytes()
    assert server.asked == [('/big', None)] * 2


PAGE = b'<!DOCTYPE html><title>Please log in</title>'


@pytest.mark.parametrize(
    'content, headers, message',
    [
        (PAGE, {'Content-Type': 'text/html; charset=utf-8'}, 'sends text/html, not weights'),
        (b'\n' + PAGE, {'Content-Type': 'application/octet-stream'}, 'is a web page'),
        (b'{"error": 1}', {'Content-Type': 'application/json'}, 'sends application/json'),
        (b'{"error": 1}', {}, 'is JSON'),
        (b'PK\x03\x04', {'Content-Encoding': 'gzip'}, r'compressed \(gzip\)'),
        (gzip.compress(b'PK\x03\x04' * 9, mtime=0), {}, 'compressed by gzip'),
        (b'', {}, 'sends no bytes'),
        (b'PK\x03\x04' + bytes(500), {}, 'has no end'),
        (bytes(500), {}, 'no file of PyTorch'),
    ],
)
def test_what_is_no_weights_is_not_kept(server, files, tmp_path, content, headers, message):
    (files / 'page.pt').write_bytes(content)
    server.headers = headers
    with pytest.raises(ZooError, match=f'{message}.*: get http.* elsewhere'):
        download.download(server.url + 'page.pt', tmp_path / 'page.pt')
    assert not list(tmp_path.iterdir()) and len(server.asked) == 1


def test_a_wrong_length_is_not_kept(server, files, tmp_path):
    whole = (files / 'enc.pt').stat().st_size
    server.length = whole - 700  # the end of the file is beyond it
    with pytest.raises(ZooError, match='has no end'):
        download.download(server.url + 'enc.pt', tmp_path / 'enc.pt')
    assert not list(tmp_path.iterdir())
    server.length, server.etag = whole + 700, False
    with pytest.raises(ZooError, match=f'{whole:,} of {whole + 700:,} bytes came|IncompleteRead'):
        download.download(server.url + 'enc.pt', tmp_path / 'enc.pt')
    assert not list(tmp_path.iterdir())


def test_where_it_comes_from_is_said(server, files, tmp_path, caplog, monkeypatch):
    other = Server(files)
    try:
        server.redirects = {
            '/moved': other.url + 'big', '/ftp': 'ftp://127.0.0.1/big', '/near': '/big'
        }  # fmt: skip
        download.download(server.url + 'moved', tmp_path / 'big')
        assert (tmp_path / 'big').read_bytes() == (files / 'big').read_bytes()
        (line,) = (r.getMessage() for r in caplog.records)
        host = other.url.split('/')[2]
        assert line == f'{server.url}moved: comes from {host}, to which the server sends on'
        caplog.clear()
        download.download(server.url + 'near', tmp_path / 'near')
        with pytest.raises(ZooError, match='sends on to ftp://127.0.0.1/big: not https'):
            download.download(server.url + 'ftp', tmp_path / 'ftp')
        assert not caplog.records and sorted(p.name for p in tmp_path.iterdir()) == ['big', 'near']
    finally:
        other.close()
    request = urllib.request.Request('https://a.org/x')
    with pytest.raises(download._Refused, match='http://a.org/x: not https'):
        download._Redirect().redirect_request(request, None, 302, '', {}, 'http://a.org/x')
    monkeypatch.setattr(download, '_continue', lambda url, part: part.write_bytes(b'x'))
    download.download('http://b.org/x', tmp_path / 'x')
    assert 'http://b.org/x: http: anyone on the way' in caplog.text
    for url in ('file:///etc/passwd', 'ftp://b.org/x'):
        with pytest.raises(ZooError, match='allowed are https and http'):
            download.download(url, tmp_path / 'y')


def test_room_is_looked_for_first(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=2_999_999)
    monkeypatch.setattr(download.shutil, 'disk_usage', lambda folder: usage)
    with pytest.raises(ZooError, match='3,000,000 bytes to come, 2,999,999 free in'):
        download.download(server.url + 'big', tmp_path / 'big')
    assert not list(tmp_path.iterdir())


def test_two_at_once_write_one_file(server, files, tmp_path):
    crew = [
        threading.Thread(target=download.download, args=(server.url + 'big', tmp_path / 'big'))
        for _ in range(4)
    ]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    assert (tmp_path / 'big').read_bytes() == (files / 'big').read_bytes()
    assert len(server.asked) == 1 and [p.name for p in tmp_path.iterdir()] == ['big']


def test_a_lock_that_was_removed_is_none(tmp_path):
    lock = tmp_path / 'lock'
    with open(lock, 'w') as file:
        assert download._is_at(lock, file)
        lock.unlink()
        assert not download._is_at(lock, file)
        lock.touch()  # another's
        assert not download._is_at(lock, file)


def test_servers_without_ranges_and_parts_that_are_too_long(server, files, tmp_path):
    content = (files / 'big').read_bytes()
    part_of(server, content + b'more', content, tmp_path)
    download.download(server.url + 'big', tmp_path / 'big')
    assert (tmp_path / 'big').read_bytes() == content
    server.ranges, server.cuts = False, [10]
    download.download(server.url + 'big', tmp_path / 'again')
    assert (tmp_path / 'again').read_bytes() == content


def test_giving_up(server, tmp_path):
    server.cuts = [5] + [0] * 10
    with pytest.raises(ZooError, match='5 of 3,000,000 bytes|IncompleteRead|closed'):
        download.download(server.url + 'big', tmp_path / 'big')
    assert (
        len(server.asked) == 1 + download.ATTEMPTS - 1
    )  # one that brought something, then those idle
    assert (tmp_path / 'big.part').stat().st_size == 5 and not (tmp_path / 'big').exists()
    with pytest.raises(ZooError, match='says 404 Not Found.*put it there'):
        download.download(server.url + 'nothing', tmp_path / 'nothing')


def test_without_a_network_the_error_says_what_goes_where(tmp_path):
    """The real command, the real table; a port where nobody listens."""
    environment = {
        **os.environ,
        'PYTHONPATH': str(ROOT),
        'JEPA_JAX_CACHE': str(tmp_path),
        'JEPA_JAX_WEIGHTS_URL': 'http://127.0.0.1:9/',
    }
    (tmp_path / 'x.mp4').touch()
    code = (
        'import sys; from jepa_jax import embed; '
        "sys.argv = ['embed', '--model', 'vitg-384', '--input', 'x.mp4', '--out', 'x.npz']; "
        'sys.exit(embed.main())'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], env=environment, cwd=tmp_path, capture_output=True,
        text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    (line,) = done.stderr.strip().splitlines()  # at once, without further attempts
    assert f'{tmp_path}/weights/vitg-384.pt is not there and cannot be downloaded' in line
    assert 'refused' in line and 'get http://127.0.0.1:9/vitg-384.pt elsewhere' in line


# Names


def test_a_name_is_fetched_noted_and_converted_once(server, files, caplog):
    caplog.set_level(logging.INFO)
    server.cuts = [1000]
    model = jepa_jax.load('vitl')
    folder = zoo.cache_folder()
    digest = hashlib.sha256((files / 'enc.pt').read_bytes()).hexdigest()
    assert json.loads((folder / 'enc.pt.json').read_text())['sha256'] == digest
    assert sum('converting once' in r.message for r in caplog.records) == 1
    assert (model.config.width, model.config.image_size) == (96, 64)
    assert any('target (moving average)' in line for line in model.about)
    asked = len(server.asked)
    (folder / 'enc.pt').unlink()  # no longer needed
    again = jepa_jax.load('vitl', encoder='online')
    assert len(server.asked) == asked
    assert sum('converting once' in r.message for r in caplog.records) == 1
    truth = torch.load(files / 'enc.pt', weights_only=False)
    for which, key in ((model, 'target_encoder'), (again, 'encoder')):
        expected = truth[key]['module.backbone.blocks.1.attn.proj.weight'].numpy().T
        result = np.asarray(which.encoder.params['blocks']['attn']['proj']['kernel'][1])
        np.testing.assert_array_equal(result, expected)


def test_a_file_put_there_by_hand_needs_no_server(server, files):
    zoo.cache_folder().mkdir(parents=True)
    (zoo.cache_folder() / 'enc.pt').write_bytes((files / 'enc.pt').read_bytes())
    assert jepa_jax.load('vitl').config.width == 96 and not server.asked


def test_a_file_that_is_not_what_it_was(server, files):
    jepa_jax.load('vitl')
    path = zoo.cache_folder() / 'enc.pt'
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ZooError, match='enc.pt has SHA-256 .* when first used'):
        jepa_jax.load('vitl')
    content[len(content) // 2] ^= 1  # touched, but the same: fine
    path.write_bytes(content)
    jepa_jax.load('vitl')
    zoo.record_of(path).write_text('{}')
    with pytest.raises(ZooError, match='enc.pt.json is damaged'):
        jepa_jax.load('vitl')


def test_a_hash_of_ones_own(server, files, tmp_path):
    digest = hashlib.sha256((files / 'enc.pt').read_bytes()).hexdigest()
    wrong = digest[:-1] + ('0' if digest[-1] != '0' else '1')
    with pytest.raises(ZooError, match=f'enc.pt has SHA-256 {digest}, expected {wrong}'):
        jepa_jax.load(f'vitl@sha256:{wrong}')
    assert not (zoo.cache_folder() / 'enc.pt').exists()
    assert jepa_jax.load(f'vjepa2_vit_large@sha256:{digest}').config.width == 96
    for _ in range(2):  # the file is no longer needed, its hash is noted
        with pytest.raises(ZooError, match=f'enc.pt has SHA-256 {digest}, expected {wrong}'):
            zoo.find(f'vitl@sha256:{wrong}')
        zoo.find(f'vitl@sha256:{digest}')
        (zoo.cache_folder() / 'enc.pt').unlink(missing_ok=True)
    path = files / 'enc.pt'
    assert zoo.find(f'{path}@sha256:{digest}', crop=64).encoder.width == 96
    with pytest.raises(ZooError, match=f'enc.pt has SHA-256 {digest}, expected {wrong}'):
        zoo.find(f'{path}@sha256:{wrong}')
    for text, message in (
        (f'{files}@sha256:{digest}', 'only a file has a SHA-256'),
        ('vitl@sha256:12', 'a SHA-256 has 64 digits'),
        (f'random:tiny@sha256:{digest}', 'its sha256 cannot be chosen'),
    ):
        with pytest.raises(ZooError, match=message):
            jepa_jax.load(text)


def test_a_file_of_another_size_than_its_name(server, monkeypatch):
    rows = {'vitl': zoo.Released('enc.pt', 'vitl', 64)}
    monkeypatch.setattr(zoo, 'RELEASED', rows)
    with pytest.raises(ZooError, match='should be vitl of size vitl, .* holds size custom'):
        jepa_jax.load('vitl')
    assert not (zoo.cache_folder() / 'vitl').exists()


def test_a_damaged_download_is_one_line(server, files, monkeypatch):
    zoo.cache_folder().mkdir(parents=True)
    (zoo.cache_folder() / 'enc.pt').write_bytes((files / 'enc.pt').read_bytes()[:-9000])
    with pytest.raises(ConvertError, match='enc.pt'):
        jepa_jax.load('vitl')


def test_a_probe_comes_with_its_encoder(server):
    model = jepa_jax.load('mini-probe')
    assert model.probe.reads == (0, 2) and model.probe.classes == {'linear': 7}
    assert (model.probe.frames, model.probe.step, model.probe.segments) == (4, 2, 1)
    assert len(model.classify(noise(4, 64, 64, 3)).top['linear']) == 5
    assert any('blocks 0 2' in line for line in model.about)
    with pytest.raises(ZooError, match='is a probe already'):
        jepa_jax.load('mini-probe', probe='mini-probe')


def test_the_released_table():
    """Reference: vjepa2 §10.2, §11.2."""
    base = 'https://dl.fbaipublicfiles.com/vjepa2/'
    assert download.SERVER == base
    names = {name: row.file for name, row in zoo.RELEASED.items()}
    assert names['ac-vitg'] == 'vjepa2-ac-vitg.pt' and names['vitg-384'] == 'vitg-384.pt'
    rows = {name: row for name, row in zoo.RELEASED.items() if row.version == '2.0'}
    probes = [row for row in rows.values() if row.probe_of]
    assert len(rows) == 11 and len(probes) == 6
    for name, row in rows.items():
        assert row.crop == (384 if 'g-384' in name else 256)
        if row.probe_of:
            assert row.file == f'evals/{name}.pt' and row.probe_of in ('vitl', 'vitg-384')
            assert zoo.RELEASED[row.probe_of].size == row.size
    levels = {row.size: row.reads for row in probes if isinstance(row.reads, tuple)}
    assert levels == {'vitl': (17, 19, 21, 23), 'vitg': (24, 29, 34, 39)}


# Paths


def test_paths(files, tmp_path):
    weights = convert.read(files / 'enc.pt', crop=64)
    for form in ('jax', 'hf'):
        convert.write(weights, tmp_path / form, to=form)
    clip = noise(1, 4, 64, 64, 3)
    models = {
        'pt': jepa_jax.load(files / 'enc.pt', crop=64),
        'jax': jepa_jax.load(tmp_path / 'jax'),
        'hf': jepa_jax.load(tmp_path / 'hf', encoder='online'),  # holds one: the target
    }
    result = {k: m.embed(clip, preprocess='none').tokens for k, m in models.items()}
    np.testing.assert_array_equal(result['pt'], result['jax'])
    np.testing.assert_array_equal(result['pt'], result['hf'])
    assert any('only one there' in line for line in models['hf'].about)
    probed = jepa_jax.load(files / 'enc.pt', probe=files / 'evals/probe.pt', heads=4)
    assert probed.probe.reads == 'last'
    bfloat = jepa_jax.load(tmp_path / 'jax', dtype='bfloat16').embed(clip, preprocess='none')
    assert 0 < np.abs(bfloat.tokens - result['jax']).max() < 0.2


def test_transformers_says_the_same(files, tmp_path):
    """Encoder of a Hugging Face folder against transformers' own forward on the frames fed."""
    import transformers

    convert.write(convert.read(files / 'enc.pt', crop=64, frames=8), tmp_path / 'hf', to='hf')
    theirs = transformers.VJEPA2Model.from_pretrained(tmp_path / 'hf', attn_implementation='sdpa')
    result = jepa_jax.load(tmp_path / 'hf').embed(noise(20, 80, 100, 3), frames=8)
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    pixels = np.moveaxis((result.clips.astype(np.float32) / 255 - mean) / std, -1, 2)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(pixels), skip_predictor=True).last_hidden_state
    assert result.tokens.shape == (3, 64, 96)
    np.testing.assert_allclose(result.tokens, expected.numpy(), rtol=0, atol=1e-4)


def test_a_hugging_face_name(files, tmp_path, monkeypatch):
    """Found in that library's own cache, offline; and refused plainly without the library."""
    convert.write(convert.read(files / 'enc.pt', crop=64), tmp_path / 'hf', to='hf')
    home = tmp_path / 'hub/models--some--model'
    (home / 'refs').mkdir(parents=True)
    (home / 'refs/main').write_text('0' * 40)
    (home / 'snapshots').mkdir()
    (tmp_path / 'hf').rename(home / 'snapshots' / ('0' * 40))
    load = "import sys, jepa_jax; print(jepa_jax.load('hf:some/model').config.width)"
    environment = {
        **os.environ, 'PYTHONPATH': str(ROOT), 'HF_HUB_CACHE': str(tmp_path / 'hub'),
        'HF_HUB_OFFLINE': '1',
    }  # fmt: skip
    run = functools.partial(
        subprocess.run, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert run([sys.executable, '-c', load]).stdout.strip() == '96'
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(ZooError, match=r'jepa_jax\[hf\]'):
        jepa_jax.load('hf:some/model')


def test_a_hub_that_cannot_be_reached(monkeypatch):
    """What went wrong, and what to do, in place of the hub's own advice."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def no_network(*_, **__):
        advice = 'An error happened while trying to locate the files on the Hub and'
        raise LocalEntryNotFoundError(advice) from OSError('Name or service not known')

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', no_network)
    with pytest.raises(ZooError, match=r'\(Name or service not known\): get its .* FOLDER') as told:
        jepa_jax.load('hf:some/model')
    assert 'An error happened' not in str(told.value)


def test_a_mistyped_path_never_reaches_a_hub(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.chdir(tmp_path)  # the command before this one may have left runs/ in the clone

    def called(name, **_):
        raise AssertionError(f'{name} was looked up')

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', called)
    for path in ('runs/mien', 'facebook/vjepa2-vitl-fpc64-265', 'meta/vjepa2-vitl-fpc64-256'):
        with pytest.raises(ZooError, match=f"no such file.*is written 'hf:{path}'"):
            jepa_jax.load(path)
    for path in ('runs/mine/too', './runs', 'vitl/'):
        with pytest.raises(ZooError) as caught:
            jepa_jax.load(path)
        assert 'no such file or folder' in str(caught.value) and 'hf:' not in str(caught.value)


def test_names_of_the_hub_and_of_torch_hub(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setenv('JEPA_JAX_CACHE', str(tmp_path))
    asked = []

    def called(name, *_, **__):
        asked.append(name)
        raise ZooError('asked')

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', called)
    for name in ('facebook/vjepa2-vitg-fpc64-384', 'hf:some/other'):
        with pytest.raises(ZooError, match='asked'):
            jepa_jax.load(name)
    assert asked == ['facebook/vjepa2-vitg-fpc64-384', 'some/other']
    assert len(set(zoo.PUBLISHED)) == 8 + 4
    assert {zoo.pinned(alias)[0] for alias in names.ALIASES} == {
        name
        for name, row in zoo.RELEASED.items()
        if not row.probe_of and row.version in ('2.0', '2.1')
    }
    asked.clear()
    monkeypatch.setattr(download, 'download', called)
    for alias in ('vjepa2_vit_giant_384', 'vjepa2_ac_vit_giant'):
        with pytest.raises(ZooError, match='asked'):
            jepa_jax.load(alias)
    assert [url.rpartition('/')[2] for url in asked] == ['vitg-384.pt', 'vjepa2-ac-vitg.pt']


def test_sizes_by_their_old_names():
    small, _ = random_configs('small')
    assert small == random_configs('vits')[0] and small.width == 384
    assert random_configs('base')[0].width == 768


REFUSED = {
    'vitll': 'did you mean vitl',
    'vits': 'not released in this size; random:vits has random weights.*the folder',
    'base': 'random:vitb .*; others of this size are vitb-21, mae-vitb, .*-full, mae-vitb-in1k$',
    'random:huge': 'tiny, vits, vitb, vitl',
    './nowhere.pt': 'no such file or folder',
}


@pytest.mark.parametrize('name', REFUSED)
def test_unknown_names(name):
    with pytest.raises(ZooError, match=REFUSED[name]):
        jepa_jax.load(name)


def test_a_near_path_is_one_that_can_be_typed(tmp_path, monkeypatch):
    (tmp_path / 'runs').mkdir()
    (tmp_path / 'runs/text.pt').touch()
    monkeypatch.chdir(tmp_path)
    for typed in ('runs/tixt.pt', f'{tmp_path}/runs/tixt.pt'):
        with pytest.raises(ZooError, match=f'did you mean {typed.replace("tixt", "text")}[?]'):
            jepa_jax.load(typed)


def test_drawn_weights_are_not_looked_up():
    """Where weights must have been trained, as those that a projector belongs to."""
    with pytest.raises(ZooError, match="'random:tiny': drawn weights do not serve here"):
        zoo.find('random:tiny')


def test_mistaken_options(tmp_path):
    for options, words in [
        (dict(encoder='ema'), 'target, online'),
        (dict(dtype='float16'), 'float32, bfloat16'),
        (dict(probe='ssv2-vitl-16x2x3'), 'mean nothing'),
        (dict(probe='x'), 'no such file'),
    ]:
        with pytest.raises(ZooError, match=words):
            jepa_jax.load('random:tiny', **options)
    for name, options in [
        ('vitl', dict(crop=64)),
        ('ssv2-vitl-16x2x3', dict(crop=64)),
        ('ssv2-vitl-16x2x3', dict(frames=8)),
        ('ek100-vitg-384', dict(heads=4)),
        ('random:tiny', dict(crop=64)),
        ('tiny', dict(crop=0)),
        ('random:tiny', dict(frames=0)),
    ]:
        with pytest.raises(ZooError, match=f"'{name}' is a name: its {next(iter(options))} cannot"):
            jepa_jax.load(name, **options)


def test_random_weights_are_said():
    """That they are what the net's own initialisation gives is in test_embed.py."""
    model = jepa_jax.load('random:tiny', seed=1)
    assert 'RANDOM weights (seed 1), nothing is trained' in model.about[0]
    assert model.predictor.config.encoder_width == model.config.width == 192


def test_a_name_is_looked_at_as_it_is(monkeypatch):
    seen = zoo.look('tiny')
    assert [file.name for file in seen.files] == ['tiny.npz'] and not seen.weights.not_finite()

    def damaged(name, **options):
        assert not options  # which a name has none of
        raise ConvertError('vitl.pt: an array too few')

    monkeypatch.setattr(zoo, 'find', damaged)
    with pytest.raises(ConvertError, match='an array too few'):
        zoo.look('vitl')
