"""The page of a run that is going on: when it is written, and what an error of it does."""

import pytest
from plotly.offline import get_plotlyjs
from resuming import Listener
from test_main import DIGITS

from drnas_jax.errors import UserError
from drnas_jax.main import main
from drnas_jax.report import page, watch
from drnas_jax.training.progress import Status

STATUS = Status("search, stage 1/2", 3, 10, seconds=60.0, epoch_seconds=20.0)


def test_the_time_left_is_that_of_the_epochs_left():
    # Would catch a time that counts the epochs done.
    assert STATUS.seconds_left == 140


@pytest.fixture
def written(monkeypatch):
    """Returns the list of the status of each page, and the time, to which writing a page adds."""
    written, clock = [], [100.0]

    def write(workdirs, status):
        written.append(status)
        clock[0] += 3

    monkeypatch.setattr(page, "write_report", write)
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    return written, clock


def test_pages_take_a_twentieth_of_the_time(written, tmp_path):
    # Would catch a run of short epochs that mostly writes pages.
    pages, clock = written
    watcher = watch.Watcher(tmp_path, Listener())
    for seconds, expected in ((39, 0), (1, 1), (59, 1), (1, 2)):
        clock[0] += seconds
        watcher(STATUS)
        assert len(pages) == expected


def test_the_last_page_says_nothing_of_a_run_that_goes_on(written, tmp_path):
    # Would catch a page that loads itself again for ever, and one of a run that wrote none.
    pages, clock = written
    watcher = watch.Watcher(tmp_path, Listener())
    watcher.close()
    assert not pages
    clock[0] += 100
    watcher(STATUS)
    watcher.close()
    watcher.close()
    assert pages == [STATUS, None]


@pytest.mark.parametrize("error", [UserError("damaged"), KeyError("bug")])
def test_a_fault_of_the_page_ends_no_run(written, tmp_path, monkeypatch, error):
    # Would catch a search of days that ends because of its report.
    def write(workdirs, status):
        raise error

    display = Listener()
    watcher = watch.Watcher(tmp_path, display)
    monkeypatch.setattr(page, "write_report", write)
    written[1][0] += 100
    watcher(STATUS)
    (message,) = display.messages
    assert "report could not be written" in message and str(error) in message


def test_a_full_disk_ends_the_run(written, tmp_path, monkeypatch):
    # Would catch a run that goes on although nothing can be saved.
    def write(workdirs, status):
        raise OSError(28, "No space left on device")

    watcher = watch.Watcher(tmp_path, Listener())
    written[1][0] += 100
    watcher(STATUS)
    monkeypatch.setattr(page, "write_report", write)
    written[1][0] += 100
    with pytest.raises(OSError, match="No space"):
        watcher(STATUS)
    watcher.close()  # the run ends with the first error, not with this one


@pytest.mark.parametrize(("seeds", "fails"), [(1, False), (1, True), (2, False)])
def test_a_command_shows_its_runs(tmp_path, monkeypatch, seeds, fails):
    # Would catch a command without a page before its end, and one whose page still says that a run
    # goes on after it has ended or failed.
    def refreshing(workdir):
        text = (workdir / "report.html").read_text().replace(get_plotlyjs(), "")
        return 'http-equiv="refresh"' in text

    def phase(run):
        run.watch(STATUS)
        assert refreshing(run.workdir)
        seen.append(run.workdir)
        if fails:
            raise UserError("the loss is not finite")

    seen = []
    monkeypatch.setattr(watch, "_FIRST", 0.0)
    monkeypatch.setattr("drnas_jax.main.PHASES", {"retrain": phase})
    argv = ["", DIGITS, f"--workdir={tmp_path / 'run'}", f"--config.seeds={seeds}"]
    assert main([*argv, "--phases=retrain"]) == (2 if fails else 0)
    assert len(seen) == seeds
    assert not any(map(refreshing, {*seen, tmp_path / "run"}))
