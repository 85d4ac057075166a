"""docs/results.csv holds what the table says of each cell, and docs/results.md its means."""

import csv
import re
import statistics
from pathlib import Path

from drnas_jax.tables.nasbench201 import DATASETS, load

DOCS = Path(__file__).parents[1] / "docs"


def runs():
    with open(DOCS / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_accuracies_are_those_of_the_table(shared):
    table = load(shared / "nasbench201" / "nasbench201.csv")
    for run in runs():
        truth = table.query(run["cell"])
        assert int(run["rank"]) == truth["rank"]
        for name in DATASETS:
            assert float(run[name]) == truth[name]["test_200"], run


def test_the_page_has_the_means_of_all_runs():
    page = (DOCS / "results.md").read_text()
    for method in {run["method"] for run in runs()}:
        own = [run for run in runs() if run["method"] == method]
        (row,) = re.findall(rf"^\| {method} \|.*", page, re.M)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1] == ", ".join(run["seed"] for run in own)
        for name, cell in zip(DATASETS, cells[2:], strict=False):
            values = [float(run[name]) for run in own]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            assert cell == f"{statistics.mean(values):.2f}{spread}"
