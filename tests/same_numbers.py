"""Compares the numbers of this tree with those of another commit, bit for bit or up to rounding.

    python tests/same_numbers.py COMMIT [CASE ...] [--tolerance=0]

Both trees run the same commands on this machine, each in a fresh workdir. Compared are the lines
of search/history.jsonl and retrain/history.jsonl without times, and the cells of genotype.json.
Fields that only the new tree writes are ignored. Two numbers x and y are the same if
|x - y| <= tolerance * max(1, |x|); all else must be equal. Prints the largest such difference in
each line (`inf`: a cell or a number of lines differs) and exits with 1 if any case differs.

The case `cifar10` needs the TFDS data in shared/tfds beside the checkout and is skipped without it.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TFDS = ROOT.parent / "shared" / "tfds"

# Three steps in each of two stages, then three steps of retraining, on scikit-learn's digits.
SHORT = (
    "--config=configs/digits.py:smoke",
    "--config.search.channels=8",
    "--config.search.batch_size=232",
    "--config.search.epochs=(1,1)",
    "--config.retrain.batch_size=472",
    "--config.retrain.epochs=1",
)
DARTS = (
    "--config.space=darts",
    "--config.search.cells=3",
    "--config.search.operations=(7,4)",
    "--config.retrain.cells=3",
)
CASES = {
    "digits": ("--config=configs/digits.py:smoke",),
    "nasbench201": ("--config=configs/nasbench201.py:smoke",),
    "cifar10": ("--config=configs/cifar10.py:smoke", f"--config.data.dir={TFDS}"),
    "plain": (*SHORT, "--config.compute.kernels=plain"),
    "plain_darts": (*SHORT, *DARTS, "--config.compute.kernels=plain"),
    "gpu": (*SHORT, "--config.compute.kernels=gpu"),
    "gpu_darts": (*SHORT, *DARTS, "--config.compute.kernels=gpu"),
    "cpu_darts": (*SHORT, *DARTS),
    "devices": SHORT,
    "streamed": (*SHORT, "--config.data.memory_limit_mb=0", "--config.data.workers=1"),
    "candidates": (
        *SHORT,
        "--config.search.selection=sample",
        "--config.search.selection_options.candidates=4",
        "--config.search.selection_options.batches=1",
    ),
}
# The flags of version 0.1, if they were others.
CASES_0_1 = {
    "candidates": (*SHORT, "--config.search.candidates=4", "--config.search.candidate_batches=1"),
}
TIMES = ("images_per_second",)


def run(tree: Path, case: str, workdir: Path) -> None:
    """Runs the command of a case with the package of a tree."""
    devices = 8 if case == "devices" else 1
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(tree),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    old = (tree / "configs" / "base.py").exists()
    flags = CASES_0_1.get(case, CASES[case]) if old else CASES[case]
    command = [sys.executable, "-m", "drnas_jax.main", *flags, f"--workdir={workdir}"]
    ended = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{case} failed in {tree}:\n{ended.stderr[-3000:]}")


def numbers(workdir: Path) -> dict[str, list]:
    """What is compared: the lines of both histories, and the cells that were found."""
    found: dict[str, list] = {}
    for phase in ("search", "retrain"):
        lines = (workdir / phase / "history.jsonl").read_text().splitlines()
        found[phase] = [json.loads(line) for line in lines]
    found["cells"] = [json.loads((workdir / "search" / "genotype.json").read_text())["cells"]]
    return found


def distance(old: Any, new: Any) -> float:
    """The relative difference of two numbers, the largest one of two lists or dicts.

    Infinite if anything but a number differs. Below 1 differences are absolute.
    """
    if isinstance(old, int | float) and isinstance(new, int | float):
        return 0.0 if old == new else abs(old - new) / max(1.0, abs(old))
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() <= new.keys():
        return max((distance(old[key], new[key]) for key in old), default=0.0)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return max(map(distance, old, new), default=0.0)
    return 0.0 if old == new else float("inf")


def differences(old: dict[str, list], new: dict[str, list]) -> dict[str, list[float]]:
    """The largest difference of each line, by the names of the files' phases."""
    result = {}
    for kind, lines in old.items():
        short = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
        result[kind] = [float("inf")] * (len(lines) != len(new[kind]))
        result[kind] += map(distance, short, new[kind])
    return result


def main(commit: str, cases: list[str], tolerance: float) -> int:
    """Runs the cases (all of them by default) and returns the exit code."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        git = ["git", "-C", str(ROOT)]
        subprocess.run([*git, "worktree", "prune"], check=True)
        tree = Path(folder) / "tree"
        subprocess.run([*git, "worktree", "add", "-q", "--detach", tree, commit], check=True)
        # A folder of results for each commit, so that comparing again runs only this tree.
        name = subprocess.run([*git, "rev-parse", commit], capture_output=True, text=True).stdout
        cache = os.environ.get("SAME_NUMBERS_CACHE")
        before = Path(cache, name.strip()) if cache else Path(folder) / "before"
        try:
            for case in cases or CASES:
                if case == "cifar10" and not TFDS.is_dir():
                    print(f"{case}: skipped, there is no {TFDS}", flush=True)
                    continue
                if not (before / case / "result.json").exists():
                    run(tree, case, before / case)
                run(ROOT, case, Path(folder) / case)
                found = differences(numbers(before / case), numbers(Path(folder) / case))
                same = max(itertools.chain(*found.values())) <= tolerance
                failed += not same
                text = {kind: ", ".join(f"{far:.1g}" for far in found[kind]) for kind in found}
                print(f"{case}: {'the same' if same else 'different'}", text, flush=True)
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", tree], check=True)
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit")
    parser.add_argument("cases", nargs="*", help=", ".join(CASES))
    parser.add_argument("--tolerance", type=float, default=0.0)
    options = parser.parse_intermixed_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"unknown case {min(unknown)!r}: choose among {', '.join(CASES)}")
    sys.exit(main(options.commit, options.cases, options.tolerance))
