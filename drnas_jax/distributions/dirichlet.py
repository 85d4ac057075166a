"""DrNAS (arXiv 2006.10355): one Dirichlet an edge, pathwise gradients."""

import jax
import jax.numpy as jnp
import numpy as np

from drnas_jax.config import ArchConfig
from drnas_jax.distributions import base
from drnas_jax.errors import UserError

try:
    # Not `from ...substrates import jax`: that is lazy, and would fail later, at its first use.
    from tensorflow_probability.substrates.jax import distributions as tfd
except (ImportError, AttributeError) as error:
    raise UserError(
        "the Dirichlet needs a TensorFlow Probability that works with this JAX: uninstall "
        "tensorflow-probability, then install tfp-nightly>=0.26.0.dev20260929 (in this order, "
        f"they share files); the import said: {error}"
    ) from error

# Below, a concentration (2e-9) is as good as 0.
_MIN_ALPHA = -20.0


def create(config: ArchConfig) -> base.MixingDistribution:
    """Concentration elu(alpha) + 1; 'kl' is the divergence from the flat Dir(1)."""
    return base.MixingDistribution(
        init=base.init,
        sample=_sample,
        mean=mean,
        concentration=concentration,
        regulariser=base.regulariser(config, kl=kl_from_flat),
        draw=draw,
    )


def concentration(alpha: jax.Array) -> jax.Array:
    """elu(alpha) + 1 of alpha [e, o], float32 and positive.

    Written as exp(alpha) below 0, because (exp(alpha) - 1) + 1 cancels to 0 from alpha -17 on.
    """
    alpha = alpha.astype(jnp.float32)
    below = jnp.where(alpha > 0, 0.0, alpha)  # keeps exp finite, and the slope at 0 is 1
    return jnp.where(alpha > 0, alpha + 1, jnp.exp(jnp.maximum(below, _MIN_ALPHA)))


def mean(alpha: jax.Array) -> jax.Array:
    """The mean of each edge's Dirichlet, [e, o] float32."""
    beta = concentration(alpha)
    return beta / jnp.sum(beta, axis=-1, keepdims=True)


def kl_from_flat(alpha: jax.Array) -> jax.Array:
    """KL(Dir(beta) || Dir(1)) in closed form, one an edge, summed over the edges: a scalar."""
    if alpha.shape[-1] == 1:  # one operation is certain, and tfp has no such Dirichlet
        return jnp.zeros((), jnp.float32)
    beta = concentration(alpha)
    return jnp.sum(tfd.kl_divergence(tfd.Dirichlet(beta), tfd.Dirichlet(jnp.ones_like(beta))))


def sample_dirichlet(concentration: jax.Array, key: jax.Array) -> jax.Array:
    """A Dirichlet sample with a pathwise gradient that stays finite at small concentrations.

    Gamma(c) is drawn as Gamma(c + 1) * U^(1 / c) (Marsaglia and Tsang 2000) and
    normalised in logarithms, where nothing underflows. The gradient of Gamma(c + 1) is tfp's
    implicit one (arXiv 1805.08498).

    Args:
      concentration: [..., o], positive; computed in float32 whatever its type.
      key: a random key.

    Returns:
      [..., o] float32, each row sums to 1.
    """
    concentration = concentration.astype(jnp.float32)
    gamma_key, uniform_key = jax.random.split(key)
    gamma = tfd.Gamma(concentration + 1, rate=jnp.float32(1)).sample(seed=gamma_key)
    uniform = jax.random.uniform(
        uniform_key, concentration.shape, jnp.float32, minval=jnp.finfo(jnp.float32).tiny
    )
    return base.softmax(jnp.log(gamma) + jnp.log(uniform) / concentration)


def draw(concentration: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A sample [o] on the host, see MixingDistribution.draw."""
    return generator.dirichlet(concentration)


def _sample(alpha: jax.Array, key: jax.Array, progress: jax.Array | float) -> jax.Array:
    del progress  # no temperature
    return sample_dirichlet(concentration(alpha), key)
