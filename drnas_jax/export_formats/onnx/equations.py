"""Shapes of the operands and results of an equation, for the writers of operators."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from drnas_jax.export_formats.onnx.graph import Graph, Value

# Function (graph, equation, operands) -> results. At least one operand is a tensor, and no result
# is empty.
Writer: TypeAlias = Callable[[Graph, Any, Sequence[Value]], Sequence[Value]]


def shape_of(equation: Any, operand: int = 0) -> tuple[Any, ...]:
    """Returns the shape of an operand."""
    return equation.invars[operand].aval.shape


def result_shape(equation: Any) -> tuple[Any, ...]:
    """Returns the shape of the first result."""
    return equation.outvars[0].aval.shape


def static(constant: Any, shape: Sequence[Any]) -> np.ndarray:
    """Returns a constant broadcast to a shape, but not along the batch."""
    sizes = [size if isinstance(size, int) else 1 for size in shape]
    return np.broadcast_to(constant, sizes)
