"""Benchmarks run, and print one JSON line each with the documented keys."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import samplers
from test_end_to_end import ROOT

from drnas_jax import components, spaces
from drnas_jax.config import from_config_dict
from drnas_jax.flags import parse
from drnas_jax.genotype import Genotype, save
from drnas_jax.nn.layers import Layer
from drnas_jax.tools import bench, bench_operations
from drnas_jax.training import devices

DIGITS = "--config=configs/digits.py:smoke"
TINY = [
    DIGITS,
    *samplers.FLAGS,
    "--config.search.channels=4",
    "--config.search.batch_size=8",
    "--config.retrain.channels=4",
    "--config.retrain.batch_size=8",
]
FEW = "--config.search.operations=(5,1)"  # one operation in stage 2 compiles faster
TIMES = {"lower_s", "compile_s", "step_s", "images_per_s", "kernels"}
TIMES |= {"peak_memory_mb", "temp_memory_mb"}
WORK = {"gflop", "gbyte", "gflop_per_s", "gbyte_per_s"}
LIMITS = {"matmul_gflop_per_s", "copy_gbyte_per_s"}
MACHINE = {"device", "jax"}


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def one_device(monkeypatch):
    mesh = devices.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(devices, "make_mesh", lambda: mesh)


def cell_of(tmp_path, primitive):
    nodes = tuple(tuple((primitive, i) for i in range(node)) for node in (1, 2, 3))
    save(tmp_path / "cell.json", Genotype("nasbench201", (("cell", nodes),)), {})
    return f"--config.genotype={tmp_path / 'cell.json'}"


@pytest.fixture
def cell(tmp_path):
    return cell_of(tmp_path, "skip_connect")


def printed(capsys, *argv):
    assert bench.main(["bench", *argv]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.endswith("\n") and len(out.splitlines()) == 1
    return json.loads(out)


def refused(capsys, *argv):
    assert bench.main(["bench", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and len(err.splitlines()) == 1
    return err


def check_times(result, images):
    assert result.keys() == {"bench"} | TIMES | WORK | LIMITS | MACHINE
    for name in TIMES | LIMITS:
        assert result[name] > 0
    assert result["images_per_s"] == pytest.approx(images / result["step_s"], rel=0.1)
    assert result["jax"] == jax.__version__


@pytest.fixture(autouse=True)
def limits(monkeypatch, request):
    """Measures the rates of the machine only once, since that takes seconds."""
    if request.node.name != "test_step[2]":
        monkeypatch.setattr(bench, "_limits", lambda dtype: dict.fromkeys(LIMITS, 1.0))


# Would catch a second stage that is timed with the supernet of the first.
@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_step(capsys, one_device, stage):
    # Would catch fractions of the config that leave no synthetic image, or a warm-up being timed.
    flags = ("train_fraction=0.01", "alpha_fraction=0.01", "warmup_epochs=(2,2)")
    changed = [f"--config.search.{flag}" for flag in flags]
    result = printed(capsys, "step", *TINY, FEW, *changed, f"--stage={stage}", "--steps=2")
    assert result["bench"] == "step"
    check_times(result, images=8)


@pytest.mark.slow
def test_step_of_several_seeds(capsys, one_device):
    # Would catch the images or the work of one seed, or two seeds that are one.
    larger = ("--config.search.channels=16", "--config.search.batch_size=64")  # gflop is rounded
    flags = [*TINY, *larger, "--steps=1"]
    one, both = (printed(capsys, "step", *flags, f"--config.seeds={n}") for n in (1, 2))
    check_times(both, images=2 * 64)
    assert both["gflop"] == pytest.approx(2 * one["gflop"], rel=0.05)


def test_times_of_other_kernels(capsys, one_device, cell):
    # Would catch the times of the other kernels being left out or mixed up with the first.
    result = printed(capsys, "retrain", *TINY, cell, "--steps=2", "--compare=plain")
    other = result.pop("compare")
    assert result["bench"] == "retrain"
    check_times(result, images=8)
    assert other.keys() == {"name"} | TIMES
    assert other["name"] == "plain"
    assert other["step_s"] > 0


@pytest.mark.slow
def test_work_is_that_of_one_step(capsys, monkeypatch, one_device, tmp_path):
    # Would catch the work of a whole dispatch, which on accelerators has several steps.
    flags = [*TINY, cell_of(tmp_path, "nor_conv_1x1"), "--config.retrain.channels=32"]
    work = []
    for steps in (1, 2):
        monkeypatch.setattr(devices, "steps_per_dispatch", lambda mesh, n, steps=steps: steps)
        work.append(printed(capsys, "retrain", *flags, "--steps=1"))
    for name in ("gflop", "gbyte"):
        assert work[0][name] == work[1][name] > 0
    check_times(work[1], images=8)


@pytest.mark.slow
def test_all_benchmarks(capsys, one_device, cell):
    # Would catch a benchmark that `all` leaves out.
    assert bench.main(["bench", "all", *TINY, cell, "--steps=1"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["bench"] for line in lines] == ["step", "retrain", "input"]


def test_operations_are_measured_for_the_cost_table(capsys, tmp_path, monkeypatch):
    # Would catch a layer that no row describes, and times that do not add up to a network's.
    monkeypatch.setattr(bench_operations, "_SECONDS", 0.0)
    file = tmp_path / "times.csv"
    space = Path(__file__).parents[1] / "uneven_space.py"
    flags = [DIGITS, f"--config.space={space}", f"--file={file}", "--batch=2", "--steps=2"]
    result = printed(capsys, "operations", *flags)
    assert result.keys() == {"bench", "file", "operations", "rest_s", "batch"} | MACHINE
    rows = file.read_text().splitlines()
    assert rows[0] == "operation,input_shape,seconds" and rows[-1].startswith("rest,,")
    assert len(rows) == result["operations"] + 2
    assert result["rest_s"] >= 0

    config, *_ = parse(["main", *flags[:2]], lambda values: None)
    options = SimpleNamespace(file=str(file), batch=2)
    cost = components.create("cost", "table", options, field="cost.name")
    space = spaces.create(config.space)
    for genotype in (spaces.random_genotype(space, seed) for seed in range(3)):
        size = config.retrain.channels, config.retrain.cells, 10, (8, 8, 1)
        assert cost.exact(space, spaces.NetworkSpec(genotype, *size)) >= result["rest_s"]

    # Would catch a prediction that is compared with another network's time.
    monkeypatch.setattr(bench_operations, "_COMPARED", 3)
    compared = printed(capsys, "latency", *flags)
    assert compared["networks"] == 3
    predicted = {line["predicted"] for line in compared["seconds"]}
    assert (compared["rank_correlation"] is None) == (len(predicted) == 1)
    for seed, line in enumerate(compared["seconds"], start=bench_operations._NETWORKS):
        network = spaces.NetworkSpec(spaces.random_genotype(space, seed), *size)
        assert line["genotype"] == space.describe(network.genotype)
        assert line["predicted"] == pytest.approx(cost.exact(space, network), rel=1e-3)
        assert line["measured"] > 0


def test_starting_a_program_is_not_the_time_of_a_layer():
    # Would catch sums that are far above what the whole network takes, and negative times.
    a, b = Layer("a", "1"), Layer("b", "1")
    wholes = [(10.0, Counter({a: 4, b: 1})), (12.0, Counter({a: 2, b: 2}))]
    seconds, rest = bench_operations._without_starts({a: 2.0, b: 6.0}, wholes)
    # 14 and 16 seconds of layers, which start 5 and 4 programs: 8 seconds too many, of 9 starts.
    assert seconds == pytest.approx({a: 2 - 8 / 9, b: 6 - 8 / 9})
    assert rest == pytest.approx(0, abs=1e-9)
    assert bench_operations._without_starts({a: 1.0, b: 2.0}, wholes) == ({a: 1.0, b: 2.0}, 5.0)


def test_input_on_all_devices(capsys):
    # Would catch input that is timed on one device only.
    result = printed(capsys, "input", *TINY, "--steps=3")
    assert result.keys() == {"bench", "images_per_s"} | MACHINE
    assert result["bench"] == "input"
    assert result["images_per_s"] > 0
    assert result["device"].startswith("8 x ")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["step", DIGITS, "--stage=9"], ["--stage is 9", "1 to 2"]),
        (["step", DIGITS, "--stage=0"], ["--stage=0"]),
        (["step", DIGITS, "--steps=0"], ["--steps=0"]),
        (["step"], ["--config=FILE"]),
        (["step", DIGITS, "--config.seedd=1"], ["seedd"]),
        (["step", DIGITS, "--config.search.batch_size=12"], ["12", "8 devices"]),
        (["step", DIGITS, "--workdir=x"], ["workdir"]),
        ([DIGITS], ["step, retrain, input, all"]),
        (["step", "input", DIGITS], ["step, retrain, input, all"]),
        (["speed", DIGITS], ["'speed'", "all, input, latency, operations, retrain, step"]),
        (["step", DIGITS, *samplers.FLAGS, "--compare=fast"], ["'fast'", "cpu, gpu, plain, tpu"]),
        (["retrain", DIGITS], ["--config.genotype"]),
        (["retrain", DIGITS, "--config.genotype=no/such"], ["no/such"]),
        (["input", DIGITS, "--config.data.name=no/such"], ["no/such"]),
        (["latency", DIGITS, "--file=no/such"], ["no/such"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_mistake_is_one_line(capsys, argv, words):
    # Would catch a message without the value or without what was expected.
    line = refused(capsys, *argv)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("name", "size", "shape", "classes"),
    [
        ("digits", 0, (8, 8, 1), 10),
        ("cifar10", 0, (32, 32, 3), 10),
        ("imagenet2012", 0, (224, 224, 3), 1000),
        ("imagenet2012", 32, (32, 32, 3), 1000),
        ("cifar10", 16, (16, 16, 3), 10),
    ],
)
def test_synthetic_images_are_like_the_data_set(name, size, shape, classes):
    # Would catch synthetic images of another shape, or too few for both halves of the split.
    from drnas_jax.config import defaults

    config = defaults()
    config.data.update(name=name, image_size=size)
    dataset = bench.synthetic(from_config_dict(config), 6)
    assert dataset.images.shape[1:] == shape
    assert len(dataset.images) == len(dataset.labels) >= 12  # a batch of 6 in both halves
    assert dataset.num_classes == classes
    assert dataset.images.dtype == np.uint8
    assert dataset.labels.max() < classes
