"""The sections that come first: how far a run is, and what it has found."""

import datetime
import html

from drnas_jax.report import figures
from drnas_jax.report.markup import (
    drawn,
    duration,
    facts,
    heading,
    percent,
    plot,
    section,
    text,
    tiles,
    warning,
)
from drnas_jax.report.runs import Run
from drnas_jax.training.progress import Status

_SHORTEST, _LONGEST = 10, 600  # seconds until a browser loads the page of a running run again
_LATE_EPOCHS, _COMPILATION = 3, 1200  # epochs, and seconds, after which the next page is overdue
_TIMES = {"search": "time of the search", "retrain": "time of the retraining"}


def refresh_seconds(status: Status) -> int:
    """Returns after how many seconds a browser should load the page again."""
    return int(min(max(status.epoch_seconds, _SHORTEST), _LONGEST))


def progress(status: Status) -> str:
    """Returns a box about a run that is going on."""
    now = datetime.datetime.now().astimezone()
    words = f"{status.phase}: epoch {status.epoch} of {status.epochs}"
    if status.epoch < status.epochs:
        words += f", about {duration(status.seconds_left)} left in this phase"
    written = (
        f"{duration(status.seconds)} in this phase so far. Written at {now:%Y-%m-%d %H:%M:%S %Z}; "
        "the page loads itself again."
    )
    latest = now.timestamp() + _LATE_EPOCHS * status.epoch_seconds + _COMPILATION
    late = (
        '<p id="late" hidden>The next page is long overdue: the run may have stopped.</p>'
        "<script>document.getElementById('late').hidden = "
        f"Date.now() < {1000 * latest:.0f};</script>"
    )
    bar = f'<progress value="{status.epoch}" max="{status.epochs}"></progress>'
    first = f"<p><b>{html.escape(words)}</b></p>"
    return f'<section class="now">{first}{bar}{text(written)}{late}</section>'


def answer(run: Run) -> str:
    """Returns the section about a run's result, or about what it has found so far."""
    found = run.genotype or next(
        (line.genotype for line in reversed(run.search) if line.genotype), None
    )
    cell = ""
    if found is not None:
        so_far = "" if run.genotype else f" after epoch {run.search[-1].epoch}"
        cell = heading(f"Genotype{so_far}") + drawn(found, run.describe(found))
    compared = ""
    if run.provenance.compared:
        compared = heading("Beside random cells") + plot(
            figures.beside_random(run.provenance.compared)
        )
    title = "Result" if run.genotype or not run.search else "Result so far"
    warnings = [warning(f"Warning: {words}.") for words in run.warnings]
    return section(title, tiles(_numbers(run)), *warnings, cell, compared, facts(_facts(run)))


def _numbers(run: Run) -> list[tuple[str, str]]:
    """Returns the few numbers that a reader looks for, each with what it is."""
    numbers, result = [], run.result
    if result:
        numbers.append((percent(result.test_accuracy), "test accuracy"))
    elif run.validation is not None:
        numbers.append((percent(run.validation), "validation accuracy of the supernet"))
    if compared := run.provenance.compared:
        worse = f"{compared.worse} of {len(compared.random)}"
        numbers.append((worse, "other random cells are less accurate in the supernet"))
    cost = run.provenance.cost
    if cost and not (result and cost.unit in ("multiply-adds", "parameters")):
        numbers.append((_short(cost.exact), cost.unit))
    if result:
        numbers.append((_short(result.params), "parameters"))
        numbers.append((_short(result.macs), "multiply-adds"))
        for phase, seconds in result.seconds.items():
            if seconds is not None:
                numbers.append((duration(seconds), _TIMES[phase]))
    return numbers


def _short(count: float) -> str:
    """Returns a number with a few digits, for example `1.23 million`."""
    for unit, size in (("billion", 1e9), ("million", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:,}" if count >= 1000 else f"{count:.4g}"


def _number(value: float) -> str:
    """Returns a number with six digits, or all digits before the point."""
    return f"{value:,.0f}" if value >= 1e6 else f"{value:,.6g}"


def _facts(run: Run) -> list[tuple[str, str]]:
    config = run.config
    rows = [
        ("mixing distribution", config.arch.name),
        ("penalty on alpha", config.arch.regulariser),
        ("data", config.data.name),
        ("seed", str(config.seed)),
    ]
    if run.search:
        rows.append(("search", f"{run.search[-1].epoch} of {sum(config.search.epochs)} epochs"))
    if result := run.result:
        rows.append(("test accuracy", percent(result.test_accuracy)))
        rows.append(("test top-5", percent(result.test_top5)))
        rows.append(("parameters", f"{result.params:,}"))
        rows.append(("multiply-adds", f"{result.macs:,}"))
        for phase, seconds in result.seconds.items():
            if seconds is not None:
                rows.append((f"{phase}, seconds", f"{seconds:,.0f}"))
    else:
        rows.append(("test accuracy", run.lacks_result))
    if stopped := run.provenance.stopped:
        rows.append(("search stopped early", stopped))
    if compared := run.provenance.compared:
        rows.append(("result in the supernet", compared.describe()))
    if cost := run.provenance.cost:
        rows.append((f"cost, {cost.unit}", _number(cost.exact)))
        if cost.target is not None:
            rows.append((f"cost.target, {cost.unit}", _number(cost.target)))
    for dataset, accuracy in run.accuracies(run.genotype).items():
        rows.append((f"true test accuracy, {dataset}", f"{accuracy:.2f} %"))
    if run.table and run.genotype and (rank := run.table.rank(run.genotype)):
        rows.append((f"rank in {run.table.title}", f"{rank[0]:,} of {rank[1]:,}"))
    return rows
