"""What works on this machine, and is a model what it should be?

    python -m jepa_jax.doctor
    python -m jepa_jax.doctor --model vitl

Without a model: versions, devices, memory, the decoder tried on a video, which attention is chosen
and why, what is missing. With one: hashes of its files, its arrays against the table of names and
shapes, its version and size, a forward of that size with weights by formula against the original's
numbers to 1e-4, and one forward with its own weights. Exit status 1 if a check fails.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import pathlib
import platform
import shutil
import sys
import tempfile

from jepa_jax import __version__, cli
from jepa_jax.errors import DoctorError, ZooError
from jepa_jax.weights import names

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy', 'av')
OPTIONAL = {  # package -> what it is for
    'torch': (".pt files from before PyTorch 1.6: pip install 'jepa_jax[torch]'"),
    'safetensors': ("Hugging Face folders: pip install 'jepa_jax[hf]'"),
    'huggingface_hub': ("models by their Hugging Face name: pip install 'jepa_jax[hf]'"),
    'tensorboardX': ("TensorBoard events of runs: pip install 'jepa_jax[tensorboard]'"),
}
CODECS = ('h264', 'hevc', 'vp9', 'av1')
GIB = 2**30
WHY = {
    'splash': 'a TPU has kernels that store no scores',
    'cudnn': 'a GPU, 16-bit numbers and at most 128 channels a head: flash attention of cuDNN',
    'xla': 'few tokens: their scores fit in memory as they are',
    'blockwise': 'no fused kernel takes this type here, and all scores at once would not fit',
    'by_head': 'a CPU: a head and some queries at a time keep the scores in its cache',
}


class _Report:
    """Prints results; remembers what failed."""

    def __init__(self):
        self.failed: list[str] = []

    def note(self, name: str, text: str) -> None:
        print(f'        {name}: {text}', flush=True)

    def check(self, name: str, problems: list[str] | str | None, fine: str) -> None:
        """`problems` empty: it holds."""
        problems = [problems] if isinstance(problems, str) and problems else problems or []
        if not problems:
            print(f'ok      {name}: {fine}', flush=True)
            return
        self.failed.append(name)
        for line in problems:
            print(f'FAILED  {name}: {line}', flush=True)

    def missing(self, name: str, text: str) -> None:
        print(f'missing {name}: {text}', flush=True)


def doctor(model: str | None, encoder: str) -> None:
    """Prints the report.

    Raises:
      DoctorError: a check failed.
    """
    if model:
        names.check(model)
    report = _Report()
    _machine(report)
    _decoder(report)
    _attention(report, 'vitl', 16)
    if model:
        _model(report, model, encoder)
    if report.failed:
        checks = 'check' if len(report.failed) == 1 else 'checks'
        raise DoctorError(f'{len(report.failed)} {checks} failed: {", ".join(report.failed)}')
    print('all checks passed')


def _machine(report: _Report) -> None:
    report.note('jepa_jax', f'{__version__} at {pathlib.Path(__file__).parent}')
    report.note('python', f'{platform.python_version()} on {platform.platform()}')
    report.note('packages', ', '.join(f'{p} {_version(p)}' for p in PACKAGES))
    for package, why in OPTIONAL.items():
        if version := _version(package):
            report.note(package, version)
        else:
            report.missing(package, why)
    import jax

    devices = jax.devices()
    kinds = sorted({d.device_kind for d in devices})
    report.note('devices', f'{len(devices)} x {", ".join(kinds)} ({devices[0].platform})')
    if devices[0].platform == 'cpu':
        if os.path.exists('/dev/nvidia0'):
            report.missing('GPU', "there is one that JAX cannot use: pip install 'jepa_jax[cuda]'")
        if any(pathlib.Path('/dev').glob('accel*')):
            report.missing('TPU', "there is one that JAX cannot use: pip install 'jepa_jax[tpu]'")
    for device in devices[:8]:
        if stats := device.memory_stats():
            limit, used = stats.get('bytes_limit', 0), stats.get('bytes_in_use', 0)
            report.note(f'memory of {device}', f'{limit / GIB:.1f} GiB, {used / GIB:.1f} in use')
    report.note('cores', str(os.cpu_count()))
    total, free = _memory()
    report.note('memory', f'{total / GIB:.1f} GiB, {free / GIB:.1f} available')
    from jepa_jax.config import cache_root

    root = cache_root()
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    disk = f'{shutil.disk_usage(there).free / GIB:.1f} GiB free'
    writable = None if os.access(there, os.W_OK) else f'{there} cannot be written to'
    report.check('cache folder', writable, f'{root} ({disk})')


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ''


def _memory() -> tuple[int, int]:
    """Bytes of memory, and of those what a program may still take; 0: not known."""
    page = os.sysconf('SC_PAGE_SIZE')
    total = page * os.sysconf('SC_PHYS_PAGES')
    try:
        for line in pathlib.Path('/proc/meminfo').read_text().splitlines():
            if line.startswith('MemAvailable:'):
                return total, 1024 * int(line.split()[1])
    except OSError:  # macOS has none
        return total, 0
    return total, 0


def _decoder(report: _Report) -> None:
    """Writes a video whose frames differ in brightness, reads every third, looks at them."""
    import av
    import numpy as np
    from av import library_versions

    from jepa_jax.data import synthetic
    from jepa_jax.data.decode import read_frames
    from jepa_jax.errors import BadFile

    lacking = [name for name in CODECS if name not in av.codecs_available]
    if lacking:
        report.missing('decoders', f'this PyAV cannot read {", ".join(lacking)}')
    rows = np.arange(0, 24, 3)
    levels = (40 + 8 * np.arange(24)).astype(np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (24, 64, 80, 3))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, 'try.mp4')
        synthetic.write(path, np.ascontiguousarray(frames))
        try:
            brightness = read_frames(path, lambda timing: rows).mean((1, 2, 3))
            off = np.abs(brightness - levels[rows]).max()
            problem = None if off < 3 else f'brightness of frames is off by {off:.1f} of 255'
        except BadFile as error:
            problem = str(error)
    libav = '.'.join(map(str, library_versions['libavcodec']))
    known = ', '.join(name for name in CODECS if name not in lacking)
    fine = f'PyAV {av.__version__}, libavcodec {libav}, reads {known}; a made video came back right'
    report.check('decoder', problem, fine)


def _attention(report: _Report, size: str, frames: int) -> None:
    import jax

    from jepa_jax.models import SIZES
    from jepa_jax.models.attention import choose

    shape = SIZES[size]
    tokens, channels = frames // 2 * 16 * 16, shape.width // shape.heads
    for dtype in ('float32', 'bfloat16'):
        kind = choose(jax.default_backend(), dtype, tokens, tokens, channels)
        report.note(f'attention, {size}, {frames} frames, {dtype}', f'{kind}: {WHY[kind]}')


def _model(report: _Report, name: str, encoder: str) -> None:
    from jepa_jax import golden, pretrained, start
    from jepa_jax.errors import CheckpointError, ConvertError
    from jepa_jax.models import SIZE_ALIASES
    from jepa_jax.weights import zoo
    from jepa_jax.weights.parts import called, version_of

    start.logging_to_terminal()  # a download or the first conversion takes minutes
    start.compilation_cache()
    print()
    size = name.removeprefix('random:')
    size = SIZE_ALIASES.get(size, size)
    version = ''
    if name.startswith('random:'):
        config, _ = pretrained.random_configs(size)  # refuses an unknown one
        version = version_of('encoder', config)
        report.note('files', 'none: random weights')
    else:
        try:
            sources = zoo.look(name)
        except (CheckpointError, ConvertError, ZooError) as error:
            report.check('files and arrays', str(error), '')
            return
        for path in sources.files:
            report.note('sha256', f'{_digest(path)}  {path}')
        report.check(
            'files and arrays', None, 'every array is known, none is missing, all shapes are right'
        )
        for line in sources.weights.summary():
            report.note('model', line.strip())
        wrong = sources.weights.not_finite()
        report.check('numbers', wrong, 'every number of its weights and optimizer is finite')
        if wrong:
            return
        size, version = sources.weights.size, sources.weights.version
        if sources.weights.encoder is None:
            return
    if version == '2.1':
        size = golden.DENSE
    elif version not in ('', '2.0'):
        size = f'{size} of {called(version)}'
    if size in golden.ROWS:
        need, (_, free) = golden.memory(size), _memory()
        if free and need > free:
            report.check(
                'golden forward',
                f'size {size} needs {need / GIB:.1f} GiB, {free / GIB:.1f} are available', '',
            )  # fmt: skip
        else:
            problems = golden.problems(size, golden.forward(size))
            report.check(
                'golden forward', problems,
                f"size {size} with weights by formula gives the original's features to 1e-4",
            )  # fmt: skip
    else:
        known = ', '.join(golden.ROWS)
        report.note('golden forward', f'no numbers for size {size}; there are some for {known}')
    _own_forward(report, name, encoder)


def _own_forward(report: _Report, name: str, encoder: str) -> None:
    """The model's own weights on a small clip: finite, and not all the same."""
    import numpy as np

    from jepa_jax import pretrained

    model = pretrained.load(name, encoder=encoder)
    for line in model.about:
        report.note('loaded', line)
    side = 4 * model.config.patch
    clip = np.random.default_rng(0).integers(0, 256, (1, 4, side, side, 3), np.uint8)
    frames = 1 if model.config.still else 2 * model.config.tubelet
    tokens = np.asarray(model.encoder(clip[:, :frames]))
    spread = float(tokens.std(axis=1).mean())
    problem = None
    if not np.isfinite(tokens).all():
        problem = 'features of noise are not finite'
    elif spread < 1e-4:
        problem = f'all tokens of a clip of noise have the same features (deviation {spread:.2g})'
    fine = f'features of noise are finite, deviation over tokens {spread:.3f}'
    report.check('own forward', problem, fine)


def _digest(path: pathlib.Path) -> str:
    import hashlib

    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--model', metavar='NAME_OR_PATH', help='what `load` takes: name, path, random:SIZE (none)')
    add('--encoder', choices=('target', 'online'), default='target', help='of a run with both')


def main() -> int:
    return cli.run(doctor, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
