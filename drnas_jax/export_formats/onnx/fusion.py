"""Shortens a graph: factors and offsets of channels become part of the layer before them."""

import dataclasses
from collections import Counter
from collections.abc import Set

import numpy as np

from drnas_jax.export_formats.onnx.graph import Graph, Node

_LAYERS = ("Conv", "Gemm")  # (x, weights [outputs, ...][, bias]); the outputs are axis 1


def simplify(graph: Graph, outputs: Set[str]) -> None:
    """Merges batch normalisation into the layers before it, and removes what is not used.

    Args:
      graph: Graph that is changed.
      outputs: Names of the model's outputs.
    """
    _prune(graph, outputs)
    uses = Counter(name for node in graph.nodes for name in node.inputs)
    uses.update(outputs)
    nodes: dict[str, Node] = {}  # by the first output, in order
    for node in graph.nodes:
        layer = next((nodes[name] for name in node.inputs if name in nodes), None)
        if layer and node.operator in ("Add", "Mul") and uses[layer.outputs[0]] == 1:
            merged = _merged(graph, layer, node)
            if merged:
                del nodes[layer.outputs[0]]
                node = merged
        nodes[node.outputs[0]] = node
    graph.nodes = list(nodes.values())
    _prune(graph, outputs)


def _prune(graph: Graph, outputs: Set[str]) -> None:
    """Removes nodes and initialisers that no output depends on."""
    needed, kept = set(outputs), []
    for node in reversed(graph.nodes):
        if needed & set(node.outputs):
            kept.append(node)
            needed |= set(node.inputs)
    graph.nodes = kept[::-1]
    graph.initialisers = {
        name: array for name, array in graph.initialisers.items() if name in needed
    }


def _merged(graph: Graph, layer: Node, node: Node) -> Node | None:
    """Returns a layer followed by a product or sum as one layer, or None if that is not possible.

    Args:
      graph: Graph with the initialisers.
      layer: Node whose output is an operand of `node`.
      node: Node `Mul` or `Add`.
    """
    names = [name for name in node.inputs if name in graph.initialisers]
    if layer.operator not in _LAYERS or layer.inputs[1] not in graph.initialisers or not names:
        return None
    weights, values = graph.initialisers[layer.inputs[1]], graph.initialisers[names[0]]
    spread = (1, len(weights), *(1,) * (weights.ndim - 2))
    if values.size != 1 and values.shape != spread:
        return None
    channels = np.broadcast_to(values.reshape(-1), len(weights))
    bias = graph.initialisers.get(layer.inputs[2]) if len(layer.inputs) > 2 else None
    if node.operator == "Mul":
        weights = weights * channels.reshape(-1, *spread[2:], 1)
        bias = None if bias is None else bias * channels
    else:
        bias = channels if bias is None else bias + channels
    inputs = [layer.inputs[0], graph.constant(weights)]
    inputs += [] if bias is None else [graph.constant(bias)]
    return dataclasses.replace(layer, inputs=tuple(inputs), outputs=node.outputs)
