"""What the host does in a phase, for the search and for retraining alike."""

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from drnas_jax import losses
from drnas_jax.checkpoint import Checkpoints
from drnas_jax.distributed import Agreement, is_primary, total
from drnas_jax.errors import UserError
from drnas_jax.feed import Reader
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
      checkpoint_steps: a checkpoint after so many steps, besides those of each epoch; 0: none.
      reader: of the batches.
      mesh: the devices.
    """

    epochs: int
    steps: int
    checkpoint_steps: int
    reader: Reader
    mesh: jax.sharding.Mesh

    @property
    def name(self) -> str:
        """For a person; may tell the stage."""

    def begin_epoch(self, state: Any, epoch: int) -> tuple[Any, Callable[..., Any]]:
        """The state for an epoch (from 0; a new stage changes it) and its compiled step."""

    def end_epoch(self, state: Any, epoch: int, train: Mapping[str, float]) -> dict[str, Any]:
        """The epoch's history line."""

    def metadata(self) -> dict[str, Any]:
        """What is static beside the state, in JSON values: a checkpoint carries it."""


def resumed(found: Mapping[str, Any], mesh: jax.sharding.Mesh, display: Display) -> Progress:
    """The progress that a checkpoint's metadata tell of; says if the devices were others."""
    if found["devices"] != mesh.size:
        display.message(
            f"begun on {found['devices']} devices, goes on with {mesh.size}: the result may differ "
            "in rounding, and in more where batch statistics or mixing samples are per device"
        )
    return Progress(found["epochs_done"], found["seconds"])


def run_phase(
    phase: Phase,
    state: Any,
    progress: Progress,
    directory: Path,
    checkpoints: Checkpoints,
    display: Display,
) -> tuple[Any, Progress]:
    """Runs the remaining epochs, with a checkpoint after each and where a signal asks for one.

    All processes run this together; process 0 writes the files.

    Args:
      phase: what to run.
      state: fresh or restored.
      progress: what lies behind it.
      directory: of history.jsonl and the event files.
      checkpoints: of this phase.
      display: what a person sees.

    Raises:
      UserError: the training loss is not finite.
      Interrupted: a signal came, to any process; a checkpoint was written first.
    """
    saver = _Saver(phase, checkpoints, progress.seconds)
    phase.reader.go_on(int(state.step))
    if int(state.step):
        display.message(f"{phase.name}: goes on after step {int(state.step)}")
    with (
        contextlib.closing(phase.reader),
        Interrupt() as interrupt,
        _Files(directory, progress.epochs_done, int(state.step)) as files,
    ):
        if files.lost:
            display.message(f"{directory / 'history.jsonl'} lacks {files.lost} epochs' lines")
        stop = _Stop(interrupt, phase.mesh)
        for epoch in range(progress.epochs_done, phase.epochs):
            state, program = phase.begin_epoch(state, epoch)
            display.start(
                f"{phase.name}, epoch {epoch + 1}/{phase.epochs}",
                phase.epochs * phase.steps,
                int(state.step),
            )
            state, rate = _run_epoch(phase, program, state, epoch, saver, display, stop)
            step = int(state.step)
            train = losses.averages(jax.device_get(state.totals))
            _check_finite(
                train["loss"], f"step {step} ({phase.name}, epoch {epoch + 1})", directory
            )
            finished = step == (epoch + 1) * phase.steps
            if finished:
                display.finish()
                line = phase.end_epoch(state, epoch, train)
                files.append(line | {"images_per_second": rate}, step)
                report_skipped(phase.reader, display)
                state = state.replace(totals=replicate(losses.zero_totals(), phase.mesh))
            saver.save(state, epoch + finished)
            if signum := stop.now():
                raise Interrupted(signum)
    return state, Progress(phase.epochs, saver.seconds)


class _Saver:
    """Writes the checkpoints of a phase, which took some seconds before."""

    def __init__(self, phase: Phase, checkpoints: Checkpoints, seconds: float):
        self._phase, self._checkpoints = phase, checkpoints
        self._began = time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        """Of the phase so far."""
        return time.monotonic() - self._began

    def save(self, state: Any, epochs_done: int) -> None:
        now = {
            "epochs_done": epochs_done,
            "seconds": self.seconds,
            "devices": self._phase.mesh.size,
        }
        self._checkpoints.save(int(state.step), state, {**now, **self._phase.metadata()})


class _Stop:
    """Which signal ends the run, in all processes at the same step; 0: none."""

    def __init__(self, interrupt: Interrupt, mesh: jax.sharding.Mesh):
        self._interrupt, self._agreement = interrupt, Agreement(mesh)

    def soon(self) -> int:
        """Without waiting: of the signals until the step before."""
        return self._agreement.before(self._interrupt.signum or 0)

    def now(self) -> int:
        return self._agreement.now(self._interrupt.signum or 0)


class _Files:
    """History and TensorBoard events, which process 0 writes."""

    def __init__(self, directory: Path, epochs_done: int, step: int):
        self._history = directory / "history.jsonl"
        self._tensorboard = None
        self.lost = 0  # lines of epochs that are done
        if is_primary():
            self.lost = epochs_done - rewind_history(self._history, epochs_done)
            self._tensorboard = TensorBoard(directory, resume_step=step + 1)

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()

    def append(self, line: Mapping[str, Any], step: int) -> None:
        if self._tensorboard is not None:
            append_history(self._history, line)
            scalars = {name: v for name, v in line.items() if isinstance(v, float)}
            self._tensorboard.scalars(scalars, step)


def _run_epoch(
    phase: Phase,
    program: Callable[..., Any],
    state: Any,
    epoch: int,
    saver: _Saver,
    display: Display,
    stop: _Stop,
) -> tuple[Any, float]:
    """The state after the epoch, or after a signal; and training images per second."""
    began = reported = time.monotonic()
    images = seen = 0
    done = int(state.step) - epoch * phase.steps
    # Simulated devices of one CPU share its threads: with several steps in flight, the collectives
    # of one can wait for threads that those of another hold, for ever.
    blocking = platform(phase.mesh) == "cpu"

    def report(rate: float) -> None:
        averages = losses.averages(jax.device_get(state.totals))
        display.update(int(state.step), averages["loss"], averages["accuracy"], rate)

    for batches in phase.reader.training(epoch, done):
        state = program(state, phase.reader.raw, *batches)
        if blocking:
            jax.block_until_ready(state)
        labels = jax.tree.leaves(batches[0])[-1]  # or example numbers: [steps, b]
        images += labels.size
        done += len(labels)
        since = time.monotonic() - reported
        if since > _REPORT_EVERY:
            report((images - seen) / since)
            reported, seen = time.monotonic(), images
        if stop.soon():
            break
        if _due(phase, epoch, done, len(labels)) and done < phase.steps:
            saver.save(state, epoch)
    jax.block_until_ready(state)
    rate = images / max(time.monotonic() - began, 1e-9)
    report(rate)
    return state, rate


def _due(phase: Phase, epoch: int, done: int, steps: int) -> bool:
    """Whether a checkpoint falls into the last few steps."""
    if not phase.checkpoint_steps:
        return False
    step = epoch * phase.steps + done
    return step // phase.checkpoint_steps > (step - steps) // phase.checkpoint_steps


def report_skipped(reader: Reader, display: Display) -> None:
    """Tells how many unreadable images were left out since the run was started, if any.

    Of a data set in memory every process knows all; of a streamed one it knows those it read.
    """
    found = len(reader.skipped)
    skipped = found if reader.raw is not None else int(total(found))
    if skipped:
        example = f", for instance: {next(iter(reader.skipped))}" if found else ""
        display.message(f"unreadable images left out so far: {skipped}{example}")


def _check_finite(loss: float, where: str, directory: Path) -> None:
    if not np.isfinite(loss):
        raise UserError(
            f"the training loss is {loss} at {where}: lower the learning rate and start in a new "
            f"workdir; the last good checkpoint is in {directory / 'checkpoints'}"
        )


def evaluate(
    program: Callable[..., losses.Totals],
    state: Any,
    raw: Any,
    batches: Iterable[tuple[Any, jax.Array]],
) -> dict[str, float]:
    """Loss, accuracy and top-5 over all examples of the batches, each counted once.

    Args:
      program: (state, raw, batch [b], weight [b]) -> totals.
      state: its first argument.
      raw: its second.
      batches: with weights.
    """
    sums: dict[str, float] = dict.fromkeys(losses.zero_totals(), 0.0)
    for batch, weight in batches:
        for name, value in jax.device_get(program(state, raw, batch, weight)).items():
            sums[name] += float(value)
    return losses.averages(sums)
