"""GDAS (arXiv 1910.04465): one operation on each edge, with the gradient of its relaxed weight."""

from typing import Any

import jax
import jax.numpy as jnp

from drnas_jax.distributions.base import Distribution, Role
from drnas_jax.distributions.gumbel import Gumbel, Options
from drnas_jax.spaces.base import Cell

__all__ = ["Options", "create"]


class Gdas(Gumbel):
    """The distribution of GDAS: one-hot samples, at a temperature that falls as in SNAS.

    The gradient of alpha comes only from the operation that was drawn. The other operations have no
    effect on the forward or backward pass, so the original code does not run them.
    """

    def sample(
        self, alpha: Any, cell: Cell, key: jax.Array, progress: jax.Array, role: Role
    ) -> jax.Array:
        """Draws one-hot mixing weights, with the gradient of the relaxed ones."""
        soft = super().sample(alpha, cell, key, progress, role)
        hard = jax.nn.one_hot(jnp.argmax(soft, axis=-1), soft.shape[-1], dtype=soft.dtype)
        # The inner bracket is exactly 0: the values stay 0 or 1, and only the 1 has a gradient.
        return hard * (1 + (soft - jax.lax.stop_gradient(soft)))


def create(options: Options) -> Distribution:
    """Returns the distribution of GDAS."""
    return Gdas(options)
