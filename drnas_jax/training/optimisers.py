"""The optimisers of the weights and of the architecture parameters, in optax."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from drnas_jax.config import ArchConfig, RetrainConfig, SearchConfig

_NORM_ROW = 1024  # numbers in the rows whose squares are summed first


def learning_rate(
    config: SearchConfig | RetrainConfig, steps_per_epoch: int, epochs: int
) -> optax.Schedule:
    """Creates the schedule of the weights' learning rate.

    It decays from `lr` to `lr_end` over all epochs, by a cosine or linearly. A linear warm-up
    replaces the first `lr_warmup_epochs`; the decay does not start later because of it. In the last
    `tuning_epochs` of a search it decays a second time, from `tuning_lr` to `lr_end`.

    Args:
      config: Settings of the search or of the retraining.
      steps_per_epoch: Number of steps in an epoch.
      epochs: Number of epochs of the whole phase, all stages together.
    """
    tuning = config.tuning_epochs if isinstance(config, SearchConfig) else 0
    warmup, steps = config.lr_warmup_epochs * steps_per_epoch, (epochs - tuning) * steps_per_epoch
    schedule = _decay(config, config.lr, steps)
    if warmup:
        rise = optax.linear_schedule(config.lr / warmup, config.lr, max(warmup - 1, 1))
        decay = schedule
        schedule = optax.join_schedules([rise, lambda step: decay(step + warmup)], [warmup])
    if isinstance(config, SearchConfig) and tuning:
        again = _decay(config, config.tuning_lr, tuning * steps_per_epoch)
        schedule = optax.join_schedules([schedule, again], [steps])
    return schedule


def _decay(config: SearchConfig | RetrainConfig, lr: float, steps: int) -> optax.Schedule:
    if config.lr_schedule == "cosine":
        return optax.cosine_decay_schedule(lr, steps, alpha=config.lr_end / lr if lr else 0.0)
    return optax.linear_schedule(lr, config.lr_end, steps)


def clip(max_norm: float) -> optax.GradientTransformation:
    """Returns clipping by the global norm; a norm of 0 turns it off.

    Unlike `optax.clip_by_global_norm` it sums the squares of all arrays as one vector. That takes
    two kernels, and not two for each of the hundreds of arrays of a retraining.

    Args:
      max_norm: Largest global norm of the gradient that is left as it is.
    """
    if not max_norm:
        return optax.identity()

    def update(gradient: Any, state: optax.EmptyState, params: Any = None) -> Any:
        del params
        factor = jnp.minimum(1.0, max_norm / global_norm(gradient))
        return jax.tree.map(lambda leaf: (leaf * factor).astype(leaf.dtype), gradient), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def global_norm(tree: Any) -> jax.Array:
    """Returns the square root of the sum of all squares, float32 []; 0 for a tree without arrays.

    Args:
      tree: Pytree of floats.
    """
    leaves = [leaf.astype(jnp.float32).ravel() for leaf in jax.tree.leaves(tree)]
    if not leaves:
        return jnp.zeros(())
    vector = jnp.concatenate(leaves)
    # A sum of sums of rows has less rounding error than one long sum.
    rows = jnp.pad(vector, (0, -len(vector) % _NORM_ROW)).reshape(-1, _NORM_ROW)
    return jnp.sqrt(jnp.sum(jnp.sum(jnp.square(rows), axis=1)))


def weight_optimiser(
    config: SearchConfig | RetrainConfig,
    steps_per_epoch: int,
    epochs: int,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """Creates the optimiser of the weights that `config.optimizer` names, `sgd` or `adamw`.

    Both clip the gradient first. `sgd` is PyTorch's: weight decay is added to the gradient, so it
    passes through the momentum. `adamw` (Loshchilov and Hutter, arXiv 1711.05101) subtracts
    `learning rate * weight_decay * w` beside Adam's step; `momentum` is its b1, and b2 is 0.999.
    Weight decay applies to every parameter, biases and normalisation included.

    Args:
      config: Settings of the search or of the retraining.
      steps_per_epoch: Number of steps in an epoch.
      epochs: Number of epochs of the whole phase, all stages together.
      nesterov: Whether the momentum is Nesterov's.
    """
    rate = learning_rate(config, steps_per_epoch, epochs)
    if config.optimizer == "adamw":
        return optax.chain(
            clip(config.clip),
            optax.adamw(
                rate,
                b1=config.momentum,
                b2=0.999,
                weight_decay=config.weight_decay,
                nesterov=nesterov,
            ),
        )
    return optax.chain(
        clip(config.clip),
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(rate, config.momentum, nesterov),
    )


def alpha_optimiser(config: ArchConfig) -> optax.GradientTransformation:
    """Creates the optimiser of the architecture parameters, Adam.

    It neither clips nor regularises: the search step clips the gradient of the loss, and then adds
    that of the regulariser.

    Args:
      config: Settings of the mixing distribution and its optimiser.
    """
    return optax.adam(config.lr, b1=config.b1, b2=config.b2)


def map_like_params(
    params: Any, function: Callable[[Any], Any], state: optax.OptState
) -> optax.OptState:
    """Applies a function of parameter trees to every tree of that shape in an optimiser's state.

    Pruning and widening change the parameters, and their momenta must change in the same way.
    Counters and everything else that is not shaped like the parameters stay as they are; the
    caller must compare the result with `optimiser.init(function(params))`.

    A tree is like the parameters if its arrays have the same paths and shapes. A mask hides
    parameters from an optimiser (`optax.masked`, `optax.multi_transform`) by an `optax.MaskedNode`
    in place of an array or of a subtree. `function` must treat it like what it replaces: keep it,
    or remove it with its key. `jax.tree.map` keeps it, since it is a node without leaves; code that
    walks dictionaries by hand must test for it.

    This compares trees, and does not use `optax.tree_utils.tree_map_params`, since that calls the
    masks and labels of an optimiser with a placeholder: those that walk a dictionary would fail.

    Example:
      Drop the second column of every array, in the parameters and in their momenta::

        keep = functools.partial(jax.tree.map, lambda array: array[:, :1])
        params, state = keep(params), map_like_params(params, keep, state)

    Args:
      params: Parameters before the change, or their shapes.
      function: Function from a tree of parameters to a tree of parameters, whose leaves may have
        other shapes and which may have fewer keys.
      state: State of the optimiser before the change.
    """
    # Without arrays, since JAX prints what does not fit into an error that `_is_like` discards.
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), params)

    def is_like_params(tree: Any) -> bool:
        return not _is_masked(tree) and _is_like(tree, shapes)

    return jax.tree.map(
        lambda tree: function(tree) if is_like_params(tree) else tree, state, is_leaf=is_like_params
    )


def _is_masked(tree: Any) -> bool:
    return isinstance(tree, optax.MaskedNode)


def _is_like(tree: Any, shapes: Any) -> bool:
    """Returns whether a tree has the paths and shapes of the parameters, except masked parts."""
    structure: Any = jax.tree.structure(tree, is_leaf=_is_masked)
    leaves = jax.tree.leaves(tree, is_leaf=_is_masked)
    try:
        parts = structure.flatten_up_to(shapes)
    except ValueError:  # the structure is not the upper part of that of the parameters
        return False
    return all(
        _is_masked(leaf) or (jax.tree_util.all_leaves([part]) and np.shape(leaf) == np.shape(part))
        for leaf, part in zip(leaves, parts, strict=True)
    )
