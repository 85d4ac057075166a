"""Whole runs as a user types them, in processes of their own, with one device."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_run import FIELDS, environment
from test_resume import assert_same_bits, history

from drnas_jax import evaluate, load_genotype
from drnas_jax.config import from_config_dict
from drnas_jax.metrics import Display, read_history

ROOT = Path(__file__).parents[1]
PHASES = ("search", "retrain")


def command(workdir, *more):
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    flags = ["--config=configs/digits.py", f"--workdir={workdir}", *fields, *more]
    return [sys.executable, "-m", "drnas_jax.main", *flags]


def run(workdir, *more):
    done = subprocess.run(
        command(workdir, *more),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The workdir of an undisturbed run of all phases."""
    workdir = tmp_path_factory.mktemp("whole")
    run(workdir)
    return workdir


def test_files_of_a_run(whole):
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
    assert kept == [[5] * 6, [3] * 6, [3] * 6]
    assert [line["epoch"] for line in read_history(whole / "retrain/history.jsonl")] == [1, 2]

    result = json.loads((whole / "result.json").read_text())
    assert {
        "genotype", "params", "macs", "search_seconds", "retrain_seconds", "test_accuracy",
        "test_top5", "nasbench201", "seed",
    } == result.keys()  # fmt: skip
    assert 0.1 < result["test_accuracy"] < result["test_top5"] <= 1  # better than chance
    found = json.loads((whole / "search/genotype.json").read_text())
    assert found["cells"] == result["genotype"]["cells"] == lines[-1]["genotype"]
    assert found["provenance"]["distribution"] == "dirichlet"
    for phase in PHASES:
        assert list((whole / phase).glob("events.*"))
    assert "Retraining" in (whole / "report.html").read_text()
    described = json.loads((whole / "config.json").read_text())
    assert described["config"]["search"]["channels"] == FIELDS["search.channels"]
    assert described["versions"]["jax"] and len(described["devices"]) == 1


def test_killed_and_run_again(whole, tmp_path):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command(tmp_path), cwd=ROOT, env=environment(), **quiet)
    deadline = time.monotonic() + 300
    while not read_history(tmp_path / "search/history.jsonl"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (tmp_path / "search/genotype.json").exists()
    run(tmp_path)
    for phase in PHASES:
        assert_same_bits(tmp_path / phase, whole / phase)
    results = [json.loads((workdir / "result.json").read_text()) for workdir in (tmp_path, whole)]
    for result in results:
        assert result.pop("search_seconds") > 0 and result.pop("retrain_seconds") > 0
    assert results[0] == results[1]


def test_run_again_when_all_is_done(whole):
    before = [history(whole / phase) for phase in PHASES], (whole / "result.json").read_text()
    run(whole)
    assert before == (
        [history(whole / phase) for phase in PHASES],
        (whole / "result.json").read_text(),
    )


def test_checkpoint_and_genotype_from_elsewhere(whole, tmp_path):
    from drnas_jax.configs import digits

    config = digits.get_config()
    config.update_from_flattened_dict(FIELDS)
    config.retrain.batch_size = 56  # another batch, on all simulated devices: same accuracy
    config.checkpoint = str(whole / "retrain/checkpoints")
    result = json.loads((whole / "result.json").read_text())
    other = evaluate(from_config_dict(config), tmp_path, Display(quiet=True))
    assert other["test_accuracy"] == result["test_accuracy"]
    assert other["params"] == result["params"]
    assert other["search_seconds"] is None
    genotype = load_genotype(whole / "search/genotype.json")
    assert dataclasses.asdict(genotype)["space"] == "nasbench201"


def test_a_given_genotype_is_retrained_as_in_its_own_run(whole, tmp_path):
    genotype = f"--config.genotype={whole / 'search/genotype.json'}"
    run(tmp_path, "--phases=retrain,evaluate", genotype)
    assert_same_bits(tmp_path / "retrain", whole / "retrain")
    assert not (tmp_path / "search").exists()
    ours, theirs = (json.loads((path / "result.json").read_text()) for path in (tmp_path, whole))
    assert ours["search_seconds"] is None
    for name in ("genotype", "params", "macs", "test_accuracy", "test_top5", "seed"):
        assert ours[name] == theirs[name]
