"""The ONNX operators of JAX primitives that move elements."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import helper

from drnas_jax.export_formats.onnx import constants
from drnas_jax.export_formats.onnx.equations import Writer, result_shape, shape_of
from drnas_jax.export_formats.onnx.graph import Graph, Tensor, Value, unknown


def _transpose(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    x, permutation = operands[0], equation.params["permutation"]
    return [Tensor(x.name, tuple(permutation.index(axis) for axis in x.axes))]


def _reshape(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    sizes = [size if isinstance(size, int) else -1 for size in result_shape(equation)]
    if equation.params["dimensions"] is not None or sizes.count(-1) > 1:
        raise unknown(equation, f" to {result_shape(equation)}")
    name = graph.add("Reshape", graph.in_order(operands[0]), graph.integers(sizes))
    return [Tensor(name, tuple(range(len(sizes))))]


def _squeeze(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    return [without_axes(graph, "Squeeze", operands[0], equation.params["dimensions"])]


def without_axes(graph: Graph, operator: str, x: Tensor, axes: Sequence[int]) -> Tensor:
    """Returns the result of an operator that removes axes of an array.

    Args:
      graph: Graph that gets the node.
      operator: Name of an ONNX operator (x, positions of axes), such as `Squeeze`.
      x: Tensor of the array.
      axes: Axes of the array.
    """
    positions = sorted(x.axes.index(axis) for axis in axes)
    options = {} if operator == "Squeeze" else {"keepdims": 0}
    name = graph.add(operator, x.name, graph.integers(positions), **options)
    left = [axis for axis in x.axes if axis not in axes]
    return Tensor(name, tuple(sorted(left).index(axis) for axis in left))


def _broadcast(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    x, shape, mapped = operands[0], result_shape(equation), equation.params["broadcast_dimensions"]
    new = tuple(axis for axis in range(len(shape)) if axis not in mapped)
    name, axes = x.name, (*(mapped[axis] for axis in x.axes), *new)
    if new:
        name = graph.add("Unsqueeze", name, graph.integers(range(len(x.axes), len(shape))))
    before = [1] * len(shape)
    for axis, size in zip(mapped, shape_of(equation), strict=True):
        before[axis] = size
    if tuple(before) != shape:
        sizes = [shape[axis] if before[axis] != shape[axis] else 1 for axis in axes]
        if not all(isinstance(size, int) for size in sizes):
            raise unknown(equation, " to the number of images")
        name = graph.add("Expand", name, graph.integers(sizes))
    return [Tensor(name, axes)]


def _slice(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    params = equation.params
    steps = params["strides"] or (1,) * len(shape_of(equation))
    parts = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    return [_cut(graph, equation, operands[0], list(parts))]


def _cut(graph: Graph, equation: Any, x: Tensor, parts: Sequence[tuple[Any, Any, int]]) -> Tensor:
    """Returns a slice of a tensor; parts are start, limit and step on each axis."""
    whole = [(0, size, 1) for size in shape_of(equation)]
    cut = [axis for axis in range(len(parts)) if tuple(parts[axis]) != whole[axis]]
    if not cut:
        return x
    chosen = [parts[axis] for axis in cut]
    if not all(isinstance(number, int | np.integer) for part in chosen for number in part):
        raise unknown(equation, " that chooses some of the images")
    starts, limits, steps = (graph.integers(numbers) for numbers in zip(*chosen, strict=True))
    positions = graph.integers([x.axes.index(axis) for axis in cut])
    return Tensor(graph.add("Slice", x.name, starts, limits, positions, steps), x.axes)


def _dynamic_slice(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    x, *starts = operands
    parts = []
    for start, size, length in zip(
        starts, equation.params["slice_sizes"], shape_of(equation), strict=True
    ):
        if size == length:
            parts.append((0, size, 1))
        elif isinstance(start, Tensor) or not isinstance(x, Tensor):
            raise unknown(equation, " at a place that depends on the images")
        else:
            first = min(max(int(start), 0), length - size)
            parts.append((first, first + size, 1))
    return [_cut(graph, equation, x, parts)]


def _split(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    x, axis, sizes = operands[0], equation.params["axis"], equation.params["sizes"]
    position = x.axes.index(axis)
    filled = [int(size) for size in sizes if size]
    names: Sequence[str] = (x.name,)
    if len(filled) > 1:
        inputs = (x.name, graph.integers(filled))
        names = graph.add_many("Split", inputs, len(filled), axis=position)
    rest = iter(names)
    return [
        Tensor(next(rest), x.axes) if size else constants.empty(var.aval)
        for size, var in zip(sizes, equation.outvars, strict=True)
    ]


def _reverse(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    x, axes = operands[0], equation.params["dimensions"]
    backward = [-1] * len(axes)
    before_first = [np.iinfo(np.int64).min] * len(axes)
    positions = [x.axes.index(axis) for axis in axes]
    numbers = map(graph.integers, (backward, before_first, positions, backward))
    return [Tensor(graph.add("Slice", x.name, *numbers), x.axes)]


def _gather(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    """Writes a choice of rows, columns or channels that is the same for all images.

    JAX indexes arrays of unknown sizes so, even by slices.
    """
    x, indices = operands
    numbers, shape = equation.params["dimension_numbers"], shape_of(equation)
    sizes, chosen = equation.params["slice_sizes"], numbers.start_index_map
    collapsed = numbers.collapsed_slice_dims
    plain = (
        not isinstance(indices, Tensor)
        and not numbers.operand_batching_dims
        and set(collapsed) <= set(chosen)
        and all(sizes[axis] == shape[axis] for axis in range(len(shape)) if axis not in chosen)
    )
    lines = None
    if plain:
        indices = np.broadcast_to(indices, shape_of(equation, 1))
        lines = _lines(indices, [axis in collapsed for axis in chosen])
    if lines is None:
        raise unknown(equation, " that does not choose the same rows for all images")
    rank = len(result_shape(equation))
    indexed = [axis for axis in range(rank) if axis not in numbers.offset_dims]
    kept = [axis for axis in range(len(shape)) if axis not in collapsed]
    target = dict(zip(kept, numbers.offset_dims, strict=True))  # axis of the result for each axis
    removed = []
    for (place, line), axis in zip(lines, chosen, strict=True):
        if axis not in collapsed:
            line = line[0] + np.arange(sizes[axis])
        elif place is None:
            removed.append(axis)
        else:
            target[axis] = indexed[place]
        if line.min() < 0 or line.max() >= shape[axis]:
            raise unknown(equation, f" with indices outside of an axis of {shape[axis]}")
        x = Tensor(_take(graph, x.name, x.axes.index(axis), line), x.axes)
    axes = tuple(target[axis] for axis in x.axes if axis not in removed)
    if removed:
        x = without_axes(graph, "Squeeze", x, removed)
    return [Tensor(x.name, axes)]


def _take(graph: Graph, name: str, position: int, line: np.ndarray) -> str:
    """Chooses indices of one axis, by a slice if they are evenly spaced."""
    steps = np.diff(line)
    step = int(steps[0]) if len(steps) else 1
    if step > 0 and (steps == step).all():
        cut = ([line[0]], [line[-1] + 1], [position], [step])
        return graph.add("Slice", name, *map(graph.integers, cut))
    return graph.add("Gather", name, graph.integers(line), axis=position)


def _lines(
    indices: np.ndarray, may_vary: Sequence[bool]
) -> list[tuple[int | None, np.ndarray]] | None:
    """Splits indices of several axes into one list for each axis.

    Args:
      indices: Indices [..., k] of k axes of an array.
      may_vary: Whether the index of each of the k axes may vary.

    Returns:
      For each of the k axes the axis of `indices` along which its index varies, or None if it is
      one number; and its indices, [n]. None if the indices do not choose a grid.
    """
    columns = [indices[..., k] for k in range(indices.shape[-1])]
    places: list[int | None] = []
    for column in columns:
        varying = [axis for axis in range(column.ndim) if np.ptp(column, axis).any()]
        if len(varying) > 1 or set(varying) & set(places):
            return None
        places.append(varying[0] if varying else None)
    for axis in range(indices.ndim - 1):
        if axis not in places:  # an axis of length 1, or one that repeats the same number
            free = (k for k, place in enumerate(places) if place is None and may_vary[k])
            k = next(free, None)
            if k is None:
                return None
            places[k] = axis
    if any(place is not None and not may for place, may in zip(places, may_vary, strict=True)):
        return None
    lines = []
    for column, place in zip(columns, places, strict=True):
        line = column if place is None else np.moveaxis(column, place, -1)
        lines.append((place, line.reshape(-1)[: 1 if place is None else line.shape[-1]]))
    return lines


def _batch_size(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    if str(equation.params["dim"]) != "batch":
        raise unknown(equation, f" {equation.params['dim']}")
    size = graph.add("Squeeze", graph.add("Shape", graph.image, start=0, end=1))
    dtype = helper.np_dtype_to_tensor_dtype(equation.outvars[0].aval.dtype)
    return [Tensor(graph.add("Cast", size, to=dtype), ())]


def _pad(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    x, value = operands
    config = equation.params["padding_config"]
    if isinstance(value, Tensor) or not isinstance(x, Tensor) or any(gap for *_, gap in config):
        raise unknown(equation, " between elements or with values that depend on the images")
    ends = [config[axis][end] for end in (0, 1) for axis in x.axes]
    return [Tensor(graph.add("Pad", x.name, graph.integers(ends), graph.constant(value)), x.axes)]


def _concatenate(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    axis = equation.params["dimension"]
    avals = [var.aval for var in equation.invars]
    parts = [
        (operand, aval.shape)
        for operand, aval in zip(operands, avals, strict=True)
        if not constants.is_empty(aval)
    ]
    axes = next(part.axes for part, _ in parts if isinstance(part, Tensor))
    if len(parts) == 1:
        return [parts[0][0]]
    names = [graph.arranged(full(graph, part, shape), axes) for part, shape in parts]
    return [Tensor(graph.add("Concat", *names, axis=axes.index(axis)), axes)]


def full(graph: Graph, value: Value, shape: Sequence[Any]) -> Value:
    """Returns a constant at its full size, or a tensor as it is."""
    if isinstance(value, Tensor):
        return value
    if all(isinstance(size, int) for size in shape):
        return np.broadcast_to(value, shape)
    return graph.expanded(value, shape)


def _stack(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    return [stacked(graph, operands, shape_of(equation), equation.params["axis"])]


def stacked(graph: Graph, parts: Sequence[Value], shape: Sequence[Any], axis: int) -> Value:
    """Returns arrays of one shape stacked along a new axis.

    Args:
      graph: Graph that gets the nodes.
      parts: Arrays.
      shape: Shape of each.
      axis: Position of the new axis.
    """
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if not tensors:
        return np.stack(np.broadcast_arrays(*parts), axis)
    axes = tensors[0].axes
    names = [graph.arranged(full(graph, part, shape), axes) for part in parts]
    rows = [graph.add("Unsqueeze", name, graph.integers([0])) for name in names]
    order = (axis, *(old + (old >= axis) for old in axes))
    return Tensor(graph.add("Concat", *rows, axis=0), order)


# By the name of the primitive.
WRITERS: dict[str, Writer] = {
    "transpose": _transpose,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "split": _split,
    "gather": _gather,
    "rev": _reverse,
    "dim_as_value": _batch_size,
    "pad": _pad,
    "concatenate": _concatenate,
    "stack": _stack,
}
