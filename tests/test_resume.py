"""The same seed gives the same bits, whether or not the run was interrupted."""

import dataclasses
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from small_run import FIELDS

from drnas_jax import data
from drnas_jax.config import from_config_dict
from drnas_jax.configs import digits
from drnas_jax.data.feed import Reader
from drnas_jax.errors import UserError
from drnas_jax.files import read_history
from drnas_jax.genotype import Genotype, save
from drnas_jax.phases import evaluate, loop, retrain, search
from drnas_jax.phases.retrain import Retraining
from drnas_jax.phases.search.diagnostics import Probe
from drnas_jax.phases.search.problem import Problem
from drnas_jax.training import devices as on
from drnas_jax.training.checkpoints import ocp
from drnas_jax.training.metrics import Display
from drnas_jax.training.signals import Interrupted
from drnas_jax.workdir import alone

STEPS = 11  # in an epoch: 718 training images in batches of 64
# One stage with one compiled step.
SHORT = FIELDS | {
    "search.epochs": (2,),
    "search.warmup_epochs": (0,),
    "search.partial_channels": (4,),
    "search.operations": (5,),
}


class Listener(Display):
    """Prints nothing and keeps the messages."""

    def __init__(self):
        super().__init__(quiet=True)
        self.messages = []

    def message(self, text):
        self.messages.append(text)


class Stopper(Listener):
    """Sends this process a signal at a step, as a scheduler would."""

    def __init__(self, step, signum):
        super().__init__()
        self.step, self.signum = step, signum

    def update(self, step, *_):
        if step == self.step:  # once: a second Ctrl-C means at once
            self.step = None
            os.kill(os.getpid(), self.signum)


class Crashing(Listener):
    """Fails at a step, and nothing is written any more."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def update(self, step, *_):
        if step == self.step:
            raise OSError("crash")


@pytest.fixture
def config(monkeypatch):
    """The digits' config, and a display that hears of every step."""
    monkeypatch.setattr(loop, "_REPORT_EVERY", 0.0)
    # Traced once for all the calls below; test_end_to_end.py goes on in a new process.
    for owner, name in (
        (Problem, "step_program"),
        (Problem, "validation_program"),
        (Retraining, "step_program"),
    ):
        monkeypatch.setattr(owner, name, once(getattr(owner, name)))
    config = digits.get_config()
    config.update_from_flattened_dict(FIELDS)
    return config


@pytest.fixture
def on_devices(monkeypatch):
    """Sets how many devices there are."""
    make, devices = on.make_mesh, jax.devices()

    def set_count(count):
        monkeypatch.setattr(on, "make_mesh", lambda: make(devices[:count]))

    return set_count


def once(method):
    """A method that gives what it gave before for the same mesh and arguments."""
    given = {}

    def wrapped(self, *arguments):
        key = self.mesh, *arguments
        if key not in given:
            given[key] = method(self, *arguments)
        return given[key]

    return wrapped


def checkpoint(directory):
    """Step, arrays and metadata of the newest checkpoint, as they lie on the disk."""
    with ocp.training.Checkpointer(Path(directory).absolute()) as checkpointer:
        step = checkpointer.latest.step
        found = checkpointer.metadata(step)
        # On a device of ours, also where other processes have written it.
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=here),
            found.metadata,
        )
        leaves = jax.tree_util.tree_leaves_with_path(checkpointer.load(step, abstract))
    metadata = dict(found.custom_metadata["metadata"])
    metadata.pop("seconds")
    return step, {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}, metadata


def history(directory):
    return [
        {name: value for name, value in line.items() if name != "images_per_second"}
        for line in read_history(directory / "history.jsonl")
    ]


def assert_same_bits(ours, theirs):
    (step, arrays, metadata), (step_there, arrays_there, metadata_there) = map(
        checkpoint, (ours / "checkpoints", theirs / "checkpoints")
    )
    assert (step, metadata) == (step_there, metadata_there)
    assert arrays.keys() == arrays_there.keys()
    different = [name for name in arrays if arrays[name].tobytes() != arrays_there[name].tobytes()]
    assert not different
    assert history(ours) == history(theirs)


@pytest.mark.parametrize(
    "devices", [1, pytest.param(8, marks=pytest.mark.slow)], ids="{} devices".format
)
def test_stopped_and_resumed(config, on_devices, devices, tmp_path):
    on_devices(devices)
    quiet = Display(quiet=True)
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    expected = search(config, whole, quiet).genotype
    # In the middle of stage 1; at its very end, so that the next process prunes; in the warm-up of
    # stage 2; in its last epoch.
    for step, signum in (
        (5, signal.SIGTERM),
        (STEPS, signal.SIGINT),
        (STEPS + 4, signal.SIGTERM),
        (2 * STEPS + 1, signal.SIGINT),
    ):
        with pytest.raises(Interrupted) as stop:
            search(config, pieces, Stopper(step, signum))
        assert stop.value.signum == signum
        saved, _, metadata = checkpoint(pieces / "search/checkpoints")
        assert saved == step
        assert metadata["epochs_done"] == step // STEPS
        assert metadata["stage"] == (step > STEPS)
    assert search(config, pieces, quiet).genotype == expected
    assert_same_bits(pieces / "search", whole / "search")

    retrain(config, whole, quiet)
    for step in (3, STEPS * 2 + 5):
        with pytest.raises(Interrupted):
            retrain(config, pieces, Stopper(step, signal.SIGTERM))
    retrain(config, pieces, quiet)
    assert_same_bits(pieces / "retrain", whole / "retrain")

    # When all is done, another time adds nothing.
    assert search(config, pieces, quiet).genotype == expected
    assert retrain(config, pieces, quiet).steps == 4 * STEPS
    for phase in ("search", "retrain"):
        assert_same_bits(pieces / phase, whole / phase)

    # The genotype alone, retrained elsewhere.
    config.genotype, other = str(whole / "search/genotype.json"), tmp_path / "other"
    retrain(config, other, quiet)
    assert_same_bits(other / "retrain", whole / "retrain")
    assert evaluate(config, other, quiet)["search_seconds"] is None
    assert not (other / "search").exists()


def steps_kept(directory):
    return sorted(int(path.name) for path in (directory / "checkpoints").iterdir())


@pytest.mark.slow
def test_checkpoints_within_an_epoch(config, on_devices, tmp_path):
    on_devices(1)
    config.update_from_flattened_dict(SHORT)
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    search(config, whole, Display(quiet=True))
    config.checkpoint_steps = 4
    # A crash at a step goes before its checkpoint: here after 8, then after 12 in the next epoch.
    for crash, kept, epochs_done in ((10, [4, 8], 0), (16, [11, 12], 1)):
        with pytest.raises(OSError, match="crash"):
            search(config, pieces, Crashing(crash))
        assert steps_kept(pieces / "search") == kept
        assert checkpoint(pieces / "search/checkpoints")[2]["epochs_done"] == epochs_done
    display = Listener()
    search(config, pieces, display)
    assert "search, stage 1/1: goes on after step 12" in display.messages
    assert_same_bits(pieces / "search", whole / "search")
    assert steps_kept(pieces / "search") == [20, 22]
    assert steps_kept(whole / "search") == [11, 22]  # without checkpoint_steps


@pytest.mark.slow
def test_goes_on_with_other_devices(config, on_devices, tmp_path):
    config.update_from_flattened_dict(
        SHORT | {"search.epochs": (1,), "search.warmup_epochs": (1,)}  # compiles faster
    )
    on_devices(1)
    for step in (2, 3):
        display = Stopper(step, signal.SIGTERM)
        with pytest.raises(Interrupted):
            search(config, tmp_path, display)
        saved, _, metadata = checkpoint(tmp_path / "search/checkpoints")
        assert (saved, metadata["devices"]) == (step, 1)
        assert not any("begun on" in text for text in display.messages)
    on_devices(8)
    display = Listener()
    search(config, tmp_path, display)
    told = [text for text in display.messages if "begun on" in text]
    assert len(told) == 1 and told[0].startswith("begun on 1 devices, goes on with 8: ")
    assert "search, stage 1/1: goes on after step 3" in display.messages
    saved, _, metadata = checkpoint(tmp_path / "search/checkpoints")
    assert (saved, metadata["devices"]) == (STEPS, 8)
    assert len(history(tmp_path / "search")) == 1


@pytest.mark.parametrize("hessian", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_candidates_and_what_is_measured_beside(tmp_path, config, on_devices, monkeypatch, hessian):
    """The best candidate is the result; what is measured beside leaves the search as it is."""
    on_devices(1)
    judge, close, events, judged = Probe.accuracies, Reader.close, [], {}

    def judging(*args):
        with pytest.raises(UserError, match="another run"), alone(tmp_path / "alone/search"):
            raise AssertionError
        found = judge(*args)
        events.append("judged")
        judged.update(zip(args[2], found, strict=True))
        return found

    def closing(reader):
        events.append("closed")
        close(reader)

    config.update_from_flattened_dict(
        SHORT
        | {
            "search.warmup_epochs": (2,),  # alpha stays: random search with shared weights
            "arch.name": "gdas",
            "search.candidates": 6,
            "search.candidate_batches": 2,
        }
    )
    with monkeypatch.context() as patch:
        patch.setattr(Probe, "accuracies", judging)
        patch.setattr(Reader, "close", closing)
        plain = search(config, tmp_path / "alone", display := Listener())
    assert events[-2:] == ["judged", "closed"]
    assert judged[plain.genotype] == max(judged.values()) > min(judged.values())
    config.update_from_flattened_dict({"search.ranked_cells": 5, "search.hessian_batches": hessian})
    beside = search(config, tmp_path / "beside", Display(quiet=True))
    assert plain.genotype == beside.genotype
    assert any("the best of 6 different ones" in text for text in display.messages)
    measured = ("ranked", "hessian")
    assert history(tmp_path / "alone/search") == [
        {name: value for name, value in line.items() if name not in measured}
        for line in history(tmp_path / "beside/search")
    ]
    for line in history(tmp_path / "beside/search"):
        assert len(line["ranked"]) == 5
        assert all(0 <= one["accuracy"] <= 1 for one in line["ranked"])
        assert ("hessian" in line) == bool(hessian)
        if hessian:
            assert np.isfinite(line["hessian"])


def test_a_retraining_that_has_not_ended(config, on_devices, monkeypatch, tmp_path):
    """It is not judged, and goes on with its own genotype alone."""
    on_devices(1)
    config.genotype = str(tmp_path / "cell.json")
    save(config.genotype, cell_of("nor_conv_1x1"), {})
    with pytest.raises(Interrupted):
        retrain(config, tmp_path / "run", Stopper(3, signal.SIGTERM))
    with pytest.raises(UserError, match="retraining has done 0 of 2 epochs: run it to its end"):
        evaluate(config, tmp_path / "run", Listener())
    others = dataclasses.replace(data.load(from_config_dict(config).data), fingerprint=1)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="is not the one of the"):
        patch.setattr(data, "load", lambda config: others)
        evaluate(config, tmp_path / "run", Listener())
    assert not (tmp_path / "run/result.json").exists()
    save(config.genotype, cell_of("nor_conv_3x3"), {})
    with pytest.raises(UserError, match="was begun with another genotype"):
        retrain(config, tmp_path / "run", Listener())
    assert [path.name for path in (tmp_path / "run/retrain/checkpoints").iterdir()] == ["3"]


def cell_of(name):
    nodes = tuple(tuple((name, source) for source in range(node)) for node in (1, 2, 3))
    return Genotype("nasbench201", (("cell", nodes),))
