"""Draws the picture of the method that README.md shows, as SVG.

    python examples/method_picture.py docs/method.svg

The points in its triangles are samples of Dirichlet distributions with the concentrations that are
written below them; the values of alpha are examples. The same numpy draws the same file.
"""

import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

WIDTH, HEIGHT = 800, 670
NAMES = ("conv 3x3", "skip", "max pool")
COLOURS = ("#1f77b4", "#2a8a2a", "#c45e00")
INK, GREY, PALE, PANEL = "#222222", "#555555", "#8a8a8a", "#f6f7f9"
PHASES = (
    ("at the start", (0.0, 0.0, 0.0)),
    ("during the search", (1.5, 0.5, -0.5)),
    ("at the end", (7.0, 1.0, -1.5)),
)
SAMPLES = 250  # points in a triangle
SIDE = 126  # side of a triangle, in pixels
# Edges of the cell that is drawn for the stages: source, target, and the operations that stage 1,
# stage 2 and the genotype have there, as indices of NAMES.
EDGES = (
    (0, 1, (0, 1, 2), (0, 2), (0,)),
    (1, 2, (0, 1, 2), (0, 1), (0,)),
    (0, 2, (0, 1, 2), (1, 2), (1,)),
)


def draw() -> str:
    """Returns the content of the SVG file."""
    svg = Element("svg", xmlns="http://www.w3.org/2000/svg")
    svg.attrib |= dict(width=str(WIDTH), height=str(HEIGHT), viewBox=f"0 0 {WIDTH} {HEIGHT}")
    svg.set("font-family", "Verdana, DejaVu Sans, sans-serif")  # two fonts of the same widths
    add(svg, "title").text = "DrNAS: an edge, its mixing weights, the two optimisers, the stages"
    add(svg, "rect", x=0.5, y=0.5, width=WIDTH - 1, height=HEIGHT - 1, rx=8, fill="white")
    svg[-1].set("stroke", "#d5d8dc")
    # The generator's stream of numbers is fixed for good, unlike that of default_rng.
    generator = np.random.RandomState(0)
    betas = [concentration(alpha) for _, alpha in PHASES]
    samples = [generator.dirichlet(beta, SAMPLES) for beta in betas]
    shown = next(each for each in samples[1] if each.min() > 0.12)  # one with three visible lines
    draw_edge(svg, shown)
    draw_weights(svg, betas, samples, shown)
    draw_optimisers(svg)
    draw_stages(svg)
    ElementTree.indent(svg)
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def concentration(alpha: Sequence[float]) -> np.ndarray:
    """Returns elu(alpha) + 1, float64 [o]."""
    values = np.asarray(alpha)
    return np.where(values > 0, values + 1, np.exp(values))


def draw_edge(svg: Element, weights: np.ndarray) -> None:
    """Draws an edge, whose lines are as wide as the weights [o] of its operations."""
    panel(svg, 16, 16, 252, 288, "One edge of a cell")
    left, right, middle = 44, 240, 150
    for row, (name, colour, weight) in enumerate(zip(NAMES, COLOURS, weights, strict=True)):
        y = middle + 62 * (row - 1)
        style = dict(stroke=colour, fill="none", stroke_width=1.5 + 10 * weight)
        add(svg, "path", d=f"M{left} {middle}C{left + 24} {y} {left + 24} {y} 92 {y}", **style)
        add(svg, "path", d=f"M180 {y}C{right - 24} {y} {right - 24} {y} {right} {middle}", **style)
        box(svg, 88, y - 15, 96, 30, stroke=colour)
        write(svg, 136, y + 4.5, name, size=13, fill=colour)
        write(svg, 212, y + (-12, -8, 21)[row], f"{weight:.2f}", fill=colour)
    for x, name in ((left, "x"), (right, "y")):
        add(svg, "circle", cx=x, cy=middle, r=15, fill="white", stroke=INK, stroke_width=1.5)
        write(svg, x, middle + 5, name, size=15)
    write(svg, 142, 264, "y = \u03a3 m \u00b7 operation(x)", size=14)
    write(svg, 142, 287, "weights m: one sample per update", fill=GREY)


def draw_weights(
    svg: Element,
    betas: Sequence[np.ndarray],
    samples: Sequence[np.ndarray],
    shown: np.ndarray,
) -> None:
    """Draws the samples [SAMPLES, o] of each phase, and marks one sample in the second."""
    panel(
        svg,
        284,
        16,
        500,
        288,
        "Its mixing weights:  m \u223c Dirichlet(\u03b2),  \u03b2 = elu(\u03b1) + 1",
    )
    for i, ((caption, alpha), beta) in enumerate(zip(PHASES, betas, strict=True)):
        x = 374 + 160 * i
        write(svg, x, 68, caption, weight="bold")
        draw_triangle(svg, x, 92, samples[i])
        mark_mean(svg, *place(beta / beta.sum(), x, 92))
        write(
            svg,
            x,
            240,
            "\u03b1 = (" + ", ".join(f"{each:g}" for each in alpha).replace("-", "\u2212") + ")",
        )
        write(svg, x, 258, "\u03b2 = (" + ", ".join(f"{each:.2g}" for each in beta) + ")")
    mark_sample(svg, *place(shown, 534, 92))
    write(svg, 304, 288, "each point is one sample m", anchor="start", fill=GREY)
    mark_sample(svg, 506, 284)
    write(svg, 516, 288, "the one on the left", anchor="start", fill=GREY)
    mark_mean(svg, 668, 284)
    write(svg, 678, 288, "the mean", anchor="start", fill=GREY)


def draw_triangle(svg: Element, x: float, top: float, samples: np.ndarray) -> None:
    """Draws samples [n, o] as points, each in the colour of its strongest operation."""
    corners = [place(corner, x, top) for corner in np.eye(3)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners) + "Z"
    add(svg, "path", d=path, fill="white", stroke=PALE)
    for operation, colour in enumerate(COLOURS):
        points = [place(each, x, top) for each in samples if each.argmax() == operation]
        dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
        style = dict(stroke_width=3.2, stroke_linecap="round", opacity=0.55)
        add(svg, "path", d=dots, stroke=colour, **style)
    bottom = corners[1][1] + 15
    for name, colour, corner, y, anchor in zip(
        NAMES,
        COLOURS,
        (x, x - SIDE / 2 - 8, x + SIDE / 2 + 8),
        (top - 5, bottom, bottom),
        ("middle", "start", "end"),
        strict=True,
    ):
        write(svg, corner, y, name, fill=colour, anchor=anchor)


def place(weights: np.ndarray, x: float, top: float) -> tuple[float, float]:
    """Returns the position of weights [3] in the triangle that has its upper corner at (x, top)."""
    across = (weights[2] - weights[1]) * SIDE / 2
    return x + across, top + (1 - weights[0]) * SIDE * 3**0.5 / 2


def draw_optimisers(svg: Element) -> None:
    """Draws the two updates of a step."""
    panel(svg, 16, 316, 768, 110, "Two optimisers take turns, and each draws a new sample m")
    for x, first, second in (
        (
            32,
            "validation images \u2192 loss \u2192 \u03b1 (Adam)",
            "the gradient passes through the sample",
        ),
        (
            428,
            "training images \u2192 loss \u2192 weights w (SGD)",
            "the sample is a constant",
        ),
    ):
        box(svg, x, 354, 340, 56)
        write(svg, x + 170, 378, first, size=13)
        write(svg, x + 170, 397, second, fill=GREY)
    for start, end, y in ((382, 418, 374), (418, 382, 390)):
        arrow(svg, start, end, y)


def draw_stages(svg: Element) -> None:
    """Draws the cell and its channels in two stages, the genotype and the final network."""
    panel(svg, 16, 438, 768, 216, "The search prunes operations and widens the channels")
    cards = (
        ("stage 1", 2, "all operations", "1/4 of the channels"),
        ("stage 2", 4, "best operations", "1/2 of the channels"),
        ("genotype", 0, "largest mean weight", "on each edge"),
        ("retraining", 8, "a network of such", "cells, from scratch"),
    )
    changes = (("prune,", "widen"), ("derive", ""), ("build", ""))
    for i, (title, channels, first, second) in enumerate(cards):
        x = 32 + 196 * i
        box(svg, x, 476, 148, 164)
        write(svg, x + 74, 497, title, size=13, weight="bold")
        if title == "retraining":
            draw_network(svg, x, 550)
        else:
            draw_cell(svg, x + 20, 565, stage=i)
        if 0 < channels < 8:
            draw_channels(svg, x + 30, 590, channels)
        write(svg, x + 74, 618, first, fill=GREY)
        write(svg, x + 74, 633, second, fill=GREY)
    for i, (above, below) in enumerate(changes):
        x = 204 + 196 * i
        arrow(svg, x - 18, x + 18, 560)
        write(svg, x, 552, above)
        write(svg, x, 578, below)


def draw_cell(svg: Element, x: float, y: float, stage: int, scale: float = 1.0) -> None:
    """Draws three nodes from (x, y) to the right, and a line for each operation that is left."""
    for source, target, *stages in EDGES:
        start, end, span = x + 54 * scale * source, x + 54 * scale * target, target - source
        operations = stages[stage]
        for row, operation in enumerate(operations):
            # The top of a quadratic curve is at half the height of its control point.
            height = (90 if span == 2 else 0) - 22 * (row - (len(operations) - 1) / 2)
            path = f"M{start:g} {y:g}Q{(start + end) / 2:g} {y - height * scale:g} {end:g} {y:g}"
            style = dict(stroke=COLOURS[operation], stroke_width=1 + 1.6 * scale, fill="none")
            add(svg, "path", d=path, **style)
    for node in range(3):
        style = dict(fill="white", stroke=INK, stroke_width=1.5 * scale**0.5)
        add(svg, "circle", cx=x + 54 * scale * node, cy=y, r=7 * scale, **style)


def draw_channels(svg: Element, x: float, y: float, used: int) -> None:
    """Draws eight channels, of which the first pass through the operations."""
    for channel in range(8):
        fill = INK if channel < used else "white"
        add(svg, "rect", x=x + 11 * channel, y=y, width=9, height=9, fill=fill, stroke=INK)


def draw_network(svg: Element, x: float, y: float) -> None:
    """Draws a network of three cells."""
    for cell in range(3):
        left = x + 9 + 45 * cell
        box(svg, left, y - 22, 40, 44, stroke=PALE)
        draw_cell(svg, left + 5, y + 10, stage=2, scale=0.28)
        if cell:
            add(svg, "path", d=f"M{left - 5:g} {y}h5", stroke=INK, stroke_width=1.5)


def panel(svg: Element, x: float, y: float, width: float, height: float, title: str) -> None:
    """Draws the background of a part of the picture and its title."""
    add(svg, "rect", x=x, y=y, width=width, height=height, rx=6, fill=PANEL)
    write(svg, x + 16, y + 25, title, size=14, anchor="start", weight="bold")


def box(svg: Element, x: float, y: float, width: float, height: float, stroke: str = PALE) -> None:
    """Draws a white box with round corners."""
    style = dict(rx=5, fill="white", stroke=stroke, stroke_width=1.2)
    add(svg, "rect", x=x, y=y, width=width, height=height, **style)


def arrow(svg: Element, start: float, end: float, y: float) -> None:
    """Draws a horizontal arrow."""
    back = 6 if end < start else -6
    path = f"M{start} {y}H{end}M{end + back} {y - 4}L{end} {y}L{end + back} {y + 4}"
    add(svg, "path", d=path, stroke=INK, stroke_width=1.5, fill="none")


def mark_mean(svg: Element, x: float, y: float) -> None:
    """Marks the mean of a distribution."""
    add(svg, "circle", cx=x, cy=y, r=5, fill="white", stroke=INK, stroke_width=2)


def mark_sample(svg: Element, x: float, y: float) -> None:
    """Marks a sample."""
    add(svg, "circle", cx=x, cy=y, r=4.5, fill=INK, stroke="white", stroke_width=1.5)


def write(
    svg: Element,
    x: float,
    y: float,
    content: str,
    size: int = 12,
    fill: str = INK,
    anchor: str = "middle",
    weight: str = "normal",
) -> None:
    """Writes a line of text with its baseline at y."""
    if content:
        style = dict(font_size=size, fill=fill, text_anchor=anchor, font_weight=weight)
        add(svg, "text", x=x, y=y, **style).text = content


def add(parent: Element, tag: str, **attributes: float | str) -> Element:
    """Adds an element; an underscore in the name of an attribute becomes a hyphen."""
    values = {
        name.replace("_", "-"): value if isinstance(value, str) else f"{round(value, 1):g}"
        for name, value in attributes.items()
    }
    return ElementTree.SubElement(parent, tag, values)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(draw())
