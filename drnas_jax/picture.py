"""A genotype's cells as a picture."""

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from drnas_jax.genotype import Cell, Genotype

_UNIT = 1.1  # inches between nodes
_RISE = 0.45  # height of an arc for each node that it passes, in units
_COLOURS = [f"C{i}" for i in range(10)]
_CENTRED: dict[str, Any] = dict(ha="center", va="center", zorder=2)
_INPUT_NAMES = {1: ("input",), 2: ("$c_{k-2}$", "$c_{k-1}$")}


def to_svg(genotype: Genotype) -> str:
    """SVG of all cells, one below the other: nodes from left to right, an arc for each edge.

    Works for every space; the same genotype gives the same text.
    """
    inputs = genotype.inputs
    most = max(len(cell) for _, cell in genotype.cells) + inputs
    height = _RISE * most * len(genotype.cells)
    figure = Figure(figsize=(_UNIT * (most + 1), _UNIT * height), layout="constrained")
    names = sorted({name for _, cell in genotype.cells for node in cell for name, _ in node})
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    for place, (cell_type, cell) in enumerate(genotype.cells, start=1):
        axes = figure.add_subplot(len(genotype.cells), 1, place)
        axes.set_title(f"{cell_type} cell" if cell_type != "cell" else "cell")
        _draw(axes, cell, inputs, colours)
    with matplotlib.rc_context({"svg.hashsalt": "drnas_jax", "svg.fonttype": "none"}):
        figure.savefig(text := io.StringIO(), format="svg", metadata={"Date": None})
    return text.getvalue()


def _draw(axes: Any, cell: Cell, inputs: int, colours: Mapping[str, Any]) -> None:
    nodes = inputs + len(cell)
    for node, pairs in enumerate(cell, start=inputs):
        for name, source in pairs:
            height = _arc(axes, source, node, colours[name])
            place, box = (source + node) / 2, dict(facecolor="white", edgecolor="none", pad=1)
            axes.text(place, height, name, color=colours[name], fontsize=8, bbox=box, **_CENTRED)
    labels = [*_INPUT_NAMES[inputs], *map(str, range(len(cell)))]
    if inputs > 1:  # the output is all nodes together; of a cell with one input it is the last
        labels.append("output")
        for node in range(inputs, nodes):
            _arc(axes, node, nodes, "0.7", side=-0.3)
    for place, label in enumerate(labels):
        box = dict(boxstyle="round,pad=0.35", facecolor="white", edgecolor="0.2")
        axes.text(place, 0, label, bbox=box, **_CENTRED)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_ylim(-0.3 * _RISE * (len(cell) + 1), _RISE * (nodes - 1))
    axes.axis("off")


def _arc(axes: Any, start: int, end: int, colour: Any, side: float = 1) -> float:
    """An arc from one node to another; gives its height."""
    height = side * _RISE * (end - start)
    # A cubic curve whose control points are at 4/3 of the height has its top there.
    points = [(start, 0), (start, 4 / 3 * height), (end, 4 / 3 * height), (end, 0)]
    curve = Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
    axes.add_patch(PathPatch(curve, edgecolor=colour, facecolor="none", zorder=1))
    return height
