"""The windows of embedded folders that are nearest to a clip or a picture, by cosine.

    python -m jepa_jax.embed --model vitl --input videos/ --out features/ --pool mean --format npy
    python -m jepa_jax.search --features features/ --query clip.mp4 --at 12.5 --out hits.csv \\
        --sheet hits.png

--features is what `embed` wrote, in any of its forms: an .npz, or a folder. The query is embedded
as those were, by the model that the folder names; of a video the window that begins at --at
seconds. Every window is compared, so the result is exact; shards of .npy are mapped, so that they
may be larger than the memory. Tokens are averaged first. --out takes .csv or .json: rank, cosine,
path, window, start and end in seconds, frame (the middle one). --sheet is a picture of the query
and the hits.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from jepa_jax import cli
from jepa_jax.errors import BadFile, InputError, UsageError

PIECE = 2**26  # bytes of features that are looked at together
# of the settings of `embed`, those that the query is seen by
VIEWING = ('frames', 'fps', 'crop', 'preprocess')
LOADING = ('encoder', 'probe', 'dtype', 'seed', 'heads')


def search(
    features: list[str],
    query: str,
    at: float,
    top: int,
    centre: bool,
    others: bool,
    out: str | None,
    sheet: str | None,
    model: str | None,
) -> None:
    """Embeds the query, compares it with every window, and writes the nearest."""
    if top < 1:
        raise UsageError(f'--top {top}: must be at least 1')
    if out and Path(out).suffix not in WRITERS:
        raise UsageError(f'--out {out}: must end in {" or ".join(WRITERS)}')
    import os

    from jepa_jax import embedded, pretrained, start
    from jepa_jax.workdir import room_for

    for flag, path in (('--out', out), ('--sheet', sheet)):
        if path:
            room_for(flag, path)
    start.logging_to_terminal()
    start.compilation_cache()
    about = _agreed(features)
    ready = pretrained.load(model or about['model'], **{name: about[name] for name in LOADING})
    if ready.hash(probe=about['pool'] == 'attentive') != about['weights']:
        raise InputError(
            f'{model or about["model"]} is not the model that {features[0]} was made with '
            f'({embedded.brief(about)}): name that with --model'
        )
    window = next(ready.windows(query, start=at, **{name: about[name] for name in VIEWING}))
    pool = about['pool'] if about['pool'] != 'none' else 'mean'
    _, values = next(iter(ready.stream([window], pool=pool)))
    skip = os.path.abspath(query) if others else ''
    hits = nearest(features, values['pooled'], top, centre=centre, skip=skip)
    if not hits:
        raise InputError(f'{", ".join(features)}: no windows of other files than the query')
    for hit in hits:
        span = f'{hit["start"]:.2f} to {hit["end"]:.2f} s'
        print(f'{hit["rank"]:4d}  {hit["cosine"]:.4f}  {hit["path"]}  {span}')
    if out:
        WRITERS[Path(out).suffix](out, hits)
        print(f'wrote {out}')
    if sheet:
        from jepa_jax.evals.pictures import plot_sheet

        asked = {'path': query, 'frame': int(window.numbers[len(window.numbers) // 2])}
        begin, end = window.seconds[[0, -1]]
        caption = f'query: {Path(query).name}\n{begin:.1f} to {end:.1f} s'
        pictures = [(_frame(asked, about['fps']), caption)]
        pictures += [(_frame(hit, about['fps']), _caption(hit)) for hit in hits]
        plot_sheet(pictures, sheet, title=f'nearest of {", ".join(features)} by cosine')
        print(f'wrote {sheet}')


def _agreed(features: list[str]) -> dict[str, Any]:
    """The settings of all features, which must be one model's. Raises InputError."""
    from jepa_jax import embedded

    about: dict[str, Any] = {}
    known: dict[Path, int] = {}
    for number, place in enumerate(features):
        for file in embedded.members(place):
            if (before := known.setdefault(file.resolve(), number)) != number:
                raise UsageError(f'--features {place}: {file} is in {features[before]} as well')
            stored = embedded.about_file(file)
            if not about:
                about, first = stored, place
            elif stored['key'] != about['key']:
                one, other = embedded.brief(about), embedded.brief(stored)
                raise InputError(
                    f'{place} holds features made with {other}, {first} with {one}: '
                    'only those of one model and way of reading can be compared'
                )
    return about


def nearest(
    features: list[str], query, top: int, *, centre: bool = False, skip: str = ''
) -> list[dict[str, Any]]:
    """The windows whose mean feature has the largest cosine with a query, nearest first.

    Args:
      features: what `embed` wrote, by path.
      query: [D], or [queries, D] of an attentive pooler, which are averaged as the windows' are.
      top: how many.
      centre: take the mean over all windows out of query and windows first.
      skip: the absolute path of an input that is left out.

    Returns:
      Rows rank, cosine, path, window, start, end (seconds), frame (its number in the file).

    Raises:
      InputError: another width, or nothing that `embed` wrote. BadFile: it is damaged.
    """
    import numpy as np

    from jepa_jax import embedded

    query = np.asarray(query, np.float32)
    query = query.reshape(-1, query.shape[-1]).mean(0)
    middle = np.zeros(query.shape, np.float64)
    if centre:
        count = 0
        for place in features:
            for block in embedded.blocks(place):
                for first, x in _pieces(block, query.shape[0]):
                    kept = block.kept[first : first + len(x)]
                    middle += x[kept].sum(0, dtype=np.float64)
                    count += int(kept.sum())
        middle /= max(1, count)
    query = _unit((query - middle)[None].astype(np.float32))[0]
    best: list[tuple[float, int, dict[str, Any]]] = []
    order = 0
    for place in features:
        for block in embedded.blocks(place):
            out = np.array([source.path == skip for source in block.sources])
            out = np.repeat(out, [source.rows for source in block.sources]) | ~block.kept
            for first, x in _pieces(block, query.shape[0]):
                cosine = _unit(x - middle.astype(np.float32)) @ query
                cosine[out[first : first + len(x)]] = -np.inf
                rows = np.argsort(-cosine, kind='stable')[:top]
                for row in rows[np.isfinite(cosine[rows])]:
                    best.append((-float(cosine[row]), order, _hit(block, first + int(row))))
                    order += 1
                best = sorted(best, key=lambda entry: entry[:2])[:top]
    return [
        {'rank': rank, 'cosine': -negative, **hit}
        for rank, (negative, _, hit) in enumerate(best, 1)
    ]


def _pieces(block, width: int):
    """Features of a block in pieces: number of the first row, and [n, D] float32."""
    import numpy as np

    if block.features.shape[-1] != width:
        wide = block.features.shape[-1]
        raise InputError(f'features of width {wide}, the query has {width}: another model')
    step = max(1, PIECE // max(1, block.features[:1].nbytes))
    for first in range(0, len(block.features), step):
        x = np.asarray(block.features[first : first + step], np.float32)
        yield first, x.reshape(len(x), -1, width).mean(1)


def _unit(x):
    import numpy as np

    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _hit(block, row: int) -> dict[str, Any]:
    source, window = block.source(row)
    seconds, numbers = block.seconds[row], block.numbers[row]
    return {
        'path': source.path,
        'window': window,
        'start': float(seconds[0]),
        'end': float(seconds[-1]),
        'frame': int(numbers[len(numbers) // 2]),
    }


def _frame(hit: dict[str, Any], fps: float):
    """The middle frame of a hit, or None if its file is gone or has changed."""
    import numpy as np

    from jepa_jax.data.windows import open_input

    try:
        return open_input(hit['path'], fps).read(np.array([hit['frame']]))[0]
    except (BadFile, IndexError):
        return None


def _caption(hit: dict[str, Any]) -> str:
    name = Path(hit['path']).name
    name = name if len(name) <= 24 else f'{name[:23]}\N{HORIZONTAL ELLIPSIS}'
    return f'{hit["rank"]}: {hit["cosine"]:.3f}  {name}\n{hit["start"]:.1f} to {hit["end"]:.1f} s'


def _csv(path: str, hits: list[dict[str, Any]]) -> None:
    import csv
    import io

    from jepa_jax.workdir import write_text

    text = io.StringIO(newline='')
    writer = csv.DictWriter(text, list(hits[0]))
    writer.writeheader()
    writer.writerows(hits)
    # what is no UTF-8 in a path is replaced, as in a shard's own table
    write_text(Path(path), text.getvalue().encode('utf-8', 'replace').decode())


def _json(path: str, hits: list[dict[str, Any]]) -> None:
    from jepa_jax.workdir import write_json

    write_json(Path(path), hits)


WRITERS = {'.csv': _csv, '.json': _json}


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--features', required=True, nargs='+', metavar='DIR', help='what embed wrote, --out')
    add('--query', required=True, metavar='FILE', help='a video, a picture, a folder of frames')
    add(
        '--at',
        type=float,
        default=0.0,
        metavar='SECONDS',
        help='when its window begins (%(default)s)',
    )
    add('--top', type=int, default=12, metavar='N', help='how many windows (%(default)s)')
    add(
        '--centre', action='store_true',
        help='take the mean over all windows out first, which else makes all alike',
    )  # fmt: skip
    add('--others', action='store_true', help='leave windows of the query itself out')
    add('--out', metavar='FILE', help='hits.csv or hits.json (printed alone)')
    add('--sheet', metavar='FILE.png', help='a picture of the query and the hits (none)')
    add('--model', metavar='NAME_OR_PATH', help='where the model is now (as embed was told)')


def main() -> int:
    return cli.run(search, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
