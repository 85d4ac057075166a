"""The ONNX operators of convolutions, matrix products, pools and sums."""

import string
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from jax import lax

from drnas_jax.export_formats.onnx.equations import Writer, shape_of
from drnas_jax.export_formats.onnx.graph import Graph, Mean, Tensor, Value, unknown
from drnas_jax.export_formats.onnx.shapes import full, without_axes


def _convolution(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    x, filters = operands[0], full(graph, operands[1], shape_of(equation, 1))
    params = equation.params
    inputs, kernel, outputs = params["dimension_numbers"]
    if max(params["lhs_dilation"], default=1) > 1 or params["batch_group_count"] > 1:
        raise unknown(equation, " with gaps between pixels or groups of examples")
    if not isinstance(x, Tensor) or min(min(ends) for ends in params["padding"]) < 0:
        raise unknown(equation, " with a constant image or negative padding")
    name = graph.add(
        "Conv",
        graph.arranged(x, inputs),
        graph.arranged(filters, kernel),
        kernel_shape=tuple(shape_of(equation, 1)[axis] for axis in kernel[2:]),
        strides=tuple(params["window_strides"]),
        dilations=tuple(params["rhs_dilation"]),
        pads=_ends(params["padding"]),
        group=params["feature_group_count"],
    )
    return [Tensor(name, tuple(outputs))]


def _ends(padding: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Returns the padding at the beginning of each axis, and then at the end of each."""
    return tuple(int(pair[end]) for end in (0, 1) for pair in padding)


def _product(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    x, matrix = operands
    if equation.outvars[0].aval.dtype != np.float32:
        raise unknown(equation, " of integers")
    contracted, batched = equation.params["dimension_numbers"]
    layer = isinstance(x, Tensor) and not isinstance(matrix, Tensor) and not batched[0]
    if layer and len(contracted[0]) == 1 and len(shape_of(equation, 1)) == 2:
        matrix = np.broadcast_to(matrix, shape_of(equation, 1))
        transposed = matrix.T if contracted[1][0] == 0 else matrix  # [outputs, inputs]
        return [_dense(graph, x, contracted[0][0], transposed)]
    return [_einsum(graph, equation, operands)]


def _dense(graph: Graph, x: Tensor, axis: int, matrix: np.ndarray) -> Tensor:
    """Returns the product of a matrix [outputs, inputs] and an axis of x, which becomes the last.

    If the axis is at ONNX's position of channels, the product is a convolution with 1x1 filters.
    """
    rank, position = len(x.axes), x.axes.index(axis)
    order = [other - (other > axis) if other != axis else rank - 1 for other in x.axes]
    if rank == 2:
        name = graph.add(
            "Gemm", graph.arranged(x, (1 - axis, axis)), graph.constant(matrix), transB=1
        )
        return Tensor(name, (0, 1))
    if position == 1 and rank in (3, 4):
        ones = (1,) * (rank - 2)
        filters = graph.constant(matrix.reshape(*matrix.shape, *ones))
        name = graph.add(
            "Conv",
            x.name,
            filters,
            kernel_shape=ones,
            strides=ones,
            dilations=ones,
            pads=(0, 0) * (rank - 2),
            group=1,
        )
        return Tensor(name, tuple(order))
    last = [*(other for other in x.axes if other != axis), axis]
    name = graph.add("MatMul", graph.arranged(x, last), graph.constant(matrix.T))
    return Tensor(name, (*(other for other in order if other != rank - 1), rank - 1))


def _einsum(graph: Graph, equation: Any, operands: Sequence[Value]) -> Tensor:
    """Returns a product over several axes, or of two arrays that depend on the images."""
    contracted, batched = equation.params["dimension_numbers"]
    letters = iter(string.ascii_letters)
    words: list[dict[int, str]] = [{}, {}]
    for pairs in (batched, contracted):
        for first, second in zip(*pairs, strict=True):
            words[0][first] = words[1][second] = next(letters)
    free = []
    for operand, word in enumerate(words):
        for axis in range(len(shape_of(equation, operand))):
            if axis not in word:
                word[axis] = next(letters)
                free.append(word[axis])
    result = [words[0][axis] for axis in batched[0]] + free
    names, sides = [], []
    for operand, (value, word) in enumerate(zip(operands, words, strict=True)):
        value = full(graph, value, shape_of(equation, operand))
        axes = value.axes if isinstance(value, Tensor) else range(len(word))
        names.append(graph.arranged(value, axes))
        sides.append("".join(word[axis] for axis in axes))
    name = graph.add("Einsum", *names, equation=f"{','.join(sides)}->{''.join(result)}")
    return Tensor(name, tuple(range(len(result))))


def _pool(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    x, params = operands[0], equation.params
    sizes, strides = params["window_dimensions"], params["window_strides"]
    padding, gaps = params["padding"], (*params["base_dilation"], *params["window_dilation"])
    if max(gaps) > 1 or equation.outvars[0].aval.dtype != np.float32:
        raise unknown(equation, " with gaps or of integers")
    if any(max(ends) >= size for size, ends in zip(sizes, padding, strict=True)):
        raise unknown(equation, " with padding as wide as the window")
    trivial = (1, 1, (0, 0))
    windows = enumerate(zip(sizes, strides, padding, strict=True))
    pooled = [axis for axis, window in windows if window != trivial]
    axes = x.axes
    if not set(pooled) <= set(axes[2:]):
        axes = (*(axis for axis in axes if axis not in pooled), *pooled)
    if len(axes) < max(3, 2 + len(pooled)):
        raise unknown(equation, " over channels or examples")
    window = {
        "kernel_shape": tuple(int(sizes[axis]) for axis in axes[2:]),
        "strides": tuple(int(strides[axis]) for axis in axes[2:]),
        "pads": _ends([padding[axis] for axis in axes[2:]]),
    }
    images = Tensor(graph.arranged(x, axes), axes)
    if equation.primitive.name == "reduce_window_max":
        return [Tensor(graph.add("MaxPool", images.name, **window), axes)]
    return [_sum_pool(graph, equation, images, window)]


def _sum_pool(graph: Graph, equation: Any, x: Tensor, window: dict[str, Any]) -> Tensor:
    """Returns the sums over windows, and notes how to compute the means over them."""
    params, shape = equation.params, shape_of(equation)
    size = np.prod(params["window_dimensions"], dtype=np.float32)
    pixels = np.ones([n if axis in x.axes[2:] else 1 for axis, n in enumerate(shape)], np.float32)
    inside = lax.reduce_window(
        pixels,
        0.0,
        lax.add,
        params["window_dimensions"],
        params["window_strides"],
        params["padding"],
    )
    with_padding = partial(_mean_pool, graph, x, window, 1)
    total = Tensor(graph.add("Mul", with_padding().name, graph.constant(size)), x.axes)
    without_padding = partial(_mean_pool, graph, x, window, 0)
    graph.means[total] = [Mean(size, with_padding), Mean(np.asarray(inside), without_padding)]
    return total


def _mean_pool(graph: Graph, x: Tensor, window: dict[str, Any], padding_counts: int) -> Tensor:
    name = graph.add("AveragePool", x.name, count_include_pad=padding_counts, **window)
    return Tensor(name, x.axes)


_REDUCTIONS = {
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_prod": "ReduceProd",
    "reduce_sum": "ReduceSum",
}


def _reduction(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    x, axes, name = operands[0], equation.params["axes"], equation.primitive.name
    result = without_axes(graph, _REDUCTIONS[name], x, axes)
    sizes = [shape_of(equation)[axis] for axis in axes]
    if name == "reduce_sum" and all(isinstance(size, int) for size in sizes):
        mean = partial(without_axes, graph, "ReduceMean", x, axes)
        graph.means[result] = [Mean(np.prod(sizes, dtype=np.float32), mean)]
    return [result]


# By the name of the primitive.
WRITERS: dict[str, Writer] = {
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "reduce_window_max": _pool,
    "reduce_window_sum": _pool,
    **dict.fromkeys(_REDUCTIONS, _reduction),
}
