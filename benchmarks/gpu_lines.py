"""The checks and measurements of check_gpu.py, each of which it runs in a process of its own.

    python benchmarks/gpu_lines.py '["FUNCTION", ARGUMENT, ..., OPTIONS]'

calls one of these functions, and prints a line of JSON: the values it returns, or `error`.
"""

import contextlib
import functools
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import jaxlib
import numpy as np
from absl import flags
from compare import CASES, command, describe

from drnas_jax import data, main, spaces
from drnas_jax.config import DataConfig
from drnas_jax.distributions.dirichlet import sample_dirichlet
from drnas_jax.flags import parse
from drnas_jax.tools import bench
from drnas_jax.training import compiler, devices

# Norm of a difference, divided by the norm of what the step changes. Other kernels on a CPU, which
# only sum in another order, differ by up to 1e-4.
PARITY = 1e-3
# Share of the gradients that may differ by 1 %: of two devices that round differently, one may
# accept a proposed sample that the other one rejects.
DIFFERENT = 1e-4
SIGMAS = 5.0
SMALLEST = {
    **{"data.image_size": "8", "search.channels": "12", "retrain.channels": "4"},
    **{"search.batch_size": "8", "retrain.batch_size": "8", "retrain.auxiliary_weight": "0.0"},
}

Fields = Mapping[str, str]
Options = Mapping[str, Any]  # smallest: bool; cifar, npz: paths or None
Values = dict[str, Any]


def facts(options: Options) -> Values:
    """Returns what the measurements depend on."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = ""
    with contextlib.suppress(OSError):  # other makes of GPU
        driver = subprocess.run(query, capture_output=True, text=True).stdout.partition("\n")[0]
    about = describe("HEAD")
    return {
        **{"platform": jax.default_backend(), "device": jax.devices()[0].device_kind},
        **{"driver": driver, "jax": jax.__version__, "jaxlib": jaxlib.__version__},
        **{"python": sys.version.split()[0], "commit": about["new"], "dirty": about["dirty"]},
        **{name: about[name] for name in ("date", "machine", "cores")},
    }


def parsed(options: Options, words: Sequence[str]) -> tuple[Any, Any, list[str]]:
    """Returns the config, the flags and the other words of a `bench` command."""

    def define(values: flags.FlagValues) -> None:
        for name in ("stage", "steps"):
            flags.DEFINE_integer(name, 1, "", flag_values=values)

    small = [f"--config.{name}={value}" for name, value in SMALLEST.items()]
    cells = 1 if "nasbench201.py" in " ".join(words) else 3  # the DARTS space counts all cells
    small += [f"--config.{phase}.cells={cells}" for phase in ("search", "retrain")]
    return parse(["bench", *words, *(small if options["smallest"] else [])], define)


def program(options: Options, name: str, fields: Fields) -> tuple[Any, Any, int]:
    """Returns a case of compare.py: the function that makes it, its config and its stage."""
    if options["smallest"]:
        compile_quickly()
    words = command("bench", CASES[name], dict(fields), version_0_1=False)
    config, flags, (kind,) = parsed(options, words[1:])
    return getattr(bench, f"{kind}_case"), config, flags.stage


def compile_quickly() -> None:
    """Optimises programs for CPUs less: plain kernels take minutes. GPUs are not affected."""
    compiler.options = functools.partial(compiler.options, once=True)


def compile_step(name: str, fields: Fields, options: Options) -> Values:
    """Compiles the step of a case into the cache."""
    make_case, config, stage = program(options, name, fields)
    case = make_case(config, stage)
    times = [time.perf_counter()]
    lowered = case.program.lower(case.state, *case.arguments)
    times.append(time.perf_counter())
    lowered.compile()
    times.append(time.perf_counter())
    return {"lower_s": round(times[1] - times[0], 1), "compile_s": round(times[2] - times[1], 1)}


def time_step(name: str, fields: Fields, options: Options) -> Values:
    """Times the step of a case, whose program the cache holds already."""
    make_case, config, stage = program(options, name, fields)
    values = bench.bench_program(make_case, config, stage, 2 if options["smallest"] else 8, "")
    values["cache_s"] = values.pop("compile_s")  # so long it took to read the program
    return values


def parity(name: str, fields: Fields, options: Options) -> Values:
    """Takes one step of a case by several kernels and devices, and compares the states after it.

    Returns:
      For each comparison the distance of each part of the state: the norm of the difference divided
      by that of the change in the step, of the array for which this is largest.
    """
    compile_quickly()

    def step(kernels: str, device: Any, start: Any = None, precision: str = "highest") -> Any:
        chosen = {"compute.kernels": kernels, "compute.donate": "False"}
        make_case, config, stage = program({"smallest": False}, name, {**fields, **chosen})
        mesh = devices.make_mesh([device])
        with jax.default_device(device), jax.default_matmul_precision(precision):
            case = make_case(config, stage, mesh)
            state = case.state if start is None else devices.replicate(start, mesh)
            raw, *batches = case.arguments
            first = jax.tree.map(lambda rows: rows[:1], batches)  # of the steps of a dispatch
            return jax.tree.map(np.asarray, (state, case.program(state, raw, *first)))

    def distances(found: Any, expected: Any) -> Values:
        arrays: dict[str, list[tuple[float, float]]] = {}
        for (path, before), *after in zip(
            jax.tree.leaves_with_path(start), *map(jax.tree.leaves, (found, expected)), strict=True
        ):
            a, b = (np.float64(each) for each in after)
            if not np.isfinite(a).all():
                raise ValueError(f"{jax.tree_util.keystr(path)} is not finite")
            norms = float(np.linalg.norm(a - b)), float(np.linalg.norm(b - before))
            arrays.setdefault(path[0].name, []).append(norms)
        # Some arrays hardly change: a bias before a BatchNorm has no gradient but rounding.
        least = {part: 1e-3 * max(c for _, c in norms) or 1.0 for part, norms in arrays.items()}
        return {
            part: float(f"{max(d / max(change, least[part]) for d, change in norms):.2g}")
            for part, norms in arrays.items()
        }

    gpu, cpu = jax.devices()[0], jax.devices("cpu")[0]
    start, on_cpu = step("plain", cpu)
    plain, fast = (step(kernels, gpu, start)[1] for kernels in ("plain", "gpu"))
    values: Values = {"kernels": distances(fast, plain), "devices": distances(plain, on_cpu)}
    values["default_precision"] = distances(step("gpu", gpu, start, "default")[1], fast)
    for what in ("kernels", "devices"):
        if wrong := {field: d for field, d in values[what].items() if d > PARITY}:
            values["error"] = f"distances of {what} above {PARITY}: {wrong}"
    return values


def dirichlet(sampler: str, options: Options) -> Values:
    """Compares a million gradients of Dirichlet samples with the CPU's, and with the exact mean."""
    cell = spaces.create("nasbench201").cells["cell"]
    shape = (1_000 if options["smallest"] else 33_334, *cell.shape)
    random = np.random.default_rng(0)
    concentration = np.exp(random.uniform(np.log(0.05), np.log(4), shape)).astype(np.float32)
    cotangent = random.normal(size=shape).astype(np.float32)

    def gradient(concentration: Any, cotangent: Any, key: Any) -> Any:
        pull = jax.vjp(lambda c: sample_dirichlet(c, cell, key, sampler), concentration)[1]
        return pull(cotangent)[0]

    def on(device: Any) -> Any:
        with jax.default_device(device):
            keys = jax.random.split(jax.random.key(1), len(concentration))
            return np.float64(jax.jit(jax.vmap(gradient))(concentration, cotangent, keys))

    found, expected = on(jax.devices()[0]), on(jax.devices("cpu")[0])
    distance = np.abs(found - expected) / (np.abs(found) + np.abs(expected) + 1e-3)
    # A sample's mean is c / sum(c): this is the gradient of the cotangent's product with it.
    c, v = np.float64(concentration), np.float64(cotangent)
    total = c.sum(-1, keepdims=True)
    exact = (v - (v * c).sum(-1, keepdims=True) / total) / total
    # Of every row the excess in the exact direction; rows of small c, which vary most, count less.
    excess = (np.nan_to_num(found - exact) * exact * total**2).sum(-1).ravel()
    scale = (exact**2 * total**2).sum(-1).mean()
    bias, sigma = excess.mean() / scale, excess.std() / len(excess) ** 0.5 / scale
    values: Values = {
        "gradients": found.size,
        "not_finite": int(np.sum(~np.isfinite(found))),
        "differ": float(np.mean(~(distance < 0.005))),  # by 1 %
        "median": float(f"{np.median(distance):.2g}"),
        "bias": round(float(bias), 5),  # of the mean gradient, as a share of the exact one
        "bias_sigma": round(float(sigma), 5),
    }
    if not (values["differ"] <= DIFFERENT and abs(bias) <= SIGMAS * sigma):
        values["error"] = f"expected differ <= {DIFFERENT} and a bias within {SIGMAS} sigmas"
    return values


def bench_input(words: Sequence[str], options: Options) -> Values:
    """Measures the input of the config that the words of a command give."""
    return bench.bench_input(parsed(options, words)[0], 4 if options["smallest"] else 32)


def bench_jpegs(options: Options) -> Values:
    """Measures the input of ImageNet's config from JPEG files of 130 KB, which it makes."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(64 if options["smallest"] else 512):
            noise = random.integers(256, size=(96, 128, 3), dtype=np.uint8)
            file = Path(folder, "train", "ab"[number % 2], f"{number}.jpg")
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), cv2.resize(noise, (500, 375), interpolation=cv2.INTER_CUBIC))
        fields = {"data.name": "folder", "data.dir": folder, "search.batch_size": "128"}
        words = [f"--config.{name}={value}" for name, value in fields.items()]
        return bench_input(["--config=configs/imagenet.py", *words], options)


def search(options: Options) -> Values:
    """Runs a whole search on CIFAR-10 at 12x12 pixels."""
    if not (options["npz"] or options["cifar"]):
        return {"skipped": "needs CIFAR-10: give --cifar=DIR or --npz=FILE"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(options["npz"] or f"{folder}/cifar10.npz")
        if options["cifar"]:
            write_npz(options["cifar"], file)
        fields = {"data.name": "npz", "data.dir": str(file)}
        if options["smallest"]:
            fields |= {"search.epochs": "(2,)", "search.warmup_epochs": "(1,)", "search.cells": "1"}
            fields |= {"search.train_fraction": "0.01", "search.alpha_fraction": "0.01"}
        words = [f"--config.{name}={value}" for name, value in fields.items()]
        words += [
            "--config=configs/nasbench201.py:cpu",
            "--phases=search",
            f"--workdir={folder}/run",
        ]
        began = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()) as log:
            code = main.main(["main", *words])
        if code:
            return {"error": log.getvalue().strip().rpartition("\n")[2][:400]}
        lines = Path(folder, "run", "search", "history.jsonl").read_text().splitlines()
        history = [json.loads(line) for line in lines]
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "images_per_s": [round(each["images_per_second"]) for each in history],
        "valid_accuracy": history[-1]["valid_accuracy"],
        "genotype": history[-1]["genotype"],
    }


def write_npz(directory: str, file: Path) -> None:
    """Writes the images of a CIFAR-10, resized to 12x12 pixels: about 20 MB."""
    found = data.load(DataConfig(name="cifar10", dir=directory, image_size=12))
    train, test = found.arrays("train"), found.arrays("test")
    arrays = dict(x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1])
    with file.open("wb") as opened:  # np.savez would change a name that does not end in .npz
        np.savez_compressed(opened, **arrays)


def run(text: str) -> Values:
    """Calls the function that a JSON list names."""
    function, *arguments = json.loads(text)
    try:
        return globals()[function](*arguments)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}


if __name__ == "__main__":
    print("\n" + json.dumps(run(sys.argv[1])))
