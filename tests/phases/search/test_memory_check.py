"""The check before the first step that every stage fits in memory."""

from types import SimpleNamespace

import jax
import pytest
from resuming import Listener
from small_run import ROOT

from drnas_jax.errors import UserError
from drnas_jax.phases import loop
from drnas_jax.phases.search.memory_check import check_later_stages, heaviest
from drnas_jax.phases.search.phase import SearchPhase
from drnas_jax.training import memory
from drnas_jax.training.devices import make_mesh

ADVICE = "lower it"


def fake_program(size):
    """Returns a lowered program that needs `size` bytes when it is compiled."""
    names = ("argument", "output", "alias", "temp", "generated_code")
    sizes = dict.fromkeys((f"{name}_size_in_bytes" for name in names), 0)
    sizes["temp_size_in_bytes"] = size
    compiled = SimpleNamespace(memory_analysis=lambda: SimpleNamespace(**sizes))
    return SimpleNamespace(compile=lambda: compiled)


@pytest.mark.parametrize("limit", [None, 3 * 2**30])
def test_a_program_that_fits_is_compiled(monkeypatch, limit):
    # Would catch devices that do not state their memory, as CPUs do not, being refused.
    monkeypatch.setattr(memory, "available", lambda mesh: limit)
    compiled = memory.compile_within(fake_program(2 * 2**30), make_mesh(), "it", lambda: ADVICE)
    assert memory.needed(compiled) == 2 * 2**30


def test_a_program_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda mesh: 2**30)
    with pytest.raises(UserError, match=r"it needs 2.00 GiB .* may use 1.00 GiB: lower it"):
        memory.compile_within(fake_program(2 * 2**30), make_mesh(), "it", lambda: ADVICE)


def test_a_compiler_that_runs_out_of_memory_is_one_line():
    def compile_it():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 20G of 16G hbm\nmore")

    with pytest.raises(UserError, match="does not fit in memory .*16G hbm.: lower it"):
        memory.compile_within(
            SimpleNamespace(compile=compile_it), make_mesh(), "it", lambda: ADVICE
        )


def test_advice_can_be_followed():
    # Would catch the advice to set what is set already.
    assert memory.or_remat("auto").endswith("compute.remat ('auto') to 'cells'")
    assert memory.or_remat("cells") == ""


@pytest.fixture
def experiment(tiny, quick_compilation):
    """A search whose second stage needs more memory than its first."""
    return tiny(
        space=str(ROOT / "tests" / "uneven_space.py"),
        arch__name="softmax",
        search__channels=64,
        search__partial_channels=(8, 1),
        search__operations=(3, 2),
        search__epochs=(1, 1),
        search__warmup_epochs=(1, 0),
    )


def test_a_later_stage_is_checked_before_the_first_step(experiment, monkeypatch, tmp_path):
    # Would catch a search that runs out of memory hours later, when it enters its second stage.
    sizes = {}  # of the programs in the order in which they are compiled: 10, 20, ...
    monkeypatch.setattr(memory, "needed", lambda step: sizes.setdefault(step, 10 + 10 * len(sizes)))
    monkeypatch.setattr(memory, "available", lambda mesh: 15)
    with pytest.raises(UserError) as caught:
        loop.run(SearchPhase(experiment, Listener()), tmp_path)
    message = str(caught.value)
    assert all(word in message for word in ("K = 1", "batch_size (16)", "(8, 1)", "'auto'"))
    assert not (tmp_path / "history.jsonl").exists()
    assert not list((tmp_path / "checkpoints").iterdir())
    # A stage that is far from the limit is not compiled for the check.
    assert len(sizes) == 2
    monkeypatch.setattr(memory, "available", lambda mesh: 1000)
    check_later_stages(experiment, 0, experiment.first_spec(), next(iter(sizes)))
    assert len(sizes) == 2


def test_the_heaviest_operations_are_assumed(experiment):
    # Would catch a check of the lightest operations, which says nothing about the others.
    later = heaviest(experiment, experiment.first_spec(), 2, 1)
    assert [edge.primitives for edge in later.cells[0][1].edges] == [
        ("times_1", "times_2"), ("times_1",), ("times_2", "skip"),
    ]  # fmt: skip
