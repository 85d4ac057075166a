"""Bad input ends with exit code 2 and one clear line, and overwrites nothing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from drnas_jax.genotype import Genotype, save
from drnas_jax.main import PHASES, main
from drnas_jax.training.checkpoints import Checkpoints
from drnas_jax.training.progress import Progress

DIGITS = "--config=configs/digits.py:smoke"
DARTS = [
    DIGITS,
    "--config.space=darts",
    "--config.search.operations=(7,4)",
    "--config.retrain.cells=3",
]
COST = ["--config.cost.name=macs"]
PROGRESS = Progress(1, 1.0, devices=1, jax="0.10", images=718, fingerprint=1, steps=11)
CELL = Genotype(
    "nasbench201",
    (
        (
            "cell",
            tuple(
                tuple(("skip_connect", source) for source in range(node)) for node in range(1, 4)
            ),
        ),
    ),
)


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])


def files(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(capsys, *argv):
    """Runs a command that must be refused, and returns the line that it prints."""
    assert main(["main", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([DIGITS, "--config.seedd=1"], ["seedd", "seeds"]),
        ([DIGITS, "--config.search.epoch=1"], ["epoch"]),
        ([DIGITS, "--config.arch.sampler=jax"], ["'arch.sampler'", "arch.options.sampler"]),
        ([DIGITS, "--config.seed=soon"], ["seed", "soon"]),
        ([DIGITS, "--config.seed=-1"], ["seed", "-1", "at least 0"]),
        (["--config=configs/nowhere.py"], ["configs/nowhere.py"]),
        (["--config=configs/digits.py:large"], ["large", "smoke"]),
        ([], ["--config"]),
        ([DIGITS, "--phase=search"], ["phase"]),
        ([DIGITS, "--phases=serach"], ["serach", "evaluate", "search"]),
        ([DIGITS, "--phases="], ["unknown phase ''"]),
        ([DIGITS, "search"], ["'search'"]),
        ([DIGITS, "--config.data.name=cifar11"], ["cifar11"]),
        ([DIGITS, "--config.data.name=cifar10", "--config.data.dir=no/such"], ["no/such"]),
        ([DIGITS, "--config.data.name=folder", "--config.data.dir=no/such"], ["no/such"]),
        ([DIGITS, "--config.arch.name=beta"], ["beta", "dirichlet", "softmax"]),
        ([DIGITS, "--config.arch.name=softmax", "--config.arch.regulariser=kl"], ["kl", "Softmax"]),
        ([DIGITS, "--config.space=darst"], ["darst", "nasbench201"]),
        ([DIGITS, "--config.space=no/such.py"], ["no/such.py", "no such file"]),
        ([DIGITS, "--config.search.selection=best"], ["search.selection 'best'", "mean"]),
        ([DIGITS, "--config.search.batch_size=12"], ["12", "8 devices"]),  # tests simulate 8
        ([DIGITS, "--config.search.batch_size=4096"], ["4096"]),
        ([DIGITS, "--config.search.partial_channels=(3,1)"], ["K = 3", "8"]),
        ([DIGITS, "--config.search.epochs=(1,2,3)"], ["search.epochs has 3"]),
        ([DIGITS, "--config.search.operations=(3,5)"], ["(3, 5)"]),
        ([DIGITS, "--config.search.operations=(4,3)"], ["4", "expected 5"]),
        ([DIGITS, "--config.data.image_size=10"], ["10x10", "4"]),
        ([DIGITS, "--config.genotype=random"], ["'random'", "--phases=retrain,evaluate"]),
        ([DIGITS, "--config.checkpoint=x", "--phases=retrain"], ["'x'", "--phases=evaluate"]),
        ([DIGITS, "--config.retrain.drop_path=0.3"], ["drop_path", "nasbench201", "to 0"]),
        ([DIGITS, "--config.retrain.auxiliary_weight=0.4"], ["auxiliary_weight", "to 0"]),
        ([DIGITS, "--config.retrain.batch_size=2000"], ["1438 images", "2000"]),
        ([DIGITS, "--config.retrain.batch_size=12"], ["retrain.batch_size = 12", "8 devices"]),
        ([DIGITS, "--config.cost.targets=(3e5,4e5)"], ["cost.targets is", "cost.name is empty"]),
        ([DIGITS, *COST, "--config.cost.targets=(3,3)"], ["cost.targets is", "3 twice"]),
        ([DIGITS, *COST, "--config.cost.target=3", "--config.cost.targets=3"], ["cost.targets to"]),
        ([DIGITS, "--config.seeds=2", "--config.element=3"], ["element is 3", "1 to 2"]),
        ([DIGITS, "--config.retrain.max_macs=10"], ["max_macs is 10", "of 2 channels"]),
        ([*DARTS, "--config.retrain.auxiliary_weight=0.4"], ["8x8 pixels"]),
        ([DIGITS, "--config.search.lr_warmup_epochs=4"], ["lr_warmup_epochs is 4", "4 epochs"]),
        ([DIGITS, "--config.genotype=no/such.json", "--phases=retrain"], ["no/such.json"]),
        ([DIGITS, "--config.genotype=drnas_cifar10", "--phases=retrain"], ["'darts'"]),
        ([DIGITS, "--phases=retrain"], ["no genotype", "--config.genotype"]),
        ([DIGITS, "--config.table.file=no/such.csv"], ["no/such.csv"]),
        ([DIGITS, "--config.table.name=nasbench202"], ["nasbench202", "nasbench201"]),
        ([DIGITS, "--config.metrics.writers=tensorbord"], ["'tensorbord'", "tensorboard"]),
        ([DIGITS, "--phases=evaluate"], ["no checkpoint", "retrain phase"]),
        ([DIGITS, "--phases=search,evaluate"], ["no checkpoint", "retrain phase"]),
        ([DIGITS, "--phases=evaluate", "--config.checkpoint=no/such"], ["no/such"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_a_mistake_is_one_line(capsys, tmp_path, argv, words):
    line = refused(capsys, *argv, f"--workdir={tmp_path / 'run'}")
    for word in words:
        assert word in line
    written = {path.name for path in (tmp_path / "run").rglob("*")}
    assert written <= {"config.json"}  # not even an empty folder


def test_names_of_files_cannot_break_the_line(capsys, tmp_path):
    # Would catch a message of two lines, or one that a terminal cannot show.
    folder = tmp_path / os.fsdecode(b"a\nb\xff")
    folder.mkdir()
    argv = [DIGITS, "--config.data.name=folder", f"--config.data.dir={folder}"]
    assert r"a\nb\udcff has no folders" in refused(capsys, *argv, f"--workdir={tmp_path}/run")
    assert "not UTF-8" in refused(capsys, DIGITS, f"--workdir={folder}")  # before it has trained


def test_no_workdir(capsys):
    # Would catch a run that writes into the current directory.
    assert "--workdir=DIR" in refused(capsys, DIGITS)


def test_workdir_of_another_config(capsys, tmp_path):
    # Would catch a workdir that silently holds two experiments.
    argv = [DIGITS, f"--workdir={tmp_path}", "--phases=retrain"]
    refused(capsys, *argv)  # no genotype yet, but the workdir has its config now
    (tmp_path / "search").mkdir()
    (tmp_path / "search/history.jsonl").touch()
    before = files(tmp_path)
    line = refused(capsys, *argv, "--config.search.lr=0.5")
    assert "search.lr was 0.025 and is 0.5" in line
    assert files(tmp_path) == before
    # A path may change: the command gets as far as the missing genotype.
    assert "no genotype" in refused(capsys, *argv, "--config.data.dir=elsewhere")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"config": 3}', b"\xff\x00"])
def test_damaged_config_json(capsys, tmp_path, content):
    # Would catch a damaged file that is overwritten.
    (tmp_path / "config.json").write_bytes(content)
    assert "config.json is damaged" in refused(capsys, DIGITS, f"--workdir={tmp_path}")
    assert (tmp_path / "config.json").read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": 2}', b"\xff\x00"])
def test_corrupt_genotype(capsys, tmp_path, content):
    # Would catch a search that starts again because its result cannot be read.
    file = tmp_path / "search" / "genotype.json"
    file.parent.mkdir()
    file.write_bytes(content)
    for argv in (
        ["--phases=search,retrain"],
        ["--phases=retrain", f"--config.genotype={file}"],
    ):
        workdir = tmp_path if "genotype" not in argv[-1] else tmp_path / "other"
        assert "genotype.json" in refused(capsys, DIGITS, f"--workdir={workdir}", *argv)
        assert file.read_bytes() == content


def test_genotype_with_an_unknown_operation(capsys, tmp_path):
    # Would catch a KeyError while the network is built.
    nodes = tuple(tuple(("conv_9x9", i) for i in range(node)) for node in range(1, 4))
    save(tmp_path / "cell.json", Genotype("nasbench201", (("cell", nodes),)), {})
    argv = [DIGITS, "--phases=retrain", f"--config.genotype={tmp_path / 'cell.json'}"]
    assert "conv_9x9" in refused(capsys, *argv, f"--workdir={tmp_path / 'run'}")


def test_several_seeds(tmp_path, monkeypatch):
    # Would catch seeds that share a workdir, or a workdir that differs from that of a single run.
    called = []

    def phase(run):
        called.append((run.config.seed, run.config.seeds, run.workdir))

    for name in ("search", "retrain"):
        monkeypatch.setitem(PHASES, name, phase)
    argv = ["", DIGITS, f"--workdir={tmp_path}", "--config.seed=5", "--config.seeds=2"]
    assert main([*argv, "--phases=search,retrain"]) == 0
    assert called == [(seed, 1, tmp_path / f"seed{seed}") for seed in (5, 5, 6, 6)]
    page = (tmp_path / "report.html").read_text()
    assert re.findall(r"<td>(seed\d)</td>", page) == ["seed5", "seed6"]
    config = json.loads((tmp_path / "seed6/config.json").read_text())["config"]
    assert (config["seed"], config["seeds"]) == (6, 1)
    assert main([*argv[:-1], "--config.seeds=3"]) == 2  # another run's directory


SWEEP = ["--config.cost.name=macs", "--config.cost.targets=(3e5,4e5)", "--config.seeds=2"]
NAMES = [f"cost_{target}/seed{seed}" for target in (300000, 400000) for seed in (0, 1)]


@pytest.fixture
def called(monkeypatch):
    """Returns the list of the runs for which a phase was called; nothing else is done."""
    called = []

    def phase(run):
        called.append((str(run.workdir), run.config.cost.target, run.config.seed))

    monkeypatch.setattr("drnas_jax.main.PHASES", dict.fromkeys(PHASES, phase))
    monkeypatch.setattr("drnas_jax.main.check_sweep", lambda run: None)
    return called


def test_several_targets(tmp_path, called):
    # Would catch targets or seeds that are left out, or that share a workdir.
    argv = ["", DIGITS, *SWEEP, f"--workdir={tmp_path}"]
    assert main([*argv, "--phases=search"]) == 0
    expected = [(target, seed) for target in (3e5, 4e5) for seed in (0, 1)]
    assert called == [
        (str(tmp_path / name), *values) for name, values in zip(NAMES, expected, strict=True)
    ]
    config = json.loads((tmp_path / NAMES[3] / "config.json").read_text())["config"]
    assert (config["cost"]["target"], config["cost"]["targets"]) == (4e5, [])
    page = (tmp_path / "report.html").read_text()
    assert set(NAMES) <= set(re.findall(r"<td>([\w/]+)</td>", page))


def test_one_element_of_a_sweep(tmp_path, called):
    # Would catch an element that does the work of others, or that locks them out of the workdir.
    argv = ["", DIGITS, *SWEEP, f"--workdir={tmp_path}", "--phases=search"]
    assert main([*argv, "--config.element=3"]) == 0
    assert [Path(name).relative_to(tmp_path) for name, *_ in called] == [Path(NAMES[2])]
    before = (tmp_path / "config.json").read_bytes()
    assert main([*argv, "--config.element=2"]) == 0 and len(called) == 2
    (tmp_path / NAMES[1] / "search").mkdir()
    (tmp_path / NAMES[1] / "search/history.jsonl").touch()
    assert main(argv) == 0 and len(called) == 6
    assert (tmp_path / "config.json").read_bytes() == before
    assert main([*argv, "--config.cost.weight=0.5", "--config.element=1"]) == 2


def test_elements_are_listed_in_order(tmp_path, capsys, called):
    # Would catch a number of array tasks that is not the number of elements.
    with pytest.raises(SystemExit) as ended:
        main(["", DIGITS, *SWEEP, f"--workdir={tmp_path}/run", "--list_elements"])
    assert not ended.value.code and not called and not (tmp_path / "run").exists()
    expected = [f"{number} {tmp_path}/run/{name}" for number, name in enumerate(NAMES, start=1)]
    assert capsys.readouterr().out.splitlines() == expected


def test_a_target_that_no_network_meets_ends_the_command_before_any_search(
    capsys, tmp_path, monkeypatch
):
    # Would catch a sweep that fails only after its other searches, which take days.
    def phase(run):
        raise AssertionError

    monkeypatch.setattr("drnas_jax.main.PHASES", dict.fromkeys(PHASES, phase))
    targets = "--config.cost.targets=(3e5,1000,4e5)"
    argv = [DIGITS, "--config.cost.name=params", targets, f"--workdir={tmp_path}"]
    assert main(["", *argv, "--config.element=3"]) == 2  # whose own target can be met
    *_, line = capsys.readouterr().err.splitlines()
    assert "one of cost.targets is 1000" in line and "smallest network" in line
    assert re.search(r"costs [\d,]+ parameters", line)


def test_a_workdir_in_the_home_directory(tmp_path, monkeypatch):
    # Would catch a folder with the name `~`.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("drnas_jax.main.PHASES", dict.fromkeys(PHASES, lambda *_: None))
    assert main(["", DIGITS, "--workdir=~/run", "--phases=search"]) == 0
    assert {path.name for path in tmp_path.glob("run/*")} == {"config.json", "report.html"}


def test_workdir_with_the_name_of_a_file(capsys, tmp_path):
    # Would catch a file of the user that is overwritten.
    file = tmp_path / "taken"
    file.write_text("mine")
    assert "taken" in refused(capsys, DIGITS, f"--workdir={file}")
    assert file.read_text() == "mine"


def test_a_folder_without_a_checkpoint_of_retraining(capsys, tmp_path):
    # Would catch an evaluation of the supernet, or files that evaluation adds to a folder.
    other = tmp_path / "search" / "checkpoints"
    with Checkpoints(other) as checkpoints:
        argv = [DIGITS, "--phases=evaluate", f"--config.checkpoint={other}"]
        workdir = f"--workdir={tmp_path / 'run'}"
        assert "holds no checkpoint of retraining" in refused(capsys, *argv, workdir)
        checkpoints.save(1, {"alpha": jnp.zeros(3)}, PROGRESS, {"stage": 0})
    before = files(other)
    assert "holds no checkpoint of retraining" in refused(capsys, *argv, workdir)
    assert files(other) == before


def test_a_damaged_checkpoint_is_kept(capsys, tmp_path):
    # Would catch an evaluation that removes a checkpoint which might be repaired.
    folder = tmp_path / "retrain" / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, {"params": jnp.zeros(3)}, PROGRESS, {})
    (folder / "1" / "_CHECKPOINT_METADATA").write_text("{")
    before = files(folder)
    save(tmp_path / "cell.json", CELL, {})
    argv = [DIGITS, f"--config.genotype={tmp_path / 'cell.json'}", f"--workdir={tmp_path}"]
    line = refused(capsys, *argv, "--phases=evaluate")
    assert f"checkpoint 1 in {folder}" in line and "remove that folder" in line
    assert files(folder) == before


def test_a_real_command_has_no_traceback(tmp_path):
    # Would catch warnings of libraries, which only a process of its own shows.
    argv = [DIGITS, "--config.arch.name=beta", f"--workdir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "drnas_jax.main", *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: unknown arch.name 'beta'"), done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cannot take cores away")
def test_each_number_of_cores_has_a_separate_program_cache(tmp_path):
    # Would catch JAX loading a program for another number of cores, which rounds differently.
    script = (
        "import os, jax; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1]);"
        "from drnas_jax.main import use_compilation_cache; use_compilation_cache();"
        "print(jax.config.jax_compilation_cache_dir)"
    )
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "drnas_jax" / "xla-1")
