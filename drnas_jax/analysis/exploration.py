"""How widely a search looks around, epoch by epoch: cells drawn from its mixing distribution.

The DrNAS paper shows that the range of their true accuracies is wide at first, and narrows around
the accuracy of the distribution's mean.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from drnas_jax.cells import draw
from drnas_jax.genotype import Genotype
from drnas_jax.spaces import Space, Structure


class Explored(NamedTuple):
    """What the distribution held after an epoch; accuracies in percent.

    Attributes:
      stage, epoch: from 1.
      mean: of the cell at the distribution's mean, which the search would have ended with.
      low, high: the least and the largest of the cells drawn.
      quartiles: of these, the first, second and third.
      cells: how many of these differ.
    """

    stage: int
    epoch: int
    mean: float
    low: float
    high: float
    quartiles: tuple[float, float, float]
    cells: int


def explore(
    history: Iterable[Mapping[str, Any]],
    space: Space,
    draw_edge: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    accuracy: Callable[[Genotype], float],
    samples: int = 100,
    seed: int = 0,
) -> list[Explored]:
    """Draws cells after every epoch and judges them.

    Args:
      history: the lines of search/history.jsonl.
      space: of the search.
      draw_edge: of its mixing distribution, see MixingDistribution.draw.
      accuracy: of a cell, in percent.
      samples: cells to draw.
      seed: of the draws.
    """
    found = []
    for line in history:
        rng = np.random.default_rng([seed, line["epoch"]])
        rows_of = {kind: strength(edges) for kind, edges in line["concentration"].items()}
        structure = _structure(space, rows_of)
        packed = {kind: [row[~np.isnan(row)] for row in rows] for kind, rows in rows_of.items()}
        mean = space.derive(
            {kind: np.stack([row / row.sum() for row in rows]) for kind, rows in packed.items()},
            structure,
        )
        cells = [draw(space, structure, packed, draw_edge, rng) for _ in range(samples)]
        values = np.array([accuracy(cell) for cell in cells])
        first, second, third = np.percentile(values, [25, 50, 75])
        found.append(
            Explored(
                stage=line["stage"],
                epoch=line["epoch"],
                mean=accuracy(mean),
                low=float(values.min()),
                high=float(values.max()),
                quartiles=(float(first), float(second), float(third)),
                cells=len(set(cells)),
            )
        )
    return found


def strength(edges: Sequence[Sequence[float | None]]) -> np.ndarray:
    """The concentrations of a history's line [e, o], nan where an operation is pruned."""
    return np.array([[np.nan if v is None else v for v in row] for row in edges], np.float64)


def _structure(space: Space, strength: Mapping[str, np.ndarray]) -> Structure:
    """With the operations that are kept; its other fields do not matter here."""
    operations = tuple(
        (
            kind,
            tuple(
                tuple(
                    name
                    for name, value in zip(space.PRIMITIVES, row, strict=True)
                    if not np.isnan(value)
                )
                for row in rows
            ),
        )
        for kind, rows in strength.items()
    )
    return Structure(1, 1, 1, 1, operations)
