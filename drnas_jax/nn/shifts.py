"""Convolutions and pools as sums over shifted images, for the CPU: `[c, h, w, b]`.

XLA's CPU backend runs grouped convolutions, windowed maxima and (in loops) dense convolutions 10 to
100 times slower than they need be. Sums of shifted images are fused into one pass over the data,
vectorised over the batch, which is the last axis and contiguous.
"""

import functools
from collections.abc import Iterable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
Sides = tuple[int, int]

_REACH = 4  # pixels, of the farthest tap: with equal margins, filters can share a padded image


def conv(x: Array, kernel: Array, stride: int) -> Array:
    """Dense convolution as one matrix product: kernel [k, k, c, d]."""
    if stride == 1:
        return _flat_conv(x, kernel)
    size, pad = len(kernel), len(kernel) // 2
    taps = _taps(_pad(x, pad), size, stride, 1, _output_sides(x, pad, size, stride))
    patches = jnp.concatenate([tap for _, tap in taps])
    y = kernel.reshape(len(patches), -1).T @ patches.reshape(len(patches), -1)
    return lax.reshape(y, (len(y), *patches.shape[1:]))


@jax.custom_vjp
def _flat_conv(x: Array, kernel: Array) -> Array:
    """The shifted images that it needs are many times as large as x: the gradient remakes them."""
    outputs = kernel.shape[-1]
    y = kernel.reshape(-1, outputs).T @ _patches(x, len(kernel))
    return lax.reshape(y, (outputs, *x.shape[1:]))


def _flat_conv_backward(residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    size, _, inputs, outputs = kernel.shape
    flat, margin = _flatten(g, size // 2)
    pixels = flat.shape[1] - 2 * margin
    d_kernel = _patches(x, size) @ _cut(flat, margin, pixels).T
    # What each place of a window gets back; beyond the image it is 0, as g is there.
    d_patches = kernel.reshape(-1, outputs) @ flat
    terms = []
    for place, offset, inside in _places(x, size, 1, -1):
        rows = lax.slice_in_dim(d_patches, place * inputs, (place + 1) * inputs)
        terms.append(_where(inside, _cut(rows, margin + offset, pixels)))
    return lax.reshape(_total(terms), x.shape), lax.reshape(d_kernel, kernel.shape)


_flat_conv.defvjp(lambda x, kernel: (_flat_conv(x, kernel), (x, kernel)), _flat_conv_backward)


def _patches(x: Array, size: int) -> Array:
    """All shifted images that a window of a dense convolution sees: [k * k * c, pixels]."""
    padded, margin = _flatten(x, size // 2)
    pixels = padded.shape[1] - 2 * margin
    return jnp.concatenate(
        [
            _where(inside, _cut(padded, margin + offset, pixels))
            for _, offset, inside in _places(x, size, 1)
        ]
    )


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


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(x: Array, filters: Array, stride: int, dilation: int) -> Array:
    """Depthwise convolution: filters [k, k, c]."""
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


def _depthwise_backward(
    stride: int, dilation: int, residuals: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    x, filters = residuals
    size = len(filters)
    pad = dilation * (size // 2)
    # One reduction with an output for every tap reads the data once.
    wide = jnp.promote_types(x.dtype, jnp.float32)  # in which sums are made
    taps = _taps(_pad(x, pad), size, stride, dilation, _sides(g))
    products = [lax.mul(tap, g).astype(wide) for _, tap in taps]
    sums = lax.reduce(products, [np.zeros((), wide)] * len(products), _add_all, (1, 2, 3))
    dx = _shifted_sum(_spread(g, stride, _sides(x)), filters[::-1, ::-1], 1, dilation)
    return dx, jnp.stack(sums).reshape(filters.shape).astype(filters.dtype)


depthwise.defvjp(
    lambda x, filters, stride, dilation: (depthwise(x, filters, stride, dilation), (x, filters)),
    _depthwise_backward,
)


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
