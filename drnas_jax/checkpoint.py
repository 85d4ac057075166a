"""Orbax checkpoints; all that is known of Orbax is in this file.

The v1 interface, which its authors call the coming one, still lies under `experimental` in some
releases.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding

from drnas_jax.errors import UserError
from drnas_jax.sharding import REPLICATED

try:
    from orbax.checkpoint import v1 as ocp
except ImportError:
    from orbax.checkpoint.experimental import v1 as ocp

_KEPT = 2  # the newest, and one to fall back on


class Saved(NamedTuple):
    """What lies in a directory: the newest checkpoint's step, and the metadata saved with it."""

    step: int
    metadata: dict[str, Any]


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
                f"the checkpoints in {directory} can not be read ({_first_line(error)}): mend "
                "that, or take a new workdir"
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._checkpointer.close()

    def latest(self) -> Saved | None:
        """The newest complete checkpoint, or None.

        Raises:
          UserError: its metadata are damaged.
        """
        newest = self._checkpointer.latest
        if newest is None:
            return None
        try:
            metadata = self._checkpointer.metadata(newest.step).custom_metadata
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise self._unfit(newest.step, _first_line(error)) from error
        if not metadata:  # what Orbax makes of a file that is cut short or missing
            raise self._unfit(newest.step, "it has no metadata")
        return Saved(newest.step, metadata)

    def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
        """Writes a checkpoint; it counts only once it is complete.

        Args:
          step: its number; must not be there yet.
          state: a pytree of arrays.
          metadata: JSON values, at least one.
        """
        self._checkpointer.save(step, state, custom_metadata=metadata)

    def load(self, step: int, like: Any, mesh: Mesh) -> Any:
        """Reads a checkpoint, or a part of it, with a copy on every device of the mesh.

        Args:
          step: its number.
          like: the shapes and dtypes of what to read (arrays or ShapeDtypeStructs).
          mesh: the devices.

        Raises:
          UserError: what lies there has other shapes, or is damaged.
        """
        sharding = NamedSharding(mesh, REPLICATED)
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
        return state

    def _unfit(self, step: int, reason: str) -> UserError:
        return UserError(
            f"checkpoint {step} in {self._checkpointer.directory} can not be restored ({reason}): "
            "it is damaged or of another config; take a new workdir, or remove that folder to go "
            "back to the checkpoint before"
        )


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:  # Orbax wraps what went wrong
        error = error.__cause__
    return (str(error).strip() or repr(error)).splitlines()[0][:200]
