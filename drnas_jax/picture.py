"""Draws a genotype as SVG."""

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from drnas_jax.genotype import Cell, Genotype

_UNIT = 1.1  # inches between nodes
_RISE = 0.45  # height of an arc for each node that it spans, in units
_COLOURS = [f"C{i}" for i in range(10)]
_CENTRED: dict[str, Any] = dict(ha="center", va="center", zorder=2)
_INPUT_NAMES = {1: ("input",), 2: ("$c_{k-2}$", "$c_{k-1}$")}


def to_svg(genotype: Genotype) -> str:
    """Draws the cells of a genotype, one below the other.

    The nodes of a cell are in a row, with an arc for each edge. Equal genotypes give equal files.

    Args:
      genotype: Genotype to draw.

    Returns:
      Content of an SVG file.
    """
    inputs = genotype.inputs
    longest = max(len(cell) for _, cell in genotype.cells) + inputs
    height = _RISE * longest * len(genotype.cells)
    figure = Figure(figsize=(_UNIT * (longest + 1), _UNIT * height), layout="constrained")
    names = sorted({name for _, cell in genotype.cells for node in cell for name, _ in node})
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    for row, (cell_type, cell) in enumerate(genotype.cells, start=1):
        axes = figure.add_subplot(len(genotype.cells), 1, row)
        axes.set_title(f"{cell_type} cell" if cell_type != "cell" else "cell", pad=12)
        _draw(axes, cell, inputs, colours)
    with matplotlib.rc_context({"svg.hashsalt": "drnas_jax", "svg.fonttype": "none"}):
        figure.savefig(text := io.StringIO(), format="svg", metadata={"Date": None})
    return text.getvalue()


def _draw(axes: Any, cell: Cell, inputs: int, colours: Mapping[str, Any]) -> None:
    nodes = inputs + len(cell)
    for node, pairs in enumerate(cell, start=inputs):
        for name, source in pairs:
            height = _arc(axes, source, node, colours[name])
            middle, box = (source + node) / 2, dict(facecolor="white", edgecolor="none", pad=1)
            axes.text(middle, height, name, color=colours[name], fontsize=8, bbox=box, **_CENTRED)
    labels = [*_input_names(inputs), *map(str, range(len(cell)))]
    if inputs == 2:  # like DARTS, such a cell concatenates its nodes; for others it is unknown
        labels.append("output")
        for node in range(inputs, nodes):
            _arc(axes, node, nodes, "0.7", side=-0.3)
    for x, label in enumerate(labels):
        box = dict(boxstyle="round,pad=0.35", facecolor="white", edgecolor="0.2")
        axes.text(x, 0, label, bbox=box, **_CENTRED)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_ylim(-0.3 * _RISE * (len(cell) + 1), _RISE * (nodes - 1))
    axes.axis("off")


def _input_names(inputs: int) -> tuple[str, ...]:
    return _INPUT_NAMES.get(inputs, tuple(f"input {i}" for i in range(inputs)))


def _arc(axes: Any, start: int, end: int, colour: Any, side: float = 1) -> float:
    """Draws an arc from one node to another and returns its height."""
    height = side * _RISE * (end - start)
    # The top of a cubic curve with control points at 4/3 of the height is at the height.
    points = [(start, 0), (start, 4 / 3 * height), (end, 4 / 3 * height), (end, 0)]
    curve = Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
    axes.add_patch(PathPatch(curve, edgecolor=colour, facecolor="none", zorder=1))
    return height
