"""The command `python -m drnas_jax.main --config=FILE --workdir=DIR`.

It searches, retrains and evaluates, and exports the network if the phase `export` is named.
"""

import contextlib
import dataclasses
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging

from drnas_jax import tables
from drnas_jax.config import Config, chosen_elements, elements
from drnas_jax.data.names import printable
from drnas_jax.errors import UserError, check_choice
from drnas_jax.flags import parse
from drnas_jax.phases.evaluate import check_evaluate, run_evaluate
from drnas_jax.phases.export import check_export, check_formats, run_export
from drnas_jax.phases.retrain.phase import check_retrain, run_retrain
from drnas_jax.phases.search.phase import run_search
from drnas_jax.phases.search.sweep import check_sweep
from drnas_jax.phases.search.together import search_together, seeds_at_once
from drnas_jax.phases.setup import Run, dataset_loader
from drnas_jax.report.watch import Watcher
from drnas_jax.training import hosts
from drnas_jax.training.hosts import PrimaryFailedError, cores, from_primary, is_primary
from drnas_jax.training.metrics import Display
from drnas_jax.training.signals import RESUMES, Interrupted, exit_at_once
from drnas_jax.workdir import open_workdir, waiting_lock

PHASES: dict[str, Callable[[Run], Any]] = {
    "search": run_search,
    "retrain": run_retrain,
    "evaluate": run_evaluate,
    "export": run_export,
}
DEFAULT_PHASES = ("search", "retrain", "evaluate")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the phases in order; each resumes from what is in the workdir.

    Returns:
      Exit code: 0; 2 after a mistake that the user can fix, which one line describes; 1 if the
      processes of a run do not find each other, or process 0 fails (in the others), or the system
      cannot read or write a file; 128 + the number of the signal if a signal ended the run.
    """
    logging.set_verbosity(logging.ERROR)
    try:
        config, phases, path = _command_line(sys.argv if argv is None else argv)
        use_compilation_cache()
        workdir = open_workdir(path, dataclasses.replace(config, element=0))
        display = Display(quiet=not is_primary())
        with exit_at_once(), display, contextlib.ExitStack() as pages:
            _run(config, phases, workdir, display, pages)
    except UserError as error:
        return _end(2, f"error: {error}")
    except (ConnectionError, PrimaryFailedError) as error:
        return _end(1, f"error: {error}")
    except OSError as error:
        return _end(1, f"error: {error}: fix that; {RESUMES}")
    except Interrupted as stop:
        return _end(128 + stop.signum, f"{stop}; {RESUMES}")
    except KeyboardInterrupt:
        return _end(130, f"stopped; {RESUMES}")
    return 0


def _run(
    config: Config,
    phases: Sequence[str],
    workdir: Path,
    display: Display,
    pages: contextlib.ExitStack,
) -> None:
    """Runs the phases of all elements, each in a separate workdir if named, and writes a report.

    Args:
      config: Config of the command.
      phases: Names of the phases to run.
      workdir: Workdir of the command.
      display: Messages and progress for the user.
      pages: Gets a callback for each page that says that a run is going on; it corrects the page.
    """
    whole = dataclasses.replace(config, element=0)
    load = dataset_loader(config.data, display)  # once for all elements
    sweep = Run(whole, workdir, display, load)
    if {"search", "retrain"} & set(phases):
        sweep.check_writers()
    if "search" in phases:
        check_sweep(sweep)

    def prepare(name: str, element: Config) -> Run:
        directory, sweep = workdir, None
        if name:
            directory, sweep = open_workdir(workdir / name, element), (workdir, whole)
            display.message(f"{name}: {directory}")
        watcher = Watcher(directory, display)
        pages.callback(watcher.close)
        run = Run(element, directory, display, load, sweep, watcher)
        _check(run, phases)
        return run

    waiting = list(chosen_elements(config).items())
    while waiting:
        name, element = waiting.pop(0)
        runs = [prepare(name, element)]
        if waiting and "search" in phases:
            most = seeds_at_once(runs[0]) - 1
            same = (dataclasses.replace(each, seed=element.seed) == element for _, each in waiting)
            count = len(list(itertools.takewhile(bool, itertools.islice(same, most))))
            runs += itertools.starmap(prepare, waiting[:count])  # other seeds of the same search
            del waiting[:count]
        if len(runs) > 1:
            search_together(runs, run_search)
        for run in runs:
            for phase in phases:  # a search that has ended is not run again
                PHASES[phase](run)
        if name:
            pages.close()

    from_primary(partial(_write_report, config, workdir, display))
    pages.pop_all()  # the page of a single run was just written


def _write_report(config: Config, workdir: Path, display: Display) -> None:
    """Writes the report of a command, and prints where it is."""
    # Imported late, since plotly is slow to import.
    from drnas_jax.report.page import write_report

    # Elements may end at the same time on several machines, and the last report has them all.
    with waiting_lock(workdir) if config.element else contextlib.nullcontext():
        display.message(f"report: {write_report([workdir])}")


def _check(run: Run, phases: Sequence[str]) -> None:
    """Raises UserError if a later phase cannot run, before the search, which takes long."""
    if {"search", "retrain"} <= set(phases):
        check_retrain(run)
    if "evaluate" in phases:
        tables.open_table(run.config)  # the file may be damaged
        if "retrain" not in phases:
            check_evaluate(run)
    if "export" in phases:
        check_formats(run)
        if "retrain" not in phases:
            check_export(run)


def _end(code: int, message: str) -> int:
    print(printable(message), file=sys.stderr)  # names of files may hold anything
    return code


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX is configured otherwise.

    A program for the CPU is split over the available cores, which affects how its sums are rounded,
    but JAX's cache key does not contain the number of cores. So each number has a separate folder.
    """
    if jax.config.values.get("jax_compilation_cache_dir") is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = root / "drnas_jax" / f"xla-{cores()}"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _command_line(argv: Sequence[str]) -> tuple[Config, list[str], str]:
    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, "directory of the run", flag_values=values)
        flags.DEFINE_list(
            "phases", list(DEFAULT_PHASES), f"phases, of {', '.join(PHASES)}", flag_values=values
        )
        flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0", flag_values=values)
        flags.DEFINE_integer(
            "num_processes", None, "number of processes of this run", 1, flag_values=values
        )
        flags.DEFINE_integer("process_id", None, "number of this process", 0, flag_values=values)
        flags.DEFINE_bool(
            "distributed", False, "let JAX find the processes of this run", flag_values=values
        )
        flags.DEFINE_bool(
            "list_elements",
            False,
            "print number and directory of each run that config.element can select, and stop",
            flag_values=values,
        )

    config, values, rest = parse(argv, define)
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: flags begin with --")
    if not values.workdir:
        raise UserError("no workdir: set --workdir=DIR, a directory for this run's files")
    for phase in values.phases or [""]:
        check_choice("phase", phase, PHASES)
    _check_phases(config, values.phases)
    tables.locate(config)  # so that a missing file is an error before the search
    if values.list_elements:
        for number, name in enumerate(elements(config), start=1):
            print(number, Path(values.workdir) / name)
        raise SystemExit(0)
    hosts.initialize(
        values.coordinator, values.num_processes, values.process_id, values.distributed
    )
    return config, [phase for phase in PHASES if phase in values.phases], values.workdir


def _check_phases(config: Config, phases: Sequence[str]) -> None:
    """Raises UserError if the result of a phase would not be used."""
    for field, value, idle, needed in (
        ("genotype", config.genotype, "search", "retrain,evaluate"),
        ("checkpoint", config.checkpoint, "retrain", "evaluate"),
    ):
        if value and idle in phases:
            raise UserError(
                f"config.{field} is {value!r}, so the result of the {idle} phase would not be "
                f"used: set --phases={needed}"
            )


if __name__ == "__main__":
    sys.exit(main())
