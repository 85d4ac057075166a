"""The smallest run of digits with two stages, which several tests start, and how they wait."""

import contextlib
import os
import subprocess
import time

FIELDS = {
    "search.channels": 4,
    "search.batch_size": 64,
    "search.epochs": (1, 2),
    "search.warmup_epochs": (0, 1),
    "retrain.channels": 4,
    "retrain.batch_size": 64,
    "retrain.epochs": 2,
}


def environment():
    """That of a user's command: with the devices there are, not with those that are simulated."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


@contextlib.contextmanager
def started(command, log, **options):
    """A process that ends with the block; its output goes to a file (shown where a test fails)."""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, **options)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            print(log.read_text())


def wait_until(what, process):
    """Waits for something that a process does; fails where it ends before, or hangs."""
    deadline = time.monotonic() + 300
    while not what():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
