"""Values that the history of a search records at the end of an epoch, and draws of genotypes."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from drnas_jax.distributions.base import draw_by_share, draw_strengths
from drnas_jax.genotype import Genotype
from drnas_jax.spaces import Cell, Space, SupernetSpec


def draw_genotypes(
    derive: Callable[[Mapping[str, np.ndarray], SupernetSpec], Genotype],
    spec: SupernetSpec,
    scores: Mapping[str, np.ndarray],
    draw: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    count: int,
    seed: Sequence[int],
) -> list[Genotype]:
    """Draws `count` genotypes and returns the distinct ones.

    Args:
      derive: Function that discretises strengths by cell type [e, o], such as `Space.derive`.
      spec: Spec of the supernet, with the remaining operations of each edge.
      scores: Positive scores by cell type [e, o].
      draw: Function that draws the strengths of one edge, see `Distribution.draw`.
      count: Number of draws.
      seed: Seed of the draws.
    """
    generator = np.random.default_rng(seed)
    drawn = (draw_strengths(spec, scores, draw, generator) for _ in range(count))
    return list(dict.fromkeys(derive(strengths, spec) for strengths in drawn))


def random_cells(
    space: Space, spec: SupernetSpec, count: int, seed: Sequence[int]
) -> list[Genotype]:
    """Draws `count` genotypes of the remaining operations uniformly; returns the distinct ones."""
    flat = {name: np.ones(cell.shape) for name, cell in spec.cells}
    return draw_genotypes(space.derive, spec, flat, draw_by_share, count, seed)


def entropy(mean: Mapping[str, np.ndarray]) -> float:
    """Returns the entropy of the mean mixing weights in nats, averaged over all edges."""
    entropies = []
    for rows in mean.values():
        wide = rows.astype(np.float64)
        entropies.append(np.sum(wide * np.log(np.maximum(wide, 1e-300)), axis=1))
    return float(-np.concatenate(entropies).mean())


def all_columns(space: Space, cell_type: str, cell: Cell, scores: np.ndarray) -> np.ndarray:
    """Returns scores [e, o] over all primitives, with nan (null in the file) for pruned ones."""
    whole = space.cells[cell_type]
    full = np.full(whole.shape, np.nan)
    for row, (before, now) in enumerate(zip(whole.edges, cell.edges, strict=True)):
        columns = [before.primitives.index(name) for name in now.primitives]
        full[row, columns] = scores[row][: len(columns)]
    return full
