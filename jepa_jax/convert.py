"""Converts weights: the original's .pt, Hugging Face folders and our checkpoints, in any direction.

    python -m jepa_jax.convert SRC DST [--to jax|torch|hf] [--encoder target|online]

What SRC is, which version and size, is read from its arrays' names and shapes; what these cannot
say is an option, and the default taken is printed. Adam's moments and the schedules of a training
checkpoint go along between .pt and our checkpoints. Nothing that is not fully understood is
converted, and nothing in a .pt file is run. Bits do not change.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import threading
import time

from jepa_jax import cli
from jepa_jax.errors import ConvertError, UsageError
from jepa_jax.weights import names

# For Python, as `from jepa_jax import convert; convert.read('vitl.pt')`; not before they are needed
_LIBRARY = {
    'Weights': 'jepa_jax.weights.contents',
    'read': 'jepa_jax.weights.read',
    'write': 'jepa_jax.weights.write',
    'add_probe': 'jepa_jax.weights.write',
}

OTHER_FILES = ('.safetensors', '.npz', '.npy', '.h5', '.onnx')  # of weights, as others have them


def __getattr__(name: str):
    if name in _LIBRARY:
        return getattr(importlib.import_module(_LIBRARY[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def convert(
    source: str,
    destination: str,
    to: str | None,
    encoder: str,
    probe: str | None,
    part: str | None,
    steps_per_epoch: int | None,
    **choices,
) -> None:
    """Converts `source` into `destination`.

    Raises:
      UsageError: a destination with the suffix of a format that is not written.
      ZooError: a source that is no path and no name, or one that cannot be had.
      ConvertError: what is wrong with the source, or cannot be written.
      CheckpointError: one of our checkpoints is damaged, or the disk is too full.
    """
    for text in filter(None, (source, probe)):
        names.check(text)
        if text.startswith(names.RANDOM):
            raise ConvertError(
                f"'{text}': nothing is trained there; jepa_jax.load('{text}').save_pretrained(DIR) "
                'writes such weights'
            )
    source, probe = _path_first(source), probe and _path_first(probe)
    if (suffix := os.path.splitext(destination)[1].lower()) in OTHER_FILES:
        raise UsageError(
            f'DST {destination}: no {suffix} file is written; a name that ends in .pt is one of '
            'PyTorch, any other a folder, with --to hf of .safetensors'
        )
    from tqdm import tqdm

    from jepa_jax.weights import zoo  # jax, orbax: not for --help
    from jepa_jax.weights.write import add_probe, nbytes, only, refuse_existing, write

    began = time.monotonic()
    refuse_existing(destination)  # reading may take minutes
    with _Peak() as peak:
        told = choices | {'steps_per_epoch': steps_per_epoch}
        # what is chosen beside a name is of the other, which is a path
        weights = zoo.find(source, **({} if probe and _is_name(source) else told))
        if probe:
            told = {} if _is_name(probe) and not _is_name(source) else choices
            weights = add_probe(weights, zoo.find(probe, **{**told, 'ignore': ()}))
        if part:
            weights = only(weights, [name.strip() for name in part.split(',')])
        for line in weights.summary():
            print(line)
        to = to or _format(weights, destination)
        total = nbytes(weights, to, encoder)
        with tqdm(total=total, unit='B', unit_scale=True, desc=f'to {to}', disable=None) as bar:
            notes = write(
                weights,
                destination,
                to,
                encoder=encoder,
                steps_per_epoch=steps_per_epoch,
                progress=bar.update,
            )
    print(f'{destination}: {total / 2**30:.3g} GiB, format {to}')
    for note in notes:
        print(f'  {note}')
    print(f'took {time.monotonic() - began:.0f} s{peak.words()}')


def _path_first(text: str) -> str:
    """What a file or folder here that has the name of a model is called as a path: `convert vitl.pt
    vitl` makes one, which is then meant."""
    path = text.partition(names.PIN)[0]
    if not _is_name(text) or not os.path.exists(path):
        return text
    print(f"'{path}' is what lies here, not the model of that name")
    return os.path.join('.', text)


def _is_name(text: str) -> bool:
    name, _ = names.pinned(text)
    return name in names.RELEASED or name in names.BUNDLED


def _format(weights, destination: str) -> str:
    """What is written if nothing is asked for."""
    from jepa_jax.weights.parts import PARTS

    if destination.endswith(('.pt', '.pth', '.pth.tar')):
        return 'torch'
    held = all('torch' in PARTS[net.part].files for net in weights.nets.values())
    if weights.training and 'predictor' in weights.nets and 'target' not in weights.nets:
        held = False  # the original's training checkpoints have an average
    return 'torch' if weights.format == 'jax' and held else 'jax'


class _Peak:
    """The largest amount of anonymous memory while open; Linux only."""

    def __enter__(self) -> _Peak:
        self._largest, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            try:
                with open('/proc/self/status') as file:
                    line = next(line for line in file if line.startswith('RssAnon'))
            except (OSError, StopIteration):
                return  # no Linux
            self._largest = max(self._largest, int(line.split()[1]))
            if self._done.wait(0.05):
                return

    def words(self) -> str:
        gib = self._largest / 2**20
        return f', {gib:.2f} GiB of memory at the most (files mapped apart)' if gib else ''


def _options(parser: argparse.ArgumentParser) -> None:
    def number(name: str, words: str) -> None:
        parser.add_argument(name, type=int, metavar='N', help=words)

    parser.add_argument(
        'source',
        metavar='SRC',
        help='.pt file (also FILE@sha256:HEX), Hugging Face folder, workdir, or a name that `load` '
        'takes (jepa models)',
    )
    parser.add_argument('destination', metavar='DST', help='file or folder, must not exist')
    parser.add_argument(
        '--to',
        choices=('jax', 'torch', 'hf'),
        help='(default: torch for a DST that ends in .pt, and from our checkpoints unless '
        'they hold nets that have no place there; else jax)',
    )
    parser.add_argument(
        '--encoder',
        choices=('target', 'online', 'language'),
        default='target',
        help='which one a Hugging Face folder gets (default: target, the moving average); '
        'language: the language model, its adapter merged',
    )
    parser.add_argument(
        '--probe', metavar='FILE', help='add the attentive probe of another file, or name (none)'
    )
    parser.add_argument(
        '--only', dest='part', metavar='NET,...', help='those nets alone: projector,adapter (all)'
    )
    number('--crop', 'pixels of the clips trained on (default: 256; of V-JEPA 2.1 384)')
    number('--frames', 'frames of the clips trained on (default: 64)')
    number('--heads', 'attention heads of an encoder of no named size (as its size says)')
    number(
        '--predictor-heads',
        'of a predictor of another width than the released (64 wide)',
    )
    number('--probe-heads', 'of a probe (default: 16)')
    parser.add_argument(
        '--position',
        choices=('rope', 'sincos'),
        help='of a file that has a sin-cos table (refused)',
    )
    parser.add_argument(
        '--shorter',
        choices=('first', 'resized'),
        help='clips shorter than a sin-cos table: its first rows, or resized as V-JEPA 1 (first, '
        "but for tables of V-JEPA 1's sizes)",
    )
    parser.add_argument(
        '--extrinsics',
        action='store_true',
        default=None,
        help='the action-conditioned predictor uses camera poses',
    )
    parser.add_argument(
        '--raw-positions',
        action='store_true',
        default=None,
        help="V-JEPA 2.1's predictor counts tokens as they are, as the original's hub has it",
    )
    number('--steps-per-epoch', "of the original's training run: step = epochs x N (Adam's count)")
    parser.add_argument('--weights-only', action='store_true', help='leave the optimizer out')
    parser.add_argument(
        '--allow-missing',
        action='append',
        default=[],
        metavar='NAME',
        help='an array, or a pattern, that may be missing; may be given again (none)',
    )
    parser.add_argument(
        '--ignore',
        action='append',
        default=[],
        metavar='NAME',
        help='an entry or array of a .pt file, or a pattern, to leave out; also several (none)',
    )
    parser.add_argument(
        '--allow-nonfinite', action='store_true', help='convert arrays with NaN or infinity, too'
    )


def main() -> int:
    return cli.run(convert, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
