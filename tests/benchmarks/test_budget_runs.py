"""How a network is judged among those of the table that fit."""

import importlib.util
import itertools
import json
import math

import numpy as np
import pytest
from small_run import ROOT

from drnas_jax.tables.nasbench_macro import load


@pytest.fixture(scope="module")
def budget_runs():
    file = ROOT / "benchmarks" / "budget_runs.py"
    spec = importlib.util.spec_from_file_location("budget_runs", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_expected_best_is_the_mean_over_all_draws(budget_runs):
    # Would catch draws without replacement, or a sum over values that are not sorted.
    values = np.array([3.0, 1.0, 7.0, 2.0])
    for n in (1, 2, 3):
        mean = np.mean([max(draw) for draw in itertools.product(values, repeat=n)])
        assert budget_runs.expected_best(values, n) == pytest.approx(mean)
        assert budget_runs.lookups(values, mean) == pytest.approx(n)
    assert budget_runs.lookups(values, 2.0) < 1  # below the mean
    assert budget_runs.lookups(values, 7.0) == math.inf


def test_only_networks_that_fit_are_compared(budget_runs, shared):
    # Would catch a best network that is above the target, and equally large networks in any order.
    table = load(shared / "nasbench_macro" / "nasbench_macro_cifar10.csv")
    found = budget_runs.judge(table, "22212220", 90e6)
    assert found["accuracy"] == found["best_accuracy"] == pytest.approx(93.13, abs=0.01)
    assert found["gap"] == 0 and found["lookups"] == math.inf and found["macs"] == 85_164_544
    all_fit = budget_runs.judge(table, "22222222", 200e6)
    assert all_fit["networks"] == 6561 and all_fit["largest"] == "22222222"
    assert all_fit["best_accuracy"] == found["accuracy"]
    small = budget_runs.judge(table, "00000000", 20e6)
    assert small["networks"] == 30
    assert small["best_accuracy"] == pytest.approx(81.37, abs=0.01)


def test_one_search_without_a_cost_in_its_loss_answers_all_targets(budget_runs, shared, tmp_path):
    # Would catch a network above the target, and a search whose loss depended on its target.
    table = load(shared / "nasbench_macro" / "nasbench_macro_cifar10.csv")
    layers = [[1, 2, 3]] * 4 + [[3, 2, 1]] * 4
    (tmp_path / "search").mkdir()
    history = tmp_path / "search" / "history.jsonl"
    history.write_text(json.dumps({"concentration": {"layers": layers}}) + "\n")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"config": {"cost": {"weight": 0.0}}}))
    assert budget_runs.derive(table, tmp_path, 200e6) == "22220000"
    code = budget_runs.derive(table, tmp_path, 40e6)
    assert table.macs[table.rows[code]] <= 40e6 and code != "22220000"
    config.write_text(json.dumps({"config": {"cost": {"weight": 0.5}}}))
    with pytest.raises(SystemExit, match="each target needs its own search"):
        budget_runs.derive(table, tmp_path, 40e6)
