"""Draws docs/floors.svg: the packages of drnas_jax on their floors, and what imports what.

An import that follows from others is left out: `phases` imports `costs`, which imports `spaces`,
so there is no arrow from `phases` to `spaces`. Arrows to the same package share their way.

    python tests/draw_floors.py
"""

import itertools
from pathlib import Path
from statistics import mean
from xml.etree import ElementTree

from floors import FLOORS, PACKAGE, direct_imports, floor

FILE = Path(__file__).parents[1] / "docs" / "floors.svg"
PITCH, HEIGHT, LETTER, MARGIN, GAP = 62, 26, 7.9, 14, 20  # pixels
SWEEPS = 24


def is_box(node):
    """Returns whether a node, (floor, member), is the member's box; else an arrow passes there."""
    number, name = node
    return floor(name) == number


def label(name):
    """Returns the text in the box of a member: the name of its folder or file."""
    folder = PACKAGE / name
    return f"{name}/" if name and folder.is_dir() else f"{name or '__init__'}.py"


def width(node):
    """Returns the width of a node in pixels."""
    return round(len(label(node[1])) * LETTER) + 20 if is_box(node) else 0


def all_links():
    """Returns the pairs of nodes on neighbouring floors, the upper one first, that arrows join."""
    links = set()
    for name, others in direct_imports().items():
        for other in others:
            way = [(floor(name), name)]
            way += [(number, other) for number in range(floor(name) - 1, floor(other) - 1, -1)]
            links |= set(itertools.pairwise(way))
    return sorted(links)


def neighbours(links):
    """Returns the nodes to which each node is joined."""
    near = {(number, name): [] for number, names in enumerate(FLOORS) for name in names}
    for upper, lower in links:
        near.setdefault(upper, []).append(lower)
        near.setdefault(lower, []).append(upper)
    return near


def ordered(near):
    """Returns the nodes of each floor from left to right, each near those to which it is joined."""
    rows = [sorted(node for node in near if node[0] == number) for number in range(len(FLOORS))]
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 else rows[::-1]:
            place = {node: (i + 0.5) / len(row) for row in rows for i, node in enumerate(row)}
            row.sort(key=lambda node: mean([place[other] for other in near[node] or [node]]))
    return rows


def spread(row, wanted):
    """Returns places near the wanted ones at which the nodes of a floor do not overlap."""
    steps = [(width(a) + width(b)) / 2 + GAP for a, b in itertools.pairwise(row)]
    left, right = list(wanted), list(wanted)
    for i, step in enumerate(steps):
        left[i + 1] = max(left[i + 1], left[i] + step)
    for i, step in reversed(list(enumerate(steps))):
        right[i] = min(right[i], right[i + 1] - step)
    return [(a + b) / 2 for a, b in zip(left, right, strict=True)]


def centres(rows, near):
    """Returns the horizontal centre of each node in pixels."""
    x = dict.fromkeys(near, 0.0)
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 else rows[::-1]:
            wanted = [mean([x[other] for other in near[node] or [node]]) for node in row]
            x |= zip(row, spread(row, wanted), strict=True)
    first = min(x[node] - width(node) / 2 for node in x)
    return {node: round(x[node] - first) + MARGIN for node in x}


def draw():
    """Returns the picture as the text of an SVG file."""
    links = all_links()
    near = neighbours(links)
    x = centres(ordered(near), near)
    top = {node: MARGIN + (len(FLOORS) - 1 - node[0]) * PITCH for node in x}
    right = max(x[node] + width(node) // 2 for node in x) + MARGIN
    bottom = (len(FLOORS) - 1) * PITCH + HEIGHT + 2 * MARGIN
    svg = ElementTree.Element(
        "svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {right} {bottom}", role="img"
    )
    ElementTree.SubElement(svg, "title").text = "The packages of drnas_jax and their imports"
    ElementTree.SubElement(svg, "rect", width="100%", height="100%", rx="6", fill="#fff")
    marker = ElementTree.SubElement(
        svg,
        "marker",
        id="arrow",
        viewBox="0 0 8 8",
        refX="8",
        refY="4",
        orient="auto",
        markerWidth="8",
        markerHeight="8",
    )
    ElementTree.SubElement(marker, "path", d="M0 0L8 4L0 8z", fill="#7a869a")
    lines = ElementTree.SubElement(
        svg, "g", {"fill": "none", "stroke": "#7a869a", "stroke-linejoin": "round"}
    )
    for upper, lower in links:
        path = f"M{x[upper]} {top[upper] + HEIGHT}L{x[lower]} {top[lower]}"
        ends = {"marker-end": "url(#arrow)"} if is_box(lower) else {}
        ElementTree.SubElement(lines, "path", ends, d=path if ends else f"{path}v{HEIGHT}")
    boxes = ElementTree.SubElement(
        svg, "g", {"font-family": "monospace", "font-size": "13", "text-anchor": "middle"}
    )
    for node in filter(is_box, x):
        place = {"x": str(x[node] - width(node) // 2), "y": str(top[node])}
        size = {"width": str(width(node)), "height": str(HEIGHT), "rx": "4"}
        ElementTree.SubElement(boxes, "rect", place | size, fill="#e8eef9", stroke="#3b5b92")
        text = ElementTree.SubElement(boxes, "text", x=str(x[node]), y=str(top[node] + 17))
        text.text = label(node[1])
    ElementTree.indent(svg)
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


if __name__ == "__main__":
    FILE.write_text(draw())
