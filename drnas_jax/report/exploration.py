"""How widely a search looks around, epoch by epoch: cells drawn from its mixing distribution.

The DrNAS paper shows that the range of their true accuracies is wide at first, and narrows around
the accuracy of the distribution's mean.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from drnas_jax.genotype import Genotype
from drnas_jax.phases.search.cells import draw_cell
from drnas_jax.spaces import Space
from drnas_jax.spaces.base import Operations


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
        rows_of = {
            name: concentration_array(edges) for name, edges in line["concentration"].items()
        }
        operations = _kept_operations(space, rows_of)
        packed = {name: [row[~np.isnan(row)] for row in rows] for name, rows in rows_of.items()}
        mean = space.derive(
            {name: np.stack([row / row.sum() for row in rows]) for name, rows in packed.items()},
            operations,
        )
        cells = [draw_cell(space, operations, packed, draw_edge, rng) for _ in range(samples)]
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


def concentration_array(edges: Sequence[Sequence[float | None]]) -> np.ndarray:
    """The concentrations of a history's line [e, o], nan where an operation is pruned."""
    return np.array([[np.nan if v is None else v for v in row] for row in edges], np.float64)


def _kept_operations(space: Space, rows_of: Mapping[str, np.ndarray]) -> dict[str, Operations]:
    """The primitives of each edge that have a concentration, by cell type."""
    return {
        cell_type: tuple(
            tuple(
                name
                for name, value in zip(space.PRIMITIVES, row, strict=True)
                if not np.isnan(value)
            )
            for row in rows
        )
        for cell_type, rows in rows_of.items()
    }
