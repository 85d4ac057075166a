"""Single cells of a supernet: drawn from a mixing distribution, and as its mixing weights."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype
from drnas_jax.spaces import Space, Structure


def draw(
    space: Space,
    structure: Structure,
    concentration: Mapping[str, Sequence[np.ndarray] | np.ndarray],
    draw_edge: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    generator: np.random.Generator,
) -> Genotype:
    """A cell drawn from a mixing distribution.

    Args:
      space: of the supernet.
      structure: whose operations are meant.
      concentration: by cell type [e, o], positive.
      draw_edge: of the distribution, see MixingDistribution.draw.
      generator: what it is drawn with.
    """
    strengths = {
        kind: np.stack(
            [draw_edge(np.asarray(row, np.float64), generator) for row in concentration[kind]]
        )
        for kind, _ in structure.operations
    }
    return space.derive(strengths, structure)


def one_hot(space: Space, structure: Structure, genotype: Genotype) -> dict[str, np.ndarray]:
    """The mixing weights at which a supernet is this cell: by cell type, float32 [e, o] of 0 and 1.

    With partial channels (K > 1) the others still pass through all edges unchanged.

    Raises:
      UserError: the supernet has no such edge, or has it without this operation.
    """
    mix = {}
    for kind, kept in structure.operations:
        edges, weights = space.EDGES[kind], np.zeros((len(kept), len(kept[0])), np.float32)
        targets = [key for key, _ in itertools.groupby(edge.partition("<-")[0] for edge in edges)]
        for target, node in zip(targets, genotype.cell(kind), strict=True):
            for name, source in node:
                edge = f"{target}<-{source}"
                if edge not in edges or name not in kept[edges.index(edge)]:
                    raise UserError(f"the supernet has no operation {name!r} on the edge {edge}")
                row = edges.index(edge)
                weights[row, kept[row].index(name)] = 1
        mix[kind] = weights
    return mix
