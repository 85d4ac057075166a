"""Draws a genotype as SVG.

It is written directly, since matplotlib and what it needs would be 100 MB for a few arcs and texts.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping

from drnas_jax.genotype import Cell, Genotype

_UNIT = 84  # least number of pixels between nodes
_LETTER = 7  # width of a letter of an operation's name, in pixels
_RISE = 36  # height of an arc for each node that it spans, in pixels
_TITLE = 32  # height of a cell's title, in pixels
_BELOW = 0.3  # height of the arcs to the output, as a share of that of the others
_COLOURS = ("#1f77b4", "#c45e00", "#2a8a2a", "#d62728", "#7b52a8", "#8c564b", "#c7459c", "#6b6b6b")
_HALO = {"paint-order": "stroke", "stroke": "white", "stroke-width": "6"}  # hides the arc below
_INPUT_NAMES = {1: ("input",), 2: ("c_{k-2}", "c_{k-1}")}


def to_svg(genotype: Genotype) -> str:
    """Draws the cells of a genotype, one below the other.

    The nodes of a cell are in a row, with an arc for each edge. They have the numbers that the
    genotype's sources have: the inputs first, then the nodes. Equal genotypes give equal files.

    Args:
      genotype: Genotype to draw.

    Returns:
      Content of an SVG file.
    """
    inputs = genotype.inputs
    names = sorted({name for _, cell in genotype.cells for node in cell for name, _ in node})
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    longest = max(len(cell) for _, cell in genotype.cells) + inputs + (inputs == 2)
    unit = max(_UNIT, _LETTER * max(map(len, names), default=0))
    width, height = unit * (longest - 1) + 1.2 * _UNIT, 0.0
    svg = ElementTree.Element("svg", xmlns="http://www.w3.org/2000/svg")
    svg.set("font-family", "DejaVu Sans, Verdana, sans-serif")
    ElementTree.SubElement(svg, "rect", width="100%", height="100%", fill="white")
    for cell_type, cell in genotype.cells:
        title = f"{cell_type} cell" if cell_type != "cell" else "cell"
        _text(svg, width / 2, height + _TITLE / 2, title, size=14)
        top = _RISE * max((node - source for node, _, source in _edges(cell, inputs)), default=0)
        axis = height + _TITLE + top
        group = ElementTree.SubElement(svg, "g", transform=f"translate({0.6 * _UNIT:g} {axis:g})")
        _draw(group, cell, inputs, colours, unit)
        height = axis + max(_BELOW * _RISE * len(cell) * (inputs == 2), 14) + 10
    svg.attrib |= dict(width=f"{width:g}", height=f"{height:g}")
    svg.set("viewBox", f"0 0 {width:g} {height:g}")
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def _edges(cell: Cell, inputs: int) -> list[tuple[int, str, int]]:
    """Returns target, operation and source of each edge; inputs are numbered before nodes."""
    nodes = enumerate(cell, start=inputs)
    return [(node, name, source) for node, pairs in nodes for name, source in pairs]


def _draw(
    group: ElementTree.Element, cell: Cell, inputs: int, colours: Mapping[str, str], unit: int
) -> None:
    nodes, edges = inputs + len(cell), _edges(cell, inputs)
    for target, name, source in edges:
        _arc(group, unit * source, unit * target, _RISE * (target - source), colours[name])
    labels = [*_input_labels(inputs), *map(str, range(inputs, nodes))]
    if inputs == 2:  # like DARTS, such a cell concatenates its nodes; for others it is unknown
        labels.append("output")
        for node in range(inputs, nodes):
            _arc(group, unit * node, unit * nodes, -_BELOW * _RISE * (nodes - node), "#b3b3b3")
    for target, name, source in edges:
        middle, height = unit * (source + target) / 2, _RISE * (target - source)
        _text(group, middle, -height, name, size=11, **_HALO, fill=colours[name])
    for x, label in enumerate(labels):
        wide = 7.5 * len(label.translate({ord(c): None for c in "_{}"})) + 16
        box = dict(x=f"{unit * x - wide / 2:g}", y="-12", width=f"{wide:g}", height="24", rx="6")
        ElementTree.SubElement(group, "rect", box, fill="white", stroke="#333333")
        _text(group, unit * x, 0, label, size=13)


def _input_labels(inputs: int) -> list[str]:
    """Returns the number and the name of each input of a cell."""
    names = _INPUT_NAMES.get(inputs, ("input",) * inputs)
    return [f"{number}: {name}" for number, name in enumerate(names)]


def _arc(group: ElementTree.Element, start: int, end: int, height: float, colour: str) -> None:
    """Draws an arc from one place on the axis to another, below it if the height is negative."""
    # The top of a cubic curve with control points at 4/3 of the height is at the height.
    path = f"M{start} 0C{start} {-height * 4 / 3:g} {end} {-height * 4 / 3:g} {end} 0"
    ElementTree.SubElement(group, "path", {"d": path, "stroke": colour, "fill": "none"})


def _text(
    parent: ElementTree.Element, x: float, y: float, text: str, size: int, **style: str
) -> None:
    """Writes a text with its centre at (x, y); `a_{b}` has an index b."""
    place = {"x": f"{x:g}", "y": f"{y + 0.36 * size:g}", "text-anchor": "middle"}
    element = ElementTree.SubElement(parent, "text", {**place, "font-size": str(size), **style})
    element.text, _, index = text.partition("_{")
    if index:
        below = ElementTree.SubElement(element, "tspan", {"dy": "4", "font-size": "9"})
        below.text = index.removesuffix("}")
