"""The sections about measurements that show how far a search can be trusted."""

from collections.abc import Mapping, Sequence

from drnas_jax.report import figures
from drnas_jax.report.markup import plot, section, text
from drnas_jax.report.ranking import agreement
from drnas_jax.report.runs import Run


def diagnostics(runs: Sequence[Run], labels: Mapping[str, str]) -> str:
    """Returns the sections about the curvature in alpha and the ranking of the supernet.

    Args:
      runs: Runs, each of which is a line. A section is empty if no run has measured it.
      labels: Label of each run by its name.
    """
    return _curvature(runs, labels) + _agreement(runs, labels)


def _curvature(runs: Sequence[Run], labels: Mapping[str, str]) -> str:
    lines = {
        labels[run.name]: {
            line.epoch: line.hessian for line in run.search if line.hessian is not None
        }
        for run in runs
    }
    if not any(lines.values()):
        return ""
    words = "Largest eigenvalue of the Hessian of the validation loss in alpha."
    return section("Curvature", text(words), plot(figures.compare(lines, "eigenvalue")))


def _agreement(runs: Sequence[Run], labels: Mapping[str, str]) -> str:
    lines = {labels[run.name]: agreement(run.search, run.accuracy) for run in runs if run.table}
    if not any(lines.values()):
        return ""
    words = (
        "Kendall's tau between the validation accuracies of genotypes in the supernet and their "
        "true accuracies: 1 if both rank the genotypes alike, 0 if the ranks are unrelated. "
        f"{true_accuracies(runs)}."
    )
    return section("Agreement", text(words), plot(figures.compare(lines, "Kendall's tau")))


def true_accuracies(runs: Sequence[Run]) -> str:
    """Returns a phrase that names the data sets and tables whose accuracies figures show."""
    sources = {
        f" on {next(iter(accuracies))} ({run.table.title})": None
        for run in runs
        if run.table
        for line in run.search
        if (accuracies := run.accuracies(line.genotype))
    }
    return f"True test accuracies{' and'.join(sources)}"
