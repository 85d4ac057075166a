"""Operations of many edges at once: the parameters of one primitive lie stacked in a bank.

A bank holds one primitive for the edges of a cell that keep it: every array has a leading axis of
edges (and, where equal cells are scanned, one of cells before it). Pruning removes rows of banks,
widening lengthens their channel axes, and neither needs to know what the primitive computes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from drnas_jax.nn import norm
from drnas_jax.nn.kernels import Kernels

Array = jax.Array

# Which axes of a bank's arrays run over channels. Axes with the same label are copied alike when
# partial channels are widened: a copied output keeps its own statistics.
CONV_CHANNEL_AXES = {
    "kernel": {-2: "in", -1: "out"},
    "mean": {-1: "out"},
    "var": {-1: "out"},
}


class ConvBank(nn.Module):
    """(ReLU-)Conv-BatchNorm on several edges; the caller applies the ReLU its edges share.

    Attributes:
      edges: rows of the bank.
      size: side of the filter in pixels.
      kernels: the backend's arithmetic.
      affine: BatchNorm has a scale and bias (networks), or not (supernets).
      axis_name: mesh axis over which batch statistics are synchronised, or None.
    """

    edges: int
    size: int
    kernels: Kernels
    affine: bool
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Array, rows: tuple[int, ...], mix: Array, train: bool) -> Array:
        """Runs x through some rows, each normalised and times its mixing weight.

        Args:
          x: [b, h, w, c], the activated source node of these rows.
          rows: which rows of the bank.
          mix: [rows], their mixing weights; folded into the normalisation's scale.
          train: normalise by the batch, and record its statistics.

        Returns:
          [b, h, w, rows, c].
        """
        features = x.shape[-1]
        taps = (self.edges, self.size, self.size, features, features)
        kernel = self.param("kernel", norm.uniform_fan_in(batch_axis=(0,)), taps)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (self.edges, features))
        running_var = self.variable("batch_stats", "var", jnp.ones, (self.edges, features))
        chosen = jnp.array(rows)
        # All rows are one wider convolution, since they share its input.
        wide = jnp.moveaxis(kernel[chosen], 0, 3).reshape(*taps[1:4], len(rows) * features)
        y = self.kernels.conv(x, wide)
        mean, var = running_mean.value[chosen], running_var.value[chosen]
        if train:
            axis_name = None if self.is_initializing() else self.axis_name
            mean, var, count = norm.batch_moments(y, axis_name)
            mean, var = mean.reshape(len(rows), -1), var.reshape(len(rows), -1)
            if not self.is_initializing():
                unbiased = norm.unbiased(var, count)
                for variable, new in ((running_mean, mean), (running_var, unbiased)):
                    old = jnp.asarray(variable.value)  # numpy after pruning, outside jit
                    average = norm.running_average(old[chosen], new)
                    variable.value = old.at[chosen].set(average)
        scale = mix[:, None] * lax.rsqrt(var + norm.EPSILON)
        bias = -mean * scale
        if self.affine:
            gamma = self.param("scale", nn.initializers.ones, (self.edges, features))[chosen]
            beta = self.param("bias", nn.initializers.zeros, (self.edges, features))[chosen]
            scale, bias = scale * gamma, bias * gamma + mix[:, None] * beta
        scale, bias = scale.reshape(-1).astype(y.dtype), bias.reshape(-1).astype(y.dtype)
        return (y * scale + bias).reshape(*y.shape[:-1], len(rows), features)


def channel_shuffle(x: Array, groups: int) -> Array:
    """Interleaves `groups` equal runs of channels: [..., c] -> [..., c] (as PC-DARTS does)."""
    if groups == 1:
        return x
    grouped = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    return jnp.swapaxes(grouped, -1, -2).reshape(x.shape)
