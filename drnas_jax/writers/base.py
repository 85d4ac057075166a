"""The interface of writers of curves, and the facts about a run that they get."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from drnas_jax.config import Config


class ServiceError(RuntimeError):
    """An error of a service, such as a lost connection; the run continues without its writer."""


@contextlib.contextmanager
def service_errors() -> Iterator[None]:
    """Raises `ServiceError` in place of any error, for calls of a service's client.

    Any error: the clients' documentation does not list those of networks, servers and stores.
    """
    try:
        yield
    except Exception as error:
        raise ServiceError(f"{type(error).__name__}: {error}") from error


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """The facts about a phase that a writer of its curves gets.

    Attributes:
      config: Config of the run.
      workdir: Directory of the run.
      sweep: Workdir of the command. It differs from `workdir` if the command does several runs,
        for several seeds or cost targets.
      phase: `search` or `retrain`.
      resume_step: First step that this start of the phase writes. Steps from here on may have been
        written already, by an earlier start that was killed.
      say: Function that shows the user a line of text.
    """

    config: Config
    workdir: Path
    sweep: Path
    phase: str
    resume_step: int
    say: Callable[[str], None]

    @property
    def directory(self) -> Path:
        """Directory of the phase, where a writer may keep files."""
        return self.workdir / self.phase

    @property
    def group(self) -> str:
        """Absolute path of `sweep`, which all runs of a command share."""
        return str(self.sweep.absolute())

    @property
    def name(self) -> str:
        """Name of the phase and its run for the user, such as `digits/seed0/search`."""
        below = self.workdir.absolute().relative_to(self.sweep.absolute())
        return (Path(self.sweep.absolute().name) / below / self.phase).as_posix()


class Writer(Protocol):
    """A writer of the curves of one phase of a run, for instance for TensorBoard.

    A module that provides a writer has a function `create(run) -> Writer`, which gets a `RunInfo`.
    It has no options: a service's settings come from the environment. The module may also have a
    function `check()`, which raises `UserError` if the writer cannot work, such as without a
    package; it is called before the work begins.

        class Printer:
            def __init__(self, run):
                self.name = run.name

            def scalars(self, values, step):
                print(self.name, step, dict(values))

            def close(self):
                pass

        create = Printer

    Only process 0 has writers. A writer that raises `ServiceError`, here or in `create`, is left
    out until the phase is started again; any other error ends the run.
    """

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds one point to each curve.

        Args:
          values: Value of each curve, by its name; it may be infinite or not a number.
          step: Number of steps done, the horizontal axis.
        """

    def close(self) -> None:
        """Closes the writer. The phase has ended, or was stopped and may be resumed later."""
