"""The smallest two-stage run of digits, and helpers to start processes and wait for them."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import samplers

ROOT = Path(__file__).parents[1]
FIELDS = {
    "search.channels": 4,
    "search.batch_size": 64,
    "search.epochs": (1, 2),
    "search.warmup_epochs": (0, 0),
    "search.operations": (5, 2),
    "search.compared_cells": 0,
    "retrain.channels": 4,
    "retrain.batch_size": 64,
    "retrain.epochs": 2,
}


def command(workdir, *flags):
    """Returns the command line of the smallest run, with further flags."""
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    flags = ["--config=configs/digits.py", f"--workdir={workdir}", *fields, *samplers.FLAGS, *flags]
    return [sys.executable, "-m", "drnas_jax.main", *flags]


def environment():
    """Returns the environment variables of a user, without the simulated devices of the tests."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


def run(command):
    """Runs a command, which must not fail, and returns what it printed on standard error."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@contextlib.contextmanager
def started(command, log, **options):
    """Starts a process that is killed at the end of the block.

    Its output goes to the file `log`, and is printed at the end, so that pytest shows it if the
    test fails.
    """
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, **options)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            print(log.read_text())


def wait_until(condition, process):
    """Waits until `condition()` is true; fails if the process ends before, or after 5 minutes."""
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
