"""Plan without a TPU: `python -m drnas_jax.tools.plan --config=FILE --topology=v5e:4x4`.

Compiles the search step of every stage for the TPUs of a topology and prints what it needs. Memory
is what the compiler allots. Of a step's time there are two estimates, neither confirmed on a TPU:
the roofline, from the multiply-adds of the program's convolutions and matrix products and the bytes
that these and its pools move, at the chip's published rates; and the sum of the compiler's own
estimates for its instructions, which is cautious.
"""

import concurrent.futures
import dataclasses
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
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

from drnas_jax import data
from drnas_jax.config import Config
from drnas_jax.data import Dataset, Stream
from drnas_jax.data.feed import abstract_batch
from drnas_jax.data.sources import Source
from drnas_jax.errors import UserError
from drnas_jax.flags import parse
from drnas_jax.nn.counting import count_work
from drnas_jax.phases.search.problem import Problem, make_problem
from drnas_jax.phases.search.stages import advance
from drnas_jax.training import devices
from drnas_jax.training.devices import REPLICATED


class Chip(NamedTuple):
    """Published rates: bfloat16 operations and bytes of memory traffic a second, and its bytes."""

    flops: float
    bandwidth: float
    memory: float


# https://docs.cloud.google.com/tpu/docs/v5e and .../v6e. Matrix units round float32 to bfloat16,
# as JAX asks by default, so that the rate is the same.
CHIPS = {
    "TPU v5 lite": Chip(197e12, 819e9, 16e9),
    "TPU v6 lite": Chip(918e12, 1638e9, 32e9),
}
_FROZEN = 0.5  # of a step's time takes one that leaves alpha alone
_IMAGENET = (1_281_167, 50_000, 1000)  # examples to train and to test, and classes


class Plan(NamedTuple):
    """A stage's step, per chip.

    Attributes:
      stage: from 1.
      steps: in an epoch.
      partial_channels, operations: of the stage.
      memory: bytes.
      fits: whether the chip has them.
      seconds: of a step, by the roofline and by the compiler (None where it does not tell); None
        where the step did not compile.
      limit: what the roofline or the memory says is short.
      compile_seconds: how long compilation took here.
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
    """The devices of a TPU topology such as 'v5e:4x4', to compile for.

    Raises:
      UserError: libtpu is missing, or there is no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("planning needs the TPU compiler: pip install -e '.[tpu]'")
    # libtpu would ask the network and the environment of a TPU VM about themselves.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is used
    try:
        chips: Any = topologies.get_topology_desc(topology, platform="tpu").devices
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--topology is {topology!r}, which the compiler does not know ({reason}): expected "
            "one such as v5e:4x4 or v6e:8x8"
        ) from error
    if chips[0].device_kind not in CHIPS:
        raise UserError(f"--topology is {topology!r}: only v5e and v6e can be planned for")
    return list(chips)


def plan_stages(config: Config, chips: Sequence[Any], stages: Sequence[int]) -> list[Plan]:
    """Compiles the step of some stages, several at a time.

    Args:
      config: of the search.
      chips: of one kind, which need not exist.
      stages: from 1; later ones are pruned and widened from random alphas.

    Raises:
      UserError: the chips do not divide the batch, or the data is not there.
    """
    mesh = Mesh(np.array(chips), (devices.AXIS,))
    devices.check_batch(config.search.batch_size, mesh, "search.batch_size")
    problem = make_problem(config, stand_in(config), devices.make_mesh(jax.devices("cpu")[:1]))
    raw = problem.reader.raw
    problem = dataclasses.replace(problem, mesh=mesh)
    lowered = [_lower(problem, raw, stage) for stage in stages]
    rate = _cycles_a_second(chips[0])
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(lambda *each: _compile(problem, rate, *each), stages, lowered))


def search_hours(config: Config, plans: Sequence[Plan]) -> tuple[float, float | None]:
    """Of all stages, without validation and compilation: by the roofline and by the compiler."""

    def total(seconds: Sequence[float]) -> float:
        return sum(
            (stage.epochs - (1 - _FROZEN) * stage.warmup_epochs) * plan.steps * own / 3600
            for plan, stage, own in zip(plans, config.search.stages, seconds, strict=True)
        )

    pairs = [plan.seconds for plan in plans if plan.seconds is not None]
    told = [cautious for _, cautious in pairs if cautious is not None]
    fast = total([roofline for roofline, _ in pairs])
    return fast, total(told) if len(told) == len(plans) else None


class _Listed:
    """A split of which only the labels are known."""

    def __init__(self, count: int, classes: int):
        self.labels = (np.arange(count) % classes).astype(np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Any:
        raise IndexError(f"example {i} is not there: only the labels are")


def stand_in(config: Config) -> Dataset | Stream:
    """The config's data set; for ImageNet one of its size, which need not be there."""
    if config.data.name != "imagenet2012":
        return data.load(config.data)
    train, test, classes = _IMAGENET
    names = tuple(map(str, range(classes)))
    source = Source("ImageNet", _Listed(train, classes), _Listed(test, classes), names, 3, True)
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
    flops: float  # of all devices, in one step
    bytes: float
    steps: int  # in a dispatch


def _lower(problem: Problem, raw: Any, stage: int) -> _Lowered:
    config, mesh = problem.config, problem.mesh
    structure = problem.first_structure()
    shapes = jax.eval_shape(lambda: problem.init(structure, config.seed))
    random = np.random.default_rng(config.seed)
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state = state.replace(
        alpha={name: random.normal(size=rows.shape) for name, rows in state.alpha.items()}
    )
    for number in range(1, stage):
        state, structure = advance(
            problem.space, state, structure, config.search, number, config.seed
        )
    state = state.replace(alpha={k: v.astype(np.float32) for k, v in state.alpha.items()})
    everywhere = NamedSharding(mesh, REPLICATED)
    state, raw = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), (state, raw)
    )
    steps = 1 if raw is None else devices.steps_per_dispatch(mesh, problem.steps)
    shape = problem.image_shape if raw is None else None
    batch = abstract_batch((steps, config.search.batch_size), shape, mesh)
    traced = problem.step_program(structure, frozen=False).trace(state, raw, batch, batch)
    work = count_work(traced.jaxpr.jaxpr)
    return _Lowered(traced.lower(), 2 * work.macs / steps, work.bytes / steps, steps)


def _compile(problem: Problem, rate: float, stage: int, lowered: _Lowered) -> Plan:
    mesh, began = problem.mesh, time.monotonic()
    chip, target = CHIPS[mesh.devices.flat[0].device_kind], problem.config.search.stages[stage - 1]
    first = (stage, problem.steps, target.partial_channels, target.operations)
    try:
        compiled = lowered.program.compile()
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"[Uu]sed ([\d.]+)([KMGT]) of", str(error))
        if used is None:
            raise
        memory = float(used[1]) * 1024 ** ("KMGT".index(used[2]) + 1)
        return Plan(*first, memory, False, None, "memory", time.monotonic() - began)
    found = compiled.memory_analysis()
    memory = (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.temp_size_in_bytes
        + found.generated_code_size_in_bytes
    )
    times = {
        "matrix units": lowered.flops / mesh.size / chip.flops,
        "memory traffic": lowered.bytes / mesh.size / chip.bandwidth,
    }
    roofline = max(times.values())
    limit = next(name for name, seconds in times.items() if seconds == roofline)
    try:
        cautious = max(count_cycles(compiled.as_text() or "") / lowered.steps / rate, roofline)
    except jax.errors.JaxRuntimeError:  # a program that this jaxlib cannot read, of a newer libtpu
        cautious = None
    seconds = (roofline, cautious)
    fits, took = memory <= chip.memory, time.monotonic() - began
    return Plan(*first, memory, fits, seconds, limit if fits else "memory", took)


def _cycles_a_second(device: Any) -> float:
    """What the compiler's cycles are worth: by a matrix product that runs at the full rate."""
    side = 8192
    matrix = jax.ShapeDtypeStruct((side, side), "bfloat16", sharding=SingleDeviceSharding(device))
    compiled: Any = jax.jit(lambda x, y: x @ y).lower(matrix, matrix).compile()
    seconds = 2 * side**3 / CHIPS[device.device_kind].flops
    return count_cycles(compiled.as_text()) / seconds


def count_cycles(program: str) -> int:
    """The compiler's estimated cycles of a program's text, loops as often as they run.

    A loop runs as often as the constant says that its condition compares with; branches add up.
    """
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in program.splitlines():
        begins = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if begins:
            lines = computations[begins[2]] = []
            entry = begins[2] if begins[1] else entry
        lines.append(line)

    def turns(condition: str) -> int:
        constants = re.findall(r"constant\((\d+)\)", "\n".join(computations[condition]))
        return int(constants[0]) if len(constants) == 1 else 1

    def count(name: str) -> int:
        total = 0
        for line in computations[name]:
            own = re.search(r'"estimated_cycles":"(\d+)"', line)
            total += int(own[1]) if own else 0
            loop = re.search(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)", line)
            if loop:
                total += turns(loop[1]) * count(loop[2])
            for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
                total += sum(count(branch.strip(" %")) for branch in branches.split(","))
            for branch in re.findall(r"(?:true|false)_computation=%?([\w.-]+)", line):
                total += count(branch)
            called = re.search(r" call\(.*to_apply=%?([\w.-]+)", line)
            total += count(called[1]) if called else 0
        return total

    return count(entry)


def table(config: Config, chips: Sequence[Any], plans: Sequence[Plan]) -> rich.table.Table:
    """A line a stage, in Markdown; 'read/s' are images, of which a step reads two batches."""
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
    """Two numbers, '?' where one is not known."""
    return " to ".join("?" if value is None else form.format(value) for value in values)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and returns 0; 2 after a mistake in the command line."""
    logging.set_verbosity(logging.ERROR)

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("topology", "v5e:4x4", "chips, such as v6e:8x8", flag_values=values)
        flags.DEFINE_integer("stage", 0, "of the search, from 1; 0: all", 0, flag_values=values)

    try:
        config, values, rest = parse(sys.argv if argv is None else argv, define)
        if rest:
            raise UserError(f"expected only flags, got {rest}")
        every = range(1, len(config.search.stages) + 1)
        if values.stage and values.stage not in every:
            raise UserError(f"--stage is {values.stage}: the config has stages 1 to {len(every)}")
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
