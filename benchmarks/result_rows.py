"""Prints lines of docs/results.csv: `python benchmarks/result_rows.py DIR ... --commit=HASH`.

Each DIR is the workdir of `configs/nasbench201.py` after a search, which may have been stopped, or
after the random search of examples/random_search.py. Run the script on the machine that ran the
search, since the column `processor` names the machine at hand, and with the package of the same
commit, since `settings` compares with its recipe. Measure the command with

    /usr/bin/time -v -a -o DIR.time.txt python -m drnas_jax.main ... --workdir=DIR

where `-a` keeps the lines of earlier, interrupted commands. The file may also be DIR/time.txt, or
time.txt in a folder that contains only DIR. The columns:

- method, settings: Variant of the recipe and the fields that differ from it, for example
  `arch.lr=0.006 search.epochs=(14,)`. It is the variant with the fewest such fields, of the size
  `cpu` unless `settings` begins with another, as in `size=full`.
- cell: Result of the search; if it was stopped, what it would have ended with after that epoch.
- cifar10, cifar100, imagenet16_120, rank: True test accuracies in percent, and rank on CIFAR-10.
- seconds: Duration of the search, or the elapsed time of its commands if it records no duration.
- cpu_seconds: User and system time of all its commands. peak_memory_mb: Their largest resident set.
- valid_accuracy: Accuracy of the cell on validation images, in percent. That of a search is the one
  in the supernet that genotype.json compares with random cells.
- status: `done`, or `stopped after epoch K`.

What is unknown is left empty.
"""

import argparse
import csv
import functools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from drnas_jax.config import Config, differences, from_config_dict, leaves, plain, to_dict
from drnas_jax.configs import nasbench201 as recipe
from drnas_jax.errors import UserError
from drnas_jax.files import read_json
from drnas_jax.genotype import load
from drnas_jax.report.runs import Run, begun_elements, read_run
from drnas_jax.tables.nasbench201 import DATASETS, NasBench201
from drnas_jax.tables.nasbench201 import load as load_table

COLUMNS = (
    *("method", "seed", "cell", *DATASETS, "rank", "seconds", "commit", "processor"),
    *("cpu_seconds", "peak_memory_mb", "valid_accuracy", "status", "settings"),
)


class Times(NamedTuple):
    """What GNU time measured over all commands of a run: seconds, seconds and MiB."""

    elapsed: float
    cpu: float
    memory: float


def row(workdir: Path, table: NasBench201 | None = None) -> dict[str, Any]:
    """Returns the columns of one run that its files state.

    Args:
      workdir: Workdir of one search, or that of the seeds of a random search.
      table: Table of true accuracies, if it is not the one that the run finds by itself.

    Raises:
      UserError: It is not such a workdir, one of its files is damaged, or there is no table.
    """
    run, file = read_run(workdir, workdir.name), result_file(workdir)
    provenance = (read_json(file) or {}).get("provenance", {}) if file else {}
    times = times_in(measured) if (measured := time_file(workdir)) else None
    return {
        **dict(zip(("method", "settings"), method(run.config, bool(run.search)), strict=True)),
        **truth(run, file, table),
        "seed": run.config.seed,
        "seconds": seconds(provenance, times),
        "cpu_seconds": round(times.cpu) if times else "",
        "peak_memory_mb": round(times.memory) if times else "",
        "valid_accuracy": valid_accuracy(run, provenance),
        "status": "done" if file else f"stopped after epoch {len(run.search)}",
    }


def result_file(workdir: Path) -> Path | None:
    """Returns the file of the cell that a search found, or None if the search has not ended.

    Raises:
      UserError: There is no search, and no random search that examples/random_search.py has judged.
    """
    files = (workdir / "search/genotype.json", workdir / "best.json")
    found = next((file for file in files if file.exists()), None)
    if found is None and not (workdir / "search/history.jsonl").exists():
        raise UserError(
            f"{workdir} has neither a search nor a best.json: run the phase search, or "
            "examples/random_search.py"
        )
    return found


def method(config: Config, searched: bool) -> tuple[str, str]:
    """Returns the method whose recipe differs from a config in the fewest fields, and the fields.

    Args:
      config: Config of the run.
      searched: Whether the run has searched; a random search only retrains.
    """
    values, begun = dict(leaves(plain(config))), ["search" if searched else "retrain"]
    found = {
        variant: [
            field
            for field in differences(recipe_values, to_dict(config), begun)
            if field not in ("seed", "seeds")
        ]
        for variant, recipe_values in variants().items()
    }
    (size, name), fields = min(found.items(), key=lambda pair: len(pair[1]))
    settings = [f"{field}={values.get(field, '')}".replace(" ", "") for field in fields]
    return name, " ".join([f"size={size}"] * (size != "cpu") + settings)


@functools.cache
def variants() -> dict[tuple[str, str], dict[str, Any]]:
    """Returns the config of each size and method, as config.json has it; the size `cpu` first."""
    return {
        (size, name): to_dict(from_config_dict(recipe.get_config(f"{size},{name}")))
        for size in ("cpu", *recipe.SIZES)
        for name in recipe.METHODS
    }


def truth(run: Run, file: Path | None, table: NasBench201 | None) -> dict[str, Any]:
    """Returns the cell with its true accuracies and its rank; nothing before the first epoch.

    Args:
      run: Run of the cell.
      file: Result of `result_file`.
      table: Table to ask, if it is not that of the run.

    Raises:
      UserError: There is no table of true accuracies.
    """
    genotype = load(file) if file else run.search[-1].genotype if run.search else None
    if genotype is None:
        return {}
    cell, known = run.describe(genotype), table or run.table
    if not isinstance(known, NasBench201):
        raise UserError(f"{run.name} has no table of true accuracies: give --table=CSV")
    accuracies, ranked = known.accuracies(cell), known.rank(cell)
    if accuracies is None or ranked is None:
        raise UserError(f"{run.name}: the table does not have the cell {cell}: give a whole one")
    return {"cell": cell, **accuracies, "rank": ranked[0]}


def seconds(provenance: dict[str, Any], times: Times | None) -> int | str:
    """Returns the duration of the search in seconds, or else of the commands, or an empty text."""
    if "search_seconds" in provenance:
        return round(provenance["search_seconds"])
    return round(times.elapsed) if times else ""


def valid_accuracy(run: Run, provenance: dict[str, Any]) -> str:
    """Returns the validation accuracy of the cell in percent, or an empty text."""
    compared = run.provenance.compared
    accuracy = compared.accuracy if compared else provenance.get("valid_accuracy")
    return "" if accuracy is None else f"{100 * accuracy:.2f}"


def time_file(workdir: Path) -> Path | None:
    """Returns the file of GNU time that measured only this run, or None; see the module's text."""
    parent = workdir.parent
    files = [workdir / "time.txt", parent / f"{workdir.name}.time.txt"]
    if not (parent / "config.json").exists():  # else the parent's file is that of several seeds
        files.append(parent / "time.txt")
    return next((file for file in files if file.exists()), None)


def times_in(file: Path) -> Times:
    """Adds up what GNU time measured, one block of lines for each command.

    Raises:
      UserError: A line is missing.
    """
    text = file.read_text()

    def values(label: str) -> list[str]:
        found = re.findall(rf"^\s*{re.escape(label)}: (.*)$", text, re.M)
        if not found:
            raise UserError(f"{file} has no line {label!r}: write it with /usr/bin/time -v")
        return found

    cpu = [*values("User time (seconds)"), *values("System time (seconds)")]
    elapsed = values("Elapsed (wall clock) time (h:mm:ss or m:ss)")
    memory = max(map(int, values("Maximum resident set size (kbytes)")))
    return Times(sum(map(_seconds, elapsed)), sum(map(float, cpu)), memory / 1024)


def _seconds(text: str) -> float:
    """Converts `1:02:03` or `2:03.45` to seconds."""
    total = 0.0
    for part in text.split(":"):
        total = 60 * total + float(part)
    return total


def processor_name() -> str:
    """Returns the name of this machine's processor, or an empty text if it is unknown."""
    text = Path("/proc/cpuinfo").read_text()
    found = re.search(r"^model name\s*: (.*)$", text, re.M)
    return found[1] if found else ""


def runs_in(workdir: Path) -> list[Path]:
    """Returns the workdirs of the runs in a workdir, of which a random search counts as one."""
    return [workdir] if (workdir / "best.json").exists() else begun_elements(workdir)


def rows(workdirs: Sequence[Path], table: NasBench201 | None = None) -> list[dict[str, Any]]:
    """Returns the columns of all runs in some workdirs, see `row`.

    Raises:
      UserError: A file of times would count for two runs, or `row` raises it.
    """
    runs = [run for workdir in workdirs for run in runs_in(workdir.absolute())]
    files = list(filter(None, map(time_file, runs)))
    for file in files:
        if files.count(file) > 1:
            raise UserError(f"{file} lies beside several runs: name each one's DIR.time.txt")
    return [row(run, table) for run in runs]


def main(argv: Sequence[str]) -> None:
    """Prints the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdirs", nargs="+", metavar="DIR", type=Path)
    parser.add_argument("--commit", required=True, help="commit of the package that searched")
    parser.add_argument("--table", default="", help="CSV of true accuracies, if not the run's own")
    options = parser.parse_args(argv)
    machine = {"commit": options.commit, "processor": processor_name()}
    try:
        table = load_table(options.table) if options.table else None
        lines = [line | machine for line in rows(options.workdirs, table)]
    except UserError as error:
        sys.exit(f"error: {error}")
    writer = csv.DictWriter(sys.stdout, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
