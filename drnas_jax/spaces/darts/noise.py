"""The operation `noise` of S4 (arXiv 1909.09656): standard normal values, whatever the input is.

It has no input and no parameters, so its share of all nodes is computed beside the other operations
of a cell, and in the same way for all kernels.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from drnas_jax.nn.backend import Backend
from drnas_jax.nn.stacked_params import scaled
from drnas_jax.spaces.base import Edge
from drnas_jax.spaces.darts.operations import INPUTS, NODES, NOISE

Array = jax.Array


def has_noise(edges: Sequence[Edge]) -> bool:
    """Returns whether some edge keeps the operation."""
    return any(NOISE in edge.primitives for edge in edges)


@partial(jax.checkpoint, static_argnums=(0, 1, 2, 3))
def noise_sums(
    backend: Backend,
    edges: tuple[Edge, ...],
    shape: tuple[int, ...],
    dtype: jnp.dtype,
    key: Array,
    mix: Array,
    factors: Array | None,
) -> Array:
    """Draws the noise of a cell's edges and adds up what each node gets.

    An edge's noise follows from the key and the nodes that it joins, so a supernet and a final
    network draw the same noise on the same edge. The backward pass draws it again.

    Args:
      backend: Layout of images.
      edges: Edges of the cell, of which at least one keeps the operation.
      shape: Shape [b, h, w, c] of the channels of a node that go through the operations.
      dtype: Type of the images.
      key: Random key of this cell in this call.
      mix: Mixing weights [e, o].
      factors: Drop path's factor of each example and edge, [b, e]; None if all paths are kept.

    Returns:
      Sum for each node, in the backend's layout with a leading axis of NODES.
    """
    rows = [row for row, edge in enumerate(edges) if NOISE in edge.primitives]
    columns = [edges[row].primitives.index(NOISE) for row in rows]
    numbers = [edges[row].target * (INPUTS + NODES) + edges[row].source for row in rows]
    keys = jax.vmap(partial(jax.random.fold_in, key))(np.array(numbers))
    noise = jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)
    weights = mix[np.array(rows), np.array(columns)][:, None, None, None, None]
    if factors is not None:
        weights = weights * factors.T[np.array(rows), :, None, None, None]
    noise = scaled(noise, weights)
    zeros, sums = jnp.zeros(shape, jnp.float32), []
    for node in range(INPUTS, INPUTS + NODES):
        terms = [noise[i] for i, row in enumerate(rows) if edges[row].target == node]
        sums.append(backend.transpose(sum(terms, start=zeros).astype(dtype)))
    return jnp.stack(sums)
