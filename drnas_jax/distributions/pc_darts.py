"""PC-DARTS (arXiv 1907.05737): the softmax of DARTS, times a learned weight of each edge.

Partial channels, the other half of the method, are `search.partial_channels`, and work with every
distribution.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from drnas_jax.distributions.base import Distribution, Role, softmax
from drnas_jax.spaces.base import Cell


class WeightedEdges(Distribution):
    """The distribution of PC-DARTS ("edge normalisation", section 3.3). Nothing is random.

    Alpha is a dict: `operations` [e, o] as in DARTS, and `edges` [e], one number for each edge.
    """

    def init(self, key: jax.Array, cell: Cell) -> dict[str, jax.Array]:
        """Returns 1e-3 * N(0, 1) for all numbers."""
        operations_key, edges_key = jax.random.split(key)
        edges = 1e-3 * jax.random.normal(edges_key, cell.shape[:1], jnp.float32)
        return {"operations": super().init(operations_key, cell), "edges": edges}

    def sample(
        self, alpha: Any, cell: Cell, key: jax.Array, progress: jax.Array, role: Role
    ) -> jax.Array:
        """Returns the mean, whatever the key, the progress and the role."""
        return self.mean(alpha, cell)

    def mean(self, alpha: Any, cell: Cell) -> jax.Array:
        """Returns the softmax of each edge's operations, times the edge's weight.

        The weights of the edges that enter a node sum to 1.
        """
        return softmax(alpha["operations"], cell) * edge_weights(alpha["edges"], cell)[:, None]


def edge_weights(alpha: jax.Array, cell: Cell) -> jax.Array:
    """Returns the softmax over the edges that enter the same node, float32 [e].

    Args:
      alpha: One number for each edge, [e].
      cell: Cell with these edges.
    """
    targets = np.array([edge.target for edge in cell.edges])
    logits = jnp.where(targets[:, None] == targets, alpha.astype(jnp.float32), -jnp.inf)
    return jnp.diagonal(jax.nn.softmax(logits, axis=-1))


def create() -> Distribution:
    """Returns the distribution of PC-DARTS."""
    return WeightedEdges()
