"""The cells of a DARTS supernet or network: one cell, and several equal ones in a row."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from drnas_jax.nn import norm
from drnas_jax.nn.stacked_params import (
    AllMoments,
    ApplyContext,
    Arrays,
    MomentRecorder,
    Moments,
    PrimitiveArrays,
    StackedParams,
    Weight,
    channel_shuffle,
)
from drnas_jax.spaces.base import Edge
from drnas_jax.spaces.darts import looped_cell, stacked_cell
from drnas_jax.spaces.darts.edge_loop import KEPT_NODES
from drnas_jax.spaces.darts.noise import noise_sums
from drnas_jax.spaces.darts.operations import (
    ALL_EDGES,
    INPUTS,
    NODES,
    NOISE,
    PRIMITIVES,
    begins_with_relu,
    operate,
    stacked_params,
    stacked_rows,
    stride_of,
)

Array = jax.Array
Inputs = tuple[Array, Array]
DrawFactors = Callable[[Array, Array], Array]  # (key, input of a cell) -> factors [b, e]


@dataclasses.dataclass(frozen=True)
class MixedCell:
    """A cell of mixed operations, without its arrays. Images are in the backend's layout.

    Attributes:
      context: Kernels, layout and mode.
      cell_type: `normal` or `reduce`.
      edges: Edges with the operations that they keep.
      channels: Channels C of a node.
      partial_channels: K.
    """

    context: ApplyContext
    cell_type: str
    edges: tuple[Edge, ...]
    channels: int
    partial_channels: int

    @property
    def loops(self) -> bool:
        """Whether the cell runs as a loop over its edges, whose backward pass recomputes each edge.

        The cell of a network runs so only if `remat` allows that much recomputation.
        """
        backend = self.context.backend
        again = len(self.edges) == ALL_EDGES or backend.remat in ("auto", "cells")
        return backend.sequential and again

    def __call__(
        self,
        inputs: Sequence[Array],
        arrays: PrimitiveArrays,
        mix: Array,
        factors: Array | None,
        noise_key: Array | None = None,
    ) -> tuple[Array, AllMoments]:
        """Computes the cell.

        Args:
          inputs: Both inputs, already C channels wide.
          arrays: Stacked arrays [rows, ...] of each primitive.
          mix: Mixing weights [e, o].
          factors: Drop path's factor of each example and edge, [b, e]; None if all paths are kept.
          noise_key: Random key of the operation `noise`, if some edge keeps it.

        Returns:
          The channels of all nodes, and the moments of the batch.
        """
        backend = self.context.backend
        noise = self._noise(inputs[0], mix, factors, noise_key)
        shape = (self.context, self.cell_type, self.edges, inputs, self.partial_channels)
        if self.loops:
            nodes, moments = looped_cell.cell_nodes(*shape, arrays, mix, factors, noise)
        elif backend.stacked:
            nodes, moments = stacked_cell.cell_nodes(*shape, arrays, mix, factors, noise)
        else:
            nodes, moments = self._plain_nodes(inputs, arrays, mix, factors, noise)
        return jnp.concatenate(nodes, axis=backend.channel_axis), moments

    def _noise(
        self, x: Array, mix: Array, factors: Array | None, key: Array | None
    ) -> Array | None:
        """Returns what the operation `noise` adds to the nodes, or None if no edge keeps it."""
        if key is None:
            return None
        backend, stride = self.context.backend, stride_of(self.cell_type, 0)
        images, height, width, _ = jax.eval_shape(backend.transpose, x).shape
        channels = self.channels // self.partial_channels
        shape = (images, -(-height // stride), -(-width // stride), channels)
        return noise_sums(backend, self.edges, shape, x.dtype, key, mix, factors)

    def _plain_nodes(
        self,
        inputs: Sequence[Array],
        arrays: PrimitiveArrays,
        mix: Array,
        factors: Array | None,
        noise: Array | None,
    ) -> tuple[list[Array], AllMoments]:
        """Computes the nodes one operation after another, source by source."""
        backend, recorder = self.context.backend, MomentRecorder()
        # Traced once for all edges of equal shapes.
        run = jax.jit(functools.partial(operate, self.context), static_argnums=(0, 4))
        selected_terms = [[] if noise is None else [noise[node]] for node in range(NODES)]
        bypass_terms: list[list[Array]] = [[] for _ in range(NODES)]
        nodes = list(inputs)
        for source in range(INPUTS + NODES - 1):
            leaving = [edge for edge in self.edges if edge.source == source]
            if leaving:
                stride = stride_of(self.cell_type, source)
                selected, bypass = self._select(nodes[source], stride)
                for i, name, y in self._terms(run, selected, source, arrays, mix, recorder):
                    identity = name == "skip_connect" and stride == 1
                    if factors is not None and not identity:  # so that a path remains
                        y = y * backend.per_example(factors[:, i].astype(y.dtype))
                    selected_terms[self.edges[i].target - INPUTS].append(y)
                for edge in leaving:
                    bypass_terms[edge.target - INPUTS] += bypass
            if source >= INPUTS - 1:
                both = selected_terms[source - INPUTS + 1], bypass_terms[source - INPUTS + 1]
                sums = [functools.reduce(jnp.add, terms) for terms in both if terms]
                node = jnp.concatenate(sums, axis=backend.channel_axis)
                nodes.append(channel_shuffle(node, self.partial_channels, backend.channel_axis))
        return nodes[INPUTS:], recorder.moments()

    def _terms(
        self,
        run: Callable[..., tuple[Array, Moments]],
        x: Array,
        source: int,
        arrays: PrimitiveArrays,
        mix: Array,
        recorder: MomentRecorder,
    ) -> list[tuple[int, str, Array]]:
        """Returns edge, primitive and weighted result of each operation that reads a source."""
        terms, stride = [], stride_of(self.cell_type, source)
        for i, edge in enumerate(self.edges):
            for column, name in enumerate(edge.primitives if edge.source == source else ()):
                if name == NOISE:  # its sums are already there
                    continue
                if name == "none":  # the node may have no other terms
                    terms.append((i, name, jnp.zeros_like(x[:, ::stride, ::stride])))
                    continue
                row = stacked_rows(self.cell_type, self.edges, name).get(i, 0)
                leaves = {leaf: array[row] for leaf, array in arrays.get(name, {}).items()}
                active = jax.nn.relu(x) if begins_with_relu(name, stride) else x
                y, moments = run(name, leaves, active, mix[i, column], stride)
                for suffix, (mean, var) in moments.items():
                    recorder.add(name, suffix, [row], mean, var)
                terms.append((i, name, y))
        return terms

    def _select(self, node: Array, stride: int) -> tuple[Array, list[Array]]:
        """Splits a source into what goes through the operations and what bypasses them, if any."""
        if self.partial_channels == 1:
            return node, []
        backend = self.context.backend
        width = self.channels // self.partial_channels
        selected, bypass = jnp.split(node, [width], axis=backend.channel_axis)
        return selected, [backend.max_pool(bypass, 2, 2) if stride == 2 else bypass]

    def make_params(self, cells: int, affine: bool) -> dict[str, StackedParams]:
        """Returns the modules that hold the arrays of several such cells, by primitive."""
        width = self.channels // self.partial_channels
        rows = {name: stacked_rows(self.cell_type, self.edges, name) for name in PRIMITIVES}
        return {
            name: stacked_params(name, (cells, len(edges)), width, affine)
            for name, edges in rows.items()
            if edges
        }


def squeeze_params(
    cells: int, inputs: int, channels: int, halve: bool, affine: bool, name: str
) -> StackedParams:
    """Returns the module that holds the arrays of `squeeze` for several cells."""
    pixels = 2 if halve else 1
    init = norm.uniform_fan_in(batch_axis=(0, 1))
    weights = {"kernel": Weight(init, (pixels, inputs, channels // pixels))}
    return StackedParams((cells,), weights, {"": (channels,)}, affine, name=name)


def squeeze(context: ApplyContext, arrays: Arrays, x: Array) -> tuple[Array, Moments]:
    """Makes an input of a cell as wide as its nodes: ReLU, pointwise convolution, BatchNorm.

    A kernel of two matrices also halves the size: half of the channels come from the even pixels,
    the other half from the odd ones.

    Args:
      context: Kernels, layout and mode.
      arrays: `kernel` [1, c, d] or [2, c, d / 2], and the arrays of the BatchNorm.
      x: Images of c channels, or of fewer if the others are 0.
    """
    backend, kernel = context.backend, arrays["kernel"]
    x = jax.nn.relu(x)
    pixels = [x] if len(kernel) == 1 else [x[:, i::2, i::2] for i in (0, 1)]
    pairs = zip(pixels, kernel, strict=True)
    halves = [context.apply(backend.pointwise, some, matrix) for some, matrix in pairs]
    return context.normalise(jnp.concatenate(halves, axis=backend.channel_axis), arrays)


def run_cells(
    cell: MixedCell,
    inputs: Inputs,
    runs: Sequence[Mapping[str, Arrays]],
    mix: Array,
    draw_factors: DrawFactors | None,
    keys: Array,
    noise_keys: Array | None = None,
) -> tuple[Inputs, AllMoments]:
    """Computes cells with equal nodes one after another.

    Args:
      cell: The cell.
      inputs: Outputs of the two cells before.
      runs: Arrays of consecutive cells whose inputs are equally wide: [cells, ...] of `squeeze_0`
        and `squeeze_1`, and [cells, rows, ...] of each primitive.
      mix: Mixing weights [e, o].
      draw_factors: Function that draws drop path's factors; None if all paths are kept.
      keys: Random key of each cell, [n].
      noise_keys: Random key of the operation `noise` in each cell, [n], if some edge keeps it.

    Returns:
      Outputs of the last two cells, and the moments [n, ...] of the batch, named as in `runs`.
    """
    if cell.context.backend.loop_cells and len(keys) > 1:
        return _run_in_loop(cell, inputs, runs, mix, draw_factors, keys, noise_keys)

    def step(
        inputs: Inputs, arrays: dict[str, Arrays], key: Array, noise_key: Array | None
    ) -> tuple[Array, AllMoments]:
        squeezed = {
            name: squeeze(cell.context, arrays.pop(name), x)
            for name, x in zip(("squeeze_0", "squeeze_1"), inputs, strict=True)
        }
        nodes = [y for y, _ in squeezed.values()]
        factors = draw_factors(key, nodes[0]) if draw_factors else None
        output, moments = cell(nodes, arrays, mix, factors, noise_key)
        return output, moments | {name: moments for name, (_, moments) in squeezed.items()}

    all_moments, traced = [], jax.jit(_remat(cell, step, in_loop=False))  # once for equal shapes
    for number, key in enumerate(keys):
        noise_key = None if noise_keys is None else noise_keys[number]
        output, moments = traced(inputs, _arrays_of_cell(runs, number), key, noise_key)
        all_moments.append(moments)
        inputs = (inputs[1], output)
    return inputs, jax.tree.map(lambda *arrays: jnp.stack(arrays), *all_moments)


def _remat(cell: MixedCell, step: Callable[..., Any], in_loop: bool) -> Callable[..., Any]:
    """Returns a cell whose backward pass recomputes what the backend says."""
    options = cell.context.backend.checkpointing("none" if cell.loops else "cells")
    if cell.loops and len(cell.edges) < ALL_EDGES:  # the loop recomputes the edges, this the rest
        options = {"policy": jax.checkpoint_policies.save_only_these_names(KEPT_NODES)}
    return step if options is None else jax.checkpoint(step, **options, prevent_cse=not in_loop)


def _arrays_of_cell(runs: Sequence[Mapping[str, Arrays]], number: int) -> dict[str, Arrays]:
    for run in runs:
        cells = len(run["squeeze_0"]["kernel"])
        if number < cells:
            return jax.tree.map(lambda array, number=number: array[number], dict(run))
        number -= cells
    raise IndexError("there is no such cell")


def _run_in_loop(
    cell: MixedCell,
    inputs: Inputs,
    runs: Sequence[Mapping[str, Arrays]],
    mix: Array,
    draw_factors: DrawFactors | None,
    keys: Array,
    noise_keys: Array | None,
) -> tuple[Inputs, AllMoments]:
    """Computes the cells in one loop, which is compiled once; see `run_cells`.

    The inputs of the first cells may have fewer channels than those of the others, so `squeeze_1`
    reads padded channels. They may also have another size, so each step computes `squeeze_0` of the
    next cell, and that of the first cell is computed before the loop.
    """
    context, width = cell.context, NODES * cell.channels
    first = jax.tree.map(lambda array: array[0], runs[0]["squeeze_0"])
    second = _concatenated([_pad_inputs(run["squeeze_1"], width) for run in runs])
    # The last cell has no next one: it computes with a copy of its own arrays, for no reader.
    later = [_pad_inputs(run["squeeze_0"], width) for run in runs[1:]]
    later = _concatenated([*later, jax.tree.map(lambda array: array[-1:], later[-1])])
    primitives = _concatenated(
        [{name: run[name] for name in run if name in PRIMITIVES} for run in runs]
    )

    def step(carry: tuple[Array, Array, Array], of_cell: Any) -> Any:
        h0, _, s1 = carry
        arrays, squeeze_1, next_squeeze_0, key, noise_key = of_cell
        h1, second_moments = squeeze(context, squeeze_1, s1)
        factors = draw_factors(key, h1) if draw_factors else None
        output, moments = cell((h0, h1), arrays, mix, factors, noise_key)
        h0, next_moments = squeeze(context, next_squeeze_0, s1)
        return (h0, s1, output), (moments | {"squeeze_1": second_moments}, next_moments)

    h0, first_moments = squeeze(context, first, inputs[0])
    s1 = _pad_channels(inputs[1], width, context.backend.channel_axis)
    step = _remat(cell, step, in_loop=True)
    of_cells = (primitives, second, later, keys, noise_keys)
    carry, stacked_moments = lax.scan(step, (h0, s1, s1), of_cells)
    moments, next_moments = stacked_moments
    moments["squeeze_0"] = jax.tree.map(
        lambda first, later: jnp.concatenate([first[None], later[:-1]]), first_moments, next_moments
    )
    return carry[1:], moments


def _concatenated(trees: Sequence[Any]) -> Any:
    """Concatenates the arrays [n, ...] of several trees."""
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *trees)


def _pad_channels(x: Array, width: int, axis: int) -> Array:
    pads = [(0, 0)] * x.ndim
    pads[axis] = (0, width - x.shape[axis])
    return jnp.pad(x, pads)


def _pad_inputs(arrays: Arrays, width: int) -> Arrays:
    """Pads the kernel of `squeeze` with zeros, so that it reads `width` channels."""
    kernel = arrays["kernel"]
    missing = width - kernel.shape[-2]
    return {**arrays, "kernel": jnp.pad(kernel, ((0, 0), (0, 0), (0, missing), (0, 0)))}
