"""The training step of retraining, as pure functions of one device's shard."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax import lax

from drnas_jax.data import Images
from drnas_jax.phases.setup import split_variables
from drnas_jax.training import devices, losses
from drnas_jax.training.random_keys import module_streams, stream_key


class RetrainState(struct.PyTreeNode):
    """The state of a retraining.

    Attributes:
      seed: Seed of the run, uint32 []. It is an array, so that all seeds share compiled programs.
      step: Number of updates, int32 [].
      params: Weights of the network.
      variables: Other collections of the network by name, such as `batch_stats`; may be empty.
      opt: State of the optimiser.
      totals: Sums over the training batches of the epoch so far (see `losses.totals`).
    """

    seed: jax.Array
    step: jax.Array
    params: Any
    variables: dict[str, Any]
    opt: optax.OptState
    totals: losses.Totals


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """The static inputs of the step.

    Attributes:
      network: Module of the network, see `Space.network`.
      optimiser: Optimiser of the weights.
      total_steps: Number of steps of the whole retraining.
      label_smoothing: Strength of label smoothing, in 0..1.
      drop_path: Probability of dropping a path at the end of training; it rises linearly from 0.
      auxiliary_weight: Weight of the auxiliary head's loss.
    """

    network: nn.Module
    optimiser: optax.GradientTransformation
    total_steps: int
    label_smoothing: float
    drop_path: float
    auxiliary_weight: float


def init_state(
    network: nn.Module,
    optimiser: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    seed: jax.Array | int,
) -> RetrainState:
    """Returns the state at the start of retraining.

    Args:
      network: Module of the network.
      optimiser: Optimiser of the weights.
      image_shape: Shape [h, w, c] of an image.
      seed: Seed of the run.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    streams = {name: stream_key(seed, f"retrain/init/{name}") for name in ("dropout", "noise")}
    streams["params"] = stream_key(seed, "retrain/init")
    params, variables = split_variables(network.lazy_init(streams, images, True))
    return RetrainState(
        seed=jnp.asarray(seed, jnp.uint32),
        step=jnp.zeros((), jnp.int32),
        params=params,
        variables=variables,
        opt=optimiser.init(params),
        totals=losses.zero_totals(),
    )


def retrain_step(config: StepConfig, state: RetrainState, batch: Images) -> RetrainState:
    """Updates the weights once, on this device's shard of a training batch."""
    streams = module_streams(state.seed, "retrain", state.step, lax.axis_index(devices.AXIS))
    rate = []
    if config.drop_path:
        key = stream_key(state.seed, "retrain/drop_path", state.step)
        streams["drop_path"] = jax.random.fold_in(key, lax.axis_index(devices.AXIS))
        rate = [config.drop_path * state.step / config.total_steps]

    def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, dict[str, Any]]]:
        outputs, variables = config.network.apply(
            {"params": params, **state.variables},
            batch.images,
            True,
            *rate,
            rngs=streams,
            mutable=list(state.variables),
        )
        logits, auxiliary = outputs if isinstance(outputs, tuple) else (outputs, None)
        loss = losses.training_loss(
            logits, auxiliary, batch.labels, config.label_smoothing, config.auxiliary_weight
        )
        return loss, (logits, dict(variables))

    gradient, (logits, variables) = jax.grad(loss_of, has_aux=True)(state.params)
    gradient, variables = lax.pmean((gradient, variables), devices.AXIS)
    updates, opt = config.optimiser.update(gradient, state.opt, state.params)
    sums = lax.psum(losses.totals(logits, batch.labels), devices.AXIS)
    return state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        variables=variables,
        opt=opt,
        totals=jax.tree.map(jnp.add, state.totals, sums),
    )
