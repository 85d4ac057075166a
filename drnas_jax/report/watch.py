"""Keeps the page of a run up to date while it is going on."""

import time
from pathlib import Path

from drnas_jax.errors import UserError
from drnas_jax.training.metrics import Display
from drnas_jax.training.progress import Status

_SHARE = 0.05  # of the running time that pages may take
_FIRST = 2.0  # seconds that the first page is assumed to take, with the import of its libraries


class Watcher:
    """Writes report.html at the end of each epoch, unless the pages would take too much time.

    Errors of the system, such as a full disk, are raised; any other error becomes a message, so
    that it does not end the run.

    Args:
      workdir: Directory of the run.
      display: Messages for the user.
    """

    def __init__(self, workdir: Path, display: Display):
        self._workdir, self._display = workdir, display
        self._shown = False  # whether the page says that the run is going on
        self._cost, self._began = _FIRST, time.monotonic()

    def __call__(self, status: Status) -> None:
        """Writes the page of a run that is going on.

        Args:
          status: How far the run is.

        Raises:
          OSError: The page cannot be written.
        """
        began = time.monotonic()
        if began - self._began < self._cost / _SHARE:
            return
        self._write(status)
        self._shown, self._began = True, time.monotonic()
        self._cost = self._began - began

    def close(self) -> None:
        """Writes the page of a run that has stopped, if it says that the run is going on."""
        if self._shown:
            self._shown = False
            try:
                self._write(None)
            except OSError as error:
                self._display.message(f"the report could not be written: {error}")

    def _write(self, status: Status | None) -> None:
        # Imported late, since plotly is slow to import.
        from drnas_jax.report.page import write_report

        try:
            write_report([self._workdir], status=status)
        except OSError:
            raise
        except UserError as error:
            self._display.message(f"the report could not be written: {error}")
        except Exception as error:  # a fault of ours must not end a search of days
            what = f"{type(error).__name__}: {error}"
            self._display.message(f"the report could not be written, which is a bug: {what}")
