"""The search step: alpha on a validation batch, then the weights on a training batch.

Pure functions of one device's shard; `drnas_jax.sharding` compiles them over all devices.
"""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax

from drnas_jax import losses
from drnas_jax.arch import MixingDistribution
from drnas_jax.feed import Images
from drnas_jax.keys import stream_key
from drnas_jax.optimise import clip
from drnas_jax.search.state import SearchState
from drnas_jax.sharding import AXIS

Mix = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is static in a step.

    Attributes:
      supernet: called as (x, mix, train).
      distribution: of the mixing weights.
      weight_optimiser, alpha_optimiser: the two optimisers.
      alpha_clip: global norm to which alpha's gradient is clipped; 0: it is not.
      total_steps: of the whole search, for temperatures.
      seed: of the run.
      sample_per_device: draw mixing weights per device, not once for all.
    """

    supernet: nn.Module
    distribution: MixingDistribution
    weight_optimiser: optax.GradientTransformation
    alpha_optimiser: optax.GradientTransformation
    alpha_clip: float
    total_steps: int
    seed: int
    sample_per_device: bool


def search_step(
    recipe: Recipe, state: SearchState, train: Images, valid: Images, *, frozen: bool
) -> SearchState:
    """One step of the bilevel search (DrNAS paper): alpha first, then the weights.

    Args:
      recipe: what is static.
      state: the same on every device.
      train: this device's shard of a training batch, for the weights.
      valid: likewise of a validation batch, for alpha.
      frozen: warm-up: alpha stays as it is, and its gradient is not computed.
    """
    if not frozen:
        state = update_alpha(recipe, state, valid)
    return update_weights(recipe, state, train)


def sample(recipe: Recipe, alpha: Mix, stream: str, step: jax.Array) -> Mix:
    """Draws mixing weights, by cell type [e, o]; a fresh draw for every stream and step."""
    progress = step / recipe.total_steps
    mix = {}
    for cell_type, rows in alpha.items():
        key = stream_key(recipe.seed, f"search/{stream}/{cell_type}", step)
        if recipe.sample_per_device:
            key = jax.random.fold_in(key, lax.axis_index(AXIS))
        mix[cell_type] = recipe.distribution.sample(rows, key, progress)
    return mix


def update_alpha(recipe: Recipe, state: SearchState, batch: Images) -> SearchState:
    """Moves alpha along the pathwise gradient of the validation loss; weights stay.

    The running averages of BatchNorm stay too: they describe the training images.
    """

    def loss_of(alpha: Mix) -> jax.Array:
        mix = sample(recipe, alpha, "alpha-sample", state.step)
        logits, _ = _forward(recipe, state, state.params, mix, batch.images)
        return jnp.mean(losses.cross_entropy(logits, batch.labels))

    def penalty(alpha: Mix) -> jax.Array:
        return sum(map(recipe.distribution.regulariser, alpha.values()), start=jnp.zeros(()))

    gradient = lax.pmean(jax.grad(loss_of)(state.alpha), AXIS)
    gradient, _ = clip(recipe.alpha_clip).update(gradient, optax.EmptyState())
    gradient = jax.tree.map(jnp.add, gradient, jax.grad(penalty)(state.alpha))
    updates, alpha_opt = recipe.alpha_optimiser.update(gradient, state.alpha_opt, state.alpha)
    return state.replace(alpha=optax.apply_updates(state.alpha, updates), alpha_opt=alpha_opt)


def update_weights(recipe: Recipe, state: SearchState, batch: Images) -> SearchState:
    """Moves the weights along the gradient of the training loss under a fresh sample."""
    mix = sample(recipe, state.alpha, "weight-sample", state.step)

    def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        logits, batch_stats = _forward(recipe, state, params, mix, batch.images)
        return jnp.mean(losses.cross_entropy(logits, batch.labels)), (logits, batch_stats)

    gradient, (logits, batch_stats) = jax.grad(loss_of, has_aux=True)(state.params)
    gradient, batch_stats = lax.pmean((gradient, batch_stats), AXIS)
    updates, weight_opt = recipe.weight_optimiser.update(gradient, state.weight_opt, state.params)
    sums = lax.psum(losses.totals(logits, batch.labels), AXIS)
    return state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        weight_opt=weight_opt,
        totals=jax.tree.map(jnp.add, state.totals, sums),
    )


def mean_logits(recipe: Recipe, state: SearchState, images: jax.Array) -> jax.Array:
    """Logits [b, classes] at the mean mixing weights and running averages (validation)."""
    mix = {cell_type: recipe.distribution.mean(rows) for cell_type, rows in state.alpha.items()}
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return cast(jax.Array, recipe.supernet.apply(variables, images, mix, False))


def _forward(
    recipe: Recipe, state: SearchState, params: Any, mix: Mix, images: jax.Array
) -> tuple[jax.Array, Any]:
    variables = {"params": params, "batch_stats": state.batch_stats}
    logits, updated = recipe.supernet.apply(variables, images, mix, True, mutable=["batch_stats"])
    return logits, updated["batch_stats"]
