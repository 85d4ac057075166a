"""Cells of the DARTS space, of a supernet or of a network: one cell, and runs of equal ones."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from drnas_jax.nn import norm
from drnas_jax.nn.banks import (
    AllMoments,
    Arrays,
    Bank,
    Banks,
    Mode,
    Moments,
    Recorder,
    Weight,
    channel_shuffle,
)
from drnas_jax.spaces.darts import edge_loop, stacked
from drnas_jax.spaces.darts.operations import (
    ALL_EDGES,
    INPUTS,
    NODES,
    PRIMITIVES,
    Edge,
    bank_rows,
    begins_with_relu,
    make_bank,
    operate,
    stride_of,
)

Array = jax.Array
Inputs = tuple[Array, Array]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of mixed operations; static. Images are in the kernels' layout.

    Attributes:
      mode: how operations run.
      cell_type: 'normal' or 'reduce'.
      edges: of the cell.
      channels: of a node.
      partial_channels: K.
    """

    mode: Mode
    cell_type: str
    edges: tuple[Edge, ...]
    channels: int
    partial_channels: int

    @property
    def loops(self) -> bool:
        """Whether it runs as loops over its edges: a supernet's, where that is faster."""
        return self.mode.kernels.sequential and len(self.edges) == ALL_EDGES

    def __call__(
        self, inputs: Sequence[Array], banks: Banks, mix: Array, keep: Array | None
    ) -> tuple[Array, AllMoments]:
        """Both squeezed inputs -> all nodes' channels, and the batch's moments.

        Args:
          inputs: of `channels` each.
          banks: arrays [rows, ...] by primitive and name.
          mix: mixing weights [e, o].
          keep: drop path, a factor of each example and edge [b, e]; None: all are kept.
        """
        kernels = self.mode.kernels
        if self.loops:
            nodes, moments = edge_loop.cell_nodes(
                self.mode, self.cell_type, self.edges, inputs, self.partial_channels, banks, mix
            )
        elif kernels.stacked:
            nodes, moments = stacked.cell_nodes(
                self.mode,
                self.cell_type,
                self.edges,
                inputs,
                self.partial_channels,
                banks,
                mix,
                keep,
            )
        else:
            nodes, moments = self._one_by_one(inputs, banks, mix, keep)
        return jnp.concatenate(nodes, axis=kernels.channel_axis), moments

    def _one_by_one(
        self, inputs: Sequence[Array], banks: Banks, mix: Array, keep: Array | None
    ) -> tuple[list[Array], AllMoments]:
        """All nodes, operation after operation; from source to source, whose edges share work."""
        kernels, recorder = self.mode.kernels, Recorder()
        # Traced once for all edges of equal shapes.
        run = jax.jit(functools.partial(operate, self.mode), static_argnums=(0, 4))
        sums: list[list[Array]] = [[] for _ in range(NODES)]  # of the selected channels
        rest: list[list[Array]] = [[] for _ in range(NODES)]  # of the others
        nodes = list(inputs)
        for source in range(INPUTS + NODES - 1):
            out = [edge for edge in self.edges if edge.source == source]
            if out:
                stride = stride_of(self.cell_type, source)
                selected, bypass = self._select(nodes[source], stride)
                for i, name, y in self._terms(run, selected, source, banks, mix, recorder):
                    identity = name == "skip_connect" and stride == 1
                    if keep is not None and not identity:  # so that a path remains
                        y = y * kernels.per_example(keep[:, i].astype(y.dtype))
                    sums[self.edges[i].node].append(y)
                for edge in out:
                    rest[edge.node] += bypass
            if source >= INPUTS - 1:
                terms = sums[source - INPUTS + 1], rest[source - INPUTS + 1]
                parts = [functools.reduce(jnp.add, part) for part in terms if part]
                whole = jnp.concatenate(parts, axis=kernels.channel_axis)
                nodes.append(channel_shuffle(whole, self.partial_channels, kernels.channel_axis))
        return nodes[INPUTS:], recorder.moments()

    def _terms(
        self,
        run: Callable[..., tuple[Array, Moments]],
        x: Array,
        source: int,
        banks: Banks,
        mix: Array,
        recorder: Recorder,
    ) -> list[tuple[int, str, Array]]:
        """The terms of all edges that leave a source, with their edge and primitive."""
        terms, stride = [], stride_of(self.cell_type, source)
        for i, edge in enumerate(self.edges):
            for column, name in enumerate(edge.operations if edge.source == source else ()):
                row = bank_rows(self.cell_type, self.edges, name).get(i, 0)
                own = {leaf: array[row] for leaf, array in banks.get(name, {}).items()}
                active = jax.nn.relu(x) if begins_with_relu(name, stride) else x
                y, moments = run(name, own, active, mix[i, column], stride)
                for suffix, (mean, var) in moments.items():
                    recorder.add(name, suffix, [row], mean, var)
                terms.append((i, name, y))
        return terms

    def _select(self, node: Array, stride: int) -> tuple[Array, list[Array]]:
        """The channels for the operations; and the others as they pass by, if there are any."""
        if self.partial_channels == 1:
            return node, []
        kernels = self.mode.kernels
        width = self.channels // self.partial_channels
        selected, bypass = jnp.split(node, [width], axis=kernels.channel_axis)
        return selected, [kernels.max_pool(bypass, 2, 2) if stride == 2 else bypass]

    def make_banks(self, cells: int, affine: bool) -> dict[str, Bank]:
        """The banks of a run of such cells, by primitive."""
        width = self.channels // self.partial_channels
        rows = {name: bank_rows(self.cell_type, self.edges, name) for name in PRIMITIVES}
        return {
            name: make_bank(name, (cells, len(own)), width, affine)
            for name, own in rows.items()
            if own
        }


def squeeze_bank(
    cells: int, inputs: int, channels: int, halve: bool, affine: bool, name: str
) -> Bank:
    """The bank of `squeeze`, for a run of cells."""
    parts = 2 if halve else 1
    init = norm.uniform_fan_in(batch_axis=(0, 1))
    weights = {"kernel": Weight(init, (parts, inputs, channels // parts))}
    return Bank((cells,), weights, {"": (channels,)}, affine, name=name)


def squeeze(mode: Mode, own: Arrays, x: Array) -> tuple[Array, Moments]:
    """ReLU-1x1 convolution-BatchNorm, which makes an input of a cell as wide as its nodes.

    Where the kernel has two parts, it also halves the size: one half of the channels is from the
    even pixels, the other one from the odd.

    Args:
      mode: how it runs.
      own: kernel [parts, c, d / parts], and the BatchNorm's arrays.
      x: images; missing channels count as 0.
    """
    kernels, kernel = mode.kernels, own["kernel"]
    x = jax.nn.relu(x)
    pixels = [x] if len(kernel) == 1 else [x[:, i::2, i::2] for i in (0, 1)]
    pairs = zip(pixels, kernel, strict=True)
    parts = [mode.apply(kernels.pointwise, own_pixels, part) for own_pixels, part in pairs]
    return mode.normalise(jnp.concatenate(parts, axis=kernels.channel_axis), own)


def run_cells(
    cell: Cell,
    inputs: Inputs,
    runs: Sequence[Mapping[str, Arrays]],
    mix: Array,
    keep: Callable[[Array, Array], Array] | None,
    keys: Array,
) -> tuple[Inputs, AllMoments]:
    """Cells of equal nodes, one after another.

    Args:
      cell: which.
      inputs: outputs of the two cells before.
      runs: of cells whose inputs are equal as well: arrays [cells, ...] of `squeeze_0` and
        `squeeze_1`, and [cells, rows, ...] of primitives.
      mix: mixing weights [e, o].
      keep: (key, a cell's input) -> see Cell; None: no path is dropped.
      keys: of the cells [n].

    Returns:
      The last two outputs; and the batch's moments of all cells [n, ...], by name as in `runs`.
    """
    if cell.mode.kernels.loop_cells and len(keys) > 1:
        return _looped(cell, inputs, runs, mix, keep, keys)

    def step(inputs: Inputs, own: dict[str, Arrays], key: Array) -> tuple[Array, AllMoments]:
        squeezed = {
            name: squeeze(cell.mode, own.pop(name), x)
            for name, x in zip(("squeeze_0", "squeeze_1"), inputs, strict=True)
        }
        nodes = [y for y, _ in squeezed.values()]
        out, moments = cell(nodes, own, mix, keep(key, nodes[0]) if keep else None)
        return out, moments | {name: own for name, (_, own) in squeezed.items()}

    found, traced = [], jax.jit(_remat(cell, step, in_loop=False))  # once for all equal shapes
    for place, key in enumerate(keys):
        out, moments = traced(inputs, _cell_arrays(runs, place), key)
        found.append(moments)
        inputs = (inputs[1], out)
    return inputs, jax.tree.map(lambda *arrays: jnp.stack(arrays), *found)


def _remat(cell: Cell, step: Callable[..., Any], in_loop: bool) -> Callable[..., Any]:
    """A cell whose gradient recomputes what the kernels say."""
    # A cell in loops over its edges recomputes them as it is.
    options = cell.mode.kernels.checkpointing("none" if cell.loops else "cells")
    return step if options is None else jax.checkpoint(step, **options, prevent_cse=not in_loop)


def _cell_arrays(runs: Sequence[Mapping[str, Arrays]], place: int) -> dict[str, Arrays]:
    for run in runs:
        cells = len(run["squeeze_0"]["kernel"])
        if place < cells:
            return jax.tree.map(lambda array, place=place: array[place], dict(run))
        place -= cells
    raise IndexError("there is no such cell")


def _looped(
    cell: Cell,
    inputs: Inputs,
    runs: Sequence[Mapping[str, Arrays]],
    mix: Array,
    keep: Callable[[Array, Array], Array] | None,
    keys: Array,
) -> tuple[Inputs, AllMoments]:
    """As one loop, compiled once, though the first cells' inputs differ from the others'.

    Second inputs are padded to the width of a cell's output; and what squeezes a cell's first input
    belongs to the step before, as the first cell's may even have another size.
    """
    mode, width = cell.mode, NODES * cell.channels
    first = jax.tree.map(lambda array: array[0], runs[0]["squeeze_0"])
    second = _joined([_pad_inputs(run["squeeze_1"], width) for run in runs])
    # The last cell squeezes for none after it: by a copy, whose result nobody uses.
    later = [_pad_inputs(run["squeeze_0"], width) for run in runs[1:]]
    later = _joined([*later, jax.tree.map(lambda array: array[-1:], later[-1])])
    banks = _joined([{name: run[name] for name in run if name in PRIMITIVES} for run in runs])

    def step(carry: tuple[Array, Array, Array], own: Any) -> Any:
        h0, _, s1 = carry
        banks, own_second, own_later, key = own
        h1, second_moments = squeeze(mode, own_second, s1)
        out, moments = cell((h0, h1), banks, mix, keep(key, h1) if keep else None)
        h0, later_moments = squeeze(mode, own_later, s1)
        return (h0, s1, out), (moments | {"squeeze_1": second_moments}, later_moments)

    h0, first_moments = squeeze(mode, first, inputs[0])
    s1 = _pad_channels(inputs[1], width, mode.kernels.channel_axis)
    step = _remat(cell, step, in_loop=True)
    carry, found = lax.scan(step, (h0, s1, s1), (banks, second, later, keys))
    moments, later_moments = found
    moments["squeeze_0"] = jax.tree.map(
        lambda one, others: jnp.concatenate([one[None], others[:-1]]), first_moments, later_moments
    )
    return carry[1:], moments


def _joined(parts: Sequence[Any]) -> Any:
    """Trees of arrays [n, ...], one after another."""
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)


def _pad_channels(x: Array, width: int, axis: int) -> Array:
    pads = [(0, 0)] * x.ndim
    pads[axis] = (0, width - x.shape[axis])
    return jnp.pad(x, pads)


def _pad_inputs(own: Arrays, width: int) -> Arrays:
    """Arrays of `squeeze` [n, ...], padded by zeros to so many input channels."""
    kernel = own["kernel"]
    missing = width - kernel.shape[-2]
    return {**own, "kernel": jnp.pad(kernel, ((0, 0), (0, 0), (0, missing), (0, 0)))}
