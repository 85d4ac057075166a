"""Cross-entropy, and the running sums from which the losses and accuracies of an epoch come."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

Totals = dict[str, jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Computes the cross-entropy of each example, in nats.

    Args:
      logits: Outputs of the network before the softmax, [b, classes].
      labels: Class numbers, int [b].
      smoothing: Label smoothing: the share of the target that is spread evenly over all classes.

    Returns:
      Losses of the examples, [b].
    """
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, smoothing))


def training_loss(
    logits: jax.Array,
    auxiliary: jax.Array | None,
    labels: jax.Array,
    smoothing: float,
    auxiliary_weight: float,
) -> jax.Array:
    """Computes the mean cross-entropy of a batch, plus the weighted one of the auxiliary head.

    Args:
      logits: Outputs of the network before the softmax, [b, classes].
      auxiliary: Outputs of the auxiliary head, [b, classes], or None if there is no such head.
      labels: Class numbers, int [b].
      smoothing: Label smoothing, see `cross_entropy`.
      auxiliary_weight: Weight of the auxiliary head's loss.
    """
    loss = jnp.mean(cross_entropy(logits, labels, smoothing))
    if auxiliary is not None:
        loss += auxiliary_weight * jnp.mean(cross_entropy(auxiliary, labels, smoothing))
    return loss


def zero_totals() -> Totals:
    """Returns the totals of no examples, from which an epoch starts."""
    return {name: jnp.zeros((), jnp.float32) for name in ("loss", "correct", "correct5", "count")}


def totals(logits: jax.Array, labels: jax.Array, weight: jax.Array | None = None) -> Totals:
    """Sums loss, top-1 hits, top-5 hits and examples over a batch.

    Args:
      logits: Outputs of the network before the softmax, [b, classes].
      labels: Class numbers, int [b].
      weight: Weights of the examples, [b], 0 for padding. None means 1 for all.
    """
    weight = jnp.ones(labels.shape, jnp.float32) if weight is None else weight
    true_logit = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    classes = jnp.arange(logits.shape[-1])
    # Not `logits > true_logit`: a comparison with nan is false, so every prediction of a diverged
    # network would count as correct.
    better = jnp.sum(~(logits <= true_logit) & (classes != labels[:, None]), axis=-1)
    # Among equal logits the lowest class number ranks first, as in argmax.
    tied = (logits == true_logit) & (classes < labels[:, None])
    rank = better + jnp.sum(tied, axis=-1)
    return {
        "loss": jnp.sum(weight * cross_entropy(logits, labels)),
        "correct": jnp.sum(weight * (rank < 1)),
        "correct5": jnp.sum(weight * (rank < 5)),
        "count": jnp.sum(weight),
    }


def averages(sums: Mapping[str, jax.Array | float]) -> dict[str, float]:
    """Divides totals by their number of examples.

    Args:
      sums: Totals of one or more batches, as `totals` returns them.

    Returns:
      The mean loss in nats, and top-1 and top-5 accuracies from 0 to 1.
    """
    count = max(float(sums["count"]), 1.0)
    return {
        "loss": float(sums["loss"]) / count,
        "accuracy": float(sums["correct"]) / count,
        "top5": float(sums["correct5"]) / count,
    }
