"""How the worker processes of a streamed data set end; each test runs a script."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from loading import write_folder

from drnas_jax.data import workers

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


class Killed:
    """Stands in for a data set of Grain whose worker is killed at once."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: self

    def __iter__(self):
        return self

    def __next__(self):
        raise RuntimeError("Worker process was terminated unexpectedly with exit code -9. Maybe")


@pytest.mark.parametrize(("count", "advice"), [(1, "free some of it"), (2, "workers below 2")])
def test_the_advice_after_a_killed_worker_can_be_followed(monkeypatch, count, advice):
    # Catches the advice to have fewer workers than one.
    monkeypatch.setattr(workers.grain.MapDataset, "source", lambda chunks: Killed())
    with pytest.raises(ChildProcessError) as raised:
        next(workers.read_in_workers([], count))
    assert str(raised.value).endswith(advice)


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
