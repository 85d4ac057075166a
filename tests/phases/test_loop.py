"""The host's part of a phase: checkpoints, what is told of a run that goes on, and when it ends."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from drnas_jax.errors import UserError
from drnas_jax.files import append_history, read_history
from drnas_jax.phases import loop
from drnas_jax.training import losses
from drnas_jax.training.checkpoints import Checkpoints
from drnas_jax.training.devices import make_mesh, replicate
from drnas_jax.training.metrics import Display
from drnas_jax.training.signals import Interrupted

STEPS = 10


class State(struct.PyTreeNode):
    step: jax.Array
    totals: losses.Totals
    weight: jax.Array


class Reader:
    """Batches without images."""

    raw, skipped, images, fingerprint = None, {}, 40, 1

    def training(self, epoch, done):
        for _ in range(done, STEPS):
            yield (np.zeros((1, 4), np.int32),)

    def go_on(self, step):
        pass

    def close(self):
        pass


class Phase:
    """Adds up ones; `strike` is called at each step."""

    name, epochs, steps = "count", 3, STEPS

    def __init__(self, checkpoint_steps=0, strike=lambda step: 1.0):
        self.mesh, self.reader = make_mesh(jax.devices()[:1]), Reader()
        self.checkpoint_steps, self.strike = checkpoint_steps, strike
        self.messages = []
        self.display = Display(quiet=True)
        self.display.message = self.messages.append

    def start(self):
        state = State(jnp.int32(0), losses.zero_totals(), jnp.zeros(()))
        return replicate(state, self.mesh)

    def restore(self, checkpoints):
        like = jax.eval_shape(lambda: self.start())
        return checkpoints.restore(lambda _: like, self.mesh, self.messages.append)

    def begin_epoch(self, state, epoch):
        return state, self.step

    def step(self, state, raw, batch):
        loss = self.strike(int(state.step) + 1)
        totals = {name: value + loss for name, value in state.totals.items()}
        weight = state.weight + loss
        return replicate(State(state.step + 1, totals, weight), self.mesh)

    def end_epoch(self, state, epoch, train):
        return {"epoch": epoch + 1, "train_loss": train["loss"]}

    def metadata(self):
        return {}


def saved(directory):
    """The steps of the checkpoints, and the newest one's weight."""
    phase = Phase()
    with Checkpoints(directory / "checkpoints") as checkpoints:
        _, state = phase.restore(checkpoints)
    steps = sorted(int(path.name) for path in (directory / "checkpoints").iterdir())
    return steps, float(state.weight)


def test_a_whole_run(tmp_path):
    state, progress = loop.run(Phase(), tmp_path)
    assert int(state.step) == 30 and progress.epochs_done == 3
    assert saved(tmp_path) == ([20, 30], 30.0)
    assert [line["epoch"] for line in read_history(tmp_path / "history.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize("checkpoint_steps", [0, 2])
def test_what_is_not_finite_is_not_saved(tmp_path, checkpoint_steps):
    """Of the two checkpoints that are kept, none is from after the divergence."""
    phase = Phase(checkpoint_steps, lambda step: np.nan if step >= 13 else 1.0)
    stopped_at = 14 if checkpoint_steps else 20
    with pytest.raises(UserError, match=rf"is nan at step {stopped_at} \(count, epoch 2\)"):
        loop.run(phase, tmp_path)
    kept = [10, 12] if checkpoint_steps else [10]
    assert saved(tmp_path) == (kept, kept[-1])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("images", "begun with 40 training images, 10 steps an epoch"),
        ("steps", "begun with 40 training images, 10 steps an epoch"),
        ("fingerprint", "begun with other images, though as many"),
    ],
)
def test_other_data_are_refused(tmp_path, name, words):
    def stop(step):
        if step == 13:
            os.kill(os.getpid(), signal.SIGTERM)
        return 1.0

    with pytest.raises(Interrupted):
        loop.run(Phase(strike=stop), tmp_path)
    phase = Phase()
    setattr(phase if name == "steps" else phase.reader, name, 12)
    with pytest.raises(UserError, match=words):
        loop.run(phase, tmp_path)
    assert saved(tmp_path) == ([10, 13], 13.0)
    assert int(loop.run(Phase(), tmp_path)[0].weight) == 30


def test_what_is_other_than_it_was_is_told(tmp_path):
    found = {"devices": 2, "jax": "0.1", "images": 40, "fingerprint": 1, "steps": STEPS}
    phase = Phase()
    assert loop.resumed({**found, "epochs_done": 1, "seconds": 2.0}, phase) == (1, 2.0)
    assert [text.split(":")[0] for text in phase.messages] == [
        "begun on 2 devices, goes on with 1",
        f"begun with jax 0.1, goes on with {jax.__version__}",
    ]


def test_a_signal_before_the_first_step_is_not_noted(tmp_path):
    """It does what it did before: there is nothing to save."""
    phase = Phase()

    def compile_step(state, epoch):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError

    phase.begin_epoch = compile_step
    with pytest.raises(KeyboardInterrupt):
        loop.run(phase, tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(("lines", "lost"), [(3, 0), (2, 1), (0, 3)])
def test_lines_that_are_gone_are_told_of(tmp_path, lines, lost):
    loop.run(Phase(), tmp_path)
    (tmp_path / "history.jsonl").unlink()
    for epoch in range(lines):
        append_history(tmp_path / "history.jsonl", {"epoch": epoch})
    phase = Phase()
    _, progress = loop.run(phase, tmp_path)  # all epochs are done
    assert progress.epochs_done == 3
    messages = [text for text in phase.messages if "lacks" in text]
    expected = [f"{tmp_path / 'history.jsonl'} lacks {lost} epochs' lines"] if lost else []
    assert messages == expected
