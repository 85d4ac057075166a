"""SDARTS-RS (arXiv 2002.05283): DARTS whose weights are trained under random mixing weights."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from drnas_jax.config import at_least, field
from drnas_jax.distributions.base import Distribution, Role, masked
from drnas_jax.distributions.softmax import Softmax
from drnas_jax.spaces.base import Cell


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the random perturbation."""

    epsilon: tuple[float, ...] = field(
        (0.03, 0.3),
        "Largest change of a mixing weight in the first and in the last step; it rises linearly "
        "between them.",
        at_least(0),
    )

    def __post_init__(self) -> None:
        """Checks the number of values."""
        if len(self.epsilon) != 2:
            raise ValueError(f"epsilon is {self.epsilon}: expected two numbers")


class SmoothDarts(Softmax):
    """The softmax of alpha, and uniform noise on it in the pass that trains the weights.

    A supernet whose loss hardly changes under such noise loses little when a cell is derived.
    """

    def __init__(self, options: Options):
        self.epsilon = options.epsilon

    def sample(
        self, alpha: Any, cell: Cell, key: jax.Array, progress: jax.Array, role: Role
    ) -> jax.Array:
        """Returns the mean, with noise if the role is `weights`.

        The noise is uniform in [-epsilon, epsilon]. The sums are clipped to 0..1 and divided by
        their sum on each edge. An edge on which noise leaves nothing keeps its mean.
        """
        mean = self.mean(alpha, cell)
        if role == "alpha":
            return mean
        first, last = self.epsilon
        epsilon = first + (last - first) * jnp.clip(progress, 0.0, 1.0)
        noise = epsilon * jax.random.uniform(key, mean.shape, jnp.float32, minval=-1.0)
        noisy = masked(jnp.clip(mean + noise, 0.0, 1.0), cell)
        total = jnp.sum(noisy, axis=-1, keepdims=True)
        # Not 0 even if it is not used, since the gradient would be 0 * inf there.
        return jnp.where(total > 0, noisy / jnp.where(total > 0, total, 1.0), mean)


def create(options: Options) -> Distribution:
    """Returns the distribution of SDARTS-RS."""
    return SmoothDarts(options)
