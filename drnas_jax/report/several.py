"""The page about several runs: each figure and each table shows all of them, with their labels."""

import html
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from drnas_jax.genotype import Genotype
from drnas_jax.report import figures
from drnas_jax.report.diagnostics import diagnostics, true_accuracies
from drnas_jax.report.history import Epoch
from drnas_jax.report.labels import differing_settings, group_seeds, label_runs
from drnas_jax.report.markup import (
    drawn,
    duration,
    environment,
    heading,
    link,
    of_labels,
    percent,
    plot,
    section,
    table,
    text,
)
from drnas_jax.report.runs import Run

Labels = Mapping[str, str]  # label of each run by its name


def several_runs(runs: Sequence[Run], folder: Path) -> list[str]:
    """Returns the sections of a page about several runs.

    Args:
      runs: At least two runs.
      folder: Folder of the page, from which links lead to the pages of the single runs.
    """
    groups, labels = group_seeds(runs), label_runs(runs)
    return [
        _comparison(runs, groups, labels),
        _genotypes(runs, labels),
        _curves(runs, labels),
        diagnostics(runs, labels),
        _pages(runs, labels, folder),
        _settings(runs, groups, labels),
    ]


def _comparison(runs: Sequence[Run], groups: Mapping[str, Sequence[Run]], labels: Labels) -> str:
    measures = {name: values for name, values in measured(runs).items() if len(values) > 1}
    points = [
        plot(figures.runs(_by_group(groups, values, labels), name))
        for name, values in measures.items()
    ]
    words = "Every point is a run, and every line a mean over runs that differ only in their seed."
    shown = [text(words), *points] if points else []
    warnings = [text(f"{labels[run.name]}: {each}.") for run in runs for each in run.warnings]
    noted = [heading("Warnings"), *warnings] if warnings else []
    return section("Comparison", _every_run(runs, labels), _over_seeds(groups), *noted, *shown)


def measured(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Returns what is known of the runs: values by the name of the run, for each measure."""
    measures: dict[str, dict[str, float]] = {}

    def add(measure: str, run: Run, value: float | None) -> None:
        if value is not None:
            measures.setdefault(measure, {})[run.name] = value

    for run in runs:
        for dataset, accuracy in run.accuracies(run.genotype).items():
            add(f"true test accuracy on {dataset}, %", run, accuracy)
        add("test accuracy, %", run, 100 * run.result.test_accuracy if run.result else None)
        add("search, minutes", run, run.search_seconds and run.search_seconds / 60)
    if not any(name.endswith("%") and len(values) > 1 for name, values in measures.items()):
        for run in runs:
            valid = run.validation
            measure = "validation accuracy of the supernet, %"
            add(measure, run, None if valid is None else 100 * valid)
    return measures


def _by_group(
    groups: Mapping[str, Sequence[Run]], values: Mapping[str, float], labels: Labels
) -> dict[str, dict[str, float]]:
    """Returns the values of one measure by the labels of the group and of the run."""
    return {
        name: {labels[run.name]: values[run.name] for run in group if run.name in values}
        for name, group in groups.items()
    }


def _datasets(runs: Sequence[Run]) -> list[str]:
    """Returns the data sets of which true accuracies are known."""
    return list(dict.fromkeys(name for run in runs for name in run.accuracies(run.genotype)))


def _every_run(runs: Sequence[Run], labels: Labels) -> str:
    """Returns a table with a row for each run; a number that is missing has its reason."""
    datasets, rows = _datasets(runs), []
    for run in runs:
        result, valid, true = run.result, run.validation, run.accuracies(run.genotype)
        seconds = run.search_seconds
        rows.append(
            (
                labels[run.name],
                run.name,
                str(run.search[-1].epoch) if run.search else run.lacks_search,
                run.lacks_search if valid is None else percent(valid),
                *(f"{true[n]:.2f} %" if n in true else run.lacks_accuracy for n in datasets),
                percent(result.test_accuracy) if result else run.lacks_result,
                f"{result.params:,}" if result else run.lacks_result,
                run.lacks_search if seconds is None else duration(seconds),
            )
        )
    header = (
        *("run", "workdir", "epochs of the search", "validation accuracy of the supernet"),
        *(f"true test accuracy, {name}" for name in datasets),
        *("test accuracy of the retrained network", "its parameters", "time of the search"),
    )
    return of_labels(header, rows)


def _over_seeds(groups: Mapping[str, Sequence[Run]]) -> str:
    """Returns a table of mean and standard deviation over seeds; empty if no group has several."""
    if all(len(group) == 1 for group in groups.values()):
        return ""
    datasets, rows = _datasets([run for group in groups.values() for run in group]), []
    for label, group in groups.items():
        true = [run.accuracies(run.genotype) for run in group]
        columns = [_mean([x[n] for x in true if n in x], group) for n in datasets]
        tested = [100 * run.result.test_accuracy for run in group if run.result]
        cells = (
            *(column or group[0].lacks_accuracy for column in columns),
            _mean(tested, group) or group[0].lacks_result,
        )
        rows.append((label, str(len(group)), *cells))
    header = (
        *("runs", "seeds"),
        *(f"true test accuracy, {name}" for name in datasets),
        "test accuracy of the retrained network",
    )
    words = "Mean and standard deviation, in percent, of the runs that differ only in their seed:"
    return text(words) + of_labels(header, rows)


def _mean(values: Sequence[float], group: Sequence[Run]) -> str:
    """Returns mean and sample standard deviation, and of how many runs if some have no value."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    known = f" ({len(values)} of {len(group)} runs)" if len(values) < len(group) else ""
    return f"{statistics.mean(values):.2f}{spread}{known}"


def _genotypes(runs: Sequence[Run], labels: Labels) -> str:
    """Returns the section with the picture of each genotype, below the runs that have it."""
    found: dict[Genotype, list[Run]] = {}
    for run in runs:
        if run.genotype:
            found.setdefault(run.genotype, []).append(run)
    if not found:
        return ""
    parts = []
    for number, (genotype, group) in enumerate(found.items(), start=1):
        runs_of_it = "; ".join(labels[run.name] for run in group)
        picture = drawn(genotype, group[0].describe(genotype))
        parts += [heading(f"{number} of {len(found)}"), text(f"Found by {runs_of_it}:"), picture]
    return section("Genotypes", *parts)


def _curves(runs: Sequence[Run], labels: Labels) -> str:
    """Returns the section with one line for each run in each figure."""

    def lines_of(title: str, value: Callable[[Epoch], float | None], phase: str = "search") -> str:
        lines = {
            labels[run.name]: {
                line.epoch: y for line in getattr(run, phase) if (y := value(line)) is not None
            }
            for run in runs
        }
        lines = {label: values for label, values in lines.items() if values}
        return plot(figures.compare(lines, title)) if lines else ""

    true = {labels[run.name]: run.mean_accuracies() for run in runs if run.table}
    explored = ""
    if any(true.values()):
        about = f"{true_accuracies(runs)} of the genotype of the mean after each epoch."
        explored = text(about) + plot(figures.compare(true, "true accuracy, %"))
    return section(
        "Curves",
        lines_of("validation accuracy of the supernet, %", lambda x: _percent(x.valid_accuracy)),
        explored,
        lines_of("entropy of the mean mixing weights, nats", lambda x: x.entropy),
        lines_of("expected cost", lambda x: x.expected_cost),
        lines_of(
            "retraining: training accuracy, %", lambda x: _percent(x.train_accuracy), "retrain"
        ),
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _pages(runs: Sequence[Run], labels: Labels, folder: Path) -> str:
    """Returns the section that says where the pages of the single runs are."""
    words = (
        "The page of a single run has its errors, its mixing weights and more. Where there is none "
        "yet, the command writes it."
    )
    rows = []
    for run in runs:
        page = run.directory / "report.html"
        directory = html.escape(os.path.relpath(run.directory))
        command = f"<code>python -m drnas_jax.report {directory}</code>"
        place = link(page, folder) if page.exists() else command
        rows.append(f"<li>{html.escape(labels[run.name])}: {place}</li>")
    return section("Single runs", text(words), f"<ul>{''.join(rows)}</ul>")


def _settings(runs: Sequence[Run], groups: Mapping[str, Sequence[Run]], labels: Labels) -> str:
    """Returns the section with the settings in which runs differ, and each run's config."""
    rows = differing_settings([group[0] for group in groups.values()])
    differing = table(("setting", *groups), rows) if rows else ""
    about = "The runs differ in these settings:" if rows else "The runs differ in no setting."
    configs = (environment(run.described, f"config.json, {labels[run.name]}") for run in runs)
    return section("Settings", text(about), differing, *configs)
