"""Several seeds searched at once: each as it is by itself, whatever stops or ends the others."""

import os
import signal
import threading
import time

import jax
import numpy as np
import pytest
from resuming import Listener, assert_same_bits, checkpoint, history, once
from small_run import ROOT

from drnas_jax.errors import UserError
from drnas_jax.files import read_json
from drnas_jax.main import main
from drnas_jax.phases import loop
from drnas_jax.phases.search import compilation
from drnas_jax.phases.search.experiment import Experiment, state_at
from drnas_jax.phases.search.phase import run_search
from drnas_jax.phases.search.together import THREAD, search_together
from drnas_jax.phases.setup import open_run
from drnas_jax.training import memory
from drnas_jax.training.signals import Interrupt, Interrupted

SEEDS = (3, 4)
STEPS = 2  # in an epoch: 32 training images in batches of 16
PROGRAMS = {  # traced once for all tests: their configs differ in nothing that a step depends on
    name: once(getattr(Experiment, name)) for name in ("step_program", "validation_program")
}

# Ends the search of an even seed after its second epoch.
STOPPING = """
from drnas_jax.rules.base import Continue, Stop

class Even:
    def decide(self, view, memory):
        early = view.seed % 2 == 0 and view.epoch == 2
        return Stop(view.genotype, "it is even") if early else Continue()

create = Even
"""


class Hooked(Listener):
    """Calls a function with the seed and the number of each step; keeps messages with the seed."""

    def __init__(self, hook):
        super().__init__()
        self.hook = hook

    def message(self, text):
        super().message(self._prefix + text)

    def update(self, step, *_):
        self.hook(self._prefix, step)


@pytest.fixture
def run(one_stage, on_devices, monkeypatch, tmp_path):
    """Returns a function that searches both seeds in a folder, or those in `alone` one by one."""
    on_devices(1)
    for name, method in PROGRAMS.items():
        monkeypatch.setattr(Experiment, name, method)

    def run(folder, hook=lambda seed, step: None, alone=(), **changes):
        display = Hooked(hook)

        def opened(seed):
            config, arrays = one_stage(**{"seed": seed, "search__epochs": (3,), **changes})
            return open_run(config, tmp_path / folder / f"seed{seed}", arrays, display)

        for seed in alone:
            run_search(opened(seed))
        if not alone:
            search_together([opened(seed) for seed in SEEDS], run_search)
        return display

    return run


def compiled(display):
    """Returns how many steps were compiled."""
    return sum("step compiled" in text for text in display.messages)


def assert_close(ours, theirs):
    """Asserts that two searches differ only by rounding.

    A sum of float32 numbers in another order differs by 1e-7; the update of alpha by Adam divides
    by the size of its gradient, and 6 steps add up.
    """
    (step, arrays, _), (step_there, arrays_there, _) = (
        checkpoint(folder / "checkpoints") for folder in (ours, theirs)
    )
    assert step == step_there
    for name in arrays:
        np.testing.assert_allclose(arrays[name], arrays_there[name], rtol=1e-3, atol=1e-5)
    for line, other in zip(history(ours), history(theirs), strict=True):
        assert line["genotype"] == other["genotype"]
        assert line["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
        assert line["valid_loss"] == pytest.approx(other["valid_loss"], rel=1e-4)


def test_seeds_at_once_are_those_of_single_runs(run, tmp_path):
    # Would catch seeds that share a sample, a shuffle or a batch, or that swap their results.
    display = run("together", search__warmup_epochs=(1,))
    assert compiled(display) == 1
    run("single", alone=SEEDS, search__warmup_epochs=(1,))
    for seed in SEEDS:
        name = f"seed{seed}/search"
        assert_close(tmp_path / "together" / name, tmp_path / "single" / name)
        cells = [read_json(tmp_path / f / name / "genotype.json") for f in ("together", "single")]
        assert cells[0]["cells"] == cells[1]["cells"]


def test_both_seeds_stop_and_resume(run, tmp_path):
    # Would catch a seed that stops at another step than the others, or without a checkpoint.
    run("whole")

    def stop(seed, step):
        if (seed, step) == ("seed 4: ", 3):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run("pieces", stop)
    steps = {checkpoint(tmp_path / f"pieces/seed{s}/search/checkpoints")[0] for s in SEEDS}
    assert len(steps) == 1 and steps <= {3, 4}
    run("pieces")
    for seed in SEEDS:
        name = f"seed{seed}/search"
        assert_same_bits(tmp_path / "pieces" / name, tmp_path / "whole" / name)


def test_a_second_ctrl_c_ends_all(run, tmp_path, monkeypatch):
    # Would catch a main thread that leaves a search behind, which then still writes files.
    handled, record = [], Interrupt._record

    def note(self, *arguments):
        handled.append(arguments)
        record(self, *arguments)

    def stop(seed, step):
        if (seed, step) == ("seed 4: ", 1):
            while not handled:  # Python handles one that comes just before the main thread waits
                os.kill(os.getpid(), signal.SIGINT)  # only when that thread wakes
                time.sleep(0.2)
            if len(handled) == 1:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Interrupt, "_record", note)

    with pytest.raises(KeyboardInterrupt):
        run("pieces", stop)
    assert not [each for each in threading.enumerate() if each.name == THREAD]
    assert not list(tmp_path.glob("pieces/*/search/checkpoints/*"))


@pytest.mark.slow
def test_a_seed_that_is_behind_comes_first(run, tmp_path, monkeypatch):
    # Would catch seeds that wait for each other for ever after a crash between two checkpoints.
    save = loop._Work.save

    def crash(self, state, epochs_done):
        if epochs_done == 2 and "seed4" in str(self._directory):
            raise OSError("crash")
        save(self, state, epochs_done)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Work, "save", crash)
        with pytest.raises(OSError, match="crash"):
            run("pieces")
    steps = [checkpoint(tmp_path / f"pieces/seed{s}/search/checkpoints")[0] for s in SEEDS]
    assert steps == [2 * STEPS, STEPS]
    order = []
    display = run("pieces", lambda seed, step: order.append((seed, step)))
    assert order[:STEPS] == [("seed 4: ", 3), ("seed 4: ", 4)]
    assert {seed for seed, _ in order[STEPS + 1 : STEPS + 3]} == {"seed 3: ", "seed 4: "}
    assert compiled(display) == 2  # for one seed, then for both
    run("whole")
    for seed in SEEDS:
        name = f"seed{seed}/search"
        assert_close(tmp_path / "pieces" / name, tmp_path / "whole" / name)


@pytest.mark.slow
def test_a_rule_ends_one_seed_early(run, tmp_path):
    # Would catch a seed that waits for one that has ended, in this run or in an earlier one.
    (tmp_path / "even.py").write_text(STOPPING)
    changes = dict(search__stopping=str(tmp_path / "even.py"))
    display = run("together", **changes)
    lengths = [len(history(tmp_path / f"together/seed{s}/search")) for s in SEEDS]
    assert lengths == [3, 2]
    assert compiled(display) == 2  # for both, then for one
    run("single", alone=SEEDS, **changes)
    for seed in SEEDS:
        name = f"seed{seed}/search"
        assert_close(tmp_path / "together" / name, tmp_path / "single" / name)
    (tmp_path / "together/seed3/search/genotype.json").unlink()
    run("together", **changes)
    assert (tmp_path / "together/seed3/search/genotype.json").exists()


def test_an_error_of_one_seed_ends_all(run, tmp_path, monkeypatch):
    # Would catch seeds that go on, hang or hide which one has failed.
    averages = loop._Work.averages

    def fail(self, state, epoch):
        if epoch == 1 and "seed4" in str(self._directory):
            raise UserError("the loss is nan")
        return averages(self, state, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Work, "averages", fail)
        with pytest.raises(UserError, match="seed 4: the loss is nan"):
            run("pieces")
    assert len(history(tmp_path / "pieces/seed4/search")) == 1
    run("pieces")  # nothing is locked, and both end
    assert [len(history(tmp_path / f"pieces/seed{s}/search")) for s in SEEDS] == [3, 3]


def test_fewer_seeds_if_they_do_not_fit(run, monkeypatch):
    # Would catch a search that is refused although its seeds fit one after the other.
    tried, lower_step = [], compilation.lower_step

    def lower(experiment, spec, state, seeds):
        tried.append(seeds)
        if seeds > 1:
            raise memory.NotEnoughMemoryError("it does not fit")
        return lower_step(experiment, spec, state, seeds)

    monkeypatch.setattr(compilation, "lower_step", lower)
    display = run("together")
    assert tried == [2, 1] and compiled(display) == 1  # in the second epoch nothing is tried again
    assert sum("2 seeds at once do not fit" in text for text in display.messages) == 1


def test_one_step_on_several_devices(small, quick_compilation):
    # Would catch an average over the seeds in place of the devices. Only sums in another order
    # differ, and a step of Adam divides by the size of the gradient.
    runs = [small(4, seed=seed, compute__donate=False) for seed in SEEDS]
    spec, raw = runs[0].first_spec(), runs[0].loader.raw
    states = [state_at(run, 1)[1] for run in runs]
    dispatches = [next(run.loader.training(10, 0))[1] for run in runs]  # alpha is not frozen
    both = runs[0].step_program(spec, seeds=2)(tuple(states), raw, tuple(dispatches))
    for state, dispatch, ours in zip(states, dispatches, both, strict=True):
        theirs = runs[0].step_program(spec)(state, raw, dispatch)
        assert not np.array_equal(ours.alpha["cell"], state.alpha["cell"])
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_command_line(tmp_path, on_devices, quick_compilation, capfd):
    # Would catch seeds that keep different operations but share a program, or a field not read.
    on_devices(1)
    fields = {
        "space": ROOT / "tests/uneven_space.py", "arch.name": "gumbel", "arch.lr": 0.5,
        "search.operations": "(3,2)", "search.epochs": "(1,1)", "search.warmup_epochs": "(0,0)",
        "search.batch_size": 232, "search.channels": 4, "seed": 3,
    }  # fmt: skip
    argv = ["", "--config=configs/digits.py:smoke", "--phases=search"]
    argv += [f"--config.{name}={value}" for name, value in fields.items()]
    both = ["--config.seeds=2", "--config.compute.seeds_at_once=2"]
    assert main([*argv, f"--workdir={tmp_path / 'both'}", *both]) == 0
    assert capfd.readouterr().err.count("step compiled") == 3  # for both, then for each
    for seed in SEEDS:
        one = tmp_path / f"one{seed}"
        assert main([*argv, f"--workdir={one}", f"--config.seed={seed}"]) == 0
        assert_close(tmp_path / f"both/seed{seed}/search", one / "search")
