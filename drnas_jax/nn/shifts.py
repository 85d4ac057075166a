"""Convolutions and pools as sums over shifted images, for the CPU: `[c, h, w, b]`.

XLA's CPU backend runs grouped convolutions, windowed maxima and (in loops) dense convolutions 10 to
100 times slower than they need be. Sums of shifted images are fused into one pass over the data,
vectorised over the batch, which is the last axis and contiguous.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
Sides = tuple[int, int]

_REACH = 4  # pixels, of the farthest tap: with equal margins, filters can share a padded image


class _Linear(NamedTuple):
    """An operation on images that is linear in them and in its weights.

    Attributes:
      apply: (x, weights, *static) -> y.
      pull_images: (x, weights, g, *static) -> the gradient in x under the cotangent g.
      pull_weights: likewise in the weights.
    """

    apply: Callable[..., Array]
    pull_images: Callable[..., Array]
    pull_weights: Callable[..., Array]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(
    linear: _Linear, static: tuple[int, ...], x: Array, weights: Array, learn: Array | None
) -> Array:
    del learn
    return linear.apply(x, weights, *static)


def _run_backward(
    linear: _Linear,
    static: tuple[int, ...],
    residuals: tuple[Array, Array, Array | None],
    g: Array,
) -> tuple[Array, Array, None]:
    x, weights, learn = residuals
    dx, pull = linear.pull_images(x, weights, g, *static), linear.pull_weights
    if learn is None:
        return dx, pull(x, weights, g, *static), None
    d_weights = lax.cond(
        learn > 0, lambda: pull(x, weights, g, *static), lambda: jnp.zeros_like(weights)
    )
    return dx, d_weights, None


_run.defvjp(
    lambda linear, static, x, weights, learn: (
        linear.apply(x, weights, *static),
        (x, weights, learn),
    ),
    _run_backward,
)


def conv(x: Array, kernel: Array, stride: int, learn: Array | None = None) -> Array:
    """Dense convolution as one matrix product: kernel [k, k, c, d]."""
    return _run(_CONV, (stride,), x, kernel, learn)


def pointwise(x: Array, matrix: Array, learn: Array | None = None) -> Array:
    """Convolution by a matrix [c, d] at every pixel."""
    return _run(_POINTWISE, (), x, matrix, learn)


def depthwise(
    x: Array, filters: Array, stride: int, dilation: int, learn: Array | None = None
) -> Array:
    """Depthwise convolution: filters [k, k, c]."""
    return _run(_DEPTHWISE, (stride, dilation), x, filters, learn)


_POINTWISE = _Linear(
    lambda x, matrix: _images(matrix.T @ _rows(x), x),
    lambda x, matrix, g: _images(matrix @ _rows(g), x),
    lambda x, matrix, g: _rows(x) @ _rows(g).T,
)


def _rows(x: Array) -> Array:
    """[c, h, w, b] -> [c, pixels]."""
    return lax.reshape(x, (len(x), x.size // len(x)))


def _images(rows: Array, like: Array) -> Array:
    """[c, pixels] -> [c, h, w, b], all but c as another one's."""
    return lax.reshape(rows, (len(rows), *like.shape[1:]))


# The shifted images of a convolution are many times as large as its input: the gradient makes them
# anew.


def _conv(x: Array, kernel: Array, stride: int) -> Array:
    patches, sides = _patches(x, len(kernel), stride)
    y = kernel.reshape(len(patches), -1).T @ patches
    return lax.reshape(y, (len(y), *sides, x.shape[3]))


def _conv_pull_images(x: Array, kernel: Array, g: Array, stride: int) -> Array:
    if stride != 1:
        return jax.vjp(lambda x: _conv(x, kernel, stride), x)[1](g)[0]
    size, _, inputs, outputs = kernel.shape
    flat, margin = _flatten(g, size // 2)
    pixels = flat.shape[1] - 2 * margin
    # What each place of a window gets back; beyond the image it is 0, as g is there.
    d_patches = kernel.reshape(-1, outputs) @ flat
    terms = []
    for place, offset, inside in _places(x, size, 1, -1):
        rows = lax.slice_in_dim(d_patches, place * inputs, (place + 1) * inputs)
        terms.append(_where(inside, _cut(rows, margin + offset, pixels)))
    return lax.reshape(_total(terms), x.shape)


def _conv_pull_weights(x: Array, kernel: Array, g: Array, stride: int) -> Array:
    patches, _ = _patches(x, len(kernel), stride)
    return lax.reshape(patches @ _rows(g).T, kernel.shape)


_CONV = _Linear(_conv, _conv_pull_images, _conv_pull_weights)


def _patches(x: Array, size: int, stride: int) -> tuple[Array, Sides]:
    """All shifted images that a window of a dense convolution sees: [k * k * c, pixels]."""
    if stride == 1:
        padded, margin = _flatten(x, size // 2)
        pixels = padded.shape[1] - 2 * margin
        taps = [
            _where(inside, _cut(padded, margin + offset, pixels))
            for _, offset, inside in _places(x, size, 1)
        ]
        return jnp.concatenate(taps), _sides(x)
    pad = size // 2
    sides = _output_sides(x, pad, size, stride)
    taps = [_rows(tap) for _, tap in _taps(_pad(x, pad), size, stride, 1, sides)]
    return jnp.concatenate(taps), sides


def _flatten(x: Array, reach: int) -> tuple[Array, int]:
    """All pixels of a channel on one axis, with a margin of zeros; and how wide the margin is.

    With shifts along several axes, the place of every pixel would have to be computed by division.
    On one axis, a shift to the side runs into the next row: there it must count as 0.
    """
    channels, _, columns, batch = x.shape
    margin = reach * (columns + 1) * batch
    flat = lax.reshape(x, (channels, x.size // channels))
    return lax.pad(flat, jnp.zeros((), x.dtype), [(0, 0, 0), (margin, margin, 0)]), margin


def _places(
    x: Array, size: int, dilation: int, sign: int = 1
) -> Iterator[tuple[int, int, np.ndarray | None]]:
    """For each place in a window: its number, its offset in flat pixels, and where it is inside.

    Args:
      x: [c, h, w, b].
      size: of the window.
      dilation: of the window.
      sign: -1 to look from a pixel back at the windows that it is in.
    """
    _, rows, columns, batch = x.shape
    column = np.tile(np.repeat(np.arange(columns), batch), rows)
    for place in range(size * size):
        down, side = (sign * dilation * (i - size // 2) for i in divmod(place, size))
        inside = (column + side >= 0) & (column + side < columns) if side else None
        yield place, (down * columns + side) * batch, inside


def _where(inside: np.ndarray | None, x: Array) -> Array:
    if inside is None:
        return x
    return lax.select(lax.broadcast_in_dim(inside, x.shape, (1,)), x, jnp.zeros_like(x))


def _cut(flat: Array, start: int, pixels: int) -> Array:
    return lax.slice_in_dim(flat, start, start + pixels, axis=1)


def _depthwise(x: Array, filters: Array, stride: int, dilation: int) -> Array:
    if stride == 1:
        return _flat_sum(x, filters, dilation)
    return _shifted_sum(x, filters, stride, dilation)


def _shifted_sum(x: Array, filters: Array, stride: int, dilation: int) -> Array:
    """For a consumer that reads pixel by pixel."""
    size = len(filters)
    pad = dilation * (size // 2)
    sides = _output_sides(x, pad, 2 * pad + 1, stride)
    taps = _taps(_pad(x, pad), size, stride, dilation, sides)
    return _total(_times(tap, filters, *divmod(place, size)) for place, tap in taps)


def _flat_sum(x: Array, filters: Array, dilation: int) -> Array:
    """The same for a matrix product, which wants all pixels of a channel on one axis."""
    size, (padded, margin) = len(filters), _flatten(x, max(_REACH, dilation * (len(filters) // 2)))
    pixels = padded.shape[1] - 2 * margin
    sides: dict[int, list[Array]] = {}
    masks = {}
    for place, offset, inside in _places(x, size, dilation):
        tap = _cut(padded, margin + offset, pixels)
        i, j = divmod(place, size)
        sides.setdefault(j, []).append(_times(tap, filters, i, j))
        masks[j] = inside  # a column of the window leaves the image as one
    return lax.reshape(_total(_where(masks[j], _total(sides[j])) for j in sides), x.shape)


def _times(tap: Array, filters: Array, i: int, j: int) -> Array:
    """A shifted image [c, ...] times its place's value of the filters [k, k, c]."""
    channels = filters.shape[2]
    value = lax.reshape(lax.slice(filters, (i, j, 0), (i + 1, j + 1, channels)), (channels,))
    return lax.mul(tap, lax.broadcast_in_dim(value, tap.shape, (0,)))


def _depthwise_pull_images(x: Array, filters: Array, g: Array, stride: int, dilation: int) -> Array:
    return _shifted_sum(_spread(g, stride, _sides(x)), filters[::-1, ::-1], 1, dilation)


def _depthwise_pull_weights(
    x: Array, filters: Array, g: Array, stride: int, dilation: int
) -> Array:
    size = len(filters)
    wide = jnp.promote_types(x.dtype, jnp.float32)  # in which sums are made
    taps = _taps(_pad(x, dilation * (size // 2)), size, stride, dilation, _sides(g))
    # One reduction with an output for every tap reads the data once.
    products = [lax.mul(tap, g).astype(wide) for _, tap in taps]
    sums = lax.reduce(products, [np.zeros((), wide)] * len(products), _add_all, (1, 2, 3))
    return jnp.stack(sums).reshape(filters.shape).astype(filters.dtype)


_DEPTHWISE = _Linear(_depthwise, _depthwise_pull_images, _depthwise_pull_weights)


def max_pool(x: Array, size: int, stride: int) -> Array:
    """Maximum over size x size: over rows, then over columns; of equal ones the first."""
    for axis in (2, 1):
        x = _line_max(x, axis, size, stride, x.shape[axis])
    return x


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _line_max(x: Array, axis: int, size: int, stride: int, side: int) -> Array:
    return _line_max_forward(x, axis, size, stride, side)[0]


def _line_max_forward(
    x: Array, axis: int, size: int, stride: int, side: int
) -> tuple[Array, Array]:
    pad = (size - 1) // 2
    padded = _pad_line(x, axis, pad, pad, 0, -np.inf)
    last = (side + 2 * pad - size) // stride * stride
    best, *others = (
        lax.slice_in_dim(padded, place, place + last + 1, stride, axis) for place in range(size)
    )
    chosen = jnp.zeros(best.shape, x.dtype)  # a number of the same width, as vectors want it
    for place, tap in enumerate(others, start=1):
        better = tap > best
        best, chosen = jnp.where(better, tap, best), jnp.where(better, place, chosen)
    return best, chosen


def _line_max_backward(
    axis: int, size: int, stride: int, side: int, chosen: Array, g: Array
) -> tuple[Array]:
    """Each input reads the outputs it went to, and takes the gradient of those that chose it."""
    low = size - 1 - (size - 1) // 2
    high = side + size - 1 - low - (g.shape[axis] - 1) * stride - 1
    outputs = _pad_line(g, axis, low, high, stride - 1, 0)
    choices = _pad_line(chosen, axis, low, high, stride - 1, -1)
    terms = []
    for place in range(size):  # windows are read backwards
        value, choice = (
            lax.slice_in_dim(whole, place, place + side, 1, axis) for whole in (outputs, choices)
        )
        terms.append(jnp.where(choice == size - 1 - place, value, 0))
    return (_total(terms),)


_line_max.defvjp(_line_max_forward, _line_max_backward)


def _pad_line(x: Array, axis: int, low: int, high: int, gap: int, fill: float) -> Array:
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (low, high, gap)
    return lax.pad(x, jnp.asarray(fill, x.dtype), config)


def avg_pool(x: Array, stride: int) -> Array:
    """Mean over 3x3; padding does not count."""
    return _box_mean(x)[:, ::stride, ::stride]


@jax.custom_vjp
def _box_mean(x: Array) -> Array:
    return _box_sum(x) / _window_counts(x)


# The sum over a 3x3 box is its own transpose, so the gradient costs what the forward pass costs.
_box_mean.defvjp(
    lambda x: (_box_mean(x), None),
    lambda _, g: (_box_sum(g / _window_counts(g)),),
)


def _box_sum(x: Array) -> Array:
    padded = _pad(x, 1)
    rows, columns = _sides(x)
    down = padded[:, :rows] + padded[:, 1 : rows + 1] + padded[:, 2 : rows + 2]
    return down[:, :, :columns] + down[:, :, 1 : columns + 1] + down[:, :, 2 : columns + 2]


def _window_counts(x: Array) -> Array:
    """How many pixels of the image each 3x3 window covers: [1, h, w, 1]."""

    def inside(size: int) -> list[int]:
        return [min(i + 1, size - 1) - max(i - 1, 0) + 1 for i in range(size)]

    rows, columns = map(inside, _sides(x))
    return jnp.asarray(np.outer(rows, columns)[None, :, :, None], x.dtype)


def _taps(
    padded: Array, size: int, stride: int, dilation: int, sides: Sides
) -> Iterator[tuple[int, Array]]:
    """For each place in a window, numbered row by row, what all windows have there."""
    rows, columns = ((side - 1) * stride + 1 for side in sides)
    channels, *_, batch = padded.shape
    for place in range(size * size):
        i, j = (dilation * offset for offset in divmod(place, size))
        start, end = (0, i, j, 0), (channels, i + rows, j + columns, batch)
        yield place, lax.slice(padded, start, end, (1, stride, stride, 1))


def _pad(x: Array, pad: int) -> Array:
    around = (pad, pad, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), around, around, (0, 0, 0)])


def _spread(g: Array, stride: int, sides: Sides) -> Array:
    """An output as large as the input it is of: zeros in the gaps of the stride."""
    if stride == 1:
        return g
    gaps = [
        (0, side - (own - 1) * stride - 1, stride - 1)
        for side, own in zip(sides, _sides(g), strict=True)
    ]
    return lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *gaps, (0, 0, 0)])


def _sides(x: Array) -> Sides:
    return x.shape[1], x.shape[2]


def _output_sides(x: Array, pad: int, reach: int, stride: int) -> Sides:
    rows, columns = ((side + 2 * pad - reach) // stride + 1 for side in _sides(x))
    return rows, columns


def _total(terms: Iterable[Array]) -> Array:
    return functools.reduce(lax.add, terms)


def _add_all(left: list[Array], right: list[Array]) -> list[Array]:
    return list(map(lax.add, left, right))
