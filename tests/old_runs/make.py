"""Makes what this folder holds besides text, by the jepa_jax on PYTHONPATH (see README.md).

    python make.py FOLDER

The folder must not exist.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
CONFIGS = 'masked.py', 'action_conditioned.py'
CUT, STEPS = 4, 8  # the save after which a run is killed, and its end
# dies in step 6, when the checkpoint of step 4 is complete
KILLED = f"""
import os, pathlib, signal, sys, time
from jepa_jax import metrics, train

write = metrics.Metrics.write
workdir = next(a.split('=')[1] for a in sys.argv if a.startswith('--workdir='))
manifest = pathlib.Path(workdir, 'checkpoints', '{CUT}', 'manifest.json')

def then_die(self, step, values):
    write(self, step, values)
    if step == {CUT + 2}:
        while not manifest.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

metrics.Metrics.write = then_die
sys.exit(train.main())
"""


def write_videos(folder: pathlib.Path) -> None:
    """Squares that move over a slope of grey, 12 frames of 40 x 48 pixels each; lossless, so that
    no colours are converted when they are read."""
    from jepa_jax.data import synthetic

    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        synthetic.write(folder / f'{i}.mp4', _frames(rng, 12, 40, 48), lossless=True)


def write_recordings(folder: pathlib.Path) -> None:
    """Episodes of 10 to 12 frames, four a second, whose states drift."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    for i in range(3):
        n = 10 + i
        states = np.cumsum(rng.normal(0, 0.03, (n, 7)), axis=0)
        states[:, 6] = rng.uniform(0, 1, n)  # the gripper
        np.savez_compressed(
            folder / f'{i}.npz', states=states, observations=_frames(rng, n, 32, 40), fps=4.0
        )


def _frames(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    base = rng.integers(40, 120, 3) + np.arange(width)[None, None, :, None] * rng.integers(0, 3, 3)
    frames = np.broadcast_to(base, (count, height, width, 3)).astype(np.uint8)
    for _ in range(3):
        side, colour = rng.integers(6, 14), rng.integers(0, 256, 3)
        y, x = rng.integers(0, height - side), rng.integers(0, width - side)
        dy, dx = rng.integers(-2, 3, 2)
        for t in range(count):
            top, left = (y + dy * t) % (height - side), (x + dx * t) % (width - side)
            frames[t, top : top + side, left : left + side] = colour
    return frames


def call(folder: pathlib.Path, *arguments: str, expected: int = 0) -> None:
    """Python in a folder, on one CPU device."""
    environment = {
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'JEPA_JAX_CACHE': str(folder.parent / 'cache'),
        'JAX_COMPILATION_CACHE_DIR': '',
    }
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment)
    assert done.returncode == expected, f'{arguments}: exit status {done.returncode}'


def arrays(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by name."""
    from jepa_jax import checkpoint

    folder = workdir / 'checkpoints' / str(step)
    nested, _ = checkpoint.restore(folder, checkpoint.stored_abstract(folder))
    named: dict[str, np.ndarray] = {}

    def visit(node, name: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                visit(value, f'{name}/{key}' if name else key)
        else:
            named[name] = np.asarray(node)

    visit(nested, '')
    return named


def rows(workdir: pathlib.Path) -> list[dict[str, float]]:
    """Rows of metrics without what the clock decides."""
    from jepa_jax import metrics

    read = metrics.read(workdir)
    return [{k: v for k, v in row.items() if k not in metrics.TIMING_KEYS} for row in read]


def tidy(workdir: pathlib.Path) -> None:
    """Takes away what names this machine or is of no use."""
    (workdir / '.lock').unlink()
    shutil.rmtree(workdir / 'tensorboard', ignore_errors=True)


def make_run(name: str, scratch: pathlib.Path, out: pathlib.Path) -> None:
    """A killed run, and what it comes to when it is resumed."""
    flags = [f'--config={name}.py', f'--workdir={name}']
    call(scratch, '-c', KILLED, *flags, expected=-9)
    tidy(scratch / name)
    assert [row['step'] for row in rows(scratch / name)] == list(range(1, CUT + 3))
    shutil.copytree(scratch / name, out / name)
    call(scratch, '-m', 'jepa_jax.train', *flags)
    call(scratch, '-m', 'jepa_jax.train', flags[0], f'--workdir={name}-unbroken')

    resumed, unbroken = scratch / name, scratch / f'{name}-unbroken'
    ours, theirs = arrays(resumed, STEPS), arrays(unbroken, STEPS)
    assert ours.keys() == theirs.keys() and rows(resumed) == rows(unbroken)
    for key, array in ours.items():
        np.testing.assert_array_equal(array, theirs[key], err_msg=key, strict=True)
    np.savez_compressed(out / f'expected_{name}.npz', **ours)
    text = json.dumps(rows(resumed)[CUT:], indent=1)
    (out / f'expected_{name}.json').write_text(text + '\n')


def main(folder: str) -> None:
    out = pathlib.Path(folder).absolute()
    out.mkdir()
    write_videos(out / 'videos')
    write_recordings(out / 'recordings')
    # Orbax writes down where a checkpoint was saved
    with tempfile.TemporaryDirectory(prefix='old-runs-') as temporary:
        scratch = pathlib.Path(temporary) / 'runs'
        scratch.mkdir()
        for config in CONFIGS:
            shutil.copy(HERE / config, scratch)
        for data in ('videos', 'recordings'):
            shutil.copytree(out / data, scratch / data)
        make_run('masked', scratch, out)
        source = 'masked/checkpoints/8'
        convert = ['-m', 'jepa_jax.convert', source, 'converted', '--to=jax', '--weights-only']
        call(scratch, *convert)
        shutil.copytree(scratch / 'converted', out / 'converted')
        make_run('action_conditioned', scratch, out)


if __name__ == '__main__':
    main(*sys.argv[1:])
