"""The interface of penalties: scalars that are added to the loss of the architecture parameters."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

from drnas_jax.distributions.base import Distribution
from drnas_jax.spaces.base import Cell


class Penalty(Protocol):
    """A pure function of the architecture parameters.

    A module that provides a penalty has a function `create([options]) -> Penalty`.
    """

    def __call__(
        self,
        alpha: Mapping[str, Any],
        cells: Mapping[str, Cell],
        distribution: Distribution,
        progress: jax.Array,
    ) -> jax.Array:
        """Returns the penalty, a scalar, which is multiplied by `config.arch.strength` afterwards.

        Its gradient is added to the gradient of the validation loss after that one is clipped.

        Args:
          alpha: Architecture parameters by cell type.
          cells: Cells with the remaining operations, by cell type.
          distribution: Mixing distribution that reads these parameters.
          progress: Fraction of the search that is done, a scalar in 0..1.

        Raises:
          UserError: The distribution lacks a method that the penalty needs.
        """
