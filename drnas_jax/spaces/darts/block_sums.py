"""The operations of a block of edges, computed side by side as channels, and their weighted sums.

Depthwise filters of several primitives share one convolution, pointwise matrices of several edges
share another, and one matrix product adds up the weighted operations of each node. Images are
[b, h, w, c].
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from drnas_jax.nn.stacked_params import ApplyContext, PrimitiveArrays, scaled
from drnas_jax.spaces.darts.edge_blocks import EdgeBlock, RowMoments
from drnas_jax.spaces.darts.operations import CONVOLUTIONS, POOLS, pool

Array = jax.Array

_LANES = 128  # channels that a vector unit takes at once


class _Norm(NamedTuple):
    """The rows of one BatchNorm.

    Attributes:
      name: Name of the primitive.
      suffix: Suffix of the leaf names.
      rows: Number of rows.
    """

    name: str
    suffix: str
    rows: int


def weighted_sums(
    context: ApplyContext,
    block: EdgeBlock,
    nodes: Sequence[Array],
    arrays: PrimitiveArrays,
    weights: Array,
    factors: Array | None,
) -> tuple[Array, RowMoments]:
    """Computes the rows of one step and adds them up for each target.

    Args:
      context: Kernels, layout and mode.
      block: The block of edges.
      nodes: Sources of the step, [b, h, w, c] each.
      arrays: Stacked arrays [rows, ...] of each primitive.
      weights: Mixing weights [rows, targets].
      factors: Drop path's factors [b, rows]; None if all paths are kept.

    Returns:
      Weighted sums [b, h', w', targets * c], and the moments [rows, c] of the batch.
    """
    names, width = block.names, nodes[0].shape[-1]
    active = [jax.nn.relu(x) for x in nodes]
    moments: RowMoments = {}
    outputs: list[Array] = []
    norms: list[_Norm] = []
    if convolutions := [name for name in names if name in CONVOLUTIONS]:
        y, moments = _convolved(context, block, arrays, active, convolutions)
        outputs.append(y)
        norms += [_norm(block, name, CONVOLUTIONS[name].layers - 1) for name in convolutions]
    for name in POOLS:
        if name in names:
            outputs.append(pool(context, name, _tiled(nodes, block.counts(name)), block.stride))
            norms.append(_norm(block, name))
    identity = "skip_connect" in names and block.stride == 1
    if "skip_connect" in names and not identity:
        counts = block.counts("skip_connect")
        outputs.append(_halved(context, active, counts, arrays["skip_connect"]["kernel"]))
        norms.append(_norm(block, "skip_connect"))
    rows: list[Array] = []
    if outputs:
        y, last = _normalise(context, arrays, norms, jnp.concatenate(outputs, axis=-1))
        moments |= last
        if factors is not None:
            wide = jnp.repeat(factors[:, : y.shape[-1] // width], width, axis=1)
            y = y * wide[:, None, None].astype(y.dtype)
        rows.append(y)
    if identity:  # it has no BatchNorm, and drop path never drops it, so that a path remains
        pairs = zip(nodes, block.counts("skip_connect"), strict=True)
        rows += [x for x, count in pairs if count]
    return _added(jnp.concatenate(rows, axis=-1), weights, block.positions), moments


def _norm(block: EdgeBlock, name: str, layer: int | None = None) -> _Norm:
    """Returns the rows of a primitive's BatchNorm; a convolution has one after each layer."""
    return _Norm(name, "" if layer is None else f"_{layer}", sum(block.counts(name)))


def _convolved(
    context: ApplyContext,
    block: EdgeBlock,
    arrays: PrimitiveArrays,
    active: Sequence[Array],
    names: Sequence[str],
) -> tuple[Array, RowMoments]:
    """Computes the rows of these convolutions, without the last BatchNorm.

    Returns:
      Rows [b, h', w', rows * c], and the moments of the BatchNorms before the last.
    """
    moments: RowMoments = {}
    tiles = {name: _tiled(active, block.counts(name)) for name in names}
    spread = _depthwise(context, arrays, tiles, 0, block.stride)
    if two_layers := [name for name in names if CONVOLUTIONS[name].layers == 2]:
        y = _pointwise(context, arrays, spread, two_layers, 0)
        norms = [_norm(block, name, 0) for name in two_layers]
        y, moments = _normalise(context, arrays, norms, y)
        spread |= _depthwise(context, arrays, _split(jax.nn.relu(y), arrays, two_layers), 1, 1)
    return _pointwise(context, arrays, spread, names, -1), moments


def _tiled(nodes: Sequence[Array], counts: Sequence[int]) -> Array:
    """Repeats each node as often as it has rows, side by side."""
    pairs = zip(nodes, counts, strict=True)
    return jnp.concatenate([jnp.tile(x, count) for x, count in pairs if count], axis=-1)


def _split(x: Array, arrays: PrimitiveArrays, names: Sequence[str]) -> dict[str, Array]:
    """Splits the rows of several convolutions into those of each."""
    sizes = [
        arrays[name]["pointwise_0"].shape[0] * arrays[name]["pointwise_0"].shape[-1]
        for name in names
    ]
    return dict(zip(names, jnp.split(x, np.cumsum(sizes)[:-1], axis=-1), strict=True))


def _depthwise(
    context: ApplyContext,
    arrays: PrimitiveArrays,
    rows: Mapping[str, Array],
    layer: int,
    stride: int,
) -> dict[str, Array]:
    """Applies a layer's depthwise filters to the rows [b, h, w, rows * c] of each convolution."""
    reach = {name: CONVOLUTIONS[name].dilation * (CONVOLUTIONS[name].size // 2) for name in rows}
    # Primitives run together if their channels would not fill a vector, and if their windows are
    # about as large, because smaller filters are filled up with zeros.
    joint = [name for name, x in rows.items() if reach[name] <= 2 and x.shape[-1] < _LANES]
    largest = max((reach[name] for name in joint), default=0)
    groups = [joint] if len(joint) > 1 else []
    groups += [[name] for name in rows if [joint] != groups or name not in joint]
    outputs: dict[str, Array] = {}
    for group in groups:
        filters, dilation = [arrays[name][f"depthwise_{layer}"] for name in group], 1
        if len(group) > 1:
            filters = [
                _enlarged(some, CONVOLUTIONS[name].dilation, largest - reach[name])
                for name, some in zip(group, filters, strict=True)
            ]
        else:
            dilation = CONVOLUTIONS[group[0]].dilation
        size = filters[0].shape[1]
        flat = [jnp.moveaxis(some, 0, 2).reshape(size, size, -1) for some in filters]
        x = jnp.concatenate([rows[name] for name in group], axis=-1)
        kernel = jnp.concatenate(flat, axis=-1)
        y = context.apply(context.backend.depthwise, x, kernel, stride, dilation)
        ends = np.cumsum([rows[name].shape[-1] for name in group])[:-1]
        outputs |= dict(zip(group, jnp.split(y, ends, axis=-1), strict=True))
    return outputs


def _enlarged(filters: Array, dilation: int, border: int) -> Array:
    """Writes dilated filters [rows, k, k, c] as larger ones without dilation, by adding zeros."""
    sides = (border, border, dilation - 1)
    return lax.pad(filters, np.zeros((), filters.dtype), [(0, 0, 0), sides, sides, (0, 0, 0)])


def _pointwise(
    context: ApplyContext,
    arrays: PrimitiveArrays,
    rows: Mapping[str, Array],
    names: Sequence[str],
    layer: int,
) -> Array:
    """Multiplies each row by its matrix.

    Rows are grouped into block diagonal matrices that are as large as a matrix unit.
    """
    layers = {name: range(CONVOLUTIONS[name].layers)[layer] for name in names}
    matrices = jnp.concatenate([arrays[name][f"pointwise_{layers[name]}"] for name in names])
    x, (count, width, _) = jnp.concatenate([rows[name] for name in names], -1), matrices.shape
    # A convolution of groups of rows compiles in half the time of matrix products.
    most = max(2 * _LANES // width, 1)
    size = max(n for n in range(1, count + 1) if count % n == 0 and n <= most)
    groups = jax.vmap(_diagonal)(matrices.reshape(-1, size, *matrices.shape[1:]))
    kernel = jnp.moveaxis(groups, 0, 1).reshape(1, 1, size * width, -1)

    def convolve(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=len(groups),
        )

    return context.apply(convolve, x, kernel)


def _diagonal(matrices: Array) -> Array:
    """Puts matrices [n, c, d] on the diagonal of one matrix [n * c, n * d] of zeros."""
    n, inputs, outputs = matrices.shape
    blocks = jnp.eye(n, dtype=matrices.dtype)[:, None, :, None] * matrices[:, :, None]
    return blocks.reshape(n * inputs, n * outputs)


def _halved(
    context: ApplyContext, active: Sequence[Array], counts: Sequence[int], kernel: Array
) -> Array:
    """Computes the rows of skip connections that halve the size, without their BatchNorm.

    Half of a row's channels come from the even pixels, the other half from the odd ones.

    Args:
      context: Kernels, layout and mode.
      active: Sources after the ReLU, [b, h, w, c] each.
      counts: Number of rows of each source.
      kernel: Matrices of all rows, [rows, 2, c, c / 2].
    """
    ends = np.cumsum(counts)[:-1]
    outputs = []
    for x, matrices in zip(active, jnp.split(kernel, ends), strict=True):
        if not len(matrices):
            continue
        wide = jnp.transpose(matrices, (1, 2, 0, 3)).reshape(2, x.shape[-1], -1)
        pixels = [x[:, i::2, i::2] for i in (0, 1)]
        halves = [context.apply(context.backend.pointwise, pixels[i], wide[i]) for i in (0, 1)]
        shape = (*halves[0].shape[:3], len(matrices), -1)
        rows = jnp.concatenate([half.reshape(shape) for half in halves], axis=-1)
        outputs.append(rows.reshape(*rows.shape[:3], -1))
    return jnp.concatenate(outputs, axis=-1)


def _normalise(
    context: ApplyContext, arrays: PrimitiveArrays, norms: Sequence[_Norm], y: Array
) -> tuple[Array, RowMoments]:
    """Applies the BatchNorms of several primitives to their rows [b, h, w, rows * c] at once."""
    width, values = y.shape[-1] // sum(norm.rows for norm in norms), {}
    for kind, default in (("mean", 0.0), ("var", 1.0), ("scale", 1.0), ("bias", 0.0)):
        given = [arrays[norm.name].get(kind + norm.suffix) for norm in norms]
        if any(array is not None for array in given):
            values[kind] = jnp.concatenate(
                [
                    jnp.full(norm.rows * width, default) if array is None else array.reshape(-1)
                    for array, norm in zip(given, norms, strict=True)
                ]
            )
    y, moments = context.normalise(y, values)
    if not moments:
        return y, {}
    ends = np.cumsum([norm.rows for norm in norms])[:-1]
    means, variances = (jnp.split(array.reshape(-1, width), ends) for array in moments[""])
    names = [(norm.name, norm.suffix) for norm in norms]
    return y, dict(zip(names, zip(means, variances, strict=True), strict=True))


def _added(
    y: Array, weights: Array, positions: Mapping[tuple[int, int], tuple[int, int, int]]
) -> Array:
    """Multiplies rows by their mixing weights and adds them up for each target.

    Args:
      y: Rows [b, h, w, rows * c].
      weights: Mixing weights [rows, targets].
      positions: See `EdgeBlock.positions`; other pairs of a row and a target have no weight.

    Returns:
      Sums [b, h, w, targets * c].
    """
    rows, targets = weights.shape
    width = y.shape[-1] // rows
    if width < _LANES:
        matrix = weights[:, None, :, None] * jnp.eye(width)[:, None]
        matrix = matrix.reshape(rows * width, targets * width).astype(y.dtype)
        return y @ matrix
    terms: list[list[Array]] = [[] for _ in range(targets)]
    for row, target in sorted({position[1:] for position in positions.values()}):
        terms[target].append(scaled(y[..., row * width : (row + 1) * width], weights[row, target]))
    zeros = jnp.zeros_like(y[..., :width])
    return jnp.concatenate([sum(of_target, zeros) for of_target in terms], axis=-1)
