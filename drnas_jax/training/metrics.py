"""What a person sees of a run: the terminal, and TensorBoard events."""

import dataclasses
import datetime
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table
from rich.text import Text
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar


class TensorBoard:
    """Event files for TensorBoard. A context manager.

    Written at once, so that a full disk is an error here. (A SummaryWriter has a thread for it: if
    that dies, whoever adds to its full queue waits for ever.)

    Args:
      logdir: their folder, made where there is none.
      resume_step: TensorBoard hides what an earlier, killed run wrote at this step and later, so
        that steps that are redone do not show twice.
    """

    def __init__(self, logdir: str | os.PathLike[str], resume_step: int = 0):
        os.makedirs(logdir, exist_ok=True)
        self._writer = EventsWriter(os.path.join(logdir, "events"))
        self._write(resume_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes the curves' values at a step."""
        for name, value in values.items():
            self._write(step, summary=scalar(name, value))
        self._writer.flush()

    def close(self) -> None:
        """Ends the event file."""
        self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(Event(step=step, wall_time=time.time(), **content))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()


@dataclasses.dataclass
class _Task:
    description: str
    total_steps: int
    step: int
    began: float
    printed: float  # when the last line was
    first: tuple[float, int] | None = None  # time and step of the first update
    numbers: str = ""


class Display:
    """A run as a person follows it, on standard error. A context manager.

    On a terminal there is a progress bar and coloured tables. Elsewhere, as in a job's log file,
    there are plain lines with the time of day.

    Args:
      console: where to print.
      quiet: print nothing: for tests, library use, and all processes but the first.
      interval: least time between two plain progress lines, in seconds.
    """

    def __init__(
        self, console: Console | None = None, *, quiet: bool = False, interval: float = 10.0
    ):
        self._console = Console(quiet=True) if quiet else console or Console(stderr=True)
        terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        self._rich = terminal and not quiet
        self._interval = interval
        self._task: _Task | None = None
        self._bar: Progress | None = None

    def message(self, text: str) -> None:
        """Prints a line (above the progress bar)."""
        self._print(text if self._rich else f"{time.strftime('%H:%M:%S')} {text}")

    def start(self, description: str, total_steps: int, done: int = 0) -> None:
        """Begins to show progress.

        Args:
          description: phase, stage and epoch.
          total_steps: the step at which there is no time left: the end of the epoch or, to show
            the time left of it all, that of the phase.
          done: steps that are done already.
        """
        self.close()
        now = time.monotonic()
        self._task = _Task(description, total_steps, done, began=now, printed=now)
        if self._rich:
            self._bar = Progress(
                BarColumn(bar_width=12),
                TextColumn("{task.percentage:>3.0f} %"),
                # What is left of the line: a narrow terminal cuts off the end of the numbers.
                TextColumn(
                    "{task.description}{task.fields[numbers]}",
                    markup=False,
                    table_column=Column(ratio=1, no_wrap=True),
                ),
                expand=True,
                console=self._console,
                transient=True,  # `finish` leaves a line in its place
                refresh_per_second=4,
            )
            self._bar.add_task(description, total=total_steps, completed=done, numbers="")
            self._bar.start()

    def update(self, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """Shows how far it is.

        Args:
          step: steps done, those from before `start` included.
          loss: of the last steps.
          accuracy: of the last steps, 0 to 1.
          images_per_second: of the last steps.

        Raises:
          RuntimeError: nothing was started.
        """
        if (task := self._task) is None:
            raise RuntimeError("Display.update before Display.start")
        now = time.monotonic()
        # From the first update on, so that compilation does not count.
        task.first = task.first or (now, step)
        task.step = step
        task.numbers = (
            f"loss {loss:.4f}, accuracy {100 * accuracy:.2f} %, {images_per_second:,.0f} images/s"
        )
        left = _time_left(task, now)
        if self._bar is not None:
            numbers = (
                f"  {left} left  loss {loss:.3f}  acc {100 * accuracy:.1f} %"
                f"  {images_per_second:,.0f} img/s"
            )
            self._bar.update(self._bar.task_ids[0], completed=step, numbers=numbers)
        elif now - task.printed >= self._interval:
            task.printed = now
            steps = f"step {step}/{task.total_steps}"
            self.message(f"{task.description}: {steps}, {task.numbers}, {left} left")

    def finish(self) -> None:
        """Ends the progress that was started, with one line of its last numbers."""
        task = self._task
        self.close()
        if task is not None:
            took = f"took {_duration(time.monotonic() - task.began)}"
            parts = (f"step {task.step}/{task.total_steps}", task.numbers, took)
            self.message(f"{task.description}: {', '.join(part for part in parts if part)}")

    def concentrations(
        self,
        cell_type: str,
        edges: Sequence[str],
        operations: Sequence[Sequence[str]],
        values: np.ndarray,
    ) -> None:
        """Prints a cell's concentrations, an edge a line, the highest of each edge marked.

        Args:
          cell_type: the title.
          edges: names of the edges.
          operations: for each edge, names of the operations that it still has.
          values: [e, o] concentrations, in the order of `operations`.
        """
        columns = list(dict.fromkeys(name for names in operations for name in names))
        table = Table(title=f"{cell_type}: concentration", title_justify="left")
        table.add_column("edge")
        for name in columns:
            table.add_column(name, justify="right")
        rows = [["", *columns]]
        for edge, names, row in zip(edges, operations, np.asarray(values), strict=True):
            cells = {name: f"{value:.3f} " for name, value in zip(names, row, strict=True)}
            best = names[int(np.argmax(row))]
            cells[best] = cells[best].replace(" ", "*")
            rows.append([edge, *(cells.get(name, "- ") for name in columns)])
            styled = (Text(cell, "bold green" if "*" in cell else "") for cell in rows[-1][1:])
            table.add_row(edge, *styled)
        if self._rich:
            self._console.print(table)
            return
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        self.message(f"{cell_type}: concentration")
        for edge, *texts in rows:
            line = [edge.ljust(widths[0])]
            line += [text.rjust(width) for text, width in zip(texts, widths[1:], strict=True)]
            self._print("  " + "  ".join(line).rstrip())

    def close(self) -> None:
        """Takes the progress bar away, if there is one."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


def _time_left(task: _Task, now: float) -> str:
    if task.step >= task.total_steps:
        return _duration(0)
    time_then, step_then = task.first or (now, task.step)
    if task.step <= step_then:
        return "-:--:--"
    return _duration((task.total_steps - task.step) * (now - time_then) / (task.step - step_then))


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
