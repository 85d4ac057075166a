"""A DARTS cell for CPUs, which is one loop over its edges, or two. Images are [c, h, w, b]."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from drnas_jax.nn import weight_gradients
from drnas_jax.nn.stacked_params import AllMoments, ApplyContext, PrimitiveArrays
from drnas_jax.spaces.base import Edge
from drnas_jax.spaces.darts.edge_loop import nodes_in_order, sums_of_inputs
from drnas_jax.spaces.darts.edge_sums import NORMS, EdgeLoop, PrimitiveRows, Values
from drnas_jax.spaces.darts.operations import (
    CONVOLUTIONS,
    INPUTS,
    NODES,
    PRIMITIVES,
    stacked_rows,
    stride_of,
)

Array = jax.Array


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
    """Computes the nodes of a cell.

    Args:
      context: Kernels, layout and mode.
      cell_type: `normal` or `reduce`.
      edges: Edges with the operations that they keep.
      inputs: Both inputs [C, h, w, b], already as wide as a node.
      partial_channels: K.
      arrays: Stacked arrays [rows, ...] of each primitive.
      mix: Mixing weights [e, o].
      factors: Drop path's factor of each example and edge, [b, e], which has no gradient; None if
        all paths are kept.
      noise: What the operation `noise` adds to each node, [NODES, c, h', w', b], or None.

    Returns:
      All nodes [C, h', w', b], and the moments of the batch.
    """
    width = len(inputs[0]) // partial_channels
    selected = jnp.stack([x[:width] for x in inputs])
    bypass, halving = [x[width:] for x in inputs], stride_of(cell_type, 0) == 2
    in_order = sorted(range(len(edges)), key=lambda i: edges[i].target)
    outer = [i for i in in_order if halving and edges[i].source < INPUTS]
    inner = [i for i in in_order if i not in outer]
    sums = jnp.zeros((NODES, *selected.shape[1:]), selected.dtype)
    moments = []

    def loop_and_values(chosen: list[int], first: int) -> tuple[EdgeLoop, Values]:
        loop = _loop(context, cell_type, edges, chosen, first)
        of_edges = None if factors is None else factors.T[np.array(chosen, int)]
        weights = _all_columns(edges, chosen, mix)
        wanted = weight_gradients.wanted()
        return loop, Values(_arrays_of(loop, arrays), weights, of_edges, wanted)

    if outer:
        bypass = [context.backend.max_pool(x, 2, 2) for x in bypass]
        loop, values = loop_and_values(outer, 0)
        sums, edge_moments = sums_of_inputs(loop, selected, values)
        moments.append(edge_moments)
        selected = selected[:0, :, ::2, ::2]
    sums = sums if noise is None else sums + noise
    loop, values = loop_and_values(inner, INPUTS - len(selected))
    nodes, edge_moments = nodes_in_order(loop, selected, sums, bypass[0] + bypass[1], values)
    packed = jnp.concatenate([*moments, edge_moments])[np.argsort(outer + inner)]
    return list(nodes), _unpacked(cell_type, edges, packed) if context.train else {}


def _loop(
    context: ApplyContext, cell_type: str, edges: tuple[Edge, ...], chosen: list[int], first: int
) -> EdgeLoop:
    """Returns the loop over the edges of these numbers, whose images begin with source `first`."""
    stride = stride_of(cell_type, edges[chosen[0]].source) if chosen else 1
    primitives = []
    for name in PRIMITIVES:
        stacked = stacked_rows(cell_type, edges, name)
        rows = tuple(stacked.get(i, 0) if name in edges[i].primitives else -1 for i in chosen)
        if max(rows, default=-1) >= 0:
            primitives.append(PrimitiveRows(name, rows))
    sources = tuple(edges[i].source - first for i in chosen)
    nodes = tuple(edges[i].target - INPUTS for i in chosen)
    return EdgeLoop(context, stride, sources, nodes, tuple(primitives))


def _arrays_of(loop: EdgeLoop, arrays: PrimitiveArrays) -> PrimitiveArrays:
    """Returns the arrays that a loop reads; a skip connection of stride 1 reads none."""
    identity = loop.stride == 1
    return {
        name: {} if identity and name == "skip_connect" else arrays.get(name, {})
        for name, _ in loop.primitives
    }


def _all_columns(edges: tuple[Edge, ...], chosen: list[int], mix: Array) -> Array:
    """Arranges mixing weights [e, o] as [chosen, PRIMITIVES], with 0 for operations not kept."""
    selection = np.zeros((len(chosen), *mix.shape, len(PRIMITIVES)), np.float32)
    for row, i in enumerate(chosen):
        for column, name in enumerate(edges[i].primitives):
            if name in PRIMITIVES:  # `none` adds nothing, and `noise` is added elsewhere
                selection[row, i, column, PRIMITIVES.index(name)] = 1
    return jnp.tensordot(mix, selection, ((0, 1), (1, 2)))


def _unpacked(cell_type: str, edges: tuple[Edge, ...], packed: Array) -> AllMoments:
    """Arranges moments [edges, slots, c] by primitive and suffix, [rows, c] each."""
    moments: AllMoments = {}
    slot = 0
    for name, norms in NORMS.items():
        kept = list(stacked_rows(cell_type, edges, name))
        for layer in range(norms):
            suffix = f"_{layer}" if name in CONVOLUTIONS else ""
            if kept:
                rows = packed[np.array(kept)]
                moments.setdefault(name, {})[suffix] = (rows[:, slot], rows[:, slot + 1])
            slot += 2
    return moments
