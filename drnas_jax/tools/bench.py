"""Benchmarks: `python -m drnas_jax.tools.bench NAME --config=FILE [--steps=N]`.

Prints one JSON line for each benchmark. `step` (the search step of `--stage=I`) and `retrain` run
on synthetic data, and `input` on the data of the config; `all` stands for these three. `step` with
`--config.seeds=N` measures the program of N seeds at once. `operations`
measures the layers that a final network of the config's space can have, and writes them to a table
for the cost `table` (docs/budget.md); `latency` compares such a table with whole networks. With
`--compare=plain` the steps of the config's kernels and of other ones alternate, and both are timed.

Times are wall-clock seconds; `step_s` is the median of the warm steps. `kernels` is the number of
instructions of the compiled program. `gflop` and `gbyte` are the work of the plain program,
whichever kernels run: the operations of its convolutions and matrix products (two for a
multiply-add), and the bytes that these and its pools read and write. A step does this work at
`gflop_per_s` and `gbyte_per_s`. For comparison, `matmul_gflop_per_s` and `copy_gbyte_per_s` are
what the devices reach in matrix products and in copies.
"""

import dataclasses
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from jax.sharding import Mesh

from drnas_jax import data, spaces
from drnas_jax.config import Config
from drnas_jax.data import Dataset
from drnas_jax.errors import UserError, check_choice
from drnas_jax.flags import parse
from drnas_jax.nn import backend
from drnas_jax.nn.counting import count_work
from drnas_jax.phases.retrain.retraining import Retraining, choose_genotype
from drnas_jax.phases.search.experiment import Experiment, state_at
from drnas_jax.tools.bench_input import bench_input
from drnas_jax.tools.bench_operations import compare_networks, measure_operations
from drnas_jax.tools.compiled_text import count_kernels
from drnas_jax.training import devices

# Shape [h, w, c] and number of classes of synthetic images, by data set.
_SHAPES = {"imagenet2012": ((224, 224, 3), 1000), "digits": ((8, 8, 1), 10)}


class Case(NamedTuple):
    """A program to be timed, with its arguments.

    Attributes:
      program: Jitted function (state, *arguments) -> state.
      state: State at the start.
      arguments: Other arguments of the program.
      steps: Number of steps in one call (accelerators run several steps in one dispatch).
      images: Number of images in the batch of a step, of all seeds together.
      plain: Function that makes the program of the plain kernels, which has the same arguments.
    """

    program: Any
    state: Any
    arguments: tuple[Any, ...]
    steps: int
    images: int
    plain: Callable[[], Any]


def step_case(config: Config, stage: int, mesh: Mesh | None = None) -> Case:
    """Returns the search step of a stage, which updates alpha and then the weights.

    With several seeds (`config.seeds`) it is the program that takes the step of all of them.

    Args:
      config: Config of the run.
      stage: Number of the stage, from 1; later ones are pruned by the initial alpha.
      mesh: Device mesh with the single axis `data`; None for that of all devices.

    Raises:
      UserError: There is no such stage, or the search cannot begin.
    """
    stages = config.search.stages
    if not 1 <= stage <= len(stages):
        raise UserError(f"--stage is {stage}: expected 1 to {len(stages)}, a stage of the config")
    # The config's fractions of the few synthetic images could be empty, so both get half of them.
    # Without a warm-up, the first epoch of each stage trains alpha.
    search = dataclasses.replace(
        config.search,
        train_fraction=0.5,
        alpha_fraction=0.0,
        split_by_class=False,
        warmup_epochs=(0,) * len(stages),
    )
    config = dataclasses.replace(config, search=search)
    dataset = synthetic(config, config.search.batch_size)
    experiment = Experiment(config, dataset, mesh or devices.make_mesh())
    experiment.check()
    spec, start = state_at(experiment, stage)
    loader, seeds = experiment.loader, config.seeds
    program = experiment.step_program(spec, seeds=seeds)
    steps, dispatch = next(loader.training(0, 0))
    state: Any = devices.replicate(start, experiment.mesh)
    arguments: tuple[Any, ...] = (loader.raw, dispatch)
    if seeds > 1:  # they keep the same operations, those of the first one
        states = (start.replace(seed=np.uint32(config.seed + i)) for i in range(seeds))
        state = tuple(devices.replicate(each, experiment.mesh) for each in states)
        arguments = (loader.raw, (dispatch,) * seeds)

    def plain() -> Any:
        return experiment.step_program(spec, backend.PLAIN, seeds)

    return Case(program, state, arguments, steps, seeds * config.search.batch_size, plain)


def retrain_case(config: Config, stage: int, mesh: Mesh | None = None) -> Case:
    """Returns the retrain step of the config's genotype; `stage` is ignored, see `step_case`."""
    del stage
    if not config.genotype:
        raise UserError("no genotype to retrain: set --config.genotype=FILE_OR_NAME_OR_TEXT")
    dataset, mesh = synthetic(config, config.retrain.batch_size), mesh or devices.make_mesh()
    space = spaces.create(config.space, config.space_options)
    genotype = choose_genotype(config, space, Path())
    retraining = Retraining(config, genotype, dataset, mesh)
    retraining.check()

    def plain() -> Any:
        return retraining.step_program(backend.PLAIN)

    loader = retraining.loader
    state = devices.run_once(retraining.init, mesh, config.seed)
    steps, dispatch = next(loader.training(0, 0))
    arguments, images = (loader.raw, dispatch), config.retrain.batch_size
    return Case(retraining.step_program(), state, arguments, steps, images, plain)


def synthetic(config: Config, count: int) -> Dataset:
    """Returns a data set of random images, shaped like those of the config's data set.

    The shape of CIFAR-10 is used if that of the data set is unknown.

    Args:
      config: Config of the run.
      count: Number of images that either half of the search's split needs.
    """
    shape, classes = _SHAPES.get(config.data.name, ((32, 32, 3), 10))
    if config.data.image_size:
        shape = (config.data.image_size, config.data.image_size, shape[2])
    random = np.random.default_rng(0)
    count *= 4  # enough for both halves of the search's split
    images = random.integers(256, size=(count, *shape), dtype=np.uint8)
    labels = random.integers(classes, size=count, dtype=np.int32)
    names = tuple(map(str, range(classes)))
    return Dataset("synthetic", images, labels, images[:1], labels[:1], names, flip=True)


def bench_program(
    make_case: Callable[[Config, int], Case], config: Config, stage: int, steps: int, compare: str
) -> dict[str, Any]:
    """Times a step, and optionally the same step with other kernels.

    Args:
      make_case: Function (config, stage) that makes the program to be timed.
      config: Config of the run.
      stage: Number of the search stage, from 1.
      steps: Number of warm steps to time.
      compare: Name of the other kernels, or '' for none.

    Returns:
      Values of the JSON line.
    """
    names = [config.compute.kernels] + ([compare] if compare else [])
    configs = [_with_kernels(config, name) for name in names]
    cases = [make_case(each, stage) for each in configs]
    runs = [Timer(case) for case in cases]
    for _ in range(steps + 1):
        for run in runs:
            run.step()
    result, *others = [run.result() for run in runs]
    seconds = runs[0].seconds
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        (cases[0].state, *cases[0].arguments),
    )
    work = count_work(cases[0].plain().trace(*shapes).jaxpr.jaxpr)
    for name, amount in (("gflop", 2 * work.macs), ("gbyte", work.bytes)):
        per_step = amount / 1e9  # a dispatch of several steps is a loop of unknown length
        result |= {name: round(per_step, 2), f"{name}_per_s": round(per_step / seconds, 1)}
    result |= _limits(config.compute.dtype) | _machine()
    if others:
        result["compare"] = {"name": compare, **others[0]}
    return result


def bench_networks(
    measure: Callable[..., dict[str, Any]], config: Config, file: str, batch: int, steps: int
) -> dict[str, Any]:
    """Measures the final networks of a config's space.

    Args:
      measure: Function of (space, spec of the networks, file, batch, steps) -> values of the JSON
        line, `measure_operations` or `compare_networks`.
      config: Config of the run.
      file: Path of the table of layers.
      batch: Number of images of a batch.
      steps: Smallest number of runs of each program.
    """
    known = config.data.name in (*_SHAPES, "cifar10")
    dataset = synthetic(config, 1) if known else data.load(config.data)
    experiment = Experiment(config, dataset, devices.make_mesh())
    network = experiment.network_spec()
    experiment.space.check(network)
    values = measure(experiment.space, network, file, batch, steps)
    return {"file": file, **values, "batch": batch, **_machine()}


def _with_kernels(config: Config, name: str) -> Config:
    compute = dataclasses.replace(config.compute, kernels=name)
    return dataclasses.replace(config, compute=compute)


class Timer:
    """A compiled case, which runs one dispatch at a time.

    Args:
      case: Program with its arguments.
    """

    def __init__(self, case: Case):
        times = [time.perf_counter()]
        lowered = case.program.lower(case.state, *case.arguments)
        times.append(time.perf_counter())
        self._compiled = lowered.compile()
        times.append(time.perf_counter())
        self._case, self._state = case, case.state
        self._warm: list[float] = []
        self._lower_s, self._compile_s = times[1] - times[0], times[2] - times[1]

    def step(self) -> float:
        """Runs a dispatch, and returns its time per step in seconds."""
        began = time.perf_counter()
        self._state = jax.block_until_ready(self._compiled(self._state, *self._case.arguments))
        self._warm.append(time.perf_counter() - began)
        return self._warm[-1] / self._case.steps

    @property
    def seconds(self) -> float:
        """Median time of a warm step, in seconds."""
        return statistics.median(self._warm[1:]) / self._case.steps  # the first dispatch is cold

    def result(self) -> dict[str, Any]:
        """Returns the times of compilation and of a step, and the memory of the program."""
        memory = self._compiled.memory_analysis()
        return {
            "lower_s": round(self._lower_s, 2),
            "compile_s": round(self._compile_s, 2),
            "step_s": float(f"{self.seconds:.4g}"),
            "images_per_s": round(self._case.images / self.seconds, 1),
            "kernels": count_kernels(self._compiled.as_text()),
            "temp_memory_mb": round(memory.temp_size_in_bytes / 2**20, 1),
            "peak_memory_mb": _peak_memory_mb(),
        }


def _limits(dtype: str) -> dict[str, float]:
    """Measures the rates of matrix products and of copies larger than any cache, on all devices."""
    large = jax.default_backend() != "cpu"
    side, length = (8192, 2**29) if large else (2048, 2**26)
    matrix, vector = jnp.zeros((side, side), dtype), jnp.ones((length,), jnp.float32)
    product = _best_time(lambda x: jnp.matmul(x, x), matrix)
    copy = _best_time(lambda x: -x, vector)
    devices = jax.device_count() if large else 1  # simulated devices share the CPU
    return {
        "matmul_gflop_per_s": round(devices * 2 * side**3 / 1e9 / product, 1),
        "copy_gbyte_per_s": round(devices * 2 * vector.nbytes / 1e9 / copy, 1),
    }


def _best_time(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    compiled, times = (
        jax.jit(function, donate_argnums=0),
        [],
    )  # donated, since new memory costs time
    for _ in range(6):
        began = time.perf_counter()
        x = jax.block_until_ready(compiled(x))
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _peak_memory_mb() -> float:
    """Returns the peak memory of the accelerator if it is known, else that of this process."""
    statistics = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        return round(statistics["peak_bytes_in_use"] / 2**20, 1)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(kilobytes / 1024, 1)


def _machine() -> dict[str, Any]:
    device = jax.devices()[0]
    return {"device": f"{jax.device_count()} x {device.device_kind}", "jax": jax.__version__}


_CASES = {"step": step_case, "retrain": retrain_case}
_NETWORKS = {"operations": measure_operations, "latency": compare_networks}
_NAMES = (*_CASES, "input", "all", *_NETWORKS)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one JSON line for each benchmark.

    Returns:
      Exit code: 0, or 2 after a mistake in the command line.
    """
    logging.set_verbosity(logging.ERROR)

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_integer("stage", 1, "stage of the search, from 1", 1, flag_values=values)
        flags.DEFINE_integer("steps", 10, "number of warm steps to time", 1, flag_values=values)
        flags.DEFINE_integer("batch", 1, "images of a batch of networks", 1, flag_values=values)
        flags.DEFINE_string("file", "operations.csv", "table of operations", flag_values=values)
        flags.DEFINE_string("compare", "", "other kernels to time as well", flag_values=values)

    try:
        config, values, rest = parse(sys.argv if argv is None else argv, define)
        if len(rest) != 1:
            raise UserError(f"the arguments are {rest}: expected one of {', '.join(_NAMES)}")
        check_choice("benchmark", rest[0], _NAMES)
        names = [*_CASES, "input"] if rest[0] == "all" else rest
        # A program read from the cache would make compilation look short.
        jax.config.update("jax_enable_compilation_cache", False)
        for name in names:
            if name == "input":
                result = bench_input(config, values.steps) | _machine()
            elif name in _NETWORKS:
                settings = (values.file, values.batch, values.steps)
                result = bench_networks(_NETWORKS[name], config, *settings)
            else:
                settings = (values.stage, values.steps, values.compare)
                result = bench_program(_CASES[name], config, *settings)
            print(json.dumps({"bench": name, **result}))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
