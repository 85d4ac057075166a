"""How the worker processes of a streamed data set end; each test runs a script."""

import os
import signal
import subprocess
import sys
import time
import types
from multiprocessing import spawn
from pathlib import Path

import pytest
from loading import write_folder

from drnas_jax.data import workers
from drnas_jax.data.workers import read_in_workers

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
import numpy as np
from drnas_jax.config import DataConfig
from drnas_jax.data import Schedule, Subset, load
from drnas_jax.errors import UserError

def opened(workers):
    fields = dict(name="folder", dir=sys.argv[1], crop="resized", image_size=8, workers=workers)
    stream = load(DataConfig(**fields))
    subsets = (Subset("weights", np.arange(stream.count, dtype=np.int32)),)
    return stream.batches(Schedule(4, 0, subsets, steps=1000), 0, np.arange(4))

if __name__ == "__main__":
    {body}
"""

ENDS = """
    for damaged in ([], sys.argv[2:]):
        batches = opened(1)
        next(batches)
        for file in damaged:
            open(file, "wb").close()
        try:
            for _ in range(300 if damaged else 1):
                next(batches)
        except UserError as error:
            print(error)
        batches.close()
"""
KILLED = """
    import multiprocessing, os, signal
    batches = opened(2)
    next(batches)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    try:
        for _ in range(300):
            next(batches)
    except ChildProcessError as error:
        print(error)
"""
RUNS_ON = """
    import multiprocessing, time
    batches = opened(2)
    next(batches)
    print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path)


def start(body, folder, *arguments):
    script = folder.parent / f"{folder.name}.py"
    script.write_text(SCRIPT.format(body=body.strip()))
    return subprocess.Popen(
        [sys.executable, str(script), str(folder), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Squares:
    """Chunks of a class that only the main process has."""

    def __len__(self):
        return 3

    def __getitem__(self, k):
        return k * k


def set_main(monkeypatch, file):
    """Makes a file the main script of this process."""
    main = types.ModuleType("__main__")
    main.__file__, main.__spec__ = file, None
    monkeypatch.setitem(sys.modules, "__main__", main)


@pytest.mark.parametrize(
    "script", [pytest.param("guardless.py", marks=pytest.mark.slow), "<stdin>"]
)
def test_a_script_needs_no_guard(monkeypatch, tmp_path, script):
    # Catches workers that import the main script, which begins the run again or is not there.
    (tmp_path / "guardless.py").write_text("raise SystemExit('the run begins again')")
    set_main(monkeypatch, script if script == "<stdin>" else str(tmp_path / script))
    monkeypatch.setattr(Squares, "__module__", "__main__")
    before = spawn.get_preparation_data
    assert list(read_in_workers(Squares(), 1)) == [0, 1, 4]
    assert spawn.get_preparation_data is before


@pytest.mark.parametrize(
    ("code", "count", "words"),
    [
        ("-9", 2, ["was killed", "exit code -9", "set data.workers below 2"]),
        ("-9", 1, ["was killed", "free some"]),
        ("1", 2, ["failed", "exit code 1", 'if __name__ == "__main__":']),
    ],
)
def test_a_lost_worker_is_described_with_a_way_out(code, count, words):
    # Catches advice that cannot be followed, such as less than one worker.
    message = workers._describe(f"Worker process ended with exit code {code}", count)
    assert all(word in message for word in words)


def test_other_processes_import_the_main_script_meanwhile(monkeypatch):
    # Catches a user's own processes that lack what the script defines.
    set_main(monkeypatch, __file__)
    with workers._without_main_script():
        told = spawn.get_preparation_data("SpawnProcess-1")
        assert "init_main_from_path" in told or "init_main_from_name" in told
        told = spawn.get_preparation_data("grain-process-prefetch-1")
        assert not any(key.startswith("init_main") for key in told) and "sys_path" in told


def test_an_early_end_and_an_error_leave_nothing_behind(folder):
    # Catches shared memory or processes that outlive their generator.
    files = [str(file) for file in folder.glob("*/*")]
    process = start(ENDS, folder, *files)
    printed, complaints = process.communicate(timeout=300)
    assert complaints == ""  # Python complains about shared memory that is left over
    assert process.returncode == 0
    assert printed.count("is not an image") == printed.count("\n") == 1


@pytest.mark.slow  # Grain looks for lost workers only now and then, and waits for the others
def test_a_killed_worker_is_an_error_and_leaves_nothing_behind(folder):
    # Catches a run that hangs, or ends with a traceback of Grain, when memory has run out.
    process = start(KILLED, folder)
    printed, complaints = process.communicate(timeout=300)
    assert complaints == ""
    assert process.returncode == 0
    assert printed.startswith("an input worker was killed")
    assert "exit code -9" in printed
    assert "data.workers below 2" in printed


def running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to look for workers")
def test_workers_end_when_the_main_process_is_killed(folder):
    # Catches workers that run on after a batch system has killed the job.
    process = start(RUNS_ON, folder)
    pids = [int(pid) for pid in process.stdout.readline().split()]
    try:
        assert len(pids) == 2
        assert all(running(pid) for pid in pids)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 120
        while any(running(pid) for pid in pids):
            assert time.monotonic() < deadline, "workers are still running"
            time.sleep(0.05)
    finally:
        for pid in filter(running, [process.pid, *pids]):
            os.kill(pid, signal.SIGKILL)
        process.communicate()
