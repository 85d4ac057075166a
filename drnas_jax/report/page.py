"""The page about a run, readable without a network: `python -m drnas_jax.report DIR [DIR ...]`.

The page is written to DIR/report.html from the files in DIR. Further workdirs are compared with it.
"""

import html
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from drnas_jax.config import differences
from drnas_jax.errors import UserError
from drnas_jax.files import write_json, write_text
from drnas_jax.phases.search.budget import format_cost
from drnas_jax.picture import to_svg
from drnas_jax.report import figures
from drnas_jax.report.exploration import SAMPLES
from drnas_jax.report.front import CHANCE, KINDS, Front, front_of
from drnas_jax.report.ranking import agreement
from drnas_jax.report.runs import Run, begun_elements, elements_of, has_targets, read_run

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 0 auto;
  padding: 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; } td, th { padding: .25rem .75rem; text-align: right;
  border-bottom: 1px solid #ddd; } td:first-child, th:first-child { text-align: left; }
.wide { overflow-x: auto; } code, pre { overflow-wrap: anywhere; white-space: pre-wrap; }
svg { max-width: 100%; height: auto; }
"""


def write_report(
    workdirs: Sequence[str | os.PathLike[str]], file: str | os.PathLike[str] | None = None
) -> Path:
    """Writes a page about the first workdir and compares it with the others.

    Args:
      workdirs: One or more workdirs. That of several targets or seeds stands for those of its runs.
      file: Path of the page; by default report.html in the first workdir. If that workdir is of
        several targets, front.json beside the page has the numbers of their front.

    Returns:
      Path of the page.

    Raises:
      UserError: One of the paths is not a workdir, or a file in it is damaged.
    """
    page = Path(file or Path(workdirs[0]) / "report.html").absolute()
    given = [Path(workdir).absolute() for workdir in workdirs]
    paths = [path for workdir in given for path in begun_elements(workdir)]
    root = os.path.commonpath([path.parent for path in paths])
    runs = [read_run(path, os.path.relpath(path, root)) for path in paths]
    by_path = dict(zip(paths, runs, strict=True))
    fronts = {
        workdir: front_of({name: by_path.get(path) for name, path in elements_of(workdir).items()})
        for workdir in given
        if has_targets(workdir)
    }
    sections = [_front(workdir.name, front) for workdir, front in fronts.items() if front]
    write_text(page, render(runs, sections))
    if front := fronts.get(given[0]):
        write_json(page.with_name("front.json"), front.to_json())
    return page


def render(runs: Sequence[Run], first: Sequence[str] = ()) -> str:
    """Returns the page about the first run, compared with the others, as HTML.

    Args:
      runs: Runs of the page.
      first: Sections before all others.
    """
    run = runs[0]
    sections = [
        *first,
        _summary(run),
        _genotype(run),
        _search(run),
        _exploration(run),
        _mixing_weights(run),
        _curvature(runs),
        _agreement(runs),
        _retraining(run),
        _comparison(runs) if len(runs) > 1 else "",
        _settings(run),
    ]
    title = html.escape(f"{run.config.space} on {run.config.data.name}")
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style><script>{get_plotlyjs()}</script></head>"
        f"<body><h1>{title}</h1>{''.join(sections)}</body></html>\n"
    )


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{''.join(parts)}</section>"


def _text(words: str) -> str:
    return f"<p>{html.escape(words)}</p>"


def _plot(figure: go.Figure) -> str:
    options = {"responsive": True, "displaylogo": False}
    return figure.to_html(full_html=False, include_plotlyjs=False, auto_play=False, config=options)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    head = line(header, "th") if header else ""
    return f'<div class="wide"><table>{head}{body}</table></div>'


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _summary(run: Run) -> str:
    config = run.config
    rows = [
        ("mixing distribution", config.arch.name),
        ("data", config.data.name),
        ("seed", str(config.seed)),
    ]
    if run.search:
        rows.append(("search", f"{run.search[-1].epoch} of {sum(config.search.epochs)} epochs"))
    if result := run.result:
        rows.append(("test accuracy", _percent(result.test_accuracy)))
        rows.append(("test top-5", _percent(result.test_top5)))
        rows.append(("parameters", f"{result.params:,}"))
        rows.append(("multiply-adds", f"{result.macs:,}"))
        for phase, seconds in result.seconds.items():
            if seconds is not None:
                rows.append((f"{phase}, seconds", f"{seconds:,.0f}"))
    if stopped := run.provenance.stopped:
        rows.append(("search stopped early", stopped))
    if compared := run.provenance.compared:
        rows.append(("result in the supernet", compared.describe()))
    if cost := run.provenance.cost:
        rows.append((f"cost, {cost.unit}", f"{cost.exact:,.6g}"))
        if cost.target is not None:
            rows.append((f"largest cost, {cost.unit}", f"{cost.target:,.6g}"))
    for dataset, accuracy in run.accuracies(run.genotype).items():
        rows.append((f"true test accuracy, {dataset}", f"{accuracy:.2f} %"))
    if run.table and run.genotype and (rank := run.table.rank(run.genotype)):
        rows.append((f"rank in {run.table.title}", f"{rank[0]:,} of {rank[1]:,}"))
    return _section("Result", _table((), rows))


def _genotype(run: Run) -> str:
    if run.genotype is None:
        return ""
    svg = to_svg(run.genotype)
    text = f"<p><code>{html.escape(run.describe())}</code></p>"
    return _section("Genotype", svg[svg.index("<svg") :], text)


def _front(name: str, front: Front) -> str:
    """Returns the section about the front of a sweep."""
    source = f" ({front.source})" if front.source else ""
    words = f"Networks of {name} by {front.cost} and {KINDS[front.kind]}{source}."
    if front.missing:
        words += f" Without a result so far: {', '.join(front.missing)}."
    if any(point.cost != point.network_cost for point in front.points):
        words += " The table's networks have other costs than the final networks of the runs."
    best = front.best
    rows = [
        (
            point.name,
            format_cost(point.target),
            format_cost(point.network_cost),
            format_cost(point.cost),
            f"{point.accuracy:.2f} %",
            "yes" if point in best else "no",
        )
        for point in front.points
    ]
    header = ("workdir", "target", "final network", f"cost, {front.unit}", "accuracy", "on front")
    measured = ""
    if front.largest is not None and (volume := front.found_hypervolume) is not None:
        measured = (
            f"Hypervolume, with the reference point ({format_cost(front.largest)} {front.unit}, "
            f"{CHANCE:g} %): {volume:.6g}"
        )
        if true := front.true_hypervolume:
            measured += f", which is {100 * volume / true:.2f} % of the true front's {true:.6g}"
        measured += "."
    return _section(
        "Front", _text(words), _plot(figures.front(front)), _table(header, rows), _text(measured)
    )


def _search(run: Run) -> str:
    if not run.search:
        return _section("Search", _text("This workdir has no epoch of a search."))
    plots = (
        figures.curves(run.search),
        figures.entropy(run.search),
        figures.expected_cost(run.search, run.config.cost.target),
    )
    return _section("Search", *(_plot(figure) for figure in plots if figure.data))


def _exploration(run: Run) -> str:
    explored = run.explored()
    if not explored:
        return ""
    words = (
        f"{_true_accuracies([run])} of {SAMPLES} genotypes drawn from the mixing distribution "
        "after each epoch."
    )
    return _section("Exploration", _text(words), _plot(figures.exploration(explored)))


def _true_accuracies(runs: Sequence[Run]) -> str:
    """Returns a phrase that names the data sets and tables whose accuracies figures show."""
    sources = {
        f" on {next(iter(accuracies))} ({run.table.title})": None
        for run in runs
        if run.table
        for line in run.search
        if (accuracies := run.accuracies(line.genotype))
    }
    return f"True test accuracies{' and'.join(sources)}"


def _mixing_weights(run: Run) -> str:
    history = [line for line in run.search if line.scores]
    if not history:
        return ""
    parts = []
    for cell_type in history[0].scores:
        figure = figures.mixing_weights(history, cell_type, run.edges[cell_type])
        parts += [f"<h3>{html.escape(cell_type)}</h3>", _plot(figure)]
    words = "Mean weight of every operation on every edge; the slider moves over the epochs."
    return _section("Mixing weights", _text(words), *parts)


def _curvature(runs: Sequence[Run]) -> str:
    lines = {
        run.title: {line.epoch: line.hessian for line in run.search if line.hessian is not None}
        for run in runs
    }
    if not any(lines.values()):
        return ""
    words = "Largest eigenvalue of the Hessian of the validation loss in alpha."
    return _section("Curvature", _text(words), _plot(figures.compare(lines, "eigenvalue")))


def _agreement(runs: Sequence[Run]) -> str:
    lines = {run.title: agreement(run.search, run.accuracy) for run in runs if run.table}
    if not any(lines.values()):
        return ""
    words = (
        "Kendall's tau between the validation accuracies of genotypes in the supernet and their "
        "true accuracies: 1 if both rank the genotypes alike, 0 if the ranks are unrelated. "
        f"{_true_accuracies(runs)}."
    )
    return _section("Agreement", _text(words), _plot(figures.compare(lines, "Kendall's tau")))


def _retraining(run: Run) -> str:
    return _section("Retraining", _plot(figures.curves(run.retrain))) if run.retrain else ""


def _comparison(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        result = run.result
        valid = [line.valid_accuracy for line in run.search if line.valid_accuracy is not None]
        true, seconds = run.accuracy(run.genotype), result.seconds["search"] if result else None
        rows.append(
            (
                run.name,
                run.config.arch.name,
                str(run.config.seed),
                str(run.search[-1].epoch) if run.search else "-",
                _percent(valid[-1]) if valid else "-",
                f"{true:.2f} %" if true is not None else "-",
                _percent(result.test_accuracy) if result else "-",
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
    true_lines = {run.title: run.mean_accuracies() for run in runs if run.table}
    plots = []
    if any(true_lines.values()):
        words = f"{_true_accuracies(runs)} of the genotype of the mean after each epoch."
        plots = [_text(words), _plot(figures.compare(true_lines, "true accuracy, %"))]
    return _section("Comparison", _table(header, rows), _over_seeds(runs), *plots)


def _over_seeds(runs: Sequence[Run]) -> str:
    """Returns mean and standard deviation of the runs that differ in nothing but their seed."""
    groups: list[list[Run]] = []
    for run in runs:
        same = (group for group in groups if _differ_in_seeds(group[0], run))
        if group := next(same, None):
            group.append(run)
        else:
            groups.append([run])
    true = {run.name: run.accuracies(run.genotype) for run in runs}
    datasets = list(dict.fromkeys(name for accuracies in true.values() for name in accuracies))
    rows = []
    for group in groups:
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
    return _text(words) + _table(header, rows)


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


def _settings(run: Run) -> str:
    versions = run.described.get("versions", {})
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    config = html.escape(json.dumps(run.described["config"], indent=2))
    return _section(
        "Settings",
        _text(f"{names}; on {', '.join(run.described['devices'])}"),
        f"<details><summary>config.json</summary><pre>{config}</pre></details>",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the report of the first workdir.

    Returns:
      Exit code: 0, or 2 after a mistake, which is printed in one line.
    """
    workdirs = list(sys.argv[1:] if argv is None else argv)
    if not workdirs or any(name.startswith("-") for name in workdirs):
        print("usage: python -m drnas_jax.report DIR [DIR ...]", file=sys.stderr)
        return 2
    try:
        print(write_report(workdirs))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
