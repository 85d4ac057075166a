"""What the host does in a phase, for the search and for retraining alike."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from drnas_jax import losses
from drnas_jax.checkpoint import Checkpoints
from drnas_jax.data import eval_batches
from drnas_jax.errors import UserError
from drnas_jax.interrupt import Interrupt, Interrupted
from drnas_jax.metrics import Display, TensorBoard, append_history, rewind_history
from drnas_jax.sharding import platform, replicate

_REPORT_EVERY = 0.5  # seconds; reading a loss waits for the device


class Progress(NamedTuple):
    """What a phase has behind it: whole epochs, and seconds (earlier, killed runs included)."""

    epochs_done: int
    seconds: float


class Phase(Protocol):
    """What differs between phases. States have `step` and `totals`.

    Attributes:
      epochs: of the phase.
      steps: in an epoch.
      arguments: of every step, the same for all, such as the images on the devices.
      mesh: the devices.
    """

    epochs: int
    steps: int
    arguments: tuple[Any, ...]
    mesh: jax.sharding.Mesh

    @property
    def name(self) -> str:
        """For a person; may tell the stage."""

    def begin_epoch(self, state: Any, epoch: int) -> tuple[Any, Callable[..., Any]]:
        """The state for an epoch (from 0; a new stage changes it) and its compiled step."""

    def batches(self, epoch: int, done: int) -> Iterator[Sequence[np.ndarray]]:
        """Example numbers [steps, b] of each dispatch after `done` steps; training ones first."""

    def end_epoch(self, state: Any, epoch: int, train: Mapping[str, float]) -> dict[str, Any]:
        """The epoch's history line."""

    def metadata(self) -> dict[str, Any]:
        """What is static beside the state, in JSON values: a checkpoint carries it."""


def run_phase(
    phase: Phase,
    state: Any,
    progress: Progress,
    directory: Path,
    checkpoints: Checkpoints,
    display: Display,
) -> tuple[Any, Progress]:
    """Runs the remaining epochs, with a checkpoint after each and where a signal asks for one.

    Args:
      phase: what to run.
      state: fresh or restored.
      progress: what lies behind it.
      directory: of history.jsonl and the event files.
      checkpoints: of this phase.
      display: what a person sees.

    Raises:
      UserError: the training loss is not finite.
      Interrupted: a signal came; a checkpoint was written first.
    """
    began = time.monotonic()
    if int(state.step):
        display.message(f"{phase.name}: goes on after step {int(state.step)}")
    rewind_history(directory / "history.jsonl", progress.epochs_done)
    with (
        Interrupt() as interrupt,
        TensorBoard(directory, resume_step=int(state.step) + 1) as tensorboard,
    ):
        for epoch in range(progress.epochs_done, phase.epochs):
            state, program = phase.begin_epoch(state, epoch)
            display.start(
                f"{phase.name}, epoch {epoch + 1}/{phase.epochs}",
                phase.epochs * phase.steps,
                int(state.step),
            )
            batches = phase.batches(epoch, int(state.step) - epoch * phase.steps)
            state, rate = _run_epoch(phase, program, state, batches, display, interrupt)
            step = int(state.step)
            train = losses.averages(jax.device_get(state.totals))
            _check_finite(
                train["loss"], f"step {step} ({phase.name}, epoch {epoch + 1})", directory
            )
            finished = step == (epoch + 1) * phase.steps
            if finished:
                display.finish()
                line = phase.end_epoch(state, epoch, train)
                line["images_per_second"] = rate
                append_history(directory / "history.jsonl", line)
                scalars = {name: v for name, v in line.items() if isinstance(v, float)}
                tensorboard.scalars(scalars, step)
                state = state.replace(totals=replicate(losses.zero_totals(), phase.mesh))
            seconds = progress.seconds + time.monotonic() - began
            now = Progress(epoch + finished, seconds)
            checkpoints.save(step, state, {**now._asdict(), **phase.metadata()})
            if interrupt.signum is not None:
                raise Interrupted(interrupt.signum)
    return state, Progress(phase.epochs, progress.seconds + time.monotonic() - began)


def _run_epoch(
    phase: Phase,
    program: Callable[..., Any],
    state: Any,
    batches: Iterable[Sequence[np.ndarray]],
    display: Display,
    interrupt: Interrupt,
) -> tuple[Any, float]:
    """The state after the batches, or after a signal; and training images per second."""
    began = reported = time.monotonic()
    images = seen = 0
    # Simulated devices of one CPU share its threads: with several steps in flight, the collectives
    # of one can wait for threads that those of another hold, for ever.
    blocking = platform(phase.mesh) == "cpu"

    def report(rate: float) -> None:
        averages = losses.averages(jax.device_get(state.totals))
        display.update(int(state.step), averages["loss"], averages["accuracy"], rate)

    for batch in batches:
        state = program(state, *phase.arguments, *batch)
        if blocking:
            jax.block_until_ready(state)
        images += batch[0].size
        since = time.monotonic() - reported
        if since > _REPORT_EVERY:
            report((images - seen) / since)
            reported, seen = time.monotonic(), images
        if interrupt.signum is not None:
            break
    jax.block_until_ready(state)
    rate = images / max(time.monotonic() - began, 1e-9)
    report(rate)
    return state, rate


def _check_finite(loss: float, where: str, directory: Path) -> None:
    if not np.isfinite(loss):
        raise UserError(
            f"the training loss is {loss} at {where}: lower the learning rate and start in a new "
            f"workdir; the last good checkpoint is in {directory / 'checkpoints'}"
        )


def evaluate(
    program: Callable[..., losses.Totals],
    arguments: Sequence[Any],
    count: int,
    batch_size: int,
) -> dict[str, float]:
    """Loss, accuracy and top-5 over `count` examples, each counted once.

    Args:
      program: (*arguments, index [b], weight [b]) -> totals.
      arguments: the same for all batches.
      count: examples 0 to count - 1.
      batch_size: the global batch.
    """
    sums: dict[str, float] = dict.fromkeys(losses.zero_totals(), 0.0)
    for index, weight in zip(*eval_batches(count, batch_size), strict=True):
        for name, value in jax.device_get(program(*arguments, index, weight)).items():
            sums[name] += float(value)
    return losses.averages(sums)
