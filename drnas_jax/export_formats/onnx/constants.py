"""Evaluates what does not depend on the images, so that the model holds only the result."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

# Frequent primitives are computed by NumPy: JAX would compile each of them.
_NUMPY: dict[str, Callable[..., Any]] = {
    "add": lambda p, x, y: x + y,
    "sub": lambda p, x, y: x - y,
    "mul": lambda p, x, y: x * y,
    "neg": lambda p, x: -x,
    "name": lambda p, x: x,
    "slice": lambda p, x: x[_slices(**p)],
    "squeeze": lambda p, x: np.squeeze(x, p["dimensions"]),
    "reshape": lambda p, x: np.reshape(x, p["new_sizes"]),
    "transpose": lambda p, x: np.transpose(x, p["permutation"]),
    "concatenate": lambda p, *xs: np.concatenate(xs, p["dimension"]),
    "stack": lambda p, *xs: np.stack(xs, p["axis"]),
}


def is_key(value: Any) -> bool:
    """Returns whether a value is an array of random keys, which NumPy cannot hold."""
    return jax.numpy.issubdtype(value.dtype, jax.dtypes.extended)


def constant(value: Any, aval: Any) -> Any:
    """Returns the constant for a value of a traced program: a NumPy array, or random keys."""
    return value if is_key(aval) else np.asarray(value, aval.dtype)


def is_empty(aval: Any) -> bool:
    """Returns whether an array has no elements, whatever the size of the batch is."""
    return any(isinstance(size, int) and size == 0 for size in aval.shape)


def empty(aval: Any) -> np.ndarray:
    """Returns the constant for an array without elements."""
    return np.zeros([size if isinstance(size, int) else 1 for size in aval.shape], aval.dtype)


def fold(equation: Any, operands: Sequence[Any], elementwise: bool) -> list[Any] | None:
    """Evaluates an equation of a traced program.

    Args:
      equation: Equation without an inner program.
      operands: Its operands, all constants.
      elementwise: Whether it acts on each element, and so on operands that are yet to be broadcast.

    Returns:
      Its results, or None if they depend on the size of the batch, or may.
    """
    name, params = equation.primitive.name, equation.params
    if name == "broadcast_in_dim":
        return [_broadcast(operands[0], len(params["shape"]), params["broadcast_dimensions"])]
    shapes = [var.aval.shape for var in (*equation.invars, *equation.outvars)]
    if elementwise:
        if len({np.shape(operand) for operand in operands} - {()}) > 1:
            operands = np.broadcast_arrays(*operands)
    elif all(isinstance(size, int) for shape in shapes for size in shape):
        operands = [
            operand if is_key(operand) else np.broadcast_to(operand, shape)
            for operand, shape in zip(operands, shapes, strict=False)
        ]
    else:
        return None
    if name in _NUMPY and not any(map(is_key, operands)):
        results = [_NUMPY[name](params, *operands)]
    else:
        results = equation.primitive.bind(*operands, **params)
        results = results if equation.primitive.multiple_results else [results]
    return [
        constant(result, var.aval) for result, var in zip(results, equation.outvars, strict=True)
    ]


def _broadcast(value: Any, rank: int, dimensions: Sequence[int]) -> Any:
    """Returns a value with new axes of length 1 instead of their full length."""
    shape = [1] * rank
    for axis, size in zip(dimensions, np.shape(value), strict=True):
        shape[axis] = size
    return value.reshape(shape)


def _slices(start_indices: Any, limit_indices: Any, strides: Any) -> tuple[slice, ...]:
    steps = strides or (1,) * len(start_indices)
    return tuple(map(slice, start_indices, limit_indices, steps))
