"""Pages of runs and evaluations: one HTML file that holds its pictures and loads nothing."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from jepa_jax.errors import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = 'report.html'
THUMBNAIL = 128  # pixels
_STYLE = (
    'body{font:15px/1.5 sans-serif;max-width:62em;margin:2em auto;padding:0 1em}'
    'table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .8em;text-align:right;'
    'border-bottom:1px solid #ccc}td:first-child,th:first-child{text-align:left}img{max-width:100%}'
    'pre{background:#f4f4f4;padding:.6em;overflow-x:auto;white-space:pre-wrap}'
)


def write(folder: Path, title: str, parts: Sequence[str]) -> Path:
    """Writes report.html into a folder and returns its path; parts: HTML, empty ones left out."""
    body = '\n'.join(part for part in parts if part)
    path = folder / FILE
    path.write_text(
        '<!doctype html><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f'<title>{html.escape(title)}</title><style>{_STYLE}</style>\n{body}\n',
        encoding='utf-8',
        errors='backslashreplace',  # names of files hold bytes that are no text
    )
    return path


def heading(text: str, level: int = 2) -> str:
    return f'<h{level}>{html.escape(text)}</h{level}>'


def paragraph(text: str) -> str:
    return f'<p>{html.escape(text)}</p>'


def links(pages: Sequence[tuple[str, str]]) -> str:
    """Pages beside this one: names and relative addresses, as HTML; '' for none."""
    items = ', '.join(f'<a href="{html.escape(at)}">{html.escape(name)}</a>' for name, at in pages)
    return f'<p>Each by itself: {items}.</p>' if pages else ''


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells as HTML."""

    def line(cells: Sequence[str], tag: str) -> str:
        return '<tr>' + ''.join(f'<{tag}>{html.escape(c)}</{tag}>' for c in cells) + '</tr>'

    body = ''.join(line(row, 'td') for row in rows)
    return f'<table>{line(head, "th")}{body}</table>'


def file(path: Path, words: str) -> str:
    """A PNG or GIF file as HTML that holds it; '' where there is none."""
    kind = path.suffix[1:]
    return f'<p>{_image(path.read_bytes(), kind, words)}</p>' if path.exists() else ''


def plain(text: str) -> str:
    """A name from outside for a figure: dollars begin no formula, and what fonts cannot take, bytes
    that are no text, is told in ASCII."""
    return '\n'.join(map(printable, text.split('\n'))).replace('$', r'\$')


def save_figure(figure: Figure, path: str | Path, dpi: int = 120, colours: int = 256) -> None:
    """Writes a figure as PNG of few colours: a third of the bytes of all; lines and areas alone are
    as well with 64."""
    out = io.BytesIO()
    figure.savefig(out, dpi=dpi, format='png')  # without pyplot: no display, no global state
    drawn = Image.open(out).convert('RGB')
    # the method that keeps rare colours, such as those of a mark
    few = drawn.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(path, 'PNG', optimize=True)


def pixels(image: np.ndarray, words: str = '') -> str:
    """An image uint8 [H, W, 3] as HTML, every pixel as it is."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, 'PNG')
    return _image(out.getvalue(), 'png', words)


def strip(frames: np.ndarray, side: int = THUMBNAIL) -> str:
    """Frames uint8 [k, H, W, 3] side by side, each at most `side` pixels high, as HTML."""
    image = Image.fromarray(np.concatenate(list(frames), axis=1))
    image.thumbnail((len(frames) * side, side))
    out = io.BytesIO()
    image.save(out, 'JPEG', quality=80)
    return _image(out.getvalue(), 'jpeg', '')


def _image(content: bytes, kind: str, words: str) -> str:
    text = base64.b64encode(content).decode()
    return f'<img alt="{html.escape(words)}" src="data:image/{kind};base64,{text}">'
