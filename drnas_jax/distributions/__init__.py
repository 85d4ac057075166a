"""Mixing distributions, one module each; `base.Distribution` describes their interface."""

from typing import Any

from drnas_jax import components
from drnas_jax.distributions.base import Distribution

__all__ = ["Distribution", "create"]


def create(name: str, options: Any = None) -> Distribution:
    """Returns a mixing distribution: a bundled one by its name, or a user's by its module's path.

    Args:
      name: Value of `config.arch.name`.
      options: Value of `config.arch.options`; None for the defaults.

    Raises:
      UserError: There is no such distribution, or its options are invalid.
    """
    return components.create("distribution", name, options, field="arch.name")
