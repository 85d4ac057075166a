"""The search step: alpha on a validation batch, then the weights on a training batch.

Pure functions of one device's shard; `drnas_jax.training.devices` compiles them over all devices.
"""

import dataclasses
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax

from drnas_jax.data.feed import Images
from drnas_jax.distributions import MixingDistribution
from drnas_jax.phases.search.state import SearchState, mean_mix
from drnas_jax.training import losses
from drnas_jax.training.devices import AXIS
from drnas_jax.training.optimisers import clip
from drnas_jax.training.random_keys import stream_key

Mix = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is static in a step.

    Attributes:
      supernet: see Space.supernet.
      one_pass: alpha's pass and the weights' pass share one program, compiled once.
      distribution: of the mixing weights.
      weight_optimiser, alpha_optimiser: the two optimisers.
      alpha_clip: global norm to which alpha's gradient is clipped; 0: it is not.
      total_steps: of the whole search, for temperatures.
      sample_per_device: draw mixing weights per device, not once for all.
    """

    supernet: nn.Module
    one_pass: bool
    distribution: MixingDistribution
    weight_optimiser: optax.GradientTransformation
    alpha_optimiser: optax.GradientTransformation
    alpha_clip: float
    total_steps: int
    sample_per_device: bool


def search_step(
    recipe: Recipe, state: SearchState, train: Images, valid: Images | None = None, *, frozen: bool
) -> SearchState:
    """One step of the bilevel search (DrNAS paper): alpha first, then the weights.

    Args:
      recipe: what is static.
      state: the same on every device.
      train: this device's shard of a training batch, for the weights.
      valid: likewise of a validation batch, for alpha; None if that is frozen.
      frozen: warm-up: alpha stays as it is, and its gradient is not computed.
    """
    if frozen:
        return update_weights(recipe, state, train)
    assert valid is not None
    if recipe.one_pass:
        return lax.fori_loop(0, 2, partial(_update_one, recipe, train, valid), state)
    return update_weights(recipe, update_alpha(recipe, state, valid), train)


def sample(recipe: Recipe, alpha: Mix, stream: str, seed: jax.Array, step: jax.Array) -> Mix:
    """Draws mixing weights, by cell type [e, o]; a fresh draw for every seed, stream and step."""
    return _draw(recipe, step, _keys(recipe, alpha, stream, seed, step), alpha)


def _draw(recipe: Recipe, step: jax.Array, keys: dict[str, jax.Array], alpha: Mix) -> Mix:
    progress = step / recipe.total_steps
    return {
        cell_type: recipe.distribution.sample(rows, keys[cell_type], progress)
        for cell_type, rows in alpha.items()
    }


def _keys(
    recipe: Recipe, alpha: Mix, stream: str, seed: jax.Array, step: jax.Array
) -> dict[str, jax.Array]:
    keys = {name: stream_key(seed, f"search/{stream}/{name}", step) for name in alpha}
    if recipe.sample_per_device:
        return {name: jax.random.fold_in(key, lax.axis_index(AXIS)) for name, key in keys.items()}
    return keys


def update_alpha(recipe: Recipe, state: SearchState, batch: Images) -> SearchState:
    """Moves alpha along the pathwise gradient of the validation loss; weights stay.

    The running averages of BatchNorm stay too: they describe the training images.
    """

    def loss_of(alpha: Mix) -> jax.Array:
        mix = sample(recipe, alpha, "alpha-sample", state.seed, state.step)
        return _loss(recipe, state, batch, None, state.params, mix)[0]

    return _move_alpha(recipe, state, jax.grad(loss_of)(state.alpha))


def update_weights(recipe: Recipe, state: SearchState, batch: Images) -> SearchState:
    """Moves the weights along the gradient of the training loss under a fresh sample."""
    mix = sample(recipe, state.alpha, "weight-sample", state.seed, state.step)
    loss_of = partial(_loss, recipe, state, batch, None)
    gradient, found = jax.grad(loss_of, has_aux=True)(state.params, mix)
    return _move_weights(recipe, state, batch, gradient, found)


def _update_one(
    recipe: Recipe, train: Images, valid: Images, i: jax.Array, state: SearchState
) -> SearchState:
    """The update of alpha (i = 0) or of the weights (1): one program, which is compiled once."""
    learn = i == 1
    choose = partial(jax.tree.map, partial(jnp.where, learn))
    batch = choose(train, valid)
    streams = ("weight-sample", "alpha-sample")
    keys = choose(
        *(_keys(recipe, state.alpha, stream, state.seed, state.step) for stream in streams)
    )
    mix, pull_mix = jax.vjp(partial(_draw, recipe, state.step, keys), state.alpha)
    loss_of = partial(_loss, recipe, state, batch, learn.astype(jnp.float32))
    loss, pull, found = jax.vjp(loss_of, state.params, mix, has_aux=True)
    d_params, d_mix = pull(jnp.ones_like(loss))
    return lax.cond(
        learn,
        lambda: _move_weights(recipe, state, batch, d_params, found),
        lambda: _move_alpha(recipe, state, *pull_mix(d_mix)),
    )


def _loss(
    recipe: Recipe,
    state: SearchState,
    batch: Images,
    learn: jax.Array | None,
    params: Any,
    mix: Mix,
) -> tuple[jax.Array, tuple[jax.Array, Any]]:
    """Cross-entropy; and logits and the running averages after this batch."""
    variables = {"params": params, "batch_stats": state.batch_stats}
    logits, updated = recipe.supernet.apply(
        variables, batch.images, mix, True, learn, mutable=["batch_stats"]
    )
    loss = jnp.mean(losses.cross_entropy(logits, batch.labels))
    return loss, (logits, updated["batch_stats"])


def _move_alpha(recipe: Recipe, state: SearchState, gradient: Mix) -> SearchState:
    def penalty(alpha: Mix) -> jax.Array:
        return sum(map(recipe.distribution.regulariser, alpha.values()), start=jnp.zeros(()))

    gradient = lax.pmean(gradient, AXIS)
    gradient, _ = clip(recipe.alpha_clip).update(gradient, optax.EmptyState())
    gradient = jax.tree.map(jnp.add, gradient, jax.grad(penalty)(state.alpha))
    updates, alpha_opt = recipe.alpha_optimiser.update(gradient, state.alpha_opt, state.alpha)
    return state.replace(alpha=optax.apply_updates(state.alpha, updates), alpha_opt=alpha_opt)


def _move_weights(
    recipe: Recipe, state: SearchState, batch: Images, gradient: Any, found: tuple[jax.Array, Any]
) -> SearchState:
    logits, batch_stats = found
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


def logits_at(recipe: Recipe, state: SearchState, mix: Mix, images: jax.Array) -> jax.Array:
    """Logits [b, classes] at given mixing weights, normalised by the batch's own statistics.

    The running averages are those of random mixtures, which fit neither a single cell nor, in a
    deep supernet, the mean.
    """
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits, _ = recipe.supernet.apply(variables, images, mix, True, mutable=["batch_stats"])
    return cast(jax.Array, logits)


def mean_logits(recipe: Recipe, state: SearchState, images: jax.Array) -> jax.Array:
    """Logits at the mean mixing weights (validation), see `logits_at`."""
    return logits_at(recipe, state, mean_mix(recipe.distribution, state.alpha), images)
