"""The script that compares two commits: its commands, its order and its table."""

import importlib.util

import pytest
from absl import flags
from small_run import ROOT

from drnas_jax.flags import parse
from drnas_jax.phases.search.experiment import stage_at

FACTS = {"machine": "CPU", "cores": 2, "jax": "1.2", "date": "2026-01-02", "old": "abc", "new": "d"}


@pytest.fixture(scope="module")
def compare():
    spec = importlib.util.spec_from_file_location("compare", ROOT / "benchmarks" / "compare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config_of(compare, kind, name, monkeypatch, **extra):
    """Returns the config that a command of this tree gives."""
    monkeypatch.chdir(ROOT)
    command = compare.command(kind, compare.CASES[name], extra, version_0_1=False)
    config, _, _ = parse(command, _other_flags)
    return config


def _other_flags(values):
    for name in ("steps", "stage", "phases"):
        flags.DEFINE_string(name, "", "", flag_values=values)


def test_every_command_is_accepted(compare, monkeypatch):
    # Would catch a field that was renamed, or a value that the config refuses.
    for name, case in compare.CASES.items():
        for kind in case.kinds:
            config_of(compare, kind, name, monkeypatch)


def test_the_search_of_two_epochs_is_frozen_in_the_first(compare, monkeypatch):
    # Would catch flags that leave a second stage, other channels than the case's, or no warm-up.
    config = config_of(compare, "epochs", "a", monkeypatch)
    frozen = [stage_at(config.search.stages, epoch)[1] for epoch in range(2)]
    assert frozen == [True, False]
    assert config.search.epochs == (2,)
    assert (config.search.channels, config.search.cells) == (16, 8)
    assert config.search.partial_channels == (4,)


def test_version_0_1_has_other_names(compare):
    # Would catch names of this version given to the old commit, or the reverse.
    extra = {"space_options.stem": "imagenet"}
    old, new = (compare.command("bench", compare.CASES["r"], extra, v) for v in (True, False))
    assert old[:2] == ["drnas_jax.bench", "retrain"]
    assert new[:2] == ["drnas_jax.tools.bench", "retrain"]
    assert "--config.stem=imagenet" in old
    assert "--config.space_options.stem=imagenet" in new
    assert old[2:-1] == new[2:-1]


def test_order_of_the_measurements(compare):
    # Would catch one tree that always runs first, or a measurement that nobody asked for.
    options, extra = compare.parse(
        ["abc", "d", "--config.search.channels=4", "--metrics=step_s", "--repeats=3"]
    )
    trees = [tree for _, _, _, tree in compare.plan(options)]
    assert trees == ["old", "new", "new", "old", "old", "new"]
    assert {kind for _, kind, _, _ in compare.plan(options)} == {"bench"}
    assert extra == {"search.channels": "4"}


@pytest.mark.parametrize("word", ["e", "--metrics=steps"])
def test_an_unknown_name_is_refused(compare, capsys, word):
    # Would catch a misspelt name that silently measures nothing.
    with pytest.raises(SystemExit):
        compare.parse(["abc", word])
    assert "choose among" in capsys.readouterr().err


def test_table_has_the_median_ratio_of_pairs(compare):
    # Would catch the ratio of medians (here 1.5), swapped trees, or a pair of which one failed.
    old, new = (1.0, 2.0, 10.0), (0.5, 3.0, 6.0)
    lines = [{"case": "d", "pair": 3, "tree": "old", "step_s": 100.0}]
    lines += [{"case": "d", "pair": 3, "tree": "new", "error": "bench: exit code 1"}]
    for pair in range(3):
        lines.append({"case": "d", "pair": pair, "tree": "new", "step_s": new[pair]})
        lines.append({"case": "d", "pair": pair, "tree": "old", "step_s": old[pair]})
    head, *_, row = compare.table(FACTS | {"dirty": True}, lines).splitlines()
    assert head == "CPU, 2 cores, jax 1.2, 2026-01-02; old: abc, new: d with changes"
    assert row == "| d | step_s | 2 | 3 | 0.60 | 0.50, 1.50 | 3 |"


def test_a_process_that_fails_is_one_line(compare, tmp_path):
    # Would catch a traceback in place of the reason, or a comparison that ends there.
    (tmp_path / "broken.py").write_text("import sys; sys.exit('first\\nno such field')")
    with pytest.raises(compare.MeasurementError, match=r"^exit code 1: no such field$"):
        compare.measure(["broken"], tmp_path, epochs=0)


def test_epochs_are_timed_and_then_the_search_is_killed(compare, tmp_path):
    # Would catch waiting for the end of the search, or a time missing.
    (tmp_path / "search.py").write_text(
        "import sys, time, pathlib\n"
        "folder = pathlib.Path(sys.argv[1].split('=')[1], 'search')\n"
        "folder.mkdir(parents=True)\n"
        "for seconds in (0.1, 1000):\n"
        "    with open(folder / 'history.jsonl', 'a') as file: file.write('{}\\n')\n"
        "    time.sleep(seconds)\n"
    )
    first, second = compare.measure(["search"], tmp_path, epochs=2)
    assert 0 < first <= second
