"""A user's rules in whole searches: edges that are fixed one by one, and an early end."""

import json
import signal

import numpy as np
import pytest
from resuming import Listener, Stopper, assert_same_bits, checkpoint, history
from small_space import CELL

from drnas_jax import search
from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype
from drnas_jax.phases.search.diagnostics import Diagnostics
from drnas_jax.rules.base import Fix, checked_edges
from drnas_jax.spaces import SupernetSpec
from drnas_jax.spaces.base import one_hot
from drnas_jax.training.signals import Interrupted
from drnas_jax.workdir import phase_lock

STEPS = 2  # in an epoch: 32 training images in batches of 16

# Perturbation-based selection (DARTS-PT, arXiv 2108.04392) in short.
FIXING = """
import numpy as np
from drnas_jax.rules.base import Continue, Fix, Stop

class OneByOne:
    def decide(self, view, memory):
        if view.epoch == 1:
            memory["order"] = np.random.default_rng(view.seed).permutation(3).tolist()
            return Continue()
        if not memory["order"]:
            return Stop(view.genotype, "every edge is fixed")
        row = memory["order"].pop()
        accuracies = [self.accuracy_without(view, row, column) for column in range(4)]
        memory.setdefault("accuracies", []).append(accuracies)
        name = view.spec.cell("cell").edges[row].primitives[int(np.argmin(accuracies))]
        return Fix([["cell", row, name]])

    def accuracy_without(self, view, row, column):
        rows = view.mean["cell"].copy()
        rows[row, column] = 0
        return view.accuracy({"cell": rows}, None)

create = OneByOne
"""

STOPPING = """
import dataclasses
from drnas_jax.genotype import Genotype
from drnas_jax.rules.base import Continue, Stop

@dataclasses.dataclass(frozen=True)
class Options:
    epochs: int = 1

class After:
    def __init__(self, options):
        self.options = options

    def decide(self, view, memory):
        memory["losses"] = [*memory.get("losses", []), view.line["valid_loss"]]
        if len(memory["losses"]) < self.options.epochs:
            return Continue()
        nodes = tuple(((name, source),) for source, name in enumerate(("left", "none", "right")))
        return Stop(Genotype("small", (("cell", nodes),)), "it has seen enough")

create = After
"""

COST = """
import numpy as np
from drnas_jax.costs.base import CostTable

class Cost:
    unit = "points"

    def table(self, space, spec, network):
        return CostTable(100.0, {"cell": np.arange(12, dtype=np.float32).reshape(3, 4)})

    def exact(self, space, network):
        nodes = enumerate(network.genotype.cell("cell"))
        return 100 + sum(4 * row + space.cells["cell"].edges[row].primitives.index(name)
                         for row, ((name, _),) in nodes)

create = Cost
"""


@pytest.fixture
def run(one_stage, on_devices, tmp_path):
    """Returns a function that searches in a folder of tmp_path, given files and changed fields."""
    on_devices(1)

    def run(folder, files, display=None, **changes):
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        config, arrays = one_stage(**changes)
        return search(config, tmp_path / folder, arrays, display or Listener()).genotype

    return run


def provenance(workdir):
    return json.loads((workdir / "search/genotype.json").read_text())["provenance"]


def test_edges_are_fixed_one_by_one_and_the_search_resumes_among_them(run, tmp_path):
    # Would catch a fixed edge, or what the rule remembers, that a checkpoint forgets.
    files = {"one_by_one.py": FIXING, "points.py": COST}
    changes = dict(search__selection=str(tmp_path / "one_by_one.py"), arch__lr=0.1)
    changes |= dict(cost__name=str(tmp_path / "points.py"), cost__weight=0.1)
    genotype = run("whole", files, **changes)
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"

    step, arrays, metadata = checkpoint(whole / "search/checkpoints")
    assert step == 5 * STEPS  # of 6 epochs: the rule has stopped the search
    assert provenance(whole)["stopped"] == "every edge is fixed"
    assert provenance(whole)["epochs"] == 5
    cost = history(whole / "search")[-1]["expected_cost"]  # every edge is fixed
    name = changes["cost__name"]
    described = provenance(whole)["cost"]
    assert described.pop("smallest") <= cost <= described.pop("largest")
    assert described == {"name": name, "unit": "points", "exact": cost}
    fixed = {row: name for _, row, name in metadata["fixed"]}
    assert [name for ((name, _),) in genotype.cell("cell")] == [fixed[row] for row in range(3)]
    assert metadata["memory"]["selection"]["order"] == []
    accuracies = np.array(metadata["memory"]["selection"]["accuracies"])
    assert accuracies.shape == (3, 4) and len(np.unique(accuracies)) > 1
    # The supernet was trained, and alpha too, at the mixing weights that were fixed before.
    lines, mix = history(whole / "search"), one_hot({"cell": CELL}, genotype)["cell"]
    mixed = arrays["['variables']['batch_stats']['mix']"]
    np.testing.assert_array_equal(mixed, mix)
    assert [line["entropy"] > 0 for line in lines] == [True] * 4 + [False]
    assert lines[-1]["expected_cost"] == 100 + np.sum(mix * np.arange(12).reshape(3, 4))
    assert 100 < lines[0]["expected_cost"] != lines[1]["expected_cost"]

    # In an epoch after an edge was fixed; right after one was fixed; when the search has stopped.
    for step in (2 * STEPS + 1, 3 * STEPS, 5 * STEPS):
        with pytest.raises(Interrupted):
            run("pieces", {}, Stopper(step, signal.SIGTERM), **changes)
        saved, _, metadata = checkpoint(pieces / "search/checkpoints")
        assert (saved, len(metadata["fixed"])) == (step, {5: 1, 6: 2, 10: 3}[step])
        assert (metadata["decision"] is not None) == (step == 5 * STEPS)
    assert run("pieces", {}, **changes) == genotype
    assert_same_bits(pieces / "search", whole / "search")
    assert provenance(pieces)["stopped"] == "every edge is fixed"


@pytest.mark.parametrize(
    ("fixed", "expected"),
    [
        ("cell", "(cell type, row, operation or None)"),
        (("cell", 1), "(cell type, row, operation or None)"),
        (("normal", 0, None), "one of the cell types cell"),
        (("cell", 3, None), "a row from 0 to 2"),
        (("cell", -1, None), "a row from 0 to 2"),
        (("cell", "1", None), "a row from 0 to 2"),
        (
            ("cell", 0, "conv"),
            f"None or one of the operations {', '.join(CELL.edges[0].primitives)}",
        ),
    ],
)
def test_an_edge_that_does_not_exist_cannot_be_fixed(fixed, expected):
    # Would catch a traceback from inside the search, or the last edge in place of edge -1.
    spec = SupernetSpec((("cell", CELL),), 4, 1, 2, (8, 8, 1))
    with pytest.raises(UserError) as caught:
        checked_edges(Fix([("cell", 0, None), fixed]), spec, "selection rule 'own.py'")
    message = str(caught.value)
    assert message.startswith("the selection rule 'own.py' returns Fix with the edge ")
    assert message.endswith(f"{fixed!r}: expected {expected}")


def test_edges_may_come_from_a_generator_and_rows_from_numpy():
    # Would catch rows that a checkpoint cannot store.
    spec = SupernetSpec((("cell", CELL),), 4, 1, 2, (8, 8, 1))
    edges = checked_edges(Fix(("cell", row, None) for row in np.arange(2)), spec, "rule")
    assert edges == (("cell", 0, None), ("cell", 1, None))
    assert all(type(row) is int for _, row, _ in edges)


def test_a_stopping_rule_ends_the_search_with_its_genotype(run, tmp_path):
    # Would catch a search that goes on, or that derives the result from alpha all the same.
    changes = dict(search__stopping=str(tmp_path / "after.py"))
    changes |= dict(search__stopping_options__epochs=2)
    found = run("run", {"after.py": STOPPING}, **changes)
    nodes = ((("left", 0),), (("none", 1),), (("right", 2),))
    assert found == Genotype("small", (("cell", nodes),))
    lines = history(tmp_path / "run/search")
    step, _, metadata = checkpoint(tmp_path / "run/search/checkpoints")
    assert step == 2 * STEPS
    assert metadata["memory"]["stopping"] == {"losses": [line["valid_loss"] for line in lines]}
    described = provenance(tmp_path / "run")
    assert (described["stopped"], described["selection"]) == ("it has seen enough", "mean")


def test_a_stopping_rule_comes_before_the_selection_rule(run, tmp_path):
    # Would catch a result of the last epoch that the stopping rule has just refused.
    changes = dict(search__stopping=str(tmp_path / "after.py"), search__epochs=(1,))
    run("run", {"after.py": STOPPING}, **changes)
    assert provenance(tmp_path / "run")["stopped"] == "it has seen enough"


class Titles(Listener):
    """Keeps the titles of the progress as well."""

    def __init__(self):
        super().__init__()
        self.titles = []

    def start(self, description, *rest):
        self.titles.append(description)
        super().start(description, *rest)


def test_the_result_is_compared_with_random_cells(run, monkeypatch, tmp_path):
    # Would catch other batches for the result than for the random cells, the result among these,
    # and a comparison that changes the search, or is lost when the run ends before it is written;
    # also an explanation that every epoch repeats, and frozen epochs that look like others.
    measure, calls = Diagnostics.accuracies, []

    def recorded(self, state, mixes, epoch, batches):
        found = measure(self, state, mixes, epoch, batches)
        calls.append(([mix["cell"].tobytes() for mix in mixes], batches, found))
        return found

    def failing(self, state, mixes, epoch, batches):
        raise OSError("killed")

    changes = dict(search__epochs=(2,), search__warmup_epochs=(1,), search__compared_batches=1)
    display = Titles()
    genotype = run("without", {}, display, **changes)
    assert sum("* marks" in text for text in display.messages) == 1
    assert [", alpha frozen, " in title for title in display.titles] == [True, False]
    changes["search__compared_cells"] = 6
    monkeypatch.setattr(Diagnostics, "accuracies", failing)
    with pytest.raises(OSError, match="killed"):
        run("run", {}, **changes)
    monkeypatch.setattr(Diagnostics, "accuracies", recorded)
    display = Listener()
    assert run("run", {}, display, **changes) == genotype
    ((first, *others), batches, accuracies) = calls.pop()
    assert not calls and batches == 1 and len({first, *others}) == 7
    assert first == one_hot({"cell": CELL}, genotype)["cell"].tobytes()
    compared = provenance(tmp_path / "run")["compared"]
    assert compared == {"images": 16, "accuracy": accuracies[0], "random": accuracies[1:]}
    assert len(set(accuracies)) > 1
    (line,) = [text for text in display.messages if text.startswith("the result in the supernet")]
    assert f"of the {len(others)} other random cells" in line
    assert_same_bits(tmp_path / "run/search", tmp_path / "without/search")
    assert "compared" not in provenance(tmp_path / "without")


def test_the_best_candidate_is_the_result_and_measurements_change_nothing(
    run, monkeypatch, tmp_path
):
    # Would catch the worst candidate, and measurements that use up random numbers of the search.
    measure, judged = Diagnostics.accuracy, {}

    def recorded(self, state, mix, epoch, batches):
        with pytest.raises(UserError, match="another run"), phase_lock(tmp_path / "alone/search"):
            raise AssertionError  # the search must still hold its lock
        accuracy = measure(self, state, mix, epoch, batches)
        judged[mix["cell"].tobytes()] = accuracy
        return accuracy

    changes = dict(search__epochs=(2,), search__selection="sample", arch__name="gdas")
    changes |= dict(search__warmup_epochs=(2,))  # alpha stays: random search with shared weights
    changes |= {
        f"search__selection_options__{k}": v for k, v in (("candidates", 6), ("batches", 2))
    }
    with monkeypatch.context() as patch:
        patch.setattr(Diagnostics, "accuracy", recorded)
        alone_found = run("alone", {}, **changes)
    best = one_hot({"cell": CELL}, alone_found)["cell"].tobytes()
    assert judged[best] == max(judged.values()) > min(judged.values())
    assert len(judged) == 6
    beside = run("beside", {}, **changes, search__ranked_cells=5, search__hessian_batches=1)
    assert beside == alone_found
    lines = history(tmp_path / "beside/search")
    for line in lines:
        ranked = line.pop("ranked")
        assert len(ranked) == 5 and all(0 <= one["accuracy"] <= 1 for one in ranked)
        assert np.isfinite(line.pop("hessian"))
    assert lines == history(tmp_path / "alone/search")
