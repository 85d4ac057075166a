"""Saves and restores the state of a phase with Orbax, which no other module imports.

One process may read damaged data although the others read it well, for example on network storage.
So each process reads and verifies a checkpoint by itself, without waiting for others, and
then all agree on whether it counts.
"""

import contextlib
import dataclasses
import functools
import importlib
import json
import logging
import os
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import jax
import numpy as np
from absl import logging as absl_logging
from jax.sharding import Mesh, SingleDeviceSharding

from drnas_jax.errors import UserError
from drnas_jax.training.devices import replicate
from drnas_jax.training.hosts import from_primary, gather
from drnas_jax.training.progress import Progress

T = TypeVar("T")


def _orbax() -> ModuleType:
    """Imports Orbax's v1 interface, which its authors recommend for new code.

    It is `orbax.checkpoint.v1` in most releases and `orbax.checkpoint.experimental.v1` in earlier
    ones. It is announced to be `orbax.checkpoint` itself from 1.0 on.
    """
    for name in ("orbax.checkpoint.v1", "orbax.checkpoint.experimental.v1"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not (error.name and f"{name}.".startswith(f"{error.name}.")):
                raise
    return importlib.import_module("orbax.checkpoint")


ocp: Any = _orbax()
_CHECKPOINTS_TO_KEEP = 2  # the newest one, and one to go back to


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """What is stored in a checkpoint beside the arrays of the state.

    Attributes:
      step: Number of the checkpoint, which is the number of steps of the phase that were done.
      progress: How far the phase was, and what it ran on.
      phase: JSON values from which the phase derives the shapes of its state.
      checksums: CRC-32 of every array, by its name.
    """

    step: int
    progress: Progress
    phase: dict[str, Any]
    checksums: Mapping[str, int]


class Checkpoints:
    """The checkpoints of one phase, numbered by step. It is a context manager.

    Args:
      directory: Folder of the checkpoints.
      cleanup: Whether to remove what a killed process left of a checkpoint. It must be False if
        another process may be saving.
    """

    def __init__(self, directory: str | Path, cleanup: bool = True):
        self._context = context = ocp.Context()
        context.pytree.loading.partial_load = True
        try:
            self._checkpointer = ocp.training.Checkpointer(
                Path(directory).absolute(),
                context=context,
                preservation_policy=ocp.training.preservation_policies.LatestN(
                    _CHECKPOINTS_TO_KEEP
                ),
                cleanup_tmp_directories=cleanup,
            )
        except (ValueError, OSError) as error:
            raise UserError(
                f"the checkpoints in {directory} cannot be read ({_first_line(error)}): fix "
                "that, or start in a new workdir"
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._checkpointer.close()
        except Exception:  # Orbax raises the error of a failed save a second time
            if kind is None:
                raise

    def latest(self) -> CheckpointInfo | None:
        """Describes the newest complete checkpoint, or returns None if there is no checkpoint.

        All processes call it.

        Raises:
          UserError: If its description is damaged, or was written by drnas_jax 0.1.
        """
        steps = self._steps()
        return self._info(steps[-1]) if steps else None

    def restore(
        self,
        shapes: Callable[[dict[str, Any]], Any],
        mesh: Mesh,
        report: Callable[[str], None],
    ) -> tuple[CheckpointInfo, Any] | None:
        """Loads the newest intact checkpoint, or returns None if there is no checkpoint.

        A checkpoint is intact if all processes can read it; all processes call this method. Newer
        checkpoints are renamed to NUMBER.damaged.

        Args:
          shapes: Function from `CheckpointInfo.phase` to the state to load, with a
            `jax.ShapeDtypeStruct` in place of every array. A checkpoint may be of another stage
            than the phase is in, so only its own description determines the shapes. The function
            raises a UserError if the checkpoint does not belong to this phase.
          mesh: Device mesh with the single axis `data`.
          report: Function that shows the user one line about each damaged checkpoint.

        Returns:
          The description of the checkpoint, and the state with a copy on every device.

        Raises:
          UserError: If there are checkpoints but none is intact, or if drnas_jax 0.1 wrote them.
            They stay as they are.
        """
        faults: dict[int, _DamagedError] = {}
        for step in reversed(self._steps()):
            try:
                info = self._info(step)
                wanted = _in_all_processes(functools.partial(shapes, info.phase))
                state = self.load(info, wanted, mesh)
            except _DamagedError as error:
                faults[step] = error
                continue
            from_primary(functools.partial(self._set_aside, list(faults)))
            for damaged, fault in faults.items():
                report(f"{fault.reason}: set aside as {damaged}.damaged; checkpoint {step} is used")
            self._checkpointer.reload()
            return info, state
        if faults:
            raise faults[max(faults)]
        return None

    def _set_aside(self, steps: Sequence[int]) -> None:
        """Renames damaged checkpoints."""
        folder = Path(self._checkpointer.directory)
        for step in steps:
            target = folder / f"{step}.damaged"
            if target.exists():  # an earlier run set aside a checkpoint of the same number
                shutil.rmtree(target)
            (folder / str(step)).rename(target)

    def _steps(self) -> list[int]:
        """Returns the numbers of the checkpoints that process 0 sees, in ascending order."""
        return from_primary(lambda: sorted(each.step for each in self._checkpointer.checkpoints))

    def _info(self, step: int) -> CheckpointInfo:
        """Reads and verifies the description of a checkpoint; all processes call it."""
        info = _in_all_processes(lambda: self._read_info(step))
        if len(set(gather(_checksum_of_json(info.checksums)))) > 1:
            raise self._damaged(step, "the processes read different descriptions of it")
        return info

    def _read_info(self, step: int) -> CheckpointInfo:
        try:
            stored = self._checkpointer.metadata(step).custom_metadata
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise self._damaged(step, _first_line(error)) from error
        if not stored:  # Orbax returns nothing for a file that is incomplete or missing
            raise self._damaged(step, "its description is missing")
        if "metadata" in stored and "progress" not in stored:
            raise UserError(
                f"checkpoint {step} in {self._checkpointer.directory} was written by drnas_jax "
                "0.1, which stored progress and network in one table: start in a new workdir (or "
                "use 0.1 to finish it)"
            )
        content = {name: value for name, value in stored.items() if name != "checksum"}
        if stored.get("checksum") != _checksum_of_json(content):
            raise self._damaged(step, "its description was changed after it was written")
        progress = Progress.from_json(content["progress"])
        return CheckpointInfo(step, progress, content["phase"], content["checksums"])

    def save(self, step: int, state: Any, progress: Progress, phase: Mapping[str, Any]) -> None:
        """Writes a checkpoint, which counts only once it is complete.

        Args:
          step: Number of the checkpoint, which must not exist yet.
          state: Pytree of arrays.
          progress: How far the phase is, and what it runs on.
          phase: JSON values from which the phase derives the shapes of the state.

        Raises:
          UserError: If it could not be written. Earlier checkpoints stay as they are.
        """
        content = {
            "progress": progress.to_json(),
            "phase": phase,
            "checksums": _checksums(state),
        }
        stored = {**content, "checksum": _checksum_of_json(content)}
        try:
            with _quiet_failures():
                self._checkpointer.save(step, state, custom_metadata=stored)
        except (ValueError, OSError) as error:
            raise UserError(
                f"checkpoint {step} could not be written to {self._checkpointer.directory} "
                f"({_system_reason(error)}): fix that and run the same command again, which "
                "resumes from the previous checkpoint"
            ) from error

    def load(self, info: CheckpointInfo, shapes: Any, mesh: Mesh) -> Any:
        """Loads a checkpoint, or a part of it, with a copy on every device.

        All processes call it.

        Args:
          info: Description of the checkpoint.
          shapes: Pytree to load, with an array or `jax.ShapeDtypeStruct` for every array.
          mesh: Device mesh with the single axis `data`.

        Raises:
          UserError: If the stored arrays have other shapes, are missing, or are damaged, in any
            process.
        """
        return replicate(_in_all_processes(lambda: self._read(info, shapes)), mesh)

    def _read(self, info: CheckpointInfo, shapes: Any) -> Any:
        """Reads and verifies arrays in this process, without waiting for others.

        All processes that call it must have read the description, since Orbax counts the calls.
        """
        sharding, step = SingleDeviceSharding(jax.local_devices()[0]), info.step
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
        )
        try:
            with _in_this_process(self._context):
                state = self._checkpointer.load(step, abstract)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise self._damaged(step, _first_line(error)) from error
        expected = jax.tree_util.tree_leaves_with_path(abstract)
        for (path, leaf), loaded in zip(expected, jax.tree.leaves(state), strict=True):
            name = jax.tree_util.keystr(path)
            if not isinstance(loaded, jax.Array):  # a partial load skips arrays that are missing
                raise self._damaged(step, f"it has no {name}")
            if loaded.shape != leaf.shape:
                raise self._damaged(step, f"{name} has shape {loaded.shape}, not {leaf.shape}")
        for name, checksum in _checksums(state).items():
            if checksum != info.checksums.get(name):
                raise self._damaged(step, f"{name} was changed after it was written")
        return jax.tree.map(np.asarray, state)

    def _damaged(self, step: int, reason: str) -> "_DamagedError":
        return _DamagedError(
            f"checkpoint {step} in {self._checkpointer.directory} cannot be restored ({reason})"
        )


class _DamagedError(UserError):
    """A checkpoint cannot be restored.

    Attributes:
      reason: What is wrong with which checkpoint, without what to do.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"{reason}: it is damaged or from another config; start in a new workdir, or remove "
            "that folder to go back to the previous checkpoint"
        )


def _in_all_processes(function: Callable[[], T]) -> T:
    """Calls a function in every process; if it fails in any of them, all raise the same error.

    Raises:
      _DamagedError: It was raised in some processes, and no other UserError in any.
      UserError: It was raised in some processes.
    """
    result, outcome = None, None
    try:
        result = function()
    except _DamagedError as error:
        outcome = [True, error.reason]
    except UserError as error:
        outcome = [False, str(error)]
    failed = {number: each for number, each in enumerate(gather(outcome)) if each is not None}
    if not failed:
        return result  # type: ignore[return-value]
    number, (damaged, text) = min(failed.items(), key=lambda item: (item[1][0], item[0]))
    if damaged and len(failed) < jax.process_count():
        text = f"{text} by process {number}"
    raise _DamagedError(text) if damaged else UserError(text)


def _in_this_process(context: Any) -> Any:
    """Returns a context in which Orbax reads without waiting for other processes.

    Args:
      context: Context with all other options.
    """
    number = jax.process_index()
    alone = ocp.Context(context)
    alone.multiprocessing.primary_host = number
    alone.multiprocessing.active_processes = {number}
    alone.multiprocessing.barrier_sync_key_prefix = f"process {number}"
    return alone


def _checksums(tree: Any) -> dict[str, int]:
    """Computes the CRC-32 of every array in a pytree, by the array's name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): zlib.crc32(
            np.ascontiguousarray(leaf).tobytes()
        )
        for path, leaf in leaves
    }


def _checksum_of_json(values: Any) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


@contextlib.contextmanager
def _quiet_failures() -> Iterator[None]:
    """Hides what Orbax prints about a failed save: several hundred lines of tracebacks.

    The failure itself is raised, and becomes one line for the user. The threads of Orbax and
    TensorStore report it again after it was raised, so in that case both filters stay. They hide
    nothing else.
    """
    logger, hook = absl_logging.get_absl_logger(), sys.unraisablehook
    logger.addFilter(_is_not_from_orbax)
    sys.unraisablehook = functools.partial(_report_unraisable, hook)
    yield
    sys.unraisablehook = hook
    logger.removeFilter(_is_not_from_orbax)


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    """Returns whether to print a log record: not if it is a traceback logged by Orbax."""
    return not (record.exc_info and "orbax" in record.pathname)


def _report_unraisable(hook: Callable[[Any], Any], unraisable: Any) -> None:
    """Passes an error in a thread on to the hook, unless it follows from a failed save.

    When one write fails, the event loop ends while TensorStore's threads still work on others.
    """
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        hook(unraisable)


def _system_reason(error: BaseException) -> str:
    """Returns what the operating system says, for example 'No space left on device'."""
    cause = _root_cause(error)
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else _first_line(error)


def _first_line(error: BaseException) -> str:
    """Returns the first line of the error that Orbax has wrapped."""
    cause = _root_cause(error)
    return (str(cause).strip() or repr(cause)).splitlines()[0][:200]


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
