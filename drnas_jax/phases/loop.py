"""What the host does in a phase, for the search and for retraining alike."""

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from drnas_jax.data.feed import Reader
from drnas_jax.errors import UserError
from drnas_jax.files import append_history, rewind_history
from drnas_jax.training import losses
from drnas_jax.training.checkpoints import Checkpoints, Saved
from drnas_jax.training.devices import platform, replicate
from drnas_jax.training.hosts import Agreement, from_primary, total
from drnas_jax.training.metrics import Display, TensorBoard
from drnas_jax.training.signals import Interrupt, Interrupted

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
      display: what a person sees.
    """

    epochs: int
    steps: int
    checkpoint_steps: int
    reader: Reader
    mesh: jax.sharding.Mesh
    display: Display

    @property
    def name(self) -> str:
        """For a person; may tell the stage."""

    def start(self) -> Any:
        """A fresh state on the devices."""

    def restore(self, checkpoints: Checkpoints) -> tuple[Saved, Any] | None:
        """The newest checkpoint that is whole, and its state; None if there is none.

        Raises:
          UserError: it is of something else than this phase.
        """

    def begin_epoch(self, state: Any, epoch: int) -> tuple[Any, Callable[..., Any]]:
        """The state for an epoch (from 0; a new stage changes it) and its compiled step."""

    def end_epoch(self, state: Any, epoch: int, train: Mapping[str, float]) -> dict[str, Any]:
        """The epoch's history line."""

    def metadata(self) -> dict[str, Any]:
        """What is static beside the state, in JSON values: a checkpoint carries it."""


def run(phase: Phase, directory: Path) -> tuple[Any, Progress]:
    """Runs a phase from its newest checkpoint, or from its start, to its end.

    Writes a checkpoint after each epoch and where a signal asks for one. All processes run this
    together; process 0 writes the files.

    Args:
      phase: what to run.
      directory: of its checkpoints, history.jsonl and event files.

    Returns:
      The state at the end, and how far it is.

    Raises:
      UserError: the training loss is not finite, or the checkpoint is of other data.
      Interrupted: a signal came, to any process; a checkpoint was written first, if anything had
        been done since the last one.
    """
    with Checkpoints(directory / "checkpoints") as checkpoints:
        restored = phase.restore(checkpoints)
        if restored is None:
            return run_epochs(phase, phase.start(), Progress(0, 0.0), directory, checkpoints)
        saved, state = restored
        progress = resumed(saved.metadata, phase)
        phase.display.message(f"{phase.name}: goes on after step {int(state.step)}")
        return run_epochs(phase, state, progress, directory, checkpoints)


def resumed(found: Mapping[str, Any], phase: Phase) -> Progress:
    """The progress that a checkpoint's metadata tell of; says what is other than it was.

    Raises:
      UserError: the data are others.
    """
    images, steps = phase.reader.images, phase.steps
    if (found["images"], found["steps"]) != (images, steps):
        raise UserError(
            f"{phase.name} was begun with {found['images']} training images, {found['steps']} "
            f"steps an epoch, but the data have {images} now, {steps} steps: put back the images "
            "that it was begun with, or take a new workdir"
        )
    if found["fingerprint"] != phase.reader.fingerprint:
        raise UserError(
            f"{phase.name} was begun with other images, though as many: files were renamed or "
            "exchanged, or data.dir is another; put back those that it was begun with, or take a "
            "new workdir"
        )
    if found["devices"] != phase.mesh.size:
        phase.display.message(
            f"begun on {found['devices']} devices, goes on with {phase.mesh.size}: the result may "
            "differ in rounding, and in more where batch statistics or samples are per device"
        )
    if found["jax"] != jax.__version__:
        phase.display.message(
            f"begun with jax {found['jax']}, goes on with {jax.__version__}: the result may differ "
            "in rounding"
        )
    return Progress(found["epochs_done"], found["seconds"])


def run_epochs(
    phase: Phase, state: Any, progress: Progress, directory: Path, checkpoints: Checkpoints
) -> tuple[Any, Progress]:
    """The epochs that remain; see `run`.

    Args:
      phase: what to run.
      state: fresh or restored.
      progress: what lies behind it.
      directory: of history.jsonl and the event files.
      checkpoints: of this phase.
    """
    phase.reader.go_on(int(state.step))
    with (
        contextlib.closing(phase.reader),
        Interrupt() as interrupt,
        _Files(directory, progress.epochs_done, int(state.step)) as files,
    ):
        work = _Work(phase, directory, checkpoints, progress.seconds, _Stop(interrupt, phase.mesh))
        if files.lost:
            phase.display.message(f"{directory / 'history.jsonl'} lacks {files.lost} epochs' lines")
        for epoch in range(progress.epochs_done, phase.epochs):
            with _ended_at_once(interrupt):
                state, program = phase.begin_epoch(state, epoch)
            state, rate = work.train(program, state, epoch)
            averages = work.averages(state, epoch)
            finished = int(state.step) == (epoch + 1) * phase.steps
            if finished:
                phase.display.finish()
                line = phase.end_epoch(state, epoch, averages)
                files.append(line | {"images_per_second": rate}, int(state.step))
                report_skipped(phase.reader, phase.display)
                state = state.replace(totals=replicate(losses.zero_totals(), phase.mesh))
            work.save(state, epoch + finished)
            if signum := work.stop.now():
                raise Interrupted(signum)
    return state, Progress(phase.epochs, work.seconds)


def _ended_at_once(interrupt: Interrupt) -> contextlib.AbstractContextManager[None]:
    """While a step is compiled there is nothing to save; but several processes end together."""
    return interrupt.suspended() if jax.process_count() == 1 else contextlib.nullcontext()


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
        self._tensorboard: TensorBoard | None = None

        def begin() -> int:
            self._tensorboard = TensorBoard(directory, resume_step=step + 1)
            return epochs_done - rewind_history(self._history, epochs_done)

        self.lost = from_primary(begin)  # lines of epochs that are done

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()

    def append(self, line: Mapping[str, Any], step: int) -> None:
        def write() -> None:
            assert self._tensorboard is not None
            append_history(self._history, line)
            scalars = {name: v for name, v in line.items() if isinstance(v, float)}
            self._tensorboard.scalars(scalars, step)

        from_primary(write)


class _Work:
    """A phase at work in a directory, which took some seconds before."""

    def __init__(
        self,
        phase: Phase,
        directory: Path,
        checkpoints: Checkpoints,
        seconds: float,
        stop: _Stop,
    ):
        self.stop, self._phase, self._directory = stop, phase, directory
        self._checkpoints, self._began = checkpoints, time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        """Of the phase so far."""
        return time.monotonic() - self._began

    def save(self, state: Any, epochs_done: int) -> None:
        """Writes a checkpoint."""
        now = {
            "epochs_done": epochs_done,
            "seconds": self.seconds,
            "devices": self._phase.mesh.size,
            "jax": jax.__version__,
            "images": self._phase.reader.images,
            "fingerprint": self._phase.reader.fingerprint,
            "steps": self._phase.steps,
        }
        self._checkpoints.save(int(state.step), state, {**now, **self._phase.metadata()})

    def averages(self, state: Any, epoch: int) -> dict[str, float]:
        """Training loss and accuracy of the epoch so far; UserError if the loss is not finite."""
        averages = losses.averages(jax.device_get(state.totals))
        if not np.isfinite(averages["loss"]):
            raise UserError(
                f"the training loss is {averages['loss']} at step {int(state.step)} "
                f"({self._phase.name}, epoch {epoch + 1}): lower the learning rate and start in a "
                f"new workdir; the last good checkpoint is in {self._directory / 'checkpoints'}"
            )
        return averages

    def train(self, program: Callable[..., Any], state: Any, epoch: int) -> tuple[Any, float]:
        """The state after the epoch, or after a signal; and training images per second."""
        phase, display = self._phase, self._phase.display
        title = f"{phase.name}, epoch {epoch + 1}/{phase.epochs}"
        display.start(title, phase.epochs * phase.steps, int(state.step))
        began = reported = time.monotonic()
        images = seen = 0
        done = int(state.step) - epoch * phase.steps
        # Simulated devices of one CPU share its threads: with several steps in flight, the
        # collectives of one can wait for threads that those of another hold, for ever.
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
            if self.stop.soon():
                break
            if _due(phase, epoch, done, len(labels)) and done < phase.steps:
                self.averages(state, epoch)
                self.save(state, epoch)
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
