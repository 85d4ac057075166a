"""The page about one run or several, readable without a network.

`python -m drnas_jax.report DIR` writes DIR/report.html from the files in DIR. The page of several
workdirs is comparison.html in the folder that they have in common.
"""

import argparse
import html
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from plotly.offline import get_plotlyjs

from drnas_jax.errors import UserError
from drnas_jax.files import write_json, write_text
from drnas_jax.phases.search.budget import format_cost
from drnas_jax.report import figures
from drnas_jax.report.answer import progress, refresh_seconds
from drnas_jax.report.front import CHANCE, KINDS, Front, front_of
from drnas_jax.report.markup import STYLE, plot, section, table, text
from drnas_jax.report.runs import Run, begun_elements, elements_of, has_targets, read_run
from drnas_jax.report.several import several_runs
from drnas_jax.report.single import one_run
from drnas_jax.report.terms import terms
from drnas_jax.training.progress import Status


def write_report(
    workdirs: Sequence[str | os.PathLike[str]],
    file: str | os.PathLike[str] | None = None,
    status: Status | None = None,
) -> Path:
    """Writes a page about a workdir, or a page that compares several.

    Args:
      workdirs: One or more workdirs. That of several targets or seeds stands for those of its runs.
      file: Path of the page; by default report.html in the only workdir, or else comparison.html
        in the folder that the workdirs have in common. If the only workdir is of several targets,
        front.json beside the page has the numbers of their front.
      status: How far the only run is, if it is going on. The page then shows it, and loads itself
        again from time to time.

    Returns:
      Path of the page.

    Raises:
      UserError: One of the paths is not a workdir, or a file in it is damaged.
    """
    given = list(dict.fromkeys(Path(workdir).absolute() for workdir in workdirs))
    default = given[0] / "report.html"
    if len(given) > 1:
        default = Path(os.path.commonpath([path.parent for path in given])) / "comparison.html"
    page = Path(file).absolute() if file else default
    paths = list(dict.fromkeys(path for workdir in given for path in begun_elements(workdir)))
    root = os.path.commonpath([path.parent for path in paths])
    runs = [read_run(path, os.path.relpath(path, root)) for path in paths]
    by_path = dict(zip(paths, runs, strict=True))
    fronts = {
        workdir: front_of({name: by_path.get(path) for name, path in elements_of(workdir).items()})
        for workdir in given
        if has_targets(workdir)
    }
    sections = [_front(workdir.name, front) for workdir, front in fronts.items() if front]
    write_text(page, render(runs, page.parent, sections, status))
    if len(given) == 1 and (front := fronts.get(given[0])):
        write_json(page.with_name("front.json"), front.to_json())
    return page


def render(
    runs: Sequence[Run], folder: Path, first: Sequence[str] = (), status: Status | None = None
) -> str:
    """Returns the page about one run, or about several, as HTML.

    Args:
      runs: Runs of the page.
      folder: Folder of the page.
      first: Sections before all others.
      status: How far the only run is, if it is going on.
    """
    run = runs[0]
    title, about = f"{run.config.space} on {run.config.data.name}", f"Workdir: {run.name}"
    sections = one_run(run) if len(runs) == 1 else several_runs(runs, folder)
    if len(runs) > 1:
        title, about = f"{len(runs)} runs", _searched(runs)
    now = progress(status) if status else ""
    title = html.escape(title)
    refresh = f'<meta http-equiv="refresh" content="{refresh_seconds(status)}">' if status else ""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{refresh}'
        f"<title>{title}</title><style>{STYLE}</style><script>{get_plotlyjs()}</script></head>"
        f"<body><h1>{title}</h1>{text(about)}{terms()}{now}{''.join([*first, *sections])}"
        "</body></html>\n"
    )


def _searched(runs: Sequence[Run]) -> str:
    """Returns the spaces and data sets of several runs, as text."""
    names = dict.fromkeys(f"{run.config.space} on {run.config.data.name}" for run in runs)
    return ", ".join(names)


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
    header = (
        "workdir",
        "cost.target",
        "cost of the final network",
        f"cost, {front.unit}",
        "accuracy",
        "on front",
    )
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


def main(argv: Sequence[str] | None = None) -> int:
    """Writes a page about the workdirs that the command names, and prints its path.

    Returns:
      Exit code: 0, or 2 after a mistake, which is printed in one line.
    """
    parser = argparse.ArgumentParser(
        "python -m drnas_jax.report",
        description="Writes a page about a run, or one that compares several.",
    )
    parser.add_argument("workdirs", nargs="+", metavar="DIR", help="workdir of a run or a sweep")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="page; by default DIR/report.html, or comparison.html beside several DIRs",
    )
    options = parser.parse_args(argv)
    try:
        print(write_report(options.workdirs, options.output))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
