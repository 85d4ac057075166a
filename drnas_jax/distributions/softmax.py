"""DARTS (arXiv 1806.09055): the mixing weights are softmax(alpha), and nothing is random."""

from typing import Any

import jax
import jax.numpy as jnp

from drnas_jax.distributions.base import Distribution, Role, masked, softmax
from drnas_jax.spaces.base import Cell


class Softmax(Distribution):
    """The softmax of alpha, without randomness: every sample is the mean (DARTS, equation 2)."""

    def sample(
        self, alpha: Any, cell: Cell, key: jax.Array, progress: jax.Array, role: Role
    ) -> jax.Array:
        """Returns the mean, whatever the key, the progress and the role."""
        return self.mean(alpha, cell)

    def mean(self, alpha: Any, cell: Cell) -> jax.Array:
        """Returns softmax(alpha) on each edge."""
        return softmax(alpha, cell)

    def scores(self, alpha: Any, cell: Cell) -> jax.Array:
        """Returns exp(alpha), the softmax before it is normalised."""
        return masked(jnp.exp(alpha.astype(jnp.float32)), cell)


def create() -> Distribution:
    """Returns the distribution of DARTS."""
    return Softmax()
