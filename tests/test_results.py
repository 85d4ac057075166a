"""docs/results.csv agrees with the table of true accuracies, and the pages with the CSV."""

import csv
import re
import statistics
from pathlib import Path

import pytest

from drnas_jax.configs.nasbench201 import METHODS
from drnas_jax.tables.nasbench201 import DATASETS, load
from drnas_jax.tables.nasbench_macro import load as load_macro

DOCS = Path(__file__).parents[1] / "docs"
STATUS = re.compile(r"done|stopped after epoch \d+")


def runs():
    with open(DOCS / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_accuracies_are_those_of_the_table(shared):
    # Would catch a typing mistake, or a cell that was paired with another one's accuracies.
    table = load(shared / "nasbench201" / "nasbench201.csv")
    for run in runs():
        if not run["cell"] and run["status"] == "stopped after epoch 0":
            continue
        truth = table.query(run["cell"])
        assert int(run["rank"]) == truth["rank"]
        for name in DATASETS:
            assert float(run[name]) == truth[name]["test_200"], run


def test_each_run_is_described_once():
    # Would catch a run that was entered twice, and a new one of which the commit is unknown.
    described = [(run["method"], run["settings"], run["commit"], run["seed"]) for run in runs()]
    assert len(described) == len(set(described))
    for run in runs():
        assert run["method"] in METHODS and STATUS.fullmatch(run["status"]), run
        assert run["processor"], run
        assert run["commit"] or not run["valid_accuracy"], run


def test_the_page_has_all_runs_on_fashion_mnist():
    # Would catch a run that was left out, or a mean of others.
    page = (DOCS / "results.md").read_text()
    with open(DOCS / "fashion_mnist.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    for kind in ("found", "random"):
        selected = [line for line in lines if line["cell_is"] == kind]
        values = [float(line["test_accuracy"]) for line in selected]
        each = ", ".join(f"{value:.2f}" for value in values)
        seeds = ", ".join(line["seed"] for line in selected)
        assert f"| {kind} cells | {seeds} | {statistics.mean(values):.2f} | {each} |" in page


def test_the_page_has_all_runs_within_a_budget(shared):
    # Would catch a run that was left out, and figures that do not follow from the table.
    page = (DOCS / "results.md").read_text()
    table = load_macro(shared / "nasbench_macro" / "nasbench_macro_cifar10.csv")
    with open(DOCS / "nasbench_macro.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 7 + 2 * 5  # with a cost in the loss, and without
    for line in lines:
        row, target = table.rows[line["code"]], int(line["target"])
        assert int(line["macs"]) == table.macs[row] <= target
        gap = table.means[table.macs <= target].max() - table.means[row]
        assert float(line["gap"]) == pytest.approx(gap, abs=1e-3)
        cost, accuracy = f"{table.macs[row] / 1e6:.1f}", f"{table.means[row]:.2f}"
        begin = f"| {target // 10**6} | {line['seed']} | {line['code']} | {cost} | {accuracy} |"
        assert begin in page


def test_the_page_has_the_means_of_all_runs():
    # Would catch a mean that was not updated, or a run that was left out. Runs with other settings
    # than the recipe's, and those that were stopped, are not in these means.
    page = "".join((DOCS / name).read_text() for name in ("results.md", "results-0.1.md"))
    groups = {}
    for run in runs():
        if run["status"] == "done" and not run["settings"]:
            groups.setdefault((run["method"], run["commit"]), []).append(run)
    for (method, _), selected in groups.items():
        rows = re.findall(rf"^\| {method} \|.*", page, re.M)
        columns = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
        seeds = ", ".join(run["seed"] for run in selected)
        (cells,) = [cells for cells in columns if cells[1] == seeds]
        for name, cell in zip(DATASETS, cells[2:], strict=False):
            values = [float(run[name]) for run in selected]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            assert cell == f"{statistics.mean(values):.2f}{spread}"
