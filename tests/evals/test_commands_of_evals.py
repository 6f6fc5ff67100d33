"""Evaluations by the command that a user types, on small files in the official layouts with entries
that are missing, damaged and wrong; each report against figures that are worked out here. Then the
same command on files that cannot be used: exit status 1 and one line."""

import csv
import dataclasses
import functools
import json
import os
import pathlib
import socket
import subprocess
import sys

import dense_sets
import jax
import numpy as np
import official_sets as made
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from sklearn.metrics import jaccard_score, roc_auc_score

import jepa_jax
from jepa_jax import evaluate
from jepa_jax.data import synthetic
from jepa_jax.model import Loaded, Model
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.nets import ONCE
from jepa_jax.pretrained import save
from jepa_jax.weights.parts import net

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATCH, WIDTH, CROP = 8, 24, 32


class Command:
    """`python -m jepa_jax.evaluate` with a small model that was never trained."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.model = folder, folder / 'model'
        rest = dict(dtype=np.dtype('float32'), remat='none')
        encoder = ViTConfig(WIDTH, 2, 2, patch=PATCH, image_size=CROP, frames=4, **rest)
        grid = (2, CROP // PATCH, CROP // PATCH)
        predictor = PredictorConfig(WIDTH, WIDTH, 1, 2, mask_tokens=1, grid=grid, **rest)
        nets = [
            Loaded(
                config, jax.jit(net(name, config).init, compiler_options=ONCE)(jax.random.key(i))
            )
            for i, (name, config) in enumerate({'encoder': encoder, 'predictor': predictor}.items())
        ]
        save(Model(nets[0], predictor=nets[1]), self.model)

    def words(self, config: str, path: pathlib.Path, workdir: str, *fields: str) -> list[str]:
        return [
            f'--config=configs/eval/{config}', f'--model={self.model}',
            f'--workdir={self.folder / workdir}', f'--config.data.path={path}',
            *(f'--config.{field}' for field in fields),
        ]  # fmt: skip

    def start(self, words: list[str], devices: int = 1, **more: str) -> subprocess.Popen:
        environment = {
            **os.environ, 'PYTHONPATH': str(ROOT), 'JAX_NUM_CPU_DEVICES': str(devices),
            'JEPA_JAX_CACHE': str(self.folder / 'cache'),
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0', **more,
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, '-m', 'jepa_jax.evaluate', *words], cwd=ROOT, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def report(self, config: str, path: pathlib.Path, workdir: str, *fields: str) -> dict:
        """In a process of its own; what every report has is checked here."""
        process = self.start(self.words(config, path, workdir, *fields))
        out, error = process.communicate(timeout=600)
        assert process.returncode == 0, error
        report = json.loads((self.folder / workdir / 'report.json').read_text())
        assert report['evaluation'] and report['protocol'] and report['seconds'] > 0
        assert report['model']['name'] == str(self.model) and len(report['model']['hash']) >= 32
        assert {'expected', 'read', 'hash'} <= {*report['data']} and report['seed'] == 0
        for name, figure in (*report['results'].items(), *report['baselines'].items()):
            assert figure['low'] <= figure['value'] <= figure['high'] and figure['n'] > 0, name
            assert f'{name}  ' in out and f'{figure["value"]:.3f}' in out, name
        return report

    def error(self, monkeypatch, capsys, config: str, path: pathlib.Path, *fields: str) -> str:
        """The one line of a command that fails, in this process."""
        words = self.words(config, path, f'failed-{config.partition(".")[0]}', *fields)
        monkeypatch.setattr(sys, 'argv', ['evaluate', *words])
        monkeypatch.setenv('JEPA_JAX_CACHE', str(self.folder / 'cache'))
        monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '')
        monkeypatch.chdir(ROOT)
        capsys.readouterr()
        assert evaluate.main() == 1
        said = capsys.readouterr().err
        *_, last = said.splitlines()
        assert last.startswith('error: ') and said.count('error: ') == 1, said
        assert 'Traceback' not in said
        return last


@pytest.fixture(scope='module')
def command(tmp_path_factory):
    return Command(tmp_path_factory.mktemp('commands'))


def wilson_low(right: float, count: int) -> float:
    """The lower end of Wilson's interval, from its formula."""
    z, p = 1.959964, right / count
    half = z * np.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    return (p + z**2 / (2 * count) - half) / (1 + z**2 / count)


def csv_rows(path: pathlib.Path) -> list[dict]:
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


# --- Classes of clips -----------------------------------------------------------------------------


def k400(root):
    made.kinetics(root, 'classes', each=6)
    return sorted((root / 'val').rglob('*.mp4'))


def coin(root):
    made.coin(root, each=6)
    return sorted(p for p in (root / 'videos').rglob('-x_?te*'))


def diving48(root):
    made.diving(root, each=6)
    return sorted(root.glob('rgb/_8Vytest*'))


def jester(root):
    made.jester(root, each=4)
    lines = (root / 'jester-v1-validation.csv').read_text().splitlines()
    return [root / '20bn-jester-v1' / line.split(';')[0] for line in lines]


def in1k(root):
    made.imagenet(root, each=4)
    return sorted((root / 'val').rglob('*.JPEG'))


def repaint(path: pathlib.Path, label: int) -> None:
    """A clip that shows another class than the lists say."""
    if path.is_dir():
        for i, frame in enumerate(made.frames(label, 99, 9), 1):
            Image.fromarray(frame).save(path / f'{i:05d}.jpg')
    elif path.suffix == '.JPEG':
        Image.fromarray(made.frames(label, 99, 1)[0]).save(path)
    else:
        path.unlink()
        made.video(path, label, 99)


# name of the config -> what makes the set and names its validation clips, how many classes it has,
# a colour of another class than that of the first of them
CLIPS = {
    'k400': (k400, 2, 0),
    'coin': (coin, 2, 0),
    'diving48': (diving48, 2, 1),
    'jester': (jester, 3, 1),
    'in1k': (in1k, 3, 1),
}


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A set whose first validation clip shows another class, whose second is broken and whose last
    is gone, and the report of it."""

    root: pathlib.Path
    clips: list[pathlib.Path]
    damaged: pathlib.Path  # file of the second
    report: dict


@pytest.fixture(scope='module')
def benchmarks(command):
    """Name of a config -> its set and report."""

    @functools.cache
    def evaluated(name: str) -> Benchmark:
        make, _, other = CLIPS[name]
        clips = make(root := command.folder / f'sets/{name}')
        odd, broken, *_, gone = clips
        repaint(odd, other)
        damaged = broken / '00001.jpg' if broken.is_dir() else broken
        damaged.write_bytes(b'\0' * 99)
        gone.rename(command.folder / f'sets/{name}-gone')
        return Benchmark(root, clips, damaged, command.report(f'{name}.py:smoke', root, name))

    return evaluated


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize('name', CLIPS)
def test_classes_of_clips(command, benchmarks, name):
    """Classes are colours, which any encoder tells: all is right but the clip that shows another
    class; what is gone or broken does not count."""
    made_here = benchmarks(name)
    report, clips, damaged = made_here.report, made_here.clips, made_here.damaged
    unlisted = name == 'in1k'  # there is no list: what is gone is not expected either
    n, about = len(clips) - 2, report['data']
    accuracy = report['results']['accuracy']
    assert accuracy['value'] == pytest.approx((n - 1) / n) and accuracy['n'] == n
    # over videos, of which Diving48's clips are pieces: VIDEO_NUMBER
    read = [clips[0], *clips[2:-1]]
    k = len({c.stem.rpartition('_')[0] for c in read}) if name == 'diving48' else n
    assert accuracy['low'] == pytest.approx(wilson_low((n - 1) / n * k, k), abs=1e-4)
    assert (about['expected'], about['read']) == (len(clips) - unlisted, n)
    assert about['missing'] == {'train': 0, 'validation': 1 - unlisted}
    ((bad, why),) = about['problems'].items()
    assert bad == str(clips[1]) and str(damaged) in why
    answers = csv_rows(command.folder / name / 'predictions.csv')
    assert [row['path'] for row in answers if row['right'] == '0'] == [str(clips[0])]
    assert len(answers) == n and len({row['class'] for row in answers}) == CLIPS[name][1]
    # pixels tell colours as well; of equally frequent classes the first is said
    assert report['baselines']['pixels']['value'] == pytest.approx((n - 1) / n)
    first = sum(row['class'] == min(r['class'] for r in answers) for row in answers)
    assert report['baselines']['majority']['value'] == pytest.approx(first / n)


@pytest.mark.slow
@pytest.mark.ci
def test_two_processes_say_what_one_says(command, benchmarks):
    """Of a benchmark, by two processes of two devices each; process 0 alone prints a report."""
    name = 'jester'
    one = benchmarks(name)
    ports = socket.socket()
    ports.bind(('localhost', 0))
    address = f'localhost:{ports.getsockname()[1]}'
    ports.close()
    together = {'JEPA_JAX_COORDINATOR': address, 'JEPA_JAX_PROCESSES': '2'}
    words = command.words(f'{name}.py:smoke', one.root, 'two')
    pair = [command.start(words, 2, **together, JEPA_JAX_PROCESS=str(i)) for i in (0, 1)]
    said = [each.communicate(timeout=600) for each in pair]
    assert [each.returncode for each in pair] == [0, 0], said
    assert ['report: ' in out for out, _ in said] == [True, False]
    two = json.loads((command.folder / 'two/report.json').read_text())
    for group in ('results', 'baselines'):
        assert two[group].keys() == one.report[group].keys()
        for key, figure in one.report[group].items():
            assert two[group][key] == pytest.approx(figure, abs=1e-6), key
    assert two['data'] == one.report['data']
    answers = [csv_rows(command.folder / place / 'predictions.csv') for place in (name, 'two')]
    assert answers[0] == answers[1]


# --- Every place of a picture ---------------------------------------------------------------------

# pictures of 24 x 32 pixels as they are
SMALL = 'data.short=0', 'data.crop=(24,32)', 'data.scale=(1.0,1.0)', 'data.stride=0'


def head_outputs(model: Model, folder: pathlib.Path, picture: np.ndarray) -> torch.Tensor:
    """What the kept head says of each token, [1, C, h, w], by its formula in head.npz."""
    with np.load(folder / 'head.npz') as kept:
        head = {name: kept[name] for name in kept.files}
    clip = np.repeat(picture[None], model.config.tubelet, 0)
    x = np.asarray(model.encode(clip[None]))[0]
    x = (x - head['mean']) / np.sqrt(head['variance'] + 1e-5) * head['scale'] + head['shift']
    h, w = (side // PATCH for side in picture.shape[:2])
    out = (x @ head['kernel'] + head['bias']).reshape(1, h, w, -1)
    return torch.from_numpy(out).permute(0, 3, 1, 2)


def enlarged(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return torch.nn.functional.interpolate(x, size, mode='bilinear', align_corners=False)


def pixels_of(path: pathlib.Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert('RGB'))


@pytest.mark.slow
@pytest.mark.ci
def test_segmentation_of_ade20k(command, tmp_path):
    """IoU by scikit-learn of all labelled pixels of what the kept head says."""
    dense_sets.ade20k(tmp_path, train=6, validation=5)
    masks = sorted((tmp_path / 'annotations/validation').glob('*.png'))
    labels = np.asarray(Image.open(masks[0])).copy()
    labels[8:16, :8] = 7  # a class that no training picture has
    dense_sets.values(masks[0], labels)
    masks[3].write_bytes(masks[3].read_bytes()[:60])
    masks[4].unlink()
    report = command.report('segmentation.py:ade20k,smoke', tmp_path, 'segmentation', *SMALL)
    about = report['data']
    assert (about['expected'], about['read'], about['train']) == (5, 3, 6)
    assert about['missing'] == {'train': 0, 'validation': 1}
    assert masks[3].name in about['problems'][0]
    model, said, true = jepa_jax.load(command.model), [], []
    for mask in masks[:3]:
        picture = pixels_of(tmp_path / 'images/validation' / f'{mask.stem}.jpg')
        outputs = head_outputs(model, command.folder / 'segmentation', picture)
        answer = enlarged(outputs, picture.shape[:2]).argmax(1)[0].numpy()
        labels = np.asarray(Image.open(mask)).astype(int)
        said.append(answer[labels > 0])  # 0 is none
        true.append(labels[labels > 0] - 1)
    said, true = np.concatenate(said), np.concatenate(true)
    figures = report['results']
    assert figures['mIoU']['value'] == pytest.approx(
        jaccard_score(true, said, average='macro', zero_division=0), abs=2e-3
    )
    assert figures['pixel accuracy']['value'] == pytest.approx((said == true).mean(), abs=2e-3)
    assert figures['mIoU']['value'] < 2 / 3 + 1e-6 and about['class_iou']['model'][6] == 0
    most = np.zeros_like(true)  # of two equally frequent classes the first
    assert report['baselines']['majority']['value'] == pytest.approx(
        jaccard_score(true, most, average='macro', zero_division=0)
    )


@pytest.mark.slow
@pytest.mark.ci
def test_depth_of_nyuv2(command, tmp_path):
    """RMSE of what the kept head says, by PyTorch, and of the mean training distance, by hand."""
    dense_sets.nyuv2(tmp_path, train=7, test=5)
    right = {'sync': 3.0 + 0.25 * np.arange(7), 'official_splits': 3.5 + 0.2 * np.arange(5)}
    for place, metres in right.items():
        for path in sorted((tmp_path / place).rglob('sync_depth_*.png')):
            values = np.asarray(Image.open(path)).copy()
            values[1:, 16:] = round(1000 * metres[int(path.stem[-5:])])
            dense_sets.values(path, values)
    (tmp_path / 'sync/kitchen_0001/rgb_00003.jpg').unlink()
    broken = tmp_path / 'official_splits/test/kitchen_0002/sync_depth_00004.png'
    broken.write_bytes(broken.read_bytes()[:60])
    scored = slice(2, 22), slice(3, 31)
    report = command.report(
        'depth.py:nyuv2,smoke', tmp_path, 'depth', *SMALL, 'rows=(2,22)', 'columns=(3,31)'
    )
    about = report['data']
    assert (about['expected'], about['read'], about['train']) == (5, 4, 6)
    assert about['missing'] == {'train': 1, 'validation': 0} and broken.name in about['problems'][0]
    mean = np.delete(right['sync'], 3).mean()
    off = right['official_splits'][:4] - mean  # right half; the left half is always 1.5 m
    share = 15 / 28  # of the scored columns
    assert report['baselines']['position']['value'] == pytest.approx(
        np.mean(abs(off)) * share**0.5, abs=1e-4
    )
    assert report['baselines']['position, RMSE, all pixels']['value'] == pytest.approx(
        np.sqrt(np.mean(off**2) * share), abs=1e-4
    )
    model, errors = jepa_jax.load(command.model), []
    bins = torch.linspace(*report['config']['metres'], report['config']['bins'])
    for path in sorted((tmp_path / 'official_splits').rglob('sync_depth_*.png'))[:4]:
        picture = pixels_of(path.with_name(path.name.replace('sync_depth', 'rgb')[:-3] + 'jpg'))
        both = []
        for flip in (1, -1):
            view = np.ascontiguousarray(picture[:, ::flip])
            outputs = head_outputs(model, command.folder / 'depth', view)
            weights = torch.relu(enlarged(outputs, (12, 16))) + 0.1
            metres = torch.einsum('nkhw,k->nhw', weights / weights.sum(1, keepdim=True), bins)
            both.append(enlarged(metres[None], picture.shape[:2])[0, 0].numpy()[:, ::flip])
        true = np.asarray(Image.open(path)) / 1000
        errors.append(np.square(np.mean(both, 0) - true)[scored].mean() ** 0.5)
    assert report['results']['RMSE']['value'] == pytest.approx(np.mean(errors), abs=1e-3)
    assert report['results']['RMSE']['n'] == 4


# --- Objects in a video ---------------------------------------------------------------------------


def davis(root: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Grey videos on a dark ground; object 1, with a pattern, goes a patch to the right with each
    frame or stays, object 2 stays. JPEG's blocks are patches, so that a pattern that has moved is
    the same to the bit."""
    videos, rng = {}, np.random.default_rng(0)
    patterns = rng.integers(100, 250, (2, 16, 16)).astype(np.uint8)
    for split, names in (('train', ['learn']), ('val', ['moves', 'stays', 'torn', 'unlabelled'])):
        (root / 'ImageSets/2017').mkdir(parents=True, exist_ok=True)
        (root / f'ImageSets/2017/{split}.txt').write_text('\n'.join(names) + '\n')
        for name in names:
            frames, labels = np.full((5, 32, 48), 30, np.uint8), np.zeros((5, 32, 48), np.uint8)
            for t in range(5):
                left = 0 if name == 'stays' else PATCH * t
                frames[t, :16, left : left + 16], labels[t, :16, left : left + 16] = patterns[0], 1
                frames[t, 16:, 24:40], labels[t, 16:, 24:40] = patterns[1], 2
                picture = root / f'JPEGImages/480p/{name}/{t:05d}.jpg'
                picture.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(frames[t]).convert('RGB').save(picture, quality=95)
                mask = root / f'Annotations/480p/{name}/{t:05d}.png'
                dense_sets.values(mask, labels[t], palette=True)
            videos[name] = frames, labels
    torn = root / 'JPEGImages/480p/torn/00002.jpg'
    torn.write_bytes(torn.read_bytes()[:200])
    (root / 'Annotations/480p/unlabelled/00003.png').unlink()
    return videos


def overlap(said: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Intersection over union of objects 1 and 2, the mean over frames but the first and last."""
    pairs = [(said[1:-1] == i, true[1:-1] == i) for i in (1, 2)]
    each = [((a & b).sum((1, 2)) / (a | b).sum((1, 2))).mean() for a, b in pairs]
    return np.array(each)


@pytest.mark.slow
@pytest.mark.ci
def test_objects_of_davis(command, tmp_path):
    """What stays is followed without a fault, what moves by patches is so by its pixels; and by the
    encoder as by lists: each token takes the label of the one most like it."""
    videos = davis(tmp_path)
    report = command.report(
        'propagation.py:davis17,smoke', tmp_path, 'propagation', 'data.short=32', 'top=1',
        'smooth=false',
    )  # fmt: skip
    about = report['data']
    assert (about['expected'], about['read'], about['objects']) == (4, 2, 4)
    assert about['missing']['validation'] == 1 and 'torn/00002.jpg' in about['problems'][0]
    baselines = report['baselines']
    assert baselines['pixels']['value'] == 1
    still = np.broadcast_to(videos['moves'][1][0], (5, 32, 48))
    first = np.concatenate([overlap(still, videos['moves'][1]), [1, 1]])
    assert first[0] == pytest.approx(1 / 9)  # a third, then nothing
    assert baselines['first frame, J']['value'] == pytest.approx(first.mean())
    with np.load(command.folder / 'propagation/outcomes.npz') as kept:
        stays = kept['sources'] == 'stays'
        assert kept['J&F of an object'][stays].tolist() == [1, 1]
    model, each = jepa_jax.load(command.model), []
    radius = about['settings']['model']['radius']
    for name in ('moves', 'stays'):
        paths = sorted((tmp_path / f'JPEGImages/480p/{name}').iterdir())
        frames = np.stack([pixels_of(path) for path in paths])
        x = np.asarray(model.encode(np.repeat(frames[:, None], 2, 1))).reshape(5, 4, 6, WIDTH)
        x = x / np.linalg.norm(x, axis=-1, keepdims=True)
        labels = np.zeros((5, 4, 6), int)
        labels[0] = videos[name][1][0, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH]
        for t in range(1, 5):
            for i, j in np.ndindex(4, 6):
                near = [
                    (x[s, a, b] @ x[t, i, j], labels[s, a, b])
                    for s in range(t)
                    for a, b in np.ndindex(4, 6)
                    if (a - i) ** 2 + (b - j) ** 2 <= radius**2
                ]
                labels[t, i, j] = max(near)[1]
        each.append(overlap(labels.repeat(PATCH, 1).repeat(PATCH, 2), videos[name][1]))
    assert report['results']['J']['value'] == pytest.approx(np.mean(each), abs=1e-6)


# --- Pairs of videos ------------------------------------------------------------------------------


ONE_CONTEXT = 'contexts=(8,8,8,8,8,8)'  # half of a window, 6 of 12 frames: little to compile


def shown(path: pathlib.Path, event: int | None, seed: int, count: int = 16) -> pathlib.Path:
    """Frames of one picture, and from the event on of another; a video, or a folder of frames."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (2, 4, 4, 3)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    frames = frames[(np.arange(count) >= (count if event is None else event)).astype(int)]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix:
        synthetic.write(path, frames, lossless=True)
    else:
        path.mkdir()
        for t, frame in enumerate(frames, 1):
            Image.fromarray(frame).save(path / f'scene_{t:03d}.png')
    return path


def surprise(model: Model, frames: np.ndarray, setting: dict) -> float:
    """Window by window: how far the predictor's features of the end are from the encoder's."""
    windows, F, C = [], setting['frames'], 6
    for first in range(0, len(frames) - F + 1, 2):
        clip = frames[None, first : first + F]
        target = np.asarray(model.encode(clip), np.float64)[0]
        target -= target.mean(-1, keepdims=True)
        target /= np.sqrt((target**2).mean(-1, keepdims=True) + 1e-5)
        grid = F // 2, frames.shape[1] // PATCH, frames.shape[2] // PATCH
        seen, ids = model.encode(clip[:, :C]), np.arange(len(target), dtype=np.int32)[None]
        K = seen.shape[1]
        said = model.fill_in(grid)(
            model.predictor.params, seen, ids[:, :K], ids[:, K:], mask_index=setting['token']
        )
        windows.append(abs(np.asarray(said)[0] - target[K:]).mean())
    return {'mean': np.mean, 'max': np.max}[setting['sum']](windows)


@pytest.mark.slow
@pytest.mark.ci
def test_pairs_of_a_list(command, tmp_path):
    """To pixels a change is surprising and a video that stays as it is never: they win all pairs
    whose impossible member changes, and none of those turned round. Equal members are lost."""
    rows = [['possible', 'impossible', 'kind', 'group']]
    for i in range(4):
        for kind, events in (('change', (None, 11)), ('turned', (11, None)), ('same', (11, 11))):
            own = [shown(tmp_path / f'{kind}{i}{m}.mp4', e, i) for m, e in zip('ab', events)]
            rows.append([*(path.name for path in own), kind, f'{kind} {i}'])
    rows.append(['gone.mp4', 'same0a.mp4', 'same', 'x'])
    (tmp_path / 'torn.mp4').write_bytes(b'\0' * 99)
    rows.append(['torn.mp4', 'same0a.mp4', 'change', 'y'])
    table = tmp_path / 'pairs.csv'
    made.write_csv(table, rows)
    report = command.report('physics.py:pairs,smoke', table, 'pairs', ONE_CONTEXT)
    about = report['data']
    assert (about['expected'], about['read']) == (14, 12) and len(about['problems']) == 2
    assert 'gone.mp4 is missing' in about['problems'][0] and 'torn.mp4' in about['problems'][1]
    assert about['reported'] == report['results']['all kinds']['n'] == 6
    baselines = report['baselines']
    assert baselines['change: pixels']['value'] == 1 and baselines['change: pixels']['n'] == 2
    assert baselines['turned: pixels']['value'] == 0
    assert baselines['all kinds: pixels']['value'] == pytest.approx(1 / 3)
    for name in ('model', 'copy', 'pixels', 'random'):
        group, key = ('results', 'same') if name == 'model' else ('baselines', f'same: {name}')
        assert report[group][key]['value'] == 0
    assert '2 of 6 pairs are ties, which count as lost' in '\n'.join(report['sentences'])


@pytest.mark.slow
@pytest.mark.ci
def test_scenes_of_intphys(command, tmp_path):
    """Which pairs the model wins, window by window with its own encoder and predictor."""
    pairs = []
    for block, scene in (('O1', '01'), ('O1', '02'), ('O2', '01'), ('O3', '01'), ('O3', '02')):
        place, seed = tmp_path / 'dev' / block / scene, len(pairs)
        # members 1 and 3 part last and are one pair, 2 and 4 the other
        events = (None, 4, 11, 4)
        for i, (event, possible) in enumerate(zip(events, (True, False, False, True)), 1):
            shown(place / str(i) / 'scene', event, seed + (i == 4))
            status = {'header': {'is_possible': possible, 'length': 16}}
            made.write_json(place / str(i) / 'status.json', status)
        pairs += [(place / a / 'scene', place / b / 'scene') for a, b in (('1', '3'), ('4', '2'))]
    (tmp_path / 'dev/O2/01/3/status.json').write_text('{')
    pairs = [pair for pair in pairs if '/O2/' not in str(pair)]
    report = command.report(
        'physics.py:intphys1,smoke', tmp_path, 'intphys1', 'protocol=upstream', ONE_CONTEXT
    )
    about = report['data']
    assert (about['expected'], about['read'], about['reported']) == (9, 8, 8)
    assert 'status.json' in about['problems'][0]
    model, won = jepa_jax.load(command.model), []
    for pair in pairs:
        videos = [np.stack([pixels_of(p) for p in sorted(path.iterdir())]) for path in pair]
        possible, impossible = (surprise(model, v, about['settings']['model']) for v in videos)
        won.append(possible < impossible)
    assert report['results']['all kinds']['value'] == pytest.approx(np.mean(won))
    assert report['results']['permanence']['value'] == pytest.approx(np.mean(won[:4]))
    assert report['results']['continuity']['value'] == pytest.approx(np.mean(won[4:]))
    # the first pair of a scene is won by pixels: nothing happens in its possible member
    assert report['baselines']['all kinds: pixels']['value'] >= 0.5


# --- Cameras --------------------------------------------------------------------------------------


COUNT = 48  # frames of a video
# test video -> its first and last odd frame; the fourth cannot be read
SPANS = {1: (24, 39), 2: None, 3: (32, 47), 4: (2, 3)}


def footage(seed: int, odd: tuple[int, int] | None = None) -> np.ndarray:
    """Dim noise; from the first to the last odd frame with a bright corner."""
    frames = np.random.default_rng(seed).integers(70, 80, (COUNT, 32, 48, 3)).astype(np.uint8)
    if odd:
        frames[odd[0] : odd[1] + 1, :16, :16] = 220
    return frames


def folder_of_frames(path: pathlib.Path, frames: np.ndarray, suffix: str, mode: str) -> None:
    path.mkdir(parents=True)
    for i, frame in enumerate(frames, 1):
        Image.fromarray(frame).convert(mode).save(path / f'{i:03d}{suffix}')


def avi(path: pathlib.Path, frames: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    synthetic.write(path.with_suffix('.mp4'), frames, 25)
    path.with_suffix('.mp4').rename(path)


def ped2(root):
    for i in range(4):
        folder_of_frames(root / f'UCSDped2/Train/Train{i + 1:03d}', footage(i), '.tif', 'L')
    lines = []
    for i, span in SPANS.items():
        folder_of_frames(root / f'UCSDped2/Test/Test{i:03d}', footage(9 + i, span), '.tif', 'L')
        own = f'{span[0] + 1}:{span[1] + 1}' if span else ''  # from 1, both ends
        lines.append(f'TestVideoFile{{end+1}}.gt_frame = [{own}];')
    (root / 'UCSDped2/Test/UCSDped2.m').write_text('\n'.join(lines) + '\n')
    return 'Test{:03d}'


def avenue(root):
    for i in range(4):
        avi(root / f'training_videos/{i + 1:02d}.avi', footage(i))
    for i, span in SPANS.items():
        avi(root / f'testing_videos/{i:02d}.avi', footage(9 + i, span))
        cells = np.empty((1, COUNT), object)
        for t in range(COUNT):
            cells[0, t] = np.zeros((32, 48), np.uint8)
            cells[0, t][:16, :16] = bool(span) and span[0] <= t <= span[1]
        place = root / f'ground_truth_demo/testing_label_mask/{i}_label.mat'
        place.parent.mkdir(parents=True, exist_ok=True)
        savemat(place, {'volLabel': cells}, do_compression=True)
    return '{:02d}.avi'


def shanghaitech(root):
    for i in range(4):
        avi(root / f'training/videos/01_{i + 1:03d}.avi', footage(i))
    for i, span in SPANS.items():
        name = f'01_{i:04d}'
        folder_of_frames(root / f'testing/frames/{name}', footage(9 + i, span), '.jpg', 'RGB')
        mask = np.zeros(COUNT, np.int8)
        if span:
            mask[span[0] : span[1] + 1] = 1
        (root / 'testing/test_frame_mask').mkdir(exist_ok=True)
        np.save(root / f'testing/test_frame_mask/{name}.npy', mask)
    return '01_{:04d}'


def tear(root: pathlib.Path, name: str) -> None:
    """The fourth test video of a set cannot be read."""
    (path,) = (p for p in root.rglob(name) if p.parent.name not in ('training_videos', 'Train'))
    damaged = sorted(path.iterdir())[4] if path.is_dir() else path
    damaged.write_bytes(b'\0' * 99)


CAMERAS = {'ped2': ped2, 'avenue': avenue, 'shanghaitech': shanghaitech}


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize('name', CAMERAS)
def test_cameras(command, tmp_path, name):
    """Areas under the ROC curve by scikit-learn, of the scores that are written, against the labels
    that the set was made with."""
    pattern = CAMERAS[name](tmp_path)
    tear(tmp_path, pattern.format(4))
    report = command.report(f'anomaly.py:{name},smoke', tmp_path, name)
    about = report['data']
    assert (about['normal'], about['test'], about['expected'], about['read']) == (4, 3, 8, 7)
    assert pattern.format(4) in about['problems'][0]
    rows = csv_rows(command.folder / name / 'scores.csv')
    videos = [[r for r in rows if r['video'].endswith(pattern.format(i))] for i in (1, 2, 3)]
    assert [len(video) for video in videos] == [COUNT] * 3 and len(rows) == 3 * COUNT
    wrong = []
    for video, span in zip(videos, (SPANS[1], None, SPANS[3])):
        wrong.append([bool(span) and span[0] <= t <= span[1] for t in range(COUNT)])
        assert [row['label'] == '1' for row in video] == wrong[-1]
    for reader in ('density', 'surprise', 'copy', 'pixels'):
        scores = [[float(row[reader]) for row in video] for video in videos]
        group = report['results' if reader in ('density', 'surprise') else 'baselines']
        area = roc_auc_score(np.ravel(wrong), np.ravel(scores))
        assert group[reader]['value'] == pytest.approx(area, abs=2e-3), reader
        each = [roc_auc_score(w, s) for w, s in zip(wrong, scores) if any(w)]
        assert group[f'{reader}, macro']['value'] == pytest.approx(np.mean(each), abs=5e-3), reader
    # a bright corner is nothing that normal video has
    assert report['results']['density']['value'] > 0.95


# --- What cannot be used --------------------------------------------------------------------------


def jester_without_a_name(root):
    jester(root)
    with (root / 'jester-v1-validation.csv').open('a') as file:
        file.write('8;Waving\n')


def in1k_of_other_folders(root):
    in1k(root)
    (root / 'val/n01440764').rename(root / 'val/n00000001')


def k400_of_another_version(root):
    made.kinetics(root)
    with (root / 'annotations/val.csv').open('a') as file:
        file.write('juggling,-b,10,20,val\n')


def coin_of_a_wrong_number(root):
    made.coin(root)
    text = (root / 'COIN.json').read_text()
    (root / 'COIN.json').write_text(text.replace('"recipe_type": 2', '"recipe_type": 200'))


def diving_beyond_the_names(root):
    made.diving(root)
    made.write_json(root / 'Diving48_vocab.json', [['Back', '15som', '05Twis', 'FREE']])


def ade20k_of_151(root):
    dense_sets.ade20k(root)
    dense_sets.values(
        root / 'annotations/training/ADE_train_00000002.png', dense_sets.halves(1, 151)
    )


def nyuv2_of_8_bits(root):
    dense_sets.nyuv2(root)
    path = root / 'sync/kitchen_0000/sync_depth_00001.png'
    dense_sets.values(path, dense_sets.halves(1, 2))


def davis_of_21(root):
    dense_sets.davis(root)
    dense_sets.values(root / 'Annotations/480p/val-1/00002.png', np.full((32, 48), 21, np.uint8))


def a_list_without_columns(root):
    (root / 'pairs.csv').write_text('good,bad\na.mp4,b.mp4\n')


def intphys_without_answers(root):
    (root / 'dev/O1/01/1/scene').mkdir(parents=True)


def ped2_backwards(root):
    ped2(root)
    (root / 'UCSDped2/Test/UCSDped2.m').write_text('gt_frame = [4:2];')


def avenue_without_masks(root):
    avi(root / 'testing_videos/01.avi', footage(0))


def shanghaitech_without_normal_video(root):
    (root / 'training').mkdir()
    folder_of_frames(root / 'testing/frames/01_0014', footage(0), '.jpg', 'RGB')


@pytest.mark.parametrize(
    ('config', 'make', 'words'),
    [
        ('jester.py:smoke', jester_without_a_name, "'Waving' is not in jester-v1-labels.csv"),
        ('in1k.py:smoke', in1k_of_other_folders, 'n00000001 is on one side only'),
        ('k400.py:smoke', k400_of_another_version, "'juggling' is no class of the training file"),
        ('coin.py:smoke', coin_of_a_wrong_number, 'recipe_type'),
        ('diving48.py:smoke', diving_beyond_the_names, 'entry 2 (_8Vytrain_00001)'),
        ('segmentation.py:ade20k,smoke', ade20k_of_151, 'class 151: must be 1 to 150'),
        ('depth.py:nyuv2,smoke', nyuv2_of_8_bits, 'distances must have 16'),
        ('propagation.py:davis17,smoke', davis_of_21, 'object 21: must be 1 to 20'),
        ('physics.py:pairs,smoke', a_list_without_columns, 'no column possible, impossible'),
        ('physics.py:intphys1,smoke', intphys_without_answers, 'no pair of intphys1'),
        ('anomaly.py:ped2,smoke', ped2_backwards, "'4:2' is no first:last"),
        ('anomaly.py:avenue,smoke', avenue_without_masks, 'ground_truth_demo/testing_label_mask'),
        ('anomaly.py:shanghaitech', shanghaitech_without_normal_video, 'no normal video to learn'),
    ],
)  # fmt: skip
def test_what_cannot_be_used(command, tmp_path, monkeypatch, capsys, config, make, words):
    make(tmp_path)
    path = tmp_path / 'pairs.csv' if ':pairs' in config else tmp_path
    # an untrained encoder beside it would be compiled before files are looked at
    dense = config.startswith(('segmentation', 'depth', 'propagation'))
    fields = ('random_baseline=false',) if dense else ()
    line = command.error(monkeypatch, capsys, config, path, *fields)
    assert words in line
