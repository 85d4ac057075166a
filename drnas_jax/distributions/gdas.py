"""GDAS (arXiv 1910.04465): one operation an edge, with the gradient of its relaxed weight."""

import functools

import jax
import jax.numpy as jnp

from drnas_jax.config import ArchConfig
from drnas_jax.distributions import base


def create(config: ArchConfig) -> base.MixingDistribution:
    """Hard one-hot samples; temperature as for Gumbel.

    Alpha's gradient comes from the drawn operation alone: what the others compute counts for
    nothing, forward or backward (so that the original need not run them).
    """
    return base.softmax_family(config, functools.partial(_sample, config))


def _sample(
    config: ArchConfig, alpha: jax.Array, key: jax.Array, progress: jax.Array | float
) -> jax.Array:
    soft = base.gumbel_softmax(config, alpha, key, progress)
    hard = jax.nn.one_hot(jnp.argmax(soft, axis=-1), soft.shape[-1], dtype=soft.dtype)
    # The inner bracket is an exact 0: the ones stay ones, and the others have no gradient.
    return hard * (1 + (soft - jax.lax.stop_gradient(soft)))
