"""Curves for TensorBoard, in event files beside the history."""

import os
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from drnas_jax.writers.base import RunInfo, Writer


def create(run: RunInfo) -> Writer:
    """Returns a writer of event files in the directory of the phase."""
    return TensorBoard(run.directory, run.resume_step)


class TensorBoard:
    """A writer of TensorBoard event files.

    It writes at once, so that a full disk is an error here. A SummaryWriter leaves that to a
    thread: if the thread dies, adding to its full queue blocks for ever.

    Args:
      logdir: Folder of the event files, which is created if it does not exist.
      resume_step: First step that this run writes. TensorBoard hides what an earlier, killed run
        wrote at this step and later, so that repeated steps do not appear twice.
    """

    def __init__(self, logdir: str | os.PathLike[str], resume_step: int = 0):
        os.makedirs(logdir, exist_ok=True)
        self._writer = EventsWriter(os.path.join(logdir, "events"))
        self._write(resume_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds one point to each curve, see `Writer.scalars`."""
        for name, value in values.items():
            self._write(step, summary=scalar(name, value))
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(Event(step=step, wall_time=time.time(), **content))
