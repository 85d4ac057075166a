"""Writers of the curves of a run: TensorBoard, services, or a user's own."""

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from drnas_jax import components
from drnas_jax.config import Config
from drnas_jax.writers.base import RunInfo, ServiceError, Writer

__all__ = ["RunInfo", "ServiceError", "Writer", "Writers", "check"]

_FIELD = "metrics.writers"


def check(config: Config) -> None:
    """Checks that all writers of a config can be used.

    Raises:
      UserError: A writer does not exist, or cannot work here, such as without a package.
    """
    for name in config.metrics.writers:
        module = components.find("writer", name, _FIELD)
        if own := getattr(module, "check", None):
            own()


class Writers:
    """All writers of one phase, as one `Writer`.

    A writer whose service fails is left out from then on, and the user is told once.

    Args:
      run: Phase whose curves are written.
    """

    def __init__(self, run: RunInfo):
        self._say = run.say
        self._writers: dict[str, Writer] = {}
        try:
            for name in run.config.metrics.writers:
                create = partial(components.create, "writer", name, None, run, field=_FIELD)
                if (writer := self._attempt(name, create)) is not None:
                    self._writers[name] = writer
        except BaseException:
            self.close()
            raise

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds one point to each curve, see `Writer.scalars`."""
        for name, writer in list(self._writers.items()):
            self._attempt(name, partial(writer.scalars, values, step))

    def close(self) -> None:
        """Closes all writers, even if one of them raises an error."""
        with contextlib.ExitStack() as stack:
            for name, writer in self._writers.items():
                stack.callback(self._attempt, name, writer.close)

    def _attempt(self, name: str, function: Callable[[], Any]) -> Any:
        """Returns the result of a function of a writer, or None if its service fails."""
        try:
            return function()
        except ServiceError as error:
            self._writers.pop(name, None)
            reason = " ".join(str(error).split())[:300]
            self._say(
                f"{_FIELD} {name!r} fails ({reason}): the run continues without it; history.jsonl "
                "has all values"
            )
            return None
