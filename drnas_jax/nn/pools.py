"""Pools for CPUs, as maxima and sums over shifted images of shape [c, h, w, b].

XLA's CPU backend runs windowed maxima and means 10 to 100 times slower than necessary. It fuses
those of shifted images into one pass over the data, vectorised over the batch.
"""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array


def max_pool(x: Array, size: int, stride: int) -> Array:
    """Computes the maximum over windows, first along rows and then along columns.

    Among equal values the first one gets the gradient, and a window with a NaN gives NaN, as in
    PyTorch.

    Args:
      x: Images, [c, h, w, b].
      size: Side of the window.
      stride: Stride in both directions.
    """
    for axis in (2, 1):
        x = _line_max(x, axis, size, stride, x.shape[axis])
    return x


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _line_max(x: Array, axis: int, size: int, stride: int, length: int) -> Array:
    """Computes the maximum over windows along one axis.

    Args:
      x: Images, [c, h, w, b].
      axis: Axis of the windows: 1 or 2.
      size: Length of a window.
      stride: Distance between windows.
      length: Length of the axis, which the gradient needs to know.
    """
    return _line_max_forward(x, axis, size, stride, length)[0]


def _line_max_forward(
    x: Array, axis: int, size: int, stride: int, length: int
) -> tuple[Array, Array]:
    """Returns the maxima, and the position in its window that each came from."""
    pad = (size - 1) // 2
    padded = _pad_line(x, axis, pad, pad, 0, -np.inf)
    last = (length + 2 * pad - size) // stride * stride
    best, *others = (
        lax.slice_in_dim(padded, start, start + last + 1, stride, axis) for start in range(size)
    )
    # Positions have the dtype of the values, so that both fill vectors of the same width.
    chosen = jnp.zeros(best.shape, x.dtype)
    for position, candidate in enumerate(others, start=1):
        # A NaN wins against any number and keeps its place; `candidate > best` would lose it.
        better = ~(candidate <= best) & (best == best)
        best, chosen = jnp.where(better, candidate, best), jnp.where(better, position, chosen)
    return best, chosen


def _line_max_backward(
    axis: int, size: int, stride: int, length: int, chosen: Array, g: Array
) -> tuple[Array]:
    """Gives each input the gradient of those of its windows that chose it."""
    low = size - 1 - (size - 1) // 2
    high = length + size - 1 - low - (g.shape[axis] - 1) * stride - 1
    outputs = _pad_line(g, axis, low, high, stride - 1, 0)
    choices = _pad_line(chosen, axis, low, high, stride - 1, -1)
    terms = []
    for start in range(size):  # from an input's last position in a window to its first
        value, choice = (
            lax.slice_in_dim(array, start, start + length, 1, axis) for array in (outputs, choices)
        )
        terms.append(jnp.where(choice == size - 1 - start, value, 0))
    return (functools.reduce(lax.add, terms),)


_line_max.defvjp(_line_max_forward, _line_max_backward)


def _pad_line(x: Array, axis: int, low: int, high: int, gap: int, fill: float) -> Array:
    """Pads one axis at both ends, and puts `gap` values between neighbours."""
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (low, high, gap)
    return lax.pad(x, jnp.asarray(fill, x.dtype), config)


def avg_pool(x: Array, stride: int) -> Array:
    """Computes the mean over 3x3 windows; the padding does not count.

    Args:
      x: Images, [c, h, w, b].
      stride: Stride in both directions.
    """
    return _box_mean(x)[:, ::stride, ::stride]


@jax.custom_vjp
def _box_mean(x: Array) -> Array:
    return _box_sum(x) / _window_counts(x)


# A sum over a 3x3 box is its own transpose, so the gradient costs as much as the forward pass.
_box_mean.defvjp(
    lambda x: (_box_mean(x), None),
    lambda _, g: (_box_sum(g / _window_counts(g)),),
)


def _box_sum(x: Array) -> Array:
    """Sums 3x3 boxes, first vertically and then horizontally."""
    rows, columns = x.shape[1:3]
    padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0)])
    down = padded[:, :rows] + padded[:, 1 : rows + 1] + padded[:, 2 : rows + 2]
    return down[:, :, :columns] + down[:, :, 1 : columns + 1] + down[:, :, 2 : columns + 2]


def _window_counts(x: Array) -> Array:
    """Counts the pixels of the image in each 3x3 window, [1, h, w, 1]."""

    def counts(length: int) -> list[int]:
        return [min(i + 1, length - 1) - max(i - 1, 0) + 1 for i in range(length)]

    rows, columns = map(counts, x.shape[1:3])
    return jnp.asarray(np.outer(rows, columns)[None, :, :, None], x.dtype)
