"""The bundled costs: their tables against exact counts of random networks."""

import dataclasses

import jax
import numpy as np
import pytest

from drnas_jax import components, spaces
from drnas_jax.costs.base import (
    AdditiveCost,
    cost_in,
    expected_cost,
    penalty,
)
from drnas_jax.errors import UserError
from drnas_jax.nn import backend
from drnas_jax.nn.counting import count_network
from drnas_jax.spaces import NetworkSpec, SupernetSpec, random_genotype
from drnas_jax.spaces.base import one_hot

# Channels, depth and image of the smallest final network of each space; all have 10 classes.
SIZES = {
    "nasbench201": (4, 1, (8, 8, 3)),
    "darts": (2, 3, (8, 8, 3)),
    "macro": (2, 8, (8, 8, 3)),
}
COUNTS = {"params": "parameters", "macs": "macs"}
# Counting takes these spaces up to half a minute.
CASES = [
    pytest.param((space, cost), marks=[pytest.mark.slow] * (space != "nasbench201"))
    for space in SIZES
    for cost in COUNTS
]


def network_of(space, genotype):
    channels, depth, image = SIZES[space.name]
    return NetworkSpec(genotype, channels, depth, 10, image)


def spec_of(space, cells=None):
    channels, depth, image = SIZES[space.name]
    return SupernetSpec(tuple((cells or space.cells).items()), channels, depth, 10, image)


def exact_count(space, genotype, cost):
    network = network_of(space, genotype)
    counts = count_network(space.network(network, backend.PLAIN), network.image)
    return getattr(counts, COUNTS[cost])


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def counted(request):
    """Returns the name of a cost, a space, and the cost's table of all its operations."""
    name, cost = request.param
    space = spaces.create(name)
    created = components.create("cost", cost, None, field="cost.name")
    network = network_of(space, random_genotype(space, 0))
    return cost, space, created.table(space, spec_of(space), network)


def test_sums_are_the_exact_counts_of_other_networks(counted):
    # Would catch a cell that is counted once though the network repeats it, and float32 sums.
    cost, space, table = counted
    for genotype in (random_genotype(space, 12345 + seed) for seed in range(2)):
        count = exact_count(space, genotype, cost)
        assert cost_in(table, space.cells, genotype) == count
        expected = expected_cost(table, space.cells, one_hot(space.cells, genotype))
        assert float(expected) == pytest.approx(count, rel=1e-6)


def test_at_equal_weights_the_expected_cost_is_the_mean_of_random_networks(counted):
    # Would catch a constant that is too large by what edges cost which their nodes do not keep.
    _, space, table = counted
    mix = {name: np.full(cell.shape, 1 / cell.shape[1]) for name, cell in space.cells.items()}
    costs = [cost_in(table, space.cells, random_genotype(space, seed)) for seed in range(1000)]
    found = float(expected_cost(table, space.cells, mix))
    assert found == pytest.approx(np.mean(costs), rel=0.02)


def test_the_cheapest_operation_costs_nothing(counted):
    # Would catch a table in which the costs of an edge are off by what another one absorbs.
    _, space, table = counted
    for name, cell in space.cells.items():
        for edge, row in zip(cell.edges, table.operations[name], strict=True):
            assert row.min() >= 0
            for free in {"none", "skip_connect", "avg_pool_3x3"} & {*edge.primitives}:
                halves = name == "reduce" and edge.source < cell.inputs
                if not (free == "skip_connect" and halves):
                    assert row[edge.primitives.index(free)] == 0


def test_the_gradient_of_the_penalty_is_its_finite_difference(counted):
    # Would catch a term whose slope is that of a plain sum over all edges.
    _, space, table = counted
    random = np.random.default_rng(0)
    mix = {
        name: random.dirichlet(np.ones(cell.shape[1]), len(cell.edges))
        for name, cell in space.cells.items()
    }
    weight, target = 0.5, float(expected_cost(table, space.cells, mix)) / 1.5

    def term(mix):
        return penalty(expected_cost(table, space.cells, mix), weight, target, 1.0)

    slopes = jax.grad(term)(jax.tree.map(np.float32, mix))
    for name, cell in space.cells.items():
        row, column = random.integers(len(cell.edges)), int(np.argmax(table.operations[name][-1]))
        changed = mix[name].copy()
        changed[row, column] += 0.25
        # The term is linear here, so that a large difference is as good as a small one.
        difference = (term({**mix, name: changed}) - term(mix)) / 0.25
        assert float(slopes[name][row, column]) == pytest.approx(float(difference), rel=1e-3)
        assert difference > 0


class Written(AdditiveCost):
    """A cost that is written down for each operation of each edge, and counts its uses."""

    unit = "points"

    def __init__(self, space, bend=0.0):
        super().__init__()
        random = np.random.default_rng(0)
        self.points = {name: random.random(cell.shape) for name, cell in space.cells.items()}
        self.bend, self.uses = bend, 0

    def exact(self, space, network):
        self.uses += 1
        total = 100.0
        for name, chosen in one_hot(space.cells, network.genotype).items():
            total += float(np.sum(chosen * self.points[name]))
        return total + self.bend * total**2


@pytest.mark.parametrize("name", SIZES)
def test_every_edge_may_have_other_costs(name):
    # Would catch a table that takes the costs of one edge for those of all, as in most spaces.
    space = spaces.create(name)
    cost, network = Written(space), network_of(space, random_genotype(space, 0))
    table = cost.table(space, spec_of(space), network)
    for genotype in (random_genotype(space, 999 + seed) for seed in range(20)):
        exact = cost.exact(space, dataclasses.replace(network, genotype=genotype))
        assert cost_in(table, space.cells, genotype) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("name", SIZES)
def test_a_cost_that_is_no_sum_is_refused(name):
    # Would catch a search within a budget whose sums mean nothing.
    space = spaces.create(name)
    network = network_of(space, random_genotype(space, 0))
    with pytest.raises(UserError) as caught:
        Written(space, bend=1e-3).table(space, spec_of(space), network)
    message = str(caught.value)
    assert f"space {space.name} is not the sum" in message and "cost.name" in message
    assert "\n" not in message
    # Sums within 1e-6 of the exact costs are good enough.
    Written(space, bend=1e-9).table(space, spec_of(space), network)


@pytest.mark.parametrize("name", SIZES)
def test_a_pruned_supernet_has_the_same_costs(name):
    # Would catch columns that belong to other operations, or networks that are counted again.
    space = spaces.create(name)
    cost, network = Written(space), network_of(space, random_genotype(space, 0))
    whole, uses = cost.table(space, spec_of(space), network), cost.uses
    cells = {
        name: dataclasses.replace(
            cell,
            edges=tuple(
                dataclasses.replace(edge, primitives=edge.primitives[i % 2 :: 2])
                for i, edge in enumerate(cell.edges)
            ),
        )
        for name, cell in space.cells.items()
    }
    pruned = cost.table(space, spec_of(space, cells), network)
    assert cost.uses == uses and pruned.constant == whole.constant
    for name, cell in cells.items():
        assert pruned.operations[name].shape == cell.shape
        for i, edge in enumerate(cell.edges):
            kept = pruned.operations[name][i]
            np.testing.assert_array_equal(
                kept[: len(edge.primitives)], whole.operations[name][i][i % 2 :: 2]
            )
            assert not kept[len(edge.primitives) :].any()
