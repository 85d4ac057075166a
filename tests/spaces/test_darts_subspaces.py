"""S1 to S4: which operations their edges have, which cells they accept, and the noise of S4."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnas_jax import spaces
from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype
from drnas_jax.nn.backend import PLAIN
from drnas_jax.spaces.base import NetworkSpec, SupernetSpec

# In the order of alpha's rows: the edges to node 2 from 0 and 1, to node 3 from 0, 1 and 2, ...
S1 = {
    "normal": "skip dil3, skip dil5 | skip dil5, skip sep3, skip dil3 | max skip, skip sep3, "
    "skip sep3, skip dil3 | skip sep3, max skip, skip dil3, dil3 dil5, dil3 dil5",
    "reduce": "max avg, max dil3 | max avg, max avg, skip dil5 | max avg, max sep3, skip dil3, "
    "skip dil5 | max avg, max avg, skip dil5, skip dil5, skip dil5",
}
LONG = {
    "skip": "skip_connect",
    "max": "max_pool_3x3",
    "avg": "avg_pool_3x3",
    "sep3": "sep_conv_3x3",
    "dil3": "dil_conv_3x3",
    "dil5": "dil_conv_5x5",
}


@pytest.mark.parametrize("cell_type", S1)
def test_every_edge_of_s1_has_its_two_operations(cell_type):
    # Would catch a list that belongs to another edge, or edges in another order.
    expected = []
    for target, node in enumerate(S1[cell_type].split(" | "), start=2):
        for source, pair in enumerate(node.split(", ")):
            expected.append((target, source, tuple(LONG[word] for word in pair.split())))
    edges = spaces.create("darts_s1").cells[cell_type].edges
    assert [(edge.target, edge.source, edge.primitives) for edge in edges] == expected


@pytest.mark.parametrize(
    "name, primitives",
    [
        ("darts_s2", ("skip_connect", "sep_conv_3x3")),
        ("darts_s3", ("none", "skip_connect", "sep_conv_3x3")),
        ("darts_s4", ("noise", "sep_conv_3x3")),
    ],
)
def test_the_edges_of_the_others_are_alike(name, primitives):
    # Would catch an operation of the whole space that is left.
    cells = spaces.create(name).cells
    assert [edge.primitives for cell in cells.values() for edge in cell.edges] == [primitives] * 28
    darts = spaces.create("darts").cells
    for cell_type, cell in cells.items():
        pairs = [(edge.target, edge.source) for edge in cell.edges]
        assert pairs == [(edge.target, edge.source) for edge in darts[cell_type].edges]
        assert (cell.inputs, cell.keep) == (2, 2)


def test_none_is_never_derived():
    # Would catch `none` as an operation, or as the rank of an edge.
    space = spaces.create("darts_s3")
    spec = SupernetSpec(tuple(space.cells.items()), 8, 3, 10, (8, 8, 3))
    scores = np.tile([0.8, 0.1, 0.1], (14, 1))
    scores[[3, 4]] = 0.7, 0.2, 0.1  # the edges to node 3 from 1 and 2: less weight on `none`
    genotype = space.derive({"normal": scores, "reduce": scores}, spec)
    assert genotype.cell("normal")[1] == (("skip_connect", 1), ("skip_connect", 2))
    space.check(NetworkSpec(genotype, 8, 3, 10, (8, 8, 3)))


def genotype_of(space, *names):
    """Returns a genotype whose nodes take these operations of the inputs 0 and 1."""
    cell = (tuple((name, source) for source, name in enumerate(names)),) * 4
    return Genotype(space, (("normal", cell), ("reduce", cell)))


@pytest.mark.parametrize(
    "name, operations, message",
    [
        ("darts_s2", ("noise", "sep_conv_3x3"), "unknown DARTS operation 'noise'"),
        ("darts_s3", ("none", "sep_conv_3x3"), "unknown DARTS operation 'none'"),
        (
            "darts_s1",
            ("skip_connect", "dil_conv_3x3"),
            "unknown operation on the edge 2<-1 of the normal cell 'dil_conv_3x3': "
            "choose one of dil_conv_5x5, skip_connect",
        ),
    ],
)
def test_an_operation_that_the_edge_lacks_is_refused(name, operations, message):
    # Would catch a cell of another space under the name of this one.
    space, genotype = spaces.create(name), genotype_of(name, *operations)
    with pytest.raises(UserError, match=message):
        space.check(NetworkSpec(genotype, 8, 3, 10, (8, 8, 3)))


def test_the_noise_of_a_network_follows_from_its_key():
    # Would catch a network that is evaluated without noise, or whose key does not reach its cells.
    space = spaces.create("darts_s4")
    spec = NetworkSpec(genotype_of("darts_s4", "noise", "noise"), 4, 2, 10, (8, 8, 3))
    network, x = space.network(spec, PLAIN), jnp.ones((2, *spec.image))

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def logits(key):
        streams = {"params": jax.random.key(0), "noise": key}
        variables = network.init(streams, x, False)
        return network.apply(variables, x, False, rngs={"noise": key})

    first, again, other = (logits(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.isfinite(first).all() and (first != other).all()
    assert (first[0] != first[1]).all()  # although the images are equal
