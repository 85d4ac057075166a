"""The front of a sweep: its geometry against brute force, and what a report makes of its runs."""

import json

import numpy as np
import pytest
from finished_run import cell, make
from hypothesis import given, settings
from hypothesis import strategies as st

from drnas_jax.config import defaults, from_config_dict, to_dict
from drnas_jax.files import write_json
from drnas_jax.genotype import save
from drnas_jax.phases.search.budget import undominated
from drnas_jax.report import figures
from drnas_jax.report import page as report
from drnas_jax.report.front import front_of, hypervolume
from drnas_jax.report.runs import elements_of, read_run
from drnas_jax.spaces import macro
from drnas_jax.tables import nasbench_macro

# Whole numbers, so that equal costs and equal accuracies are frequent.
POINTS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=12)
TARGETS = (5e4, 7e4)


def columns(points):
    return np.array(points, np.float64).reshape(-1, 2).T


@settings(max_examples=200, deadline=None, derandomize=True)
@given(POINTS)
def test_the_front_has_all_that_nothing_dominates(points):
    # Would catch a point on the front that costs more and is not better, and one that is missing.
    costs, accuracies = columns(points)
    found = undominated(costs, accuracies)
    expected = {
        (c, a)
        for c, a in points
        if not any((d <= c and b >= a) and (d, b) != (c, a) for d, b in points)
    }
    assert [(costs[i], accuracies[i]) for i in found] == sorted(expected)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(POINTS, st.integers(0, 12), st.integers(0, 12))
def test_the_hypervolume_is_the_number_of_dominated_squares(points, cost, accuracy):
    # Would catch points beyond the reference that add area, and area that is counted twice.
    squares = sum(
        any(c <= x and a >= y + 1 for c, a in points)
        for x in range(cost)
        for y in range(accuracy, 13)
    )
    assert hypervolume(*columns(points), cost, accuracy) == squares


def sweep(folder, name="nasbench201", targets=TARGETS, **fields):
    """Writes the config of a sweep over targets, as a command writes it first."""
    values = defaults()
    values.update_from_flattened_dict({n.replace("__", "."): v for n, v in fields.items()})
    values.space, values.cost.name, values.cost.targets = name, "macs", targets
    described = {"config": to_dict(from_config_dict(values)), "versions": {}, "devices": ["cpu"]}
    write_json(folder / "config.json", described)
    return folder


def found(workdir, genotype, exact, **provenance):
    cost = {"name": "macs", "unit": "multiply-adds", "exact": exact, "largest": 1e5}
    save(workdir / "search/genotype.json", genotype, {"cost": {**cost, **provenance}})


def read(folder):
    return {
        name: read_run(path, name) if (path / "config.json").exists() else None
        for name, path in elements_of(folder).items()
    }


@pytest.fixture
def two(tmp_path):
    """The workdir of a sweep of which both runs have ended, with test accuracies of 87.65 %."""
    folder = sweep(tmp_path / "sweep")
    for target, exact in zip(TARGETS, (4e4, 6e4), strict=True):
        changes = dict(cost__name="macs", cost__target=target, table__name="")
        workdir = make(folder / f"cost_{target:.0f}", tmp_path, **changes)
        found(workdir, cell("nor_conv_3x3"), exact)
    return folder


def test_a_report_of_a_sweep_has_its_front(two):
    # Would catch points that are lost, a front with a dominated run, and numbers without a file.
    assert report.write_report([two]) == two / "report.html"
    values = json.loads((two / "front.json").read_text())
    assert (values["cost"], values["accuracy"], values["table"]) == ("macs", "test", None)
    points = [(one["name"], one["target"], one["cost"]) for one in values["points"]]
    assert points == [("cost_50000", 5e4, 4e4), ("cost_70000", 7e4, 6e4)]
    assert [one["accuracy"] for one in values["points"]] == pytest.approx([87.65, 87.65])
    assert (values["front"], values["missing"], values["true"]) == (["cost_50000"], [], None)
    assert values["reference"] == {"cost": 1e5, "accuracy": 10.0}
    assert values["hypervolume"] == pytest.approx(6e4 * 77.65)
    page = (two / "report.html").read_text()
    assert "<h2>Front</h2>" in page
    row = "<td>cost_70000</td><td>70,000</td><td>60,000</td><td>60,000</td><td>87.65 %</td>"
    assert f"{row}<td>no</td>" in page


def test_equal_networks_are_all_on_the_front(two):
    # Would catch a run that is said to be beaten by another one with the same network.
    found(two / "cost_70000", cell("nor_conv_3x3"), 4e4)
    assert [point.name for point in front_of(read(two)).best] == ["cost_50000", "cost_70000"]


def test_a_sweep_that_still_runs_has_a_report(two, tmp_path):
    # Would catch a report that waits for all array tasks, or that hides which are not there.
    (two / "cost_50000" / "config.json").unlink()
    report.write_report([two])
    values = json.loads((two / "front.json").read_text())
    assert (values["front"], values["missing"]) == (["cost_70000"], ["cost_50000"])
    assert "Without a result so far: cost_50000." in (two / "report.html").read_text()
    (two / "cost_70000" / "search/genotype.json").unlink()
    (two / "cost_70000" / "result.json").unlink()
    assert "<h2>Front</h2>" not in report.write_report([two]).read_text()
    assert "<h2>Front</h2>" not in report.write_report([sweep(tmp_path / "new")]).read_text()


def test_without_a_retraining_accuracies_are_those_of_the_supernets(two):
    # Would catch test accuracies of some runs beside validation accuracies of others.
    (two / "cost_50000" / "result.json").unlink()
    front = front_of(read(two))
    assert front.kind == "test" and [point.name for point in front.points] == ["cost_70000"]
    assert front.missing == ("cost_50000",)
    (two / "cost_70000" / "result.json").unlink()
    front = front_of(read(two))
    assert front.kind == "validation"
    assert [point.accuracy for point in front.points] == pytest.approx([54.0, 54.0])


def test_the_true_front_is_that_of_the_table(tmp_path):
    # Would catch found costs of another network size beside the true ones, and a true front that
    # is not the best of all networks.
    lines = ["arch,mean_test_accuracy,test_1,params,flops"]
    rows = (("00000000", 45, 8), ("00000001", 64, 14), ("00000002", 60, 20), ("22222222", 93, 100))
    lines += [f"{code},{accuracy},{accuracy},1,{macs}" for code, accuracy, macs in rows]
    (tmp_path / "macro.csv").write_text("\n".join(lines) + "\n")
    table = nasbench_macro.load(tmp_path / "macro.csv")
    assert table.cost("macs", "00000002") == 20 and table.cost("seconds", "00000002") is None
    assert table.networks("seconds") is None
    file = str(tmp_path / "macro.csv")
    folder = sweep(tmp_path / "sweep", "macro", (3.0, 4.0), table__file=file, search__cells=8)
    for target, code in ((3, "00000002"), (4, "22222222")):
        one = folder / f"cost_{target}"
        single = sweep(one, "macro", (), table__file=file, search__cells=8)
        described = json.loads((single / "config.json").read_text())
        described["config"]["cost"]["target"] = float(target)
        write_json(one / "config.json", described)
        found(one, macro.parse(code), exact=target)
    front = front_of(read(folder))
    assert (front.kind, front.source, front.largest) == ("table", "NAS-Bench-Macro", 100)
    assert [(p.cost, p.network_cost, p.accuracy) for p in front.points] == [
        (20, 3, 60),
        (100, 4, 93),
    ]
    np.testing.assert_array_equal(front.true, [[8, 45], [14, 64], [100, 93]])
    values = front.to_json()
    assert values["true"]["hypervolume"] == 92 * 35 + 86 * 19
    assert values["hypervolume"] == 80 * 50  # the largest network adds nothing
    figure = figures.front(front)
    assert {trace.name: len(trace.x) for trace in figure.data} == {
        "true front": 3,
        "front of the runs": 2,
        "runs": 2,
    }
    assert "other costs than the final networks" in report.write_report([folder]).read_text()
