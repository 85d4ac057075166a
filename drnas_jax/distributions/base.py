"""What a mixing distribution is, and what its files share.

Shapes: `e` edges, `o` operations kept on each of them. All values are float32.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from drnas_jax.config import ArchConfig
from drnas_jax.errors import UserError, check_choice


class MixingDistribution(NamedTuple):
    """How alpha, the trained architecture parameter, becomes the weights of the operations.

    Pure functions, safe under `jax.jit`, `jax.vmap` and `jax.grad`. `o` may be any number from 1
    on: pruning makes it smaller.

    Attributes:
      init: `(key, shape) -> alpha` [e, o], near 0: no operation is favoured.
      sample: `(alpha, key, progress) -> mix` [e, o]: one draw, non-negative, each row sums to 1,
        differentiable in alpha. `progress`, a scalar, is the fraction of the search that is done;
        temperatures follow it.
      mean: `(alpha) -> mix` [e, o]: what validation and derivation use.
      concentration: `(alpha) -> strengths` [e, o], positive; each row, divided by its sum, is the
        mean.
      regulariser: `(alpha) -> penalty`, a scalar added to the validation loss; the config's
        strength is already in it.
      draw: `(concentration [o], generator) -> strengths [o]` of an edge in a cell drawn at random,
        in numpy on the host: the strongest is its operation, and edges compare by their strongest.
    """

    init: Callable[[jax.Array, tuple[int, ...]], jax.Array]
    sample: Callable[[jax.Array, jax.Array, jax.Array | float], jax.Array]
    mean: Callable[[jax.Array], jax.Array]
    concentration: Callable[[jax.Array], jax.Array]
    regulariser: Callable[[jax.Array], jax.Array]
    draw: Callable[[np.ndarray, np.random.Generator], np.ndarray]


def init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Alpha at the start of a search: 1e-3 * N(0, 1) of `shape` [e, o], float32."""
    return 1e-3 * jax.random.normal(key, shape, jnp.float32)


def l2(alpha: jax.Array) -> jax.Array:
    """Half the squared norm of alpha [e, o], a scalar; its gradient is alpha.

    Alpha 0 is a concentration of 1 for the Dirichlet (the paper's pull toward the flat
    distribution) and equal weights for the others.
    """
    return 0.5 * jnp.sum(jnp.square(alpha.astype(jnp.float32)))


def regulariser(
    config: ArchConfig, kl: Callable[[jax.Array], jax.Array] | None = None
) -> Callable[[jax.Array], jax.Array]:
    """The penalty that `config.regulariser` names, times `config.strength`.

    Args:
      config: 'l2', 'kl' or 'none', and the strength.
      kl: `(alpha) -> scalar`, for a distribution that has a divergence from the flat one.

    Raises:
      UserError: no such regulariser, or this distribution has no 'kl'.
    """
    check_choice("arch.regulariser", config.regulariser, ("l2", "kl", "none"))
    if config.regulariser == "kl" and kl is None:
        raise UserError(
            f"arch.regulariser 'kl' is defined for arch.name 'dirichlet' only, not for "
            f"{config.name!r}: choose 'l2' or 'none', or the Dirichlet"
        )
    penalty = {"l2": l2, "kl": kl or _zero, "none": _zero}[config.regulariser]
    return lambda alpha: config.strength * penalty(alpha)


def softmax_family(
    config: ArchConfig, sample: Callable[[jax.Array, jax.Array, jax.Array | float], jax.Array]
) -> MixingDistribution:
    """A distribution whose mean is softmax(alpha), with its own `sample`."""
    return MixingDistribution(
        init=init,
        sample=sample,
        mean=softmax,
        concentration=lambda alpha: jnp.exp(alpha.astype(jnp.float32)),
        regulariser=regulariser(config),
        draw=draw_by_mean,
    )


def draw_by_mean(concentration: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """An operation drawn by its mean weight, and as strong as that; equals compare at random.

    So a softmax, which is not random itself, is read as a distribution.

    Args:
      concentration: [o], positive.
      generator: what it is drawn with.

    Returns:
      Strengths [o], 0 but for one.
    """
    mean = concentration / concentration.sum()
    scores = np.log(mean) + generator.gumbel(size=mean.shape)
    drawn = int(np.argmax(scores))  # by the mean; the maximum itself tells nothing of it
    strengths = np.zeros_like(mean)
    strengths[drawn] = mean[drawn] * np.exp(1e-9 * scores[drawn])
    return strengths


def softmax(logits: jax.Array) -> jax.Array:
    """Softmax over the operations of [e, o], in float32."""
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)


def gumbel_softmax(
    config: ArchConfig, alpha: jax.Array, key: jax.Array, progress: jax.Array | float
) -> jax.Array:
    """A relaxed one-hot draw from softmax(alpha) (arXiv 1611.01144, equation 2).

    Args:
      config: its `temperature` is that of the first and of the last step; linear between.
      alpha: [e, o].
      key: a random key.
      progress: scalar, the fraction of the search that is done.

    Returns:
      [e, o] float32; each row sums to 1.
    """
    first, last = config.temperature
    temperature = first + (last - first) * jnp.clip(progress, 0.0, 1.0)
    noise = jax.random.gumbel(key, alpha.shape, jnp.float32)
    return softmax((alpha.astype(jnp.float32) + noise) / temperature)


def _zero(alpha: jax.Array) -> jax.Array:
    del alpha
    return jnp.zeros((), jnp.float32)
