"""An ONNX graph under construction: nodes, initialisers and the order of axes.

Convolutions of ONNX have the channels on axis 1, those of this package on the last axis. Nodes are
therefore written with the axes in whatever order they come in, and a transpose is added only where
an operator needs another order.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from drnas_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array that is computed when the model runs.

    Attributes:
      name: Name of the ONNX tensor that holds it.
      axes: Order of the axes: axis i of the ONNX tensor is axis `axes[i]` of the array.
    """

    name: str
    axes: tuple[int, ...]


# A Tensor or a constant. A constant is an array with as many axes as the one that it stands for, to
# which it can be broadcast; an axis of the size of the batch has length 1 in it.
Value: TypeAlias = Any


@dataclasses.dataclass(frozen=True)
class Node:
    """An ONNX operator and the names of its inputs and outputs."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[tuple[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Mean:
    """A way to compute a sum that is divided by a number of terms, as one operator.

    Attributes:
      terms: Numbers of terms, broadcastable to the sum.
      build: Function that adds the operator and returns its output.
    """

    terms: Any
    build: Callable[[], Tensor]


class Graph:
    """Nodes and initialisers of a model.

    Attributes:
      image: Name of the model's input.
      nodes: Nodes in the order of their computation.
      initialisers: Arrays by name.
      means: Ways to divide a sum by its number of terms.
    """

    def __init__(self, image: str) -> None:
        self.image = image
        self.nodes: list[Node] = []
        self.initialisers: dict[str, np.ndarray] = {}
        self.means: dict[Tensor, list[Mean]] = {}
        self._known: dict[Any, tuple[str, ...]] = {}
        self._arranged: dict[tuple[str, tuple[int, ...]], str] = {}

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output, unless there is an equal one, and returns its output."""
        return self.add_many(operator, inputs, 1, **attributes)[0]

    def add_many(
        self, operator: str, inputs: Sequence[str], outputs: int, **attributes: Any
    ) -> tuple[str, ...]:
        """Adds a node, unless there is an equal one, and returns the names of its outputs."""
        key = (operator, tuple(inputs), outputs, tuple(sorted(attributes.items())))
        if key not in self._known:
            first = f"{operator.lower()}_{len(self._known)}"
            names = tuple(first if i == 0 else f"{first}_{i}" for i in range(outputs))
            self.nodes.append(Node(operator, tuple(inputs), names, key[3]))
            self._known[key] = names
        return self._known[key]

    def constant(self, array: Any) -> str:
        """Returns the name of an initialiser with these values."""
        array = np.asarray(array)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._known:
            name = f"constant_{len(self._known)}"
            self.initialisers[name] = array
            self._known[key] = (name,)
        return self._known[key][0]

    def integers(self, values: Sequence[int] | np.ndarray) -> str:
        """Returns the name of an initialiser int64 [n], such as a list of axes."""
        return self.constant(np.array(values, np.int64))

    def arranged(self, value: Value, axes: Sequence[int]) -> str:
        """Returns the name of an ONNX tensor that holds a value with its axes in this order.

        Args:
          value: A tensor, or a constant, which remains as short as it is.
          axes: Axis of the array for each axis of the ONNX tensor.
        """
        if not isinstance(value, Tensor):
            return self.constant(np.transpose(value, axes))
        order = tuple(value.axes.index(axis) for axis in axes)
        if order == tuple(range(len(order))):
            return value.name
        if (value.name, order) not in self._arranged:
            name = self.add("Transpose", value.name, perm=order)
            self._arranged[value.name, order] = name
            self._arranged[name, tuple(np.argsort(order).tolist())] = value.name
        return self._arranged[value.name, order]

    def in_order(self, value: Value) -> str:
        """Returns the name of an ONNX tensor that holds a value with its axes in their order."""
        rank = len(value.axes) if isinstance(value, Tensor) else np.ndim(value)
        return self.arranged(value, range(rank))

    def expanded(self, value: Any, shape: Sequence[Any]) -> Tensor:
        """Returns a constant at its full size; an axis that is not an int gets the batch's size."""
        batch = self.add("Shape", self.image, start=0, end=1)
        parts = [self.integers([size]) if isinstance(size, int) else batch for size in shape]
        full = self.add("Concat", *parts, axis=0)
        return Tensor(self.add("Expand", self.in_order(value), full), tuple(range(len(shape))))


def unknown(equation: Any, detail: str = "") -> UserError:
    """Returns the error that an operation of the network cannot be written.

    Args:
      equation: Equation of the traced program.
      detail: What is unknown about it, such as ` with a dilated input`.
    """
    return UserError(
        f"the network uses the JAX primitive {equation.primitive.name!r}{detail}, which the ONNX "
        "export does not know: set export.formats to ('stablehlo',), which takes any network"
    )
