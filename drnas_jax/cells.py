"""Single cells of a supernet: drawn from a mixing distribution, and as its mixing weights."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype
from drnas_jax.spaces import Space, Structure


def draw(
    space: Space,
    structure: Structure,
    concentration: Mapping[str, Sequence[np.ndarray] | np.ndarray],
    distribution: str,
    rng: np.random.Generator,
) -> Genotype:
    """A cell drawn from a mixing distribution.

    Args:
      space: of the supernet.
      structure: whose operations are meant.
      concentration: by cell type [e, o], positive.
      distribution: its name. A cell of the Dirichlet is that of a sample. Of the others (a softmax
        is not random itself) each edge's operation is drawn by its mean weight, and edges compare
        by the mean weight of what was drawn, equal ones at random.
      rng: what it is drawn with.
    """

    def sample(row: np.ndarray) -> np.ndarray:
        if distribution == "dirichlet":
            return rng.dirichlet(row)
        mean = row / row.sum()
        scores = np.log(mean) + rng.gumbel(size=row.shape)
        drawn = int(np.argmax(scores))  # by the mean; the maximum itself tells nothing of it
        strength = np.zeros_like(mean)
        strength[drawn] = mean[drawn] * np.exp(1e-9 * scores[drawn])
        return strength

    rows = {
        kind: np.stack([sample(np.asarray(row, np.float64)) for row in concentration[kind]])
        for kind, _ in structure.operations
    }
    return space.derive(rows, structure)


def one_hot(space: Space, structure: Structure, genotype: Genotype) -> dict[str, np.ndarray]:
    """The mixing weights at which a supernet is this cell: by cell type, float32 [e, o] of 0 and 1.

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
