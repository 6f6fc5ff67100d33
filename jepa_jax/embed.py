"""Features of videos, images, folders of frames and .npy arrays (uint8 [T, H, W, 3]).

    python -m jepa_jax.embed --model vitl --input clip.mp4 --out clip.npz
    python -m jepa_jax.embed --model random:tiny --input videos/ --out features/ --pool mean
    python -m jepa_jax.embed --model vitl --input list.txt --out features/ --pool mean \\
        --format npy --store float16 --part 1/8
    python -m jepa_jax.embed --model ssv2-vitl-16x2x3 --input clip.mp4 --classify

An --input is one of these files, a folder of videos, a list (.txt, .csv, .jsonl of
tools.index_videos) or a pattern in quotes; there may be many. A video is taken at --fps and cut
into windows of --frames; the .npz holds `tokens` float32 [clips, N, D] (or `pooled`), `coords`
[N, 3] (seconds from the window's start, y, x in pixels of the input, of each token's middle), which
frames were fed (`numbers` and `seconds` [clips, T], `file` and `spacing` [clips]), the settings,
and with --clips the pixels (`clips` uint8 [clips, T, H, W, 3]). An --out that ends in .npz takes
all inputs, which must then have one token grid; any other is a folder that gets a file an input, or
with --format npy or parquet shards of many inputs. Started again it skips what is done. An input
that cannot be read is named and left out; of a damaged one the windows before the damage are
written. The rest is written, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import collections
import glob
import os
import pathlib
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from jepa_jax import cli
from jepa_jax.errors import InputsFailed, UsageError, printable
from jepa_jax.weights.names import check as check_name

SHOWN = 20  # names in the last line
# of the settings, those that features depend on, beside weights and input
MATTERS = 'frames fps crop preprocess stride pool dtype store clips'.split()


def embed(
    model: str,
    inputs: list[str],
    out: str | None,
    classify: bool,
    pictures: str | None,
    top: int,
    form: str,
    store: str,
    shard: int,
    part: tuple[int, int],
    **options: Any,
) -> None:
    """Reads the inputs one after the other and writes what the encoder says of them."""
    if not out and not classify and not pictures:
        raise UsageError('--out is missing: a file that ends in .npz, or a folder')
    one = out is not None and out.endswith('.npz')
    if one and (form != 'npz' or part[1] > 1):
        flag = f'--format {form}' if form != 'npz' else f'--part {part[0]}/{part[1]}'
        raise UsageError(f'{flag} with --out {out}: must be a folder, for many files')
    if shard < 1:
        raise UsageError(f'--shard {shard}: must be at least 1')
    if classify and top < 1:
        raise UsageError(f'--top {top}: must be at least 1')
    if out:
        _refuse_place(out, one)
    check_name(model)
    if options['probe']:
        check_name(options['probe'])
    if not any('\0' in name or os.path.lexists(name) or glob.has_magic(name) for name in inputs):
        raise InputsFailed(f'{_failed(inputs, inputs)}: no such file')
    from jepa_jax.data import named

    listed, skipped = named.find(inputs)
    # in one file an input is known by its path, in a folder and in pictures by its file's name
    named_after = pictures or (form == 'npz' and not one)
    counts = collections.Counter(one.name for one in listed) if named_after else {}
    if twice := next((name for name, count in counts.items() if count > 1), None):
        raise UsageError(f'--input: two are called {twice}, so one would overwrite the other')
    total = len(listed)
    listed = listed[part[0] - 1 :: part[1]]
    if total != len(inputs) or skipped:
        share = f', of which part {part[0]}/{part[1]} has {len(listed)}' if part[1] > 1 else ''
        passed = f'; passed over: {named.words(skipped)}' if skipped else ''
        print(f'{total} inputs{share}{passed}', flush=True)
    if not listed:
        return
    from jepa_jax import embedded, pretrained, start

    start.logging_to_terminal()
    start.compilation_cache()
    loading = ('encoder', 'probe', 'dtype', 'seed', 'heads')
    settings = {name: options[name] for name in loading} | {'store': store}
    ready = pretrained.load(model, **{name: options.pop(name) for name in loading})
    for line in ready.about:
        print(line)
    failed: dict[str, Exception] = {}
    partly: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.showwarning = _warned
        if classify:
            _classify(ready, listed, top, failed)
        if out or pictures:
            output = None
            if out:
                settings = {'model': model, 'about': ready.about, **settings, **options}
                settings['weights'] = weights = ready.hash(probe=options['pool'] == 'attentive')
                kept = {name: settings[name] for name in MATTERS}
                kept['layers'] = ready.blocks(options['layers'])
                place = (out, settings, embedded.key_of(weights, kept), store)
                if one:
                    output = embedded.OneFile(*place)
                elif form == 'npz':
                    output = embedded.Folder(*place)
                else:
                    output = embedded.Shards(*place, form, shard)
            _embed(ready, listed, output, pictures, options, failed, partly)
    words = []
    if failed:
        words.append(_failed(failed, listed))
    if partly := [path for path in partly if path not in failed]:
        words.append(f'{len(partly)} only before the damage: {_names(partly)}')
    if words:
        rest = '; all others are done' if len(failed) < len(listed) else ''
        raise InputsFailed(f'{"; ".join(words)}{rest}')


def _refuse_place(out: str, one: bool) -> None:
    """Raises UsageError where --out cannot be written: reading may take hours."""
    if os.path.lexists(out) and os.path.isdir(out) == one:
        there, rule = ('a folder', 'a file') if one else ('a file', 'a folder, or end in .npz')
        raise UsageError(f'--out {out}: {there} is in its place; must be {rule}')
    place = pathlib.Path(out).absolute()
    folder = next(f for f in (place, *place.parents) if f.is_dir())
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f'--out {out}: nothing can be written into {folder}')


def _failed(paths, listed) -> str:
    return f'{len(paths)} of {len(listed)} inputs could not be used: {_names(paths)}'


def _names(paths) -> str:
    paths = list(paths)
    more = f' and {len(paths) - SHOWN} more' if len(paths) > SHOWN else ''
    return ', '.join(map(printable, paths[:SHOWN])) + more


def _say(text: str, file=None) -> None:
    from tqdm import tqdm

    if text:
        tqdm.write(text, file=file)


def _warned(message, *_: object) -> None:
    _say(f'warning: {" ".join(str(message).split())}', sys.stderr)


def _left_out(path: str, error: Exception, failed: dict[str, Exception]) -> None:
    failed[path] = error
    _say(f'left out: {error}', sys.stderr)


def _classify(model, listed, top: int, failed: dict[str, Exception]) -> None:
    from jepa_jax.errors import BadFile

    for one in listed:
        try:
            classes = model.classify(one.path, top=top)
        except BadFile as error:
            _left_out(one.path, error, failed)
        else:
            print(f'{printable(one.path)}\n{classes}', flush=True)


def _embed(model, listed, output, pictures, options, failed, partly) -> None:
    """Windows of all inputs in one stream, so that batches reach over short files."""
    from jepa_jax import embedded
    from jepa_jax.data.windows import ahead
    from jepa_jax.errors import BadFile

    reading = {name: options[name] for name in ('pool', 'layers', 'batch')}
    clips = options['clips']
    viewing = {n: value for n, value in options.items() if n not in (*reading, 'clips')}
    left, damaged = output.left(listed) if output else (listed, {})
    partly.update(damaged)
    if done := len(listed) - len(left):
        drawn = ', and not drawn: without --out they are' if pictures else ''
        _say(f'{done} of {len(listed)} inputs are done already in {output.target}{drawn}')
    waiting = {one.path: one for one in left if one.path not in failed}
    if not waiting:
        return

    def feed():
        for path in waiting:
            count = 0
            try:
                for window in model.windows(path, **viewing):
                    count += 1
                    yield window
            except BadFile as error:
                if count:
                    partly[path] = str(error)
                    _say(f'only {count} windows, those before: {error}', sys.stderr)
                else:
                    _left_out(path, error, failed)
            finally:
                bar.update()

    bar = _Progress(len(waiting))
    try:
        current, count = None, 0
        for window, values in model.stream(ahead(feed()), **reading):
            bar.windows = (count := count + 1)
            if window.source != current:
                if output and current is not None:
                    _say(output.end(partly.get(current, ''), current in failed))
                current = window.source
                if window.repeated:
                    short = f'short, its last frame fills {window.repeated} places'
                    _say(f'{printable(current)}: {short}')
                if pictures:
                    _draw(model, window, values, pictures, waiting[current].name)
                if output:
                    grid = model.config.grid(*window.clip.shape[:3])
                    layout = embedded.Layout(grid, len(window.clip))
                    coords = model.coords(grid, window.spacing, len(window.clip))
                    try:
                        _say(output.begin(waiting[current], layout, coords, window.spacing))
                    except BadFile as error:
                        _left_out(current, error, failed)
            if output and current not in failed:
                try:
                    output.add(window, values | ({'clips': window.clip} if clips else {}))
                except BadFile as error:
                    _left_out(current, error, failed)
        if output:
            if current is not None:
                _say(output.end(partly.get(current, ''), current in failed))
            _say(output.close())
    except BaseException:
        if output:
            output.interrupt()
        raise
    finally:
        bar.close()


class _Progress:
    """Files done and time left: a bar on a terminal, else a line a minute."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic):
        from tqdm import tqdm

        self._bar = tqdm(total=total, unit='file', disable=None)
        self._total, self._clock, self._format = total, clock, tqdm.format_interval
        self._began = self._said = clock()
        self._done = self.windows = 0

    def update(self) -> None:
        """A file more is read."""
        self._done += 1
        if not self._bar.disable:
            self._bar.set_postfix(windows=self.windows, refresh=False)
            self._bar.update()
        elif (now := self._clock()) - self._said >= 60 and self._done < self._total:
            self._said = now
            left = self._format((now - self._began) / self._done * (self._total - self._done))
            files = f'{self._done:,} of {self._total:,} files, {self.windows:,} windows'
            print(f'{files}, {left} left', flush=True)

    def close(self) -> None:
        self._bar.close()


def _draw(model, window, values: dict[str, Any], folder: str, name: str) -> None:
    """Pictures of an input's first window: features as colours, and likeness to one token."""
    import numpy as np

    from jepa_jax.evals.pictures import plot_features, plot_similarity

    tokens = values.get('tokens')
    if tokens is None:
        tokens = np.asarray(model.encode(window.clip[None]))[0]
    grid = model.config.grid(*window.clip.shape[:3])
    tokens = tokens.reshape(*grid, -1)
    place = pathlib.Path(folder, name).parent
    place.mkdir(parents=True, exist_ok=True)
    name = pathlib.Path(name).name
    for kind, draw in (('pca', plot_features), ('similarity', plot_similarity)):
        path = place / f'{name}-{kind}.png'
        draw(window.clip, tokens, path, title=f'{name}: {model.about[0].split(",")[0]}')
        _say(f'wrote {path}')


def part(text: str) -> tuple[int, int]:
    """The type of --part: I/N, I from 1 to N."""
    number, _, count = text.partition('/')
    if not 1 <= int(number) <= int(count):
        raise ValueError
    return int(number), int(count)


part.__name__ = 'I/N with I from 1 to N'  # argparse says `invalid ... value`


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--model', required=True, metavar='NAME_OR_PATH', help='released name, path, random:SIZE')
    add(
        '--input', required=True, nargs='+', action='extend', metavar='FILE', dest='inputs',
        help='what to read: files, folders, lists, manifests, patterns; may be given again',
    )  # fmt: skip
    add('--out', metavar='FILE.npz', help='one file for all inputs, or a folder (none)')
    add('--frames', type=int, metavar='N', help='frames of a window (16; an image: one tubelet)')
    add('--fps', type=float, default=4.0, help='frames a second to take (%(default)s)')
    add('--crop', type=int, metavar='PIXELS', help='of the eval view (as the model was trained)')
    add(
        '--preprocess', choices=('eval', 'none'), default='eval',
        help='eval: resize and cut the middle out; none: frames as they are (%(default)s)',
    )  # fmt: skip
    add(
        '--encoder', choices=('target', 'online'), default='target',
        help='target: the moving average; online: the trained one (%(default)s)',
    )  # fmt: skip
    add('--stride', type=int, metavar='N', help='sampled frames between windows (no overlap)')
    add(
        '--pool', choices=('none', 'mean', 'attentive'), default='none',
        help="a vector for a window: mean over its tokens, or the probe's pooler (%(default)s)",
    )  # fmt: skip
    add(
        '--layers', type=int, nargs='+', default=[], metavar='I',
        help='blocks whose features are written, as `levels`: from 0, or -1 for the last (none)',
    )  # fmt: skip
    add('--batch', type=int, default=1, metavar='N', help='windows at a time (%(default)s)')
    add('--clips', action='store_true', help='write what was fed, too: `clips`, uint8 pixels')
    add(
        '--format', choices=('npz', 'npy', 'parquet'), default='npz', dest='form',
        help='of a folder: an .npz an input, or shards of many, .npy to be mapped (%(default)s)',
    )  # fmt: skip
    add(
        '--store', choices=('float32', 'float16'), default='float32',
        help='type of features on the disk (%(default)s)',
    )  # fmt: skip
    add('--shard', type=int, default=1000, metavar='N', help='inputs of a shard (%(default)s)')
    add(
        '--part', type=part, default=(1, 1), metavar='I/N',
        help='of N processes that share the inputs, this is number I, from 1 (all of them)',
    )  # fmt: skip
    add('--probe', metavar='NAME_OR_PATH', help="for --pool and --classify (the model's own)")
    add('--classify', action='store_true', help="print the probe's likeliest classes")
    add('--top', type=int, default=5, metavar='N', help='how many classes (%(default)s)')
    add(
        '--pictures',
        metavar='DIR',
        help='PCA and token similarity of each first window, as PNG (none)',
    )
    add(
        '--dtype', choices=('float32', 'bfloat16'), default='float32',
        help='that the encoder computes in (%(default)s)',
    )  # fmt: skip
    add('--seed', type=int, default=0, metavar='N', help='of random weights (%(default)s)')
    add('--heads', type=int, metavar='N', help='of an encoder of no named size (told by the file)')


def main() -> int:
    return cli.run(embed, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
