"""Plans a search without a TPU: `python -m drnas_jax.tools.plan --config=FILE --topology=v5e:4x4`.

Compiles the search step of every stage for the TPUs of a topology and prints the memory and time
that it needs. The memory is what the compiler reserves. There are two estimates of a step's time,
neither of them confirmed on a TPU. The roofline is optimistic: it divides the multiply-adds of the
plain program's convolutions and matrix products, and the bytes that these and its pools move, by
the chip's published rates. The sum of the compiler's estimates for all instructions is pessimistic.
"""

import concurrent.futures
import importlib.util
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.box
import rich.console
import rich.table
from absl import flags, logging
from jax.experimental import topologies
from jax.sharding import Mesh, SingleDeviceSharding

from drnas_jax import data
from drnas_jax.config import Config
from drnas_jax.data import ImageDataset, Source, Stream
from drnas_jax.errors import UserError
from drnas_jax.flags import parse
from drnas_jax.nn import backend
from drnas_jax.nn.counting import count_work
from drnas_jax.phases.search.experiment import Experiment, state_at
from drnas_jax.tools.compiled_text import count_cycles
from drnas_jax.training import devices
from drnas_jax.training.memory import needed


class Chip(NamedTuple):
    """The published figures of a TPU chip.

    Attributes:
      flops: bfloat16 operations per second.
      bandwidth: Bytes of memory traffic per second.
      memory: Bytes of memory.
    """

    flops: float
    bandwidth: float
    memory: float


# https://docs.cloud.google.com/tpu/docs/v5e and .../v6e. Matrix units round float32 to bfloat16
# (JAX's default precision), so the rate is the same for float32.
CHIPS = {
    "TPU v5 lite": Chip(197e12, 819e9, 16e9),
    "TPU v6 lite": Chip(918e12, 1638e9, 32e9),
}
_FROZEN = 0.5  # time of a step with frozen alpha, as a fraction of that of a full step
_IMAGENET = (1_281_167, 50_000, 1000)  # training examples, test examples, classes


class Plan(NamedTuple):
    """The estimates for the step of a stage.

    Attributes:
      stage: Number of the stage, from 1.
      steps: Number of steps in an epoch.
      partial_channels: K of the stage.
      operations: Largest number of operations on an edge.
      memory: Bytes of memory that a chip needs.
      fits: Whether a chip has this memory.
      seconds: Time of a step in seconds by the roofline, and by the compiler (None if unknown);
        None if the step did not compile.
      limit: Resource that limits the step: `matrix units`, `memory traffic` or `memory`.
      compile_seconds: Time of the compilation in seconds.
    """

    stage: int
    steps: int
    partial_channels: int
    operations: int
    memory: float
    fits: bool
    seconds: tuple[float, float | None] | None
    limit: str
    compile_seconds: float


def make_devices(topology: str) -> list[Any]:
    """Returns the devices of a TPU topology, to compile for.

    Args:
      topology: Name of the topology, for example `v5e:4x4`.

    Raises:
      UserError: libtpu is missing, or there is no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("planning needs the TPU compiler: pip install -e '.[tpu]'")
    # Without these, libtpu would look for the environment of a TPU VM over the network.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is used
    try:
        chips: Any = topologies.get_topology_desc(topology, platform="tpu").devices
    except (ValueError, RuntimeError) as error:  # of the compiler
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--topology is {topology!r}, which the compiler does not know ({reason}): expected "
            "one such as v5e:4x4 or v6e:8x8"
        ) from error
    if chips[0].device_kind not in CHIPS:
        raise UserError(f"--topology is {topology!r}: expected v5e or v6e, such as v5e:4x4")
    return list(chips)


def plan_stages(config: Config, chips: Sequence[Any], stages: Sequence[int]) -> list[Plan]:
    """Compiles the steps of some stages, in parallel, and returns their estimates.

    Args:
      config: Config of the run.
      chips: Devices of one kind, which need not exist.
      stages: Numbers of the stages, from 1; later ones are pruned by a random alpha.

    Raises:
      UserError: The batch does not divide evenly over the chips, or the data is missing.
    """
    mesh = Mesh(np.array(chips), (devices.AXIS,))
    devices.check_batch(config.search.batch_size, mesh, "search.batch_size")
    experiment = Experiment(config, stand_in(config), mesh)
    experiment.check()
    lowered = [_lower(experiment, stage) for stage in stages]
    rate = _cycles_per_second(chips[0])
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(lambda *each: _compile(experiment, rate, *each), stages, lowered))


def search_hours(config: Config, plans: Sequence[Plan]) -> tuple[float, float | None]:
    """Estimates the hours of all stages, without validation and compilation.

    Args:
      config: Config of the run.
      plans: Estimates of all stages.

    Returns:
      Hours by the roofline and by the compiler; None if the compiler's estimate is unknown.
    """

    def total(seconds: Sequence[float]) -> float:
        return sum(
            (stage.epochs - (1 - _FROZEN) * stage.warmup_epochs) * plan.steps * step_seconds / 3600
            for plan, stage, step_seconds in zip(plans, config.search.stages, seconds, strict=True)
        )

    pairs = [plan.seconds for plan in plans if plan.seconds is not None]
    known = [cautious for _, cautious in pairs if cautious is not None]
    fast = total([roofline for roofline, _ in pairs])
    return fast, total(known) if len(known) == len(plans) else None


class _LabelsOnly:
    """A split that has labels but no images."""

    def __init__(self, count: int, classes: int):
        self.labels = (np.arange(count) % classes).astype(np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Any:
        raise IndexError(f"example {i} has no image: only its label is known")


def stand_in(config: Config) -> ImageDataset:
    """Returns the config's data set, or for ImageNet a data set of its size without images."""
    if config.data.name != "imagenet2012":
        return data.load(config.data)
    train, test, classes = _IMAGENET
    names = tuple(map(str, range(classes)))
    source = Source(
        "ImageNet", _LabelsOnly(train, classes), _LabelsOnly(test, classes), names, 3, True
    )
    size, ones = config.data.image_size or 224, np.ones(3, np.float32)
    return Stream(
        name=config.data.name,
        source=source,
        shape=(size, size, 3),
        flip=True,
        mean=ones,
        std=ones,
        image_size=size,
        crop=config.data.crop,
        skip=False,
        workers=1,
    )


class _Lowered(NamedTuple):
    program: Any
    flops: float  # operations of one step, over all devices
    bytes: float  # memory traffic of one step, over all devices


def _lower(experiment: Experiment, stage: int) -> _Lowered:
    spec, state = state_at(experiment, stage, random_alpha=True)
    state = devices.abstract(state, experiment.mesh)
    raw, dispatch = experiment.loader.abstract_raw, experiment.loader.abstract_dispatch
    arguments = (state, raw, dispatch)
    # The plain program has no loop of unknown length, except that over the steps of a dispatch.
    plain = experiment.step_program(spec, backend.PLAIN).trace(*arguments)
    work = count_work(plain.jaxpr.jaxpr)
    lowered = experiment.step_program(spec).lower(*arguments)
    return _Lowered(lowered, 2 * work.macs, work.bytes)


def _compile(experiment: Experiment, rate: float, stage: int, lowered: _Lowered) -> Plan:
    mesh, began = experiment.mesh, time.monotonic()
    chip, target = (
        CHIPS[mesh.devices.flat[0].device_kind],
        experiment.config.search.stages[stage - 1],
    )
    first = (stage, experiment.steps, target.partial_channels, target.operations)
    try:
        compiled = lowered.program.compile()
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"[Uu]sed ([\d.]+)([KMGT]) of", str(error))
        if used is None:
            raise
        memory = float(used[1]) * 1024 ** ("KMGT".index(used[2]) + 1)
        return Plan(*first, memory, False, None, "memory", time.monotonic() - began)
    memory = needed(compiled)
    times = {
        "matrix units": lowered.flops / mesh.size / chip.flops,
        "memory traffic": lowered.bytes / mesh.size / chip.bandwidth,
    }
    roofline = max(times.values())
    limit = next(name for name, seconds in times.items() if seconds == roofline)
    try:
        cautious = max(count_cycles(compiled.as_text() or "") / rate, roofline)
    except jax.errors.JaxRuntimeError:  # this jaxlib cannot read the program of a newer libtpu
        cautious = None
    seconds = (roofline, cautious)
    fits, took = memory <= chip.memory, time.monotonic() - began
    return Plan(*first, memory, fits, seconds, limit if fits else "memory", took)


def _cycles_per_second(device: Any) -> float:
    """Returns the cycles per second, given that a matrix product runs at the full rate."""
    side = 8192
    matrix = jax.ShapeDtypeStruct((side, side), "bfloat16", sharding=SingleDeviceSharding(device))
    compiled: Any = jax.jit(lambda x, y: x @ y).lower(matrix, matrix).compile()
    seconds = 2 * side**3 / CHIPS[device.device_kind].flops
    return count_cycles(compiled.as_text()) / seconds


def table(config: Config, chips: Sequence[Any], plans: Sequence[Plan]) -> rich.table.Table:
    """Returns a Markdown table with a line for each stage.

    The column `read/s` is in images; a step reads two batches.

    Args:
      config: Config of the run.
      chips: Devices of one kind.
      plans: Estimates of the stages.
    """
    chip, batch = CHIPS[chips[0].device_kind], config.search.batch_size
    head = ("stage", "K", "operations", "batch", "a chip", "memory, GB", "step, s", "read/s")
    out = rich.table.Table(*head, "fits", "limit", "compiled in, s", box=rich.box.MARKDOWN)
    for plan in plans:
        seconds, images = "", ""
        if plan.seconds:
            rates = [None if s is None else 2 * batch / s for s in reversed(plan.seconds)]
            seconds, images = _range(plan.seconds, "{:.3f}"), _range(rates, "{:,.0f}")
        out.add_row(
            str(plan.stage),
            str(plan.partial_channels),
            str(plan.operations),
            str(batch),
            str(batch // len(chips)),
            f"{plan.memory / 1e9:.1f} of {chip.memory / 1e9:.0f}",
            seconds,
            images,
            "yes" if plan.fits else "no",
            plan.limit,
            f"{plan.compile_seconds:.0f}",
        )
    return out


def _range(values: Sequence[float | None], form: str) -> str:
    """Formats a range of numbers, with '?' for an unknown one."""
    return " to ".join("?" if value is None else form.format(value) for value in values)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table.

    Returns:
      Exit code: 0, or 2 after a mistake in the command line.
    """
    logging.set_verbosity(logging.ERROR)

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string(
            "topology", "v5e:4x4", "topology of the chips, such as v6e:8x8", flag_values=values
        )
        flags.DEFINE_integer(
            "stage", 0, "stage of the search, from 1; 0 for all", 0, flag_values=values
        )

    try:
        config, values, rest = parse(sys.argv if argv is None else argv, define)
        if rest:
            raise UserError(f"unexpected argument {rest[0]!r}: flags begin with --")
        every = range(1, len(config.search.stages) + 1)
        if values.stage and values.stage not in every:
            raise UserError(
                f"--stage is {values.stage}: expected 1 to {len(every)}, a stage of the config"
            )
        jax.config.update("jax_platforms", "cpu")
        chips = make_devices(values.topology)
        print(f"{len(chips)} x {chips[0].device_kind}, {config.compute.dtype}", flush=True)
        plans = plan_stages(config, chips, [values.stage] if values.stage else every)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rich.console.Console(width=200).print(table(config, chips, plans))
    if all(plan.seconds for plan in plans) and not values.stage:
        hours = _range(search_hours(config, plans), "{:.1f}")
        print(f"whole search: {hours} hours, without validation and compilation")
    return 0


if __name__ == "__main__":
    sys.exit(main())
