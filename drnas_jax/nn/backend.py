"""The arithmetic and the layout that are chosen by backend, in this one place.

Height and width are axes 1 and 2 in either layout: `[b, h, w, c]` for accelerators and for plain
code, `[c, h, w, b]` for the CPU, where the few channels of a supernet would not fill a vector and
those of a batch do. All variants agree (tested). Filters are `[h, w, c_in, c_out]`; padding is such
that stride 1 keeps the size (where the window is even, there is none).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from drnas_jax.errors import check_choice
from drnas_jax.nn import shifts

Array = jax.Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")


KEPT = "kept"  # the checkpoint name of what remat 'convolutions' keeps


class Kernels(NamedTuple):
    """One implementation of each kernel, and the layout it is for.

    `learn` is a scalar: 1, or 0 where nobody reads the weights' gradient, which may then be zeros
    and cost nothing. So one program can serve the pass for alpha and the pass for the weights.
    None: the gradient is wanted, or the compiler sees that it is not.

    Attributes:
      channel_axis: 3 or 0; the batch is on the other one of these.
      sequential: run the edges of a cell in a loop, one after another, each of which fills this
        backend.
      stacked: run as many edges at once as can be, side by side as channels.
      loop_cells: run equal cells as one loop, which pads the first one's inputs.
      remat: what a gradient keeps of a cell: 'none' (no recomputation: all that it needs), 'cells'
        (the inputs alone) or 'convolutions' (what convolutions give, and statistics); 'auto'.
      one_pass: alpha's pass and the weights' pass share one program.
      conv: (x, filter, stride, learn) -> y, dense convolution.
      pointwise: (x, matrix [c, d], learn) -> y, that matrix at every pixel.
      depthwise: (x, filters [k, k, c], stride, dilation, learn) -> y, one filter a channel.
      max_pool: (x, size, stride) -> y, maximum over size x size; among equal ones the first gets
        the gradient, as in PyTorch.
      avg_pool: (x, stride) -> y, mean over 3x3; padding does not count.
    """

    channel_axis: int
    sequential: bool
    stacked: bool
    loop_cells: bool
    one_pass: bool
    remat: str
    conv: Callable[..., Array]
    pointwise: Callable[..., Array]
    depthwise: Callable[..., Array]
    max_pool: Callable[[Array, int, int], Array]
    avg_pool: Callable[[Array, int], Array]

    @property
    def batch_axis(self) -> int:
        """Where the examples lie."""
        return 3 - self.channel_axis

    def transpose(self, x: Array) -> Array:
        """[b, h, w, c] -> this layout, and back."""
        return x if self.channel_axis == 3 else jnp.swapaxes(x, 0, 3)

    def checkpointing(self, fastest: str) -> dict[str, Any] | None:
        """Options of `jax.checkpoint` for a cell; None where its gradient recomputes nothing.

        Args:
          fastest: what 'auto' is on a sequential backend, as measured; elsewhere it is 'none'.
        """
        remat = self.remat
        if remat == "auto":
            remat = fastest if self.sequential else "none"
        only = jax.checkpoint_policies.save_only_these_names(KEPT)
        policies = {"cells": {"policy": None}, "convolutions": {"policy": only}}
        return policies.get(remat)

    def per_channel(self, values: Array) -> Array:
        """[c] -> a shape that broadcasts against images."""
        return values if self.channel_axis == 3 else values[:, None, None, None]

    def per_example(self, values: Array) -> Array:
        """[b] -> a shape that broadcasts against images."""
        return values if self.batch_axis == 3 else values[:, None, None, None]

    def halve(self, x: Array) -> Array:
        """Mean over 2x2 pixels of an even size."""
        parts = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return sum(parts[1:], start=parts[0]) / 4

    def pixel_mean(self, x: Array) -> Array:
        """Mean over all pixels -> [b, c], float32."""
        mean = jnp.mean(x.astype(jnp.promote_types(x.dtype, jnp.float32)), axis=(1, 2))
        return mean if self.channel_axis == 3 else mean.T


def _convolve(x: Array, kernel: Array, stride: int, learn: Array | None = None) -> Array:
    del learn
    padding = [(size // 2, size // 2) for size in kernel.shape[:2]]
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=_LAYOUT)


def _pointwise(x: Array, matrix: Array, learn: Array | None = None) -> Array:
    del learn
    return x @ matrix


def _pointwise_convolution(x: Array, matrix: Array, learn: Array | None = None) -> Array:
    return _convolve(x, matrix[None, None], 1, learn)


def _grouped_depthwise(
    x: Array, filters: Array, stride: int, dilation: int, learn: Array | None = None
) -> Array:
    del learn
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


def _depthwise_by_phases(
    x: Array, filters: Array, stride: int, dilation: int, learn: Array | None = None
) -> Array:
    """A dilated one as a plain one on every `dilation`-th pixel.

    cuDNN takes 14 times as long for a dilated one, 300 times for its filters' gradient.
    """
    if dilation > 1 and stride == dilation:
        x, stride, dilation = x[:, ::stride, ::stride], 1, 1
    if dilation == 1 or stride > 1:
        return _grouped_depthwise(x, filters, stride, dilation, learn)
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, -h % dilation), (0, -w % dilation), (0, 0)))
    rows, columns = (side // dilation for side in x.shape[1:3])
    phases = jnp.transpose(
        x.reshape(b, rows, dilation, columns, dilation, c), (0, 2, 4, 1, 3, 5)
    ).reshape(-1, rows, columns, c)
    phases = _grouped_depthwise(phases, filters, 1, 1, learn)
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


PLAIN = Kernels(
    channel_axis=3,
    sequential=False,
    stacked=False,
    loop_cells=False,
    one_pass=False,
    remat="auto",
    conv=_convolve,
    pointwise=_pointwise,
    depthwise=_grouped_depthwise,
    max_pool=_window_max,
    avg_pool=_window_mean,
)
CPU = Kernels(
    channel_axis=0,
    sequential=True,
    stacked=False,
    loop_cells=True,
    one_pass=True,
    remat="auto",
    conv=shifts.conv,
    pointwise=shifts.pointwise,
    depthwise=shifts.depthwise,
    max_pool=shifts.max_pool,
    avg_pool=shifts.avg_pool,
)
# One pass and pointwise convolutions halve the time to compile for TPUs.
TPU = PLAIN._replace(loop_cells=True, stacked=True, one_pass=True, pointwise=_pointwise_convolution)
# The windowed maximum of XLA has no gradient that is the same each time.
GPU = TPU._replace(
    one_pass=False,
    depthwise=_depthwise_by_phases,
    max_pool=shifts.max_pool,
    avg_pool=shifts.avg_pool,
)
_BY_NAME = {"plain": PLAIN, "cpu": CPU, "gpu": GPU, "tpu": TPU}


def choose(name: str, platform: str, remat: str = "auto") -> Kernels:
    """The kernels of a config.

    Args:
      name: of a platform or 'plain'; 'auto': what is measured to be the fastest on `platform`.
      platform: 'cpu', 'gpu' or 'tpu'.
      remat: see Kernels.

    Raises:
      UserError: there is no such name or platform.
    """
    return for_platform(platform if name == "auto" else name)._replace(remat=remat)


def for_platform(platform: str) -> Kernels:
    """The fastest kernels measured for a JAX platform ('cpu', 'gpu', 'tpu'), or the 'plain' ones.

    Raises:
      UserError: the platform is none of these.
    """
    check_choice("platform", platform, _BY_NAME)
    return _BY_NAME[platform]
