"""Checkpoints return what was saved bit for bit, and damage is one clear error."""

import dataclasses
import gc
import os
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging as absl_logging

from drnas_jax.errors import UserError
from drnas_jax.training import checkpoints as lib
from drnas_jax.training.checkpoints import Checkpoints, ocp
from drnas_jax.training.devices import make_mesh, replicate
from drnas_jax.training.progress import Progress

# If Orbax fails to read, it leaves tasks behind that complain when they are collected.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PROGRESS = Progress(
    epochs_done=3, seconds=0.5, devices=2, jax="0.10", images=718, fingerprint=2**63, steps=11
)


@pytest.fixture(autouse=True, scope="module")
def collect():
    yield
    gc.collect()  # here, not in another file's test


class Moments(NamedTuple):
    mu: dict
    nu: tuple


def state(offset=0.0):
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 1 / 3, 16777217], np.float32)
    return {
        "step": jnp.int32(7),
        "params": {
            "a": jnp.arange(6.0).reshape(2, 3) + offset,
            "b": {"bias": jnp.asarray(special)},
        },
        "opt": (Moments({"a": jnp.ones((3,), jnp.bfloat16)}, (jnp.float32(0.5),)),),
        "images": jnp.arange(200_000, dtype=jnp.uint8),
    }


def progress(step):
    return dataclasses.replace(PROGRESS, epochs_done=step)


def save(directory, *steps):
    with Checkpoints(directory) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step), progress(step), {"stage": step})


def assert_equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def refused(directory, shapes=None):
    """Returns the line by which loading the newest checkpoint is refused."""
    with pytest.raises(UserError) as caught, Checkpoints(directory) as checkpoints:
        checkpoints.load(checkpoints.latest(), shapes or state(), make_mesh())
    message = str(caught.value)
    assert "\n" not in message
    assert str(directory) in message and "new workdir" in message
    return message


def test_an_empty_directory_has_no_checkpoint(tmp_path):
    # Catches a first start that fails because it finds nothing to resume.
    with Checkpoints(tmp_path / "new" / "checkpoints") as checkpoints:
        assert checkpoints.latest() is None
        assert checkpoints.restore(lambda _: state(), make_mesh(), print) is None


@pytest.mark.parametrize("devices", [1, 8])
def test_a_state_of_two_devices_comes_back_on_others(tmp_path, devices):
    # Catches rounding (nan, subnormal numbers, bfloat16), and arrays that stay on one device.
    phase = {"operations": {"cell": [["none"], ["skip", "conv"]]}, "nothing": None, "float": 1 / 3}
    with Checkpoints(tmp_path) as checkpoints:
        two_devices = make_mesh(jax.devices()[:2])
        checkpoints.save(33, replicate(state(), two_devices), PROGRESS, phase)
    mesh = make_mesh(jax.devices()[:devices])
    with Checkpoints(tmp_path) as checkpoints:
        info = checkpoints.latest()
        assert (info.step, info.progress, info.phase) == (33, PROGRESS, phase)
        loaded = checkpoints.load(info, jax.eval_shape(state), mesh)
    assert_equal(loaded, state())
    for leaf in jax.tree.leaves(loaded):
        assert leaf.sharding.device_set == set(mesh.devices.flat)
        assert leaf.is_fully_replicated


def test_only_the_newest_two_are_kept(tmp_path):
    # Catches a disk that fills up, and a newest checkpoint with nothing to go back to.
    save(tmp_path, 5, 11, 22, 33)
    assert sorted(os.listdir(tmp_path)) == ["22", "33"]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest().step == 33
        assert_equal(checkpoints.load(checkpoints.latest(), state(), make_mesh()), state(33))


def test_the_newest_has_the_largest_number(tmp_path):
    # Catches sorting by name, in which 9 comes after 10.
    save(tmp_path, 9, 10)
    with Checkpoints(tmp_path) as checkpoints:
        info = checkpoints.latest()
    assert (info.step, info.progress, info.phase) == (10, progress(10), {"stage": 10})


def test_the_shapes_are_those_of_the_checkpoint_that_is_loaded(tmp_path):
    # Catches a phase that is asked for its present shapes, though another stage saved them.
    sizes = {1: 3, 2: 5}
    with Checkpoints(tmp_path) as checkpoints:
        for step, size in sizes.items():
            checkpoints.save(step, {"a": jnp.ones(size)}, PROGRESS, {"size": size})
    asked = []

    def shapes(phase):
        asked.append(phase["size"])
        return {"a": jax.ShapeDtypeStruct((phase["size"],), jnp.float32)}

    with Checkpoints(tmp_path) as checkpoints:
        info, loaded = checkpoints.restore(shapes, make_mesh(), print)
    assert (info.step, loaded["a"].shape, asked) == (2, (5,), [5])


def test_a_part_of_a_state_can_be_loaded(tmp_path):
    # Catches evaluation that needs the optimiser's state to read the weights.
    save(tmp_path, 4)
    part = {"params": jax.eval_shape(state)["params"]}
    with Checkpoints(tmp_path) as checkpoints:
        loaded = checkpoints.load(checkpoints.latest(), part, make_mesh())
        assert_equal(loaded, {"params": state(4)["params"]})


@pytest.mark.parametrize("shape", [(3, 3), (2, 2), (6,), (2, 3, 1)])
def test_other_shapes_are_refused(tmp_path, shape):
    # Catches arrays that Orbax would cut, pad or reshape in silence.
    save(tmp_path, 4)
    other = state()
    other["params"]["a"] = jnp.zeros(shape)
    assert "shape: (2, 3)" in refused(tmp_path, other)


def test_a_missing_array_is_refused(tmp_path):
    # Catches a partial load that leaves a placeholder in the state.
    save(tmp_path, 4)
    other = state()
    other["params"]["extra"] = jnp.zeros(3)
    assert "it has no ['params']['extra']" in refused(tmp_path, other)


def checkpoint_file(folder, which):
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
    """Checks that the newest checkpoint is set aside, and the previous one is loaded."""
    lines = []
    with Checkpoints(directory) as checkpoints:
        info, loaded = checkpoints.restore(lambda _: state(), make_mesh(), lines.append)
        assert info.step == 11
        assert_equal(loaded, state(11))
        checkpoints.save(22, state(22), progress(22), {})
    assert len(lines) == 1 and "checkpoint 22" in lines[0] and "22.damaged" in lines[0]
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
def test_damage_is_noticed_and_the_previous_checkpoint_is_used(tmp_path, which, how):
    # Catches a run that continues from changed weights, or cannot continue at all.
    save(tmp_path, 11, 22)
    damage(checkpoint_file(tmp_path / "22", which), how)
    message = refused(tmp_path)
    assert f"checkpoint 22 in {tmp_path}" in message
    assert "remove that folder" in message
    assert_goes_back(tmp_path)


def test_a_second_damaged_checkpoint_of_the_same_number_is_set_aside(tmp_path):
    # Catches a name that is already taken by the one set aside before.
    save(tmp_path, 11, 22)
    for _ in range(2):
        (tmp_path / "22" / "_CHECKPOINT_METADATA").write_text("{}")
        assert_goes_back(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"item_handlers", b"idem_handlers"),
        (b'"metrics": {}', b'"metrics": 17'),
        (b'"commit_timestamp_nsecs"', b'"commit_timestamp_nsecq"'),
        (b'"commit_timestamp_nsecs": 1', b'"commit_timestamp_nsecs": "'),
        (b'"custom_metadata"', b'"custom_mutadata"'),
        (b'"progress"', b'"pbogress"'),
    ],
)
def test_a_damaged_description_is_noticed_and_the_previous_checkpoint_is_used(tmp_path, old, new):
    # Catches a run that never starts again, because Orbax reads all descriptions at the start.
    save(tmp_path, 11, 22)
    file = tmp_path / "22" / "_CHECKPOINT_METADATA"
    content = file.read_bytes()
    assert content.count(old) == 1
    file.write_bytes(content.replace(old, new))
    try:  # while another process may be saving, nothing is renamed
        with Checkpoints(tmp_path, cleanup=False) as checkpoints:
            checkpoints.latest()
    except UserError as error:
        assert f"checkpoint 22 in {tmp_path} cannot be restored" in str(error)
    else:
        pytest.fail("the damage was not noticed")
    assert sorted(os.listdir(tmp_path)) == ["11", "22"]
    assert_goes_back(tmp_path)


def test_if_no_description_is_intact_all_stay(tmp_path):
    # Catches checkpoints that are all set aside, so that a run starts from nothing.
    save(tmp_path, 11, 22)
    for step in ("11", "22"):
        file = tmp_path / step / "_CHECKPOINT_METADATA"
        file.write_bytes(file.read_bytes().replace(b"item_handlers", b"idem_handlers"))
    with pytest.raises(UserError, match="checkpoint 22 in"):
        Checkpoints(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["11", "22"]


def test_if_none_is_intact_all_stay(tmp_path):
    # Catches a run that starts from nothing and hides what could still be repaired.
    save(tmp_path, 11, 22)
    for step in ("11", "22"):
        (tmp_path / step / "_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(UserError, match="checkpoint 22 in"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore(lambda _: state(), make_mesh(), print)
    assert sorted(os.listdir(tmp_path)) == ["11", "22"]


def test_a_checkpoint_of_another_run_stays(tmp_path):
    # Catches a checkpoint that is set aside as damaged because the phase refuses it.
    save(tmp_path, 11, 22)

    def shapes(phase):
        raise UserError("another genotype")

    with pytest.raises(UserError, match="another genotype"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore(shapes, make_mesh(), print)
    assert sorted(os.listdir(tmp_path)) == ["11", "22"]


def test_a_checkpoint_of_version_0_1_is_refused_by_one_line(tmp_path):
    # Catches a KeyError, and an old checkpoint that is set aside as damaged.
    with ocp.training.Checkpointer(tmp_path) as checkpointer:
        old = {"metadata": {"epochs_done": 1}, "digests": {}, "digest": 1}
        checkpointer.save(7, {"a": jnp.ones(3)}, custom_metadata=old)
    with Checkpoints(tmp_path) as checkpoints:
        for read in (
            checkpoints.latest,
            lambda: checkpoints.restore(lambda _: state(), make_mesh(), print),
        ):
            with pytest.raises(UserError) as caught:
                read()
            message = str(caught.value)
            assert f"checkpoint 7 in {tmp_path}" in message and "drnas_jax 0.1" in message
            assert "new workdir" in message and "\n" not in message
    assert os.listdir(tmp_path) == ["7"]


@pytest.mark.parametrize(
    "name", ["orbax.checkpoint.v1", "orbax.checkpoint.experimental.v1", "orbax.checkpoint"]
)
def test_orbaxs_interface_is_found_wherever_a_release_has_it(monkeypatch, name):
    # Catches release 1.0, which is announced to have it at the top, and a broken Orbax that is
    # reported as a missing module.
    interface = object()

    def find(wanted):
        if wanted != name:
            missing = "orbax.checkpoint.experimental" if name == "orbax.checkpoint" else wanted
            raise ModuleNotFoundError(name=missing if wanted.startswith(missing) else wanted)
        return interface

    monkeypatch.setattr(lib, "importlib", types.SimpleNamespace(import_module=find))
    assert lib._orbax() is interface

    def fail(wanted):
        raise ModuleNotFoundError(name="tensorstore")

    monkeypatch.setattr(lib, "importlib", types.SimpleNamespace(import_module=fail))
    with pytest.raises(ModuleNotFoundError) as caught:
        lib._orbax()
    assert caught.value.name == "tensorstore"


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
