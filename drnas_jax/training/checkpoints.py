"""Orbax checkpoints; all that is known of Orbax is in this file.

The v1 interface, which its authors call the coming one, still lies under `experimental` in some
releases.
"""

import contextlib
import functools
import json
import logging
import os
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging as absl_logging
from jax.sharding import Mesh, NamedSharding

from drnas_jax.errors import UserError
from drnas_jax.training.devices import REPLICATED
from drnas_jax.training.hosts import from_primary

try:
    from orbax.checkpoint import v1 as ocp
except ImportError:
    from orbax.checkpoint.experimental import v1 as ocp

_KEPT = 2  # the newest, and one to fall back on


class Saved(NamedTuple):
    """What lies in a directory: a checkpoint's step, and the metadata saved with it."""

    step: int
    metadata: dict[str, Any]
    digests: Mapping[str, int]  # of the arrays, by name


class Checkpoints:
    """The checkpoints of one phase, numbered by step. A context manager.

    Args:
      directory: their folder.
      cleanup: remove what a killed save left. Not where another process may be saving.
    """

    def __init__(self, directory: str | Path, cleanup: bool = True):
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        try:
            self._checkpointer = ocp.training.Checkpointer(
                Path(directory).absolute(),
                context=context,
                preservation_policy=ocp.training.preservation_policies.LatestN(_KEPT),
                cleanup_tmp_directories=cleanup,
            )
        except (ValueError, OSError) as error:
            raise UserError(
                f"the checkpoints in {directory} cannot be read ({_first_line(error)}): fix "
                "that, or take a new workdir"
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with _silent():
                self._checkpointer.close()
        except Exception:  # Orbax tells again of a save that failed
            if kind is None:
                raise

    def latest(self) -> Saved | None:
        """The newest complete checkpoint, or None.

        Raises:
          UserError: its metadata are damaged.
        """
        newest = self._checkpointer.latest
        return None if newest is None else self._saved(newest.step)

    def restore(
        self, like: Callable[[dict[str, Any]], Any], mesh: Mesh, tell: Callable[[str], None]
    ) -> tuple[Saved, Any] | None:
        """The newest checkpoint that is whole, and its state; None if there is none at all.

        Newer, damaged ones are set aside, as NUMBER.damaged.

        Args:
          like: metadata -> the shapes and dtypes of the state.
          mesh: the devices.
          tell: is given a line about each that is set aside.

        Raises:
          UserError: there are checkpoints, and none is whole. They stay as they are.
        """
        faults: dict[int, _Unfit] = {}
        for step in sorted((one.step for one in self._checkpointer.checkpoints), reverse=True):
            try:
                saved = self._saved(step)
                state = self.load(saved, like(saved.metadata), mesh)
            except _Unfit as error:
                faults[step] = error
                continue
            from_primary(functools.partial(self._set_aside, list(faults)))
            for damaged, fault in faults.items():
                tell(f"{fault.reason}: set aside as {damaged}.damaged; {step} is whole")
            self._checkpointer.reload()
            return saved, state
        if faults:
            raise faults[max(faults)]
        return None

    def _set_aside(self, steps: Sequence[int]) -> None:
        folder = Path(self._checkpointer.directory)
        for step in steps:
            target = folder / f"{step}.damaged"
            if target.exists():
                shutil.rmtree(target)  # of an earlier time
            (folder / str(step)).rename(target)

    def _saved(self, step: int) -> Saved:
        try:
            found = self._checkpointer.metadata(step).custom_metadata
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise self._unfit(step, _first_line(error)) from error
        if not found:  # what Orbax makes of a file that is cut short or missing
            raise self._unfit(step, "it has no metadata")
        content = {name: value for name, value in found.items() if name != "digest"}
        if found.get("digest") != _digest_of_json(content):
            raise self._unfit(step, "its metadata are not as they were written")
        return Saved(step, content["metadata"], content["digests"])

    def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
        """Writes a checkpoint; it counts only once it is complete.

        Args:
          step: its number; must not be there yet.
          state: a pytree of arrays.
          metadata: JSON values.

        Raises:
          UserError: it could not be written; those before are as they were.
        """
        content = {"metadata": metadata, "digests": _digests(state)}
        digest = _digest_of_json(content)
        try:
            with _silent():
                self._checkpointer.save(step, state, custom_metadata={**content, "digest": digest})
        except (ValueError, OSError) as error:
            raise UserError(
                f"checkpoint {step} could not be written to {self._checkpointer.directory} "
                f"({_cause(error)}): fix that and run the same command again; it goes on from "
                "the checkpoint before"
            ) from error

    def load(self, saved: Saved, like: Any, mesh: Mesh) -> Any:
        """Reads a checkpoint, or a part of it, with a copy on every device of the mesh.

        Args:
          saved: which.
          like: the shapes and dtypes of what to read (arrays or ShapeDtypeStructs).
          mesh: the devices.

        Raises:
          UserError: what lies there has other shapes, or is damaged.
        """
        sharding, step = NamedSharding(mesh, REPLICATED), saved.step
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like
        )
        try:
            state = self._checkpointer.load(step, abstract)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise self._unfit(step, _first_line(error)) from error
        expected = jax.tree_util.tree_leaves_with_path(abstract)
        for (path, leaf), found in zip(expected, jax.tree.leaves(state), strict=True):
            name = jax.tree_util.keystr(path)
            if not isinstance(found, jax.Array):  # a partial load leaves what it does not find
                raise self._unfit(step, f"it has no {name}")
            if found.shape != leaf.shape:
                raise self._unfit(step, f"{name} has shape {found.shape}, not {leaf.shape}")
        for name, digest in _digests(state).items():
            if digest != saved.digests.get(name):
                raise self._unfit(step, f"{name} is not as it was written")
        return state

    def _unfit(self, step: int, reason: str) -> "_Unfit":
        return _Unfit(
            f"checkpoint {step} in {self._checkpointer.directory} cannot be restored ({reason})"
        )


class _Unfit(UserError):
    """A checkpoint that cannot be restored, and the reason."""

    def __init__(self, reason: str):
        self.reason = reason
        super().__init__(
            f"{reason}: it is damaged or of another config; take a new workdir, or remove that "
            "folder to go back to the checkpoint before"
        )


def _digests(tree: Any) -> dict[str, int]:
    """A checksum of every array, by its name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): zlib.crc32(
            np.ascontiguousarray(leaf).tobytes()
        )
        for path, leaf in leaves
    }


def _digest_of_json(values: Any) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without Orbax's own reports of a failure, of several hundred lines.

    Its threads go on to report one after it was raised: then this lasts.
    """
    before, hook = logging.root.manager.disable, sys.unraisablehook
    logging.disable(logging.CRITICAL)
    sys.unraisablehook = _unless_given_up
    try:
        yield
    except BaseException:
        absl_logging.set_verbosity(absl_logging.FATAL)
        raise
    else:
        sys.unraisablehook = hook
    finally:
        logging.disable(before)


def _unless_given_up(what: Any) -> None:
    """An unraisablehook without what TensorStore's threads tell of a save that was given up."""
    if not (what.exc_type is RuntimeError and str(what.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(what)


def _cause(error: BaseException) -> str:
    """What the system says, for instance 'No space left on device'."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else _first_line(error)


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:  # Orbax wraps what went wrong
        error = error.__cause__
    return (str(error).strip() or repr(error)).splitlines()[0][:200]
