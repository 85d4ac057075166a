"""The arithmetic that is chosen by backend, in this one place. All variants agree (tested).

Arrays are `[b, h, w, c]`, filters `[h, w, c_in, c_out]`, padding such that stride 1 keeps the size
(where the window is even, there is none).
"""

import functools
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from drnas_jax.errors import check_choice

Array = jax.Array

_MOST_BLOCK_ROWS = 128  # from here on the zeros of a block-diagonal matrix cost too much
_LAYOUT = ("NHWC", "HWIO", "NHWC")


class Kernels(NamedTuple):
    """One implementation of each kernel.

    Attributes:
      conv: (x, filter) -> y, dense convolution of stride 1.
      depthwise: (x, filters [e, k, k, c], stride, dilation) -> [b, h', w', e, c], one filter a
        channel, for several edges at once.
      pointwise: (x [b, h, w, e, c], matrices [e, c, d]) -> [b, h, w, e, d].
      max_pool: (x, size, stride) -> y, maximum over size x size; among equal ones the first gets
        the gradient, as in PyTorch.
      avg_pool: (x, stride) -> y, mean over 3x3; padding does not count.
    """

    conv: Callable[[Array, Array], Array]
    depthwise: Callable[[Array, Array, int, int], Array]
    pointwise: Callable[[Array, Array], Array]
    max_pool: Callable[[Array, int, int], Array]
    avg_pool: Callable[[Array, int], Array]


def convolve(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Dense convolution by the library, padded by half the filter on every side as in PyTorch."""
    padding = [(size // 2, size // 2) for size in kernel.shape[:2]]
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=_LAYOUT)


def _grouped_depthwise(x: Array, filters: Array, stride: int, dilation: int) -> Array:
    edges, size, _, channels = filters.shape
    # A group is a channel, and its outputs are that channel's edges.
    kernel = jnp.moveaxis(filters, 0, -1).reshape(size, size, 1, channels * edges)
    pad = dilation * (size // 2)
    y = lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(pad, pad)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_LAYOUT,
        feature_group_count=channels,
    )
    return jnp.swapaxes(y.reshape(*y.shape[:3], channels, edges), -1, -2)


def _batched_pointwise(x: Array, matrices: Array) -> Array:
    return jnp.einsum("bhwec,ecd->bhwed", x, matrices)


def _window(x: Array, initial: float, reduce: Callable, size: int, stride: int) -> Array:
    pad = ((size - 1) // 2,) * 2
    return lax.reduce_window(
        x, initial, reduce, (1, size, size, 1), (1, stride, stride, 1), ((0, 0), pad, pad, (0, 0))
    )


def _window_max(x: Array, size: int, stride: int) -> Array:
    return _window(x, -jnp.inf, lax.max, size, stride)


def _window_mean(x: Array, stride: int = 1) -> Array:
    ones = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
    return _window(x, 0.0, lax.add, 3, stride) / _window(ones, 0.0, lax.add, 3, stride)


def _patch_convolve(x: Array, kernel: Array) -> Array:
    """Convolution as one matrix product: XLA's CPU convolution is 20 times slower in a loop."""
    height, width = kernel.shape[:2]
    if (height, width) == (1, 1):
        return x @ kernel[0, 0]
    rows, columns = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (height // 2,) * 2, (width // 2,) * 2, (0, 0)))
    shifted = [
        padded[:, i : i + rows, j : j + columns] for i in range(height) for j in range(width)
    ]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _taps(
    padded: Array, size: int, stride: int, shape: tuple[int, int]
) -> Iterator[tuple[int, Array]]:
    """For each place in a window, numbered row by row: the values there, of [b, *shape] windows."""
    rows, columns = ((side - 1) * stride + 1 for side in shape)
    for place in range(size * size):
        i, j = divmod(place, size)
        yield place, padded[:, i : i + rows : stride, j : j + columns : stride]


def _pad(x: Array, pad: int, value: float = 0.0) -> Array:
    return jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=value)


def _sides(x: Array) -> tuple[int, int]:
    return x.shape[1], x.shape[2]


def _output_shape(x: Array, pad: int, reach: int, stride: int) -> tuple[int, int]:
    rows, columns = ((side + 2 * pad - reach) // stride + 1 for side in x.shape[1:3])
    return rows, columns


def _banded_depthwise(x: Array, filters: Array, stride: int, dilation: int) -> Array:
    """A matrix product a channel: grouped convolution is 10 to 100 times slower on XLA's CPU.

    A row of the output is a banded matrix times the rows of the input that the filter covers. Most
    of the matrix is zero, and the product is still 5 to 60 times faster than sums of shifted
    products where channels are few; its gradients are products as well.
    """
    edges, size, _, channels = filters.shape
    pad = dilation * (size // 2)
    rows, columns = _output_shape(x, pad, 2 * pad + 1, stride)
    tap, before, after = np.ogrid[:size, : x.shape[2], :columns]
    place = jnp.asarray(before == after * stride + tap * dilation - pad, x.dtype)
    bands = jnp.einsum("eijc,jwv->ciwve", filters, place)
    bands = bands.reshape(channels, size * x.shape[2], columns * edges)
    by_channel = jnp.pad(jnp.transpose(x, (3, 0, 1, 2)), ((0, 0), (0, 0), (pad, pad), (0, 0)))
    last = (rows - 1) * stride + 1
    covered = [by_channel[:, :, i * dilation :][:, :, :last:stride] for i in range(size)]
    left = jnp.concatenate(covered, axis=3).reshape(channels, -1, size * x.shape[2])
    y = jnp.matmul(left, bands)
    return jnp.transpose(y.reshape(channels, -1, rows, columns, edges), (1, 2, 3, 4, 0))


def _shift_max(x: Array, size: int, stride: int) -> Array:
    """By shifts that remember where the maximum was: select-and-scatter is 30 times slower."""
    return _routed_max(x, size, stride, _sides(x))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _routed_max(x: Array, size: int, stride: int, shape: tuple[int, int]) -> Array:
    return _routed_max_forward(x, size, stride, shape)[0]


def _routed_max_forward(
    x: Array, size: int, stride: int, shape: tuple[int, int]
) -> tuple[Array, Array]:
    del shape
    pad = (size - 1) // 2
    outputs = _output_shape(x, pad, size, stride)
    taps = _taps(_pad(x, pad, -jnp.inf), size, stride, outputs)
    _, best = next(taps)
    chosen = jnp.zeros(best.shape, jnp.int8)
    for place, tap in taps:
        better = tap > best
        best = jnp.where(better, tap, best)
        chosen = jnp.where(better, jnp.int8(place), chosen)
    return best, chosen


def _routed_max_backward(
    size: int, stride: int, shape: tuple[int, int], chosen: Array, g: Array
) -> tuple[Array]:
    """Each input reads the outputs it went to, and takes the gradient of those that chose it."""
    low = size - 1 - (size - 1) // 2
    config = [(0, 0, 0)] * g.ndim
    for axis, side in enumerate(shape, start=1):
        used = low + (g.shape[axis] - 1) * stride + 1
        config[axis] = (low, side + size - 1 - used, stride - 1)
    outputs = _taps(lax.pad(g, jnp.zeros((), g.dtype), config), size, 1, shape)
    choices = _taps(lax.pad(chosen, jnp.int8(-1), config), size, 1, shape)
    last = size * size - 1  # windows are read backwards
    terms = [
        jnp.where(choice == last - place, value, 0)
        for (place, value), (_, choice) in zip(outputs, choices, strict=True)
    ]
    return (functools.reduce(jnp.add, terms),)


_routed_max.defvjp(_routed_max_forward, _routed_max_backward)


def _block_pointwise(x: Array, matrices: Array) -> Array:
    """One product with a block-diagonal matrix: small batched ones use a CPU badly."""
    edges, inputs, outputs = matrices.shape
    if edges * inputs > _MOST_BLOCK_ROWS:
        return _batched_pointwise(x, matrices)
    blocks = jnp.einsum("ecd,ef->ecfd", matrices, jnp.eye(edges, dtype=x.dtype))
    wide = x.reshape(*x.shape[:3], edges * inputs) @ blocks.reshape(edges * inputs, -1)
    return wide.reshape(*x.shape[:3], edges, outputs)


def _window_counts(height: int, width: int) -> np.ndarray:
    def inside(size: int) -> np.ndarray:
        return np.array([min(i + 1, size - 1) - max(i - 1, 0) + 1 for i in range(size)])

    return np.outer(inside(height), inside(width)).astype(np.float32)[None, :, :, None]


def _box_sum(x: Array) -> Array:
    padded = _pad(x, 1)
    rows, columns = x.shape[1:3]
    down = padded[:, :rows] + padded[:, 1 : rows + 1] + padded[:, 2 : rows + 2]
    return down[:, :, :columns] + down[:, :, 1 : columns + 1] + down[:, :, 2 : columns + 2]


@jax.custom_vjp
def _box_mean(x: Array) -> Array:
    return _box_sum(x) / _window_counts(*x.shape[1:3]).astype(x.dtype)


# The sum over a 3x3 box is its own transpose, so the gradient costs what the forward pass costs.
_box_mean.defvjp(
    lambda x: (_box_mean(x), None),
    lambda _, g: (_box_sum(g / _window_counts(*g.shape[1:3]).astype(g.dtype)),),
)


def _shift_mean(x: Array, stride: int = 1) -> Array:
    return _box_mean(x)[:, ::stride, ::stride]


PLAIN = Kernels(convolve, _grouped_depthwise, _batched_pointwise, _window_max, _window_mean)
CPU = Kernels(_patch_convolve, _banded_depthwise, _block_pointwise, _shift_max, _shift_mean)
_BY_NAME = {"plain": PLAIN, "cpu": CPU, "gpu": PLAIN, "tpu": PLAIN}


def for_platform(platform: str) -> Kernels:
    """The fastest kernels measured for a JAX platform ('cpu', 'gpu', 'tpu'), or the 'plain' ones.

    Raises:
      UserError: the platform is none of these.
    """
    check_choice("platform", platform, _BY_NAME)
    return _BY_NAME[platform]
