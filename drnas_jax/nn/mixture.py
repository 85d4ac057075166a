"""The operations of the DARTS space, on all edges that leave a node at once."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from drnas_jax.nn import norm
from drnas_jax.nn.kernels import Kernels
from drnas_jax.nn.operations import (
    NORM_CHANNEL_AXES,
    Bank,
    ChannelAxes,
    Groups,
    Normaliser,
    Part,
    Weight,
)

Array = jax.Array

INPUTS = 2  # of a cell: the cell before the last, and the last; its nodes are numbered after them
NODES = 4


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


def bank_groups(cell_type: str, edges: Sequence[Edge], primitive: str) -> Groups:
    """For each source node, the rows of the primitive's bank for the edges that leave it."""
    sources = [
        edge.source
        for edge in edges
        if primitive in edge.operations and has_row(cell_type, edge.source, primitive)
    ]
    return tuple(
        tuple(row for row, own in enumerate(sources) if own == source)
        for source in range(INPUTS + NODES - 1)
    )


def make_bank(primitive: str, groups: Groups, channels: int, affine: bool) -> Bank:
    """The bank of a primitive. The BatchNorm of pools is never affine."""
    if primitive in POOLS:
        return Bank(groups, {}, {"": (channels,)}, False, name=primitive)
    if primitive == "skip_connect":  # the halves of its output come from different pixels
        half = channels // 2
        init = norm.uniform_fan_in(batch_axis=(0, 1))
        weights = {"kernel": Weight(init, (2, channels, half))}
        return Bank(groups, weights, {"": (2, half)}, affine, name=primitive)
    kind, weights = CONVOLUTIONS[primitive], {}
    for layer in range(kind.layers):
        shape = (kind.size, kind.size, channels)
        weights[f"depthwise_{layer}"] = Weight(_depthwise_init, shape)
        init = norm.uniform_fan_in(batch_axis=(0,))
        weights[f"pointwise_{layer}"] = Weight(init, (channels, channels))
    norms = {f"_{layer}": (channels,) for layer in range(kind.layers)}
    return Bank(groups, weights, norms, affine, name=primitive)


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
    """PyTorch's default: uniform within +-1/size, for filters [edges, size, size, c]."""
    bound = 1 / shape[1]
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The mixed operations of a cell, within one call of it.

    Attributes:
      cell_type: 'normal' or 'reduce'.
      edges: of the cell.
      banks: by primitive.
      kernels: the backend's arithmetic.
      normalise: the cell's BatchNorm.
      mix: mixing weights [e, o].
      keep: drop path, a factor of each example and edge [b, e]; None: all are kept.
    """

    cell_type: str
    edges: tuple[Edge, ...]
    banks: Mapping[str, Bank]
    kernels: Kernels
    normalise: Normaliser
    mix: Array
    keep: Array | None

    def __call__(self, node: Array, source: int) -> list[tuple[int, Array]]:
        """Runs a node through all operations of the edges that leave it.

        Args:
          node: [b, h, w, c], the channels for the operations.
          source: its number.

        Returns:
          Weighted terms, each with the number of its edge: [b, h', w', c].
        """
        active = jax.nn.relu(node)
        terms = self._pooled(node, source)
        if stride_of(self.cell_type, source) == 2:
            terms += self._halved(active, source)
        else:
            terms += self._identity(node, source)
        return terms + self._convolved(active, source)

    def _pooled(self, node: Array, source: int) -> list[tuple[int, Array]]:
        names, stride = self._present(POOLS, source), stride_of(self.cell_type, source)
        if not names:
            return []
        pooled = [
            self.kernels.max_pool(node, 3, stride)
            if name == "max_pool_3x3"
            else self.kernels.avg_pool(node, stride)
            for name in names
        ]
        y, parts = jnp.stack(pooled, axis=3), self._parts(names, source)
        factors = self.normalise.factors(y, parts, self._weights(names, source), shared=True)
        ends = np.cumsum([len(part.rows) for part in parts])[:-1]
        rows = zip(pooled, *(jnp.split(factor, ends) for factor in factors), strict=True)
        y = jnp.concatenate([x[..., None, :] * scale + bias for x, scale, bias in rows], axis=3)
        return self._terms(self._dropped(y, names, source), names, source)

    def _identity(self, node: Array, source: int) -> list[tuple[int, Array]]:
        names = self._present(("skip_connect",), source)
        if not names:
            return []
        y = node[..., None, :] * self._weights(names, source)[:, None].astype(node.dtype)
        return self._terms(y, names, source)  # drop path leaves it alone, so that a path remains

    def _halved(self, active: Array, source: int) -> list[tuple[int, Array]]:
        names = self._present(("skip_connect",), source)
        if not names:
            return []
        parts = self._parts(names, source)
        kernel = parts[0].bank.rows("kernel", source)  # [rows, 2, c, c / 2]
        wide = jnp.transpose(kernel, (1, 2, 0, 3)).reshape(2, active.shape[-1], -1)
        pixels = (active[:, ::2, ::2], active[:, 1::2, 1::2])
        halves = [x @ matrix for x, matrix in zip(pixels, wide, strict=True)]
        shape = (*halves[0].shape[:3], len(kernel), -1)
        y = jnp.concatenate([half.reshape(shape) for half in halves], axis=-1)
        y = self.normalise(y, parts, self._weights(names, source))
        return self._terms(self._dropped(y, names, source), names, source)

    def _convolved(self, active: Array, source: int) -> list[tuple[int, Array]]:
        names, stride = self._present(CONVOLUTIONS, source), stride_of(self.cell_type, source)
        if not names:
            return []
        spread = {}  # by primitive, after the depthwise convolution
        for name in names:
            filters = self.banks[name].rows("depthwise_0", source)
            dilation = CONVOLUTIONS[name].dilation
            spread[name] = self.kernels.depthwise(active, filters, stride, dilation)
        twice = [name for name in names if CONVOLUTIONS[name].layers == 2]
        if twice:
            parts = self._parts(twice, source, layer=0)
            between = jax.nn.relu(self.normalise(self._pointwise(spread, parts), parts))
            ends = np.cumsum([len(part.rows) for part in parts])[:-1]
            for name, y in zip(twice, jnp.split(between, ends, axis=3), strict=True):
                spread[name] = self._own_depthwise(y, self.banks[name].rows("depthwise_1", source))
        parts = self._parts(names, source, layer=-1)
        y = self._pointwise(spread, parts)
        y = self.normalise(y, parts, self._weights(names, source))
        return self._terms(self._dropped(y, names, source), names, source)

    def _pointwise(self, spread: Mapping[str, Array], parts: Sequence[Part]) -> Array:
        y = jnp.concatenate([spread[str(part.bank.name)] for part in parts], axis=3)
        matrices = [part.bank.rows("pointwise" + part.suffix, part.group) for part in parts]
        return self.kernels.pointwise(y, jnp.concatenate(matrices))

    def _own_depthwise(self, y: Array, filters: Array) -> Array:
        """Depthwise convolution of rows that differ: they lie side by side as channels."""
        size = filters.shape[1]
        wide = jnp.moveaxis(filters, 0, 2).reshape(1, size, size, -1)
        return self.kernels.depthwise(y.reshape(*y.shape[:3], -1), wide, 1, 1).reshape(y.shape)

    def _present(self, names: Sequence[str] | Mapping, source: int) -> list[str]:
        return [name for name in names if self._leaving(name, source)]

    def _leaving(self, name: str, source: int) -> list[int]:
        return [
            i
            for i, edge in enumerate(self.edges)
            if edge.source == source and name in edge.operations
        ]

    def _rows(self, names: Sequence[str], source: int) -> list[tuple[int, str]]:
        """Edge and primitive of each row of a stack of primitives."""
        return [(i, name) for name in names for i in self._leaving(name, source)]

    def _parts(self, names: Sequence[str], source: int, layer: int | None = None) -> list[Part]:
        parts = []
        for name in names:
            suffix = "" if layer is None else f"_{range(CONVOLUTIONS[name].layers)[layer]}"
            parts.append(Part(self.banks[name], source, suffix))
        return parts

    def _weights(self, names: Sequence[str], source: int) -> Array:
        """Mixing weights of each row."""
        rows = self._rows(names, source)
        columns = [self.edges[i].operations.index(name) for i, name in rows]
        return self.mix[np.array([i for i, _ in rows]), np.array(columns)]

    def _dropped(self, y: Array, names: Sequence[str], source: int) -> Array:
        if self.keep is None:
            return y
        edges = np.array([i for i, _ in self._rows(names, source)])
        return y * self.keep[:, None, None, edges, None].astype(y.dtype)

    def _terms(self, y: Array, names: Sequence[str], source: int) -> list[tuple[int, Array]]:
        """Splits [b, h, w, rows, c] by rows, each with the number of its edge."""
        rows = self._rows(names, source)
        split = jnp.split(y, len(rows), axis=3)
        return [(i, jnp.squeeze(term, 3)) for (i, _), term in zip(rows, split, strict=True)]
