"""The section that compares runs: seeds and methods, with every run as a point."""

import os
import statistics
from collections.abc import Mapping, Sequence

from drnas_jax.config import differences, leaves
from drnas_jax.report import figures
from drnas_jax.report.markup import percent, plot, section, table, text
from drnas_jax.report.runs import Run

_LONGEST = 40  # characters of a group's name in a figure


def comparison(runs: Sequence[Run]) -> str:
    """Returns the section about several runs; empty for one."""
    if len(runs) < 2:
        return ""
    groups = group_seeds(runs)
    measures = {name: values for name, values in measured(runs).items() if len(values) > 1}
    words = "Every point is a run, and every line a mean over runs that differ only in their seed."
    points = [
        plot(figures.runs(_by_group(groups, values), name)) for name, values in measures.items()
    ]
    true_lines = {run.title: run.mean_accuracies() for run in runs if run.table}
    lines = []
    if any(true_lines.values()):
        about = f"{true_accuracies(runs)} of the genotype of the mean after each epoch."
        lines = [text(about), plot(figures.compare(true_lines, "true accuracy, %"))]
    shown = [text(words), *points] if points else []
    return section("Comparison", *shown, _over_seeds(runs, groups), _every_run(runs), *lines)


def group_seeds(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Groups the runs that differ in nothing but their seed, by names that tell them apart."""
    groups: list[list[Run]] = []
    for run in runs:
        same = (group for group in groups if _differ_in_seeds(group[0], run))
        if group := next(same, None):
            group.append(run)
        else:
            groups.append([run])
    return dict(zip(_names(groups), groups, strict=True))


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Returns a name for each group: what is special about its config, or where it lies."""
    firsts = [group[0] for group in groups]
    places = [os.path.commonpath([x.name for x in group]) or group[0].name for group in groups]
    fields = [dict(leaves(run.described["config"])) for run in firsts]
    differing = [
        name
        for name in dict.fromkeys(name for values in fields for name in values)
        if name not in ("seed", "arch.name")
        and all(name in values for values in fields)
        and len({repr(values[name]) for values in fields}) > 1
        and differences({name: 0}, {name: 1})
    ]
    names = []
    for run, values, place in zip(firsts, fields, places, strict=True):
        changed = [f"{name.split('.')[-1]} {values[name]}" for name in differing]
        name = ", ".join([run.config.arch.name, *changed])
        names.append(name if len(name) <= _LONGEST else f"{run.config.arch.name}, {place}")
    if len(set(names)) == len(names):
        return names
    return [f"{name}, {run.name}" for name, run in zip(names, firsts, strict=True)]


def measured(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Returns what is known of the runs: values by the name of the run, for each measure."""
    measures: dict[str, dict[str, float]] = {}

    def add(measure: str, run: Run, value: float) -> None:
        measures.setdefault(measure, {})[run.name] = value

    for run in runs:
        for dataset, accuracy in run.accuracies(run.genotype).items():
            add(f"true test accuracy on {dataset}, %", run, accuracy)
        if run.result:
            add("test accuracy, %", run, 100 * run.result.test_accuracy)
            if (seconds := run.result.seconds["search"]) is not None:
                add("search, minutes", run, seconds / 60)
    if not any(name.endswith("%") for name in measures):
        for run in runs:
            if (valid := _validation(run)) is not None:
                add("validation accuracy of the supernet, %", run, 100 * valid)
    return measures


def _by_group(
    groups: Mapping[str, Sequence[Run]], values: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Returns the values of one measure by the names of the group and of the run."""
    return {
        name: {run.name: values[run.name] for run in group if run.name in values}
        for name, group in groups.items()
    }


def _validation(run: Run) -> float | None:
    valid = [line.valid_accuracy for line in run.search if line.valid_accuracy is not None]
    return valid[-1] if valid else None


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


def _every_run(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        result = run.result
        valid = _validation(run)
        true, seconds = run.accuracy(run.genotype), result.seconds["search"] if result else None
        rows.append(
            (
                run.name,
                run.config.arch.name,
                str(run.config.seed),
                str(run.search[-1].epoch) if run.search else "-",
                percent(valid) if valid is not None else "-",
                f"{true:.2f} %" if true is not None else "-",
                percent(result.test_accuracy) if result else "-",
                f"{result.params:,}" if result else "-",
                f"{seconds:,.0f}" if seconds is not None else "-",
            )
        )
    header = (
        "workdir",
        "distribution",
        "seed",
        "epochs",
        "validation",
        "true test",
        "test",
        "parameters",
        "search, s",
    )
    return table(header, rows)


def _over_seeds(runs: Sequence[Run], groups: Mapping[str, Sequence[Run]]) -> str:
    """Returns mean and standard deviation of the runs that differ in nothing but their seed."""
    true = {run.name: run.accuracies(run.genotype) for run in runs}
    datasets = list(dict.fromkeys(name for accuracies in true.values() for name in accuracies))
    rows = []
    for group in groups.values():
        tested = [100 * run.result.test_accuracy for run in group if run.result]
        columns = [
            [true[run.name][name] for run in group if name in true[run.name]] for name in datasets
        ]
        values = [_mean(column) for column in (*columns, tested)]
        names = ", ".join(run.name for run in group)
        rows.append((names, group[0].config.arch.name, str(len(group)), *values))
    header = ("workdirs", "distribution", "seeds", *(f"true, {name}" for name in datasets), "test")
    words = (
        "Mean and standard deviation, in percent, of the runs that differ in nothing but their "
        "seed:"
    )
    return text(words) + table(header, rows)


def _differ_in_seeds(run: Run, other: Run) -> bool:
    """Returns whether two runs differ in nothing but their seed."""
    first, second = ({**each.described["config"], "seed": 0} for each in (run, other))
    return not differences(first, second)


def _mean(values: Sequence[float]) -> str:
    """Returns the mean and, for several values, the standard deviation of a sample."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"
