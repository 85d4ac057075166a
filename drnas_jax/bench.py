"""Measure: `python -m drnas_jax.bench step|retrain|input --config=FILE [--stage=I] [--steps=N]`.

Prints one JSON line. `step` (the search step) and `retrain` run on synthetic data, `input` on the
config's own. Times are wall-clock seconds; `step_s` is the median of the warm steps.
"""

import json
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from drnas_jax import data, feed, sharding
from drnas_jax.config import Config
from drnas_jax.data import Dataset
from drnas_jax.errors import UserError, check_choice
from drnas_jax.flags import parse
from drnas_jax.metrics import Display
from drnas_jax.retrain import Retraining, choose_genotype
from drnas_jax.search.problem import make_problem
from drnas_jax.search.stages import advance

# Shape [h, w, c] and classes of synthetic images, by data set.
_SHAPES = {"imagenet2012": ((224, 224, 3), 1000), "digits": ((8, 8, 1), 10)}


def bench_step(config: Config, stage: int, steps: int) -> dict[str, Any]:
    """Times the search step (alpha, then weights) of a stage.

    Args:
      config: of the search.
      stage: from 1; a later one is pruned and widened from the alphas at the start.
      steps: warm steps to time.

    Raises:
      UserError: there is no such stage.
    """
    stages = config.search.stages
    if not 1 <= stage <= len(stages):
        raise UserError(f"--stage is {stage}: the config has stages 1 to {len(stages)}")
    problem = make_problem(config, synthetic(config, config.search.batch_size))
    structure = problem.first_structure()
    state = sharding.run_once(lambda: problem.init(structure), problem.mesh)
    for number in range(1, stage):
        state, structure = advance(
            problem.space, state, structure, stages[number], config.seed + number
        )
    state = sharding.replicate(state, problem.mesh)
    batch = np.arange(config.search.batch_size, dtype=np.int32)[None]
    program = problem.step_program(structure, frozen=False)
    return _measure(program, state, (problem.raw, batch, batch), batch.size, steps)


def bench_retrain(config: Config, stage: int, steps: int) -> dict[str, Any]:
    """Times the retrain step of the config's genotype; `stage` is ignored."""
    del stage
    if not config.genotype:
        raise UserError("no genotype to retrain: give --config.genotype=FILE_OR_NAME")
    dataset = synthetic(config, config.retrain.batch_size)
    phase = Retraining(config, choose_genotype(config, Path()), Display(quiet=True), dataset)
    batch = np.arange(config.retrain.batch_size, dtype=np.int32)[None]
    state, _ = phase.start()
    return _measure(phase.step_program(), state, (*phase.arguments, batch), batch.size, steps)


def bench_input(config: Config, stage: int, steps: int) -> dict[str, Any]:
    """Times the input alone: the config's data, gathered and augmented; `stage` is ignored."""
    del stage
    mesh, part = sharding.make_mesh(), config.search
    sharding.check_batch(part.batch_size, mesh, "search.batch_size")
    dataset = data.load(config.data)
    raw = feed.on_devices(dataset.images, dataset.labels, mesh)
    batches = feed.make_feed(dataset, config.data.crop_padding, config.retrain.cutout, config.seed)
    count = len(dataset.labels)
    order = data.epoch_order(count, part.batch_size, steps + 1, config.seed, "bench", 0)

    def gather(raw: feed.Images, index: jax.Array, step: jax.Array) -> feed.Images:
        return batches.augmented(raw, index, "bench", step)

    specs = (sharding.REPLICATED, sharding.SHARDED, sharding.REPLICATED)
    program = sharding.data_parallel(gather, mesh, specs, out_specs=sharding.SHARDED)
    jax.block_until_ready(program(raw, order[0], 0))
    began = time.perf_counter()
    for step, index in enumerate(order[1:]):
        jax.block_until_ready(program(raw, index, step))
    seconds = time.perf_counter() - began
    return {"images_per_s": round(part.batch_size * steps / seconds, 1), **_machine()}


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


def _measure(
    program: Any, state: Any, rest: Sequence[Any], images: int, steps: int
) -> dict[str, Any]:
    times = [time.perf_counter()]
    lowered = program.lower(state, *rest)
    times.append(time.perf_counter())
    compiled = lowered.compile()
    times.append(time.perf_counter())
    warm = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        state = jax.block_until_ready(compiled(state, *rest))
        warm.append(time.perf_counter() - began)
    step = statistics.median(warm[1:])  # the first one is cold
    return {
        "lower_s": round(times[1] - times[0], 2),
        "compile_s": round(times[2] - times[1], 2),
        "step_s": round(step, 4),
        "images_per_s": round(images / step, 1),
        "peak_memory_mb": _peak_memory_mb(),
        **_machine(),
    }


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


_BENCHES = {"step": bench_step, "retrain": bench_retrain, "input": bench_input}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one JSON line and returns 0; 2 after a mistake in the command line."""
    logging.set_verbosity(logging.ERROR)

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_integer("stage", 1, "of the search, from 1", 1, flag_values=values)
        flags.DEFINE_integer("steps", 10, "warm steps to time", 1, flag_values=values)

    try:
        config, values, rest = parse(sys.argv if argv is None else argv, define)
        if len(rest) != 1:
            raise UserError(f"expected one of {', '.join(_BENCHES)}, got {rest}")
        check_choice("benchmark", rest[0], _BENCHES)
        result = _BENCHES[rest[0]](config, values.stage, values.steps)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"bench": rest[0], **result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
