"""The range of cells that a search considers, epoch by epoch.

After each epoch, cells are drawn from the mixing distribution and looked up in a table of true
accuracies. In the DrNAS paper this range is wide at first, and narrows around the accuracy of the
distribution's mean.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from drnas_jax.distributions.base import draw_genotype
from drnas_jax.genotype import Genotype
from drnas_jax.phases.search.stages import resized_spec
from drnas_jax.report.history import Epoch
from drnas_jax.spaces import Space, SupernetSpec

SAMPLES = 100


class Explored(NamedTuple):
    """True accuracies, in percent, of the cells that were drawn after one epoch.

    Attributes:
      stage: Number of the stage, from 1.
      epoch: Number of the epoch, from 1.
      mean: Accuracy of the cell that the distribution's mean gives.
      low: Smallest accuracy of the drawn cells.
      high: Largest accuracy of the drawn cells.
      quartiles: First, second and third quartile of the drawn cells.
      distinct: Number of different cells among the drawn ones.
    """

    stage: int
    epoch: int
    mean: float
    low: float
    high: float
    quartiles: tuple[float, float, float]
    distinct: int


def explore(
    history: Iterable[Epoch],
    space: Space,
    draw_edge: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    accuracy: Callable[[Genotype], float | None],
    samples: int = SAMPLES,
    seed: int = 0,
) -> list[Explored]:
    """Draws cells after every epoch and looks up their true accuracies.

    Args:
      history: Epochs of a search; those without scores are skipped.
      space: Search space.
      draw_edge: `draw` of the mixing distribution.
      accuracy: Function from a cell to its true accuracy in percent, or None if it is unknown.
      samples: Number of cells to draw after each epoch.
      seed: Seed of the draws.

    Returns:
      One entry for each epoch all of whose cells have a known accuracy.
    """
    explored = []
    for line in history:
        if not line.scores:
            continue
        rng = np.random.default_rng([seed, line.epoch])
        mean, *drawn = _genotypes(line.scores, space, draw_edge, rng, samples)
        mean_accuracy = accuracy(mean)
        known = [value for cell in drawn if (value := accuracy(cell)) is not None]
        if mean_accuracy is None or len(known) < samples:
            continue
        first, second, third = np.percentile(known, [25, 50, 75])
        explored.append(
            Explored(
                stage=line.stage,
                epoch=line.epoch,
                mean=mean_accuracy,
                low=min(known),
                high=max(known),
                quartiles=(float(first), float(second), float(third)),
                distinct=len(set(drawn)),
            )
        )
    return explored


def _genotypes(
    scores: Mapping[str, np.ndarray],
    space: Space,
    draw_edge: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    rng: np.random.Generator,
    samples: int,
) -> list[Genotype]:
    """Returns the genotype of the mean, and after it those that are drawn."""
    columns = {name: [np.flatnonzero(~np.isnan(row)) for row in s] for name, s in scores.items()}
    spec = SupernetSpec(tuple(space.cells.items()), 1, 1, 1, (1, 1, 1))
    spec = resized_spec(spec, columns, partial_channels=1)
    kept = {name: [row[~np.isnan(row)] for row in rows] for name, rows in scores.items()}
    mean = draw_genotype(space, spec, kept, lambda row, _: row / row.sum(), rng)
    drawn = (draw_genotype(space, spec, kept, draw_edge, rng) for _ in range(samples))
    return [mean, *drawn]
