"""Cells are placed among random ones by a regression on a made-up table."""

import csv
import importlib.util
import json

import pytest
from sklearn.linear_model import RidgeCV
from small_run import ROOT

from drnas_jax import spaces
from drnas_jax.genotype import save


@pytest.fixture(scope="module")
def surrogate_rank():
    file = ROOT / "benchmarks" / "surrogate_rank.py"
    spec = importlib.util.spec_from_file_location("surrogate_rank", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _column(cell):
    return " ".join(f"{name}~{source}" for node in cell for name, source in node)


def test_a_column_of_the_table_is_the_cell_that_it_was_written_from(surrogate_rank):
    # Would catch nodes that are split at the wrong pairs.
    genotype = spaces.random_genotype(surrogate_rank.SPACE, seed=0)
    assert surrogate_rank.parse(_column(genotype.cell("normal"))) == genotype.cell("normal")


def test_the_best_and_the_worst_cell_are_placed_at_the_ends(
    surrogate_rank, tmp_path, capsys, monkeypatch
):
    # Would catch features of the wrong cell type, and predictions in another order than the cells.
    # Without the trees, which are slow to fit.
    monkeypatch.setattr(surrogate_rank, "regressions", lambda: {"ridge": RidgeCV()})
    random = [spaces.random_genotype(surrogate_rank.SPACE, seed) for seed in range(100)]
    table = tmp_path / "cells.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["normal", "reduce", "val_accuracy"])
        for genotype in random:  # what is best in the normal cell is worst in the other one
            normal, reduce = (_column(genotype.cell(name)) for name in ("normal", "reduce"))
            accuracy = 90 + normal.count("sep_conv_3x3") - 0.5 * reduce.count("sep_conv_3x3")
            writer.writerow([normal, reduce, accuracy])
    one_operation = spaces.uniform_genotypes(surrogate_rank.SPACE)
    names = {genotype.cell("normal")[0][0][0]: genotype for genotype in one_operation}
    good, bad = names["sep_conv_3x3"], names["skip_connect"]
    for name, normal, reduce in (("good", good, bad), ("bad", bad, good)):
        cells = (("normal", normal.cell("normal")), ("reduce", reduce.cell("reduce")))
        save(tmp_path / name, type(good)("darts", cells), {})
    surrogate_rank.main(str(table), [str(tmp_path / "good"), str(tmp_path / "bad")])
    *fits, high, low = map(json.loads, capsys.readouterr().out.splitlines())
    assert max(each["spearman"] for each in fits) > 0.95
    assert high["share_lower"] == 1.0
    assert low["share_lower"] == 0.0
