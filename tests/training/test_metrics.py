"""What the user sees of a run: lines, a progress bar and tables."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from drnas_jax.training import metrics


@pytest.fixture
def clock(monkeypatch):
    """Replaces the clock by one that a test moves on: `clock[0] += 5`."""
    now = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    return now


def _display(terminal: bool, width: int = 120, **options) -> metrics.Display:
    environment = {"TERM": "xterm-256color"}  # independent of the terminal that runs the tests
    console = Console(
        file=io.StringIO(), force_terminal=terminal, width=width, _environ=environment
    )
    return metrics.Display(console, **options)


def _shown(display: metrics.Display) -> str:
    """Returns what was printed, without control codes and without the time of day."""
    text = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", display._console.file.getvalue())
    return re.sub(r"(?m)^\d\d:\d\d:\d\d ", "", text)


def test_plain_lines_come_every_ten_seconds_and_at_the_end(clock):
    # Catches a log file with a line for every step, and wrong remaining times.
    with _display(terminal=False) as display:
        display.start("search, epoch 2/3", total_steps=300, done=100)
        for step in range(101, 201):  # one step per second
            clock[0] += 1
            display.update(step, loss=1.25, accuracy=0.5, images_per_second=1234.4)
        display.finish()
    lines = _shown(display).splitlines()
    numbers = "training loss 1.2500, accuracy 50.00 %, 1,234 images/s"
    assert len(lines) == 11
    assert lines[0] == f"search, epoch 2/3: step 110/300, {numbers}, 0:03:10 left"
    assert lines[9] == f"search, epoch 2/3: step 200/300, {numbers}, 0:01:40 left"
    assert lines[10] == f"search, epoch 2/3: step 200/300, {numbers}, took 0:01:40"


def test_plain_lines_start_with_the_time_of_day():
    # Catches words in brackets or colons that rich would take for markup.
    display = _display(terminal=False)
    display.message("hello [bold] :smile:")
    line = display._console.file.getvalue()
    assert re.fullmatch(r"\d\d:\d\d:\d\d hello \[bold\] :smile:\n", line)


def test_the_remaining_time_does_not_count_compilation(clock):
    # Catches hours shown because the first step took minutes to compile.
    with _display(terminal=False, interval=0) as display:
        display.start("search", total_steps=100)
        clock[0] += 500
        display.update(10, 1.0, 0.5, 10)
        clock[0] += 1
        display.update(20, 1.0, 0.5, 10)
        display.update(100, 1.0, 0.5, 10)
    first, second, last = _shown(display).splitlines()
    assert first.endswith("-:--:-- left")
    assert second.endswith("0:00:08 left")
    assert last.endswith("0:00:00 left")


@pytest.mark.parametrize("width", [70, 120])
def test_a_terminal_shows_a_bar_and_keeps_a_line(clock, width):
    # Catches numbers that wrap on a narrow terminal, and a bar that stays.
    with _display(terminal=True, width=width) as display:
        display.start("search 1/2 [3/50]", total_steps=300, done=30)
        display.message("a line above the bar [bold]")
        display.update(100, 1.25, 0.5, 1234)
        clock[0] += 10
        display.update(150, 1.25, 0.5, 1234)
        display.finish()
        display.finish()  # has no effect
    text = _shown(display)
    assert re.search(r"━ +10 % search 1/2 \[3/50\]", text)
    assert "a line above the bar [bold]\n" in text
    assert re.search(r" 50 % search 1/2 \[3/50\]  0:00:30 left  loss 1.250", text)
    assert ("1,234 img/s" in text) == (width > 70)  # cut off on a narrow terminal
    assert text.count("took") == 1
    assert text.endswith("images/s, took 0:00:10\n")


def test_an_error_removes_the_bar():
    # Catches a terminal without a cursor after Ctrl-C.
    display = _display(terminal=True)
    with pytest.raises(KeyboardInterrupt), display:
        display.start("search", total_steps=10)
        raise KeyboardInterrupt
    assert "took" not in _shown(display)
    assert display._console.file.getvalue().count("\x1b[?25h") == 1  # shows the cursor


def test_update_before_start_is_an_error():
    # Catches progress that nobody sees.
    with pytest.raises(RuntimeError, match="before"):
        _display(terminal=False).update(1, 1.0, 0.5, 10)


CELL = dict(
    cell_type="normal",
    edges=["2<-0", "12<-10"],
    operations=[["none", "skip"], ["skip", "nor_conv_3x3"]],  # each edge keeps others
    values=np.array([[0.5, 1.25], [1.0, 0.75]]),
)


def test_plain_scores_are_aligned_and_the_best_is_marked():
    # Catches numbers under the name of another operation.
    display = _display(terminal=False)
    display.scores(**CELL)
    assert _shown(display).splitlines() == [
        "normal: scores",
        "            none    skip  nor_conv_3x3",
        "  2<-0    0.500   1.250*            -",
        "  12<-10      -   1.000*        0.750",
    ]


def test_scores_on_a_terminal_are_a_table_with_the_best_marked():
    # Catches numbers under the name of another operation, and a mark on every edge's first.
    display = _display(terminal=True)
    display.scores(**CELL)
    assert re.findall(r"\x1b\[1;32m *([\d.]+)\*", display._console.file.getvalue()) == [
        "1.250",
        "1.000",
    ]
    rows = [line for line in _shown(display).splitlines() if "<-" in line]
    cells = [[cell.strip() for cell in row.split("│")[1:-1]] for row in rows]
    assert cells == [["2<-0", "0.500", "1.250*", "-"], ["12<-10", "-", "1.000*", "0.750"]]


def test_scores_that_do_not_match_their_names_are_an_error():
    # Catches a table whose last rows are cut off.
    with pytest.raises(ValueError, match="shorter|longer"):
        _display(terminal=False).scores(**CELL | dict(values=np.ones((2, 3))))


def test_a_quiet_display_prints_nothing(capfd):
    # Catches N processes that all print.
    with metrics.Display(quiet=True) as display:
        display.message("hello")
        display.start("search", total_steps=2)
        display.update(1, 1.0, 0.5, 10)
        display.scores(**CELL)
        display.finish()
    assert capfd.readouterr() == ("", "")


def test_the_default_is_standard_error(capfd):
    # Catches messages in the output of a script that uses the library.
    metrics.Display().message("hello")
    out, err = capfd.readouterr()
    assert out == ""
    assert "hello" in err
