"""DrNAS (arXiv 2006.10355): one Dirichlet on each edge, learned by pathwise gradients."""

import dataclasses
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaln, polygamma

from drnas_jax.config import choices, field
from drnas_jax.distributions.base import Distribution, Role, masked, normalised, softmax
from drnas_jax.errors import UserError
from drnas_jax.spaces.base import Cell

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
    sampler: str = field(
        "tfp",
        "Library that draws the gamma variates: 'tfp' (TensorFlow Probability) or 'jax'; the "
        "distribution is the same, the numbers are not.",
        choices("tfp", "jax"),
    )


class Dirichlet(Distribution):
    """The Dirichlet distribution Dir(beta) on each edge, with beta = elu(alpha) + 1."""

    def __init__(self, options: Options | None = None):
        self._options = options or Options()

    def sample(
        self, alpha: Any, cell: Cell, key: jax.Array, progress: jax.Array, role: Role
    ) -> jax.Array:
        """Draws a Dirichlet sample on each edge."""
        return sample_dirichlet(concentration(alpha), cell, key, self._options.sampler)

    def mean(self, alpha: Any, cell: Cell) -> jax.Array:
        """Returns the mean of each Dirichlet: beta, divided by the sum of its row."""
        return normalised(concentration(alpha), cell)

    def scores(self, alpha: Any, cell: Cell) -> jax.Array:
        """Returns the concentration beta."""
        return masked(concentration(alpha), cell)

    def ranking(self, alpha: Any, cell: Cell) -> jax.Array:
        """Returns the mean, or softmax(alpha) if `edge_ranking` is 'softmax'."""
        by_softmax = self._options.edge_ranking == "softmax"
        return softmax(alpha, cell) if by_softmax else self.mean(alpha, cell)

    def draw(self, scores: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Draws a sample [o] of one edge's Dirichlet."""
        return generator.dirichlet(scores)

    def kl_from_flat(self, alpha: Any, cell: Cell) -> jax.Array:
        """Returns KL(Dir(beta) || Dir(1)), a scalar: the closed form, summed over the edges."""
        beta = concentration(alpha)
        present = jnp.ones(cell.shape) if cell.mask is None else jnp.asarray(cell.mask, jnp.float32)
        return jnp.sum(_kl_from_flat(jnp.where(present > 0, beta, 1.0), present))


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


@jax.custom_jvp
def _kl_from_flat(beta: jax.Array, present: jax.Array) -> jax.Array:
    """Returns KL(Dir(beta) || Dir(1)) of each row, float32 [e].

    Args:
      beta: Concentrations [e, o], 1 beyond the end of a row.
      present: Float32 [e, o]: 1, or 0 beyond the end of a row.
    """
    total, length = jnp.sum(beta * present, axis=-1), jnp.sum(present, axis=-1)
    # In float32 gammaln(1) is not 0; without it the divergence of the flat distribution is.
    terms = gammaln(beta) - gammaln(jnp.ones_like(beta))
    normaliser = gammaln(total) - gammaln(length) - jnp.sum(terms, axis=-1)
    return normaliser + jnp.sum((beta - 1) * (digamma(beta) - digamma(total)[:, None]), axis=-1)


@_kl_from_flat.defjvp
def _kl_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Leaves out the digammas in the derivative of the terms, since they cancel.

    In float32 they would leave a rounding error as large as the derivative itself near beta = 1,
    where a search starts.
    """
    beta, present = primals
    excess = beta - 1
    trigamma_of_total = polygamma(1, jnp.sum(beta * present, axis=-1, keepdims=True))
    slope = excess * polygamma(1, beta) - jnp.sum(excess, -1, keepdims=True) * trigamma_of_total
    return _kl_from_flat(beta, present), jnp.sum(slope * tangents[0], axis=-1)


def sample_dirichlet(
    concentration: jax.Array, cell: Cell, key: jax.Array, sampler: str = "tfp"
) -> jax.Array:
    """Draws a Dirichlet sample whose pathwise gradient is finite at small concentrations too.

    Gamma(c) is drawn as Gamma(c + 1) * U^(1 / c) (Marsaglia and Tsang 2000) and normalised in
    logarithms, where nothing underflows. The gradient of Gamma(c + 1) is implicit (arXiv
    1805.08498), in both libraries.

    Args:
      concentration: Positive concentrations [e, o]; computed in float32 whatever their dtype.
      cell: Cell, whose edges may have unequal numbers of operations.
      key: Random key.
      sampler: Library that draws Gamma(c + 1), `tfp` or `jax`, as in `Options`.

    Returns:
      Float32 [e, o]; each row sums to 1.

    Raises:
      UserError: The sampler is `tfp`, and TensorFlow Probability fails to import.
    """
    concentration = concentration.astype(jnp.float32)
    if cell.mask is not None:  # a 0 there would have an infinite slope, and 0 * inf is nan
        concentration = jnp.where(cell.mask, concentration, 1.0)
    gamma_key, uniform_key = jax.random.split(key)
    log_gamma = _LOG_GAMMA[sampler](gamma_key, concentration + 1)
    uniform = jax.random.uniform(
        uniform_key, concentration.shape, jnp.float32, minval=jnp.finfo(jnp.float32).tiny
    )
    return softmax(log_gamma + jnp.log(uniform) / concentration, cell)


def _log_gamma_tfp(key: jax.Array, shape: jax.Array) -> jax.Array:
    gamma = _tfp_distributions().Gamma(shape, rate=jnp.float32(1))
    return jnp.log(gamma.sample(seed=key))


def _log_gamma_jax(key: jax.Array, shape: jax.Array) -> jax.Array:
    return jax.random.loggamma(key, shape, dtype=jnp.float32)


# By sampler: draws the logarithms of Gamma variates, differentiable in their shape parameters.
_LOG_GAMMA: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "tfp": _log_gamma_tfp,
    "jax": _log_gamma_jax,
}


@functools.cache
def _tfp_distributions() -> ModuleType:
    """Imports TensorFlow Probability's distributions, at their first use.

    Raises:
      UserError: They fail to import.
    """
    try:
        # A module of tfp may make arrays, which must not become part of the program being traced.
        with jax.ensure_compile_time_eval():
            # Not `from ...substrates import jax`: that is lazy, and would fail later.
            from tensorflow_probability.substrates.jax import distributions
    except Exception as error:  # a version that does not fit raises anything
        raise UserError(
            "the Dirichlet's option sampler is 'tfp', and TensorFlow Probability fails to import "
            f"({' '.join(str(error).split())}): set --config.arch.options.sampler=jax, or "
            "uninstall tensorflow-probability and then install tfp-nightly>=0.26.0.dev20260929"
        ) from error
    return distributions
