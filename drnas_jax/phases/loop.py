"""The host's part of a phase: epochs, checkpoints, history, signals."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from drnas_jax.data import Loader
from drnas_jax.errors import UserError
from drnas_jax.files import append_history, rewind_history
from drnas_jax.phases.skipped_images import SkippedImages
from drnas_jax.training import losses
from drnas_jax.training.checkpoints import Checkpoints
from drnas_jax.training.devices import platform, replicate
from drnas_jax.training.hosts import Agreement, from_primary
from drnas_jax.training.metrics import Display
from drnas_jax.training.progress import Progress, Status, check_resume
from drnas_jax.training.signals import Interrupt, Interrupted
from drnas_jax.writers import Writers

Watch = Callable[[Status], None]

_REPORT_EVERY = 0.5  # seconds; reading a loss waits for the device

# Opens the writers of the curves, given the first step that they get.
OpenWriters = Callable[[int], Writers]


class Phase(Protocol):
    """The part of a phase that differs from other phases. Its states have `step` and `totals`.

    Attributes:
      epochs: Number of epochs of the phase.
      steps: Number of steps of an epoch.
      checkpoint_steps: Number of steps between the checkpoints within an epoch; 0 if there are
        only those at its end.
      remat: Value of `compute.remat`.
      loader: Batches on the devices.
      mesh: Device mesh with the single axis `data`.
      display: What the user sees.
    """

    epochs: int
    steps: int
    checkpoint_steps: int
    remat: str
    loader: Loader
    mesh: jax.sharding.Mesh
    display: Display

    @property
    def name(self) -> str:
        """Name shown to the user, for example `search, stage 1/2`."""

    @property
    def finished(self) -> bool:
        """Whether the phase has ended before its last epoch."""

    def start(self) -> Any:
        """Returns a fresh state on the devices."""

    def state_shapes(self, metadata: Mapping[str, Any]) -> Any:
        """Returns the shapes of the state that a checkpoint with this metadata holds.

        Raises:
          UserError: The checkpoint does not belong to this phase.
        """

    def resume(self, metadata: Mapping[str, Any]) -> None:
        """Continues from a checkpoint with this metadata, whose state was restored."""

    def begin_epoch(self, state: Any, epoch: int) -> tuple[Any, Callable[..., Any]]:
        """Returns the state for an epoch (from 0), which a new stage changes, and its step."""

    def end_epoch(
        self, state: Any, epoch: int, train: Mapping[str, float]
    ) -> tuple[Any, dict[str, Any]]:
        """Returns the state with which the phase continues, and the epoch's history line."""

    def metadata(self) -> dict[str, Any]:
        """Returns what a checkpoint carries beside the state, as JSON values."""


def run(
    phase: Phase,
    directory: Path,
    interrupt: Interrupt | None = None,
    open_writers: OpenWriters | None = None,
    watch: Watch | None = None,
) -> tuple[Any, Progress]:
    """Runs a phase to its end, from its newest checkpoint or from its start.

    A checkpoint is written after each epoch, and when a signal asks the run to stop. All processes
    run this together; process 0 writes the files.

    Args:
      phase: The phase.
      directory: Directory of its checkpoints and history.jsonl.
      interrupt: Source of the signal that ends the run; None for the signals of this process.
      open_writers: Function that opens the writers of the curves; None if there are none.
      watch: Function that process 0 calls after each epoch, when its checkpoint is written.

    Returns:
      The final state and progress.

    Raises:
      UserError: The training loss is not finite, or the checkpoint was made with other data.
      Interrupted: A process received a signal. Unless nothing had been done since the last
        checkpoint, another one was written first.
    """
    with Checkpoints(directory / "checkpoints") as checkpoints:
        restored = checkpoints.restore(phase.state_shapes, phase.mesh, phase.display.message)
        if restored is None:
            state, progress = phase.start(), _progress(phase, 0, 0.0)
        else:
            checkpoint, state = restored
            phase.resume(checkpoint.phase)
            before = checkpoint.progress
            progress = _progress(phase, before.epochs_done, before.seconds)
            for message in check_resume(before, progress, phase.name):
                phase.display.message(message)
            phase.display.message(f"{phase.name}: resumed after step {int(state.step)}")
        given = interrupt or Interrupt()
        last = given, open_writers, watch
        return run_epochs(phase, state, progress, directory, checkpoints, *last)


def _progress(phase: Phase, epochs_done: int, seconds: float) -> Progress:
    """Returns the progress of a phase with the devices and data of this run."""
    return Progress(
        epochs_done=epochs_done,
        seconds=seconds,
        devices=phase.mesh.size,
        jax=jax.__version__,
        images=phase.loader.count,
        fingerprint=phase.loader.fingerprint,
        steps=phase.steps,
        remat=phase.remat,
    )


def run_epochs(
    phase: Phase,
    state: Any,
    progress: Progress,
    directory: Path,
    checkpoints: Checkpoints,
    interrupt: Interrupt,
    open_writers: OpenWriters | None = None,
    watch: Watch | None = None,
) -> tuple[Any, Progress]:
    """Runs the epochs that remain; see `run`.

    Args:
      phase: The phase.
      state: Fresh or restored state.
      progress: Progress that the state stands for.
      directory: Directory of history.jsonl.
      checkpoints: Checkpoints of this phase.
      interrupt: Source of the signal that ends the run.
      open_writers: Function that opens the writers of the curves; None if there are none.
      watch: Function that process 0 calls after each epoch.
    """
    with (
        contextlib.closing(phase.loader),
        interrupt,
        _Files(directory, progress.epochs_done, int(state.step), open_writers) as files,
    ):
        stop = _Stop(interrupt, phase.mesh)
        work = _Work(phase, directory, checkpoints, progress.seconds, stop, int(state.step))
        if files.lost:
            file = directory / "history.jsonl"
            phase.display.message(f"{file} lacks the lines of {files.lost} finished epochs")
        report_skipped = SkippedImages(phase.loader, phase.display).report
        for epoch in range(progress.epochs_done, phase.epochs):
            if phase.finished:
                break
            with _interruptible(interrupt):
                state, program = phase.begin_epoch(state, epoch)
            began = time.monotonic()
            state, rate = work.train(program, state, epoch)
            averages = work.averages(state, epoch)
            finished = int(state.step) == (epoch + 1) * phase.steps
            if finished:
                phase.display.finish()
                state, line = phase.end_epoch(state, epoch, averages)
                files.append(line | {"images_per_second": rate}, int(state.step))
                report_skipped()
                state = state.replace(totals=replicate(losses.zero_totals(), phase.mesh))
            work.save(state, epoch + finished)
            if finished and watch is not None:
                status = work.status(epoch + 1, time.monotonic() - began)
                from_primary(functools.partial(watch, status))
            if signum := work.stop.now():
                raise Interrupted(signum)
    return state, _progress(phase, int(state.step) // phase.steps, work.seconds)


def _interruptible(interrupt: Interrupt) -> contextlib.AbstractContextManager[None]:
    """Lets a signal end the process at once: during compilation there is nothing to save.

    Several processes must end together, so there the signal waits.
    """
    return interrupt.suspended() if jax.process_count() == 1 else contextlib.nullcontext()


class _Stop:
    """The signal that ends the run, in all processes at the same step; 0 if there is none."""

    def __init__(self, interrupt: Interrupt, mesh: jax.sharding.Mesh):
        self._interrupt, self._agreement = interrupt, Agreement(mesh)

    def soon(self) -> int:
        """Returns the signal of any process up to the step before, without waiting."""
        return self._agreement.before(self._interrupt.signum or 0)

    def now(self) -> int:
        """Returns the signal of any process up to now."""
        return self._agreement.now(self._interrupt.signum or 0)


class _Files:
    """The history and the curves, which process 0 writes."""

    def __init__(
        self, directory: Path, epochs_done: int, step: int, open_writers: OpenWriters | None
    ):
        self._history = directory / "history.jsonl"
        self._writers: Writers | None = None

        def begin() -> int:
            self._writers = open_writers(step + 1) if open_writers else None
            return epochs_done - rewind_history(self._history, epochs_done)

        self.lost = from_primary(begin)  # finished epochs without a line

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writers is not None:
            self._writers.close()

    def append(self, line: Mapping[str, Any], step: int) -> None:
        def write() -> None:
            append_history(self._history, line)
            if self._writers is not None:
                scalars = {name: v for name, v in line.items() if isinstance(v, float)}
                self._writers.scalars(scalars, step)

        from_primary(write)


class _Work:
    """The work of a phase in its directory.

    Args:
      phase: The phase.
      directory: Directory of the phase.
      checkpoints: Checkpoints of the phase.
      seconds: Duration of earlier runs of this phase, in seconds.
      stop: Signal that ends the run, if there is one.
      saved: Number of the checkpoint from which the run resumed, or 0.
    """

    def __init__(
        self,
        phase: Phase,
        directory: Path,
        checkpoints: Checkpoints,
        seconds: float,
        stop: _Stop,
        saved: int,
    ):
        self.stop, self._phase, self._directory, self._saved = stop, phase, directory, saved
        self._checkpoints, self._began = checkpoints, time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        """Running time of the phase so far, in seconds."""
        return time.monotonic() - self._began

    def save(self, state: Any, epochs_done: int) -> None:
        """Writes a checkpoint."""
        progress = _progress(self._phase, epochs_done, self.seconds)
        self._checkpoints.save(int(state.step), state, progress, self._phase.metadata())
        self._saved = int(state.step)

    def status(self, epoch: int, seconds: float) -> Status:
        """Returns how far the phase is after an epoch (from 1) that took some seconds."""
        phase = self._phase
        last = epoch if phase.finished else phase.epochs
        return Status(phase.name, epoch, last, self.seconds, seconds)

    def averages(self, state: Any, epoch: int) -> dict[str, float]:
        """Returns the training loss and accuracy of the epoch so far.

        Raises:
          UserError: The loss is not finite.
        """
        averages = losses.averages(jax.device_get(state.totals))
        if not np.isfinite(averages["loss"]):
            saved = "no checkpoint was written before"
            if self._saved:
                folder = self._directory / "checkpoints"
                saved = f"the last good checkpoint, of step {self._saved}, is in {folder}"
            raise UserError(
                f"the training loss is {averages['loss']} at step {int(state.step)} "
                f"({self._phase.name}, epoch {epoch + 1}): lower the learning rate and start in a "
                f"new workdir; {saved}"
            )
        return averages

    def train(self, program: Callable[..., Any], state: Any, epoch: int) -> tuple[Any, float]:
        """Trains to the end of the epoch or to a signal.

        Returns:
          The state, and the number of training images per second.
        """
        phase, display = self._phase, self._phase.display
        title = f"{phase.name}, epoch {epoch + 1}/{phase.epochs}"
        display.start(title, phase.epochs * phase.steps, int(state.step))
        began = reported = time.monotonic()
        images = seen = 0
        done = int(state.step) - epoch * phase.steps
        # Simulated devices of one CPU share its threads. With several steps in flight the
        # collectives of one step could wait forever for threads that those of another occupy.
        blocking = platform(phase.mesh) == "cpu"

        def report(rate: float) -> None:
            averages = losses.averages(jax.device_get(state.totals))
            display.update(int(state.step), averages["loss"], averages["accuracy"], rate)

        for steps, dispatch in phase.loader.training(epoch, done):
            state = program(state, phase.loader.raw, dispatch)
            if blocking:
                jax.block_until_ready(state)
            images += steps * phase.loader.batch_size
            done += steps
            since = time.monotonic() - reported
            if since > _REPORT_EVERY:
                report((images - seen) / since)
                reported, seen = time.monotonic(), images
            if self.stop.soon():
                break
            if _due(phase, epoch, done, steps) and done < phase.steps:
                self.averages(state, epoch)
                self.save(state, epoch)
        jax.block_until_ready(state)
        rate = images / max(time.monotonic() - began, 1e-9)
        report(rate)
        return state, rate


def _due(phase: Phase, epoch: int, done: int, steps: int) -> bool:
    """Returns whether a checkpoint was due within the last `steps` steps."""
    if not phase.checkpoint_steps:
        return False
    step = epoch * phase.steps + done
    return step // phase.checkpoint_steps > (step - steps) // phase.checkpoint_steps


def evaluate(
    program: Callable[..., losses.Totals],
    state: Any,
    raw: Any,
    batches: Iterable[tuple[Any, jax.Array]],
) -> dict[str, float]:
    """Returns loss, accuracy and top-5 accuracy over all examples, each counted once.

    Args:
      program: Compiled function (state, raw, batch [b], weight [b]) -> totals.
      state: First argument of the program.
      raw: Second argument of the program.
      batches: Batches with their weights.
    """
    sums: dict[str, float] = dict.fromkeys(losses.zero_totals(), 0.0)
    for batch, weight in batches:
        for name, value in jax.device_get(program(state, raw, batch, weight)).items():
            sums[name] += float(value)
    return losses.averages(sums)
