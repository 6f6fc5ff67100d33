"""Runs of `python -m jepa_jax.train` small enough to be made, killed and repeated by the dozen."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np

from jepa_jax import checkpoint, metrics
from jepa_jax.data import synthetic

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS = 16

CONFIG = """from jepa_jax.config import DataListConfig, MaskConfig, MaskedVideoConfig


def get_config(path):
    c = MaskedVideoConfig(name='small', seed=3, compute_dtype='float32')
    c.encoder.width, c.encoder.depth, c.encoder.heads, c.encoder.patch = 24, 2, 2, 8
    c.predictor.width, c.predictor.depth, c.predictor.heads = 24, 1, 2
    c.predictor.mask_tokens = 2
    # blocks of one shape: one program to compile
    c.masks = [MaskConfig(num_blocks=2, spatial_scale=(0.25, 0.25), aspect_ratio=(1.0, 1.0))]
    c.data.lists = [DataListConfig(path=path)]
    c.data.crop, c.data.frames, c.data.fps = 32, 4, 8
    c.optim.batch, c.optim.steps, c.optim.warmup = 8, 16, 4
    c.checkpoints.every = 4
    c.logging.every, c.logging.health_every = 1, 4
    return c
"""


class Runs:
    """A folder with videos, a config, and a compilation cache that all runs share."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.videos = folder / 'videos'
        self.videos.mkdir()
        rng = np.random.default_rng(0)
        for i in range(12):
            frames = rng.integers(0, 256, (12 + i, 40, 48, 3), dtype=np.uint8)
            synthetic.write(self.videos / f'{i:02}.mp4', frames)
        (folder / 'small.py').write_text(CONFIG)
        # the runs' own folder comes first on their path: none may take the seconds that it takes
        (folder / 'torch.py').write_text("raise SystemExit('training imported PyTorch')")
        self.environment = {
            **os.environ,
            'PYTHONPATH': str(ROOT),
            'JEPA_JAX_CACHE': str(folder / 'cache'),
            'JAX_COMPILATION_CACHE_DIR': str(folder / 'xla'),
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        }
        self._count = 0
        self._finished: pathlib.Path | None = None

    def workdir(self) -> pathlib.Path:
        """A path where nothing is yet."""
        self._count += 1
        return self.folder / f'run{self._count}'

    def finished(self) -> pathlib.Path:
        """The workdir of an unbroken run with a profile, without worker processes; not to be
        changed."""
        if self._finished is None:
            workdir = self.workdir()
            done = self.run(workdir, flags=('--profile',))
            assert done.returncode == 0, done.stderr
            (workdir / 'stdout').write_text(done.stdout)
            (workdir / 'stderr').write_text(done.stderr)
            self._finished = workdir
        return self._finished

    def cut(self, step: int) -> pathlib.Path:
        """A copy of the unbroken run as if killed after the save of a step."""
        workdir = self.workdir()
        copy_until(step, self.finished(), workdir)
        return workdir

    def command(self, workdir: pathlib.Path, *more: str, data: pathlib.Path | None = None):
        config = f'--config=small.py:{data or self.videos}'
        python = [sys.executable, '-m', 'jepa_jax.train']
        return [*python, config, f'--workdir={workdir}', *(f'--config.{each}' for each in more)]

    def run(
        self,
        workdir: pathlib.Path,
        *more: str,
        data: pathlib.Path | None = None,
        flags: tuple[str, ...] = (),
    ):
        """To its end; `more`: FIELD=VALUE; `data`: list or folder instead of the videos."""
        return subprocess.run(
            [*self.command(workdir, *more, data=data), *flags],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
        )

    def start(self, workdir: pathlib.Path, *more: str) -> 'Started':
        return Started(self, workdir, more)


class Started:
    """A run at work, in a process group of its own; ends with the `with` block."""

    def __init__(self, runs: Runs, workdir: pathlib.Path, more: tuple[str, ...]):
        self._log = runs.folder / f'{workdir.name}.log'
        with self._log.open('wb') as log:
            self.process = subprocess.Popen(
                runs.command(workdir, *more),
                cwd=runs.folder,
                env=runs.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> 'Started':
        return self

    def __exit__(self, *_):
        self.process.kill()  # does nothing to one that has ended
        self.process.wait()

    def until(self, met) -> None:
        """Returns at once when `met()` holds."""
        end = time.monotonic() + 600
        while not met():
            assert self.process.poll() is None, f'ended early: {self.log()}'
            assert time.monotonic() < end, f'waited in vain: {self.log()}'
            time.sleep(0.005)

    def kill(self, number: int = signal.SIGKILL, group: bool = False) -> int:
        """The exit status."""
        (os.killpg if group else os.kill)(self.process.pid, number)
        return self.process.wait(60)

    def children(self) -> list[int]:
        """Data workers, and what Python starts to look after their shared memory."""
        return [pid for pid, parent in parents().items() if parent == self.process.pid]

    def log(self) -> str:
        return self._log.read_text()


def copy_until(step: int, workdir: pathlib.Path, copy: pathlib.Path) -> None:
    """Copies a run as if it had been killed after the save of a step."""
    shutil.copytree(workdir, copy)
    (copy / 'report.json').unlink(missing_ok=True)
    for newer in checkpoint.complete_steps(copy / 'checkpoints'):
        if newer > step:
            shutil.rmtree(copy / 'checkpoints' / str(newer))


def parents() -> dict[int, int]:
    """Every live process and its parent; Linux only."""
    result = {}
    for entry in pathlib.Path('/proc').iterdir():
        if entry.name.isdigit():
            try:
                state, parent, *_ = (entry / 'stat').read_text().rpartition(')')[2].split()
            except OSError:
                continue  # it ended in the meantime
            if state != 'Z':
                result[int(entry.name)] = int(parent)
    return result


def lines(workdir: pathlib.Path) -> int:
    """Lines of metrics so far."""
    path = workdir / metrics.FILE
    return path.read_bytes().count(b'\n') if path.exists() else 0


def rows(workdir: pathlib.Path) -> list[str]:
    """Rows of metrics, all digits of them, without what the clock decides."""
    parsed = map(json.loads, (workdir / metrics.FILE).read_text().splitlines())
    return [json.dumps({k: v for k, v in row.items() if not metrics.clocked(k)}) for row in parsed]


def arrays(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by name."""
    folder = workdir / 'checkpoints' / str(step)
    result, _ = checkpoint.restore(folder, checkpoint.stored_abstract(folder))
    return named(result)


def named(tree) -> dict[str, np.ndarray]:
    """All arrays of a tree by name."""
    return {
        jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def assert_same_run(workdir: pathlib.Path, unbroken: pathlib.Path) -> None:
    """Metrics and the last checkpoint are equal bit for bit, and the run has its report."""
    assert rows(workdir) == rows(unbroken) and len(rows(workdir)) == STEPS
    assert_same_arrays(arrays(workdir, STEPS), arrays(unbroken, STEPS))
    ours, theirs = (json.loads((w / 'report.json').read_text()) for w in (workdir, unbroken))
    assert ours['steps'] == STEPS and ours['verdict'] == theirs['verdict']
    assert not list((workdir / 'checkpoints').glob('saving-*'))


def assert_same_arrays(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys() and ours
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name, strict=True)


def flip_byte(folder: pathlib.Path) -> pathlib.Path:
    """Changes a bit in the middle of the largest file below a folder, which it returns."""
    path = max((p for p in folder.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path
