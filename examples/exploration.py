"""The exploration figure of a NAS-Bench-201 run as an SVG file, for a paper or a README.

    python examples/exploration.py WORKDIR OUT.svg

True CIFAR-10 test accuracies of 100 cells drawn from the mixing distribution after each epoch: the
range, middle half and median of these, and the cell of the mean. The run must have a table
(`nasbench201.table`).
"""

import sys

import matplotlib
from matplotlib.figure import Figure

from drnas_jax.report.runs import read_run


def main(workdir: str, out: str) -> None:
    """Reads the run, draws its cells and writes the figure."""
    run = read_run(workdir, workdir)
    found = run.explored()
    epochs = [one.epoch for one in found]
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel="true CIFAR-10 test accuracy, %")
    bands = (
        ("range of 100 cells", [one.low for one in found], [one.high for one in found]),
        ("middle half", [one.quartiles[0] for one in found], [one.quartiles[2] for one in found]),
    )
    for alpha, (label, low, high) in zip((0.15, 0.5), bands, strict=True):
        axes.fill_between(epochs, low, high, color="C0", alpha=alpha, linewidth=0, label=label)
    axes.plot(epochs, [one.quartiles[1] for one in found], color="C0", label="median")
    axes.plot(epochs, [one.mean for one in found], "o-", color="C1", label="cell of the mean")
    least, most = min(one.quartiles[0] for one in found), max(one.high for one in found)
    axes.set_ylim(least - 4, most + 0.5)  # the worst cells have 10 %
    axes.legend(loc="lower right")
    with matplotlib.rc_context({"svg.hashsalt": "drnas_jax"}):
        figure.savefig(out, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
