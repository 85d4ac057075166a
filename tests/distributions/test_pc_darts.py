"""PC-DARTS: the weights of edges, and what they decide."""

import jax
import jax.numpy as jnp
import numpy as np

from drnas_jax import distributions, spaces
from drnas_jax.distributions.pc_darts import edge_weights
from drnas_jax.spaces.base import SupernetSpec

DISTRIBUTION = distributions.create("pc_darts")
SPACE = spaces.create("darts")
CELL = SPACE.cells["normal"]
TARGETS = [edge.target for edge in CELL.edges]


def test_the_edges_that_enter_a_node_share_a_weight_of_1():
    # Would catch a softmax over all edges of the cell, or over the edges that leave a node.
    alpha = np.random.default_rng(0).normal(size=len(CELL.edges)).astype(np.float32)
    expected = []
    for row, target in enumerate(TARGETS):
        entering = [i for i, other in enumerate(TARGETS) if other == target]
        expected.append(np.exp(alpha[row]) / np.exp(alpha[entering]).sum())
    # A float32 softmax over at most 5 values is right to a few units of 6e-8.
    np.testing.assert_allclose(edge_weights(jnp.asarray(alpha), CELL), expected, atol=1e-6)


def test_the_mixing_weights_are_the_softmax_times_the_weight_of_the_edge():
    # Would catch an edge weight that has no gradient, or the weight of another row.
    alpha = jax.tree.map(lambda leaf: 1e3 * leaf, DISTRIBUTION.init(jax.random.key(0), CELL))
    assert alpha["operations"].shape == CELL.shape and alpha["edges"].shape == (14,)
    mean = DISTRIBUTION.mean(alpha, CELL)
    weights = edge_weights(alpha["edges"], CELL)
    np.testing.assert_allclose(mean.sum(-1), weights, atol=1e-6)
    shares = jax.nn.softmax(alpha["operations"])
    np.testing.assert_allclose(mean / mean.sum(-1, keepdims=True), shares, atol=1e-5)
    slopes = jax.grad(lambda alpha: DISTRIBUTION.mean(alpha, CELL)[3, 2])(alpha)
    assert (np.flatnonzero(slopes["edges"]) == np.flatnonzero(np.equal(TARGETS, TARGETS[3]))).all()


def test_the_weights_of_edges_decide_which_edges_a_node_keeps():
    # Would catch a ranking by the operations only. The node 5 has strong operations on the edges
    # from 0 and 1, but weight on those from 3 and 4.
    operations, edges = np.zeros(CELL.shape, np.float32), np.zeros(14, np.float32)
    operations[9:11, 3], operations[11:, 4] = 0.5, 0.4
    edges[12:] = 1.0
    cells = tuple(SPACE.cells.items())
    spec = SupernetSpec(cells, 16, 8, 10, (32, 32, 3))

    def node(edges):
        alpha = {"operations": jnp.asarray(operations), "edges": jnp.asarray(edges)}
        ranks = {name: np.asarray(DISTRIBUTION.ranking(alpha, cell)) for name, cell in cells}
        return SPACE.derive(ranks, spec).cell("normal")[3]

    strong, other = CELL.edges[9].primitives[3:5]
    assert node(np.zeros_like(edges)) == ((strong, 0), (strong, 1))
    assert node(edges) == ((other, 3), (other, 4))
