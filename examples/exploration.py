"""Draws the exploration figure of a run as an SVG file, for a paper or a README.

    python examples/exploration.py WORKDIR OUT.svg

It shows true test accuracies of 100 cells drawn from the mixing distribution after each epoch:
their range, middle half and median, and the cell of the mean. The run must have a table of true
accuracies (`table.name`, `table.file`). It needs matplotlib: `pip install matplotlib`.
"""

import sys

import matplotlib
from matplotlib.figure import Figure

from drnas_jax.report.runs import read_run


def main(workdir: str, out: str) -> None:
    """Reads the run, draws its cells and writes the figure."""
    run = read_run(workdir, workdir)
    explored = run.explored()
    epochs, means = [line.epoch for line in explored], [line.mean for line in explored]
    low, high = [line.low for line in explored], [line.high for line in explored]
    first, median, third = zip(*(line.quartiles for line in explored), strict=True)
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel="true test accuracy, %")
    bands = (("range of 100 cells", low, high, 0.15), ("middle half", first, third, 0.5))
    for label, bottom, top, alpha in bands:
        axes.fill_between(epochs, bottom, top, color="C0", alpha=alpha, linewidth=0, label=label)
    axes.plot(epochs, median, color="C0", label="median")
    axes.plot(epochs, means, "o-", color="C1", label="cell of the mean")
    axes.set_ylim(min(first) - 4, max(high) + 0.5)  # the worst cells have 10 %
    axes.legend(loc="lower right")
    with matplotlib.rc_context({"svg.hashsalt": "drnas_jax"}):
        figure.savefig(out, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
