"""The kernels of each platform, and the layout of images that they need.

Images are [b, h, w, c] for accelerators and for plain code. On the CPU they are [c, h, w, b]: the
few channels of a supernet would not fill a vector, and the examples of a batch do. All backends
compute the same values. Filters are [h, w, c_in, c_out]. Odd windows are padded so that stride 1
keeps the size, even windows are not padded.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from drnas_jax.errors import check_choice
from drnas_jax.nn import pools, shifts

Array = jax.Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")
KEPT = "kept"  # checkpoint name of the values that remat 'convolutions' keeps


class Backend(NamedTuple):
    """The kernels of a platform, their layout of images, and how modules run there.

    Attributes:
      channel_axis: Axis of the channels, 3 or 0; the batch is on axis 0 or 3.
      sequential: Whether the edges of a cell run one after another in a loop, because each of them
        fills the device.
      stacked: Whether as many edges as possible run at once, side by side as channels.
      loop_cells: Whether equal cells run as one loop, which pads the first cell's inputs.
      share_program: Whether the pass for the architecture parameters and the pass for the weights
        are the two iterations of one loop, so that the supernet is compiled once.
      remat: What the backward pass of a cell keeps: `none` (all that it needs, nothing is
        recomputed), `cells` (only the inputs), `convolutions` (the results of convolutions and the
        statistics) or `auto`.
      conv: Dense convolution, (x, filters, stride) -> y.
      pointwise: Product with a matrix at every pixel, (x, matrix [c, d]) -> y.
      depthwise: Convolution of each channel by its filter, (x, filters [k, k, c], stride, dilation)
        -> y.
      max_pool: Maximum over size x size pixels, (x, size, stride) -> y. The first of
        equal pixels gets the gradient, and a window with a NaN gives NaN, as in PyTorch.
      avg_pool: Mean over 3x3 pixels without the padding, (x, stride) -> y.
      axis_name: Mesh axis over which batch statistics are synchronised, or None.
    """

    channel_axis: int
    sequential: bool
    stacked: bool
    loop_cells: bool
    share_program: bool
    remat: str
    conv: Callable[..., Array]
    pointwise: Callable[..., Array]
    depthwise: Callable[..., Array]
    max_pool: Callable[[Array, int, int], Array]
    avg_pool: Callable[[Array, int], Array]
    axis_name: str | None = None

    @property
    def batch_axis(self) -> int:
        """Axis of the batch."""
        return 3 - self.channel_axis

    def transpose(self, x: Array) -> Array:
        """Converts images from [b, h, w, c] to this layout, or back."""
        return x if self.channel_axis == 3 else jnp.swapaxes(x, 0, 3)

    def checkpointing(self, fastest: str) -> dict[str, Any] | None:
        """Returns the options of `jax.checkpoint` for a cell, or None if nothing is recomputed.

        Args:
          fastest: Value of `remat` that `auto` stands for on a sequential backend, which depends
            on the space; elsewhere `auto` is `none`.
        """
        remat = self.remat
        if remat == "auto":
            remat = fastest if self.sequential else "none"
        only = jax.checkpoint_policies.save_only_these_names(KEPT)
        policies = {"cells": {"policy": None}, "convolutions": {"policy": only}}
        return policies.get(remat)

    def per_channel(self, values: Array) -> Array:
        """Reshapes values [c] so that they broadcast against images."""
        return values if self.channel_axis == 3 else values[:, None, None, None]

    def per_example(self, values: Array) -> Array:
        """Reshapes values [b] so that they broadcast against images."""
        return values if self.batch_axis == 3 else values[:, None, None, None]

    def halve(self, x: Array) -> Array:
        """Returns the mean of each 2x2 pixels; height and width must be even."""
        pixels = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return sum(pixels[1:], start=pixels[0]) / 4

    def pixel_mean(self, x: Array) -> Array:
        """Returns the mean over all pixels, float32 [b, c]."""
        mean = jnp.mean(x.astype(jnp.promote_types(x.dtype, jnp.float32)), axis=(1, 2))
        return mean if self.channel_axis == 3 else mean.T


def _convolve(x: Array, kernel: Array, stride: int) -> Array:
    padding = [(size // 2, size // 2) for size in kernel.shape[:2]]
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=_LAYOUT)


def _pointwise(x: Array, matrix: Array) -> Array:
    return x @ matrix


def _pointwise_convolution(x: Array, matrix: Array) -> Array:
    return _convolve(x, matrix[None, None], 1)


def _grouped_depthwise(x: Array, filters: Array, stride: int, dilation: int) -> Array:
    size, _, channels = filters.shape
    pad = dilation * (size // 2)
    return lax.conv_general_dilated(
        x,
        filters[:, :, None],
        (stride, stride),
        [(pad, pad)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_LAYOUT,
        feature_group_count=channels,
    )


def _depthwise_by_phases(x: Array, filters: Array, stride: int, dilation: int) -> Array:
    """Computes a dilated convolution as an undilated one on every `dilation`-th pixel.

    cuDNN takes 14 times as long for the dilated one, and 300 times for its filters' gradient.
    """
    if dilation > 1 and stride == dilation:
        x, stride, dilation = x[:, ::stride, ::stride], 1, 1
    if dilation == 1 or stride > 1:
        return _grouped_depthwise(x, filters, stride, dilation)
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, -h % dilation), (0, -w % dilation), (0, 0)))
    rows, columns = (side // dilation for side in x.shape[1:3])
    phases = jnp.transpose(
        x.reshape(b, rows, dilation, columns, dilation, c), (0, 2, 4, 1, 3, 5)
    ).reshape(-1, rows, columns, c)
    phases = _grouped_depthwise(phases, filters, 1, 1)
    phases = phases.reshape(b, dilation, dilation, rows, columns, c)
    return jnp.transpose(phases, (0, 3, 1, 4, 2, 5)).reshape(x.shape)[:, :h, :w]


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


PLAIN = Backend(
    channel_axis=3,
    sequential=False,
    stacked=False,
    loop_cells=False,
    share_program=False,
    remat="auto",
    conv=_convolve,
    pointwise=_pointwise,
    depthwise=_grouped_depthwise,
    max_pool=_window_max,
    avg_pool=_window_mean,
)
CPU = Backend(
    channel_axis=0,
    sequential=True,
    stacked=False,
    loop_cells=True,
    share_program=True,
    remat="auto",
    conv=shifts.conv,
    pointwise=shifts.pointwise,
    depthwise=shifts.depthwise,
    max_pool=pools.max_pool,
    avg_pool=pools.avg_pool,
)
# A shared program and pointwise convolutions halve the time to compile for TPUs.
TPU = PLAIN._replace(
    loop_cells=True, stacked=True, share_program=True, pointwise=_pointwise_convolution
)
# On GPUs the gradient of XLA's windowed maximum differs from run to run.
GPU = TPU._replace(
    share_program=False,
    depthwise=_depthwise_by_phases,
    max_pool=pools.max_pool,
    avg_pool=pools.avg_pool,
)
_BY_NAME = {"plain": PLAIN, "cpu": CPU, "gpu": GPU, "tpu": TPU}


def choose(name: str, platform: str, remat: str = "auto", axis_name: str | None = None) -> Backend:
    """Returns the backend of a config.

    Args:
      name: Name of a platform, `plain`, or `auto` for that of `platform`.
      platform: `cpu`, `gpu` or `tpu`.
      remat: See Backend.
      axis_name: See Backend.

    Raises:
      UserError: There is no such name or platform.
    """
    chosen = for_platform(platform if name == "auto" else name)
    return chosen._replace(remat=remat, axis_name=axis_name)


def for_platform(platform: str) -> Backend:
    """Returns the backend that was measured to be fastest on a platform.

    Args:
      platform: `cpu`, `gpu`, `tpu`, or `plain` for kernels that are easy to read.

    Raises:
      UserError: There is no such platform.
    """
    check_choice("platform", platform, _BY_NAME)
    return _BY_NAME[platform]
