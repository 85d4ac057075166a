"""The same seed gives the same bits, whether or not the run was interrupted."""

import signal

import pytest
import samplers
from resuming import Crashing, Listener, Stopper, assert_same_bits, checkpoint, history, once
from small_run import FIELDS, ROOT

from drnas_jax import evaluate, retrain, search
from drnas_jax.configs import digits
from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype, save
from drnas_jax.phases import loop
from drnas_jax.phases.retrain.retraining import Retraining
from drnas_jax.phases.search.experiment import Experiment
from drnas_jax.training.signals import Interrupted

UNEVEN = str(ROOT / "tests" / "uneven_space.py")  # it compiles quickly
STEPS = 11  # in an epoch of digits: 718 training images in batches of 64


@pytest.fixture
def make_config(quick_compilation, monkeypatch):
    """Returns a function from a space to a small run on digits; its display reports every step."""
    monkeypatch.setattr(loop, "_REPORT_EVERY", 0.0)
    # Traced once for all the calls below; test_end_to_end.py resumes in a new process.
    for owner, name in (
        (Experiment, "step_program"),
        (Experiment, "validation_program"),
        (Retraining, "step_program"),
    ):
        monkeypatch.setattr(owner, name, once(getattr(owner, name)))

    def make(space):
        config = digits.get_config()
        config.update_from_flattened_dict(FIELDS)
        config.space = space
        config.search.warmup_epochs = (0, 1)
        if space == UNEVEN:
            config.search.operations = (3, 2)
            config.arch.name = "gumbel"  # its samples compile faster, too
        else:
            config.update_from_flattened_dict(samplers.FIELDS)
        return config

    return make


# In the middle of stage 1; at its very end, so that the next process prunes; in the warm-up of
# stage 2; in its last epoch.
STOPS = (
    (5, signal.SIGTERM),
    (STEPS, signal.SIGINT),
    (STEPS + 4, signal.SIGTERM),
    (2 * STEPS + 1, signal.SIGINT),
)


@pytest.mark.parametrize(
    ("space", "devices", "stops"),
    [
        (UNEVEN, 1, STOPS[1:3]),
        pytest.param(UNEVEN, 1, STOPS, marks=pytest.mark.slow),
        pytest.param("nasbench201", 1, STOPS, marks=pytest.mark.slow),
        pytest.param("nasbench201", 8, STOPS, marks=pytest.mark.slow),
    ],
    ids=["uneven, two stops", "uneven", "nasbench201", "nasbench201 on 8 devices"],
)
def test_a_run_that_is_stopped_and_resumed(
    make_config, on_devices, space, devices, stops, tmp_path
):
    # Would catch anything that a checkpoint forgets, in whatever epoch a run is stopped.
    on_devices(devices)
    config = make_config(space)
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    expected = search(config, whole, display=Listener()).genotype
    for step, signum in stops:
        with pytest.raises(Interrupted) as stop:
            search(config, pieces, display=Stopper(step, signum))
        assert stop.value.signum == signum
        saved, _, metadata = checkpoint(pieces / "search/checkpoints")
        assert saved == step
        assert metadata["epochs_done"] == step // STEPS
        assert metadata["stage"] == (step > STEPS)
    assert search(config, pieces, display=Listener()).genotype == expected
    assert_same_bits(pieces / "search", whole / "search")

    retrain(config, whole, display=Listener())
    for step in (3, STEPS * 2 + 5):
        with pytest.raises(Interrupted):
            retrain(config, pieces, display=Stopper(step, signal.SIGTERM))
    retrain(config, pieces, display=Listener())
    assert_same_bits(pieces / "retrain", whole / "retrain")

    # When all is done, running it again adds nothing.
    assert search(config, pieces, display=Listener()).genotype == expected
    assert retrain(config, pieces, display=Listener()).steps == 4 * STEPS
    for phase in ("search", "retrain"):
        assert_same_bits(pieces / phase, whole / phase)

    # Only the genotype, retrained elsewhere.
    config.genotype, other = str(whole / "search/genotype.json"), tmp_path / "other"
    retrain(config, other, display=Listener())
    assert_same_bits(other / "retrain", whole / "retrain")
    assert evaluate(config, other, display=Listener()).search_seconds is None
    assert not (other / "search").exists()


@pytest.mark.slow
def test_noise_is_the_same_after_a_resume(make_config, on_devices, tmp_path):
    # Would catch noise whose key does not follow from the step, in either phase or the evaluation.
    on_devices(1)
    config = make_config("darts_s4")
    config.search.update(
        dict(cells=2, epochs=(2,), operations=(2,), partial_channels=(2,), warmup_epochs=(0,))
    )
    cell = tuple((("noise", 0), ("sep_conv_3x3", 1)) for _ in range(4))
    noisy = tmp_path / "genotype.json"
    save(noisy, Genotype("darts_s4", (("normal", cell), ("reduce", cell))), {})
    config.genotype, config.retrain.cells, config.retrain.auxiliary_weight = str(noisy), 2, 0.0
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    for phase, run in (("search", search), ("retrain", retrain)):
        run(config, whole, display=Listener())
        with pytest.raises(Interrupted):
            run(config, pieces, display=Stopper(STEPS + 3, signal.SIGTERM))
        run(config, pieces, display=Listener())
        assert_same_bits(pieces / phase, whole / phase)
    first, again = (evaluate(config, workdir, display=Listener()) for workdir in (whole, pieces))
    assert first.test_accuracy == again.test_accuracy


def steps_kept(directory):
    return sorted(int(path.name) for path in (directory / "checkpoints").iterdir())


def test_checkpoints_within_an_epoch(one_stage, on_devices, tmp_path):
    # Would catch a checkpoint that counts an epoch as done, or a history with a line twice.
    on_devices(1)
    changes = dict(search__batch_size=4, search__epochs=(2,))  # epochs of 8 steps
    config, arrays = one_stage(**changes)
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    search(config, whole, arrays, Listener())
    config, arrays = one_stage(**changes, checkpoint_steps=3)
    # A crash at a step comes before its checkpoint: here after 6, then after 9 in the next epoch.
    for crash, kept, epochs_done in ((7, [3, 6], 0), (12, [8, 9], 1)):
        with pytest.raises(OSError, match="crash"):
            search(config, pieces, arrays, Crashing(crash))
        assert steps_kept(pieces / "search") == kept
        assert checkpoint(pieces / "search/checkpoints")[2]["epochs_done"] == epochs_done
    display = Listener()
    search(config, pieces, arrays, display)
    assert any("after step 9" in text for text in display.messages)
    assert_same_bits(pieces / "search", whole / "search")
    assert steps_kept(pieces / "search") == [15, 16]
    assert steps_kept(whole / "search") == [8, 16]  # without checkpoint_steps


def test_a_run_resumes_on_other_devices(one_stage, on_devices, tmp_path):
    # Would catch a checkpoint that only the devices that wrote it can read.
    config, arrays = one_stage(search__epochs=(1,), search__batch_size=8)  # 4 steps
    on_devices(1)
    for step in (2, 3):
        display = Stopper(step, signal.SIGTERM)
        with pytest.raises(Interrupted):
            search(config, tmp_path, arrays, display)
        saved, _, metadata = checkpoint(tmp_path / "search/checkpoints")
        assert (saved, metadata["devices"]) == (step, 1)
        assert not any("devices" in text for text in display.messages)
    on_devices(8)
    display = Listener()
    search(config, tmp_path, arrays, display)
    (changed,) = [text for text in display.messages if "devices" in text]
    assert "1 devices" in changed and "8" in changed
    assert any("after step 3" in text for text in display.messages)
    saved, _, metadata = checkpoint(tmp_path / "search/checkpoints")
    assert (saved, metadata["devices"]) == (4, 8)
    assert len(history(tmp_path / "search")) == 1


def test_a_retraining_that_has_not_ended(one_stage, on_devices, tmp_path):
    # Would catch an evaluation of half-trained weights, or weights of another genotype or data.
    on_devices(1)
    file, workdir = tmp_path / "genotype.json", tmp_path / "run"
    changes = dict(genotype=str(file), retrain__epochs=2, retrain__batch_size=16)
    config, arrays = one_stage(**changes)

    def save_genotype(*names):
        nodes = tuple(((name, source),) for source, name in enumerate(names))
        save(file, Genotype("small", (("cell", nodes),)), {})

    save_genotype("left", "none", "right")
    with pytest.raises(Interrupted):
        retrain(config, workdir, arrays, Stopper(3, signal.SIGTERM))
    with pytest.raises(UserError, match="retraining has done 0 of 2 epochs: run it to its end"):
        evaluate(config, workdir, arrays, Listener())
    others = arrays | dict(x_train=255 - arrays["x_train"])
    with pytest.raises(UserError, match="is not the one of the retraining"):
        evaluate(config, workdir, others, Listener())
    with pytest.raises(UserError, match="with other images"):
        retrain(config, workdir, others, Listener())
    assert not (workdir / "result.json").exists()
    save_genotype("left", "none", "middle")
    with pytest.raises(UserError, match="with another cell in"):
        retrain(config, workdir, arrays, Listener())
    assert steps_kept(workdir / "retrain") == [3]
