"""Loops over the edges of a DARTS cell, for CPUs. Images are [c, h, w, b].

One edge is enough work for all cores of a CPU, and its arrays fit into the caches. A loop is
compiled once for all edges. For the backward pass only the nodes are stored, and each edge is
computed again.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from drnas_jax.nn.stacked_params import channel_shuffle
from drnas_jax.spaces.darts.edge_sums import EdgeLoop, Values, at, put
from drnas_jax.spaces.darts.operations import NODES

Array = jax.Array

KEPT_NODES = "kept_nodes"  # checkpoint name of the nodes that the backward pass of a loop reads


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def sums_of_inputs(loop: EdgeLoop, inputs: Array, values: Values) -> tuple[Array, Array]:
    """Adds up, for each node, the edges that leave a reduction cell's inputs.

    Args:
      loop: These edges.
      inputs: Both inputs, [INPUTS, c, h, w, b].
      values: What the operations read.

    Returns:
      Sums [NODES, c, h/2, w/2, b], and the edges' moments [edges, slots, c].
    """

    def add_edge(e: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        sums, moments = carry
        total, edge_moments = loop.add_edge(e, at(inputs, source[e]), at(sums, node[e]), values)
        return put(sums, total, node[e]), put(moments, edge_moments, e)

    source, node = jnp.asarray(loop.sources), jnp.asarray(loop.nodes)
    sums = jnp.zeros((NODES, *_shape(inputs[0], loop.stride)), inputs.dtype)
    return lax.fori_loop(0, len(loop.sources), add_edge, (sums, loop.no_moments(inputs[0])))


def _sums_forward(
    loop: EdgeLoop, inputs: Array, values: Values
) -> tuple[tuple[Array, Array], tuple[Array, Values]]:
    return sums_of_inputs(loop, inputs, values), (inputs, values)


def _sums_backward(
    loop: EdgeLoop, residuals: tuple[Array, Values], cotangents: Any
) -> tuple[Array, Values]:
    inputs, values = residuals
    g = cotangents[0]
    source, node = jnp.asarray(loop.sources), jnp.asarray(loop.nodes)

    def add_edge(e: Array, carry: Any) -> Any:
        d_inputs, gradients = carry
        x, dx = at(inputs, source[e]), at(d_inputs, source[e])
        dx, gradients = loop.add_gradients(e, x, at(g, node[e]), dx, values, gradients)
        return put(d_inputs, dx, source[e]), gradients

    zeros = jax.tree.map(jnp.zeros_like, (inputs, (values.arrays, values.mix)))
    d_inputs, (d_arrays, d_mix) = lax.fori_loop(0, len(loop.sources), add_edge, zeros)
    return d_inputs, Values(d_arrays, d_mix, None, None)


sums_of_inputs.defvjp(_sums_forward, _sums_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def nodes_in_order(
    loop: EdgeLoop, inputs: Array, sums: Array, bypass: Array, values: Values
) -> tuple[Array, Array]:
    """Computes the nodes of a cell one after another.

    Args:
      loop: The edges of stride 1.
      inputs: The cell's inputs if edges of this loop leave them, [i, c, h, w, b]; i is 2 or 0.
      sums: Sums over the other edges for each node, [NODES, c, h, w, b].
      bypass: Sum over both inputs of the channels that bypass the operations, [C - c, h, w, b].
      values: What the operations read.

    Returns:
      The nodes [NODES, C, h, w, b], and the edges' moments [edges, slots, c].
    """
    return _nodes_forward(loop, inputs, sums, bypass, values)[0]


def _nodes_forward(
    loop: EdgeLoop, inputs: Array, sums: Array, bypass: Array, values: Values
) -> tuple[tuple[Array, Array], tuple[Array, Array, Values]]:
    first, source, bounds = len(inputs), jnp.asarray(loop.sources), jnp.asarray(loop.bounds)

    def add_node(n: Array, carry: Any) -> Any:
        selected, nodes, bypass, moments = carry

        def add_edge(e: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            total, moments = carry
            total, edge_moments = loop.add_edge(e, at(selected, source[e]), total, values)
            return total, put(moments, edge_moments, e)

        total = at(sums, n)
        if loop.sources:  # all edges of a network's reduction cell may leave its inputs
            carry = (total, moments)
            total, moments = lax.fori_loop(bounds[n], bounds[n + 1], add_edge, carry)
        new, bypass, node = _finish_node(total, bypass)
        return put(selected, new, first + n), put(nodes, node, n), bypass, moments

    selected = jnp.concatenate([inputs, jnp.zeros_like(sums)])
    nodes = jnp.zeros((NODES, sums.shape[1] + len(bypass), *sums.shape[2:]), sums.dtype)
    carry = (selected, nodes, bypass, loop.no_moments(sums[0]))
    selected, nodes, _, moments = lax.fori_loop(0, NODES, add_node, carry)
    kept = checkpoint_name(selected[first:], KEPT_NODES)
    nodes = nodes if len(bypass) else kept  # then the compiler drops one of the two from the loop
    return (nodes, moments), (inputs, kept, values)


def _nodes_backward(
    loop: EdgeLoop, residuals: tuple[Array, Array, Values], cotangents: Any
) -> tuple[Array, Array, Array, Values]:
    inputs, kept, values = residuals
    g, first = cotangents[0], len(inputs)
    selected = jnp.concatenate([inputs, kept])
    source, bounds = jnp.asarray(loop.sources), jnp.asarray(loop.bounds)
    bypass = jnp.zeros_like(g[0, kept.shape[1] :])
    _, finish_backward = jax.vjp(_finish_node, selected[0], bypass)  # it is linear

    def add_node(i: Array, carry: Any) -> Any:
        d_selected, d_sums, d_bypass, gradients = carry
        n = NODES - 1 - i
        d_total, d_bypass = finish_backward((at(d_selected, first + n), d_bypass, at(g, n)))

        def add_edge(e: Array, carry: Any) -> Any:
            d_selected, gradients = carry
            x, dx = at(selected, source[e]), at(d_selected, source[e])
            dx, gradients = loop.add_gradients(e, x, d_total, dx, values, gradients)
            return put(d_selected, dx, source[e]), gradients

        if loop.sources:
            carry = (d_selected, gradients)
            d_selected, gradients = lax.fori_loop(bounds[n], bounds[n + 1], add_edge, carry)
        return d_selected, put(d_sums, d_total, n), d_bypass, gradients

    gradients = (values.arrays, values.mix)
    zeros = jax.tree.map(jnp.zeros_like, (selected, selected[first:], bypass, gradients))
    d_selected, d_sums, d_bypass, (d_arrays, d_mix) = lax.fori_loop(0, NODES, add_node, zeros)
    return d_selected[:first], d_sums, d_bypass, Values(d_arrays, d_mix, None, None)


nodes_in_order.defvjp(_nodes_forward, _nodes_backward)


def _finish_node(total: Array, bypass: Array) -> tuple[Array, Array, Array]:
    """Completes a node.

    Args:
      total: Sum over the node's edges, [c, h, w, b].
      bypass: Sum over all sources of the channels that bypass the operations, [C - c, h, w, b].

    Returns:
      The channels of the node that go through the next operations, the sum of the bypass that
      includes this node, and the whole node [C, h, w, b].
    """
    selected = len(total)
    node = jnp.concatenate([total, bypass])
    node = channel_shuffle(node, len(node) // selected, axis=0)
    return node[:selected], bypass + node[selected:], node


def _shape(x: Array, stride: int) -> tuple[int, ...]:
    """Returns the shape of an operation's result."""
    channels, height, width, batch = x.shape
    return channels, -(-height // stride), -(-width // stride), batch
