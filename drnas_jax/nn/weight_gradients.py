"""Lets one compiled program serve passes that read the weights' gradient and passes that do not.

On a CPU the two passes of a search step, for the architecture parameters and for the weights, are
the two iterations of one loop, so that the supernet is compiled once. The first iteration does not
read the gradient of the weights, so the kernels of `drnas_jax.nn.shifts` skip it by a condition.
The scalar that says so is read only by the kernels; modules and search spaces never see it.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_wanted: contextvars.ContextVar[jax.Array | None] = contextvars.ContextVar("wanted", default=None)


@contextlib.contextmanager
def computed_if(wanted: jax.Array | None) -> Iterator[None]:
    """While this context is active, kernels compute the weights' gradient only if `wanted` > 0.

    Args:
      wanted: Scalar, which may be traced; None if the gradient is always computed, or the compiler
        sees by itself that nobody reads it.
    """
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def wanted() -> jax.Array | None:
    """Returns the scalar of the innermost `computed_if`."""
    return _wanted.get()
