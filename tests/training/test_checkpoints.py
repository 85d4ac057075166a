"""Checkpoints: what was saved comes back bit for bit, and damage is one clear error."""

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnas_jax.errors import UserError
from drnas_jax.training.checkpoints import Checkpoints
from drnas_jax.training.devices import make_mesh, replicate

# Where Orbax fails to read, it leaves tasks behind that complain when they are collected.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def collect():
    yield
    gc.collect()  # here, not in somebody else's test


class Moments(NamedTuple):
    mu: dict
    nu: tuple


def state(offset=0.0):
    odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 1 / 3, 16777217], np.float32)
    return {
        "step": jnp.int32(7),
        "params": {"a": jnp.arange(6.0).reshape(2, 3) + offset, "b": {"bias": jnp.asarray(odd)}},
        "opt": (Moments({"a": jnp.ones((3,), jnp.bfloat16)}, (jnp.float32(0.5),)),),
        "images": jnp.arange(200_000, dtype=jnp.uint8),
    }


def save(directory, *steps):
    with Checkpoints(directory) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step), {"epochs_done": step, "seconds": 0.5})


def assert_equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def refused(directory, like=None):
    """The one line that reading the newest checkpoint is refused with."""
    with pytest.raises(UserError) as caught, Checkpoints(directory) as checkpoints:
        checkpoints.load(checkpoints.latest(), like or state(), make_mesh())
    message = str(caught.value)
    assert "\n" not in message
    assert str(directory) in message and "new workdir" in message
    return message


def test_nothing_there(tmp_path):
    with Checkpoints(tmp_path / "new" / "checkpoints") as checkpoints:
        assert checkpoints.latest() is None


@pytest.mark.parametrize("devices", [1, 8])
def test_round_trip_from_two_devices(tmp_path, devices):
    metadata = {"epochs_done": 3, "operations": {"cell": [["none"], ["skip", "conv"]]}, "nul": None}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(33, replicate(state(), make_mesh(jax.devices()[:2])), metadata)
    mesh = make_mesh(jax.devices()[:devices])
    with Checkpoints(tmp_path) as checkpoints:
        saved = checkpoints.latest()
        assert (saved.step, saved.metadata) == (33, metadata)
        loaded = checkpoints.load(saved, jax.eval_shape(state), mesh)
    assert_equal(loaded, state())
    for leaf in jax.tree.leaves(loaded):
        assert leaf.sharding.device_set == set(mesh.devices.flat)
        assert leaf.is_fully_replicated


def test_only_the_newest_two_are_kept(tmp_path):
    save(tmp_path, 5, 11, 22, 33)
    assert sorted(os.listdir(tmp_path)) == ["22", "33"]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest().step == 33
        assert_equal(checkpoints.load(checkpoints.latest(), state(), make_mesh()), state(33))


def test_the_newest_is_the_one_of_the_largest_number(tmp_path):
    save(tmp_path, 9, 10)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest()[:2] == (10, {"epochs_done": 10, "seconds": 0.5})


def test_a_part(tmp_path):
    save(tmp_path, 4)
    part = {"params": jax.eval_shape(state)["params"]}
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.load(checkpoints.latest(), part, make_mesh())
        assert_equal(found, {"params": state(4)["params"]})


@pytest.mark.parametrize("shape", [(3, 3), (2, 2), (6,), (2, 3, 1)])
def test_another_shape(tmp_path, shape):
    save(tmp_path, 4)
    other = state()
    other["params"]["a"] = jnp.zeros(shape)
    assert "shape: (2, 3)" in refused(tmp_path, other)


def test_what_was_not_saved(tmp_path):
    save(tmp_path, 4)
    other = state()
    other["params"]["extra"] = jnp.zeros(3)
    assert "it has no ['params']['extra']" in refused(tmp_path, other)


def newest_file(folder, which):
    """Files of a checkpoint that it cannot do without."""
    if which == "largest":
        return max((path for path in folder.rglob("*") if path.is_file()), key=os.path.getsize)
    return folder / which


def damage(file, how):
    content = file.read_bytes()
    middle = len(content) // 2
    if how == "gone":
        file.unlink()
    elif how == "flipped":
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        file.write_bytes(content[:middle] if how == "half" else b"")


def assert_goes_back(directory):
    """The newest checkpoint is set aside, and the one before it is read."""
    told = []
    with Checkpoints(directory) as checkpoints:
        saved, found = checkpoints.restore(lambda _: state(), make_mesh(), told.append)
        assert saved.step == 11
        assert_equal(found, state(11))
        checkpoints.save(22, state(22), {"epochs_done": 22})
    assert len(told) == 1 and "set aside as 22.damaged; 11 is whole" in told[0]
    assert sorted(os.listdir(directory)) == ["11", "22", "22.damaged"]


@pytest.mark.parametrize(
    ("which", "how"),
    [
        *(("largest", how) for how in ("half", "empty", "gone", "flipped")),
        *(("_CHECKPOINT_METADATA", how) for how in ("gone", "flipped")),
        ("state/_METADATA", "half"),
        *(("state/manifest.ocdbt", how) for how in ("empty", "gone")),
    ],
)
def test_damage_and_the_way_back(tmp_path, which, how):
    save(tmp_path, 11, 22)
    damage(newest_file(tmp_path / "22", which), how)
    message = refused(tmp_path)
    assert f"checkpoint 22 in {tmp_path}" in message
    assert "remove that folder to go back to the checkpoint before" in message
    assert_goes_back(tmp_path)


def test_what_was_set_aside_once_does_not_come_back(tmp_path):
    save(tmp_path, 11, 22)
    for _ in range(2):
        (tmp_path / "22" / "_CHECKPOINT_METADATA").write_text("{}")
        assert_goes_back(tmp_path)


def test_where_none_is_whole_nothing_is_set_aside(tmp_path):
    save(tmp_path, 11, 22)
    for step in ("11", "22"):
        (tmp_path / step / "_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(UserError, match="checkpoint 22 in"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore(lambda _: state(), make_mesh(), print)
    assert sorted(os.listdir(tmp_path)) == ["11", "22"]


# Writes a second checkpoint and is killed as soon as a file of it is there.
KILLED = """
import os, sys, threading
import jax.numpy as jnp
from drnas_jax.training.checkpoints import Checkpoints

directory = sys.argv[1]
state = {"a": jnp.ones((1000, 1000))}
checkpoints = Checkpoints(directory)
checkpoints.save(1, state, {"epochs_done": 1})

def kill():
    while len(os.listdir(directory)) < 2:
        pass
    os.kill(os.getpid(), 9)

threading.Thread(target=kill, daemon=True).start()
checkpoints.save(2, state, {"epochs_done": 2})
"""


def test_a_save_that_was_killed_leaves_nothing(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    left = set(os.listdir(tmp_path)) - {"1"}
    assert len(left) == 1 and "tmp" in left.pop()  # what the test is about
    # It may as well be under way: one that only reads must leave it alone.
    before = sorted(os.listdir(tmp_path))
    with Checkpoints(tmp_path, cleanup=False) as checkpoints:
        assert checkpoints.latest()[:2] == (1, {"epochs_done": 1})
    assert sorted(os.listdir(tmp_path)) == before
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest()[:2] == (1, {"epochs_done": 1})
        checkpoints.save(2, {"a": jnp.zeros(3)}, {"epochs_done": 2})
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.load(checkpoints.latest(), {"a": jnp.ones(3)}, make_mesh())
        assert_equal(found, {"a": jnp.zeros(3)})


# Writes a checkpoint, then one that no file may be large enough for, as where a disk is full.
FULL = """
import resource, signal, sys
import jax, jax.numpy as jnp
from drnas_jax.training.checkpoints import Checkpoints
from drnas_jax.errors import UserError

directory = sys.argv[1]
state = {"a": jax.random.normal(jax.random.key(0), (600, 600))}
try:
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(1, state, {"epochs_done": 1})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, -1))
        checkpoints.save(2, state, {"epochs_done": 2})
except UserError as error:
    print(error)
"""


def test_a_save_that_fails_is_one_line_and_loses_nothing(tmp_path):
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout == (
        f"checkpoint 2 could not be written to {tmp_path} (File too large): fix that and run the "
        "same command again; it goes on from the checkpoint before\n"
    )
    expected = {"a": jax.random.normal(jax.random.key(0), (600, 600))}
    with Checkpoints(tmp_path) as checkpoints:
        saved, found = checkpoints.restore(lambda _: expected, make_mesh(), print)
        assert saved.step == 1
        assert_equal(found, expected)
    assert sorted(os.listdir(tmp_path)) == ["1"]


def test_files_of_others_do_not_disturb(tmp_path):
    save(tmp_path, 4)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "old").mkdir()
    save(tmp_path, 5, 6)
    assert sorted(os.listdir(tmp_path)) == ["5", "6", "notes.txt", "old"]


def test_a_file_in_the_place_of_the_directory(tmp_path):
    (tmp_path / "retrain").write_text("mine")
    with pytest.raises(UserError, match="retrain/checkpoints cannot be read"):
        Checkpoints(tmp_path / "retrain" / "checkpoints")
    assert (tmp_path / "retrain").read_text() == "mine"
