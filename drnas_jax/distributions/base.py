"""The interface of mixing distributions, which turn architecture parameters into mixing weights.

Shapes: `e` edges, `o` operations on the edge that has most. All values are float32.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from drnas_jax.genotype import Genotype
from drnas_jax.spaces.base import Cell, Space, SupernetSpec

Array = jax.Array
Role = Literal["alpha", "weights"]


class Distribution:
    """A mixing distribution. A subclass defines `sample` and `mean`; the rest has defaults.

    A module that provides a distribution has a function `create([options]) -> Distribution`.

    All methods except `draw` are pure functions, safe under `jax.jit`, `jax.vmap` and `jax.grad`.
    They are called separately for each cell type. The architecture parameters `alpha` of a cell
    type are a pytree: leaves of shape [e, o] lose the columns of pruned operations, and other
    leaves do not change. Mixing weights are 0 beyond the end of an edge's list of primitives; the
    functions `masked`, `normalised` and `softmax` of this module ensure this.
    """

    def init(self, key: Array, cell: Cell) -> Any:
        """Returns the initial alpha of a search, by default 1e-3 * N(0, 1) of shape [e, o]."""
        return 1e-3 * jax.random.normal(key, cell.shape, jnp.float32)

    def sample(self, alpha: Any, cell: Cell, key: Array, progress: Array, role: Role) -> Array:
        """Draws mixing weights [e, o], non-negative and differentiable in alpha.

        Args:
          alpha: Architecture parameters of this cell type.
          cell: Cell with the remaining operations.
          key: Random key.
          progress: Fraction of the search that is done, a scalar in 0..1, as for temperatures.
          role: `alpha` in the pass that updates the architecture parameters, `weights` in the pass
            that updates the weights.
        """
        raise NotImplementedError

    def mean(self, alpha: Any, cell: Cell) -> Array:
        """Returns the mixing weights [e, o] for validation and, by default, for deriving cells.

        The rows need not sum to 1: if a node chooses among its edges, the edges with the largest
        entries win.
        """
        raise NotImplementedError

    def scores(self, alpha: Any, cell: Cell) -> Array:
        """Returns positive scores [e, o]; pruning keeps the largest ones on each edge.

        The history records the scores, and `draw` reads them. The default is the mean.
        """
        return self.mean(alpha, cell)

    def ranking(self, alpha: Any, cell: Cell) -> Array:
        """Returns the values [e, o] that rank operations and edges when a cell is derived.

        The default is the mean.
        """
        return self.mean(alpha, cell)

    def draw(self, scores: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Draws random strengths [o] of one edge's operations, on the host, for a random cell.

        The edge takes the operation of largest strength, and a node compares its edges by their
        largest strengths.

        Args:
          scores: Positive scores [o] of the edge's operations.
          generator: Random generator.
        """
        return draw_by_share(scores, generator)


def draw_by_share(scores: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draws one operation with a probability proportional to its score.

    This lets a distribution without randomness, such as a softmax, be sampled too.

    Args:
      scores: Positive scores [o].
      generator: Random generator.

    Returns:
      Strengths [o]: for the drawn operation its share of the scores, and 0 for the others.
    """
    share = scores / scores.sum()
    noisy = np.log(share) + generator.gumbel(size=share.shape)
    drawn = int(np.argmax(noisy))  # Gumbel-max: drawn with probability `share`
    strengths = np.zeros_like(share)
    strengths[drawn] = share[drawn] * np.exp(1e-9 * noisy[drawn])  # breaks ties at random
    return strengths


def draw_genotype(
    space: Space,
    spec: SupernetSpec,
    scores: Mapping[str, Sequence[np.ndarray] | np.ndarray],
    draw: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    generator: np.random.Generator,
) -> Genotype:
    """Draws a genotype from a mixing distribution.

    Args:
      space: The search space.
      spec: Spec of the supernet, with the remaining operations of each edge.
      scores: Positive scores of the operations of each edge, by cell type [e, o].
      draw: Function that draws the strengths of one edge, such as `Distribution.draw`.
      generator: Random generator.
    """
    return space.derive(draw_strengths(spec, scores, draw, generator), spec)


def draw_strengths(
    spec: SupernetSpec,
    scores: Mapping[str, Sequence[np.ndarray] | np.ndarray],
    draw: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    generator: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Draws the strengths of all operations by cell type [e, o], see `draw_genotype`."""
    strengths = {}
    for cell_type, cell in spec.cells:
        strengths[cell_type] = np.zeros(cell.shape)
        for row, edge in enumerate(cell.edges):
            length = len(edge.primitives)
            edge_scores = np.asarray(scores[cell_type][row], np.float64)[:length]
            strengths[cell_type][row, :length] = draw(edge_scores, generator)
    return strengths


def masked(weights: Array, cell: Cell) -> Array:
    """Sets weights [e, o] to 0 beyond the end of each edge's list of primitives."""
    return weights if cell.mask is None else jnp.where(cell.mask, weights, 0.0)


def normalised(weights: Array, cell: Cell) -> Array:
    """Divides positive weights [e, o] by the sum of their row."""
    weights = masked(weights, cell)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def softmax(logits: Array, cell: Cell) -> Array:
    """Returns the softmax over the operations of each edge, [e, o], in float32."""
    logits = logits.astype(jnp.float32)
    if cell.mask is not None:
        logits = jnp.where(cell.mask, logits, -jnp.inf)
    return jax.nn.softmax(logits, axis=-1)
