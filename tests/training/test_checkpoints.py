"""Checkpoints return what was saved bit for bit, and damage is one clear error."""

import gc
import os
import types

import jax
import jax.numpy as jnp
import pytest
from saved_states import PROGRESS, assert_equal, progress, save, state

from drnas_jax.errors import UserError
from drnas_jax.training import checkpoints as lib
from drnas_jax.training.checkpoints import Checkpoints, ocp
from drnas_jax.training.devices import make_mesh, replicate

# If Orbax fails to read, it leaves tasks behind that complain when they are collected.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def collect():
    yield
    gc.collect()  # here, not in another file's test


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
