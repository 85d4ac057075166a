"""Summarises Orbax's errors in one line, and hides the tracebacks that Orbax itself prints."""

import contextlib
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging as absl_logging


@contextlib.contextmanager
def quiet_failures() -> Iterator[None]:
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


def system_reason(error: BaseException) -> str:
    """Returns what the operating system says, for example 'No space left on device'."""
    cause = _root_cause(error)
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else first_line(error)


def first_line(error: BaseException) -> str:
    """Returns the first line of the error that Orbax has wrapped."""
    cause = _root_cause(error)
    return (str(cause).strip() or repr(cause)).splitlines()[0][:200]


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
