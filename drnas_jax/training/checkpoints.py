"""Saves and restores the state of a phase with Orbax, which no other module imports.

One process may read damaged data although the others read it well, for example on network storage.
So each process reads and verifies a checkpoint by itself, without waiting for others, and
then all agree on whether it counts.
"""

import dataclasses
import functools
import importlib
import json
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from drnas_jax.errors import UserError
from drnas_jax.training.devices import replicate
from drnas_jax.training.hosts import from_primary, gather
from drnas_jax.training.orbax_errors import first_line, quiet_failures, system_reason
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
_UNREADABLE = (ValueError, KeyError, TypeError, OSError)  # what Orbax raises for damaged files


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """The description that a checkpoint stores beside the arrays of the state.

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

    Raises:
      UserError: The folder cannot be read, or, unless `cleanup` is set and another checkpoint is
        intact, the description of a checkpoint is damaged.
    """

    def __init__(self, directory: str | Path, cleanup: bool = True):
        self._context = ocp.Context()
        self._context.pytree.loading.partial_load = True
        self._set_aside_at_start: dict[int, str] = {}  # why Orbax could not open the folder
        folder = Path(directory).absolute()
        try:
            self._checkpointer = self._open(folder, cleanup)
        except _UNREADABLE as error:
            faults = from_primary(functools.partial(_undescribed, folder))
            if not faults:
                raise UserError(
                    f"the checkpoints in {folder} cannot be read ({first_line(error)}): fix that, "
                    "or start in a new workdir"
                ) from error
            if not cleanup or len(faults) == len(_checkpoint_folders(folder)):
                raise _DamagedError(faults[max(faults)]) from error
            from_primary(functools.partial(_set_aside, folder, list(faults)))
            self._set_aside_at_start = faults
            self._checkpointer = self._open(folder, cleanup)

    def _open(self, folder: Path, cleanup: bool) -> Any:
        """Opens the folder, for which Orbax reads the descriptions of all checkpoints in it."""
        return ocp.training.Checkpointer(
            folder,
            context=self._context,
            preservation_policy=ocp.training.preservation_policies.LatestN(_CHECKPOINTS_TO_KEEP),
            cleanup_tmp_directories=cleanup,
        )

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
        folder = Path(self._checkpointer.directory)
        for step in reversed(self._steps()):
            try:
                info = self._info(step)
                wanted = _in_all_processes(functools.partial(shapes, info.phase))
                state = self.load(info, wanted, mesh)
            except _DamagedError as error:
                faults[step] = error
                continue
            from_primary(functools.partial(_set_aside, folder, list(faults)))
            reasons = {damaged: fault.reason for damaged, fault in faults.items()}
            for damaged, reason in {**self._set_aside_at_start, **reasons}.items():
                report(f"{reason}: set aside as {damaged}.damaged; checkpoint {step} is used")
            self._checkpointer.reload()
            return info, state
        if faults:
            raise faults[max(faults)]
        return None

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
        except _UNREADABLE as error:
            raise self._damaged(step, first_line(error)) from error
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
            with quiet_failures():
                self._checkpointer.save(step, state, custom_metadata=stored)
        except (ValueError, OSError) as error:
            raise UserError(
                f"checkpoint {step} could not be written to {self._checkpointer.directory} "
                f"({system_reason(error)}): fix that and run the same command again, which "
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
        except _UNREADABLE as error:
            raise self._damaged(step, first_line(error)) from error
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
        return _DamagedError(_fault(Path(self._checkpointer.directory), step, reason))


class _DamagedError(UserError):
    """A checkpoint cannot be restored.

    Attributes:
      reason: Which checkpoint is damaged and how, without advice.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"{reason}: it is damaged or from another config; start in a new workdir, or remove "
            "that folder to go back to the previous checkpoint"
        )


def _fault(folder: Path, step: int, reason: str) -> str:
    return f"checkpoint {step} in {folder} cannot be restored ({reason})"


def _checkpoint_folders(folder: Path) -> dict[int, Path]:
    """Returns the folder of each checkpoint by its number."""
    if not folder.is_dir():
        return {}
    return {int(path.name): path for path in folder.iterdir() if path.name.isdecimal()}


def _undescribed(folder: Path) -> dict[int, str]:
    """Returns what is wrong with each checkpoint whose description Orbax cannot read."""
    read = getattr(ocp, "metadata", None) or ocp.pytree_metadata  # as earlier releases call it
    faults = {}
    for step, path in _checkpoint_folders(folder).items():
        try:
            read(path)
        except _UNREADABLE as error:
            faults[step] = _fault(folder, step, first_line(error))
    return faults


def _set_aside(folder: Path, steps: Sequence[int]) -> None:
    """Renames damaged checkpoints to NUMBER.damaged."""
    for step in steps:
        target = folder / f"{step}.damaged"
        if target.exists():  # an earlier run set aside a checkpoint of the same number
            shutil.rmtree(target)
        (folder / str(step)).rename(target)


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
