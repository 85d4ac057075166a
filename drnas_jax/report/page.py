"""The page about a run, readable without a network: `python -m drnas_jax.report DIR [DIR ...]`.

The page is written to DIR/report.html from the files in DIR. Further workdirs are compared with it.
"""

import argparse
import html
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from plotly.offline import get_plotlyjs

from drnas_jax.errors import UserError
from drnas_jax.files import write_json, write_text
from drnas_jax.phases.search.budget import format_cost
from drnas_jax.report import figures
from drnas_jax.report.answer import answer, progress, refresh_seconds
from drnas_jax.report.exploration import SAMPLES
from drnas_jax.report.front import CHANCE, KINDS, Front, front_of
from drnas_jax.report.markup import STYLE, details, plot, section, table, text
from drnas_jax.report.methods import comparison, true_accuracies
from drnas_jax.report.mistakes import mistakes
from drnas_jax.report.ranking import agreement
from drnas_jax.report.runs import Run, begun_elements, elements_of, has_targets, read_run
from drnas_jax.report.stages import mixing_weights
from drnas_jax.training.progress import Status


def write_report(
    workdirs: Sequence[str | os.PathLike[str]],
    file: str | os.PathLike[str] | None = None,
    status: Status | None = None,
) -> Path:
    """Writes a page about the first workdir and compares it with the others.

    Args:
      workdirs: One or more workdirs. That of several targets or seeds stands for those of its runs.
      file: Path of the page; by default report.html in the first workdir. If that workdir is of
        several targets, front.json beside the page has the numbers of their front.
      status: How far the first run is, if it is going on. The page then shows it, and loads itself
        again from time to time.

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
    write_text(page, render(runs, sections, status))
    if front := fronts.get(given[0]):
        write_json(page.with_name("front.json"), front.to_json())
    return page


def render(runs: Sequence[Run], first: Sequence[str] = (), status: Status | None = None) -> str:
    """Returns the page about the first run, compared with the others, as HTML.

    Args:
      runs: Runs of the page.
      first: Sections before all others.
      status: How far the first run is, if it is going on.
    """
    run = runs[0]
    sections = [
        progress(status) if status else "",
        *first,
        answer(run),
        comparison(runs),
        mistakes(run.evaluation),
        _search(run),
        _exploration(run),
        mixing_weights(run),
        _curvature(runs),
        _agreement(runs),
        _retraining(run),
        _settings(run),
    ]
    title = html.escape(f"{run.config.space} on {run.config.data.name}")
    refresh = f'<meta http-equiv="refresh" content="{refresh_seconds(status)}">' if status else ""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{refresh}'
        f"<title>{title}</title><style>{STYLE}</style><script>{get_plotlyjs()}</script></head>"
        f"<body><h1>{title}</h1>{''.join(sections)}</body></html>\n"
    )


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
    return section(
        "Front", text(words), plot(figures.front(front)), table(header, rows), text(measured)
    )


def _search(run: Run) -> str:
    if not run.search:
        return section("Search", text("This workdir has no epoch of a search."))
    plots = (
        figures.curves(run.search),
        figures.entropy(run.search),
        figures.expected_cost(run.search, run.config.cost.target),
    )
    return section("Search", *(plot(figure) for figure in plots if figure.data))


def _exploration(run: Run) -> str:
    explored = run.explored()
    if not explored:
        return ""
    words = (
        f"{true_accuracies([run])} of {SAMPLES} genotypes drawn from the mixing distribution "
        "after each epoch."
    )
    return section("Exploration", text(words), plot(figures.exploration(explored)))


def _curvature(runs: Sequence[Run]) -> str:
    lines = {
        run.title: {line.epoch: line.hessian for line in run.search if line.hessian is not None}
        for run in runs
    }
    if not any(lines.values()):
        return ""
    words = "Largest eigenvalue of the Hessian of the validation loss in alpha."
    return section("Curvature", text(words), plot(figures.compare(lines, "eigenvalue")))


def _agreement(runs: Sequence[Run]) -> str:
    lines = {run.title: agreement(run.search, run.accuracy) for run in runs if run.table}
    if not any(lines.values()):
        return ""
    words = (
        "Kendall's tau between the validation accuracies of genotypes in the supernet and their "
        "true accuracies: 1 if both rank the genotypes alike, 0 if the ranks are unrelated. "
        f"{true_accuracies(runs)}."
    )
    return section("Agreement", text(words), plot(figures.compare(lines, "Kendall's tau")))


def _retraining(run: Run) -> str:
    return section("Retraining", plot(figures.curves(run.retrain))) if run.retrain else ""


def _settings(run: Run) -> str:
    versions = run.described.get("versions", {})
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    config = html.escape(json.dumps(run.described["config"], indent=2))
    return section(
        "Settings",
        text(f"{names}; on {', '.join(run.described['devices'])}"),
        details("config.json", f"<pre>{config}</pre>"),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Writes a page about the first workdir, compared with the others, and prints its path.

    Returns:
      Exit code: 0, or 2 after a mistake, which is printed in one line.
    """
    parser = argparse.ArgumentParser(
        "python -m drnas_jax.report", description="Compares runs in one page."
    )
    parser.add_argument("workdirs", nargs="+", metavar="DIR", help="workdir of a run or a sweep")
    parser.add_argument("--output", metavar="FILE", help="page; by default DIR/report.html")
    options = parser.parse_args(argv)
    try:
        print(write_report(options.workdirs, options.output))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
