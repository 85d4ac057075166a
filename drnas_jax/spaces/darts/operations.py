"""The operations of the DARTS space: their parameters, and what each of them computes on an edge.

An edge may also list `none`, which adds nothing to its node (DARTS, and S3 of arXiv 1909.09656), or
`noise` (S4, see `noise.py`). Neither has parameters, and the DARTS space itself does without them.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from drnas_jax.nn import norm
from drnas_jax.nn.stacked_params import (
    NORM_CHANNEL_AXES,
    ApplyContext,
    Arrays,
    ChannelAxes,
    Moments,
    StackedParams,
    Weight,
    scaled,
)
from drnas_jax.spaces.base import Edge

Array = jax.Array

INPUTS = 2  # input 0 is the output of the cell before the last, input 1 that of the last cell
NODES = 4  # they are numbered from INPUTS on
ALL_EDGES = NODES * INPUTS + NODES * (NODES - 1) // 2  # a supernet's cell has all of them


class Separable(NamedTuple):
    """A stack of layers ReLU, depthwise convolution, pointwise convolution, BatchNorm."""

    size: int
    layers: int
    dilation: int


POOLS = ("max_pool_3x3", "avg_pool_3x3")
CONVOLUTIONS = {
    "sep_conv_3x3": Separable(3, layers=2, dilation=1),
    "sep_conv_5x5": Separable(5, layers=2, dilation=1),
    "dil_conv_3x3": Separable(3, layers=1, dilation=2),
    "dil_conv_5x5": Separable(5, layers=1, dilation=2),
}
PRIMITIVES = (*POOLS, "skip_connect", *CONVOLUTIONS)
NOISE = "noise"


def stride_of(cell_type: str, source: int) -> int:
    """Returns the stride of the operations on an edge.

    Args:
      cell_type: `normal` or `reduce`.
      source: Number of the input or node that the edge leaves.
    """
    return 2 if cell_type == "reduce" and source < INPUTS else 1


def stacked_rows(cell_type: str, edges: Sequence[Edge], primitive: str) -> dict[int, int]:
    """Returns the row in a primitive's stacked arrays of each edge that has such arrays.

    `none` and `noise` have no arrays, and a skip connection has some only if it halves the size.
    """
    if primitive in ("none", NOISE):
        return {}
    numbers = [
        number
        for number, edge in enumerate(edges)
        if primitive in edge.primitives
        and (primitive != "skip_connect" or stride_of(cell_type, edge.source) == 2)
    ]
    return {number: row for row, number in enumerate(numbers)}


def stacked_params(
    primitive: str, leading: tuple[int, int], channels: int, affine: bool
) -> StackedParams:
    """Returns the module that holds a primitive's arrays.

    Args:
      primitive: Name of the operation.
      leading: Number of cells and number of rows.
      channels: Channels that go through the operation.
      affine: Whether BatchNorm has a scale and bias; that of a pool never has.
    """
    if primitive in POOLS:
        return StackedParams(leading, {}, {"": (channels,)}, False, name=primitive)
    if primitive == "skip_connect":  # the halves of its output come from different pixels
        half = channels // 2
        init = norm.uniform_fan_in(batch_axis=(0, 1, 2))
        weights = {"kernel": Weight(init, (2, channels, half))}
        return StackedParams(leading, weights, {"": (2, half)}, affine, name=primitive)
    kind, weights = CONVOLUTIONS[primitive], {}
    for layer in range(kind.layers):
        shape = (kind.size, kind.size, channels)
        weights[f"depthwise_{layer}"] = Weight(_depthwise_init, shape)
        init = norm.uniform_fan_in(batch_axis=(0, 1))
        weights[f"pointwise_{layer}"] = Weight(init, (channels, channels))
    norms = {f"_{layer}": (channels,) for layer in range(kind.layers)}
    return StackedParams(leading, weights, norms, affine, name=primitive)


def channel_axes(primitive: str) -> ChannelAxes:
    """Returns the labels of the channel axes of a primitive's arrays.

    A depthwise filter is copied with its input channel.
    """
    if primitive in POOLS:
        return NORM_CHANNEL_AXES
    if primitive == "skip_connect":  # both halves are copied alike
        return {"kernel": {-2: "in", -1: "out"}, **NORM_CHANNEL_AXES}
    layers = CONVOLUTIONS[primitive].layers
    between = ("in", *["mid"] * (layers - 1), "out")
    axes: dict[str, Mapping[int, str]] = {}
    for layer in range(layers):
        inputs, outputs = between[layer : layer + 2]
        axes[f"depthwise_{layer}"] = {-1: inputs}
        axes[f"pointwise_{layer}"] = {-2: inputs, -1: outputs}
        axes[f"mean_{layer}"] = axes[f"var_{layer}"] = {-1: outputs}
    return axes


def _depthwise_init(key: Array, shape: tuple[int, ...]) -> Array:
    """Initialises filters [..., k, k, c] uniformly within +-1/k, PyTorch's default."""
    bound = 1 / shape[-2]
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def begins_with_relu(name: str, stride: int) -> bool:
    """Returns whether an operation starts with a ReLU: all do but pools and the identity."""
    return name in CONVOLUTIONS or (name == "skip_connect" and stride == 2)


def pool(context: ApplyContext, name: str, x: Array, stride: int) -> Array:
    """Applies a pool without its BatchNorm."""
    if name == "max_pool_3x3":
        return context.backend.max_pool(x, 3, stride)
    return context.backend.avg_pool(x, stride)


def operate(
    context: ApplyContext, name: str, arrays: Arrays, x: Array, weight: Array | float, stride: int
) -> tuple[Array, Moments]:
    """Computes one operation on one edge, times its mixing weight.

    Args:
      context: Kernels, layout and mode.
      name: Name of the operation, but not `none`.
      arrays: The operation's arrays for this edge.
      x: Channels of the source that go through the operation, after the ReLU if
        `begins_with_relu`.
      weight: Mixing weight, a scalar.
      stride: 1 or 2.

    Returns:
      What the operation adds to the edge's node, and the moments of the batch.
    """
    backend = context.backend
    if name in POOLS:
        return context.normalise(pool(context, name, x, stride), arrays, weight=weight)
    if name == "skip_connect" and stride == 1:
        return scaled(x, weight), {}
    if name == "skip_connect":
        pixels = [x[:, i::2, i::2] for i in (0, 1)]
        halves = [context.apply(backend.pointwise, pixels[i], arrays["kernel"][i]) for i in (0, 1)]
        y = jnp.concatenate(halves, axis=backend.channel_axis)
        return context.normalise(y, arrays, weight=weight)
    kind = CONVOLUTIONS[name]
    all_moments: Moments = {}
    for layer in range(kind.layers):
        first, last = layer == 0, layer == kind.layers - 1
        x = x if first else jax.nn.relu(x)
        filters, layer_stride = arrays[f"depthwise_{layer}"], stride if first else 1
        x = context.apply(backend.depthwise, x, filters, layer_stride, kind.dilation)
        x = context.apply(backend.pointwise, x, arrays[f"pointwise_{layer}"])
        x, moments = context.normalise(x, arrays, f"_{layer}", weight if last else 1.0)
        all_moments |= moments
    return x, all_moments
