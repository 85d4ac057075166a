"""Whole runs as a user types them, in processes of their own, with one device."""

import json
import signal
import sys

import numpy as np
import pytest
from resuming import assert_same_bits
from samplers import needs_tfp
from small_run import FIELDS, ROOT, command, environment, run, started, wait_until

from drnas_jax import evaluate
from drnas_jax.configs import digits
from drnas_jax.errors import UserError
from drnas_jax.files import read_history
from drnas_jax.training.metrics import Display

PHASES = ("search", "retrain")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the workdir of an undisturbed run of all phases."""
    workdir = tmp_path_factory.mktemp("whole")
    printed = run(command(workdir, "--config.search.compared_cells=8"))
    (workdir.parent / "whole.log").write_text(printed)
    return workdir


def test_files_of_a_run(whole):
    # Would catch a file or a field of the contract that is missing, or results that disagree.
    lines = read_history(whole / "search/history.jsonl")
    assert [(line["stage"], line["epoch"]) for line in lines] == [(1, 1), (2, 2), (2, 3)]
    for line in lines:
        assert {
            "train_loss", "train_accuracy", "valid_loss", "valid_accuracy", "entropy",
            "concentration", "genotype", "images_per_second",
        } <= line.keys()  # fmt: skip
    kept = [
        [sum(value is not None for value in edge) for edge in line["concentration"]["cell"]]
        for line in lines
    ]
    assert kept == [[5] * 6, [2] * 6, [2] * 6]
    assert [line["epoch"] for line in read_history(whole / "retrain/history.jsonl")] == [1, 2]

    result = json.loads((whole / "result.json").read_text())
    assert {
        "genotype", "params", "macs", "search_seconds", "retrain_seconds", "test_accuracy",
        "test_top5", "table", "nasbench201", "seed",
    } == result.keys()  # fmt: skip
    assert 0.1 < result["test_accuracy"] < result["test_top5"] <= 1  # better than chance
    found = json.loads((whole / "search/genotype.json").read_text())
    assert found["cells"] == result["genotype"]["cells"] == lines[-1]["genotype"]
    assert found["provenance"]["distribution"] == "dirichlet"
    compared = found["provenance"]["compared"]
    assert compared["images"] == 256 and len(compared["random"]) in (7, 8)
    printed = (whole.parent / "whole.log").read_text()
    assert printed.count(f"of the {len(compared['random'])} other random cells") == 1
    *_, accuracy, report = printed.splitlines()
    assert "retrained network: test accuracy" in accuracy and "report: " in report
    for phase in PHASES:
        assert list((whole / phase).glob("events.*"))
    assert "Retraining" in (whole / "report.html").read_text()
    described = json.loads((whole / "config.json").read_text())
    assert described["config"]["search"]["channels"] == FIELDS["search.channels"]
    assert described["versions"]["jax"] and len(described["devices"]) == 1


def test_a_killed_command_is_run_again(whole, tmp_path):
    # Would catch a state that only the process that wrote it can restore.
    workdir = tmp_path / "run"
    killed = started(command(workdir), tmp_path / "log", cwd=ROOT, env=environment())
    with killed as process:
        wait_until(lambda: read_history(workdir / "search/history.jsonl"), process)
    assert process.returncode == -signal.SIGKILL
    assert not (workdir / "search/genotype.json").exists()
    run(command(workdir, "--phases=search"))  # test_resume.py goes on to the other phases
    assert_same_bits(workdir / "search", whole / "search")


def test_a_checkpoint_is_evaluated_elsewhere(whole, tmp_path):
    # Would catch an evaluation that needs the workdir, the batch or the devices of the retraining.
    config = digits.get_config()
    config.update_from_flattened_dict(FIELDS)
    config.retrain.batch_size = 56  # another batch, on all simulated devices
    config.checkpoint = str(whole / "retrain/checkpoints")
    result = json.loads((whole / "result.json").read_text())
    other = evaluate(config, tmp_path / "other", display=Display(quiet=True))
    # Sums in another order may change one of the 359 images, if two classes are as likely.
    assert other.test_accuracy == pytest.approx(result["test_accuracy"], abs=1.5 / 359)
    assert other.params == result["params"]
    assert other.search_seconds is None
    config.data.image_size = 10
    with pytest.raises(UserError, match="trained on images of 8x8 pixels, .* have 10x10"):
        evaluate(config, tmp_path / "resized", display=Display(quiet=True))


@needs_tfp
@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "imagenet"])
def test_recipes_of_the_darts_space(name, shared, tmp_path):
    # Would catch a recipe whose smoke variant cannot run to its end.
    flags = (f"--config=configs/{name}.py:smoke", f"--config.data.dir={shared / 'tfds'}")
    run([sys.executable, "-m", "drnas_jax.main", *flags, f"--workdir={tmp_path}"])
    for phase in PHASES:
        assert [line["epoch"] for line in read_history(tmp_path / phase / "history.jsonl")] == [
            1,
            2,
        ]
    assert json.loads((tmp_path / "result.json").read_text())["genotype"]["space"] == "darts"


@pytest.mark.slow
def test_the_recipe_of_fashion_mnist(tmp_path):
    # Would catch a recipe whose smoke variant cannot run to its end; real images are not needed.
    for split, n in (("train", 4000), ("t10k", 1000)):
        labels = (np.arange(n) % 10).astype(np.uint8)
        images = np.repeat(np.repeat(labels[:, None, None] * np.uint8(25), 28, 1), 28, 2)
        for kind, array in (("images", images), ("labels", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            file = tmp_path / f"{split}-{kind}-idx{array.ndim}-ubyte"
            file.write_bytes(header + array.tobytes())
    flags = ("--config=configs/fashion_mnist.py:smoke", f"--config.data.dir={tmp_path}")
    run([sys.executable, "-m", "drnas_jax.main", *flags, f"--workdir={tmp_path / 'run'}"])
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test_accuracy"] > 0.1
