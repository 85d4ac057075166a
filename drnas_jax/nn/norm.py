"""Batch normalisation as in PyTorch, and PyTorch's initialisation of convolutions.

The running variance is the unbiased one. BatchNorm of Flax keeps the biased one.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from drnas_jax.nn.backend import KEPT

Array = jax.Array

MOMENTUM = 0.9  # weight of the old running average; PyTorch counts the new one: 0.1
EPSILON = 1e-5


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def normalise_batch(
    x: Array, scale: Array, axis: int, axis_name: str | None
) -> tuple[Array, tuple[Array, Array]]:
    """Normalises each channel by the statistics of the batch, and multiplies it by a scale.

    With m and v the mean and the biased variance of a channel over all other axes:

      y = scale * (x - m) / sqrt(v + EPSILON)

    The gradient flows through m and v; it needs two sums over the data.

    Args:
      x: Values with the channels on one axis.
      scale: Scale of each channel, [c].
      axis: Axis of the channels.
      axis_name: Mesh axis over which the statistics are averaged too, or None.

    Returns:
      The normalised values, shaped like x, and the mean and the unbiased variance, float32 [c],
      through which no gradient flows.
    """
    return _normalise_forward(x, scale, axis, axis_name)[0]


def _normalise_forward(
    x: Array, scale: Array, axis: int, axis_name: str | None
) -> tuple[tuple[Array, tuple[Array, Array]], tuple[Array, ...]]:
    moments = _moments(x, axis, axis_name)
    mean, variance = (checkpoint_name(values, KEPT) for values in moments)
    rate = lax.rsqrt(variance + EPSILON)
    factor = (scale * rate).astype(x.dtype)
    y = (x - _along(mean.astype(x.dtype), axis, x)) * _along(factor, axis, x)
    count = _count(x, axis) * (1 if axis_name is None else lax.axis_size(axis_name))
    return (y, (mean, unbiased(variance, count))), (x, scale, mean, rate)


def _normalise_backward(
    axis: int, axis_name: str | None, residuals: tuple[Array, ...], cotangents: tuple[Array, ...]
) -> tuple[Array, Array]:
    x, scale, mean, rate = residuals
    g = cotangents[0]
    normed = (x - _along(mean.astype(x.dtype), axis, x)) * _along(rate.astype(x.dtype), axis, x)
    total, product = _sums((g.astype(mean.dtype), (g * normed).astype(mean.dtype)), axis)
    share, slope = _pmean((total / _count(x, axis), product / _count(x, axis)), axis_name)
    centred = g - _along(share.astype(x.dtype), axis, x)
    centred -= normed * _along(slope.astype(x.dtype), axis, x)
    return centred * _along((scale * rate).astype(x.dtype), axis, x), product.astype(scale.dtype)


normalise_batch.defvjp(_normalise_forward, _normalise_backward)


def _other_axes(x: Array, axis: int) -> tuple[int, ...]:
    """Returns all axes except that of the channels."""
    return tuple(i for i in range(x.ndim) if i != axis % x.ndim)


def _along(values: Array, axis: int, x: Array) -> Array:
    """Reshapes channel values [c] so that they broadcast against x."""
    return lax.expand_dims(values, _other_axes(x, axis))


def _count(x: Array, axis: int) -> int:
    """Returns the number of values per channel."""
    return x.size // x.shape[axis]


def _moments(x: Array, axis: int, axis_name: str | None) -> tuple[Array, Array]:
    """Computes mean and biased variance of each channel in one pass over the data.

    Both are taken of the deviations from the mean of the middle row. Without that, the mean of
    squares minus the squared mean would lose all its digits if the mean is large.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    first, *_ = other_axes = _other_axes(x, axis)
    middle = lax.slice_in_dim(wide, x.shape[first] // 2, x.shape[first] // 2 + 1, axis=first)
    origin = _pmean(jnp.mean(middle, other_axes), axis_name)
    deviation = wide - _along(origin, axis, x)
    sums = _sums((deviation, jnp.square(deviation)), axis)
    mean, square = _pmean([total / _count(x, axis) for total in sums], axis_name)
    return origin + mean, jnp.maximum(square - jnp.square(mean), 0)


def _sums(values: Sequence[Array], axis: int) -> Sequence[Array]:
    """Sums several arrays over all axes except the channels, in one pass.

    It sums each row of pixels first: a sum of sums has less rounding error than one long sum.
    """
    zeros = [np.zeros((), value.dtype) for value in values]

    def add(left: Sequence[Array], right: Sequence[Array]) -> list[Array]:
        return [a + b for a, b in zip(left, right, strict=True)]

    first, *rest = _other_axes(values[0], axis)
    if not rest:
        return lax.reduce(list(values), zeros, add, (first,))
    sums = lax.reduce(list(values), zeros, add, rest)
    return lax.reduce(sums, zeros, add, (0 if first < axis % values[0].ndim else 1,))


def _pmean(values: Any, axis_name: str | None) -> Any:
    """Averages values over a mesh axis, if there is one."""
    return values if axis_name is None else lax.pmean(values, axis_name)


def running_average(old: Array, new: Array) -> Array:
    """Updates a running average with a new batch; no gradient flows into it.

    Args:
      old: Running average so far.
      new: Statistics of the batch, of the same shape.
    """
    return MOMENTUM * old + (1 - MOMENTUM) * lax.stop_gradient(new)


def unbiased(variance: Array, count: int) -> Array:
    """Applies Bessel's correction to a biased variance.

    Args:
      variance: Biased variance.
      count: Number of values that it is computed from. With 1 the variance stays zero.
    """
    return variance * (count / max(count - 1, 1))


class BatchNorm(nn.Module):
    """Batch normalisation with a scale and a bias, over all axes except the channels.

    Attributes:
      axis_name: Mesh axis over which the statistics of the batch are synchronised, or None.
      axis: Axis of the channels.
    """

    axis_name: str | None = None
    axis: int = -1

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Normalises x by the statistics of the batch in training, else by the running averages.

        Args:
          x: Values with the channels on `axis`.
          train: Whether to use the batch's statistics, and to update the running averages.
        """
        features = (x.shape[self.axis],)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        running_var = self.variable("batch_stats", "var", jnp.ones, features)
        scale = self.param("scale", nn.initializers.ones, features)
        bias = self.param("bias", nn.initializers.zeros, features)
        if not train:
            factor = scale * lax.rsqrt(running_var.value + EPSILON)
            offset = bias - running_mean.value * factor
            return x * _along(factor.astype(x.dtype), self.axis, x) + _along(
                offset.astype(x.dtype), self.axis, x
            )
        axis_name = None if self.is_initializing() else self.axis_name
        y, (mean, var) = normalise_batch(x, scale, self.axis, axis_name)
        if not self.is_initializing():
            running_mean.value = running_average(running_mean.value, mean)
            running_var.value = running_average(running_var.value, var)
        return y + _along(bias.astype(x.dtype), self.axis, x)


def uniform_fan_in(batch_axis: tuple[int, ...] = ()) -> Callable[..., Array]:
    """Creates PyTorch's default initialiser of convolutions: uniform within +-1/sqrt(fan_in).

    Args:
      batch_axis: Axes that stack several kernels, which do not count for fan_in.
    """
    return nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=batch_axis)
