"""The lines of docs/results.csv that a script makes from workdirs."""

import csv
import importlib.util
import json
import shutil

import pytest
from small_run import ROOT

from drnas_jax.config import from_config_dict, to_dict
from drnas_jax.configs import nasbench201
from drnas_jax.errors import UserError
from drnas_jax.files import append_history, write_json
from drnas_jax.genotype import save, to_cells
from drnas_jax.spaces.nasbench201 import parse

CELL = "|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|"
OTHER = CELL.replace("skip_connect", "avg_pool_3x3")
TABLE = f"""arch_str,cifar10_test_200,cifar100_test_200,imagenet16_120_test_200
{OTHER},93.5,70.25,41.4444
{CELL},94.3633,73.5133,46.3444
"""
TIME = """	Command being timed: "python -m drnas_jax.main"
	User time (seconds): 100.25
	System time (seconds): 2.50
	Elapsed (wall clock) time (h:mm:ss or m:ss): 1:02:03
	Maximum resident set size (kbytes): 1048576
	Average resident set size (kbytes): 0
	Command being timed: "python -m drnas_jax.main"
	User time (seconds): 10.00
	System time (seconds): 0.50
	Elapsed (wall clock) time (h:mm:ss or m:ss): 0:30.00
	Maximum resident set size (kbytes): 524288
"""


@pytest.fixture(scope="module")
def result_rows():
    spec = importlib.util.spec_from_file_location(
        "result_rows", ROOT / "benchmarks" / "result_rows.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make(workdir, variant, epochs=2, ended=True, **changes):
    """Writes the workdir of a search; its folder gets the table."""
    (workdir.parent / "nasbench201").mkdir(exist_ok=True)
    (workdir.parent / "nasbench201" / "nasbench201.csv").write_text(TABLE)
    config = nasbench201.get_config(variant)
    config.data.dir = str(workdir.parent / "images")
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    described = {"config": to_dict(from_config_dict(config)), "versions": {}, "devices": ["cpu"]}
    write_json(workdir / "config.json", described)
    for epoch in range(1, epochs + 1):
        line = {"epoch": epoch, "genotype": to_cells(parse(CELL))}
        append_history(workdir / "search/history.jsonl", line)
    if ended:
        compared = {"images": 256, "accuracy": 0.61234, "random": [0.5, 0.7]}
        origin = {"search_seconds": 1320.4, "compared": compared}
        save(workdir / "search/genotype.json", parse(CELL), origin)
    return workdir


@pytest.mark.parametrize("method", nasbench201.METHODS)
def test_a_method_is_recognised_by_its_fields(result_rows, method):
    # Would catch two methods that are taken for one another, and fields that change nothing.
    config = nasbench201.get_config(f"cpu,{method}")
    config.seed, config.data.dir, config.search.compared_cells = 3, "elsewhere", 7
    searched = method != "random_search"
    settings = "search.compared_cells=7" if searched else ""
    assert result_rows.method(from_config_dict(config), searched) == (method, settings)


def test_settings_are_the_fields_that_differ_from_the_recipe(result_rows):
    # Would catch a tuned run that is published as the recipe's.
    config = nasbench201.get_config("cpu,plain")
    config.arch.lr, config.search.epochs, config.search.warmup_epochs = 6e-3, (12,), (8,)
    settings = "arch.lr=0.006 search.epochs=(12,) search.warmup_epochs=(8,)"
    assert result_rows.method(from_config_dict(config), True) == ("plain", settings)
    config.arch.regulariser = "kl"
    assert result_rows.method(from_config_dict(config), True) == ("kl", settings)
    full = from_config_dict(nasbench201.get_config())
    assert result_rows.method(full, True) == ("progressive", "size=full")


def test_a_run_that_has_ended(result_rows, tmp_path):
    # Would catch a column of another source, and times of which only the last command counts.
    workdir = make(tmp_path / "run", "cpu,kl", seed=12)
    (tmp_path / "run.time.txt").write_text(TIME)
    (line,) = result_rows.rows([workdir])
    accuracies = {"cifar10": 94.3633, "cifar100": 73.5133, "imagenet16_120": 46.3444}
    assert line == {
        **{"method": "kl", "settings": "", "seed": 12, "cell": CELL, **accuracies, "rank": 1},
        **{"seconds": 1320, "cpu_seconds": 113, "peak_memory_mb": 1024, "valid_accuracy": "61.23"},
        "status": "done",
    }


def test_a_run_that_was_stopped(result_rows, tmp_path):
    # Would catch a search that is published as if it had ended.
    workdir = make(tmp_path / "run", "cpu,plain", epochs=3, ended=False)
    (workdir / "time.txt").write_text(TIME)
    (line,) = result_rows.rows([workdir])
    assert line["status"] == "stopped after epoch 3" and line["cell"] == CELL
    assert line["valid_accuracy"] == "" and line["seconds"] == 3723 + 30


def test_a_random_search_is_one_run(result_rows, tmp_path):
    # Would catch twenty lines, or the accuracy of another cell.
    workdir = make(tmp_path / "run", "cpu,random_search", epochs=0, ended=False, seed=20)
    save(workdir / "best.json", parse(OTHER), {"valid_accuracy": 0.5})
    (line,) = result_rows.rows([workdir])
    assert (line["method"], line["settings"], line["seed"]) == ("random_search", "", 20)
    assert (line["cell"], line["rank"], line["valid_accuracy"]) == (OTHER, 2, "50.00")
    assert line["seconds"] == line["cpu_seconds"] == ""


def test_times_of_all_seeds_are_not_those_of_one(result_rows, tmp_path):
    # Would catch the CPU seconds of a whole command in the line of each of its seeds.
    parent = make(tmp_path / "seeds", "cpu,plain", epochs=0, ended=False, seeds=2)
    for seed in (0, 1):
        make(parent / f"seed{seed}", "cpu,plain", seed=seed, data__dir=str(tmp_path / "images"))
    (parent / "time.txt").write_text(TIME)
    lines = result_rows.rows([parent])
    assert [(line["seed"], line["cpu_seconds"]) for line in lines] == [(0, ""), (1, "")]
    for name in ("a", "b"):
        shutil.copytree(parent / "seed0", tmp_path / name)
    (tmp_path / "time.txt").write_text(TIME)
    with pytest.raises(UserError, match="beside several runs"):
        result_rows.rows([tmp_path / "a", tmp_path / "b"])


def test_the_command_prints_the_columns_of_the_published_file(result_rows, tmp_path, capsys):
    # Would catch lines that cannot be appended to docs/results.csv.
    result_rows.main([str(make(tmp_path / "run", "cpu,plain")), "--commit=abc1234"])
    header, line = csv.reader(capsys.readouterr().out.splitlines())
    with open(ROOT / "docs" / "results.csv", newline="") as file:
        assert header == next(csv.reader(file))
    assert line[header.index("commit")] == "abc1234"


def test_what_cannot_be_described_is_an_error(result_rows, tmp_path):
    # Would catch a line without a cell that looks like a result.
    workdir = make(tmp_path / "run", "cpu,plain", epochs=0, ended=False)
    with pytest.raises(UserError, match="neither a search nor a best.json"):
        result_rows.rows([workdir])
    make(workdir, "cpu,plain", data__dir="")
    with pytest.raises(UserError, match="give --table=CSV"):
        result_rows.rows([workdir])
    (workdir / "time.txt").write_text(json.dumps({}))
    with pytest.raises(UserError, match="no line 'User time"):
        result_rows.rows([workdir])
