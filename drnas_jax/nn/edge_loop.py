"""A supernet's cell as loops over its edges, one at a time, for CPUs: images are [c, h, w, b].

One edge fills a CPU's cores, and its arrays its caches. A loop compiles once for all edges, and
where they keep different operations a conditional skips those that are gone. Its gradient keeps the
nodes alone and runs each edge again on the way back.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from drnas_jax.nn.banks import AllMoments, Arrays, Banks, Mode, Moments, channel_shuffle
from drnas_jax.nn.darts_operations import (
    INPUTS,
    NODES,
    PRIMITIVES,
    Edge,
    bank_rows,
    begins_with_relu,
    operate,
    stride_of,
)

Array = jax.Array


class Table(NamedTuple):
    """Where the edges of a loop find a primitive.

    Attributes:
      name: the primitive.
      rows: each edge's row in its bank; -1 where it is not on the edge, 0 where it needs no bank.
      edges: rows of the bank, for all loops.
    """

    name: str
    rows: tuple[int, ...]
    edges: int


@dataclasses.dataclass(frozen=True)
class Loop:
    """Some edges of a cell, of equal stride; static.

    Attributes:
      mode: how operations run.
      stride: of the operations.
      sources: where each edge leaves.
      nodes: where each edge leads, from 0.
      tables: of each primitive that is on some edge.
    """

    mode: Mode
    stride: int
    sources: tuple[int, ...]
    nodes: tuple[int, ...]
    tables: tuple[Table, ...]

    def run(
        self, e: Array, x: Array, banks: Banks, mix: Array, moments: AllMoments
    ) -> tuple[Array, AllMoments]:
        """An edge's weighted sum, and the moments with its own filled in.

        Args:
          e: number of the edge in this loop.
          x: its source.
          banks: arrays [rows, ...] by primitive and name.
          mix: mixing weights [edges, PRIMITIVES].
          moments: of all rows.
        """
        total, moments = jnp.zeros(_shape(x, self.stride), x.dtype), dict(moments)
        for name, rows, _ in self.tables:
            step = partial(self._add, name, rows, e, x, banks[name], mix)
            total, moments[name] = _where_kept(rows, e, step, (total, moments[name]))
        return total, moments

    def _add(
        self,
        name: str,
        rows: tuple[int, ...],
        e: Array,
        x: Array,
        bank: Arrays,
        mix: Array,
        state: tuple[Array, Moments],
    ) -> tuple[Array, Moments]:
        (total, moments), row = state, jnp.asarray(rows)[e]
        y, found = self._operate(name)(_row(bank, row), x, mix[e, PRIMITIVES.index(name)])
        return total + y, jax.tree.map(partial(_put, row=row), moments, found)

    def _operate(self, name: str) -> Callable[[Arrays, Array, Array], tuple[Array, Moments]]:
        def function(own: Arrays, x: Array, weight: Array) -> tuple[Array, Moments]:
            x = jax.nn.relu(x) if begins_with_relu(name, self.stride) else x
            return operate(self.mode, name, own, x, weight, self.stride)

        return function

    def pull(
        self, e: Array, x: Array, g: Array, banks: Banks, mix: Array, into: tuple[Banks, Array]
    ) -> tuple[Array, tuple[Banks, Array]]:
        """Gradients of an edge's weighted sum: in x; in banks and mix, filled in `into`."""
        dx, d_banks, d_weights = jnp.zeros_like(x), dict(into[0]), jnp.zeros_like(mix[0])
        for name, rows, _ in self.tables:
            step = partial(self._pull, name, rows, e, x, g, banks[name], mix)
            state = (dx, d_banks[name], d_weights)
            dx, d_banks[name], d_weights = _where_kept(rows, e, step, state)
        return dx, (d_banks, _put(into[1], d_weights, e))

    def _pull(
        self,
        name: str,
        rows: tuple[int, ...],
        e: Array,
        x: Array,
        g: Array,
        bank: Arrays,
        mix: Array,
        state: tuple[Array, Arrays, Array],
    ) -> tuple[Array, Arrays, Array]:
        (dx, d_bank, d_weights), row = state, jnp.asarray(rows)[e]
        column = PRIMITIVES.index(name)
        arguments = (_row(bank, row), x, mix[e, column])
        _, pull, _ = jax.vjp(self._operate(name), *arguments, has_aux=True)
        d_own, own_dx, d_weight = pull(g)
        d_bank = jax.tree.map(partial(_put, row=row), d_bank, d_own)
        return dx + own_dx, d_bank, d_weights.at[column].set(d_weight)

    def no_moments(self, x: Array, banks: Banks) -> AllMoments:
        """Room for the moments of all rows."""
        weight = jax.ShapeDtypeStruct((), jnp.float32)
        room = {}
        for name, _, edges in self.tables:
            own = jax.eval_shape(partial(_row, row=0), banks[name])
            _, moments = jax.eval_shape(self._operate(name), own, x, weight)
            room[name] = jax.tree.map(lambda m, n=edges: jnp.zeros((n, *m.shape)), moments)
        return room


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def strided(loop: Loop, inputs: Array, banks: Banks, mix: Array) -> tuple[Array, AllMoments]:
    """Sums of the edges that leave a reduction cell's inputs.

    Args:
      loop: these edges.
      inputs: [INPUTS, c, h, w, b].
      banks: arrays [rows, ...] by primitive and name.
      mix: mixing weights [edges, PRIMITIVES].

    Returns:
      For every node [NODES, c, h/2, w/2, b]; and the batch's moments.
    """

    def add_edge(e: Array, carry: tuple[Array, AllMoments]) -> tuple[Array, AllMoments]:
        sums, moments = carry
        y, moments = loop.run(e, _at(inputs, source[e]), banks, mix, moments)
        return _put(sums, _at(sums, node[e]) + y, node[e]), moments

    source, node = jnp.asarray(loop.sources), jnp.asarray(loop.nodes)
    sums = jnp.zeros((NODES, *_shape(inputs[0], loop.stride)), inputs.dtype)
    room = loop.no_moments(inputs[0], banks)
    return lax.fori_loop(0, len(loop.sources), add_edge, (sums, room))


def _strided_backward(loop: Loop, residuals: Any, cotangents: Any) -> tuple[Array, Banks, Array]:
    inputs, banks, mix = residuals
    g = cotangents[0]
    source, node = jnp.asarray(loop.sources), jnp.asarray(loop.nodes)

    def pull_edge(e: Array, carry: Any) -> Any:
        d_inputs, into = carry
        x = _at(inputs, source[e])
        dx, into = loop.pull(e, x, _at(g, node[e]), banks, mix, into)
        return _put(d_inputs, _at(d_inputs, source[e]) + dx, source[e]), into

    zeros = jax.tree.map(jnp.zeros_like, (inputs, (banks, mix)))
    d_inputs, (d_banks, d_mix) = lax.fori_loop(0, len(loop.sources), pull_edge, zeros)
    return d_inputs, d_banks, d_mix


strided.defvjp(lambda loop, *arguments: (strided(loop, *arguments), arguments), _strided_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def chained(
    loop: Loop, inputs: Array, sums: Array, rest: Array, banks: Banks, mix: Array
) -> tuple[Array, AllMoments]:
    """The nodes of a cell, one after another.

    Args:
      loop: the edges between nodes (and inputs) of equal size, by node and then by source.
      inputs: those that edges of this loop leave [i, c, h, w, b]; i is 2 or 0.
      sums: what each node gets besides [NODES, c, h, w, b].
      rest: channels that pass by, of both inputs together [C - c, h, w, b].
      banks: arrays [rows, ...] by primitive and name.
      mix: mixing weights [edges, PRIMITIVES].

    Returns:
      All channels of the nodes [NODES, C, h, w, b]; and the batch's moments.
    """
    return _chained_forward(loop, inputs, sums, rest, banks, mix)[0]


def _chained_forward(
    loop: Loop, inputs: Array, sums: Array, rest: Array, banks: Banks, mix: Array
) -> tuple[tuple[Array, AllMoments], Any]:
    first = len(inputs)

    def add_node(n: Array, carry: Any) -> Any:
        nodes, wholes, rest, moments = carry

        def add_edge(source: Array, carry: tuple[Array, AllMoments]) -> tuple[Array, AllMoments]:
            total, moments = carry
            e = _first_edge(n, first) + source
            y, moments = loop.run(e, _at(nodes, source), banks, mix, moments)
            return total + y, moments

        total, moments = lax.fori_loop(0, first + n, add_edge, (_at(sums, n), moments))
        selected, rest, whole = _finish(total, rest)
        return _put(nodes, selected, first + n), _put(wholes, whole, n), rest, moments

    nodes = jnp.concatenate([inputs, jnp.zeros_like(sums)])
    wholes = jnp.zeros((NODES, sums.shape[1] + len(rest), *sums.shape[2:]), sums.dtype)
    carry = (nodes, wholes, rest, loop.no_moments(sums[0], banks))
    nodes, wholes, _, moments = lax.fori_loop(0, NODES, add_node, carry)
    return (wholes, moments), (nodes, rest, banks, mix)


def _chained_backward(loop: Loop, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    nodes, rest, banks, mix = residuals
    g = cotangents[0]
    first = len(nodes) - NODES
    _, unfinish = jax.vjp(_finish, nodes[0], rest)  # it is linear

    def pull_node(i: Array, carry: Any) -> Any:
        d_nodes, d_sums, d_rest, into = carry
        n = NODES - 1 - i
        d_total, d_rest = unfinish((_at(d_nodes, first + n), d_rest, _at(g, n)))

        def pull_edge(source: Array, carry: Any) -> Any:
            d_nodes, into = carry
            e = _first_edge(n, first) + source
            dx, into = loop.pull(e, _at(nodes, source), d_total, banks, mix, into)
            return _put(d_nodes, _at(d_nodes, source) + dx, source), into

        d_nodes, into = lax.fori_loop(0, first + n, pull_edge, (d_nodes, into))
        return d_nodes, _put(d_sums, d_total, n), d_rest, into

    zeros = jax.tree.map(jnp.zeros_like, (nodes, nodes[first:], rest, (banks, mix)))
    d_nodes, d_sums, d_rest, (d_banks, d_mix) = lax.fori_loop(0, NODES, pull_node, zeros)
    return d_nodes[:first], d_sums, d_rest, d_banks, d_mix


chained.defvjp(_chained_forward, _chained_backward)


def _finish(total: Array, rest: Array) -> tuple[Array, Array, Array]:
    """A node's channels for the operations, what passes by after it, and all its channels."""
    selected = len(total)
    whole = jnp.concatenate([total, rest])
    whole = channel_shuffle(whole, len(whole) // selected, axis=0)
    return whole[:selected], rest + whole[selected:], whole


def _first_edge(n: Array, inputs: int) -> Array:
    """Number of the first edge that leads to a node."""
    return n * inputs + n * (n - 1) // 2


def _where_kept(rows: tuple[int, ...], e: Array, step: Callable[[Any], Any], state: Any) -> Any:
    """Skips the step where the edge has no such operation."""
    if min(rows) >= 0:
        return step(state)
    return lax.cond(jnp.asarray(rows)[e] >= 0, step, lambda state: state, state)


def _shape(x: Array, stride: int) -> tuple[int, ...]:
    channels, rows, columns, batch = x.shape
    return channels, -(-rows // stride), -(-columns // stride), batch


def _at(x: Array, index: Array | int) -> Array:
    return lax.dynamic_index_in_dim(x, index, keepdims=False)


def _put(x: Array, value: Array, row: Array) -> Array:
    return lax.dynamic_update_index_in_dim(x, value.astype(x.dtype), row, 0)


def _row(arrays: Arrays, row: Array | int) -> Arrays:
    return {name: _at(array, row) for name, array in arrays.items()}


def cell_nodes(
    mode: Mode,
    cell_type: str,
    edges: tuple[Edge, ...],
    inputs: Sequence[Array],
    partial_channels: int,
    banks: Banks,
    mix: Array,
) -> tuple[list[Array], AllMoments]:
    """All nodes of a supernet's cell.

    Args:
      mode: how operations run.
      cell_type: 'normal' or 'reduce'.
      edges: all there are, by node and then by source.
      inputs: both [C, h, w, b].
      partial_channels: K.
      banks: arrays [rows, ...] by primitive and name.
      mix: mixing weights [e, o] of the operations that each edge keeps.

    Returns:
      Their channels [C, h, w, b]; and the batch's moments.
    """
    width = len(inputs[0]) // partial_channels
    selected = jnp.stack([x[:width] for x in inputs])
    weights = _all_columns(edges, mix)
    rest, halving = [x[width:] for x in inputs], stride_of(cell_type, 0) == 2
    inner = [i for i, edge in enumerate(edges) if edge.source >= INPUTS or not halving]
    if not halving:
        loop = _loop(mode, cell_type, edges, inner)
        sums = jnp.zeros((NODES, *selected.shape[1:]), selected.dtype)
        moments: AllMoments = {}
    else:
        rest = [mode.kernels.max_pool(x, 2, 2) for x in rest]
        outer = [i for i, edge in enumerate(edges) if edge.source < INPUTS]
        loop = _loop(mode, cell_type, edges, outer)
        own = {name: banks.get(name, {}) for name, *_ in loop.tables}
        sums, moments = strided(loop, selected, own, weights[np.array(outer)])
        loop, selected = _loop(mode, cell_type, edges, inner), selected[:0, :, ::2, ::2]
    own = {
        name: {} if halving and name == "skip_connect" else banks.get(name, {})
        for name, *_ in loop.tables
    }
    weights = weights[np.array(inner)]
    wholes, found = chained(loop, selected, sums, rest[0] + rest[1], own, weights)
    return list(wholes), _merged(moments, found)


def _loop(mode: Mode, cell_type: str, edges: tuple[Edge, ...], chosen: list[int]) -> Loop:
    stride = stride_of(cell_type, edges[chosen[0]].source)
    tables = []
    for name in PRIMITIVES:
        numbers = bank_rows(cell_type, edges, name)
        rows = tuple(numbers.get(i, 0) if name in edges[i].operations else -1 for i in chosen)
        if max(rows) >= 0:
            tables.append(Table(name, rows, len(numbers)))
    sources, nodes = (tuple(getattr(edges[i], end) for i in chosen) for end in ("source", "node"))
    return Loop(mode, stride, sources, nodes, tuple(tables))


def _all_columns(edges: tuple[Edge, ...], mix: Array) -> Array:
    """[e, o] of the kept operations -> [e, PRIMITIVES], 0 for the others."""
    columns = [[PRIMITIVES.index(name) for name in edge.operations] for edge in edges]
    place = np.zeros((*np.shape(columns), len(PRIMITIVES)), np.float32)
    np.put_along_axis(place, np.array(columns)[..., None], 1, axis=2)
    return jnp.einsum("eo,eop->ep", mix, place)


def _merged(one: AllMoments, other: AllMoments) -> AllMoments:
    """Moments of two loops, each of which left the other's rows at 0."""
    merged: AllMoments = {}
    for name in {**one, **other}:
        parts = [part[name] for part in (one, other) if part.get(name)]
        if parts:
            merged[name] = jax.tree.map(lambda *values: sum(values), *parts)
    return merged
