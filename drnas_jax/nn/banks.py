"""Parameters of a cell: the arrays of one primitive lie stacked in a bank.

A bank holds one primitive for the edges of a cell that keep it: every array has a leading axis of
edges (and, where equal cells are scanned, one of cells before it). Pruning removes rows of banks,
widening lengthens their channel axes, and neither needs to know what the primitive computes.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from drnas_jax.nn import norm
from drnas_jax.nn.backend import KEPT, Kernels

Array = jax.Array
Moments = dict[str, tuple[Array, Array]]  # by BatchNorm's suffix: mean and unbiased variance
AllMoments = dict[str, Moments]  # by primitive
Arrays = Mapping[str, Array]
Banks = Mapping[str, Arrays]  # by primitive
ChannelAxes = Mapping[str, Mapping[int, str]]

# Which axes of a bank's arrays run over channels. Axes with the same label are copied alike when
# partial channels are widened: a copied output keeps its own statistics.
NORM_CHANNEL_AXES: ChannelAxes = {"mean": {-1: "out"}, "var": {-1: "out"}}
CONV_CHANNEL_AXES: ChannelAxes = {"kernel": {-2: "in", -1: "out"}, **NORM_CHANNEL_AXES}


class Weight(NamedTuple):
    """A kind of array in a bank: its initialiser, and its shape for one edge."""

    init: Callable[..., Array]
    shape: tuple[int, ...]


class Bank(nn.Module):
    """The arrays of one primitive.

    Attributes:
      leading: the arrays' first axes: (edges that have the primitive), or cells before.
      weights: by name.
      norms: of each BatchNorm the suffix of its arrays' names, and the shape of its channels.
      affine: BatchNorm has a scale and bias (networks), or not (supernets).
    """

    leading: tuple[int, ...]
    weights: Mapping[str, Weight]
    norms: Mapping[str, tuple[int, ...]]
    affine: bool

    def setup(self) -> None:
        """Defines the arrays."""
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        weights = {name: Weight(*weight) for name, weight in self.weights.items()}
        statistics = {}
        for suffix, shape in self.norms.items():
            for name, fill in (("mean", jnp.zeros), ("var", jnp.ones)):
                leaf = name + suffix
                statistics[leaf] = self.variable("batch_stats", leaf, fill, (*self.leading, *shape))
            if self.affine:
                weights |= {"scale" + suffix: Weight(ones, shape)}
                weights |= {"bias" + suffix: Weight(zeros, shape)}
        self.statistics = statistics
        self.params = {
            name: self.param(name, init, (*self.leading, *shape))
            for name, (init, shape) in weights.items()
        }

    def arrays(self, train: bool) -> dict[str, Array]:
        """By name, [*leading, ...]: the weights, and in evaluation the running statistics."""
        statistics = {} if train else self.statistics
        return {**self.params, **{name: own.value for name, own in statistics.items()}}

    def record(self, moments: Moments) -> None:
        """Updates the running averages by a batch's moments of all rows, by suffix."""
        if self.is_initializing():  # they exist from now on, and keep their first values
            return
        for suffix, pair in moments.items():
            for name, new in zip(("mean", "var"), pair, strict=True):
                variable = self.statistics[name + suffix]
                old = variable.value
                variable.value = norm.running_average(old, new.reshape(old.shape))


class Recorder:
    """Collects the moments of banks' rows from wherever they are computed."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], list[tuple[Sequence[int], Array, Array]]] = {}

    def add(self, name: str, suffix: str, rows: Sequence[int], mean: Array, var: Array) -> None:
        """Mean and variance of some rows of a bank, [rows * c] or [rows, c]."""
        shape = (len(rows), -1)
        found = (rows, mean.reshape(shape), var.reshape(shape))
        self._seen.setdefault((name, suffix), []).append(found)

    def moments(self) -> AllMoments:
        """By bank and suffix: mean and variance of all its rows in order, [edges, c]."""
        all_moments: AllMoments = {}
        for (name, suffix), parts in self._seen.items():
            rows, means, variances = zip(*parts, strict=True)
            order = np.argsort(np.concatenate(rows))
            pair = (jnp.concatenate(means)[order], jnp.concatenate(variances)[order])
            all_moments.setdefault(name, {})[suffix] = pair
        return all_moments


@dataclasses.dataclass(frozen=True)
class Mode:
    """How operations run.

    Attributes:
      kernels: the backend's arithmetic and layout.
      train: normalise by the batch, and not by running averages.
      axis_name: mesh axis over which batch statistics are synchronised, or None.
      learn: see Kernels.
    """

    kernels: Kernels
    train: bool
    axis_name: str | None
    learn: Array | None = None

    def apply(
        self, operation: Callable[..., Array], x: Array, weights: Array, *static: int
    ) -> Array:
        """One of the kernels on images, in their dtype: operation(x, weights, *static, learn)."""
        y = operation(x, weights.astype(x.dtype), *static, self.learn)
        return checkpoint_name(y, KEPT)

    def normalise(
        self, x: Array, own: Arrays, suffix: str = "", weight: Array | float = 1.0
    ) -> tuple[Array, Moments]:
        """BatchNorm times a weight.

        Args:
          x: images.
          own: the BatchNorm's arrays, those that it has: mean, var, scale, bias + suffix; of any
            shape with as many values as channels.
          suffix: of their names.
          weight: a scalar or [c], folded into the normalisation.

        Returns:
          The same shape; and the batch's moments, or nothing in evaluation.
        """
        axis = self.kernels.channel_axis
        scale = weight * own.get("scale" + suffix, jnp.ones(x.shape[axis])).reshape(-1)
        bias = weight * own["bias" + suffix].reshape(-1) if "bias" + suffix in own else None
        moments: Moments = {}
        if self.train:
            x, moments[suffix] = norm.normalise_batch(x, scale, axis, self.axis_name)
        else:
            scale = scale * lax.rsqrt(own["var" + suffix].reshape(-1) + norm.EPSILON)
            offset = -own["mean" + suffix].reshape(-1) * scale
            bias = offset if bias is None else bias + offset
            x = x * self.kernels.per_channel(scale.astype(x.dtype))
        if bias is not None:
            x = x + self.kernels.per_channel(bias.astype(x.dtype))
        return x, moments


def scaled(x: Array, weight: Array | float) -> Array:
    """x times a mixing weight, whose gradient is a sum in float32 at least."""
    return (x.astype(jnp.promote_types(x.dtype, jnp.float32)) * weight).astype(x.dtype)


def channel_shuffle(x: Array, groups: int, axis: int = -1) -> Array:
    """Interleaves `groups` equal runs of channels, which lie on an axis (as PC-DARTS does)."""
    if groups == 1:
        return x
    axis %= x.ndim
    grouped = x.reshape(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])
    return jnp.swapaxes(grouped, axis, axis + 1).reshape(x.shape)
