"""Lets one compiled program serve passes that read the weights' gradient and passes that do not.

On a CPU the two passes of a search step, for the architecture parameters and for the weights, are
the two iterations of one loop, so that the supernet is compiled once. The first iteration does not
read the gradient of the weights, so `apply`, which the kernels of `drnas_jax.nn.shifts` are made
of, skips it by a condition. The scalar that says so is read only by the kernels; modules and search
spaces never see it.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_wanted: contextvars.ContextVar[jax.Array | None] = contextvars.ContextVar("wanted", default=None)


@contextlib.contextmanager
def computed_if(wanted: jax.Array | None) -> Iterator[None]:
    """While this context is active, kernels compute the weights' gradient only if `wanted` > 0.

    Args:
      wanted: Scalar, which may be traced; None if the gradient is always computed, or the compiler
        can see that it is not read.
    """
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def wanted() -> jax.Array | None:
    """Returns the scalar of the innermost `computed_if`."""
    return _wanted.get()


class BilinearOp(NamedTuple):
    """An operation that is linear in its images and linear in its weights.

    Attributes:
      apply: Function (x, weights, *static) -> y.
      image_gradient: Function (x, weights, g, *static) -> gradient with respect to x, given the
        gradient g with respect to y.
      weight_gradient: Function of the same arguments -> gradient with respect to the weights.
    """

    apply: Callable[..., jax.Array]
    image_gradient: Callable[..., jax.Array]
    weight_gradient: Callable[..., jax.Array]


def apply(op: BilinearOp, x: jax.Array, weights: jax.Array, *static: int) -> jax.Array:
    """Applies an operation, whose weights' gradient obeys the innermost `computed_if`.

    Args:
      op: Operation to apply.
      x: Images, [c, h, w, b].
      weights: Weights of the operation.
      *static: Further arguments of the operation, such as the stride.
    """
    return _run(op, static, x, weights, wanted())


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(
    op: BilinearOp,
    static: tuple[int, ...],
    x: jax.Array,
    weights: jax.Array,
    wanted: jax.Array | None,
) -> jax.Array:
    """Applies an operation; the gradient of its weights is computed only if it is needed.

    Args:
      op: Operation to apply.
      static: Further arguments of the operation, such as the stride.
      x: Images, [c, h, w, b].
      weights: Weights of the operation.
      wanted: Scalar that says at run time whether the gradient of the weights is needed: if it is
        0, that gradient is returned as zeros. None means that it is needed.
    """
    del wanted
    return op.apply(x, weights, *static)


def _run_backward(
    op: BilinearOp,
    static: tuple[int, ...],
    residuals: tuple[jax.Array, jax.Array, jax.Array | None],
    g: jax.Array,
) -> tuple[jax.Array, jax.Array, None]:
    x, weights, wanted = residuals
    dx = op.image_gradient(x, weights, g, *static)
    if wanted is None:
        return dx, op.weight_gradient(x, weights, g, *static), None
    d_weights = lax.cond(
        wanted > 0,
        lambda: op.weight_gradient(x, weights, g, *static),
        lambda: jnp.zeros_like(weights),
    )
    return dx, d_weights, None


_run.defvjp(
    lambda op, static, x, weights, wanted: (
        op.apply(x, weights, *static),
        (x, weights, wanted),
    ),
    _run_backward,
)
