"""Selection by perturbation, against the same choices written out."""

import signal

import jax
import numpy as np
import pytest
from resuming import Listener, Stopper, assert_same_bits, checkpoint
from small_space import CELL, Small

from drnas_jax import search
from drnas_jax.errors import UserError
from drnas_jax.phases.search.diagnostics import Diagnostics
from drnas_jax.rules.base import Continue, Stop, View
from drnas_jax.rules.selection.perturbation import Options, create, orders
from drnas_jax.spaces.base import Cell, Edge, Space, SupernetSpec
from drnas_jax.training.signals import Interrupted

STEPS = 2  # in an epoch
NAMES = ("none", "a", "b", "c")
PAIRS = ((2, 0), (2, 1), (3, 0), (3, 1), (3, 2), (4, 0), (4, 1), (4, 2), (4, 3))
CELLS = {
    "normal": Cell(tuple(Edge(*pair, NAMES) for pair in PAIRS), inputs=2, keep=2),
    "reduce": Cell(tuple(Edge(*pair, NAMES[1:]) for pair in PAIRS[:5]), inputs=2, keep=2),
}


class TwoCells(Space):
    name = "two"
    cells = CELLS


def accuracy_of(mix, batches):
    """An accuracy that depends on pairs of mixing weights, so that earlier decisions matter."""
    del batches
    flat = np.concatenate([mix[name].astype(np.float64).ravel() for name in CELLS])
    matrix = np.random.default_rng(5).normal(size=(flat.size, flat.size))
    return float(np.tanh(0.1 * flat @ matrix @ flat))


def view_of(epoch, epochs, mean, seed=3):
    space = TwoCells()
    spec = SupernetSpec(tuple(CELLS.items()), 4, 1, 2, (8, 8, 1))
    return View(
        epoch=epoch, epochs=epochs, seed=seed, space=space, spec=spec, mean=mean, scores=mean,
        genotype=space.derive(mean, spec), line={"stage": 1}, fixed=(), accuracy=accuracy_of,
        curvature=None, derive=lambda ranks: space.derive(ranks, spec), draw=None,
        say=lambda text: None,
    )  # fmt: skip


def without(mix, cell_type, row, column=slice(None)):
    changed = {name: rows.copy() for name, rows in mix.items()}
    changed[cell_type][row, column] = 0
    return accuracy_of(changed, None)


def brute_force(mean, seed):
    """Returns the mixing weights after each decision, as in the paper."""
    mix, steps = {name: rows.copy() for name, rows in mean.items()}, []
    for turn in range(9 + 2):
        for name, cell in CELLS.items():
            rows, nodes = orders(seed, name, cell)
            if turn < len(rows):
                row, first = rows[turn], cell.edges[0].primitives.index("a")
                columns = range(first, first + 3)  # never none
                kept = min(columns, key=lambda column: without(mix, name, row, column))
                mix[name][row] = np.arange(cell.shape[1]) == kept
            elif turn >= 9 and turn - 9 < len(nodes):
                node = nodes[turn - 9]
                left = [row for row, edge in enumerate(cell.edges) if edge.target == node]
                while len(left) > 2:
                    worst = max(left, key=lambda row: without(mix, name, row))
                    mix[name][worst] = 0
                    left.remove(worst)
        steps.append({name: rows.copy() for name, rows in mix.items()})
    return steps


def test_edges_then_nodes_are_decided_as_by_brute_force():
    # Would catch the operation whose removal hurts least, renormalised weights, cells that do not
    # see each other's decisions, `none` as a result, and nodes that keep their worst edges.
    rng = np.random.default_rng(0)
    mean = {
        name: rng.dirichlet(np.ones(cell.shape[1]), cell.shape[0]) for name, cell in CELLS.items()
    }
    expected, rule, memory = brute_force(mean, 3), create(Options(interval=2)), {}
    mix, decided = {name: rows.copy() for name, rows in mean.items()}, []
    for epoch in range(1, 31):
        decision = rule.decide(view_of(epoch, 30, mix), memory)
        if isinstance(decision, Continue):
            continue
        if isinstance(decision, Stop):
            last = epoch
            break
        for name, row, operation in decision.edges:
            names = CELLS[name].edges[row].primitives
            mix[name][row] = [operation == other for other in names]
        decided.append(epoch)
        for name in CELLS:
            np.testing.assert_array_equal(mix[name], expected[len(decided) - 1][name])
    assert decided == list(range(10, 30, 2)) and last == 30
    for name, nodes in decision.genotype.cells:
        rows = expected[-1][name]
        kept = {
            (CELLS[name].edges[r].target, CELLS[name].edges[r].source): r
            for r in range(len(rows))
            if rows[r].any()
        }
        found = {
            (target, source): operation
            for target, node in enumerate(nodes, start=2)
            for operation, source in node
        }
        assert found == {
            pair: CELLS[name].edges[row].primitives[int(np.argmax(rows[row]))]
            for pair, row in kept.items()
        }


def test_the_order_is_random_and_follows_from_the_seed():
    # Would catch an order that changes between versions or when a search resumes, the same one for
    # all seeds or cell types, and nodes that have no edge to lose.
    assert orders(3, "normal", CELLS["normal"]) == ([6, 5, 2, 7, 1, 3, 0, 8, 4], [3, 4])
    assert orders(3, "reduce", CELLS["reduce"])[1] == [3]
    many = [orders(seed, "normal", CELLS["normal"]) for seed in range(50)]
    assert all(sorted(rows) == list(range(9)) and sorted(nodes) == [3, 4] for rows, nodes in many)
    assert len({tuple(rows) for rows, _ in many}) == 50
    assert len({tuple(nodes) for _, nodes in many}) == 2


@pytest.mark.parametrize(
    ("options", "epochs", "expected"),
    [
        (Options(), 80, list(range(30, 81, 5))),
        (Options(first_epoch=20), 70, list(range(20, 71, 5))),
        (Options(first_epoch=20, interval=5), 69, [*range(20, 66, 5), 69]),  # as the authors end
        (Options(interval=5), 11, list(range(1, 12))),
        (Options(first_epoch=2, interval=3), 100, list(range(2, 33, 3))),
    ],
)
def test_decisions_fall_after_these_epochs(options, epochs, expected):
    # Would catch a search that ends before all edges are decided, or that decides one too early.
    rule, memory, found = create(options), {}, []
    mean = {name: np.full(cell.shape, 1 / cell.shape[1]) for name, cell in CELLS.items()}
    rule.check(view_of(1, epochs, mean).spec, epochs)
    for epoch in range(1, epochs + 1):
        decision = rule.decide(view_of(epoch, epochs, mean), memory)
        if not isinstance(decision, Continue):
            found.append(epoch)
        if isinstance(decision, Stop):
            break
    assert found == expected
    assert (decision.reason == "") == (expected[-1] == epochs)


@pytest.mark.parametrize("options", [Options(), Options(first_epoch=3)])
def test_too_few_epochs_are_refused_before_the_search(options):
    # Would catch a search that reaches its last epoch without a genotype.
    spec = SupernetSpec(tuple(CELLS.items()), 4, 1, 2, (8, 8, 1))
    enough = 11 + max(options.first_epoch - 1, 0)
    create(options).check(spec, enough)
    with pytest.raises(UserError, match=f"search.epochs has {enough - 1} epochs.* 11 decisions"):
        create(options).check(spec, enough - 1)


def test_a_search_decides_as_its_supernet_says_and_resumes(
    one_stage, on_devices, monkeypatch, tmp_path
):
    # Would catch accuracies of other images, weights or mixing weights, and a resumed search that
    # decides an edge again or in another order.
    on_devices(1)
    measure, measured = Diagnostics.accuracies, []

    @jax.jit
    def apply(variables, images, mix):
        return Small(4, None).apply(variables, images, mix, True, mutable=["batch_stats"])[0]

    def recorded(self, state, mixes, epoch, batches):
        (mix,), experiment = mixes, self._experiment
        hits = []
        for batch, _ in list(experiment.loader.evaluation(epoch)):
            images, labels = experiment.preprocessing.normalise(experiment.loader.raw, batch)
            variables = {"params": state.params, **state.variables}
            hits += [np.argmax(apply(variables, images, mix), -1) == labels]
        measured.append((epoch + 1, mix["cell"], float(np.mean(hits))))
        found = measure(self, state, [mix], epoch, batches)
        assert batches is None and found == pytest.approx([np.mean(hits)])
        return found

    changes = dict(search__selection="perturbation", arch__lr=0.1, search__compared_cells=0)
    changes |= dict(search__selection_options__interval=2)
    config, arrays = one_stage(**changes)
    with monkeypatch.context() as patch:
        patch.setattr(Diagnostics, "accuracies", recorded)
        genotype = search(config, tmp_path / "whole", arrays, Listener()).genotype
    order, _ = orders(config.seed, "cell", CELL)
    names = CELL.edges[0].primitives
    for number, row in enumerate(order):
        tried = measured[4 * number : 4 * number + 4]
        assert {epoch for epoch, _, _ in tried} == {2 * number + 2}
        for column, (_, rows, _) in enumerate(tried):
            assert rows[row, column] == 0 and np.all(np.delete(rows[row], column) > 0)
            assert rows[row].sum() < 0.99  # not renormalised
            for before in order[:number]:
                assert sorted(rows[before]) == [0, 0, 0, 1]
        best = int(np.argmin([accuracy for _, _, accuracy in tried]))
        assert genotype.cell("cell")[row][0][0] == names[best]
    assert len(measured) == 12 and len({accuracy for _, _, accuracy in measured}) > 2

    with pytest.raises(Interrupted):  # in the epoch after the first decision
        search(config, tmp_path / "pieces", arrays, Stopper(2 * STEPS + 1, signal.SIGTERM))
    _, _, metadata = checkpoint(tmp_path / "pieces/search/checkpoints")
    assert len(metadata["fixed"]) == metadata["memory"]["selection"]["decisions"] == 1
    assert search(config, tmp_path / "pieces", arrays, Listener()).genotype == genotype
    assert_same_bits(tmp_path / "pieces/search", tmp_path / "whole/search")
