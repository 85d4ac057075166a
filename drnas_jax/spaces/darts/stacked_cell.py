"""A DARTS cell for accelerators: all edges that leave a node run side by side, as channels.

The few channels of one edge would leave most of a vector or matrix unit idle, and every operation
takes time to launch and to compile. So the operations of these edges are computed together, see
`block_sums.py`. Images are [b, h, w, c].
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from drnas_jax.nn.stacked_params import (
    AllMoments,
    ApplyContext,
    MomentRecorder,
    PrimitiveArrays,
    channel_shuffle,
)
from drnas_jax.spaces.base import Edge
from drnas_jax.spaces.darts.block_sums import weighted_sums
from drnas_jax.spaces.darts.edge_blocks import EdgeBlock
from drnas_jax.spaces.darts.operations import ALL_EDGES, INPUTS, NODES

Array = jax.Array

_LOOP = tuple((source,) for source in range(INPUTS, INPUTS + NODES - 1))  # steps over the nodes


def cell_nodes(
    context: ApplyContext,
    cell_type: str,
    edges: tuple[Edge, ...],
    inputs: Sequence[Array],
    partial_channels: int,
    arrays: PrimitiveArrays,
    mix: Array,
    factors: Array | None,
    noise: Array | None,
) -> tuple[list[Array], AllMoments]:
    """Computes the nodes of a cell: first the edges from its inputs, then those from each node.

    Args:
      context: Kernels, layout and mode.
      cell_type: `normal` or `reduce`.
      edges: Edges of the cell.
      inputs: Both inputs [b, h, w, c], already as wide as a node.
      partial_channels: K.
      arrays: Stacked arrays [rows, ...] of each primitive.
      mix: Mixing weights [e, o].
      factors: Drop path's factor of each example and edge, [b, e]; None if all paths are kept.
      noise: What the operation `noise` adds to each node, [NODES, b, h', w', c], or None.

    Returns:
      All nodes [b, h', w', c], and the moments of the batch.
    """
    shared = context.train and factors is None
    recorder = MomentRecorder()
    cell = _Cell(
        context, cell_type, edges, partial_channels, shared, arrays, mix, factors, recorder
    )
    width = inputs[0].shape[-1] // partial_channels
    first = cell.block((tuple(range(INPUTS)),))
    selected = cell.run_block(first, [x[..., :width] for x in inputs], NODES)
    if noise is not None:
        selected = selected + jnp.concatenate(list(noise), axis=-1)
    bypass = functools.reduce(
        jnp.add, (_bypass(context, first.stride, x[..., width:]) for x in inputs)
    )
    loops = len(edges) == ALL_EDGES and factors is None and cell.block(_LOOP).names
    nodes_of = _looped_nodes if loops else _unrolled_nodes
    nodes, last = nodes_of(cell, _NextNodes(selected, bypass, width))
    return [*nodes, last.node(partial_channels)], recorder.moments()


class _NextNodes(NamedTuple):
    """Sums over the edges that were computed so far, for the nodes that come next.

    Attributes:
      selected: Sums over the channels that go through operations, [b, h, w, nodes * width]; the
        next node comes first.
      bypass: Sum over the channels that bypass the operations, [b, h, w, C - width].
      width: Number of channels of a node that go through operations.
    """

    selected: Array
    bypass: Array
    width: int

    def node(self, partial_channels: int) -> Array:
        """Returns the next node, whose edges are all computed."""
        whole = jnp.concatenate([self.selected[..., : self.width], self.bypass], axis=-1)
        return channel_shuffle(whole, partial_channels)

    def after(self, node: Array, weighted: Array) -> "_NextNodes":
        """Returns the sums once the edges that leave the next node are added.

        Args:
          node: The next node.
          weighted: Weighted sums over its edges, shaped like `selected` without one node.
        """
        width = self.width
        selected = jnp.pad(self.selected[..., width:] + weighted, ((0, 0),) * 3 + ((0, width),))
        return _NextNodes(selected, self.bypass + node[..., width:], width)


class _Cell(NamedTuple):
    """The arguments of `cell_nodes`, `EdgeBlock.shared`, and what records the moments."""

    context: ApplyContext
    cell_type: str
    edges: tuple[Edge, ...]
    partial_channels: int
    shared: bool
    arrays: PrimitiveArrays
    mix: Array
    factors: Array | None
    recorder: MomentRecorder

    def block(self, steps: tuple[tuple[int, ...], ...]) -> EdgeBlock:
        """Returns the block of the edges that leave these sources."""
        return EdgeBlock(self.cell_type, self.edges, steps, self.shared)

    def run_block(self, block: EdgeBlock, nodes: Sequence[Array], targets: int) -> Array:
        """Computes the weighted sums of a block with one step and records its moments."""
        if not block.names:  # all these edges keep only `none` or `noise`
            x = nodes[0][:, :: block.stride, :: block.stride]
            return jnp.zeros((*x.shape[:3], targets * x.shape[3]), x.dtype)
        arrays = jax.tree.map(lambda array: array[0], block.arrays(self.arrays))
        weights = block.weights(self.mix, targets)[0]
        factors = None if self.factors is None else block.path_factors(self.factors)
        weighted, moments = weighted_sums(self.context, block, nodes, arrays, weights, factors)
        block.record(jax.tree.map(lambda values: values[None], moments), self.recorder)
        return weighted


def _looped_nodes(cell: _Cell, sums: _NextNodes) -> tuple[list[Array], _NextNodes]:
    """Computes all nodes but the last in one loop.

    The loop is compiled once; for that its steps compute a few rows of weight 0.
    """
    width = sums.width
    block = cell.block(_LOOP)

    def step(carry: tuple[Array, Array], inputs: tuple[PrimitiveArrays, Array]) -> Any:
        sums = _NextNodes(*carry, width)
        node = sums.node(cell.partial_channels)
        weighted, moments = weighted_sums(
            cell.context, block, [node[..., :width]], *inputs, factors=None
        )
        after = sums.after(node, weighted)
        return (after.selected, after.bypass), (node, moments)

    steps = (block.arrays(cell.arrays), block.weights(cell.mix, NODES - 1))
    carry, (nodes, moments) = lax.scan(step, (sums.selected, sums.bypass), steps)
    block.record(moments, cell.recorder)
    return list(nodes), _NextNodes(*carry, width)


def _unrolled_nodes(cell: _Cell, sums: _NextNodes) -> tuple[list[Array], _NextNodes]:
    """Computes all nodes but the last one after another, and only the rows that are needed."""
    nodes, width = [], sums.width
    for source in range(INPUTS, INPUTS + NODES - 1):
        node, block = sums.node(cell.partial_channels), cell.block(((source,),))
        sums = sums.after(node, cell.run_block(block, [node[..., :width]], NODES - 1))
        nodes.append(node)
    return nodes, sums


def _bypass(context: ApplyContext, stride: int, x: Array) -> Array:
    """Returns the channels that bypass the operations, at the size of the nodes."""
    pooled = stride == 2 and x.shape[-1]
    return context.backend.max_pool(x, 2, 2) if pooled else x[:, ::stride, ::stride]
