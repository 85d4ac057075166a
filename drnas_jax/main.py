"""Search, retrain and evaluate: `python -m drnas_jax.main --config=FILE --workdir=DIR`."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import flags, logging

from drnas_jax import spaces
from drnas_jax.config import Config
from drnas_jax.errors import UserError, check_choice
from drnas_jax.flags import parse
from drnas_jax.phases.evaluate import evaluate
from drnas_jax.phases.retrain import retrain
from drnas_jax.phases.search.phase import search
from drnas_jax.tables import nasbench201
from drnas_jax.training import hosts
from drnas_jax.training.hosts import from_primary, is_primary
from drnas_jax.training.machine import cores
from drnas_jax.training.metrics import Display
from drnas_jax.training.signals import Interrupted, exit_at_once
from drnas_jax.workdir import of_seed, open_workdir

PHASES: dict[str, Callable] = {"search": search, "retrain": retrain, "evaluate": evaluate}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the phases in order. Each starts from what lies in the workdir.

    Returns:
      0; 2 after a mistake that the user can fix (one line says which); 1 when the processes of a
      run do not find each other, or the system refuses to read or write; 128 + the signal's
      number when a signal ended the run.
    """
    logging.set_verbosity(logging.ERROR)
    try:
        config, phases, given = _command_line(sys.argv if argv is None else argv)
        use_compilation_cache()
        workdir = open_workdir(given, config)
        with exit_at_once(), Display(quiet=not is_primary()) as display:
            _run(config, phases, workdir, display)
    except UserError as error:
        return _end(2, f"error: {error}")
    except ConnectionError as error:
        return _end(1, f"error: {error}")
    except OSError as error:
        return _end(1, f"error: {error}: fix that; the same command goes on from the checkpoint")
    except Interrupted as stop:
        return _end(128 + stop.signum, f"{stop}; the same command goes on from the checkpoint")
    except KeyboardInterrupt:
        return _end(130, "stopped; the same command goes on from the last checkpoint")
    return 0


def _run(config: Config, phases: Sequence[str], workdir: Path, display: Display) -> None:
    """The phases, and a report; several seeds one after the other, each in a workdir of its own."""
    runs = config.of_each_seed()
    workdirs = [of_seed(workdir, run.seed) for run in runs] if len(runs) > 1 else [workdir]
    for run, directory in zip(runs, workdirs, strict=True):
        if len(runs) > 1:
            display.message(f"seed {run.seed}: {directory}")
        for phase in phases:
            PHASES[phase](run, directory, display)

    def write() -> None:
        from drnas_jax.report.page import write_report  # here: plotly takes long to import

        display.message(f"report: {write_report([workdir])}")

    from_primary(write)


def _end(code: int, message: str) -> int:
    print(message, file=sys.stderr)
    return code


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX was told where (or not to).

    A program for the CPU is split over the cores at hand and rounds its sums accordingly, which its
    key there does not tell: so each number of cores has a folder of its own.
    """
    if jax.config.values.get("jax_compilation_cache_dir") is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = root / "drnas_jax" / f"xla-{cores()}"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _command_line(argv: Sequence[str]) -> tuple[Config, list[str], str]:
    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, "directory of the run", flag_values=values)
        flags.DEFINE_list("phases", list(PHASES), "which to run", flag_values=values)
        flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0", flag_values=values)
        flags.DEFINE_integer("num_processes", None, "of this run", 1, flag_values=values)
        flags.DEFINE_integer("process_id", None, "of this process", 0, flag_values=values)
        flags.DEFINE_bool(
            "distributed", False, "let JAX find the processes of this run", flag_values=values
        )

    config, values, rest = parse(argv, define)
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: flags begin with --")
    if not values.workdir:
        raise UserError("no workdir: give --workdir=DIR, a directory for this run's files")
    for phase in values.phases or [""]:
        check_choice("phase", phase, PHASES)
    _check_phases(config, values.phases)
    nasbench201.locate(config.nasbench201.table, config.data.dir)  # now, not after the search
    hosts.initialize(
        values.coordinator, values.num_processes, values.process_id, values.distributed
    )
    return config, [phase for phase in PHASES if phase in values.phases], values.workdir


def _check_phases(config: Config, phases: Sequence[str]) -> None:
    """Raises UserError where a phase would be for nothing, or the retraining bound to fail."""
    if "retrain" in phases:
        spaces.check_retraining(config)
    for field, value, idle, needed in (
        ("genotype", config.genotype, "search", "retrain,evaluate"),
        ("checkpoint", config.checkpoint, "retrain", "evaluate"),
    ):
        if value and idle in phases:
            raise UserError(
                f"config.{field} is {value!r}, so the {idle} phase would be for nothing: give "
                f"--phases={needed}"
            )


if __name__ == "__main__":
    sys.exit(main())
