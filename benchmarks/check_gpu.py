"""Checks and measures this tree on one GPU, in ten minutes at most.

    python benchmarks/check_gpu.py [--seconds=600] [--only=NAME,...] [--cifar=DIR] [--npz=FILE]

Prints one JSON line for each check or measurement, and appends it to runs/check_gpu.jsonl (or
`--out`). A line has the key `error` if it failed, and `skipped` if there was no time or no data for
it. The exit code is 0 if all lines that compare values (parity-*, dirichlet-*) passed.

There are three rounds. In each, processes first compile the programs side by side, and the lines
that time no step run beside them. Then the other lines are measured one at a time.

- facts: GPU, driver, versions, commit.
- parity-*: one step by the GPU's kernels, compared with plain kernels on the GPU and on the CPU.
- dirichlet-*: gradients of samples, compared with those of the CPU and with their exact mean.
- a, b, b2, c, d, r: steps of these cases of docs/benchmarks.md, some also with plain kernels, in
  bfloat16 or for 4 seeds at once (`images_per_s` is that of all of them). `compile_s` was measured
  beside other compilations, so it is an upper bound.
- input, input-stream: images per second of the augmentation, and of decoding JPEG files.
- search: the search of configs/nasbench201.py:cpu on CIFAR-10 at 12x12 pixels, beside the
  compilation of b. These images are the file of `--npz`, which is written first if `--cifar` names
  a CIFAR-10 (any that `data.dir` may name).

`--smallest` runs everything at the smallest size and on any platform, to try the script itself.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

from compare import ROOT

# This process does not import jax, which would take the GPU's memory.
SECONDS = 600  # for all lines; with more, each line has proportionally more
SCRIPT = Path(__file__).with_name("gpu_lines.py")
TINY = {
    **{"data.image_size": "16", "search.channels": "12", "search.cells": "1"},
    **{"search.batch_size": "16", "retrain.batch_size": "16", "retrain.channels": "16"},
    **{"retrain.cells": "3", "retrain.auxiliary_weight": "0.0"},
}
BFLOAT16, PLAIN = {"compute.dtype": "bfloat16"}, {"compute.kernels": "plain"}
BATCH = {"retrain.batch_size": "64"}  # compare.py has half of it, for CPUs
DIGITS = [
    "--config=configs/nasbench201.py",
    *("--config.data.name=digits", "--config.data.image_size=32"),
]
HANG = "the gradient hangs, see JAX issues 21352 and 27349"

Values = dict[str, Any]
Fields = Mapping[str, str]


class Line(NamedTuple):
    """One line of the results.

    Attributes:
      seconds: Time limit in a run of SECONDS. The line is skipped if less time is left.
      call: Name of the function of gpu_lines.py that returns the values, and its arguments.
      timed: Whether the line is measured alone, rather than beside compilations.
      compile_s: Time limit of `compile_step`, which compiles its program beforehand with the same
        arguments; 0 if there is nothing to compile.
      late: Error to report if the time limit is exceeded; '' if that only skips the line.
    """

    seconds: float
    call: tuple[Any, ...]
    timed: bool = True
    compile_s: float = 0
    late: str = ""


def step(case: str, *changes: Fields, compile_s: float = 120) -> Line:
    """Returns the line that times a case of compare.py with changed fields."""
    fields = {name: value for each in changes for name, value in each.items()}
    return Line(60, ("time_step", case, fields), compile_s=compile_s)


# Large programs, which compile for minutes, come last.
ROUNDS: tuple[dict[str, Line], ...] = (
    {"facts": Line(60, ("facts",), timed=False)},
    {
        "parity-darts": Line(200, ("parity", "a", TINY), timed=False),
        "parity-nasbench201": Line(200, ("parity", "c", TINY), timed=False),
        "parity-retrain": Line(200, ("parity", "r", TINY), timed=False),
        "dirichlet-tfp": Line(120, ("dirichlet", "tfp"), timed=False, late=HANG),
        "dirichlet-jax": Line(120, ("dirichlet", "jax"), timed=False, late=HANG),
        "c": step("c"),
        "c-plain": step("c", PLAIN),
        "d": step("d"),
        "d-plain": step("d", PLAIN),
        "r": step("r", BATCH),
        "r-plain": step("r", BATCH, PLAIN),
        "a": step("a"),
        "c-bfloat16": step("c", BFLOAT16),
        "c-4-seeds": step("c", {"seeds": "4"}),
        "r-bfloat16": step("r", BATCH, BFLOAT16),
        "input": Line(40, ("bench_input", DIGITS)),
        "input-stream": Line(60, ("bench_jpegs",)),
    },
    {
        "search": Line(200, ("search",), timed=False),
        "b": step("b", compile_s=200),
        "b2": step("b2", compile_s=200),
    },
)
NAMES = [name for lines in ROUNDS for name in lines]
RUNNING: set[subprocess.Popen[str]] = set()


def run(call: Sequence[Any], seconds: float, cache: str, alone: bool) -> Values:
    """Calls a function of gpu_lines.py in a process and returns its values.

    Args:
      call: Name of the function, and its arguments.
      seconds: Time limit.
      cache: Folder of compiled programs.
      alone: Whether no other process uses the GPU, so that this one may take all its memory.

    Raises:
      subprocess.TimeoutExpired: The time limit was exceeded.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": f"{platforms},cpu" if platforms and "cpu" not in platforms else platforms,
        "PYTHONPATH": str(ROOT),
        "XLA_PYTHON_CLIENT_PREALLOCATE": str(alone).lower(),
    }
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), json.dumps(call)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    RUNNING.add(process)
    with process:
        try:
            printed, log = process.communicate(timeout=seconds)
        finally:
            kill(process)
    if process.returncode == 0:
        return json.loads(printed.splitlines()[-1])
    last = (log.strip() or "nothing was printed").splitlines()[-1]
    return {"error": f"exit code {process.returncode}: {last[:300]}"}


def kill(process: subprocess.Popen[str]) -> None:
    """Ends a process and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    RUNNING.discard(process)


def check(
    options: argparse.Namespace, attempt: Callable[[Sequence[Any], float, bool], Values]
) -> Iterator[tuple[str, Values]]:
    """Yields the name and the values of each line, in order.

    Args:
      options: Options of the command line.
      attempt: Function that makes a call in a process: (call, time limit, whether nothing else
        runs) -> values. It raises `subprocess.TimeoutExpired` if the limit is exceeded.
    """
    deadline = time.monotonic() + options.seconds
    scale = max(options.seconds / SECONDS, 1.0)

    def limited(line: Line, compiling: bool) -> Values:
        left = max(deadline - time.monotonic(), 0.0)
        function, *arguments = line.call
        limit = scale * (line.compile_s if compiling else line.seconds)
        limit = min(limit, left) if compiling else limit
        if not 0 < limit <= left:
            return {
                "skipped": f"needs up to {limit:.0f} s, and {left:.0f} s are left: raise --seconds"
            }
        try:
            call = ["compile_step" if compiling else function, *arguments]
            return attempt(call, limit, line.timed and not compiling)
        except subprocess.TimeoutExpired:
            what = "the program was not compiled" if compiling else line.late or "it was not done"
            return {
                "error" if line.late else "skipped": f"{what} after {limit:.0f} s: raise --seconds"
            }

    for lines in ROUNDS:
        chosen = {name: line for name, line in lines.items() if name in options.only}
        jobs: dict[str, Future[Values]] = {}
        with ThreadPoolExecutor(options.processes) as pool:
            try:
                for name, line in chosen.items():
                    if line.compile_s or not line.timed:
                        jobs[name] = pool.submit(limited, line, bool(line.compile_s))
                for name, line in chosen.items():
                    if line.timed:
                        wait(jobs.values())
                    values = jobs[name].result() if name in jobs else {}
                    if line.timed and not is_bad(values):
                        values |= limited(line, False)
                    yield name, values
            except BaseException:  # such as an interrupt: the pool waits for its processes
                pool.shutdown(wait=False, cancel_futures=True)
                for process in tuple(RUNNING):
                    kill(process)
                raise


def is_bad(values: Values) -> bool:
    """Returns whether a line failed or was skipped."""
    return bool({"error", "skipped"} & values.keys())


def main(options: argparse.Namespace) -> int:
    """Prints the lines; returns the exit code."""
    given = {"smallest": options.smallest, "cifar": options.cifar, "npz": options.npz}
    code, began = 0, time.monotonic()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:

        def attempt(call: Sequence[Any], seconds: float, alone: bool) -> Values:
            return run([*call, given], seconds, cache, alone)

        with contextlib.closing(check(options, attempt)) as lines:
            for name, values in lines:
                line = {"line": name, "at_s": round(time.monotonic() - began)} | values
                print(json.dumps(line), flush=True)
                with options.out.open("a") as file:
                    print(json.dumps(line), file=file)
                if name.startswith(("parity", "dirichlet")) and is_bad(values):
                    code = 1
                if name == "facts" and values.get("platform") != "gpu" and not options.smallest:
                    print(
                        "error: JAX finds no GPU (see the line above): install JAX for it, as "
                        "README.md says, or give --smallest to try the script",
                        file=sys.stderr,
                    )
                    return 2
    return code


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the options of the command line; `only` always has the line of facts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add, names = parser.add_argument, ", ".join(NAMES)
    add("--seconds", type=float, default=SECONDS, help=f"time for all lines; default: {SECONDS}")
    add("--only", type=lambda text: text.split(","), default=NAMES, help=f"some of {names}")
    add("--cifar", help="CIFAR-10, a folder or an archive that data.dir may name")
    add("--npz", help="its images at 12x12 pixels; written first if --cifar is given")
    add("--out", type=Path, default=Path("runs/check_gpu.jsonl"), help="file for the lines")
    add(
        "--processes",
        type=int,
        default=min(os.cpu_count() or 1, 12),
        help="number of compilations at once; fewer need less of the GPU's memory",
    )
    add("--smallest", action="store_true", help="smallest sizes, on any platform")
    options = parser.parse_args(argv)
    if unknown := set(options.only) - set(NAMES):
        parser.error(f"unknown line {min(unknown)!r}: choose among {names}")
    options.only = ["facts", *options.only]
    return options


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no process is left
    try:
        sys.exit(main(parse()))
    except KeyboardInterrupt:
        sys.exit(130)
