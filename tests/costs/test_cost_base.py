"""The expected cost of mixing weights, against sums over single genotypes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnas_jax import components, spaces
from drnas_jax.costs.base import CostTable, expected_cost, largest_cost, penalty
from drnas_jax.spaces import Cell, Edge, Space, SupernetSpec, random_genotype
from drnas_jax.spaces.base import one_hot


class Uneven(Space):
    """A space whose edges have lists of unequal length, of which the second node keeps two."""

    name = "uneven"

    def __init__(self):
        edges = (Edge(2, 0, ("a", "b", "c")), Edge(2, 1, ("a",)), Edge(2, 2, ("b", "c")))
        self.cells = {"cell": Cell((Edge(1, 0, ("a", "c")), *edges), keep=2)}


BUNDLED = components.names("space")


@pytest.fixture(params=[*BUNDLED, "uneven"])
def space(request):
    return Uneven() if request.param == "uneven" else spaces.create(request.param)


@pytest.fixture
def table(space):
    """Returns random costs; those beyond the end of an edge's list are 0."""
    random = np.random.default_rng(0)
    costs = {
        name: np.float32(random.random(cell.shape) * (1 if cell.mask is None else cell.mask))
        for name, cell in space.cells.items()
    }
    return CostTable(3.0, costs)


def exact(table, space, genotype):
    """Returns the constant and the costs of the operations that a genotype names."""
    total = table.constant
    for cell_type, cell in space.cells.items():
        rows = {(edge.target, edge.source): row for row, edge in enumerate(cell.edges)}
        for target, node in enumerate(genotype.cell(cell_type), start=cell.inputs):
            for name, source in node:
                row = rows[target, source]
                column = cell.edges[row].primitives.index(name)
                total += float(table.operations[cell_type][row, column])
    return total


def test_at_a_genotype_it_is_the_cost_of_the_genotype(space, table):
    # Would catch a share of 2 / 5 for an edge whose node keeps only this one and another.
    for seed in range(20):
        genotype = random_genotype(space, seed)
        found = expected_cost(table, space.cells, one_hot(space.cells, genotype))
        assert float(found) == pytest.approx(exact(table, space, genotype), rel=1e-6)


@pytest.mark.parametrize("space", BUNDLED, indirect=True)
def test_at_equal_weights_it_is_the_mean_over_random_genotypes(space, table):
    # Would catch a plain sum over all edges, which counts 14 edges where a DARTS cell has 8.
    mix = {name: np.full(cell.shape, 1 / cell.shape[1]) for name, cell in space.cells.items()}
    mean = np.mean([exact(table, space, random_genotype(space, seed)) for seed in range(1000)])
    # The standard deviation of this mean is less than half a percent.
    assert float(expected_cost(table, space.cells, mix)) == pytest.approx(mean, rel=0.02)


def test_the_share_of_an_edge_counts_the_edges_that_are_left():
    # Would catch a share that follows from the cell alone, though a rule has removed edges.
    edges = tuple(Edge(4, source, ("a",)) for source in range(4))
    cells, ones = {"cell": Cell(edges, inputs=4, keep=2)}, np.ones((4, 1), np.float32)
    table = CostTable(0.0, {"cell": np.float32([[1], [2], [4], [8]])})
    for alive, expected in ((4, 15 / 2), (3, 7 * 2 / 3), (2, 3), (1, 1), (0, 0)):
        mix = {"cell": ones * (np.arange(4) < alive)[:, None]}
        assert float(expected_cost(table, cells, mix)) == pytest.approx(expected)
    every = {"cell": dataclasses.replace(cells["cell"], keep=None)}
    assert float(expected_cost(table, every, {"cell": ones})) == 15


def test_its_slope_in_a_mixing_weight_is_the_share_times_the_cost(space, table):
    # Would catch a gradient that also goes through the number of edges that are left.
    mix = {name: jnp.full(cell.shape, 0.25) for name, cell in space.cells.items()}
    slopes = jax.grad(lambda mix: expected_cost(table, space.cells, mix))(mix)
    for name, cell in space.cells.items():
        for row, edge in enumerate(cell.edges):
            rivals = sum(other.target == edge.target for other in cell.edges)
            share = min((cell.keep or rivals) / rivals, 1)
            costs = table.operations[name][row]
            np.testing.assert_allclose(slopes[name][row], share * costs, rtol=1e-6)


def test_the_largest_cost_is_that_of_the_dearest_genotype(space, table):
    # Would catch a bound that sums over all edges, or that a network exceeds.
    spec = SupernetSpec(tuple(space.cells.items()), 8, 3, 10, (8, 8, 3))
    dearest = space.derive(table.operations, spec)
    largest = largest_cost(table, space.cells)
    assert largest == pytest.approx(exact(table, space, dearest), rel=1e-6)
    costs = [exact(table, space, random_genotype(space, seed)) for seed in range(100)]
    assert max(costs) <= largest * (1 + 1e-6)


@pytest.mark.parametrize(
    ("expected", "target", "term"), [(8, 0, 0.5 * 8 / 20), (8, 4, 0.5), (8, 8, 0), (8, 9, 0)]
)
def test_the_term_of_the_loss(expected, target, term):
    # Would catch a reward for a cost below the target.
    found = penalty(jnp.float32(expected), weight=0.5, target=target, largest=20.0)
    assert float(found) == pytest.approx(term)
