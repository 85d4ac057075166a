"""Walks a traced program from its first equation to its last and writes each as ONNX nodes."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from drnas_jax.export_formats.onnx import constants, elementwise, layers, shapes
from drnas_jax.export_formats.onnx.graph import Graph, Tensor, Value, unknown

_WRITERS = {**elementwise.WRITERS, **shapes.WRITERS, **layers.WRITERS}

# Primitives that only call another program, and the parameter that holds it.
_CALLS = {
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}


def write(graph: Graph, program: Any, arguments: Sequence[Value]) -> list[Value]:
    """Adds a program to a graph.

    Programs that it calls become part of it, and loops are written out.

    Args:
      graph: Graph that gets the nodes.
      program: Traced program, a Jaxpr or a ClosedJaxpr.
      arguments: Its arguments.

    Returns:
      Its results.

    Raises:
      UserError: An equation has no counterpart.
    """
    jaxpr, consts = getattr(program, "jaxpr", program), getattr(program, "consts", ())
    values: dict[Any, Value] = {
        var: constants.constant(const, var.aval)
        for var, const in zip(jaxpr.constvars, consts, strict=True)
    }
    values.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Value:
        return (
            constants.constant(atom.val, atom.aval) if isinstance(atom, Literal) else values[atom]
        )

    for equation in jaxpr.eqns:
        results = _write_equation(graph, equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _write_equation(graph: Graph, equation: Any, operands: list[Value]) -> Sequence[Value]:
    name, params = equation.primitive.name, equation.params
    if name in _CALLS:
        return write(graph, params[_CALLS[name]], operands)
    if name == "scan":
        return _write_loop(graph, equation, operands)
    if name == "cond" and not isinstance(operands[0], Tensor):
        last = len(params["branches"]) - 1
        return write(graph, params["branches"][min(max(int(operands[0]), 0), last)], operands[1:])
    avals = [var.aval for var in equation.outvars]
    if avals and all(map(constants.is_empty, avals)):
        return [constants.empty(aval) for aval in avals]
    constant = bool(operands) and not any(isinstance(operand, Tensor) for operand in operands)
    if constant or name == "iota":
        folded = constants.fold(equation, operands, name in elementwise.WRITERS)
        if folded is not None:
            return folded
    if name not in _WRITERS:
        random = name.startswith(("random_", "threefry"))
        raise unknown(equation, ", which draws random numbers," if random else "")
    if constant:
        parts = zip(operands, equation.invars, strict=True)
        operands = [shapes.full(graph, operand, var.aval.shape) for operand, var in parts]
        if not any(isinstance(operand, Tensor) for operand in operands):
            raise unknown(equation, " with values that depend on the number of images")
    for aval in avals:
        if jnp.issubdtype(aval.dtype, jnp.floating) and aval.dtype != np.float32:
            raise unknown(equation, f" in {aval.dtype}")
    return _WRITERS[name](graph, equation, operands)


def _write_loop(graph: Graph, equation: Any, operands: list[Value]) -> list[Value]:
    """Writes the iterations of a `scan` one after another."""
    params, length = equation.params, equation.params["length"]
    first, states = params["num_consts"], params["num_carry"]
    fixed, carry = operands[:first], operands[first : first + states]
    rows = operands[first + states :]
    if any(isinstance(operand, Tensor) for operand in rows):
        raise unknown(equation, " over values that depend on the images")
    rows = [
        row if len(row) == length else np.broadcast_to(row, (length, *row.shape[1:]))
        for row in rows
    ]
    collected: list[list[Value]] = [[] for _ in equation.outvars[states:]]
    for step in reversed(range(length)) if params["reverse"] else range(length):
        results = write(graph, params["jaxpr"], [*fixed, *carry, *(row[step] for row in rows)])
        carry = results[:states]
        for parts, result in zip(collected, results[states:], strict=True):
            parts.insert(0 if params["reverse"] else len(parts), result)
    stacks = [
        shapes.stacked(graph, parts, var.aval.shape[1:], 0)
        for parts, var in zip(collected, equation.outvars[states:], strict=True)
    ]
    return [*carry, *stacks]
