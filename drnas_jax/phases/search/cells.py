"""Single cells of a supernet: drawn from a mixing distribution, and as its mixing weights."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype
from drnas_jax.spaces import Space
from drnas_jax.spaces.base import Operations


def draw_cell(
    space: Space,
    operations: Mapping[str, Operations],
    concentration: Mapping[str, Sequence[np.ndarray] | np.ndarray],
    draw_edge: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    generator: np.random.Generator,
) -> Genotype:
    """A cell drawn from a mixing distribution.

    Args:
      space: of the supernet.
      operations: the primitives kept on each edge, by cell type.
      concentration: by cell type [e, o], positive.
      draw_edge: of the distribution, see MixingDistribution.draw.
      generator: what it is drawn with.
    """
    strengths = {
        cell_type: np.stack(
            [draw_edge(np.asarray(row, np.float64), generator) for row in concentration[cell_type]]
        )
        for cell_type in operations
    }
    return space.derive(strengths, operations)


def one_hot(
    space: Space, operations: Mapping[str, Operations], genotype: Genotype
) -> dict[str, np.ndarray]:
    """The mixing weights at which a supernet is this cell: by cell type, float32 [e, o] of 0 and 1.

    With partial channels (K > 1) the others still pass through all edges unchanged.

    Raises:
      UserError: the supernet has no such edge, or has it without this operation.
    """
    mix = {}
    for cell_type, kept in operations.items():
        edges, weights = space.EDGES[cell_type], np.zeros((len(kept), len(kept[0])), np.float32)
        targets = [key for key, _ in itertools.groupby(edge.partition("<-")[0] for edge in edges)]
        for target, node in zip(targets, genotype.cell(cell_type), strict=True):
            for name, source in node:
                edge = f"{target}<-{source}"
                if edge not in edges or name not in kept[edges.index(edge)]:
                    raise UserError(f"the supernet has no operation {name!r} on the edge {edge}")
                row = edges.index(edge)
                weights[row, kept[row].index(name)] = 1
        mix[cell_type] = weights
    return mix
