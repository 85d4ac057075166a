"""The layers of a network that take its time: convolutions, matrix products and pools.

They are read from the traced program, so this works for any network, whatever its modules are.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

# Columns of a table of measured layers, a CSV file, and the row for all that is not in layers.
COLUMNS = ("operation", "input_shape", "seconds")
REST = ("rest", "")


class Layer(NamedTuple):
    """One layer.

    Attributes:
      operation: Kind and parameters, for example `conv 3x3 16>32 stride 2`.
      input_shape: Shape of the input with the batch first, for example `1x32x32x16`.
    """

    operation: str
    input_shape: str


class Program(NamedTuple):
    """The program of one layer.

    Attributes:
      function: Function of the input and, if the layer has one, its kernel.
      shapes: Shapes and types of the arguments.
    """

    function: Callable[..., jax.Array]
    shapes: tuple[jax.ShapeDtypeStruct, ...]


def network_layers(
    network: nn.Module, image_shape: tuple[int, ...], batch: int = 1
) -> tuple[Counter[Layer], dict[Layer, Program]]:
    """Returns how often a network computes each layer in evaluation mode, and their programs.

    Nothing is computed.

    Args:
      network: Module (images [b, h, w, c], train) -> outputs, with the 'plain' kernels.
      image_shape: Height, width and channels of an image.
      batch: Number of images.
    """
    image = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, False), image)
    streams = {name: jax.random.key(0) for name in ("dropout", "noise")}
    closed = jax.make_jaxpr(lambda v, x: network.apply(v, x, False, rngs=streams))(variables, image)
    counts: Counter[Layer] = Counter()
    programs: dict[Layer, Program] = {}
    for layer, program, times in _layers(closed.jaxpr, 1):
        counts[layer] += times
        programs.setdefault(layer, program)
    return counts, programs


def _layers(jaxpr: Any, times: int) -> Iterator[tuple[Layer, Program, int]]:
    """Yields the layers of a program with their numbers of executions."""
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            yield *_convolution(equation), times
        elif name == "dot_general":
            yield *_product(equation), times
        elif name.startswith("reduce_window_"):
            yield *_pool(equation), times
        repeats = times * (params["length"] if name == "scan" else 1)
        for value in params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _layers(inner, repeats)


def _convolution(equation: Any) -> tuple[Layer, Program]:
    x, kernel = (var.aval for var in equation.invars)
    params, spec = equation.params, equation.params["dimension_numbers"].rhs_spec
    shape = [kernel.shape[axis] for axis in spec]  # outputs, inputs of a group, sides
    groups = params["feature_group_count"]
    words = [f"conv {_joined_by_x(shape[2:])} {shape[1] * groups}>{shape[0]}"]
    words += _unless(1, stride=params["window_strides"], dilation=params["rhs_dilation"])
    words += [f"groups {groups}"] if groups > 1 else []
    return _layer(equation, words, (x, kernel))


def _product(equation: Any) -> tuple[Layer, Program]:
    x, matrix = (var.aval for var in equation.invars)
    words = [f"dot {_joined_by_x(matrix.shape)}"]
    return _layer(equation, words, (x, matrix))


def _pool(equation: Any) -> tuple[Layer, Program]:
    params = equation.params
    kind = equation.primitive.name.removeprefix("reduce_window_")
    words = [f"pool {kind} {_joined_by_x(params['window_dimensions'])}"]
    words += _unless(1, stride=params["window_strides"])
    return _layer(equation, words, (equation.invars[0].aval,))


def _layer(equation: Any, words: Sequence[str], avals: Sequence[Any]) -> tuple[Layer, Program]:
    def function(*arguments: jax.Array) -> jax.Array:
        y = equation.primitive.bind(*arguments, **equation.params)
        return jnp.maximum(1.5 * y + 0.5, 0)  # stands for BatchNorm and ReLU, which are fused

    shapes = tuple(jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals)
    return Layer(" ".join(words), _joined_by_x(avals[0].shape)), Program(function, shapes)


def _unless(usual: int, **values: Sequence[int]) -> list[str]:
    """Returns words for the parameters that are not as usual."""
    return [f"{name} {max(numbers)}" for name, numbers in values.items() if max(numbers) != usual]


def _joined_by_x(numbers: Sequence[int]) -> str:
    return "x".join(map(str, numbers))
