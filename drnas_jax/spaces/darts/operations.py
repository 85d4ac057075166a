"""The operations of the DARTS space: their parameters, and what each computes on one edge."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from drnas_jax.nn import norm
from drnas_jax.nn.banks import (
    NORM_CHANNEL_AXES,
    Arrays,
    Bank,
    ChannelAxes,
    Mode,
    Moments,
    Weight,
    scaled,
)

Array = jax.Array

INPUTS = 2  # of a cell: the cell before the last, and the last; its nodes are numbered after them
NODES = 4
ALL_EDGES = NODES * INPUTS + NODES * (NODES - 1) // 2  # of a supernet's cell


class Separable(NamedTuple):
    """What a convolution consists of: so many layers of ReLU-depthwise-pointwise-BatchNorm."""

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


class Edge(NamedTuple):
    """An edge of a cell.

    Attributes:
      node: where it leads, from 0.
      source: where it leaves: the cell's inputs first, then its nodes.
      operations: primitives that it mixes.
    """

    node: int
    source: int
    operations: tuple[str, ...]


def stride_of(cell_type: str, source: int) -> int:
    """Of the operations on an edge that leaves a source of a 'normal' or 'reduce' cell."""
    return 2 if cell_type == "reduce" and source < INPUTS else 1


def has_row(cell_type: str, source: int, primitive: str) -> bool:
    """Whether the operation has arrays: a skip that keeps the size has none."""
    return primitive != "skip_connect" or stride_of(cell_type, source) == 2


def bank_rows(cell_type: str, edges: Sequence[Edge], primitive: str) -> dict[int, int]:
    """The rows of a primitive's bank, by edge."""
    held = [
        i
        for i, edge in enumerate(edges)
        if primitive in edge.operations and has_row(cell_type, edge.source, primitive)
    ]
    return {edge: row for row, edge in enumerate(held)}


def make_bank(primitive: str, leading: tuple[int, int], channels: int, affine: bool) -> Bank:
    """The bank of a primitive, for (cells, edges). The BatchNorm of pools is never affine."""
    if primitive in POOLS:
        return Bank(leading, {}, {"": (channels,)}, False, name=primitive)
    if primitive == "skip_connect":  # the halves of its output come from different pixels
        half = channels // 2
        init = norm.uniform_fan_in(batch_axis=(0, 1, 2))
        weights = {"kernel": Weight(init, (2, channels, half))}
        return Bank(leading, weights, {"": (2, half)}, affine, name=primitive)
    kind, weights = CONVOLUTIONS[primitive], {}
    for layer in range(kind.layers):
        shape = (kind.size, kind.size, channels)
        weights[f"depthwise_{layer}"] = Weight(_depthwise_init, shape)
        init = norm.uniform_fan_in(batch_axis=(0, 1))
        weights[f"pointwise_{layer}"] = Weight(init, (channels, channels))
    norms = {f"_{layer}": (channels,) for layer in range(kind.layers)}
    return Bank(leading, weights, norms, affine, name=primitive)


def channel_axes(primitive: str) -> ChannelAxes:
    """The channel axes of a primitive's bank; a depthwise filter follows its input channel."""
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
    """PyTorch's default: uniform within +-1/size, for filters [..., size, size, c]."""
    bound = 1 / shape[-2]
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def begins_with_relu(name: str, stride: int) -> bool:
    """Whether an operation reads the activated node: all but pools and the identity."""
    return name in CONVOLUTIONS or (name == "skip_connect" and stride == 2)


def pool(mode: Mode, name: str, x: Array, stride: int) -> Array:
    """One of POOLS, without its BatchNorm."""
    if name == "max_pool_3x3":
        return mode.kernels.max_pool(x, 3, stride)
    return mode.kernels.avg_pool(x, stride)


def operate(
    mode: Mode, name: str, own: Arrays, x: Array, weight: Array | float, stride: int
) -> tuple[Array, Moments]:
    """One operation on one edge, times its mixing weight.

    Args:
      mode: how.
      name: a primitive.
      own: its arrays of this edge, in evaluation with the running statistics.
      x: the source node's channels for the operations; activated if `begins_with_relu`.
      weight: scalar.
      stride: 1 or 2.

    Returns:
      The term of the edge's sum, and the batch's moments.
    """
    kernels = mode.kernels
    if name in POOLS:
        return mode.normalise(pool(mode, name, x, stride), own, weight=weight)
    if name == "skip_connect" and stride == 1:
        return scaled(x, weight), {}
    if name == "skip_connect":
        pixels = [x[:, i::2, i::2] for i in (0, 1)]
        halves = [mode.apply(kernels.pointwise, pixels[i], own["kernel"][i]) for i in (0, 1)]
        y = jnp.concatenate(halves, axis=kernels.channel_axis)
        return mode.normalise(y, own, weight=weight)
    kind = CONVOLUTIONS[name]
    moments: Moments = {}
    for layer in range(kind.layers):
        first, last = layer == 0, layer == kind.layers - 1
        x = x if first else jax.nn.relu(x)
        own_stride = stride if first else 1
        x = mode.apply(kernels.depthwise, x, own[f"depthwise_{layer}"], own_stride, kind.dilation)
        x = mode.apply(kernels.pointwise, x, own[f"pointwise_{layer}"])
        x, own_moments = mode.normalise(x, own, f"_{layer}", weight if last else 1.0)
        moments |= own_moments
    return x, moments
