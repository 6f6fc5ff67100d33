"""Features of videos, images, folders of frames and .npy arrays (uint8 [T, H, W, 3]).

    python -m jepa_jax.embed --model vitl --input clip.mp4 --out clip.npz
    python -m jepa_jax.embed --model random:tiny --input *.mp4 --out features/ --pool mean
    python -m jepa_jax.embed --model ssv2-vitl-16x2x3 --input clip.mp4 --classify

A video is taken at --fps and cut into windows of --frames; the .npz holds `tokens` float32
[clips, N, D] (or `pooled`), `coords` [N, 3] (seconds from the window's start, y, x in pixels of the
input, of each token's middle), what was fed (`clips` uint8 [clips, T, H, W, 3], and which frames
that were: `numbers` and `seconds` [clips, T], `file` and `spacing` [clips]), and the settings. An
--out that ends in .npz takes all inputs, which must then have one token grid; any other is a folder
that gets a file an input. An input that cannot be read is named and left out; of a damaged one the
windows before the damage are written. The rest is written, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

from jepa_jax import cli
from jepa_jax.errors import InputsFailed, UsageError, printable


def embed(
    model: str,
    inputs: list[str],
    out: str | None,
    classify: bool,
    pictures: str | None,
    top: int,
    **options: Any,
) -> None:
    """Reads the inputs one after the other and writes what the encoder says of them."""
    if not out and not classify and not pictures:
        raise UsageError('--out is missing: a file that ends in .npz, or a folder')
    one = out is not None and out.endswith('.npz')
    names = inputs if one else [pathlib.Path(path).name for path in inputs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f'--input: two are called {twice}, so one would overwrite the other')
    from jepa_jax import pretrained, start

    start.logging_to_terminal()
    start.compilation_cache()
    loading = ('encoder', 'probe', 'dtype', 'seed', 'heads')
    ready = pretrained.load(model, **{name: options.pop(name) for name in loading})
    for line in ready.about:
        print(line)
    failed: dict[str, Exception] = {}
    partly: dict[str, Exception] = {}
    if classify:
        _classify(ready, inputs, top, failed)
    if out or pictures:
        output = None
        if out:
            kind = _OneFile if one else _Folder
            output = kind(out, {'model': model, 'about': ready.about, **options})
        _embed(ready, inputs, output, pictures, options, failed, partly)
    words = []
    if failed:
        count = f'{len(failed)} of {len(inputs)} inputs could not be used'
        words.append(f'{count}: {", ".join(map(printable, failed))}')
    if partly := [path for path in partly if path not in failed]:
        words.append(f'{len(partly)} only before the damage: {", ".join(map(printable, partly))}')
    if words:
        raise InputsFailed(f'{"; ".join(words)}; all others are done')


def _left_out(path: str, error: Exception, failed: dict[str, Exception]) -> None:
    from tqdm import tqdm

    failed[path] = error
    tqdm.write(f'left out: {error}', file=sys.stderr)


def _classify(model, inputs: list[str], top: int, failed: dict[str, Exception]) -> None:
    from jepa_jax.errors import BadFile

    for path in inputs:
        try:
            classes = model.classify(path, top=top)
        except BadFile as error:
            _left_out(path, error, failed)
        else:
            print(f'{printable(path)}\n{classes}', flush=True)


def _embed(model, inputs, output, pictures, options, failed, partly) -> None:
    """Windows of all inputs in one stream, so that batches reach over short files."""
    from tqdm import tqdm

    from jepa_jax.data.windows import ahead
    from jepa_jax.errors import BadFile

    reading = {name: options[name] for name in ('pool', 'layers', 'batch')}
    viewing = {name: value for name, value in options.items() if name not in reading}

    def feed():
        for path in [path for path in inputs if path not in failed]:
            count = 0
            try:
                for window in model.windows(path, **viewing):
                    count += 1
                    yield window
            except BadFile as error:
                if count:
                    partly[path] = error
                    tqdm.write(f'only {count} windows, those before: {error}', file=sys.stderr)
                else:
                    _left_out(path, error, failed)
            finally:
                bar.update()

    with tqdm(total=len(inputs), unit='file', disable=None) as bar:
        current, count = None, 0
        for window, values in model.stream(ahead(feed()), **reading):
            bar.set_postfix(windows=(count := count + 1))
            if window.source != current:
                if output and current is not None:
                    output.end(current not in failed)
                current = window.source
                if window.repeated:
                    short = f'short, its last frame fills {window.repeated} places'
                    tqdm.write(f'{printable(current)}: {short}')
                if pictures:
                    _draw(model, window, values, pictures)
                if output:
                    grid = model.config.grid(*window.clip.shape[:3])
                    coords = model.coords(grid, window.spacing)
                    try:
                        output.begin(current, grid, coords, window.spacing)
                    except BadFile as error:
                        _left_out(current, error, failed)
            if output and current not in failed:
                output.add(window, values)
        if output:
            if current is not None:
                output.end(current not in failed)
            output.close()


class _OneFile:
    """All inputs in one .npz."""

    def __init__(self, path: str, settings: dict[str, Any]):
        from jepa_jax.data.npz import NpzRows

        self._rows, self._settings = NpzRows(path), settings
        self._files: list[str] = []
        self._grid = self._coords = self._spacing = None  # of the first input that is whole

    def begin(self, path: str, grid: tuple[int, int, int], coords, spacing: float) -> None:
        """Rows of another input follow."""
        from jepa_jax.errors import BadFile

        self._path, self._first = path, self._rows.count
        if not self._files:
            self._grid, self._coords, self._spacing = grid, coords, spacing
        elif grid != self._grid:
            grids = f'token grid {grid}, inputs before it have {self._grid}'
            raise BadFile(path, 'unfit', f'{grids}: make --out a folder, for a file an input')
        elif spacing != self._spacing:
            from tqdm import tqdm

            tqdm.write(
                f'{path}: a frame every {spacing:.4g} s, in {self._files[0]} every '
                f'{self._spacing:.4g} s: the seconds of coords are those of the first input, '
                'and in proportion to spacing'
            )

    def add(self, window, values: dict[str, Any]) -> None:
        import numpy as np

        self._rows.add(
            **values,
            clips=window.clip,
            numbers=window.numbers.astype(np.int64),
            seconds=window.seconds.astype(np.float64),
            spacing=np.float64(window.spacing),
            file=np.int64(len(self._files)),
        )

    def end(self, whole: bool) -> None:
        """No more rows of this input; those of one that broke off are taken back."""
        if whole:
            self._files.append(self._path)
        else:
            self._rows.cut(self._first)

    def close(self) -> None:
        import json

        import numpy as np
        from tqdm import tqdm

        if not self._files:
            self._rows.drop()
            return
        forms = self._rows.close(
            files=np.array(self._files),
            grid=np.array(self._grid),
            coords=self._coords,
            settings=np.array(json.dumps(self._settings)),
        )
        shapes = ', '.join(f'{name} {list(shape)}' for name, shape in forms.items())
        tqdm.write(f'wrote {self._rows.path}: {shapes}')


class _Folder:
    """An .npz an input, named after it."""

    def __init__(self, path: str, settings: dict[str, Any]):
        self._folder, self._settings = pathlib.Path(path), settings
        self._folder.mkdir(parents=True, exist_ok=True)

    def begin(self, path: str, grid: tuple[int, int, int], coords, spacing: float) -> None:
        file = self._folder / f'{pathlib.Path(path).name}.npz'
        self._one = _OneFile(str(file), self._settings)
        self._one.begin(path, grid, coords, spacing)

    def add(self, window, values: dict[str, Any]) -> None:
        self._one.add(window, values)

    def end(self, whole: bool) -> None:
        self._one.end(whole)
        self._one.close()

    def close(self) -> None:
        pass


def _draw(model, window, values: dict[str, Any], folder: str) -> None:
    """Pictures of an input's first window: features as colours, and likeness to one token."""
    import numpy as np
    from tqdm import tqdm

    from jepa_jax.evals.pictures import plot_features, plot_similarity

    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    tokens = values.get('tokens')
    if tokens is None:
        tokens = np.asarray(model.encode(window.clip[None]))[0]
    grid = model.config.grid(*window.clip.shape[:3])
    tokens = tokens.reshape(*grid, -1)
    name = pathlib.Path(window.source).name
    for kind, draw in (('pca', plot_features), ('similarity', plot_similarity)):
        path = pathlib.Path(folder, f'{name}-{kind}.png')
        draw(window.clip, tokens, path, title=f'{name}: {model.about[0].split(",")[0]}')
        tqdm.write(f'wrote {path}')


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--model', required=True, metavar='NAME_OR_PATH', help='released name, path, random:SIZE')
    add('--input', required=True, nargs='+', metavar='FILE', dest='inputs', help='what to read')
    add('--out', metavar='FILE.npz', help='one file for all inputs, or a folder')
    add('--frames', type=int, metavar='N', help='frames of a window (16; an image: one tubelet)')
    add('--fps', type=float, default=4.0, help='frames a second to take (%(default)s)')
    add('--crop', type=int, metavar='PIXELS', help='of the eval view (as the model was trained)')
    add('--preprocess', choices=('eval', 'none'), default='eval', help='(%(default)s)')
    add('--encoder', choices=('target', 'online'), default='target', help='(%(default)s)')
    add('--stride', type=int, metavar='N', help='sampled frames between windows (no overlap)')
    add('--pool', choices=('none', 'mean', 'attentive'), default='none', help='(%(default)s)')
    add(
        '--layers', type=int, nargs='+', default=[], metavar='I',
        help='blocks, from 0, whose features are written too, as `levels`',
    )  # fmt: skip
    add('--batch', type=int, default=1, metavar='N', help='windows at a time (%(default)s)')
    add('--probe', metavar='NAME_OR_PATH', help='attentive probe, for --pool and --classify')
    add('--classify', action='store_true', help="print the probe's likeliest classes")
    add('--top', type=int, default=5, metavar='N', help='how many (%(default)s)')
    add('--pictures', metavar='DIR', help='PCA and token similarity of each first window, as PNG')
    add('--dtype', choices=('float32', 'bfloat16'), default='float32', help='(%(default)s)')
    add('--seed', type=int, default=0, metavar='N', help='of random weights (%(default)s)')
    add('--heads', type=int, metavar='N', help='of an encoder of no named size')


def main() -> int:
    return cli.run(embed, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
