"""SNAS (arXiv 1812.09926): a relaxed one-hot sample at a falling temperature."""

import functools

from drnas_jax.config import ArchConfig
from drnas_jax.distributions import base


def create(config: ArchConfig) -> base.MixingDistribution:
    """Gumbel-softmax samples; `config.temperature` first to last, linear."""
    return base.softmax_family(config, functools.partial(base.gumbel_softmax, config))
