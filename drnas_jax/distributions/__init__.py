"""Mixing distributions: one file each, found by its name."""

import sys

from drnas_jax import components
from drnas_jax.config import ArchConfig
from drnas_jax.distributions.base import MixingDistribution

__all__ = ["MixingDistribution", "create", "names"]


def names() -> list[str]:
    """The mixing distributions there are."""
    return components.names(sys.modules[__name__])


def create(config: ArchConfig) -> MixingDistribution:
    """The mixing distribution `config.name`, with the config's regulariser and temperatures.

    Raises:
      UserError: no such distribution (the message lists those there are), or it does not have
        this regulariser.
    """
    module = components.find(sys.modules[__name__], "arch.name", config.name)
    return module.create(config)
