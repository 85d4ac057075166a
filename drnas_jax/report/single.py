"""The page about one run."""

from collections.abc import Sequence

from drnas_jax.config import Stage
from drnas_jax.report import figures
from drnas_jax.report.answer import answer
from drnas_jax.report.diagnostics import diagnostics, true_accuracies
from drnas_jax.report.exploration import SAMPLES
from drnas_jax.report.labels import label_runs
from drnas_jax.report.markup import environment, plot, section, text
from drnas_jax.report.mistakes import mistakes
from drnas_jax.report.runs import Run
from drnas_jax.report.stages import mixing_weights


def one_run(run: Run) -> list[str]:
    """Returns the sections of a page about a run, which may still be going on."""
    return [
        answer(run),
        mistakes(run.evaluation),
        _search(run),
        _exploration(run),
        mixing_weights(run),
        diagnostics([run], label_runs([run])),
        _retraining(run),
        section("Settings", environment(run.described, "config.json, versions and devices")),
    ]


def _search(run: Run) -> str:
    if not run.search:
        return section("Search", text("This workdir has no epoch of a search."))
    plots = (
        figures.curves(run.search),
        figures.entropy(run.search),
        figures.expected_cost(run.search, run.config.cost.target),
    )
    words = f"Accuracies are those of the supernet.{_frozen(run.config.search.stages)}"
    return section("Search", text(words), *(plot(figure) for figure in plots if figure.data))


def _frozen(stages: Sequence[Stage]) -> str:
    """Returns a sentence about the epochs in which alpha is frozen; empty if it never is."""
    spans, first = [], 1
    for stage in stages:
        if last := stage.warmup_epochs:
            spans.append(f"{first} to {first + last - 1}" if last > 1 else f"{first}")
        first += stage.epochs
    return f" Alpha is frozen in the epochs {' and '.join(spans)}." if spans else ""


def _exploration(run: Run) -> str:
    explored = run.explored()
    if not explored:
        return ""
    words = (
        f"{true_accuracies([run])} of {SAMPLES} genotypes drawn from the mixing distribution "
        "after each epoch."
    )
    return section("Exploration", text(words), plot(figures.exploration(explored)))


def _retraining(run: Run) -> str:
    if not run.retrain:
        return ""
    words = "Accuracies of the network of the genotype, trained from scratch."
    return section("Retraining", text(words), plot(figures.curves(run.retrain)))
