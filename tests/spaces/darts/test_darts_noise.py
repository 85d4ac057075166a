"""The operation `noise` of S4: its values, and from which key and edge they follow."""

import jax
import jax.numpy as jnp
import numpy as np

from drnas_jax.nn.backend import CPU, PLAIN
from drnas_jax.nn.stacked_params import ApplyContext
from drnas_jax.spaces.base import Edge
from drnas_jax.spaces.darts.cell import MixedCell, run_cells
from drnas_jax.spaces.darts.noise import noise_sums

SHAPE = (3, 4, 2, 5)  # of a node's images
BOTH = ("noise", "sep_conv_3x3")
EDGES = (Edge(2, 0, BOTH), Edge(2, 1, BOTH), Edge(3, 0, BOTH), Edge(4, 3, BOTH[1:]))
MIX = np.float32([[0.5, 0.5], [0.25, 0.75], [0.5, 0.5], [1, 0]])


def sums(edges=EDGES, mix=MIX, key=0, factors=None, backend=PLAIN, shape=SHAPE):
    return noise_sums(backend, edges, shape, jnp.float32, jax.random.key(key), mix, factors)


def only(edge, key=0):
    """Returns the noise of a single edge of weight 1."""
    return np.asarray(sums((Edge(*edge, ("noise",)),), np.ones((1, 1)), key)[edge[0] - 2])


def test_noise_is_standard_normal():
    # Would catch a uniform draw, and a variance that depends on the channels.
    edges = (Edge(5, 0, ("noise",)),)
    noise = np.asarray(sums(edges, np.ones((1, 1)), shape=(20, 10, 10, 10))[3]).ravel()
    assert abs(noise.mean()) < 4.5 / np.sqrt(noise.size)
    # The variance of a squared normal value is 2, that of its fourth power 96.
    assert abs((noise**2).mean() - 1) < 4.5 * np.sqrt(2 / noise.size)
    assert abs((noise**4).mean() - 3) < 4.5 * np.sqrt(96 / noise.size)


def test_equal_keys_give_equal_noise_and_each_edge_has_its_own():
    # Would catch one draw for all edges, or a key that is not used.
    np.testing.assert_array_equal(only((2, 0)), only((2, 0)))
    draws = [only((2, 0), 1), *(only(edge) for edge in ((2, 0), (2, 1), (3, 0), (3, 2)))]
    for i, one in enumerate(draws):
        for other in draws[:i]:
            assert (one != other).mean() > 0.99


def test_a_node_adds_up_the_weighted_noise_of_its_edges():
    # Would catch the mixing weight of another operation, or noise on an edge that lacks it.
    found = np.asarray(sums())
    expected = 0.5 * only((2, 0)) + 0.25 * only((2, 1))
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-6)  # a sum of two float32
    np.testing.assert_allclose(found[1], 0.5 * only((3, 0)), rtol=0, atol=1e-6)
    assert not found[2:].any()
    np.testing.assert_array_equal(sums(backend=CPU), found.swapaxes(1, 4))


def test_drop_path_drops_noise():
    # Would catch factors of another edge, or a factor for the whole batch.
    factors = np.float32([[0, 1, 1, 1], [2, 1, 1, 1], [1, 0, 1, 1]])
    spread = factors[:, :, None, None, None]
    expected = 0.5 * spread[:, 0] * only((2, 0)) + 0.25 * spread[:, 1] * only((2, 1))
    np.testing.assert_allclose(sums(factors=factors)[0], expected, rtol=0, atol=1e-6)


def test_cells_have_other_noise_than_the_cells_before():
    # Would catch one key for all cells of a model.
    edges = tuple(Edge(node, 0, ("noise",)) for node in (2, 3, 4, 5))
    cell, x = MixedCell(ApplyContext(PLAIN, True), "normal", edges, 4, 1), jnp.ones((3, 4, 4, 16))
    squeeze = {f"squeeze_{i}": {"kernel": jnp.ones((1, 1, 16, 4))} for i in (0, 1)}

    @jax.jit
    def outputs(keys):
        runs = [squeeze, squeeze]
        return run_cells(cell, (x, x), runs, jnp.ones((4, 1)), None, jnp.zeros(2), keys)[0]

    keys = jax.random.split(jax.random.key(0), 2)
    before, last = outputs(keys)
    assert (before != last).all()
    np.testing.assert_array_equal(*outputs(keys[np.array([1, 1])]))
