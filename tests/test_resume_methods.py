"""Each method of configs/nasbench201.py gives the same bits after a kill and a resume."""

import signal

import pytest
from resuming import Listener, Stopper, assert_same_bits, history, once

from drnas_jax import retrain, search
from drnas_jax.configs import cifar10, nasbench201, nasbench_macro
from drnas_jax.phases import loop
from drnas_jax.phases.search.experiment import Experiment
from drnas_jax.training.signals import Interrupted

STEPS = 22  # in an epoch of the size smoke: 718 training images in batches of 32
# More than the one epoch of the size smoke, so that the rule has something to remember.
LONGER = {
    "curvature": dict(
        epochs=(3,), stopping_options=dict(window=1, distance=1, frequency=1, first_epoch=1)
    ),
    "skip_connections": dict(epochs=(3,), stopping_options=dict(most=0)),
}


@pytest.fixture(autouse=True)
def fast(quick_compilation, on_devices, monkeypatch):
    """Reports every step, and traces the same program once for both runs."""
    on_devices(1)
    monkeypatch.setattr(loop, "_REPORT_EVERY", 0.0)
    for name in ("step_program", "validation_program"):
        monkeypatch.setattr(Experiment, name, once(getattr(Experiment, name)))


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in nasbench201.METHODS if "random" not in name])
def test_a_search_by_each_method(method, tmp_path):
    # Would catch a rule, a distribution or a penalty with a memory that no checkpoint has.
    config = nasbench201.get_config(f"smoke,{method}")
    config.search.update(LONGER.get(method, {}))
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    expected = search(config, whole, display=Listener()).genotype
    last = len(history(whole / "search")) * STEPS
    for step in sorted({5, last // 2 + 3, last - 2}):  # in the first, a middle and the last epoch
        with pytest.raises(Interrupted):
            search(config, pieces, display=Stopper(step, signal.SIGTERM))
    assert search(config, pieces, display=Listener()).genotype == expected
    assert_same_bits(pieces / "search", whole / "search")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "variant", "decisions", "operations"),
    [(cifar10, "smoke,s2", 17, 2), (nasbench_macro, "smoke", 8, 3)],  # S2 has DARTS's cells
    ids=["darts_s2", "macro"],
)
def test_perturbation_in_other_spaces(recipe, variant, decisions, operations, tmp_path):
    # Would catch edges or nodes that only NAS-Bench-201's cell has, and decisions made twice.
    config = recipe.get_config(variant)
    config.data.update(dict(name="digits", image_size=0, crop_padding=1))
    stage = dict(epochs=(decisions,), warmup_epochs=(0,), operations=(operations,))
    config.search.update(dict(stage, partial_channels=(1,), batch_size=350, compared_cells=0))
    config.search.selection = "perturbation"
    config.search.selection_options = dict(interval=1, batches=1)
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    display = Listener()
    expected = search(config, whole, display=display).genotype
    assert sum("fixed" in message for message in display.messages) >= decisions - 1
    for step in (7, 2 * decisions - 3):
        with pytest.raises(Interrupted):
            search(config, pieces, display=Stopper(step, signal.SIGTERM))
    assert search(config, pieces, display=Listener()).genotype == expected
    assert_same_bits(pieces / "search", whole / "search")


@pytest.mark.slow
def test_a_cell_of_random_search(tmp_path):
    # Would catch another cell, or other images that are left out, after a resume.
    config = nasbench201.get_config("smoke,random_search")
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    retrain(config, whole, display=Listener())
    with pytest.raises(Interrupted):
        retrain(config, pieces, display=Stopper(STEPS // 2, signal.SIGTERM))
    retrain(config, pieces, display=Listener())
    assert_same_bits(pieces / "retrain", whole / "retrain")
