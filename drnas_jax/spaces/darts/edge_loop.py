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
from drnas_jax.spaces.darts.operations import (
    CONVOLUTIONS,
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
    """Where the edges of a loop find a primitive: its name, and each edge's row in its bank.

    The row is -1 where the primitive is not on the edge, 0 where it needs no bank.
    """

    name: str
    rows: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Loop:
    """Some edges of a cell, of equal stride; static.

    Attributes:
      mode: how operations run; `learn` comes as an argument.
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
        self, e: Array, x: Array, banks: Banks, mix: Array, learn: Array | None
    ) -> tuple[Array, Array]:
        """An edge's weighted sum, and its moments [slots, c].

        Args:
          e: number of the edge in this loop.
          x: its source.
          banks: arrays [rows, ...] by primitive and name.
          mix: mixing weights [edges, PRIMITIVES].
          learn: see Mode.
        """
        weights, total = _at(mix, e), jnp.zeros(_shape(x, self.stride), x.dtype)
        moments = {name: jnp.zeros((2 * norms, len(x))) for name, norms in _NORMS.items()}
        for name, rows in self.tables:

            def add(row: Array, state: tuple[Array, Array], name: str = name) -> Any:
                weight = weights[PRIMITIVES.index(name)]
                y, found = self._operate(name, learn)(_row(banks[name], row), x, weight)
                return state[0] + y, _packed(found, state[1])

            state = (total, moments[name])
            total, moments[name] = _where_kept(rows, e, add, state)
        return total, jnp.concatenate(list(moments.values()))

    def _operate(
        self, name: str, learn: Array | None
    ) -> Callable[[Arrays, Array, Array], tuple[Array, Moments]]:
        mode = dataclasses.replace(self.mode, learn=learn)

        def function(own: Arrays, x: Array, weight: Array) -> tuple[Array, Moments]:
            x = jax.nn.relu(x) if begins_with_relu(name, self.stride) else x
            return operate(mode, name, own, x, weight, self.stride)

        return function

    def pull(
        self,
        e: Array,
        x: Array,
        g: Array,
        banks: Banks,
        mix: Array,
        learn: Array | None,
        into: tuple[Banks, Array],
    ) -> tuple[Array, tuple[Banks, Array]]:
        """Gradients of an edge's weighted sum: in x; in banks and mix, filled in `into`."""
        weights, dx, d_banks = _at(mix, e), jnp.zeros_like(x), dict(into[0])
        d_weights = {name: jnp.zeros((), mix.dtype) for name in PRIMITIVES}
        for name, rows in self.tables:

            def add(row: Array, state: tuple[Array, Arrays, Array], name: str = name) -> Any:
                dx, d_bank, _ = state
                arguments = (_row(banks[name], row), x, weights[PRIMITIVES.index(name)])
                _, pull, _ = jax.vjp(self._operate(name, learn), *arguments, has_aux=True)
                d_own, own_dx, d_weight = pull(g)
                d_bank = jax.tree.map(partial(_put, row=row), d_bank, d_own)
                return dx + own_dx, d_bank, d_weight

            state = (dx, d_banks[name], d_weights[name])
            dx, d_banks[name], d_weights[name] = _where_kept(rows, e, add, state)
        return dx, (d_banks, _put(into[1], jnp.stack(list(d_weights.values())), e))

    def room(self, x: Array) -> Array:
        """For the moments of all edges, [edges, slots, c]."""
        return jnp.zeros((len(self.sources), 2 * sum(_NORMS.values()), len(x)))


# How many BatchNorms an operation has; each has two slots in an edge's moments: mean, variance.
_NORMS = {name: CONVOLUTIONS[name].layers if name in CONVOLUTIONS else 1 for name in PRIMITIVES}


def _packed(moments: Moments, empty: Array) -> Array:
    """Means and variances one after another, [2 * norms, c]."""
    if not moments:
        return empty
    return jnp.stack([values.reshape(-1) for pair in moments.values() for values in pair])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def strided(
    loop: Loop, inputs: Array, banks: Banks, mix: Array, learn: Array | None
) -> tuple[Array, Array]:
    """Sums of the edges that leave a reduction cell's inputs.

    Args:
      loop: these edges.
      inputs: [INPUTS, c, h, w, b].
      banks: arrays [rows, ...] by primitive and name.
      mix: mixing weights [edges, PRIMITIVES].
      learn: see Mode.

    Returns:
      For every node [NODES, c, h/2, w/2, b]; and the edges' moments [edges, slots, c].
    """

    def add_edge(e: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        sums, moments = carry
        y, found = loop.run(e, _at(inputs, source[e]), banks, mix, learn)
        return _put(sums, _at(sums, node[e]) + y, node[e]), _put(moments, found, e)

    source, node = jnp.asarray(loop.sources), jnp.asarray(loop.nodes)
    sums = jnp.zeros((NODES, *_shape(inputs[0], loop.stride)), inputs.dtype)
    return lax.fori_loop(0, len(loop.sources), add_edge, (sums, loop.room(inputs[0])))


def _strided_backward(loop: Loop, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    inputs, banks, mix, learn = residuals
    g = cotangents[0]
    source, node = jnp.asarray(loop.sources), jnp.asarray(loop.nodes)

    def pull_edge(e: Array, carry: Any) -> Any:
        d_inputs, into = carry
        x = _at(inputs, source[e])
        dx, into = loop.pull(e, x, _at(g, node[e]), banks, mix, learn, into)
        return _put(d_inputs, _at(d_inputs, source[e]) + dx, source[e]), into

    zeros = jax.tree.map(jnp.zeros_like, (inputs, (banks, mix)))
    d_inputs, (d_banks, d_mix) = lax.fori_loop(0, len(loop.sources), pull_edge, zeros)
    return d_inputs, d_banks, d_mix, None


strided.defvjp(lambda loop, *arguments: (strided(loop, *arguments), arguments), _strided_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def chained(
    loop: Loop,
    inputs: Array,
    sums: Array,
    rest: Array,
    banks: Banks,
    mix: Array,
    learn: Array | None,
) -> tuple[Array, Array]:
    """The nodes of a cell, one after another.

    Args:
      loop: the edges between nodes (and inputs) of equal size, by node and then by source.
      inputs: those that edges of this loop leave [i, c, h, w, b]; i is 2 or 0.
      sums: what each node gets besides [NODES, c, h, w, b].
      rest: channels that pass by, of both inputs together [C - c, h, w, b].
      banks: arrays [rows, ...] by primitive and name.
      mix: mixing weights [edges, PRIMITIVES].
      learn: see Mode.

    Returns:
      All channels of the nodes [NODES, C, h, w, b]; and the edges' moments [edges, slots, c].
    """
    return _chained_forward(loop, inputs, sums, rest, banks, mix, learn)[0]


def _chained_forward(loop: Loop, *arguments: Any) -> tuple[tuple[Array, Array], Any]:
    inputs, sums, rest, banks, mix, learn = arguments
    first = len(inputs)

    def add_node(n: Array, carry: Any) -> Any:
        nodes, wholes, rest, moments = carry

        def add_edge(source: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            total, moments = carry
            e = _first_edge(n, first) + source
            y, found = loop.run(e, _at(nodes, source), banks, mix, learn)
            return total + y, _put(moments, found, e)

        total, moments = lax.fori_loop(0, first + n, add_edge, (_at(sums, n), moments))
        selected, rest, whole = _finish(total, rest)
        return _put(nodes, selected, first + n), _put(wholes, whole, n), rest, moments

    nodes = jnp.concatenate([inputs, jnp.zeros_like(sums)])
    wholes = jnp.zeros((NODES, sums.shape[1] + len(rest), *sums.shape[2:]), sums.dtype)
    carry = (nodes, wholes, rest, loop.room(sums[0]))
    nodes, wholes, _, moments = lax.fori_loop(0, NODES, add_node, carry)
    return (wholes, moments), (nodes, rest, banks, mix, learn)


def _chained_backward(loop: Loop, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    nodes, rest, banks, mix, learn = residuals
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
            dx, into = loop.pull(e, _at(nodes, source), d_total, banks, mix, learn, into)
            return _put(d_nodes, _at(d_nodes, source) + dx, source), into

        d_nodes, into = lax.fori_loop(0, first + n, pull_edge, (d_nodes, into))
        return d_nodes, _put(d_sums, d_total, n), d_rest, into

    zeros = jax.tree.map(jnp.zeros_like, (nodes, nodes[first:], rest, (banks, mix)))
    d_nodes, d_sums, d_rest, (d_banks, d_mix) = lax.fori_loop(0, NODES, pull_node, zeros)
    return d_nodes[:first], d_sums, d_rest, d_banks, d_mix, None


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


def _where_kept(
    rows: tuple[int, ...], e: Array, step: Callable[[Array, Any], Any], state: Any
) -> Any:
    """The step for the edge's row of an operation; none where it has no such operation."""
    row = jnp.asarray(rows)[e]
    if min(rows) >= 0:
        return step(row, state)
    return lax.cond(row >= 0, partial(step, row), lambda state: state, state)


def _shape(x: Array, stride: int) -> tuple[int, ...]:
    channels, rows, columns, batch = x.shape
    return channels, -(-rows // stride), -(-columns // stride), batch


def _at(x: Array, index: Array | int) -> Array:
    return lax.dynamic_index_in_dim(x, index, keepdims=False)


def _put(x: Array, value: Array, row: Array) -> Array:
    return lax.dynamic_update_index_in_dim(x, value.astype(x.dtype), row, 0)


def _row(arrays: Arrays, row: Array) -> Arrays:
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
    rest, halving = [x[width:] for x in inputs], stride_of(cell_type, 0) == 2
    inner = [i for i, edge in enumerate(edges) if edge.source >= INPUTS or not halving]
    outer = [i for i in range(len(edges)) if i not in inner]
    sums, moments = jnp.zeros((NODES, *selected.shape[1:]), selected.dtype), []
    if outer:
        rest = [mode.kernels.max_pool(x, 2, 2) for x in rest]
        loop, weights = _loop(mode, cell_type, edges, outer), _all_columns(edges, outer, mix)
        sums, found = strided(loop, selected, _own(loop, banks), weights, mode.learn)
        moments.append(found)
        selected = selected[:0, :, ::2, ::2]
    loop, weights = _loop(mode, cell_type, edges, inner), _all_columns(edges, inner, mix)
    own = _own(loop, banks)
    wholes, found = chained(loop, selected, sums, rest[0] + rest[1], own, weights, mode.learn)
    packed = jnp.concatenate([*moments, found])[np.argsort(outer + inner)]
    return list(wholes), _unpacked(cell_type, edges, packed) if mode.train else {}


def _loop(mode: Mode, cell_type: str, edges: tuple[Edge, ...], chosen: list[int]) -> Loop:
    stride = stride_of(cell_type, edges[chosen[0]].source)
    tables = []
    for name in PRIMITIVES:
        numbers = bank_rows(cell_type, edges, name)
        rows = tuple(numbers.get(i, 0) if name in edges[i].operations else -1 for i in chosen)
        if max(rows) >= 0:
            tables.append(Table(name, rows))
    sources, nodes = (tuple(getattr(edges[i], end) for i in chosen) for end in ("source", "node"))
    mode = dataclasses.replace(mode, learn=None)
    return Loop(mode, stride, sources, nodes, tuple(tables))


def _own(loop: Loop, banks: Banks) -> Banks:
    """The banks that a loop reads: the identity, which keeps the size, has none."""
    identity = loop.stride == 1
    return {
        name: {} if identity and name == "skip_connect" else banks.get(name, {})
        for name, _ in loop.tables
    }


def _all_columns(edges: tuple[Edge, ...], chosen: list[int], mix: Array) -> Array:
    """[e, o] of the kept operations -> [chosen, PRIMITIVES], 0 for the others."""
    place = np.zeros((len(chosen), *mix.shape, len(PRIMITIVES)), np.float32)
    for row, i in enumerate(chosen):
        for column, name in enumerate(edges[i].operations):
            place[row, i, column, PRIMITIVES.index(name)] = 1
    return jnp.tensordot(mix, place, ((0, 1), (1, 2)))


def _unpacked(cell_type: str, edges: tuple[Edge, ...], packed: Array) -> AllMoments:
    """Moments [edges, slots, c] -> of the rows of each bank, by suffix."""
    moments: AllMoments = {}
    slot = 0
    for name, norms in _NORMS.items():
        held = list(bank_rows(cell_type, edges, name))
        for layer in range(norms):
            suffix = f"_{layer}" if name in CONVOLUTIONS else ""
            if held:
                rows = packed[np.array(held)]
                moments.setdefault(name, {})[suffix] = (rows[:, slot], rows[:, slot + 1])
            slot += 2
    return moments
