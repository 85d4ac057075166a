"""DARTS (arXiv 1806.09055): softmax(alpha) itself, nothing random."""

import jax

from drnas_jax.config import ArchConfig
from drnas_jax.distributions import base


def create(config: ArchConfig) -> base.MixingDistribution:
    """Every sample is the mean (DARTS equation 2)."""
    return base.softmax_family(config, _sample)


def _sample(alpha: jax.Array, key: jax.Array, progress: jax.Array | float) -> jax.Array:
    del key, progress
    return base.softmax(alpha)
