"""A save that is killed or fails leaves the earlier checkpoints and the process as they were."""

import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from absl import logging as absl_logging
from saved_states import PROGRESS, assert_equal, save

from drnas_jax.errors import UserError
from drnas_jax.training.checkpoints import Checkpoints
from drnas_jax.training.devices import make_mesh

# The start of the scripts below.
SCRIPT = """
import os, resource, signal, sys, threading
import jax, jax.numpy as jnp, numpy as np
from absl import logging
from drnas_jax.errors import UserError
from drnas_jax.training.checkpoints import Checkpoints
from drnas_jax.training.progress import Progress

directory, progress = sys.argv[1], Progress(1, 1.0, 1, "0.10", 1, 1, 1)
"""

# Writes a second checkpoint, and is killed as soon as a file of it exists.
KILLED = f"""{SCRIPT}
state = {{"a": jnp.ones((1000, 1000))}}
checkpoints = Checkpoints(directory)
checkpoints.save(1, state, progress, {{}})

def kill():
    while len(os.listdir(directory)) < 2:
        pass
    os.kill(os.getpid(), 9)

threading.Thread(target=kill, daemon=True).start()
checkpoints.save(2, state, progress, {{}})
"""


def run(script, directory):
    command = [sys.executable, "-c", script, str(directory)]
    root = Path(__file__).parents[2]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_a_killed_save_leaves_no_checkpoint(tmp_path):
    # Catches an incomplete checkpoint that counts, and one that is removed while it is written.
    done = run(KILLED, tmp_path)
    assert done.returncode == -9, done.stderr
    remains = set(os.listdir(tmp_path)) - {"1"}
    assert len(remains) == 1 and "tmp" in remains.pop()  # else the process was killed too late
    before = sorted(os.listdir(tmp_path))
    with Checkpoints(tmp_path, cleanup=False) as checkpoints:  # a reader beside a saving process
        assert checkpoints.latest().step == 1
    assert sorted(os.listdir(tmp_path)) == before
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest().step == 1
        checkpoints.save(2, {"a": jnp.zeros(3)}, PROGRESS, {})
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]
    with Checkpoints(tmp_path) as checkpoints:
        loaded = checkpoints.load(checkpoints.latest(), {"a": jnp.ones(3)}, make_mesh())
        assert_equal(loaded, {"a": jnp.zeros(3)})


# Writes a checkpoint, then another one that exceeds the limit on the size of a file, as on a full
# disk. Some of its many arrays are still being written when the first one fails.
FULL = f"""{SCRIPT}
state = {{str(i): np.full((200 + 10 * i, 300), i, np.float32) for i in range(60)}}
state["noise"] = jax.random.normal(jax.random.key(0), (600, 600))
try:
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(1, state, progress, {{}})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, -1))
        checkpoints.save(2, state, progress, {{}})
except UserError as error:
    print(error)

# Errors that the user's own code logs, or that Python cannot raise.
class Broken:
    def __del__(self):
        raise RuntimeError("from __del__")

print("afterwards", file=sys.stderr)
broken = Broken()
del broken
try:
    raise RuntimeError("from absl")
except RuntimeError:
    logging.exception("logged")
"""


def test_a_failed_save_is_one_line_and_loses_nothing(tmp_path):
    # Catches the tracebacks that threads of Orbax and TensorStore print, several hundred lines, and
    # logging that stays switched off for the rest of the process.
    done = run(FULL, tmp_path)
    assert done.returncode == 0
    during, _, afterwards = done.stderr.partition("afterwards\n")
    assert during == ""
    assert "RuntimeError: from __del__" in afterwards and "RuntimeError: from absl" in afterwards
    assert afterwards.count("Traceback") == 2
    (line,) = done.stdout.splitlines()
    assert f"checkpoint 2 could not be written to {tmp_path} (File too large)" in line
    noise = {"noise": jax.random.normal(jax.random.key(0), (600, 600))}
    with Checkpoints(tmp_path) as checkpoints:
        info, loaded = checkpoints.restore(lambda _: noise, make_mesh(), print)
        assert info.step == 1
        assert_equal(loaded, noise)
    # Orbax removes the remains in a thread of its own.
    deadline = time.monotonic() + 60
    while os.listdir(tmp_path) != ["1"]:
        assert time.monotonic() < deadline, os.listdir(tmp_path)
        time.sleep(0.05)


def test_a_successful_save_leaves_the_process_as_it_was(tmp_path):
    # Catches hooks and filters that pile up, one for each save.
    logger, hook = absl_logging.get_absl_logger(), sys.unraisablehook
    filters = list(logger.filters)
    save(tmp_path, 1, 2)
    assert (sys.unraisablehook, logger.filters) == (hook, filters)


def test_files_of_others_stay(tmp_path):
    # Catches a clean-up that removes what the user keeps in the folder.
    save(tmp_path, 4)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "old").mkdir()
    save(tmp_path, 5, 6)
    assert sorted(os.listdir(tmp_path)) == ["5", "6", "notes.txt", "old"]


def test_a_file_in_place_of_the_directory_is_refused(tmp_path):
    # Catches a traceback of Orbax, and a user's file that is overwritten.
    (tmp_path / "retrain").write_text("mine")
    with pytest.raises(UserError, match="retrain/checkpoints cannot be read"):
        Checkpoints(tmp_path / "retrain" / "checkpoints")
    assert (tmp_path / "retrain").read_text() == "mine"
