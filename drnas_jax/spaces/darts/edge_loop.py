"""A supernet's DARTS cell for CPUs: a loop over its edges. Images are [c, h, w, b].

One edge is enough work for all cores of a CPU, and its arrays fit into the caches. The loop is
compiled once for all edges; if they keep different operations, a condition skips those that an edge
lacks. For the backward pass only the nodes are stored, and each edge is computed again.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from drnas_jax.nn import weight_gradients
from drnas_jax.nn.stacked_params import (
    AllMoments,
    ApplyContext,
    Arrays,
    Moments,
    PrimitiveArrays,
    channel_shuffle,
)
from drnas_jax.spaces.base import Edge
from drnas_jax.spaces.darts.operations import (
    CONVOLUTIONS,
    INPUTS,
    NODES,
    PRIMITIVES,
    begins_with_relu,
    operate,
    stacked_rows,
    stride_of,
)

Array = jax.Array


class PrimitiveRows(NamedTuple):
    """Which edges of a loop keep a primitive.

    Attributes:
      name: Name of the primitive.
      rows: For each edge of the loop the row of its arrays among the primitive's stacked arrays, 0
        if the primitive has no arrays, or -1 if the edge lacks the primitive.
    """

    name: str
    rows: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class EdgeLoop:
    """Edges of a cell, all of the same stride, over which one loop runs.

    Attributes:
      context: Kernels, layout and mode.
      stride: Stride of the operations.
      sources: Source of each edge.
      nodes: Node that each edge leads to, from 0.
      primitives: The primitives that some edge keeps.
    """

    context: ApplyContext
    stride: int
    sources: tuple[int, ...]
    nodes: tuple[int, ...]
    primitives: tuple[PrimitiveRows, ...]

    def weighted_sum(
        self, e: Array, x: Array, arrays: PrimitiveArrays, mix: Array, wanted: Array | None
    ) -> tuple[Array, Array]:
        """Computes the weighted sum of an edge's operations.

        Args:
          e: Number of the edge in this loop.
          x: Source of the edge, [c, h, w, b].
          arrays: Stacked arrays [rows, ...] of each primitive.
          mix: Mixing weights [edges, PRIMITIVES].
          wanted: See `drnas_jax.nn.weight_gradients`.

        Returns:
          The sum [c, h', w', b], and the moments [slots, c] of the batch.
        """
        weights, total = _at(mix, e), jnp.zeros(_shape(x, self.stride), x.dtype)
        moments = {name: jnp.zeros((2 * norms, len(x))) for name, norms in _NORMS.items()}
        for name, rows in self.primitives:

            def add(row: Array, carry: tuple[Array, Array], name: str = name) -> Any:
                weight = weights[PRIMITIVES.index(name)]
                y, found = self._operation(name, wanted)(_row(arrays[name], row), x, weight)
                return carry[0] + y, _packed(found, carry[1])

            carry = (total, moments[name])
            total, moments[name] = _if_kept(rows, e, add, carry)
        return total, jnp.concatenate(list(moments.values()))

    def _operation(
        self, name: str, wanted: Array | None
    ) -> Callable[[Arrays, Array, Array], tuple[Array, Moments]]:
        """Returns an operation as a function of its arrays, the source and the mixing weight."""

        def function(arrays: Arrays, x: Array, weight: Array) -> tuple[Array, Moments]:
            x = jax.nn.relu(x) if begins_with_relu(name, self.stride) else x
            # `wanted` comes as an argument, because a function with a custom gradient must not
            # close over a traced value of its caller.
            with weight_gradients.computed_if(wanted):
                return operate(self.context, name, arrays, x, weight, self.stride)

        return function

    def backward(
        self,
        e: Array,
        x: Array,
        g: Array,
        arrays: PrimitiveArrays,
        mix: Array,
        wanted: Array | None,
        gradients: tuple[PrimitiveArrays, Array],
    ) -> tuple[Array, tuple[PrimitiveArrays, Array]]:
        """Computes the gradients of an edge's weighted sum.

        Args:
          e: Number of the edge in this loop.
          x: Source of the edge, [c, h, w, b].
          g: Gradient of the weighted sum, [c, h', w', b].
          arrays: Stacked arrays [rows, ...] of each primitive.
          mix: Mixing weights [edges, PRIMITIVES].
          wanted: See `drnas_jax.nn.weight_gradients`.
          gradients: Gradients of `arrays` and `mix` so far.

        Returns:
          The gradient of x, and `gradients` with those of this edge filled in.
        """
        weights, dx, d_arrays = _at(mix, e), jnp.zeros_like(x), dict(gradients[0])
        d_weights = {name: jnp.zeros((), mix.dtype) for name in PRIMITIVES}
        for name, rows in self.primitives:

            def add(row: Array, carry: tuple[Array, Arrays, Array], name: str = name) -> Any:
                dx, d_stacked, _ = carry
                arguments = (_row(arrays[name], row), x, weights[PRIMITIVES.index(name)])
                _, pull, _ = jax.vjp(self._operation(name, wanted), *arguments, has_aux=True)
                d_row, dx_row, d_weight = pull(g)
                d_stacked = jax.tree.map(partial(_put, row=row), d_stacked, d_row)
                return dx + dx_row, d_stacked, d_weight

            carry = (dx, d_arrays[name], d_weights[name])
            dx, d_arrays[name], d_weights[name] = _if_kept(rows, e, add, carry)
        return dx, (d_arrays, _put(gradients[1], jnp.stack(list(d_weights.values())), e))

    def no_moments(self, x: Array) -> Array:
        """Returns zeros [edges, slots, c] for the moments of all edges."""
        return jnp.zeros((len(self.sources), 2 * sum(_NORMS.values()), len(x)))


# Number of BatchNorms of each operation. Each has two slots in an edge's moments: mean, variance.
_NORMS = {name: CONVOLUTIONS[name].layers if name in CONVOLUTIONS else 1 for name in PRIMITIVES}


def _packed(moments: Moments, empty: Array) -> Array:
    """Stacks means and variances as [2 * norms, c]; returns `empty` if there are none."""
    if not moments:
        return empty
    return jnp.stack([values.reshape(-1) for pair in moments.values() for values in pair])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def sums_of_inputs(
    loop: EdgeLoop, inputs: Array, arrays: PrimitiveArrays, mix: Array, wanted: Array | None
) -> tuple[Array, Array]:
    """Adds up, for each node, the edges that leave a reduction cell's inputs.

    Args:
      loop: These edges.
      inputs: Both inputs, [INPUTS, c, h, w, b].
      arrays: Stacked arrays [rows, ...] of each primitive.
      mix: Mixing weights [edges, PRIMITIVES].
      wanted: See `drnas_jax.nn.weight_gradients`.

    Returns:
      Sums [NODES, c, h/2, w/2, b], and the edges' moments [edges, slots, c].
    """

    def add_edge(e: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        sums, moments = carry
        y, found = loop.weighted_sum(e, _at(inputs, source[e]), arrays, mix, wanted)
        return _put(sums, _at(sums, node[e]) + y, node[e]), _put(moments, found, e)

    source, node = jnp.asarray(loop.sources), jnp.asarray(loop.nodes)
    sums = jnp.zeros((NODES, *_shape(inputs[0], loop.stride)), inputs.dtype)
    return lax.fori_loop(0, len(loop.sources), add_edge, (sums, loop.no_moments(inputs[0])))


def _sums_forward(loop: EdgeLoop, *arguments: Any) -> tuple[tuple[Array, Array], Any]:
    return sums_of_inputs(loop, *arguments), arguments


def _sums_backward(loop: EdgeLoop, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    inputs, arrays, mix, wanted = residuals
    g = cotangents[0]
    source, node = jnp.asarray(loop.sources), jnp.asarray(loop.nodes)

    def add_edge(e: Array, carry: Any) -> Any:
        d_inputs, gradients = carry
        x = _at(inputs, source[e])
        dx, gradients = loop.backward(e, x, _at(g, node[e]), arrays, mix, wanted, gradients)
        return _put(d_inputs, _at(d_inputs, source[e]) + dx, source[e]), gradients

    zeros = jax.tree.map(jnp.zeros_like, (inputs, (arrays, mix)))
    d_inputs, (d_arrays, d_mix) = lax.fori_loop(0, len(loop.sources), add_edge, zeros)
    return d_inputs, d_arrays, d_mix, None


sums_of_inputs.defvjp(_sums_forward, _sums_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def nodes_in_order(
    loop: EdgeLoop,
    inputs: Array,
    sums: Array,
    bypass: Array,
    arrays: PrimitiveArrays,
    mix: Array,
    wanted: Array | None,
) -> tuple[Array, Array]:
    """Computes the nodes of a cell one after another.

    Args:
      loop: The edges of stride 1, by node and then by source.
      inputs: The cell's inputs if edges of this loop leave them, [i, c, h, w, b]; i is 2 or 0.
      sums: Sums over the other edges for each node, [NODES, c, h, w, b].
      bypass: Sum over both inputs of the channels that bypass the operations, [C - c, h, w, b].
      arrays: Stacked arrays [rows, ...] of each primitive.
      mix: Mixing weights [edges, PRIMITIVES].
      wanted: See `drnas_jax.nn.weight_gradients`.

    Returns:
      The nodes [NODES, C, h, w, b], and the edges' moments [edges, slots, c].
    """
    return _nodes_forward(loop, inputs, sums, bypass, arrays, mix, wanted)[0]


def _nodes_forward(loop: EdgeLoop, *arguments: Any) -> tuple[tuple[Array, Array], Any]:
    inputs, sums, bypass, arrays, mix, wanted = arguments
    first = len(inputs)

    def add_node(n: Array, carry: Any) -> Any:
        selected, nodes, bypass, moments = carry

        def add_edge(source: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            total, moments = carry
            e = _first_edge(n, first) + source
            y, found = loop.weighted_sum(e, _at(selected, source), arrays, mix, wanted)
            return total + y, _put(moments, found, e)

        total, moments = lax.fori_loop(0, first + n, add_edge, (_at(sums, n), moments))
        new, bypass, node = _finish_node(total, bypass)
        return _put(selected, new, first + n), _put(nodes, node, n), bypass, moments

    selected = jnp.concatenate([inputs, jnp.zeros_like(sums)])
    nodes = jnp.zeros((NODES, sums.shape[1] + len(bypass), *sums.shape[2:]), sums.dtype)
    carry = (selected, nodes, bypass, loop.no_moments(sums[0]))
    selected, nodes, _, moments = lax.fori_loop(0, NODES, add_node, carry)
    return (nodes, moments), (selected, bypass, arrays, mix, wanted)


def _nodes_backward(loop: EdgeLoop, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    selected, bypass, arrays, mix, wanted = residuals
    g = cotangents[0]
    first = len(selected) - NODES
    _, finish_backward = jax.vjp(_finish_node, selected[0], bypass)  # it is linear

    def add_node(i: Array, carry: Any) -> Any:
        d_selected, d_sums, d_bypass, gradients = carry
        n = NODES - 1 - i
        d_total, d_bypass = finish_backward((_at(d_selected, first + n), d_bypass, _at(g, n)))

        def add_edge(source: Array, carry: Any) -> Any:
            d_selected, gradients = carry
            e = _first_edge(n, first) + source
            x = _at(selected, source)
            dx, gradients = loop.backward(e, x, d_total, arrays, mix, wanted, gradients)
            return _put(d_selected, _at(d_selected, source) + dx, source), gradients

        d_selected, gradients = lax.fori_loop(0, first + n, add_edge, (d_selected, gradients))
        return d_selected, _put(d_sums, d_total, n), d_bypass, gradients

    zeros = jax.tree.map(jnp.zeros_like, (selected, selected[first:], bypass, (arrays, mix)))
    d_selected, d_sums, d_bypass, (d_arrays, d_mix) = lax.fori_loop(0, NODES, add_node, zeros)
    return d_selected[:first], d_sums, d_bypass, d_arrays, d_mix, None


nodes_in_order.defvjp(_nodes_forward, _nodes_backward)


def _finish_node(total: Array, bypass: Array) -> tuple[Array, Array, Array]:
    """Completes a node.

    Args:
      total: Sum over the node's edges, [c, h, w, b].
      bypass: Sum over all sources of the channels that bypass the operations, [C - c, h, w, b].

    Returns:
      The channels of the node that go through the next operations, the sum of the bypass that
      includes this node, and the whole node [C, h, w, b].
    """
    selected = len(total)
    node = jnp.concatenate([total, bypass])
    node = channel_shuffle(node, len(node) // selected, axis=0)
    return node[:selected], bypass + node[selected:], node


def _first_edge(n: Array, inputs: int) -> Array:
    """Returns the number of the first edge that leads to node n."""
    return n * inputs + n * (n - 1) // 2


def _if_kept(rows: tuple[int, ...], e: Array, step: Callable[[Array, Any], Any], carry: Any) -> Any:
    """Applies a step to the carry if edge e keeps the operation, else returns the carry."""
    row = jnp.asarray(rows)[e]
    if min(rows) >= 0:
        return step(row, carry)
    return lax.cond(row >= 0, partial(step, row), lambda carry: carry, carry)


def _shape(x: Array, stride: int) -> tuple[int, ...]:
    """Returns the shape of an operation's result."""
    channels, height, width, batch = x.shape
    return channels, -(-height // stride), -(-width // stride), batch


def _at(x: Array, index: Array | int) -> Array:
    return lax.dynamic_index_in_dim(x, index, keepdims=False)


def _put(x: Array, value: Array, row: Array) -> Array:
    return lax.dynamic_update_index_in_dim(x, value.astype(x.dtype), row, 0)


def _row(arrays: Arrays, row: Array) -> Arrays:
    return {name: _at(array, row) for name, array in arrays.items()}


def cell_nodes(
    context: ApplyContext,
    cell_type: str,
    edges: tuple[Edge, ...],
    inputs: Sequence[Array],
    partial_channels: int,
    arrays: PrimitiveArrays,
    mix: Array,
) -> tuple[list[Array], AllMoments]:
    """Computes the nodes of a supernet's cell.

    Args:
      context: Kernels, layout and mode.
      cell_type: `normal` or `reduce`.
      edges: All edges that a cell can have, by node and then by source.
      inputs: Both inputs [C, h, w, b], already as wide as a node.
      partial_channels: K.
      arrays: Stacked arrays [rows, ...] of each primitive.
      mix: Mixing weights [e, o].

    Returns:
      All nodes [C, h', w', b], and the moments of the batch.
    """
    width = len(inputs[0]) // partial_channels
    selected = jnp.stack([x[:width] for x in inputs])
    bypass, halving = [x[width:] for x in inputs], stride_of(cell_type, 0) == 2
    inner = [i for i, edge in enumerate(edges) if edge.source >= INPUTS or not halving]
    outer = [i for i in range(len(edges)) if i not in inner]
    sums, moments = jnp.zeros((NODES, *selected.shape[1:]), selected.dtype), []
    wanted = weight_gradients.wanted()
    if outer:
        bypass = [context.backend.max_pool(x, 2, 2) for x in bypass]
        loop, weights = _loop(context, cell_type, edges, outer), _all_columns(edges, outer, mix)
        sums, found = sums_of_inputs(loop, selected, _arrays_of(loop, arrays), weights, wanted)
        moments.append(found)
        selected = selected[:0, :, ::2, ::2]
    loop, weights = _loop(context, cell_type, edges, inner), _all_columns(edges, inner, mix)
    inner_arrays = _arrays_of(loop, arrays)
    nodes, found = nodes_in_order(
        loop, selected, sums, bypass[0] + bypass[1], inner_arrays, weights, wanted
    )
    packed = jnp.concatenate([*moments, found])[np.argsort(outer + inner)]
    return list(nodes), _unpacked(cell_type, edges, packed) if context.train else {}


def _loop(
    context: ApplyContext, cell_type: str, edges: tuple[Edge, ...], chosen: list[int]
) -> EdgeLoop:
    """Returns the loop over the edges of these numbers."""
    stride = stride_of(cell_type, edges[chosen[0]].source)
    primitives = []
    for name in PRIMITIVES:
        stacked = stacked_rows(cell_type, edges, name)
        rows = tuple(stacked.get(i, 0) if name in edges[i].primitives else -1 for i in chosen)
        if max(rows) >= 0:
            primitives.append(PrimitiveRows(name, rows))
    sources = tuple(edges[i].source for i in chosen)
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
            if name in PRIMITIVES:  # `none` adds nothing
                selection[row, i, column, PRIMITIVES.index(name)] = 1
    return jnp.tensordot(mix, selection, ((0, 1), (1, 2)))


def _unpacked(cell_type: str, edges: tuple[Edge, ...], packed: Array) -> AllMoments:
    """Arranges moments [edges, slots, c] by primitive and suffix, [rows, c] each."""
    moments: AllMoments = {}
    slot = 0
    for name, norms in _NORMS.items():
        kept = list(stacked_rows(cell_type, edges, name))
        for layer in range(norms):
            suffix = f"_{layer}" if name in CONVOLUTIONS else ""
            if kept:
                rows = packed[np.array(kept)]
                moments.setdefault(name, {})[suffix] = (rows[:, slot], rows[:, slot + 1])
            slot += 2
    return moments
