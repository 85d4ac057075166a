"""What the host does in a phase: checkpoints, messages of a resumed run, and when it ends."""

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


class Loader:
    """Batches without images."""

    raw, in_memory, skipped, count, fingerprint, batch_size = None, False, {}, 40, 1, 4

    def training(self, epoch, done):
        for _ in range(done, STEPS):
            yield 1, None

    def close(self):
        pass


class Phase:
    """Adds up losses.

    Args:
      checkpoint_steps: As in the config.
      loss: Function that is called with the number of each step, from 1, and returns its loss.
      last_epoch: Number of the epoch, from 1, after which the phase has finished.
    """

    name, epochs, steps, remat = "count", 3, STEPS, "auto"

    def __init__(self, checkpoint_steps=0, loss=lambda step: 1.0, last_epoch=3):
        self.mesh, self.loader = make_mesh(jax.devices()[:1]), Loader()
        self.checkpoint_steps, self.loss = checkpoint_steps, loss
        self.last_epoch, self.finished = last_epoch, False
        self.messages = []
        self.display = Display(quiet=True)
        self.display.message = self.messages.append

    def start(self):
        state = State(jnp.int32(0), losses.zero_totals(), jnp.zeros(()))
        return replicate(state, self.mesh)

    def state_shapes(self, metadata):
        return jax.eval_shape(self.start)

    def resume(self, metadata):
        del metadata

    def begin_epoch(self, state, epoch):
        return state, self.step

    def step(self, state, raw, dispatch):
        loss = self.loss(int(state.step) + 1)
        totals = {name: value + loss for name, value in state.totals.items()}
        weight = state.weight + loss
        return replicate(State(state.step + 1, totals, weight), self.mesh)

    def end_epoch(self, state, epoch, train):
        self.finished = epoch + 1 == self.last_epoch
        state = state.replace(weight=state.weight + 100)
        return state, {"epoch": epoch + 1, "train_loss": train["loss"]}

    def metadata(self):
        return {}


def saved(directory):
    """Returns the steps of the checkpoints, and the weight in the newest one."""
    phase = Phase()
    with Checkpoints(directory / "checkpoints") as checkpoints:
        _, state = checkpoints.restore(phase.state_shapes, phase.mesh, phase.messages.append)
    steps = sorted(int(path.name) for path in (directory / "checkpoints").iterdir())
    return steps, float(state.weight)


def epochs_in(directory):
    return [line["epoch"] for line in read_history(directory / "history.jsonl")]


def terminate_at(number):
    """Returns a loss of 1 that sends this process a signal at a step, as a scheduler would."""

    def loss(step):
        if step == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return 1.0

    return loss


def test_a_whole_run(tmp_path):
    # Would catch a checkpoint of the state before `end_epoch` changed it (by 100 here).
    state, progress = loop.run(Phase(), tmp_path)
    assert int(state.step) == 30 and progress.epochs_done == 3
    assert saved(tmp_path) == ([20, 30], 330.0)
    assert epochs_in(tmp_path) == [1, 2, 3]


def test_a_watched_run_says_how_far_it_is(tmp_path):
    # Would catch an epoch that is shown before its checkpoint and history are written, or twice.
    def watch(status):
        seen.append((status.phase, status.epoch, status.epochs))
        assert epochs_in(tmp_path)[-1] == status.epoch
        assert status.seconds >= status.epoch_seconds > 0

    seen = []
    with pytest.raises(Interrupted):
        loop.run(Phase(loss=terminate_at(13)), tmp_path, watch=watch)
    loop.run(Phase(), tmp_path, watch=watch)
    assert seen == [("count", epoch, 3) for epoch in (1, 2, 3)]


def test_a_phase_may_finish_before_its_last_epoch(tmp_path):
    # Would catch a search that goes on after a rule has stopped it.
    seen = []
    state, progress = loop.run(Phase(last_epoch=2), tmp_path, watch=seen.append)
    assert [status.seconds_left > 0 for status in seen] == [True, False]
    assert int(state.step) == 20 and progress.epochs_done == 2
    assert saved(tmp_path) == ([10, 20], 220.0)
    assert epochs_in(tmp_path) == [1, 2]


@pytest.mark.parametrize("checkpoint_steps", [0, 2])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path, checkpoint_steps):
    # Would catch both checkpoints that are kept being from after the divergence.
    phase = Phase(checkpoint_steps, lambda step: np.nan if step >= 13 else 1.0)
    stopped_at = 14 if checkpoint_steps else 20
    kept = [10, 12] if checkpoint_steps else [10]
    place = rf"is nan at step {stopped_at} \(count, epoch 2\).* checkpoint, of step {kept[-1]}, is"
    with pytest.raises(UserError, match=place):
        loop.run(phase, tmp_path)
    with pytest.raises(UserError, match=place):  # right after it was resumed
        loop.run(phase, tmp_path)
    assert saved(tmp_path) == (kept, kept[-1] + 100)


def test_a_loss_that_is_not_finite_before_the_first_checkpoint_names_none(tmp_path):
    # Would catch the advice to look for a checkpoint in an empty folder.
    with pytest.raises(UserError, match="no checkpoint was written before$"):
        loop.run(Phase(loss=lambda step: np.inf), tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("count", "started with 40 training images and 10 steps per epoch"),
        ("steps", "started with 40 training images and 10 steps per epoch"),
        ("fingerprint", "started with other images"),
    ],
)
def test_other_data_are_refused(tmp_path, name, words):
    # Would catch a run that is resumed on other images, or whose checkpoint is then lost.
    with pytest.raises(Interrupted):
        loop.run(Phase(loss=terminate_at(13)), tmp_path)
    phase = Phase()
    setattr(phase if name == "steps" else phase.loader, name, 12)
    with pytest.raises(UserError, match=words):
        loop.run(phase, tmp_path)
    assert saved(tmp_path) == ([10, 13], 113.0)
    assert int(loop.run(Phase(), tmp_path)[0].weight) == 330


def test_changes_since_the_checkpoint_are_reported(tmp_path):
    # Would catch messages of `check_resume` that do not reach the user.
    with pytest.raises(Interrupted):
        loop.run(Phase(loss=terminate_at(13)), tmp_path)
    phase = Phase()
    phase.mesh = make_mesh(jax.devices()[:2])
    phase.remat = "cells"
    loop.run(phase, tmp_path)
    assert any("1 devices" in text and "2" in text for text in phase.messages)
    assert any("'auto'" in text and "'cells'" in text for text in phase.messages)


def test_a_signal_during_compilation_ends_at_once(tmp_path):
    # Would catch a Ctrl-C that waits for minutes, although there is nothing to save yet.
    phase = Phase()

    def compile_step(state, epoch):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError

    phase.begin_epoch = compile_step
    with pytest.raises(KeyboardInterrupt):
        loop.run(phase, tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(("lines", "lost"), [(3, 0), (2, 1), (0, 3)])
def test_lost_lines_of_the_history_are_reported(tmp_path, lines, lost):
    # Would catch a gap in the history that nobody hears of.
    loop.run(Phase(), tmp_path)
    (tmp_path / "history.jsonl").unlink()
    for epoch in range(lines):
        append_history(tmp_path / "history.jsonl", {"epoch": epoch})
    phase = Phase()
    _, progress = loop.run(phase, tmp_path)  # all epochs are done
    assert progress.epochs_done == 3
    messages = [text for text in phase.messages if "lacks" in text]
    expected = (
        [f"{tmp_path / 'history.jsonl'} lacks the lines of {lost} finished epochs"] if lost else []
    )
    assert messages == expected


def test_the_writers_of_curves_get_each_epoch_and_the_step_of_the_resume(tmp_path):
    # Would catch curves that lack an epoch, or writers that stay open after an interruption.
    class Curves:
        def scalars(self, values, step):
            told.append((step, values["train_loss"], values.keys()))

        def close(self):
            told.append("closed")

    told = []

    def open_writers(resume_step):
        told.append(resume_step)
        return Curves()

    with pytest.raises(Interrupted):
        loop.run(Phase(loss=terminate_at(13)), tmp_path, open_writers=open_writers)
    names = {"train_loss": 0.0, "images_per_second": 0.0}.keys()  # not the whole numbers
    assert told == [1, (10, 1.0, names), "closed"]
    told.clear()
    loop.run(Phase(), tmp_path, open_writers=open_writers)
    assert told == [14, (20, 1.0, names), (30, 1.0, names), "closed"]


def test_images_that_were_left_out_are_reported_when_there_are_more(tmp_path):
    # Would catch a line after every epoch, and advice to leave them out where that was done.
    advice = ": fix or remove it, or set data.corrupt=skip"
    found = {1: ["a.jpg is cut", "b.jpg is cut"], 3: ["b: c.png is cut"]}
    phase = Phase()
    phase.loader.skipped = dict.fromkeys(["old.jpg is cut"])  # reported by an earlier phase
    end_epoch = phase.end_epoch

    def end(state, epoch, train):
        phase.loader.skipped.update(dict.fromkeys(f + advice for f in found.get(epoch + 1, ())))
        return end_epoch(state, epoch, train)

    phase.end_epoch = end
    loop.run(phase, tmp_path)
    first, second = (text for text in phase.messages if "left out" in text)
    assert first == "unreadable images left out so far: 3 (new: a.jpg is cut; b.jpg is cut)"
    assert second == "unreadable images left out so far: 4 (new: b: c.png is cut)"
