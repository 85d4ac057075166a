"""Compares the times and the memory of this tree with those of another commit, as ratios.

    python benchmarks/compare.py COMMIT [CASE ...] [--metrics=NAME,...] [--repeats=3] [--json=FILE]

Both trees run in turn on this machine (in each pair the other one is first), each measurement in a
new process with the same environment and an empty compilation cache. Prints a JSON line after each
measurement, which `--json` also appends to a file, and at the end a Markdown table. Do not change
this tree meanwhile. Fields of the config may be given for all cases: `--config.search.channels=4`.

The cases are those of docs/benchmarks.md (`b2` is stage 2 of b) and `demo`. The metrics are:

- compile_s, step_s, memory_mb: lowering and compilation, a warm step, and the peak memory.
- first_epoch_s, two_epochs_s: from the start of the process to the end of the first (alpha is
  frozen) and the second epoch of a search, 2 steps each, on handwritten digits of 32x32 pixels.
- demo_s: the command of `make demo`, without the installation.
"""

import argparse
import datetime
import importlib.metadata
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
METRICS = {  # by kind of process
    "bench": ("compile_s", "step_s", "memory_mb"),
    "epochs": ("first_epoch_s", "two_epochs_s"),
    "demo": ("demo_s",),
}
ALL_METRICS = [metric for metrics in METRICS.values() for metric in metrics]


class Case(NamedTuple):
    """A config file with changed fields, and the arguments of each kind of process."""

    config: str
    fields: Mapping[str, str]
    kinds: Mapping[str, Sequence[str]]


_A = {"search.channels": "16", "search.cells": "8", "search.partial_channels": "(4,2)"}
_R = {"genotype": "drnas_cifar10", "retrain.batch_size": "32"}
CASES = {  # "epochs": K and the number of operations in the only stage
    "a": Case("cifar10.py", _A, {"bench": ("step", "--steps=4"), "epochs": ("4", "7")}),
    "b": Case("cifar10.py", {}, {"bench": ("step", "--steps=3"), "epochs": ("6", "7")}),
    "b2": Case("cifar10.py", {}, {"bench": ("step", "--stage=2", "--steps=3")}),
    "c": Case("nasbench201.py:plain", {}, {"bench": ("step", "--steps=4"), "epochs": ("1", "5")}),
    "d": Case("nasbench201.py", {}, {"bench": ("step", "--steps=6"), "epochs": ("4", "5")}),
    "r": Case("cifar10.py", _R, {"bench": ("retrain", "--steps=4")}),
    "demo": Case("digits.py", {}, {"demo": ()}),
}
# 128 of the 1,438 training images for the weights and as many for alpha: two batches of 64 each.
_EPOCHS = {
    "data.name": "digits",
    "data.image_size": "32",
    "search.train_fraction": "0.089",
    "search.alpha_fraction": "0.089",
    "search.epochs": "(2,)",
    "search.warmup_epochs": "(1,)",
}
# What version 0.1 called otherwise.
NAMES_0_1 = {"drnas_jax.tools.bench": "drnas_jax.bench", "space_options.stem": "stem"}


class MeasurementError(Exception):
    """A process ended without a result."""


def command(kind: str, case: Case, extra: dict[str, str], version_0_1: bool) -> list[str]:
    """Returns the module and the arguments of a kind of process, without the workdir."""
    module = "drnas_jax.tools.bench" if kind == "bench" else "drnas_jax.main"
    fields, words = dict(case.fields), list(case.kinds[kind])
    if kind == "epochs":
        stage = dict(zip(("search.partial_channels", "search.operations"), words, strict=True))
        fields |= _EPOCHS | {name: f"({value},)" for name, value in stage.items()}
        words = ["--phases=search"]
    names = NAMES_0_1 if version_0_1 else {}
    flags = [f"--config.{names.get(name, name)}={v}" for name, v in (fields | extra).items()]
    return [names.get(module, module), *words, f"--config=configs/{case.config}", *flags]


def measure(words: Sequence[str], tree: Path, epochs: int) -> list[float]:
    """Runs `python -m WORDS` with the package of a tree and an empty compilation cache.

    Returns:
      Seconds until each of the first `epochs` of a search ended, after which it is killed. If
      `epochs` is 0: seconds to the end of the process, or the values of the benchmark if it is one.

    Raises:
      MeasurementError: The process ended without a result; the message has its last line.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        workdir, cache, printed, log = (Path(name, each) for each in ("run", "cache", "out", "log"))
        history = workdir / "search" / "history.jsonl"
        changed = {"PYTHONPATH": f"{tree}", "JAX_COMPILATION_CACHE_DIR": f"{cache}", "TMPDIR": name}
        is_bench = words[0].endswith("bench")
        argv = [sys.executable, "-m", *words, *([] if is_bench else [f"--workdir={workdir}"])]
        ends: list[float] = []
        with printed.open("w") as out, log.open("w") as err:
            began, env = time.perf_counter(), os.environ | changed
            process = subprocess.Popen(argv, cwd=tree, env=env, stdout=out, stderr=err)
            running = True
            try:
                while running and (not epochs or len(ends) < epochs):
                    time.sleep(0.02)
                    running = process.poll() is None
                    lines = history.read_bytes().count(b"\n") if epochs and history.exists() else 0
                    ends += [time.perf_counter() - began] * (min(lines, epochs) - len(ends))
                if not epochs and process.returncode == 0:
                    ends = [time.perf_counter() - began]
            finally:
                process.kill()
                process.wait()
        if len(ends) < max(epochs, 1):
            text = log.read_text(errors="replace").strip() or "nothing was printed"
            raise MeasurementError(f"exit code {process.returncode}: {text.splitlines()[-1][:300]}")
        if is_bench:
            result = json.loads(printed.read_text().splitlines()[-1])
            compiling = result["lower_s"] + result["compile_s"]
            return [compiling, result["step_s"], result["peak_memory_mb"]]
    return ends


def table(facts: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns the medians as a Markdown table.

    Ratios are of the two measurements of a pair, since the speed of a machine changes with time.

    Args:
      facts: What `describe` returns.
      lines: Measurements: case, pair (its number), tree ('old' or 'new') and metrics of each.
    """
    values: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for line in lines:
        for metric in set(line) & set(ALL_METRICS):
            by_pair = values.setdefault((line["case"], metric), {})
            by_pair.setdefault(line["pair"], {})[line["tree"]] = line[metric]
    text = "{machine}, {cores} cores, jax {jax}, {date}; old: {old}, new: {new}".format(**facts)
    rows = [text + " with changes" * facts["dirty"], ""]
    rows += ["| case | metric | old | new | new/old | from, to | pairs |", f"|{'---|' * 7}"]
    for key in itertools.product(CASES, ALL_METRICS):
        pairs = [each for each in values.get(key, {}).values() if len(each) == 2]
        if pairs:
            old, new = (statistics.median(each[tree] for each in pairs) for tree in ("old", "new"))
            ratios = [each["new"] / each["old"] for each in pairs]
            spread = f"{statistics.median(ratios):.2f} | {min(ratios):.2f}, {max(ratios):.2f}"
            rows.append(f"| {' | '.join(key)} | {old:.4g} | {new:.4g} | {spread} | {len(pairs)} |")
    return "\n".join(rows)


def describe(commit: str) -> dict[str, Any]:
    """Returns the machine, the date and both commits."""
    return {
        "machine": re.findall(r"model name\s*: (.*)|$", Path("/proc/cpuinfo").read_text())[0],
        "cores": len(os.sched_getaffinity(0)),
        "jax": importlib.metadata.version("jax"),
        "date": datetime.date.today().isoformat(),
        "old": _git("rev-parse", "--short", "--verify", f"{commit}^{{commit}}"),
        "new": _git("rev-parse", "--short", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "drnas_jax", "configs")),
    }


def _git(*words: str) -> str:
    ended = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"git {words[0]}: {ended.stderr.strip()}")
    return ended.stdout.strip()


def plan(options: argparse.Namespace) -> Iterator[tuple[str, str, int, str]]:
    """Yields the case, the kind, the number of the pair and the tree of each measurement."""
    for case in options.cases or CASES:
        for kind in CASES[case].kinds:
            for pair in range(options.repeats if {*METRICS[kind]} & {*options.metrics} else 0):
                for tree in ("new", "old") if pair % 2 else ("old", "new"):
                    yield case, kind, pair, tree


def main(options: argparse.Namespace, extra: dict[str, str]) -> int:
    """Measures and prints; returns the exit code, which is 1 if a measurement failed."""
    facts, lines, code = describe(options.commit), [], 0
    epochs = 2 if "two_epochs_s" in options.metrics else 1

    def report(line: Mapping[str, Any]) -> None:
        print(json.dumps(line), flush=True)
        with open(options.json or os.devnull, "a") as file:
            print(json.dumps(line), file=file)

    report(facts)
    try:
        with tempfile.TemporaryDirectory() as folder:
            trees = {"old": Path(folder) / "tree", "new": ROOT}
            _git("worktree", "add", "--detach", str(trees["old"]), facts["old"])
            for path in trees.values():  # so that the first process does not do it
                subprocess.run([sys.executable, "-m", "compileall", "-q", path / "drnas_jax"])
            for case, kind, pair, tree in plan(options):
                line: dict[str, Any] = {"case": case, "pair": pair, "tree": tree}
                version_0_1 = (trees[tree] / "drnas_jax" / "bench.py").exists()
                words = command(kind, CASES[case], extra, version_0_1)
                try:
                    values = measure(words, trees[tree], epochs if kind == "epochs" else 0)
                    line |= {
                        name: round(v, 4) for name, v in zip(METRICS[kind], values, strict=False)
                    }
                except MeasurementError as error:
                    line, code = line | {"error": f"{kind}: {error}"}, 1
                lines.append(line)
                report(line)
    except KeyboardInterrupt:
        code = 130
    finally:
        _git("worktree", "prune")
    print("\n" + table(facts, lines))
    return code


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Returns the options and the fields of the config."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit")
    parser.add_argument("cases", nargs="*", help=", ".join(CASES))
    parser.add_argument("--metrics", type=lambda text: text.split(","), default=ALL_METRICS)
    parser.add_argument("--repeats", type=int, default=3, help="number of pairs")
    parser.add_argument("--json", help="file to which the lines are appended")
    field = re.compile(r"--config\.([^=]+)=(.*)")
    options = parser.parse_intermixed_args([word for word in argv if not field.fullmatch(word)])
    for given, known in ((options.cases, CASES), (options.metrics, ALL_METRICS)):
        if unknown := set(given) - set(known):
            parser.error(f"unknown name {min(unknown)!r}: choose among {', '.join(known)}")
    return options, {match[1]: match[2] for match in map(field.fullmatch, argv) if match}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the checkout is removed
    sys.exit(main(*parse(sys.argv[1:])))
