"""The arithmetic that is chosen by backend, in this one place. All variants agree (tested).

Arrays are `[b, h, w, c]`, filters `[h, w, c_in, c_out]`, padding such that stride 1 keeps the size.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from drnas_jax.errors import check_choice

Array = jax.Array


class Kernels(NamedTuple):
    """One implementation of each kernel.

    Attributes:
      conv: (x, filter) -> y, dense convolution of stride 1.
      avg_pool: x -> y, mean over 3x3 of stride 1; padding does not count.
    """

    conv: Callable[[Array, Array], Array]
    avg_pool: Callable[[Array], Array]


def convolve(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Dense convolution by the library, padded by half the filter on every side as in PyTorch."""
    padding = [(size // 2, size // 2) for size in kernel.shape[:2]]
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _window_mean(x: Array) -> Array:
    def window_sum(y: Array) -> Array:
        return lax.reduce_window(y, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    return window_sum(x) / window_sum(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


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


def _window_counts(height: int, width: int) -> np.ndarray:
    def inside(size: int) -> np.ndarray:
        return np.array([min(i + 1, size - 1) - max(i - 1, 0) + 1 for i in range(size)])

    return np.outer(inside(height), inside(width)).astype(np.float32)[None, :, :, None]


def _box_sum(x: Array) -> Array:
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = x.shape[1:3]
    down = padded[:, :rows] + padded[:, 1 : rows + 1] + padded[:, 2 : rows + 2]
    return down[:, :, :columns] + down[:, :, 1 : columns + 1] + down[:, :, 2 : columns + 2]


@jax.custom_vjp
def _shift_mean(x: Array) -> Array:
    return _box_sum(x) / _window_counts(*x.shape[1:3]).astype(x.dtype)


# The sum over a 3x3 box is its own transpose, so the gradient costs what the forward pass costs.
_shift_mean.defvjp(
    lambda x: (_shift_mean(x), None),
    lambda _, g: (_box_sum(g / _window_counts(*g.shape[1:3]).astype(g.dtype)),),
)

PLAIN = Kernels(conv=convolve, avg_pool=_window_mean)
CPU = Kernels(conv=_patch_convolve, avg_pool=_shift_mean)
_BY_NAME = {"plain": PLAIN, "cpu": CPU, "gpu": PLAIN, "tpu": PLAIN}


def for_platform(platform: str) -> Kernels:
    """The fastest kernels measured for a JAX platform ('cpu', 'gpu', 'tpu'), or the 'plain' ones.

    Raises:
      UserError: the platform is none of these.
    """
    check_choice("platform", platform, _BY_NAME)
    return _BY_NAME[platform]
