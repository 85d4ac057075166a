"""The L2 penalty: half the squared norm of alpha, whose gradient is alpha (coupled weight decay).

Alpha 0 is a concentration of 1 for the Dirichlet, so this is the paper's pull toward the flat
distribution (arXiv 2006.10355); for the softmax family it pulls toward equal weights.
"""

import jax
import jax.numpy as jnp

from drnas_jax.penalties.base import Penalty


def create() -> Penalty:
    """Returns the L2 penalty."""
    return _l2


def _l2(alpha, cells, distribution, progress):
    leaves = jax.tree.leaves(alpha)
    squares = (0.5 * jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves)
    return sum(squares, start=jnp.zeros(()))
