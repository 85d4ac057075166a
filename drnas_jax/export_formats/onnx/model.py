"""Builds the ONNX model of a traced network."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from drnas_jax.export_formats.onnx import walk
from drnas_jax.export_formats.onnx.fusion import simplify
from drnas_jax.export_formats.onnx.graph import Graph, Node, Tensor

OPSET, IR_VERSION = 18, 8  # read by onnxruntime 1.14 (2023) and later
_INPUT, _OUTPUT = "images", "logits"


def build(program: Any, properties: Mapping[str, str]) -> onnx.ModelProto:
    """Returns the checked model of a network.

    Args:
      program: Traced program (a ClosedJaxpr) from images [batch, h, w, c] to logits
        [batch, classes].
      properties: Names and values of `metadata_props`.

    Raises:
      UserError: The program has an operation that is not known.
    """
    (images,), (logits,) = program.in_avals, program.out_avals
    graph = Graph(_INPUT)
    # Transposed first, so that all convolutions find the channels where ONNX wants them.
    channels_first = (0, 3, 1, 2)
    transposed = graph.arranged(Tensor(_INPUT, (0, 1, 2, 3)), channels_first)
    (value,) = walk.write(graph, program, [Tensor(transposed, channels_first)])
    if not isinstance(value, Tensor):
        value = graph.expanded(value, logits.shape)
    graph.nodes.append(Node("Identity", (graph.in_order(value),), (_OUTPUT,)))
    simplify(graph, {_OUTPUT})
    model = helper.make_model(
        helper.make_graph(
            [_node(node) for node in graph.nodes],
            "network",
            [_description(_INPUT, images)],
            [_description(_OUTPUT, logits)],
            [
                numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), key)
                for key, array in graph.initialisers.items()
            ],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="drnas_jax",
    )
    helper.set_model_props(model, dict(properties))
    onnx.checker.check_model(model, full_check=True)
    return model


def _node(node: Node) -> onnx.NodeProto:
    attributes = dict(node.attributes)
    return helper.make_node(node.operator, node.inputs, node.outputs, node.outputs[0], **attributes)


def _description(name: str, aval: Any) -> onnx.ValueInfoProto:
    """Describes an array; a size that is not an int is that of the batch."""
    sizes = [size if isinstance(size, int) else str(size) for size in aval.shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(aval.dtype), sizes)
