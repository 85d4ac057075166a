"""The same seed gives the same bits, whether or not the run was interrupted."""

import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import digits
from drnas_jax import loop, retrain, search, sharding
from drnas_jax.checkpoint import ocp
from drnas_jax.interrupt import Interrupted
from drnas_jax.metrics import Display, read_history
from drnas_jax.retrain import Retraining
from drnas_jax.search.problem import Problem

STEPS = 11  # in an epoch: 718 training images in batches of 64
FIELDS = {
    "search.channels": 4,
    "search.batch_size": 64,
    "search.epochs": (1, 2),
    "search.warmup_epochs": (0, 1),
    "retrain.channels": 4,
    "retrain.batch_size": 64,
    "retrain.epochs": 2,
}


class Stopper(Display):
    """Sends this process a signal at a step, as a scheduler would."""

    def __init__(self, step, signum):
        super().__init__(quiet=True)
        self.step, self.signum = step, signum

    def update(self, step, *_):
        if step == self.step:  # once: a second Ctrl-C means at once
            self.step = None
            os.kill(os.getpid(), self.signum)


@pytest.fixture(params=[1, pytest.param(8, marks=pytest.mark.slow)], ids="{} devices".format)
def config(request, monkeypatch):
    monkeypatch.setattr(loop, "_REPORT_EVERY", 0.0)  # so that the display hears of every step
    mesh = sharding.make_mesh(jax.devices()[: request.param])
    monkeypatch.setattr(sharding, "make_mesh", lambda: mesh)
    # Traced once for all the calls below; test_end_to_end.py resumes in new processes.
    for owner, name in (
        (Problem, "step_program"),
        (Problem, "validation_program"),
        (Retraining, "step_program"),
    ):
        monkeypatch.setattr(owner, name, once(getattr(owner, name)))
    config = digits.get_config()
    config.update_from_flattened_dict(FIELDS)
    return config


def once(method):
    """A method that gives what it gave before for the same arguments, whatever the object."""
    given = {}

    def wrapped(self, *arguments):
        if arguments not in given:
            given[arguments] = method(self, *arguments)
        return given[arguments]

    return wrapped


def checkpoint(directory):
    """Step, arrays and metadata of the newest checkpoint, as they lie on the disk."""
    with ocp.training.Checkpointer(Path(directory).absolute()) as checkpointer:
        step = checkpointer.latest.step
        metadata = checkpointer.metadata(step).custom_metadata
        leaves = jax.tree_util.tree_leaves_with_path(checkpointer.load(step))
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


@pytest.mark.filterwarnings("ignore:Sharding info not provided")  # our own plain load, above
def test_stopped_and_resumed(config, tmp_path):
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
