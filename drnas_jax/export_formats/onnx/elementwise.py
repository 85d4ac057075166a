"""The ONNX operators of JAX primitives that act on each element."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import helper

from drnas_jax.export_formats.onnx.equations import Writer, result_shape, shape_of, static
from drnas_jax.export_formats.onnx.graph import Graph, Tensor, Value, unknown

_SAME_OPERANDS = {
    "abs": "Abs",
    "ceil": "Ceil",
    "cos": "Cos",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "min": "Min",
    "neg": "Neg",
    "pow": "Pow",
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
}
_NEUTRAL = {"add": 0, "sub": 0, "mul": 1, "div": 1, "max": -np.inf}


def _aligned(
    graph: Graph, equation: Any, operands: Sequence[Value]
) -> tuple[list[str], tuple[int, ...]]:
    """Returns the names of operands in one order of axes, and this order; scalars have none."""
    result = result_shape(equation)
    tensors = [
        (operand, shape_of(equation, index))
        for index, operand in enumerate(operands)
        if isinstance(operand, Tensor)
    ]
    axes = next(tensor.axes for tensor, shape in tensors if len(shape) == len(result))
    short = any(shape == result for _, shape in tensors)  # the constants need not be broadcast
    names = []
    for index, operand in enumerate(operands):
        if isinstance(operand, Tensor):
            names.append(graph.arranged(operand, axes) if operand.axes else operand.name)
            continue
        if not short:
            operand = static(operand, shape_of(equation, index))
        scalar = operand.size == 1
        names.append(
            graph.constant(operand.reshape(())) if scalar else graph.arranged(operand, axes)
        )
    return names, axes


def _elementwise(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    names, axes = _aligned(graph, equation, operands)
    return [Tensor(graph.add(_SAME_OPERANDS[equation.primitive.name], *names), axes)]


def _identity(graph: Graph, equation: Any, operands: Sequence[Value]) -> Sequence[Value]:
    return operands


def _arithmetic(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    name = equation.primitive.name
    for x, other, shape in _with_constant(equation, operands):
        if name == "div":
            for mean in graph.means.get(x, []):
                if _equal(other, mean.terms, shape):
                    return [mean.build()]
        if (other == _NEUTRAL[name]).all() and shape == result_shape(equation):
            return [x]
        if name == "max" and (other == 0).all() and shape == result_shape(equation):
            return [Tensor(graph.add("Relu", x.name), x.axes)]
        if name == "sub":
            name, operands = "add", (x, -other)
    names, axes = _aligned(graph, equation, operands)
    return [Tensor(graph.add(name.capitalize(), *names), axes)]


def _with_constant(
    equation: Any, operands: Sequence[Value]
) -> list[tuple[Tensor, Any, tuple[Any, ...]]]:
    """Returns the tensor of a sum, product etc., the constant and the tensor's shape, if any.

    The constant of a difference or quotient must be the second operand.
    """
    x, y = operands
    if isinstance(x, Tensor) and not isinstance(y, Tensor):
        return [(x, y, shape_of(equation))]
    commutes = equation.primitive.name not in ("sub", "div")
    if isinstance(y, Tensor) and not isinstance(x, Tensor) and commutes:
        return [(y, x, shape_of(equation, 1))]
    return []


def _equal(constant: Any, terms: np.ndarray, shape: Sequence[Any]) -> bool:
    """Returns whether two constants are equal if they are broadcast to a shape."""
    return bool((static(constant, shape) == static(terms, shape)).all())


def _square(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    x = operands[0]
    return [Tensor(graph.add("Mul", x.name, x.name), x.axes)]


def _integer_pow(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    x, exponent = operands[0], equation.params["y"]
    if exponent == 2:
        return _square(graph, equation, operands)
    power = graph.constant(np.array(exponent, equation.invars[0].aval.dtype))
    return [Tensor(graph.add("Pow", x.name, power), x.axes)]


def _rsqrt(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    x = operands[0]
    return [Tensor(graph.add("Reciprocal", graph.add("Sqrt", x.name)), x.axes)]


def _near_one(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    """Writes functions that ONNX has only without the 1 in them."""
    x = operands[0]
    one = graph.constant(np.array(1, equation.invars[0].aval.dtype))
    if equation.primitive.name == "log1p":
        name = graph.add("Log", graph.add("Add", x.name, one))
    elif equation.primitive.name == "expm1":
        name = graph.add("Sub", graph.add("Exp", x.name), one)
    else:
        name = graph.add("Sub", one, graph.add("Erf", x.name))
    return [Tensor(name, x.axes)]


def _not_equal(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    names, axes = _aligned(graph, equation, operands)
    return [Tensor(graph.add("Not", graph.add("Equal", *names)), axes)]


def _logical(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    if equation.outvars[0].aval.dtype != bool:
        raise unknown(equation, " on integers")
    names, axes = _aligned(graph, equation, operands)
    return [Tensor(graph.add(equation.primitive.name.capitalize(), *names), axes)]


def _clamp(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    (low, x, high), axes = _aligned(graph, equation, operands)
    return [Tensor(graph.add("Min", graph.add("Max", x, low), high), axes)]


def _select(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    if len(operands) != 3 or equation.invars[0].aval.dtype != bool:
        raise unknown(equation, " with more than two cases")
    (which, false, true), axes = _aligned(graph, equation, operands)
    return [Tensor(graph.add("Where", which, true, false), axes)]


def _convert(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    x, dtype = operands[0], equation.outvars[0].aval.dtype
    if dtype == equation.invars[0].aval.dtype:
        return [x]
    return [Tensor(graph.add("Cast", x.name, to=helper.np_dtype_to_tensor_dtype(dtype)), x.axes)]


# By the name of the primitive.
WRITERS: dict[str, Writer] = {
    **dict.fromkeys(_SAME_OPERANDS, _elementwise),
    "copy": _identity,
    "name": _identity,
    "stop_gradient": _identity,
    "add": _arithmetic,
    "sub": _arithmetic,
    "mul": _arithmetic,
    "div": _arithmetic,
    "max": _arithmetic,
    "square": _square,
    "integer_pow": _integer_pow,
    "rsqrt": _rsqrt,
    "log1p": _near_one,
    "expm1": _near_one,
    "erfc": _near_one,
    "ne": _not_equal,
    "and": _logical,
    "or": _logical,
    "not": _logical,
    "clamp": _clamp,
    "select_n": _select,
    "convert_element_type": _convert,
}
