"""A mixing distribution of one's own: a Dirichlet whose total concentration stays the same.

Alpha then says which operations are strong, and never how sure the search is. To use it, copy this
file to drnas_jax/distributions/ and give `--config.arch.name=fixed_total`.
"""

import jax
import jax.numpy as jnp

from drnas_jax.config import ArchConfig
from drnas_jax.distributions import base
from drnas_jax.distributions.dirichlet import draw, sample_dirichlet


def create(config: ArchConfig) -> base.MixingDistribution:
    """Concentration softmax(alpha) times the number of operations."""
    return base.MixingDistribution(
        init=base.init,
        sample=_sample,
        mean=_mean,
        concentration=_concentration,
        regulariser=base.regulariser(config),
        draw=draw,
    )


def _concentration(alpha: jax.Array) -> jax.Array:
    return base.softmax(alpha) * alpha.shape[-1] + 1e-4  # a sample needs positive ones


def _mean(alpha: jax.Array) -> jax.Array:
    strengths = _concentration(alpha)
    return strengths / jnp.sum(strengths, axis=-1, keepdims=True)


def _sample(alpha: jax.Array, key: jax.Array, progress: jax.Array | float) -> jax.Array:
    del progress  # no temperature
    return sample_dirichlet(_concentration(alpha), key)
