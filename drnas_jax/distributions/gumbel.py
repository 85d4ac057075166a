"""SNAS (arXiv 1812.09926): a relaxed one-hot sample at a falling temperature."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from drnas_jax.config import field, more_than
from drnas_jax.distributions.base import Distribution, Role, softmax
from drnas_jax.distributions.softmax import Softmax
from drnas_jax.spaces.base import Cell


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of Gumbel samples."""

    temperature: tuple[float, ...] = field(
        (10.0, 1.0),
        "Temperature of the first and of the last step; it falls linearly between them.",
        more_than(0),
    )

    def __post_init__(self) -> None:
        """Checks the number of temperatures."""
        if len(self.temperature) != 2:
            raise ValueError(f"temperature is {self.temperature}: expected two numbers")


class Gumbel(Softmax):
    """The Gumbel-softmax: relaxed one-hot samples of softmax(alpha) (arXiv 1611.01144, eq. 2)."""

    def __init__(self, options: Options):
        self.temperature = options.temperature

    def sample(
        self, alpha: Any, cell: Cell, key: jax.Array, progress: jax.Array, role: Role
    ) -> jax.Array:
        """Draws relaxed one-hot mixing weights at the current temperature."""
        first, last = self.temperature
        temperature = first + (last - first) * jnp.clip(progress, 0.0, 1.0)
        noise = jax.random.gumbel(key, alpha.shape, jnp.float32)
        return softmax((alpha.astype(jnp.float32) + noise) / temperature, cell)


def create(options: Options) -> Distribution:
    """Returns the distribution of SNAS."""
    return Gumbel(options)
