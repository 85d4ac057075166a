"""Convolutions for CPUs, as sums over shifted images of shape [c, h, w, b].

XLA's CPU backend runs grouped convolutions and (inside loops) dense convolutions 10 to 100 times
slower than necessary. It fuses sums of shifted images into one pass over the data, vectorised over
the batch, which is the last axis and so contiguous in memory.

A *tap* is one position in a window, numbered row by row, or the shifted image that all windows see
at that position.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from drnas_jax.nn.weight_gradients import BilinearOp, apply

Array = jax.Array
Size = tuple[int, int]  # height and width

# The smallest margin around an image, in pixels: the distance of the farthest tap. If all
# margins are equal, the compiler can share one padded image between filters.
_MIN_MARGIN = 4
# The most bytes of shifted images that a dense convolution makes at a time; between 2 and 5 MB was
# fastest.
_BLOCK_BYTES = 5_000_000


def conv(x: Array, kernel: Array, stride: int) -> Array:
    """Computes a dense convolution as one matrix product.

    Args:
      x: Images, [c, h, w, b].
      kernel: Filters, [k, k, c, channels of the result].
      stride: Stride in both directions.
    """
    return apply(_CONV, x, kernel, stride)


def pointwise(x: Array, matrix: Array) -> Array:
    """Computes a 1x1 convolution.

    Args:
      x: Images, [c, h, w, b].
      matrix: Filters, [c, channels of the result].
    """
    return apply(_POINTWISE, x, matrix)


def depthwise(x: Array, filters: Array, stride: int, dilation: int) -> Array:
    """Computes a depthwise convolution.

    Args:
      x: Images, [c, h, w, b].
      filters: One filter per channel, [k, k, c].
      stride: Stride in both directions.
      dilation: Distance between the taps of a filter, in pixels.
    """
    return apply(_DEPTHWISE, x, filters, stride, dilation)


_POINTWISE = BilinearOp(
    lambda x, matrix: _images(matrix.T @ _rows(x), x),
    lambda x, matrix, g: _images(matrix @ _rows(g), x),
    lambda x, matrix, g: _rows(x) @ _rows(g).T,
)


def _rows(x: Array) -> Array:
    """Flattens images [c, h, w, b] to [c, pixels], where pixels is h * w * b."""
    return lax.reshape(x, (len(x), x.size // len(x)))


def _images(rows: Array, like: Array) -> Array:
    """Restores [c, pixels] to [c, h, w, b], with the sizes of `like` except c."""
    return lax.reshape(rows, (len(rows), *like.shape[1:]))


# The shifted images of a convolution are many times larger than its input, so its gradient computes
# them again instead of keeping them, and with stride 1 a few rows of pixels at a time, which stay
# in the cache.


def _conv(x: Array, kernel: Array, stride: int) -> Array:
    matrix = kernel.reshape(-1, kernel.shape[3]).T
    if stride == 1:

        def fill_in(y: Array, patches: Array, start: Array) -> Array:
            return lax.dynamic_update_slice_in_dim(y, matrix @ patches, start, axis=1)

        y = _for_each_block(x, len(kernel), fill_in, jnp.zeros((len(matrix), x[0].size), x.dtype))
        return _images(y, x)
    patches, size = _strided_patches(x, len(kernel), stride)
    y = matrix @ patches
    return lax.reshape(y, (len(y), *size, x.shape[3]))


def _conv_image_gradient(x: Array, kernel: Array, g: Array, stride: int) -> Array:
    if stride != 1:
        return jax.vjp(lambda x: _conv(x, kernel, stride), x)[1](g)[0]
    size, _, inputs, outputs = kernel.shape
    flat, margin = _flatten(g, size // 2)
    pixels = flat.shape[1] - 2 * margin
    # The gradient of each tap. It is 0 outside the image, since g is padded with zeros.
    d_patches = kernel.reshape(-1, outputs) @ flat
    terms = []
    for tap, offset, inside in _flat_offsets(x, size, 1, -1):
        rows = lax.slice_in_dim(d_patches, tap * inputs, (tap + 1) * inputs)
        terms.append(_zero_outside(inside, _slice_pixels(rows, margin + offset, pixels)))
    return lax.reshape(_sum(terms), x.shape)


def _conv_weight_gradient(x: Array, kernel: Array, g: Array, stride: int) -> Array:
    if stride != 1:
        patches, _ = _strided_patches(x, len(kernel), stride)
        return lax.reshape(patches @ _rows(g).T, kernel.shape)
    rows = _rows(g)
    wide = jnp.promote_types(x.dtype, jnp.float32)  # the dtype of the sums

    def add(total: Array, patches: Array, start: Array) -> Array:
        part = lax.dynamic_slice_in_dim(rows, start, patches.shape[1], axis=1)
        return total + lax.dot(patches, part.T, preferred_element_type=wide)

    zeros = jnp.zeros((kernel.size // len(g), len(g)), wide)
    total = _for_each_block(x, len(kernel), add, zeros)
    return lax.reshape(total, kernel.shape).astype(kernel.dtype)


_CONV = BilinearOp(_conv, _conv_image_gradient, _conv_weight_gradient)


def _for_each_block(
    x: Array, size: int, step: Callable[[Array, Array, Array], Array], carry: Array
) -> Array:
    """Stacks the taps of a dense convolution of stride 1, for a block of rows after the other.

    Args:
      x: Images, [c, h, w, b].
      size: Side k of the window.
      step: Function (carry, taps [k * k * c, pixels of the block], number of the first pixel) ->
        carry.
      carry: First argument of the first call.

    Returns:
      The last carry.
    """
    padded, margin = _flatten(x, size // 2)
    channels, height, width, batch = x.shape
    fitting = _BLOCK_BYTES // (size * size * x[:, :1].size * x.dtype.itemsize)
    rows = max(n for n in range(1, height + 1) if height % n == 0 and n <= max(fitting, 1))
    pixels = rows * width * batch
    shape = jax.ShapeDtypeStruct((channels, rows, width, batch), x.dtype)
    taps = list(_flat_offsets(shape, size, 1))

    def one(i: Any, carry: Array) -> Array:
        block = lax.dynamic_slice_in_dim(padded, i * pixels, pixels + 2 * margin, axis=1)
        patches = [
            _zero_outside(inside, _slice_pixels(block, margin + offset, pixels))
            for _, offset, inside in taps
        ]
        return step(carry, jnp.concatenate(patches), i * pixels)

    return one(0, carry) if rows == height else lax.fori_loop(0, height // rows, one, carry)


def _strided_patches(x: Array, size: int, stride: int) -> tuple[Array, Size]:
    """Stacks the taps of a dense convolution, and returns them with the size of the output.

    Args:
      x: Images, [c, h, w, b].
      size: Side k of the window.
      stride: Stride in both directions.

    Returns:
      The taps, [k * k * c, pixels of the output], and height and width of the output.
    """
    pad = size // 2
    output = _output_size(x, pad, size, stride)
    taps = [_rows(image) for _, image in _taps(_pad(x, pad), size, stride, 1, output)]
    return jnp.concatenate(taps), output


def _flatten(x: Array, distance: int) -> tuple[Array, int]:
    """Puts all pixels of a channel on one axis, between two margins of zeros.

    A shift along several axes would need divisions to find each pixel. On one axis a shift is a
    slice, but a shift to the side runs into the next row, where `_zero_outside` must clear it.

    Args:
      x: Images, [c, h, w, b].
      distance: Distance in pixels of the farthest tap from the middle of the window.

    Returns:
      The padded pixels, [c, margin + h * w * b + margin], and the width of a margin.
    """
    channels, _, columns, batch = x.shape
    margin = distance * (columns + 1) * batch
    flat = lax.reshape(x, (channels, x.size // channels))
    return lax.pad(flat, jnp.zeros((), x.dtype), [(0, 0, 0), (margin, margin, 0)]), margin


def _flat_offsets(
    x: Array | jax.ShapeDtypeStruct, size: int, dilation: int, sign: int = 1
) -> Iterator[tuple[int, int, np.ndarray | None]]:
    """Yields the shift of each tap of a window along the axis of `_flatten`.

    Args:
      x: Images, [c, h, w, b].
      size: Side of the window.
      dilation: Distance between taps, in pixels.
      sign: 1 to go from a window to its pixels, -1 to go from a pixel to its windows.

    Yields:
      Number of the tap, offset in flat pixels, and a mask [pixels] of where it is inside its row
      (None if it is inside everywhere).
    """
    _, rows, columns, batch = x.shape
    column = np.tile(np.repeat(np.arange(columns), batch), rows)
    for tap in range(size * size):
        down, right = (sign * dilation * (i - size // 2) for i in divmod(tap, size))
        inside = (column + right >= 0) & (column + right < columns) if right else None
        yield tap, (down * columns + right) * batch, inside


def _zero_outside(inside: np.ndarray | None, x: Array) -> Array:
    """Sets flat pixels [c, pixels] to 0 outside the mask `inside` of `_flat_offsets`."""
    if inside is None:
        return x
    return lax.select(lax.broadcast_in_dim(inside, x.shape, (1,)), x, jnp.zeros_like(x))


def _slice_pixels(flat: Array, start: int, pixels: int) -> Array:
    """Takes a run of flat pixels of every channel."""
    return lax.slice_in_dim(flat, start, start + pixels, axis=1)


def _depthwise(x: Array, filters: Array, stride: int, dilation: int) -> Array:
    if stride == 1:
        return _flat_sum(x, filters, dilation)
    return _shifted_sum(x, filters, stride, dilation)


def _shifted_sum(x: Array, filters: Array, stride: int, dilation: int) -> Array:
    """Computes a depthwise convolution for a consumer that reads it pixel by pixel."""
    size = len(filters)
    pad = dilation * (size // 2)
    output = _output_size(x, pad, 2 * pad + 1, stride)
    taps = _taps(_pad(x, pad), size, stride, dilation, output)
    return _sum(_scale_tap(image, filters, *divmod(tap, size)) for tap, image in taps)


def _flat_sum(x: Array, filters: Array, dilation: int) -> Array:
    """Computes a depthwise convolution for a matrix product, which reads flat pixels."""
    size = len(filters)
    padded, margin = _flatten(x, max(_MIN_MARGIN, dilation * (size // 2)))
    pixels = padded.shape[1] - 2 * margin
    columns: dict[int, list[Array]] = {}
    masks = {}
    for tap, offset, inside in _flat_offsets(x, size, dilation):
        image = _slice_pixels(padded, margin + offset, pixels)
        i, j = divmod(tap, size)
        columns.setdefault(j, []).append(_scale_tap(image, filters, i, j))
        masks[j] = inside  # the taps of one column of the window leave the image together
    return lax.reshape(_sum(_zero_outside(masks[j], _sum(columns[j])) for j in columns), x.shape)


def _scale_tap(image: Array, filters: Array, i: int, j: int) -> Array:
    """Multiplies the shifted image [c, ...] of tap (i, j) by its values in filters [k, k, c]."""
    channels = filters.shape[2]
    value = lax.reshape(lax.slice(filters, (i, j, 0), (i + 1, j + 1, channels)), (channels,))
    return lax.mul(image, lax.broadcast_in_dim(value, image.shape, (0,)))


def _depthwise_image_gradient(
    x: Array, filters: Array, g: Array, stride: int, dilation: int
) -> Array:
    return _shifted_sum(_dilate(g, stride, _image_size(x)), filters[::-1, ::-1], 1, dilation)


def _depthwise_weight_gradient(
    x: Array, filters: Array, g: Array, stride: int, dilation: int
) -> Array:
    size = len(filters)
    wide = jnp.promote_types(x.dtype, jnp.float32)  # the dtype of the sums
    taps = _taps(_pad(x, dilation * (size // 2)), size, stride, dilation, _image_size(g))
    # One reduction with an output for every tap reads the data only once.
    products = [lax.mul(image, g).astype(wide) for _, image in taps]
    sums = lax.reduce(products, [np.zeros((), wide)] * len(products), _add_all, (1, 2, 3))
    return jnp.stack(sums).reshape(filters.shape).astype(filters.dtype)


_DEPTHWISE = BilinearOp(_depthwise, _depthwise_image_gradient, _depthwise_weight_gradient)


def _taps(
    padded: Array, size: int, stride: int, dilation: int, output: Size
) -> Iterator[tuple[int, Array]]:
    """Yields the number of each tap, and the shifted image that all windows see there.

    Args:
      padded: Padded images, [c, h, w, b].
      size: Side of the window.
      stride: Stride in both directions.
      dilation: Distance between taps, in pixels.
      output: Height and width of the result.
    """
    rows, columns = ((length - 1) * stride + 1 for length in output)
    channels, *_, batch = padded.shape
    for tap in range(size * size):
        i, j = (dilation * offset for offset in divmod(tap, size))
        start, end = (0, i, j, 0), (channels, i + rows, j + columns, batch)
        yield tap, lax.slice(padded, start, end, (1, stride, stride, 1))


def _pad(x: Array, pad: int) -> Array:
    """Pads images with zeros on all four sides."""
    around = (pad, pad, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), around, around, (0, 0, 0)])


def _dilate(g: Array, stride: int, size: Size) -> Array:
    """Brings the output of a strided operation to the size of its input, with zeros between."""
    if stride == 1:
        return g
    gaps = [
        (0, length - (strided - 1) * stride - 1, stride - 1)
        for length, strided in zip(size, _image_size(g), strict=True)
    ]
    return lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *gaps, (0, 0, 0)])


def _image_size(x: Array) -> Size:
    return x.shape[1], x.shape[2]


def _output_size(x: Array, pad: int, extent: int, stride: int) -> Size:
    """Returns the size of the output of windows that cover `extent` pixels in each direction."""
    rows, columns = ((length + 2 * pad - extent) // stride + 1 for length in _image_size(x))
    return rows, columns


def _sum(terms: Iterable[Array]) -> Array:
    return functools.reduce(lax.add, terms)


def _add_all(left: list[Array], right: list[Array]) -> list[Array]:
    return list(map(lax.add, left, right))
