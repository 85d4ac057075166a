"""The HTML that sections of the report are made of; all texts are escaped here."""

import base64
import html
import json
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import plotly.graph_objects as go

from drnas_jax.genotype import Genotype
from drnas_jax.picture import to_svg

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 0 auto;
  padding: 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5rem; } h3 { margin: 1.5rem 0 .5rem; }
table { border-collapse: collapse; } td, th { padding: .25rem .75rem; text-align: right;
  border-bottom: 1px solid #ddd; white-space: nowrap; }
th { vertical-align: bottom; white-space: normal; }
td:first-child, th:first-child, .facts td { text-align: left; white-space: normal;
  min-width: 6rem; overflow-wrap: break-word; }
.labels td:first-child { min-width: 14rem; }
.wide { overflow-x: auto; margin: .75rem 0; }
code, pre, p, li, summary, h1, h3, .card { overflow-wrap: anywhere; } pre { white-space: pre-wrap; }
svg { max-width: 100%; height: auto; }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0; }
.tile { flex: 1 1 9rem; max-width: 20rem; border: 1px solid #ddd; border-radius: .5rem;
  padding: .5rem .75rem; }
.tile b { display: block; font-size: 1.3rem; line-height: 1.3; } .tile span { color: #666; }
.now { background: #eef4fb; border-radius: .5rem; padding: .75rem 1rem; }
.now p { margin: 0; } progress { width: 100%; height: .75rem; }
.warning { background: #fdf1e5; border-radius: .5rem; padding: .5rem .75rem; }
.kept { background: #d6e6f5; } .chosen { background: #1f6fb4; color: #fff; } .gone { color: #999; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
.card { border: 1px solid #ddd; border-radius: .5rem; padding: .5rem .75rem; min-width: 0; }
.card div { display: flex; flex-wrap: wrap; gap: .5rem; } figure { margin: .5rem 0 0; }
figure img { display: block; height: 3.5rem; max-width: 100%; }
img.small { image-rendering: pixelated; }
figcaption { font-size: .8rem; color: #666; }
"""
_SMALL = 56  # pixels; smaller images are shown larger
# Buttons that a reader hardly needs would cover the legend of a figure on a telephone.
_PLOT = {
    "responsive": True,
    "displaylogo": False,
    "modeBarButtons": [["toImage", "zoom2d", "resetScale2d"]],
}


def section(title: str, *parts: str) -> str:
    """Returns a section with a heading; the parts are HTML."""
    return f"<section><h2>{html.escape(title)}</h2>{''.join(parts)}</section>"


def heading(title: str) -> str:
    """Returns a heading within a section."""
    return f"<h3>{html.escape(title)}</h3>"


def text(words: str) -> str:
    """Returns a paragraph."""
    return f"<p>{html.escape(words)}</p>"


def warning(words: str) -> str:
    """Returns a paragraph that stands out."""
    return f'<p class="warning">{html.escape(words)}</p>'


def link(page: Path, folder: Path) -> str:
    """Returns a link from a page in a folder to another page, named by its relative path."""
    path = os.path.relpath(page, folder)
    return f'<a href="{html.escape(urllib.parse.quote(path))}">{html.escape(path)}</a>'


def drawn(genotype: Genotype, description: str) -> str:
    """Returns the picture of a genotype, with its text below."""
    svg = to_svg(genotype)
    return svg[svg.index("<svg") :] + f"<p><code>{html.escape(description)}</code></p>"


def percent(share: float) -> str:
    """Returns a number from 0 to 1 in percent."""
    return f"{100 * share:.2f} %"


def duration(seconds: float) -> str:
    """Returns a duration in its two largest units, for example `2 h 5 min`."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def tiles(values: Sequence[tuple[str, str]]) -> str:
    """Returns large numbers side by side.

    Args:
      values: Pairs of a number and what it is.
    """
    parts = (
        f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>'
        for value, name in values
    )
    return f'<div class="tiles">{"".join(parts)}</div>' if values else ""


def of_labels(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table whose first column has long labels."""
    return table(header, rows).replace("<table>", '<table class="labels">')


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """Returns a table of pairs of a name and a value."""
    return table((), rows).replace("<table>", '<table class="facts">')


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    classes: Sequence[Sequence[str]] | None = None,
) -> str:
    """Returns a table, which scrolls if it is wider than the page.

    Args:
      header: Names of the columns; empty for none.
      rows: Texts of the cells.
      classes: Class of every cell in the style of the page, or an empty string.
    """

    def line(cells: Sequence[str], tag: str, names: Sequence[str]) -> str:
        pairs = zip(cells, names, strict=True)
        return f"<tr>{''.join(_cell(text, tag, name) for text, name in pairs)}</tr>"

    names = classes or [[""] * len(row) for row in rows]
    body = "".join(line(row, "td", kinds) for row, kinds in zip(rows, names, strict=True))
    head = line(header, "th", [""] * len(header)) if header else ""
    return f'<div class="wide"><table>{head}{body}</table></div>'


def _cell(words: str, tag: str, name: str) -> str:
    kind = f' class="{name}"' if name else ""
    return f"<{tag}{kind}>{html.escape(words)}</{tag}>"


def plot(figure: go.Figure) -> str:
    """Returns an interactive figure, for a page that includes plotly's script."""
    return figure.to_html(full_html=False, include_plotlyjs=False, auto_play=False, config=_PLOT)


def details(summary: str, content: str) -> str:
    """Returns content that is hidden until the reader opens it."""
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def environment(described: Mapping[str, Any], title: str) -> str:
    """Returns the versions, devices and config of a run, hidden until the reader opens them.

    Args:
      described: Contents of the run's config.json.
      title: Text to click on.
    """
    names = ", ".join(
        f"{name} {version}" for name, version in described.get("versions", {}).items()
    )
    config = html.escape(json.dumps(described["config"], indent=2))
    words = text(f"{names}; on {', '.join(described['devices'])}")
    return details(title, f"{words}<pre>{config}</pre>")


def picture(pixels: np.ndarray, name: str, caption: str) -> str:
    """Returns an image with a caption.

    Args:
      pixels: Image, uint8 [h, w, c] with c = 1 (gray) or 3 (RGB).
      name: What is to be seen, for readers who do not see it.
      caption: Text below the image.
    """
    ordered = pixels[..., ::-1] if pixels.shape[-1] == 3 else pixels  # OpenCV's order of colours
    file = cv2.imencode(".png", np.ascontiguousarray(ordered))[1].tobytes()
    encoded = base64.b64encode(file).decode()
    kind = ' class="small"' if pixels.shape[0] < _SMALL else ""  # blurred if they were smoothed
    return (
        f'<figure><img{kind} src="data:image/png;base64,{encoded}" alt="{html.escape(name)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def card(title: str, *parts: str) -> str:
    """Returns a small box with a title; the parts are HTML."""
    return f'<div class="card">{html.escape(title)}<div>{"".join(parts)}</div></div>'


def cards(parts: Sequence[str]) -> str:
    """Returns boxes in as many columns as fit."""
    return f'<div class="cards">{"".join(parts)}</div>' if parts else ""
