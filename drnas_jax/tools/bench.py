"""Measure: `python -m drnas_jax.tools.bench step|retrain|input|all --config=FILE [--steps=N]`.

Prints one JSON line for each. `step` (the search step of `--stage=I`) and `retrain` run on
synthetic data, `input` on the config's own; `--compare=plain` times other kernels in turn.

Times are wall-clock seconds, `step_s` the median of the warm steps. `gflop` and `gbyte` are the
work of the plain program, whatever kernels run: the multiply-adds (as two) of its convolutions and
matrix products, and what these and its pools read and write. Next to what a step reaches of them a
second stands what this machine reaches in matrix products and in copies.
"""

import contextlib
import dataclasses
import functools
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from jax.sharding import Mesh

from drnas_jax import data
from drnas_jax.config import Config
from drnas_jax.data import Dataset, feed
from drnas_jax.data.images import decode
from drnas_jax.errors import UserError, check_choice
from drnas_jax.flags import parse
from drnas_jax.nn.counting import count_work
from drnas_jax.phases.retrain import Retraining, choose_genotype
from drnas_jax.phases.search.problem import make_problem
from drnas_jax.phases.search.stages import advance
from drnas_jax.training import devices
from drnas_jax.training.machine import cores
from drnas_jax.training.metrics import Display

_TURNS = 3  # of streamed input and of the loop beside it
# Shape [h, w, c] and classes of synthetic images, by data set.
_SHAPES = {"imagenet2012": ((224, 224, 3), 1000), "digits": ((8, 8, 1), 10)}


class Case(NamedTuple):
    """What is timed.

    Attributes:
      program: a jitted (state, *arguments) -> state.
      state: the first one.
      arguments: the rest.
      steps: of one run of the program (accelerators do several in one dispatch).
      images: in the batch of a step.
      plain: makes the program of the plain kernels, which takes the same.
    """

    program: Any
    state: Any
    arguments: tuple[Any, ...]
    steps: int
    images: int
    plain: Callable[[], Any]


def step_case(config: Config, stage: int) -> Case:
    """The search step (alpha, then weights) of a stage.

    Args:
      config: of the search.
      stage: from 1; a later one is pruned and widened from the alphas at the start.

    Raises:
      UserError: there is no such stage.
    """
    stages = config.search.stages
    if not 1 <= stage <= len(stages):
        raise UserError(f"--stage is {stage}: the config has stages 1 to {len(stages)}")
    # A share of a few synthetic images may be none: halves, whatever the config says; and an epoch
    # that trains alpha.
    halves = dataclasses.replace(
        config.search,
        train_fraction=0.5,
        alpha_fraction=0.0,
        split_by_class=False,
        warmup_epochs=(0,) * len(stages),
    )
    config = dataclasses.replace(config, search=halves)
    problem = make_problem(config, synthetic(config, config.search.batch_size))
    structure = problem.first_structure()
    state = devices.run_once(functools.partial(problem.init, structure), problem.mesh, config.seed)
    for number in range(1, stage):
        state, structure = advance(
            problem.space, state, structure, config.search, number, config.seed
        )
    state = devices.replicate(state, problem.mesh)
    program = problem.step_program(structure, frozen=False)
    batches = next(problem.reader.training(0, 0))
    sizes = (problem.reader.dispatch, config.search.batch_size)

    def plain() -> Any:
        own = dataclasses.replace(problem, config=_with_kernels(config, "plain", remat="none"))
        return own.step_program(structure, frozen=False)

    return Case(program, state, (problem.reader.raw, *batches), *sizes, plain)


def retrain_case(config: Config, stage: int) -> Case:
    """The retrain step of the config's genotype; `stage` is ignored."""
    del stage
    if not config.genotype:
        raise UserError("no genotype to retrain: give --config.genotype=FILE_OR_NAME")
    dataset = synthetic(config, config.retrain.batch_size)

    def make_phase(config: Config) -> Retraining:
        return Retraining(config, choose_genotype(config, Path()), Display(quiet=True), dataset)

    def plain() -> Any:
        return make_phase(_with_kernels(config, "plain", remat="none")).step_program()

    phase = make_phase(config)
    arguments = (phase.reader.raw, *next(phase.reader.training(0, 0)))
    sizes = (phase.reader.dispatch, config.retrain.batch_size)
    return Case(phase.step_program(), phase.start(), arguments, *sizes, plain)


def bench_input(config: Config, steps: int) -> dict[str, Any]:
    """Times the input alone: the config's data, as the search has it.

    Of a data set in memory with its augmentation. Of a streamed one until the images lie on the
    devices, whose step augments them; and `opencv_images_per_s` is what a plain loop in this one
    process reaches that decodes the same images as a whole and resizes them. Both are the best of
    a few turns.
    """
    mesh, part = devices.make_mesh(), config.search
    devices.check_batch(part.batch_size, mesh, "search.batch_size")
    dataset = data.load(config.data)
    if isinstance(dataset, Dataset):
        rate = _augmentation_rate(config, dataset, mesh, steps)
        return {"images_per_s": round(rate, 1), **_machine()}
    workers = dataset.workers
    schedule = _schedule(config, dataset, 4 * workers + steps)
    turns = [
        (_stream_rate(dataset, schedule, mesh, warm=4 * workers), _plain_rate(dataset))
        for _ in range(_TURNS)
    ]
    rate, plain = map(max, *turns)
    return {
        "images_per_s": round(rate, 1),
        "workers": workers,
        "opencv_images_per_s": round(plain, 1),
        "of_opencv_per_core": round(rate / plain / min(workers, cores()), 2),
        **_machine(),
    }


def _schedule(config: Config, dataset: Dataset | data.Stream, steps: int) -> data.Schedule:
    everything = np.arange(dataset.count, dtype=np.int32)
    parts = (data.Part("bench", everything),)
    return data.Schedule(config.search.batch_size, config.seed, parts, epochs=2, steps=steps)


def _augmentation_rate(config: Config, dataset: Dataset, mesh: Mesh, steps: int) -> float:
    """Images a second, in the second of two epochs."""
    batches, seed = feed.make_feed(dataset, config.data.crop_padding, 0), jnp.uint32(config.seed)

    def augment(raw: feed.Images, batch: jax.Array, step: jax.Array) -> feed.Images:
        return jax.lax.map(lambda rows: batches.augmented(raw, rows, "bench", seed, step), batch)

    specs = (devices.REPLICATED, devices.STEPS, devices.REPLICATED)
    program = devices.data_parallel(augment, mesh, specs, out_specs=devices.STEPS)
    reader = feed.Reader(dataset, _schedule(config, dataset, steps), mesh)
    for epoch in range(2):
        began = time.perf_counter()
        for step, (batch,) in enumerate(reader.training(epoch, 0)):
            jax.block_until_ready(program(reader.raw, batch, step))
    return config.search.batch_size * steps / (time.perf_counter() - began)


def _stream_rate(dataset: data.Stream, schedule: data.Schedule, mesh: Mesh, warm: int) -> float:
    """Images a second, after as many batches as all workers need to be at work."""
    with contextlib.closing(feed.Reader(dataset, schedule, mesh)) as reader:
        for step, batch in enumerate(reader.training(0, 0)):
            if step == warm:
                began = time.perf_counter()
            jax.block_until_ready(batch)
        seconds = time.perf_counter() - began
    return schedule.batch_size * (schedule.steps - warm) / seconds


def _plain_rate(dataset: data.Stream) -> float:
    """Images a second of one process and thread that has their files in memory."""
    cv2.setNumThreads(1)
    split, size = dataset.source.train, dataset.shape[:2]
    examples = [split[i] for i in range(min(len(split), 512))]
    began = time.perf_counter()
    for example in examples:
        cv2.resize(decode(example, dataset.shape[2]), size)
    return len(examples) / (time.perf_counter() - began)


def synthetic(config: Config, count: int) -> Dataset:
    """`count` random images of the size of the config's data set (CIFAR's where it is unknown)."""
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
    """Times a step, if wanted in turn with that of other kernels.

    Args:
      make_case: what is timed.
      config: of the run.
      stage: of the search.
      steps: warm steps to time.
      compare: name of the other kernels, or ''.
    """
    names = [config.compute.kernels] + ([compare] if compare else [])
    configs = [_with_kernels(config, name) for name in names]
    cases = [make_case(own, stage) for own in configs]
    runs = [_Run(case) for case in cases]
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
        of_a_step = amount / cases[0].steps / 1e9
        result |= {name: round(of_a_step, 2), f"{name}_per_s": round(of_a_step / seconds, 1)}
    result |= _limits(config.compute.dtype) | _machine()
    if others:
        result["compare"] = {"kernels": compare, **others[0]}
    return result


def _with_kernels(config: Config, name: str, remat: str | None = None) -> Config:
    compute = dataclasses.replace(config.compute, kernels=name, remat=remat or config.compute.remat)
    return dataclasses.replace(config, compute=compute)


class _Run:
    """A case, compiled; its steps are run one by one."""

    def __init__(self, case: Case):
        times = [time.perf_counter()]
        lowered = case.program.lower(case.state, *case.arguments)
        times.append(time.perf_counter())
        self._compiled = lowered.compile()
        times.append(time.perf_counter())
        self._case, self._state = case, case.state
        self._warm: list[float] = []
        self._lower_s, self._compile_s = times[1] - times[0], times[2] - times[1]

    def step(self) -> None:
        began = time.perf_counter()
        self._state = jax.block_until_ready(self._compiled(self._state, *self._case.arguments))
        self._warm.append(time.perf_counter() - began)

    @property
    def seconds(self) -> float:
        """Of a step."""
        return statistics.median(self._warm[1:]) / self._case.steps  # the first one is cold

    def result(self) -> dict[str, Any]:
        memory = self._compiled.memory_analysis()
        return {
            "lower_s": round(self._lower_s, 2),
            "compile_s": round(self._compile_s, 2),
            "step_s": float(f"{self.seconds:.4g}"),
            "images_per_s": round(self._case.images / self.seconds, 1),
            "temp_memory_mb": round(memory.temp_size_in_bytes / 2**20, 1),
            "peak_memory_mb": _peak_memory_mb(),
        }


def _limits(dtype: str) -> dict[str, float]:
    """What one device reaches: matrix products, and copies of what does not fit a cache."""
    large = jax.default_backend() != "cpu"
    side, length = (8192, 2**29) if large else (2048, 2**26)
    matrix, vector = jnp.zeros((side, side), dtype), jnp.ones((length,), jnp.float32)
    product = _best_time(lambda x: jnp.matmul(x, x), matrix)
    copy = _best_time(lambda x: -x, vector)
    devices = jax.device_count() if large else 1  # devices of a CPU share its cores
    return {
        "matmul_gflop_per_s": round(devices * 2 * side**3 / 1e9 / product, 1),
        "copy_gbyte_per_s": round(devices * 2 * vector.nbytes / 1e9 / copy, 1),
    }


def _best_time(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    compiled, times = jax.jit(function, donate_argnums=0), []  # new memory would cost time
    for _ in range(6):
        began = time.perf_counter()
        x = jax.block_until_ready(compiled(x))
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _peak_memory_mb() -> float:
    """Of the accelerator where it tells, else of this process."""
    statistics = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        return round(statistics["peak_bytes_in_use"] / 2**20, 1)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(kilobytes / 1024, 1)


def _machine() -> dict[str, Any]:
    device = jax.devices()[0]
    return {"device": f"{jax.device_count()} x {device.device_kind}", "jax": jax.__version__}


_CASES = {"step": step_case, "retrain": retrain_case}
_NAMES = (*_CASES, "input", "all")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one JSON line a benchmark and returns 0; 2 after a mistake in the command line."""
    logging.set_verbosity(logging.ERROR)

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_integer("stage", 1, "of the search, from 1", 1, flag_values=values)
        flags.DEFINE_integer("steps", 10, "warm steps to time", 1, flag_values=values)
        flags.DEFINE_string("compare", "", "other kernels to time in turn", flag_values=values)

    try:
        config, values, rest = parse(sys.argv if argv is None else argv, define)
        if len(rest) != 1:
            raise UserError(f"expected one of {', '.join(_NAMES)}, got {rest}")
        check_choice("benchmark", rest[0], _NAMES)
        names = [name for name in _NAMES if rest[0] in (name, "all") and name != "all"]
        # A program read from the cache would make compilation look short.
        jax.config.update("jax_enable_compilation_cache", False)
        for name in names:
            if name == "input":
                result = bench_input(config, values.steps)
            else:
                rest_of_flags = (values.stage, values.steps, values.compare)
                result = bench_program(_CASES[name], config, *rest_of_flags)
            print(json.dumps({"bench": name, **result}))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
