"""The search step: updates alpha on a validation batch, then the weights on a training batch.

All functions are pure functions of one device's shard; `training.programs` compiles them over all
devices.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax

from drnas_jax.data import AugmentationKeys, Batch, Images, augmentation_streams
from drnas_jax.distributions import Distribution
from drnas_jax.distributions.base import Role
from drnas_jax.nn import weight_gradients
from drnas_jax.phases.search.state import SearchState, mean_mix, with_fixed
from drnas_jax.spaces import Cell, Mix, SupernetSpec
from drnas_jax.training import losses
from drnas_jax.training.devices import AXIS
from drnas_jax.training.optimisers import clip
from drnas_jax.training.random_keys import (
    MODULE_STREAMS,
    module_streams,
    stream_keys,
    stream_number,
)

Alpha = dict[str, Any]
Augment = Callable[[Any, AugmentationKeys], Images]  # (batch, keys) -> augmented batch
STREAMS: dict[Role, str] = {"alpha": "alpha-sample", "weights": "weight-sample"}
SUBSETS: dict[Role, str] = {"alpha": "search/valid", "weights": "search/train"}  # of the images


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """The static inputs of the step.

    Attributes:
      spec: Spec of the supernet.
      supernet: Module of the supernet, see `Space.supernet`.
      share_program: Whether alpha's pass and the weights' pass are two iterations of one loop, so
        that the supernet is compiled only once.
      distribution: Mixing distribution.
      penalty: Function (alpha, progress) -> scalar, with its strength included. Its gradient is
        added to alpha's gradient after that is clipped.
      cost: Function (mean mixing weights) -> scalar that is added to alpha's validation loss, or
        None.
      weight_optimiser: Optimiser of the weights.
      alpha_optimiser: Optimiser of the architecture parameters.
      alpha_clip: Global norm to which alpha's gradient is clipped; 0 for no clipping.
      total_steps: Number of steps of the whole search.
      sample_per_device: Whether each device draws different mixing weights.
    """

    spec: SupernetSpec
    supernet: nn.Module
    share_program: bool
    distribution: Distribution
    penalty: Callable[[Alpha, jax.Array], jax.Array]
    cost: Callable[[Mix], jax.Array] | None
    weight_optimiser: optax.GradientTransformation
    alpha_optimiser: optax.GradientTransformation
    alpha_clip: float
    total_steps: int
    sample_per_device: bool

    def progress(self, step: jax.Array) -> jax.Array:
        """Returns the fraction of the search that is done after `step` steps."""
        return step / self.total_steps


class PassKeys(NamedTuple):
    """The random keys of alpha's pass or the weights' pass, or the names or numbers of streams.

    Attributes:
      sample: Keys of the mixing weights, by cell type.
      modules: Keys of the random streams of the supernet's modules, the same on each device.
      augmentation: Keys of the augmentation of the batch.
    """

    sample: dict[str, Any]
    modules: dict[str, Any]
    augmentation: AugmentationKeys


def _stream_numbers(config: StepConfig, role: Role) -> PassKeys:
    names = PassKeys(
        {name: f"search/{STREAMS[role]}/{name}" for name, _ in config.spec.cells},
        {name: f"search/{role}/{name}" for name in MODULE_STREAMS},
        augmentation_streams(SUBSETS[role]),
    )
    return cast(PassKeys, jax.tree.map(stream_number, names))


def _keys(config: StepConfig, state: SearchState, numbers: PassKeys) -> PassKeys:
    """Returns the keys of a pass from the numbers of its streams."""
    keys: PassKeys = stream_keys(state.seed, numbers, state.step)
    return keys._replace(sample=_on_device(keys.sample)) if config.sample_per_device else keys


def _on_device(keys: dict[str, Any]) -> dict[str, Any]:
    """Returns other keys on each device."""
    return {name: jax.random.fold_in(key, lax.axis_index(AXIS)) for name, key in keys.items()}


def pass_keys(config: StepConfig, state: SearchState, role: Role) -> PassKeys:
    """Returns the keys of alpha's pass or the weights' pass, which differ in every step."""
    return _keys(config, state, _stream_numbers(config, role))


def search_step(
    config: StepConfig,
    state: SearchState,
    train: Batch,
    valid: Batch,
    frozen: jax.Array | bool,
    augment: Augment,
) -> SearchState:
    """Takes one step of the bilevel search (DrNAS): alpha first, then the weights.

    Args:
      config: Static inputs of the step.
      state: State of the search, the same on every device.
      train: This device's shard of a training batch, for the weights.
      valid: This device's shard of a validation batch, for alpha; not used if alpha is frozen, but
        of the same shape.
      frozen: Whether alpha does not change (warm-up), bool []; its gradient is then not computed.
        One program serves both cases.
      augment: Function that augments a batch.
    """
    if config.share_program:
        first = jnp.asarray(frozen).astype(jnp.int32)
        return lax.fori_loop(first, 2, partial(_update_one, config, train, valid, augment), state)
    update = partial(update_alpha, config, state, valid, augment)
    return update_weights(config, lax.cond(frozen, lambda: state, update), train, augment)


def sample(
    config: StepConfig, state: SearchState, keys: dict[str, jax.Array], role: Role, alpha: Alpha
) -> Mix:
    """Draws mixing weights by cell type [e, o]; cells with equal edges share a computation."""

    def draw(cell: Cell, alpha: Any, key: jax.Array) -> jax.Array:
        return config.distribution.sample(alpha, cell, key, config.progress(state.step), role)

    mix: dict[str, jax.Array] = {}
    for cell in dict.fromkeys(cell for _, cell in config.spec.cells):
        names = [name for name, other in config.spec.cells if other == cell]
        if len(names) == 1:
            mix[names[0]] = draw(cell, alpha[names[0]], keys[names[0]])
        else:
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(alpha.get, names))
            drawn = jax.vmap(partial(draw, cell))(stacked, jnp.stack([keys[n] for n in names]))
            mix |= zip(names, drawn, strict=True)
    return with_fixed(mix, state.fixed)


def update_alpha(
    config: StepConfig, state: SearchState, batch: Batch, augment: Augment
) -> SearchState:
    """Updates alpha by the pathwise gradient of the validation loss.

    The weights do not change, nor do the running averages of BatchNorm, which describe the training
    images.
    """
    keys = pass_keys(config, state, "alpha")
    images = augment(batch, keys.augmentation)

    def loss_of(alpha: Alpha) -> jax.Array:
        mix = sample(config, state, keys.sample, "alpha", alpha)
        return _loss(config, state, images, keys.modules, state.params, mix)[0]

    return _apply_alpha_gradient(config, state, jax.grad(loss_of)(state.alpha))


def update_weights(
    config: StepConfig, state: SearchState, batch: Batch, augment: Augment
) -> SearchState:
    """Updates the weights by the gradient of the training loss at newly drawn mixing weights."""
    keys = pass_keys(config, state, "weights")
    mix = sample(config, state, keys.sample, "weights", state.alpha)
    images = augment(batch, keys.augmentation)
    loss_of = partial(_loss, config, state, images, keys.modules)
    gradient, outputs = jax.grad(loss_of, has_aux=True)(state.params, mix)
    return _apply_weight_gradient(config, state, images, gradient, outputs)


def _update_one(
    config: StepConfig,
    train: Batch,
    valid: Batch,
    augment: Augment,
    i: jax.Array,
    state: SearchState,
) -> SearchState:
    """Updates alpha (i = 0) or the weights (i = 1) with one program, which is compiled once."""
    is_weight_pass = i == 1
    choose = partial(jax.tree.map, partial(jnp.where, is_weight_pass))
    numbers = choose(_stream_numbers(config, "weights"), _stream_numbers(config, "alpha"))
    keys = _keys(config, state, numbers)
    images = augment(choose(train, valid), keys.augmentation)

    def draw(alpha: Alpha) -> Mix:
        mix = sample(config, state, keys.sample, "alpha", alpha)
        if _depends_on_role(config, state, keys.sample):
            return choose(sample(config, state, keys.sample, "weights", alpha), mix)
        return mix

    mix, pull_mix = jax.vjp(draw, state.alpha)
    loss_of = partial(_loss, config, state, images, keys.modules)
    with weight_gradients.computed_if(is_weight_pass.astype(jnp.float32)):
        loss, pull, outputs = jax.vjp(loss_of, state.params, mix, has_aux=True)
        d_params, d_mix = pull(jnp.ones_like(loss))
    return lax.cond(
        is_weight_pass,
        lambda: _apply_weight_gradient(config, state, images, d_params, outputs),
        lambda: _apply_alpha_gradient(config, state, *pull_mix(d_mix)),
    )


def _depends_on_role(config: StepConfig, state: SearchState, keys: dict[str, jax.Array]) -> bool:
    """Returns whether the distribution draws differently for alpha's pass and the weights' pass."""
    alpha, weights = (
        jax.make_jaxpr(partial(sample, config, state, keys, role))(state.alpha) for role in STREAMS
    )
    if str(alpha) != str(weights):
        return True

    def same(one: Any, other: Any) -> bool:
        if one is other or isinstance(one, jax.core.Tracer) or isinstance(other, jax.core.Tracer):
            return one is other
        return bool(np.array_equal(one, other))

    # The printed programs do not show the values of arrays that the distribution stores.
    return not all(map(same, alpha.consts, weights.consts))


def _loss(
    config: StepConfig,
    state: SearchState,
    batch: Images,
    keys: dict[str, jax.Array],
    params: Any,
    mix: Mix,
) -> tuple[jax.Array, tuple[jax.Array, dict[str, Any]]]:
    """Returns the cross-entropy, and a pair of the logits and the updated other variables."""
    logits, variables = config.supernet.apply(
        {"params": params, **state.variables},
        batch.images,
        mix,
        True,
        rngs=_on_device(keys),
        mutable=list(state.variables),
    )
    loss = jnp.mean(losses.cross_entropy(logits, batch.labels))
    return loss, (logits, dict(variables))


def _apply_alpha_gradient(config: StepConfig, state: SearchState, gradient: Alpha) -> SearchState:
    gradient = lax.pmean(gradient, AXIS)
    if config.cost is not None:
        cost = config.cost  # at the mean, which has no sampling noise

        def cost_of(alpha: Alpha) -> jax.Array:
            return cost(mean_mix(config.distribution, config.spec, state.replace(alpha=alpha)))

        gradient = jax.tree.map(jnp.add, gradient, jax.grad(cost_of)(state.alpha))
    gradient, _ = clip(config.alpha_clip).update(gradient, optax.EmptyState())
    penalty = jax.grad(config.penalty)(state.alpha, config.progress(state.step))
    gradient = jax.tree.map(jnp.add, gradient, penalty)
    updates, alpha_opt = config.alpha_optimiser.update(gradient, state.alpha_opt, state.alpha)
    return state.replace(alpha=optax.apply_updates(state.alpha, updates), alpha_opt=alpha_opt)


def _apply_weight_gradient(
    config: StepConfig,
    state: SearchState,
    batch: Images,
    gradient: Any,
    outputs: tuple[jax.Array, dict[str, Any]],
) -> SearchState:
    logits, variables = outputs
    gradient, variables = lax.pmean((gradient, variables), AXIS)
    updates, weight_opt = config.weight_optimiser.update(gradient, state.weight_opt, state.params)
    sums = lax.psum(losses.totals(logits, batch.labels), AXIS)
    return state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        variables=variables,
        weight_opt=weight_opt,
        totals=jax.tree.map(jnp.add, state.totals, sums),
    )


def logits_at(config: StepConfig, state: SearchState, mix: Mix, images: jax.Array) -> jax.Array:
    """Returns logits [b, classes] at given mixing weights, normalised by the batch's statistics.

    The running averages are not used: they average over random mixtures, and so fit neither a
    single cell nor, in a deep supernet, the mean.
    """
    logits, _ = config.supernet.apply(
        {"params": state.params, **state.variables},
        images,
        mix,
        True,
        rngs=module_streams(state.seed, "search/validation", state.step, lax.axis_index(AXIS)),
        mutable=list(state.variables),
    )
    return cast(jax.Array, logits)


def mean_logits(config: StepConfig, state: SearchState, images: jax.Array) -> jax.Array:
    """Returns logits [b, classes] at the mean mixing weights, see `logits_at`."""
    return logits_at(config, state, mean_mix(config.distribution, config.spec, state), images)
