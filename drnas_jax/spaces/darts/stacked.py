"""A DARTS cell for accelerators: all edges that leave a node side by side, as channels.

Few channels of one edge would leave most of a vector or a matrix unit idle, and every operation
costs a launch and its share of compilation. So filters of several kinds share one depthwise
convolution, matrices of several edges one matrix product, and terms meet their nodes in another.
Images are [b, h, w, c].
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from drnas_jax.nn.banks import AllMoments, Banks, Mode, Recorder, channel_shuffle, scaled
from drnas_jax.spaces.darts.operations import (
    ALL_EDGES,
    CONVOLUTIONS,
    INPUTS,
    NODES,
    POOLS,
    Edge,
    pool,
)
from drnas_jax.spaces.darts.rows import Block, Means

Array = jax.Array
Norm = tuple[str, str, int]  # a BatchNorm's primitive, the suffix of its arrays, and rows

_LANES = 128  # channels that a vector unit takes at once


def cell_nodes(
    mode: Mode,
    cell_type: str,
    edges: tuple[Edge, ...],
    inputs: Sequence[Array],
    partial_channels: int,
    banks: Banks,
    mix: Array,
    keep: Array | None,
) -> tuple[list[Array], AllMoments]:
    """All nodes of a cell: first the edges from its inputs, then node by node those from nodes.

    Args:
      mode: how operations run.
      cell_type: 'normal' or 'reduce'.
      edges: of the cell.
      inputs: squeezed, [b, h, w, c] each.
      partial_channels: K.
      banks: arrays [rows, ...] by primitive and name.
      mix: mixing weights [e, o].
      keep: drop path, a factor of each example and edge [b, e]; None: all are kept.

    Returns:
      Nodes [b, h', w', c], and the batch's moments.
    """
    shared = mode.train and keep is None
    cell = _Cell(mode, cell_type, edges, partial_channels, shared, banks, mix, keep, Recorder())
    width = inputs[0].shape[-1] // partial_channels
    first = cell.block((tuple(range(INPUTS)),))
    sums = cell.terms(first, [x[..., :width] for x in inputs], NODES)
    rest = functools.reduce(jnp.add, (_bypass(mode, first.stride, x[..., width:]) for x in inputs))
    nodes_of = _looped_nodes if len(edges) == ALL_EDGES and keep is None else _unrolled_nodes
    nodes, last = nodes_of(cell, _Carry(sums, rest, width))
    return [*nodes, last.node(partial_channels)], cell.recorder.moments()


class _Carry(NamedTuple):
    """What is known after a node: the sums of the nodes that follow.

    Attributes:
      sums: of the channels of the operations, [b, h, w, nodes * width], the next node first.
      rest: of the other channels.
      width: channels of the operations.
    """

    sums: Array
    rest: Array
    width: int

    def node(self, partial_channels: int) -> Array:
        """The next node."""
        whole = jnp.concatenate([self.sums[..., : self.width], self.rest], axis=-1)
        return channel_shuffle(whole, partial_channels)

    def after(self, node: Array, terms: Array) -> "_Carry":
        """With the terms of that node's edges."""
        width = self.width
        sums = jnp.pad(self.sums[..., width:] + terms, ((0, 0),) * 3 + ((0, width),))
        return _Carry(sums, self.rest + node[..., width:], width)


class _Cell(NamedTuple):
    """The arguments of `cell_nodes`; shared: see Block."""

    mode: Mode
    cell_type: str
    edges: tuple[Edge, ...]
    partial_channels: int
    shared: bool
    banks: Banks
    mix: Array
    keep: Array | None
    recorder: Recorder

    def block(self, turns: tuple[tuple[int, ...], ...]) -> Block:
        """The rows of these sources."""
        return Block(self.cell_type, self.edges, turns, self.shared)

    def terms(self, block: Block, nodes: Sequence[Array], targets: int) -> Array:
        """Those of a block of one turn; its moments are recorded."""
        own = jax.tree.map(lambda array: array[0], block.arrays(self.banks))
        weights = block.weights(self.mix, targets)[0]
        rows = None if self.keep is None else block.keep(self.keep)
        terms, found = _mixed(self.mode, block, nodes, own, weights, rows)
        block.record(jax.tree.map(lambda values: values[None], found), self.recorder)
        return terms


def _looped_nodes(cell: _Cell, carry: _Carry) -> tuple[list[Array], _Carry]:
    """All nodes but the last, in one loop, compiled once, for a few rows without weight."""
    width = carry.width
    block = cell.block(tuple((source,) for source in range(INPUTS, INPUTS + NODES - 1)))

    def turn(sums: tuple[Array, Array], own: tuple[Banks, Array]) -> Any:
        carry = _Carry(*sums, width)
        node = carry.node(cell.partial_channels)
        terms, found = _mixed(cell.mode, block, [node[..., :width]], *own, None)
        after = carry.after(node, terms)
        return (after.sums, after.rest), (node, found)

    turns = (block.arrays(cell.banks), block.weights(cell.mix, NODES - 1))
    sums, (nodes, found) = lax.scan(turn, (carry.sums, carry.rest), turns)
    block.record(found, cell.recorder)
    return list(nodes), _Carry(*sums, width)


def _unrolled_nodes(cell: _Cell, carry: _Carry) -> tuple[list[Array], _Carry]:
    """All nodes but the last, one after the other, without a row too many."""
    nodes, width = [], carry.width
    for source in range(INPUTS, INPUTS + NODES - 1):
        node, block = carry.node(cell.partial_channels), cell.block(((source,),))
        if block.names:
            carry = carry.after(node, cell.terms(block, [node[..., :width]], NODES - 1))
        else:
            carry = carry._replace(sums=jnp.roll(carry.sums, -width, -1))
        nodes.append(node)
    return nodes, carry


def _bypass(mode: Mode, stride: int, x: Array) -> Array:
    """Channels that no operation sees; their size follows."""
    pooled = stride == 2 and x.shape[-1]
    return mode.kernels.max_pool(x, 2, 2) if pooled else x[:, ::stride, ::stride]


def _mixed(
    mode: Mode,
    block: Block,
    nodes: Sequence[Array],
    own: Banks,
    weights: Array,
    keep: Array | None,
) -> tuple[Array, Means]:
    """The terms of one turn's rows, added up for each target.

    Args:
      mode: how.
      block: which.
      nodes: of the turn, [b, h, w, c] each.
      own: arrays [rows, ...].
      weights: [rows, targets].
      keep: [b, rows] or None.

    Returns:
      [b, h', w', targets * c], and the batch's moments [rows, c].
    """
    names, width = block.names, nodes[0].shape[-1]
    active = [jax.nn.relu(x) for x in nodes]
    moments: Means = {}
    parts: list[Array] = []
    norms: list[Norm] = []
    if convolved := [name for name in names if name in CONVOLUTIONS]:
        y, moments = _convolved(mode, block, own, active, convolved)
        parts.append(y)
        norms += [_norm(block, name, CONVOLUTIONS[name].layers - 1) for name in convolved]
    for name in POOLS:
        if name in names:
            parts.append(pool(mode, name, _tiled(nodes, block.counts(name)), block.stride))
            norms.append(_norm(block, name))
    identity = "skip_connect" in names and block.stride == 1
    if "skip_connect" in names and not identity:
        counts = block.counts("skip_connect")
        parts.append(_halved(mode, active, counts, own["skip_connect"]["kernel"]))
        norms.append(_norm(block, "skip_connect"))
    rows: list[Array] = []
    if parts:
        y, found = _normalise(mode, own, norms, jnp.concatenate(parts, axis=-1))
        moments |= found
        if keep is not None:
            factor = jnp.repeat(keep[:, : y.shape[-1] // width], width, axis=1)
            y = y * factor[:, None, None].astype(y.dtype)
        rows.append(y)
    if identity:
        pairs = zip(nodes, block.counts("skip_connect"), strict=True)
        rows += [x for x, count in pairs if count]
    return _added(jnp.concatenate(rows, axis=-1), weights, block.places), moments


def _norm(block: Block, name: str, layer: int | None = None) -> Norm:
    """The BatchNorm of a primitive's rows, of a convolution that after one of its layers."""
    return name, "" if layer is None else f"_{layer}", sum(block.counts(name))


def _convolved(
    mode: Mode, block: Block, own: Banks, active: Sequence[Array], names: Sequence[str]
) -> tuple[Array, Means]:
    """The rows of these convolutions, but for their last BatchNorm; and moments of the first."""
    moments: Means = {}
    tiles = {name: _tiled(active, block.counts(name)) for name in names}
    spread = _depthwise(mode, own, tiles, 0, block.stride)
    if twice := [name for name in names if CONVOLUTIONS[name].layers == 2]:
        y = _pointwise(mode, own, spread, twice, 0)
        y, moments = _normalise(mode, own, [_norm(block, name, 0) for name in twice], y)
        spread |= _depthwise(mode, own, _split(jax.nn.relu(y), own, twice), 1, 1)
    return _pointwise(mode, own, spread, names, -1), moments


def _tiled(nodes: Sequence[Array], counts: Sequence[int]) -> Array:
    """Each node so many times, side by side."""
    pairs = zip(nodes, counts, strict=True)
    return jnp.concatenate([jnp.tile(x, count) for x, count in pairs if count], axis=-1)


def _split(x: Array, own: Banks, names: Sequence[str]) -> dict[str, Array]:
    """Rows of several convolutions -> those of each."""
    sizes = [
        own[name]["pointwise_0"].shape[0] * own[name]["pointwise_0"].shape[-1] for name in names
    ]
    return dict(zip(names, jnp.split(x, np.cumsum(sizes)[:-1], axis=-1), strict=True))


def _depthwise(
    mode: Mode, own: Banks, rows: Mapping[str, Array], layer: int, stride: int
) -> dict[str, Array]:
    """Depthwise convolutions of the rows of each name, [b, h, w, rows * c]."""
    reach = {name: CONVOLUTIONS[name].dilation * (CONVOLUTIONS[name].size // 2) for name in rows}
    # Those that alone would leave vectors unfilled, and whose windows are about as large.
    joint = [name for name, x in rows.items() if reach[name] <= 2 and x.shape[-1] < _LANES]
    largest = max((reach[name] for name in joint), default=0)
    groups = [joint] if len(joint) > 1 else []
    groups += [[name] for name in rows if [joint] != groups or name not in joint]
    out: dict[str, Array] = {}
    for group in groups:
        filters, dilation = [own[name][f"depthwise_{layer}"] for name in group], 1
        if len(group) > 1:
            filters = [
                _enlarged(one, CONVOLUTIONS[name].dilation, largest - reach[name])
                for name, one in zip(group, filters, strict=True)
            ]
        else:
            dilation = CONVOLUTIONS[group[0]].dilation
        size = filters[0].shape[1]
        sides = [jnp.moveaxis(one, 0, 2).reshape(size, size, -1) for one in filters]
        x = jnp.concatenate([rows[name] for name in group], axis=-1)
        kernel = jnp.concatenate(sides, axis=-1)
        y = mode.apply(mode.kernels.depthwise, x, kernel, stride, dilation)
        ends = np.cumsum([rows[name].shape[-1] for name in group])[:-1]
        out |= dict(zip(group, jnp.split(y, ends, axis=-1), strict=True))
    return out


def _enlarged(filters: Array, dilation: int, border: int) -> Array:
    """Filters [rows, k, k, c] as larger ones without dilation, by zeros."""
    sides = (border, border, dilation - 1)
    return lax.pad(filters, np.zeros((), filters.dtype), [(0, 0, 0), sides, sides, (0, 0, 0)])


def _pointwise(
    mode: Mode, own: Banks, rows: Mapping[str, Array], names: Sequence[str], layer: int
) -> Array:
    """A matrix for every row: as few block diagonal ones as fill a matrix unit."""
    layers = {name: range(CONVOLUTIONS[name].layers)[layer] for name in names}
    matrices = jnp.concatenate([own[name][f"pointwise_{layers[name]}"] for name in names])
    x, (count, width, _) = jnp.concatenate([rows[name] for name in names], -1), matrices.shape
    # As a convolution of groups of rows, which compiles in half the time of matrix products.
    most = max(2 * _LANES // width, 1)
    size = max(n for n in range(1, count + 1) if count % n == 0 and n <= most)
    groups = jax.vmap(_diagonal)(matrices.reshape(-1, size, *matrices.shape[1:]))
    kernel = jnp.moveaxis(groups, 0, 1).reshape(1, 1, size * width, -1)

    def convolve(x: Array, kernel: Array, learn: Array | None) -> Array:
        del learn
        return lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=len(groups),
        )

    return mode.apply(convolve, x, kernel)


def _diagonal(matrices: Array) -> Array:
    """[n, c, d] -> [n c, n d], zero off the blocks."""
    n, inputs, outputs = matrices.shape
    blocks = jnp.eye(n, dtype=matrices.dtype)[:, None, :, None] * matrices[:, :, None]
    return blocks.reshape(n * inputs, n * outputs)


def _halved(mode: Mode, active: Sequence[Array], counts: Sequence[int], kernel: Array) -> Array:
    """Skips that halve the size: half of a row from the even pixels, the other from the odd.

    Args:
      mode: how.
      active: the sources, activated.
      counts: rows of each.
      kernel: [rows, 2, c, c / 2].
    """
    ends = np.cumsum(counts)[:-1]
    out = []
    for x, own in zip(active, jnp.split(kernel, ends), strict=True):
        if not len(own):
            continue
        wide = jnp.transpose(own, (1, 2, 0, 3)).reshape(2, x.shape[-1], -1)
        pixels = [x[:, i::2, i::2] for i in (0, 1)]
        halves = [mode.apply(mode.kernels.pointwise, pixels[i], wide[i]) for i in (0, 1)]
        shape = (*halves[0].shape[:3], len(own), -1)
        rows = jnp.concatenate([half.reshape(shape) for half in halves], axis=-1)
        out.append(rows.reshape(*rows.shape[:3], -1))
    return jnp.concatenate(out, axis=-1)


def _normalise(mode: Mode, own: Banks, norms: Sequence[Norm], y: Array) -> tuple[Array, Means]:
    """BatchNorm [b, h, w, rows * c] of primitives."""
    width, values = y.shape[-1] // sum(count for *_, count in norms), {}
    for kind, default in (("mean", 0.0), ("var", 1.0), ("scale", 1.0), ("bias", 0.0)):
        given = [own[name].get(kind + suffix) for name, suffix, _ in norms]
        if any(array is not None for array in given):
            values[kind] = jnp.concatenate(
                [
                    jnp.full(count * width, default) if array is None else array.reshape(-1)
                    for array, (*_, count) in zip(given, norms, strict=True)
                ]
            )
    y, moments = mode.normalise(y, values)
    if not moments:
        return y, {}
    ends = np.cumsum([count for *_, count in norms])[:-1]
    means, variances = (jnp.split(part.reshape(-1, width), ends) for part in moments[""])
    names = [(name, suffix) for name, suffix, _ in norms]
    return y, dict(zip(names, zip(means, variances, strict=True), strict=True))


def _added(y: Array, weights: Array, places: Mapping) -> Array:
    """Rows [b, h, w, rows * c] times their weights [rows, targets], added up for each target."""
    rows, targets = weights.shape
    width = y.shape[-1] // rows
    if width < _LANES:
        matrix = weights[:, None, :, None] * jnp.eye(width)[:, None]
        matrix = matrix.reshape(rows * width, targets * width).astype(y.dtype)
        return y @ matrix
    terms: list[list[Array]] = [[] for _ in range(targets)]
    for row, target in sorted({place[1:] for place in places.values()}):
        terms[target].append(scaled(y[..., row * width : (row + 1) * width], weights[row, target]))
    zeros = jnp.zeros_like(y[..., :width])
    return jnp.concatenate([sum(own, zeros) for own in terms], axis=-1)
