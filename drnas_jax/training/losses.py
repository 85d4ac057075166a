"""Cross-entropy, and the sums from which losses and accuracies of an epoch are made."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

Totals = dict[str, jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy in nats of each example: logits [b, classes], labels int [b] -> [b]."""
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, smoothing))


def training_loss(
    logits: jax.Array,
    auxiliary: jax.Array | None,
    labels: jax.Array,
    smoothing: float,
    auxiliary_weight: float,
) -> jax.Array:
    """Mean cross-entropy, and that of the auxiliary head (if there is one) times its weight.

    Args:
      logits, auxiliary: [b, classes].
      labels: int [b].
      smoothing: of the labels, see `cross_entropy`.
      auxiliary_weight: of the auxiliary head's loss.
    """
    loss = jnp.mean(cross_entropy(logits, labels, smoothing))
    if auxiliary is not None:
        loss += auxiliary_weight * jnp.mean(cross_entropy(auxiliary, labels, smoothing))
    return loss


def zero_totals() -> Totals:
    """Sums over no example at all."""
    return {name: jnp.zeros((), jnp.float32) for name in ("loss", "correct", "correct5", "count")}


def totals(logits: jax.Array, labels: jax.Array, weight: jax.Array | None = None) -> Totals:
    """Weighted sums over a batch of loss, top-1 and top-5 hits, and examples.

    Args:
      logits: [b, classes].
      labels: int [b].
      weight: [b], 0 for padding; None: all 1.
    """
    weight = jnp.ones(labels.shape, jnp.float32) if weight is None else weight
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    classes = jnp.arange(logits.shape[-1])
    # Not `logits > own`: where either is nan that is false, and a diverged network would be right.
    better = jnp.sum(~(logits <= own) & (classes != labels[:, None]), axis=-1)
    # A tie counts as a miss only for classes that come first, as argmax would have it.
    tied = (logits == own) & (classes < labels[:, None])
    rank = better + jnp.sum(tied, axis=-1)
    return {
        "loss": jnp.sum(weight * cross_entropy(logits, labels)),
        "correct": jnp.sum(weight * (rank < 1)),
        "correct5": jnp.sum(weight * (rank < 5)),
        "count": jnp.sum(weight),
    }


def averages(sums: Mapping[str, jax.Array | float]) -> dict[str, float]:
    """Mean loss in nats, and accuracies in 0..1."""
    count = max(float(sums["count"]), 1.0)
    return {
        "loss": float(sums["loss"]) / count,
        "accuracy": float(sums["correct"]) / count,
        "top5": float(sums["correct5"]) / count,
    }
