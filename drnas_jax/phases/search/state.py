"""The one state of a search; it changes only by `replace`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from drnas_jax.distributions import MixingDistribution
from drnas_jax.spaces import Structure
from drnas_jax.training import losses
from drnas_jax.training.random_keys import stream_key


class SearchState(struct.PyTreeNode):
    """Everything that a search remembers, as arrays. What is static is a Structure beside it.

    Attributes:
      seed: uint32 [], of the run. Not static, so that runs share compiled programs.
      step: int32 [], updates of the weights done, over all stages.
      params: the supernet's weights.
      batch_stats: its BatchNorm running averages.
      alpha: by cell type, float32 [e, o].
      weight_opt: the weights' optimiser state.
      alpha_opt: alpha's optimiser state.
      totals: sums over the training batches of the epoch so far (see `losses.totals`).
    """

    seed: jax.Array
    step: jax.Array
    params: Any
    batch_stats: Any
    alpha: dict[str, jax.Array]
    weight_opt: optax.OptState
    alpha_opt: optax.OptState
    totals: losses.Totals


def mean_mix(
    distribution: MixingDistribution, alpha: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """The mean mixing weights, by cell type [e, o]."""
    return {cell_type: distribution.mean(rows) for cell_type, rows in alpha.items()}


def init_state(
    structure: Structure,
    supernet: nn.Module,
    distribution: MixingDistribution,
    weight_optimiser: optax.GradientTransformation,
    alpha_optimiser: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    seed: jax.Array | int,
) -> SearchState:
    """A fresh state for a structure.

    Args:
      structure: what the supernet consists of.
      supernet: its module.
      distribution: of the mixing weights; inits alpha.
      weight_optimiser: inits its state.
      alpha_optimiser: inits its state.
      image_shape: h, w, c.
      seed: of the run.
    """
    alpha = {
        cell_type: distribution.init(
            stream_key(seed, f"init/alpha/{cell_type}"), (len(kept), len(kept[0]))
        )
        for cell_type, kept in structure.operations
    }
    mix = mean_mix(distribution, alpha)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = supernet.lazy_init(stream_key(seed, "init/weights"), images, mix, True)
    return SearchState(
        seed=jnp.asarray(seed, jnp.uint32),
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        alpha=alpha,
        weight_opt=weight_optimiser.init(variables["params"]),
        alpha_opt=alpha_optimiser.init(alpha),
        totals=losses.zero_totals(),
    )
