"""One page about a run, readable without a network: `python -m drnas_jax.report DIR [DIR ...]`.

It is written to DIR/report.html from what lies in DIR; further workdirs are compared with it.
"""

import html
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from drnas_jax import spaces
from drnas_jax.config import differences
from drnas_jax.errors import UserError
from drnas_jax.files import write_text
from drnas_jax.genotype import from_cells
from drnas_jax.picture import to_svg
from drnas_jax.report import figures
from drnas_jax.report.ranking import agreement
from drnas_jax.report.runs import Run, of_each_seed, read_run
from drnas_jax.tables.nasbench201 import DATASETS

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
    """Writes a page about the first workdir, compared with the others.

    Args:
      workdirs: one or more; one of several seeds stands for those of its seeds.
      file: where to; None: report.html in the first.

    Returns:
      The file.

    Raises:
      UserError: one of them is no workdir, or damaged.
    """
    page = Path(file or Path(workdirs[0]) / "report.html").absolute()
    try:
        paths = [path for given in workdirs for path in of_each_seed(Path(given).absolute())]
        root = os.path.commonpath([path.parent for path in paths])
        text = render([read_run(path, os.path.relpath(path, root)) for path in paths])
    except UserError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        given = ", ".join(map(str, workdirs))
        raise UserError(
            f"no report on {given}: what lies there is damaged or of another version ({error!r}); "
            "report on other workdirs, or run the search again"
        ) from error
    write_text(page, text)
    return page


def render(runs: Sequence[Run]) -> str:
    """The page about the first run, compared with the others."""
    run = runs[0]
    sections = [
        _summary(run),
        _cells(run),
        _search(run),
        _exploration(run),
        _concentrations(run),
        _curvature(runs),
        _agreement(runs),
        _retraining(run),
        _comparison(runs) if len(runs) > 1 else "",
        _settings(run),
    ]
    title = html.escape(f"{run.config['space']} on {run.config['data']['name']}")
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
    config, rows = run.config, []
    rows.append(("mixing distribution", config["arch"]["name"]))
    rows.append(("data", config["data"]["name"]))
    rows.append(("seed", str(config["seed"])))
    if run.search:
        done, planned = run.search[-1]["epoch"], sum(config["search"]["epochs"])
        rows.append(("search", f"{done} of {planned} epochs"))
    if result := run.result:
        rows.append(("test accuracy", _percent(result["test_accuracy"])))
        rows.append(("test top-5", _percent(result["test_top5"])))
        rows.append(("parameters", f"{result['params']:,}"))
        rows.append(("multiply-adds", f"{result['macs']:,}"))
        for phase in ("search", "retrain"):
            if (seconds := result[f"{phase}_seconds"]) is not None:
                rows.append((f"{phase}, seconds", f"{seconds:,.0f}"))
    if run.table and (truth := run.truth()):
        for name in DATASETS:
            if "test_200" in truth[name]:
                rows.append((f"true test accuracy, {name}", f"{truth[name]['test_200']:.2f} %"))
        rows.append(("rank among all cells", f"{truth['rank']:,} of {len(run.table.rows):,}"))
    return _section("What was found", _table((), rows))


def _cells(run: Run) -> str:
    if run.genotype is None:
        return ""
    words = spaces.find(run.genotype.space).describe(run.genotype)
    svg = to_svg(run.genotype)
    return _section(
        "The cell", svg[svg.index("<svg") :], f"<p><code>{html.escape(words)}</code></p>"
    )


def _search(run: Run) -> str:
    if not run.search:
        return _section("Search", _text("No epoch of a search lies here."))
    plots = (_plot(figures.curves(run.search)), _plot(figures.entropy(run.search)))
    return _section("Search", *plots)


def _exploration(run: Run) -> str:
    if run.table is None or not run.search:
        return ""
    words = (
        "True CIFAR-10 test accuracies after 200 epochs, by NAS-Bench-201, of 100 cells drawn from "
        "the mixing distribution after each epoch."
    )
    return _section("Exploration", _text(words), _plot(figures.exploration(run.explored())))


def _concentrations(run: Run) -> str:
    if not run.search:
        return ""
    space, parts = spaces.find(run.config["space"]), []
    for cell_type in run.search[0]["concentration"]:
        figure = figures.concentrations(
            run.search, cell_type, space.EDGES[cell_type], space.PRIMITIVES
        )
        parts += [f"<h3>{html.escape(cell_type)}</h3>", _plot(figure)]
    words = "Mean weight of every operation on every edge; the slider moves over the epochs."
    return _section("Mixing weights", _text(words), *parts)


def _curvature(runs: Sequence[Run]) -> str:
    lines = {
        run.title: {line["epoch"]: line["hessian"] for line in run.search if "hessian" in line}
        for run in runs
    }
    if not any(lines.values()):
        return ""
    words = "The largest eigenvalue of the Hessian of the validation loss in alpha."
    return _section("Curvature", _text(words), _plot(figures.compare(lines, "eigenvalue")))


def _agreement(runs: Sequence[Run]) -> str:
    lines = {
        run.title: dict(agreement(run.search, run.config["space"], run.true_accuracy))
        for run in runs
        if run.table
    }
    if not any(lines.values()):
        return ""
    words = (
        "Kendall's tau between the accuracies of cells in the supernet, on validation images, and "
        "their true CIFAR-10 test accuracies after 200 epochs: 1 if both order them alike, 0 if "
        "they have nothing in common."
    )
    return _section("Agreement", _text(words), _plot(figures.compare(lines, "Kendall's tau")))


def _retraining(run: Run) -> str:
    return _section("Retraining", _plot(figures.curves(run.retrain))) if run.retrain else ""


def _comparison(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        truth, result = run.truth(), run.result or {}
        seconds = result.get("search_seconds")
        rows.append(
            (
                run.name,
                run.config["arch"]["name"],
                str(run.config["seed"]),
                f"{run.search[-1]['epoch']}" if run.search else "-",
                _percent(run.search[-1]["valid_accuracy"]) if run.search else "-",
                f"{truth['cifar10']['test_200']:.2f} %" if truth else "-",
                _percent(result["test_accuracy"]) if result else "-",
                f"{result['params']:,}" if result else "-",
                f"{seconds:,.0f}" if seconds is not None else "-",
            )
        )
    header = (
        "workdir",
        "distribution",
        "seed",
        "epochs",
        "validation",
        "true CIFAR-10 test",
        "test",
        "parameters",
        "search, s",
    )
    true = {
        run.title: {
            line["epoch"]: run.true_accuracy(
                from_cells(run.config["space"], line["genotype"], "history.jsonl")
            )
            for line in run.search
        }
        for run in runs
        if run.table
    }
    plot = _plot(figures.compare(true, "true accuracy of the mean's cell, %")) if true else ""
    return _section("Comparison", _table(header, rows), _over_seeds(runs), plot)


def _over_seeds(runs: Sequence[Run]) -> str:
    """Mean and standard deviation of runs that differ in their seed alone."""
    groups: list[list[Run]] = []
    for run in runs:
        known = (group for group in groups if _differ_in_seeds(group[0].config, run.config))
        if group := next(known, None):
            group.append(run)
        else:
            groups.append([run])
    rows = []
    for group in groups:
        truths = [truth for run in group if (truth := run.truth())]
        tested = [100 * run.result["test_accuracy"] for run in group if run.result]
        true = [[truth[name].get("test_200") for truth in truths] for name in DATASETS]
        values = [_mean(column) for column in (*true, tested)]
        names = ", ".join(run.name for run in group)
        rows.append((names, group[0].config["arch"]["name"], str(len(group)), *values))
    header = ("workdirs", "distribution", "seeds", *(f"true, {name}" for name in DATASETS), "test")
    words = "Mean and standard deviation in percent of the runs that differ in their seed alone:"
    return _text(words) + _table(header, rows)


def _differ_in_seeds(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two configs give runs that differ in their seed at most."""
    return not differences({**one, "seed": 0}, {**other, "seed": 0})


def _mean(values: Sequence[float | None]) -> str:
    """With the standard deviation of a sample."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.2f}{spread}"


def _settings(run: Run) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in run.described["versions"].items())
    config = html.escape(json.dumps(run.config, indent=2))
    return _section(
        "Settings",
        _text(f"{versions}; on {', '.join(run.described['devices'])}"),
        f"<details><summary>config.json</summary><pre>{config}</pre></details>",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the report of the first workdir.

    Returns:
      0; 2 after a mistake, which one line tells.
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
