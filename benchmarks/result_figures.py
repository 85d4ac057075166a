"""Draws the figures of docs/results.md from its CSV files: `python benchmarks/result_figures.py`.

Writes docs/methods.svg (docs/results.csv: the true accuracy of each run's cell, by method) and
docs/budgets.svg (docs/nasbench_macro.csv: found networks and the best ones within each target). It
needs matplotlib, which `make` installs.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1] / "docs"
BEST = 94.37  # true accuracy of the best cell of NAS-Bench-201


def read(name: str) -> list[dict[str, str]]:
    """Returns the rows of a CSV file in docs/."""
    with (DOCS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def group(row: dict[str, str]) -> str:
    """Returns the name of a row's group: the method, and what differs from its recipe."""
    version = "" if row["commit"] else ", 0.1"
    settings = f"\n{row['settings']}" if row["settings"] else ""
    return f"{row['method']}{version}{settings}"


def methods(rows: Sequence[dict[str, str]]) -> Figure:
    """Draws a point for each run, hollow for a seed on which settings were tuned (0 to 4)."""
    groups = {group(row): [each for each in rows if group(each) == group(row)] for row in rows}
    mean = {
        name: sum(float(r["cifar10"]) for r in each) / len(each) for name, each in groups.items()
    }
    names = sorted(groups, key=mean.__getitem__)
    figure = Figure(figsize=(7, 1 + 0.35 * len(names)), layout="constrained")
    axes = figure.add_subplot(xlabel="true test accuracy on CIFAR-10, %")
    axes.axvline(BEST, color="0.8", linewidth=1)
    for y, name in enumerate(names):
        for row in groups[name]:
            colour = "none" if int(row["seed"]) < 5 else "C0"
            axes.plot(float(row["cifar10"]), y, "o", color=colour, markeredgecolor="C0")
        axes.plot(mean[name], y, "|", color="C1", markersize=14)
    axes.set_yticks(range(len(names)), names)
    axes.grid(axis="y", alpha=0.3)
    return figure


def budgets(rows: Sequence[dict[str, str]]) -> Figure:
    """Draws the accuracy of the found and of the best network within each target."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel="target, million multiply-adds", ylabel="true accuracy, %")
    best = sorted({(float(row["target"]) / 1e6, float(row["best_accuracy"])) for row in rows})
    axes.plot(*zip(*best, strict=True), "k_", markersize=24, label="best that fits")
    for weight, marker, label in (
        (0.0, "o", "found"),
        (0.05, "x", "found with a cost in the loss"),
    ):
        chosen = [row for row in rows if float(row["weight"]) == weight]
        points = [(float(row["target"]) / 1e6, float(row["accuracy"])) for row in chosen]
        axes.plot(*zip(*points, strict=True), marker, label=label)
    axes.set_xticks([target for target, _ in best])
    axes.legend(loc="lower right")
    return figure


def main() -> None:
    """Writes both figures."""
    figures = {
        "methods": methods(read("results.csv")),
        "budgets": budgets(read("nasbench_macro.csv")),
    }
    with matplotlib.rc_context({"svg.hashsalt": "drnas_jax", "font.size": 9}):
        for name, figure in figures.items():
            figure.savefig(DOCS / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
