"""DrNAS (arXiv 2006.10355): one Dirichlet on each edge, learned by pathwise gradients."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from drnas_jax.config import choices, field
from drnas_jax.distributions.base import Distribution, Role, masked, normalised, softmax
from drnas_jax.errors import UserError
from drnas_jax.spaces.base import Cell

try:
    # Not `from ...substrates import jax`: that is lazy, and would fail later, at its first use.
    from tensorflow_probability.substrates.jax import distributions as tfd
except (ImportError, AttributeError) as error:
    raise UserError(
        "the Dirichlet needs a TensorFlow Probability that works with this JAX: uninstall "
        "tensorflow-probability, then install tfp-nightly>=0.26.0.dev20260929 (in this order, "
        f"they share files); the import said: {error}"
    ) from error

# Below this alpha the concentration (2e-9) is practically 0.
_MIN_ALPHA = -20.0


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the Dirichlet."""

    edge_ranking: str = field(
        "mean",
        "Rank of edges if a node keeps only some: by the 'mean' weight of their best "
        "operation, or by its 'softmax' of alpha, as in the authors' code.",
        choices("mean", "softmax"),
    )


class Dirichlet(Distribution):
    """The Dirichlet distribution Dir(beta) on each edge, with beta = elu(alpha) + 1."""

    def __init__(self, options: Options | None = None):
        self._edge_ranking = (options or Options()).edge_ranking

    def sample(
        self, alpha: Any, cell: Cell, key: jax.Array, progress: jax.Array, role: Role
    ) -> jax.Array:
        """Draws a Dirichlet sample on each edge."""
        return sample_dirichlet(concentration(alpha), cell, key)

    def mean(self, alpha: Any, cell: Cell) -> jax.Array:
        """Returns the mean of each Dirichlet: beta, divided by the sum of its row."""
        return normalised(concentration(alpha), cell)

    def scores(self, alpha: Any, cell: Cell) -> jax.Array:
        """Returns the concentration beta."""
        return masked(concentration(alpha), cell)

    def ranking(self, alpha: Any, cell: Cell) -> jax.Array:
        """Returns the mean, or softmax(alpha) if `edge_ranking` is 'softmax'."""
        return softmax(alpha, cell) if self._edge_ranking == "softmax" else self.mean(alpha, cell)

    def draw(self, scores: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Draws a sample [o] of one edge's Dirichlet."""
        return generator.dirichlet(scores)

    def kl_from_flat(self, alpha: Any, cell: Cell) -> jax.Array:
        """Returns KL(Dir(beta) || Dir(1)), a scalar: the closed form, summed over the edges."""
        beta, lengths = concentration(alpha), {len(edge.primitives) for edge in cell.edges}
        total = jnp.zeros((), jnp.float32)
        for length in sorted(
            lengths - {1}
        ):  # the KL of a single operation is 0, but tfp refuses it
            rows = [i for i, edge in enumerate(cell.edges) if len(edge.primitives) == length]
            betas = beta if len(lengths) == 1 else beta[np.array(rows), :length]
            flat = tfd.Dirichlet(jnp.ones_like(betas))
            total += jnp.sum(tfd.kl_divergence(tfd.Dirichlet(betas), flat))
        return total


def create(options: Options) -> Distribution:
    """Returns the distribution of DrNAS."""
    return Dirichlet(options)


def concentration(alpha: jax.Array) -> jax.Array:
    """Returns the concentration elu(alpha) + 1 of alpha [e, o], float32 and positive.

    Below 0 it is computed as exp(alpha), because (exp(alpha) - 1) + 1 is rounded to 0 for alpha
    below -17.
    """
    alpha = alpha.astype(jnp.float32)
    below = jnp.where(alpha > 0, 0.0, alpha)  # keeps exp finite, and the slope at 0 is 1
    return jnp.where(alpha > 0, alpha + 1, jnp.exp(jnp.maximum(below, _MIN_ALPHA)))


def sample_dirichlet(concentration: jax.Array, cell: Cell, key: jax.Array) -> jax.Array:
    """Draws a Dirichlet sample whose pathwise gradient is finite at small concentrations too.

    Gamma(c) is drawn as Gamma(c + 1) * U^(1 / c) (Marsaglia and Tsang 2000) and normalised in
    logarithms, where nothing underflows. The gradient of Gamma(c + 1) is tfp's implicit one
    (arXiv 1805.08498).

    Args:
      concentration: Positive concentrations [e, o]; computed in float32 whatever their dtype.
      cell: Cell, whose edges may have unequal numbers of operations.
      key: Random key.

    Returns:
      Float32 [e, o]; each row sums to 1.
    """
    concentration = concentration.astype(jnp.float32)
    if cell.mask is not None:  # a 0 there would have an infinite slope, and 0 * inf is nan
        concentration = jnp.where(cell.mask, concentration, 1.0)
    gamma_key, uniform_key = jax.random.split(key)
    gamma = tfd.Gamma(concentration + 1, rate=jnp.float32(1)).sample(seed=gamma_key)
    uniform = jax.random.uniform(
        uniform_key, concentration.shape, jnp.float32, minval=jnp.finfo(jnp.float32).tiny
    )
    return softmax(jnp.log(gamma) + jnp.log(uniform) / concentration, cell)
