"""Displays that interrupt a run, and comparisons of what two runs have left on the disk.

`once` saves tests that resume a run the time to trace the same programs again.
"""

import os
from pathlib import Path

import jax
import numpy as np

from drnas_jax.files import read_history
from drnas_jax.training.checkpoints import ocp
from drnas_jax.training.metrics import Display


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
        if step == self.step:  # once: a second Ctrl-C would stop the process at once
            self.step = None
            os.kill(os.getpid(), self.signum)


class Crashing(Listener):
    """Fails at a step, after which nothing is written."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def update(self, step, *_):
        if step == self.step:
            raise OSError("crash")


def once(method):
    """Returns a method that returns the same object for the same mesh and arguments."""
    given = {}

    def wrapped(self, *arguments, **named):
        key = self.mesh, *arguments, *named.items()
        if key not in given:
            given[key] = method(self, *arguments, **named)
        return given[key]

    return wrapped


def checkpoint(directory):
    """Returns the step, the arrays and the metadata of the newest checkpoint on the disk."""
    with ocp.training.Checkpointer(Path(directory).absolute()) as checkpointer:
        step = checkpointer.latest.step
        found = checkpointer.metadata(step)
        # On a device of this process, even if other processes have written it.
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=here),
            found.metadata,
        )
        leaves = jax.tree_util.tree_leaves_with_path(checkpointer.load(step, abstract))
    metadata = {**found.custom_metadata["progress"], **found.custom_metadata["phase"]}
    metadata.pop("seconds")
    return step, {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}, metadata


def history(directory):
    """Returns the lines of a history without times."""
    return [
        {name: value for name, value in line.items() if name != "images_per_second"}
        for line in read_history(directory / "history.jsonl")
    ]


def assert_same_bits(ours, theirs):
    """Asserts that two phases have left the same checkpoint and the same history."""
    (step, arrays, metadata), (step_there, arrays_there, metadata_there) = map(
        checkpoint, (ours / "checkpoints", theirs / "checkpoints")
    )
    assert (step, metadata) == (step_there, metadata_there)
    assert arrays.keys() == arrays_there.keys()
    different = [name for name in arrays if arrays[name].tobytes() != arrays_there[name].tobytes()]
    assert not different
    assert history(ours) == history(theirs)
