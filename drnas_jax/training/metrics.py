"""Reports of a run in progress: lines, a progress bar and tables on the terminal."""

import copy
import dataclasses
import datetime
import time
from collections.abc import Sequence
from typing import Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table
from rich.text import Text


@dataclasses.dataclass
class _Task:
    """The state of the progress bar.

    Attributes:
      description: Title that the user sees.
      total_steps: Step at which no time is left.
      step: Steps done.
      started: Time of the start, in seconds of the monotonic clock.
      printed: Time of the last printed line.
      first_update: Time and step of the first update, or None before it.
      numbers: Loss, accuracy and speed, as text.
    """

    description: str
    total_steps: int
    step: int
    started: float
    printed: float
    first_update: tuple[float, int] | None = None
    numbers: str = ""


class Display:
    """Messages, progress and tables for the user, on standard error. It is a context manager.

    A terminal shows a progress bar and coloured tables. A file, such as a job's log, gets plain
    lines with the time of day.

    Args:
      console: Console to print to. None means standard error.
      quiet: Whether to print nothing, as in tests, in library use and in all processes but
        process 0.
      interval: Shortest time between two plain lines of progress, in seconds.
    """

    def __init__(
        self, console: Console | None = None, *, quiet: bool = False, interval: float = 10.0
    ):
        self._console = Console(quiet=True) if quiet else console or Console(stderr=True)
        terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        self._rich = terminal and not quiet
        self._interval = interval
        self._prefix, self._in_front = "", True
        self._task: _Task | None = None
        self._bar: Progress | None = None

    def of_seed(self, seed: int, in_front: bool) -> Self:
        """Returns the display of one of several runs that take turns; its lines name the seed.

        Args:
          seed: Seed of the run.
          in_front: Whether progress and tables are shown too, which only one run may do.
        """
        display = copy.copy(self)
        display._prefix, display._in_front = f"seed {seed}: ", in_front
        return display

    def message(self, text: str) -> None:
        """Prints a line, above the progress bar if there is one."""
        text = self._prefix + text
        self._print(text if self._rich else f"{time.strftime('%H:%M:%S')} {text}")

    def explain(self, text: str) -> None:
        """Prints a line about the tables that follow, unless this display prints none."""
        if self._in_front:
            self.message(text)

    def start(self, description: str, total_steps: int, done: int = 0) -> None:
        """Starts to show progress.

        Args:
          description: Title for the user, such as 'search, stage 1/2, epoch 3/50'.
          total_steps: Step up to which the remaining time is shown, such as the end of the phase.
          done: Steps that are already done.
        """
        self.close()
        now = time.monotonic()
        self._task = _Task(description, total_steps, done, started=now, printed=now)
        if self._rich and self._in_front:
            self._bar = Progress(
                BarColumn(bar_width=12),
                TextColumn("{task.percentage:>3.0f} %"),
                # Takes the rest of the line: a narrow terminal cuts off the end of the numbers.
                TextColumn(
                    "{task.description}{task.fields[numbers]}",
                    markup=False,
                    table_column=Column(ratio=1, no_wrap=True),
                ),
                expand=True,
                console=self._console,
                transient=True,  # `finish` prints a line in its place
                refresh_per_second=4,
            )
            self._bar.add_task(description, total=total_steps, completed=done, numbers="")
            self._bar.start()

    def update(self, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """Updates the progress.

        Args:
          step: Steps done, those before `start` included.
          loss: Mean training loss in nats.
          accuracy: Training accuracy from 0 to 1.
          images_per_second: Training speed of the last steps.

        Raises:
          RuntimeError: If `start` was not called first.
        """
        if (task := self._task) is None:
            raise RuntimeError("Display.update before Display.start")
        now = time.monotonic()
        # The remaining time is estimated from the first update on, so compilation does not count.
        task.first_update = task.first_update or (now, step)
        task.step = step
        task.numbers = (
            f"training loss {loss:.4f}, accuracy {100 * accuracy:.2f} %, "
            f"{images_per_second:,.0f} images/s"
        )
        left = _time_left(task, now)
        if self._bar is not None:
            numbers = (
                f"  {left} left  loss {loss:.3f}  acc {100 * accuracy:.1f} %"
                f"  {images_per_second:,.0f} img/s"
            )
            self._bar.update(self._bar.task_ids[0], completed=step, numbers=numbers)
        elif self._in_front and now - task.printed >= self._interval:
            task.printed = now
            steps = f"step {step}/{task.total_steps}"
            self.message(f"{task.description}: {steps}, {task.numbers}, {left} left")

    def finish(self) -> None:
        """Stops showing progress, and prints one line with its last numbers."""
        task = self._task
        self.close()
        if task is not None:
            took = f"took {_duration(time.monotonic() - task.started)}"
            parts = (f"step {task.step}/{task.total_steps}", task.numbers, took)
            self.message(f"{task.description}: {', '.join(part for part in parts if part)}")

    def scores(
        self,
        cell_type: str,
        edges: Sequence[str],
        operations: Sequence[Sequence[str]],
        values: Sequence[np.ndarray],
    ) -> None:
        """Prints the scores of a cell's operations, one edge per line, with the best one marked.

        Args:
          cell_type: Name of the cell type, which is the title.
          edges: Names of the edges.
          operations: Names of the operations that each edge still has.
          values: Scores of each edge in the order of its `operations`, such as the concentration
            parameters of a Dirichlet distribution.
        """
        if not self._in_front:
            return
        columns = list(dict.fromkeys(name for names in operations for name in names))
        table = Table(title=f"{cell_type}: scores", title_justify="left")
        table.add_column("edge")
        for name in columns:
            table.add_column(name, justify="right")
        rows = [["", *columns]]
        for edge, names, row in zip(edges, operations, values, strict=True):
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
        self.message(f"{cell_type}: scores")
        for edge, *texts in rows:
            line = [edge.ljust(widths[0])]
            line += [text.rjust(width) for text, width in zip(texts, widths[1:], strict=True)]
            self._print("  " + "  ".join(line).rstrip())

    def close(self) -> None:
        """Removes the progress bar, if there is one."""
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
    """Estimates the remaining time from the speed since the first update."""
    if task.step >= task.total_steps:
        return _duration(0)
    first_time, first_step = task.first_update or (now, task.step)
    if task.step <= first_step:
        return "-:--:--"
    return _duration((task.total_steps - task.step) * (now - first_time) / (task.step - first_step))


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
