"""Batch normalisation as PyTorch does it: running averages of the unbiased variance."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

MOMENTUM = 0.9  # of the running averages; PyTorch calls it 0.1
EPSILON = 1e-5


def batch_moments(x: Array, axis_name: str | None) -> tuple[Array, Array, int]:
    """Mean and biased variance of each channel, and over how many values.

    Args:
      x: [..., c]; everything but the last axis is averaged.
      axis_name: also average over this mesh axis (synchronised statistics), or None.
    """

    def average(values: Array) -> Array:
        values = jnp.mean(values, tuple(range(x.ndim - 1)))
        return values if axis_name is None else lax.pmean(values, axis_name)

    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = average(x)
    # Not the mean of squares less the squared mean: that cancels where the mean is large.
    variance = average(jnp.square(x - mean))
    count = math.prod(x.shape[:-1]) * (1 if axis_name is None else lax.axis_size(axis_name))
    return mean, variance, count


def running_average(old: Array, new: Array) -> Array:
    """The running average after one more batch; no gradient flows into it."""
    return MOMENTUM * old + (1 - MOMENTUM) * lax.stop_gradient(new)


def unbiased(variance: Array, count: int) -> Array:
    """Bessel's correction. A single value keeps its (zero) variance."""
    return variance * (count / max(count - 1, 1))


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last.

    Attributes:
      affine: with a learned scale and bias.
      axis_name: mesh axis over which batch statistics are synchronised, or None.
    """

    affine: bool = True
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """x [..., c] -> the same shape; in training by the batch's statistics, which it records."""
        features = (x.shape[-1],)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        running_var = self.variable("batch_stats", "var", jnp.ones, features)
        mean, var = running_mean.value, running_var.value
        if train:
            mean, var, count = batch_moments(x, None if self.is_initializing() else self.axis_name)
            if not self.is_initializing():
                running_mean.value = running_average(running_mean.value, mean)
                running_var.value = running_average(running_var.value, unbiased(var, count))
        scale = lax.rsqrt(var + EPSILON)
        bias = -mean * scale
        if self.affine:
            gamma = self.param("scale", nn.initializers.ones, features)
            beta = self.param("bias", nn.initializers.zeros, features)
            scale, bias = scale * gamma, bias * gamma + beta
        return x * scale.astype(x.dtype) + bias.astype(x.dtype)


def uniform_fan_in(batch_axis: tuple[int, ...] = ()) -> Callable[..., Array]:
    """PyTorch's default initialisation of convolutions: uniform within +-1/sqrt(fan_in)."""
    return nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=batch_axis)
