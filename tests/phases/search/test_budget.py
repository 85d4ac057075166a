"""The discretisation under a target, against all genotypes, and within whole searches."""

import functools
import itertools
import json

import jax
import numpy as np
import pytest

from drnas_jax import spaces
from drnas_jax.config import CostConfig, defaults, from_config_dict
from drnas_jax.costs.base import CostTable, cost_in
from drnas_jax.errors import UserError
from drnas_jax.phases.search.budget import Budget, format_cost, smallest_cost
from drnas_jax.phases.search.experiment import Experiment
from drnas_jax.phases.search.phase import search
from drnas_jax.spaces import Cell, Edge, SupernetSpec, macro
from drnas_jax.spaces.base import one_hot
from drnas_jax.tools.bench import synthetic
from drnas_jax.training import devices
from drnas_jax.training.metrics import Display

QUIET = Display(quiet=True)

# Cells of which all genotypes can be listed: 15,625 and 6,561 of the bundled spaces, and cells in
# which nodes choose among edges, also with lists of unequal length and with `none`.
LISTS = ("none", "a", "b"), ("a", "c"), ("b",), ("none", "c"), ("none",)
CELLS = {
    "nasbench201": dict(spaces.create("nasbench201").cells),
    "cut darts": {
        "normal": Cell(
            tuple(Edge(2 + n, i, ("a", "b", "c")) for n in range(3) for i in range(2 + n)), 2, 2
        )
    },
    "two cells": {
        name: Cell(tuple(Edge(3, i, names) for i, names in enumerate(LISTS)), 3, keep)
        for name, keep in (("first", 3), ("second", 1))
    },
}


def ways(cell):
    """Yields for each node the choices of its edges, as tuples of (row, column)."""
    for target in dict.fromkeys(edge.target for edge in cell.edges):
        rows = [row for row, edge in enumerate(cell.edges) if edge.target == target]
        columns = {}
        for row in rows:
            names = cell.edges[row].primitives
            allowed = [i for i, name in enumerate(names) if cell.keep is None or name != "none"]
            columns[row] = allowed or [0]
        yield [
            tuple(zip(chosen, picks, strict=True))
            for chosen in itertools.combinations(rows, min(cell.keep or len(rows), len(rows)))
            for picks in itertools.product(*(columns[row] for row in chosen))
        ]


@functools.cache
def every_genotype(name):
    """Returns all genotypes of some cells as one-hot rows, bool [genotypes, entries]."""
    cells, rows = CELLS[name], []
    of_nodes = [(kind, node) for kind, cell in cells.items() for node in ways(cell)]
    offsets, total = {}, 0
    for kind, cell in cells.items():
        offsets[kind], total = (total, cell.shape[1]), total + np.prod(cell.shape)
    for combination in itertools.product(*(node for _, node in of_nodes)):
        entries = np.zeros(total, bool)
        for (kind, _), node in zip(of_nodes, combination, strict=True):
            first, width = offsets[kind]
            entries[[first + width * row + column for row, column in node]] = True
        rows.append(entries)
    return np.stack(rows)


def flat(values):
    return np.concatenate([np.ravel(rows) for rows in values.values()])


def spec_of(cells):
    return SupernetSpec(tuple(cells.items()), 4, 1, 10, (8, 8, 3))


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "real"])
@pytest.mark.parametrize("name", CELLS)
def test_the_choice_is_the_best_of_all_genotypes_that_fit(name, whole):
    # Would catch a greedy choice, a wrong bound, and costs that are compared by their float32.
    cells, random = CELLS[name], np.random.default_rng(0)
    listed = every_genotype(name)
    for _ in range(5):
        draws = {kind: random.random(cell.shape) for kind, cell in cells.items()}
        costs = {kind: np.floor(2**40 * rows) if whole else rows for kind, rows in draws.items()}
        table = CostTable(2**41 if whole else 3.0, costs)
        ranks = {
            kind: random.dirichlet(np.ones(cell.shape[1]), len(cell.edges)).astype(np.float32)
            for kind, cell in cells.items()
        }
        totals = table.constant + listed @ flat(costs)
        scores = listed @ np.log(flat(ranks).astype(np.float64))
        assert smallest_cost(table, spec_of(cells)) == pytest.approx(totals.min(), rel=1e-12)
        for target in [*np.quantile(totals, [0, 0.001, 0.05, 0.3, 0.7, 1]), np.inf]:
            target += 1e-9 * totals.min()  # so that rounding does not decide
            found = Budget(target, table, spec_of(cells), "space").best(ranks, target)
            assert cost_in(table, cells, found) <= target
            score = flat(one_hot(cells, found)) @ np.log(flat(ranks).astype(np.float64))
            assert score == pytest.approx(scores[totals <= target].max(), rel=1e-9)
        below = totals.min() * (1 - 1e-6)
        assert Budget(below, table, spec_of(cells), "space").best(ranks, below) is None


@pytest.mark.parametrize("share", [0.01, 0.3, 0.8])
def test_a_long_chain_and_whole_cells_are_chosen_by_the_bound_on_every_price(share):
    # Would catch an incumbent that is pruned, or partial choices that grow without limit.
    chain = {"chain": Cell(tuple(Edge(i + 1, i, tuple("abcdefgh")) for i in range(60)))}
    random = np.random.default_rng(1)
    for cells in (chain, dict(spaces.create("darts").cells)):
        table = CostTable(1.0, {kind: random.random(cell.shape) for kind, cell in cells.items()})
        ranks = {kind: random.random(cell.shape) for kind, cell in cells.items()}
        smallest = smallest_cost(table, spec_of(cells))
        target = smallest + share * (1 + 20 - smallest)
        found = Budget(target, table, spec_of(cells), "space").best(ranks, target)
        assert cost_in(table, cells, found) <= target
        # At every price of cost, no genotype within the target can have a larger score than this.
        bound = min(dual(cells, table, ranks, price, target) for price in np.linspace(0, 40, 400))
        score = sum(
            np.sum(one * np.log(ranks[kind])) for kind, one in one_hot(cells, found).items()
        )
        assert bound - 0.6 < score <= bound + 1e-9


def dual(cells, table, ranks, price, target):
    """Returns the Lagrangian upper bound of the scores within a target."""
    bound = price * (target - table.constant)
    for kind, cell in cells.items():
        value = (np.log(ranks[kind]) - price * table.operations[kind]).max(axis=1)
        for node in dict.fromkeys(edge.target for edge in cell.edges):
            rows = [row for row, edge in enumerate(cell.edges) if edge.target == node]
            bound += np.sort(value[rows])[::-1][: cell.keep].sum()
    return bound


def test_what_a_rule_has_ruled_out_is_the_last_resort():
    # Would catch a logarithm of 0, and an edge that a rule has fixed but that is chosen anew.
    cell = Cell((Edge(1, 0, ("a", "b")), Edge(2, 1, ("a", "b"))))
    spec = spec_of({"cell": cell})
    table = CostTable(0.0, {"cell": np.array([[1.0, 3.0], [1.0, 3.0]])})
    ranks = {"cell": np.array([[0.0, 1.0], [0.1, 0.9]])}  # the first edge is fixed to b
    for target, names in ((6, "bb"), (4, "ba"), (2, "aa")):
        found = Budget(target, table, spec, "space").best(ranks, target)
        assert [name for ((name, _),) in found.cell("cell")] == [*names]


def test_the_exact_cost_decides_if_the_table_is_rounded():
    # Would catch a genotype above the target because its table is in float32.
    cell = Cell(tuple(Edge(i + 1, i, ("a", "b")) for i in range(3)))
    spec, exact = spec_of({"cell": cell}), 2.0**24 * np.array([[1, 2]] * 3) + np.array([[0, 1]] * 3)
    table = CostTable(0.0, {"cell": exact.astype(np.float32)})
    ranks = {"cell": np.array([[0.3, 0.7], [0.2, 0.8], [0.4, 0.6]])}
    target = 2.0**24 * 4 + 0.5

    def measure(genotype):
        return float(np.sum(one_hot({"cell": cell}, genotype)["cell"] * exact))

    budget = Budget(target, table, spec, "space")
    best = budget.best(ranks, np.inf)
    loose = budget.best(ranks, target)
    assert measure(loose) > target >= cost_in(table, {"cell": cell}, loose)
    assert measure(budget.derive(ranks, best, measure)) <= target
    with pytest.raises(UserError, match="correct `table` or `exact`"):
        budget.derive(ranks, best, lambda genotype: 2 * target)


def test_costs_as_text_can_be_given_as_targets():
    # Would catch a smallest cost in a message that is rounded down, and is refused as a target.
    assert format_cost(7713280.0) == "7,713,280"
    for cost in (0.00123456789, 12.3456789, 999999.9999, 1e-9 / 3):
        assert cost <= float(format_cost(cost).replace(",", "")) <= cost * 1.00001


# Searches


COSTS = dict(cost__name="params", retrain__channels=4, retrain__cells=1)


def test_a_target_that_no_network_meets_is_refused_before_the_search(small):
    # Would catch a search that ends with nothing, or a message without the smallest cost.
    experiment = small(**COSTS, cost__target=100.0, search__operations=(4,), **ONE_STAGE)
    smallest = smallest_cost(
        experiment.costing.table(experiment.first_spec()), experiment.first_spec()
    )
    with pytest.raises(UserError) as caught:
        experiment.check()
    message = str(caught.value)
    assert "cost.target is 100" in message and f"{smallest:,.0f} parameters" in message
    assert "\n" not in message
    small(**COSTS, cost__target=smallest, search__operations=(4,), **ONE_STAGE).check()


def test_the_range_of_costs_is_described_and_a_target_that_excludes_nothing(small):
    # Would catch a budget that seems to be tested, and a range of another unit or stage.
    experiment = small(**COSTS, search__operations=(4,), **ONE_STAGE)
    spec, exact = experiment.first_spec(), experiment.costing.exact
    one_operation = [exact(genotype) for genotype in spaces.uniform_genotypes(experiment.space)]
    low, high = min(one_operation), max(one_operation)  # each operation costs most on all edges
    expected = f"networks cost {low:,.0f} to {high:,.0f} parameters"
    assert experiment.costing.describe(spec) == [expected]

    def described(target):
        limited = small(**COSTS, cost__target=target, search__operations=(4,), **ONE_STAGE)
        return limited.costing.describe(spec)

    assert described(high - 1) == [expected]
    first, warning = described(high)
    assert first == expected
    assert warning.startswith(f"warning: cost.target is {high:,.0f}, which no network exceeds")


ONE_STAGE = dict(search__epochs=(1,), search__partial_channels=(1,), search__warmup_epochs=(0,))


@pytest.mark.parametrize("selection", ["mean", "sample"])
def test_a_search_ends_within_the_target(one_stage, on_devices, tmp_path, selection):
    # Would catch a rule whose result ignores the target, and costs that no file tells.
    on_devices(1)
    changes = dict(COSTS, search__epochs=(1,), search__selection=selection)
    if selection == "sample":
        changes["search__selection_options__batches"] = 1
    config, arrays = one_stage(**changes)
    free = search(config, tmp_path / "free", arrays, QUIET).genotype
    cost = provenance(tmp_path / "free")["cost"]
    assert cost.keys() == {"name", "unit", "exact", "smallest", "largest"}
    # Each operation other than `none` has the same number of parameters, so one must go.
    assert operations(free) >= 1
    one = 8 * 8 * 3 + 1 + 4
    assert cost["largest"] == cost["exact"] + (3 - operations(free)) * one
    target = cost["exact"] - 1
    config, arrays = one_stage(**changes, cost__target=target)
    found = search(config, tmp_path / "within", arrays, QUIET).genotype
    assert operations(found) == operations(free) - 1
    within = provenance(tmp_path / "within")["cost"]
    assert within == {**cost, "exact": cost["exact"] - one, "target": target}
    line = json.loads((tmp_path / "within/search/history.jsonl").read_text().splitlines()[-1])
    most = cost["exact"] + (3 - operations(free)) * one
    assert most - 3 * one < line["expected_cost"] < most


def operations(genotype):
    return sum(name != "none" for ((name, _),) in genotype.cell("cell"))


def provenance(workdir):
    return json.loads((workdir / "search/genotype.json").read_text())["provenance"]


POINTS = """
from drnas_jax.costs.base import AdditiveCost

POINTS = {"none": 0, "skip_connect": 0, "avg_pool_3x3": 1, "nor_conv_1x1": 4, "nor_conv_3x3": 9}

class Points(AdditiveCost):
    unit = "points"

    def exact(self, space, network):
        nodes = network.genotype.cell("cell")
        return 100 + sum(POINTS[name] for node in nodes for name, _ in node)

create = Points
"""


@pytest.mark.parametrize("target", [0.0, 100.0, pytest.param(110.0, marks=pytest.mark.slow)])
def test_pruning_leaves_the_genotype_that_fits(tiny, tmp_path, target):
    # Would catch a second stage in which only the most expensive operations are left.
    (tmp_path / "points.py").write_text(POINTS)
    changes = dict(search__operations=(5, 2), search__epochs=(1, 1), search__warmup_epochs=(0, 0))
    changes |= dict(cost__name=str(tmp_path / "points.py"), cost__target=target)
    experiment = tiny(**changes, search__partial_channels=(4, 4))
    experiment.check()
    spec = experiment.first_spec()
    names = spec.cell("cell").edges[0].primitives
    liked = [name.startswith("nor_conv") for name in names]  # the two most expensive ones
    alpha = np.float32(np.tile(liked, (6, 1)) + np.arange(30).reshape(6, 5) / 100)
    shapes = jax.eval_shape(lambda: experiment.init(spec, 0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state = zeros.replace(alpha={"cell": alpha})
    before = experiment.derived(state, spec)
    new, after = experiment.advance(spec, state, 1)
    smallest = smallest_cost(experiment.costing.table(new), new)
    if not target:
        assert smallest == 100 + 6 * 4
        return
    assert smallest <= target
    assert experiment.costing.exact(before) <= target
    assert experiment.derived(after, new) == before
    assert all(len(edge.primitives) == 2 for edge in new.cell("cell").edges)


def test_the_cost_can_be_that_of_larger_images():
    # Would catch a proxy whose budget is counted at the proxy's size.
    config = defaults()
    config.space, config.cost.name, config.cost.image_size = "macro", "macs", 32
    config.data.update(dict(name="cifar10", image_size=17))
    config.retrain.update(dict(channels=32, cells=8))
    config = from_config_dict(config)
    experiment = Experiment(config, synthetic(config, 8), devices.make_mesh(jax.devices()[:1]))
    assert experiment.dataset.shape == (17, 17, 3)
    assert experiment.costing.exact(macro.parse("22212220")) == 85_164_544  # the benchmark's number
    assert config.cost.image((17, 17, 3)) == (32, 32, 3)
    assert config.cost.image((17, 15, 1)) == (32, 32, 1)
    assert CostConfig().image((17, 15, 1)) == (17, 15, 1)
