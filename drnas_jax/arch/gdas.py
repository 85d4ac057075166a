"""GDAS (arXiv 1910.04465): one operation an edge, with the gradient of the relaxed sample."""

import functools

import jax
import jax.numpy as jnp

from drnas_jax.arch import base
from drnas_jax.config import ArchConfig


def create(config: ArchConfig) -> base.MixingDistribution:
    """Hard one-hot samples, straight-through; temperature as for Gumbel."""
    return base.softmax_family(config, functools.partial(_sample, config))


def _sample(
    config: ArchConfig, alpha: jax.Array, key: jax.Array, progress: jax.Array | float
) -> jax.Array:
    soft = base.gumbel_softmax(config, alpha, key, progress)
    hard = jax.nn.one_hot(jnp.argmax(soft, axis=-1), soft.shape[-1], dtype=soft.dtype)
    # The bracket is an exact 0: adding it first to `soft` would round the ones.
    return hard + (soft - jax.lax.stop_gradient(soft))
