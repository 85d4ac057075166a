"""Reading the lines of a history."""

import json

import numpy as np
import pytest

from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype
from drnas_jax.report.history import Edges, Epoch, read_epochs

EDGES = {"a_1": Edges(("1<-0", "2<-1"), (("skip", "conv"), ("pool",)))}
CELLS = {"a_1": [[["skip", 0]], [["pool", 1]]]}
GENOTYPE = Genotype("mine", (("a_1", ((("skip", 0),), (("pool", 1),))),))


def read(tmp_path, *lines):
    file = tmp_path / "history.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_epochs(file, "mine", EDGES)


def test_lines_may_lack_fields(tmp_path):
    # Would catch a report that needs every line to look like the first.
    ranked = [{"cells": CELLS, "accuracy": 0.5}]
    full = {
        "epoch": 2, "stage": 2, "train_accuracy": 1, "valid_accuracy": 0.5, "entropy": None,
        "hessian": 3.5, "genotype": CELLS, "ranked": ranked, "another": "field",
    }  # fmt: skip
    assert read(tmp_path, {"epoch": 1}, full) == [
        Epoch(1),
        Epoch(
            epoch=2,
            stage=2,
            train_accuracy=1.0,
            valid_accuracy=0.5,
            hessian=3.5,
            genotype=GENOTYPE,
            ranked=((GENOTYPE, 0.5),),
        ),
    ]
    assert read_epochs(tmp_path / "nowhere.jsonl", "mine", EDGES) == []


@pytest.mark.parametrize("rows", [[[1, None], [0]], [[1, None], [0, None]]])
def test_rows_may_differ_in_length_or_be_filled_up(tmp_path, rows):
    # Would catch a score of 0, which underflow can leave, that makes a mean of 0 / 0.
    (line,) = read(tmp_path, {"epoch": 1, "concentration": {"a_1": rows}})
    scores = line.scores["a_1"]
    np.testing.assert_array_equal(np.isnan(scores), [[False, True], [False, True]])
    assert scores[0, 0] == 1 and 0 < scores[1, 0] < 1e-20


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epoch", -1),
        ("epoch", True),
        ("epoch", 10**30),
        ("stage", "one"),
        ("train_accuracy", "0.5"),
        ("valid_accuracy", 10**400),
        ("hessian", float("nan")),
        ("genotype", None),
        ("genotype", {"a_1": 3}),
        ("ranked", [3]),
        ("ranked", [{"cells": CELLS}]),
        ("concentration", []),
        ("concentration", {"b": [[1, 1], [1]]}),
        ("concentration", {"a_1": [[1, 1]]}),
        ("concentration", {"a_1": [[1, 1], 1]}),
        ("concentration", {"a_1": [[1, 1], [None]]}),
        ("concentration", {"a_1": [[1, -1], [1]]}),
        ("concentration", {"a_1": [[1], [1]]}),
        ("concentration", {"a_1": [[1, 1], [1, 1]]}),
    ],
)
def test_a_wrong_value_is_an_error_that_names_line_and_field(tmp_path, field, value):
    # Would catch a value that stops the report with a traceback, or is drawn.
    with pytest.raises(UserError) as caught:
        read(tmp_path, {"epoch": 1}, {"epoch": 2, field: value})
    assert f"{tmp_path / 'history.jsonl'}, line 2: {field}" in str(caught.value)
    assert "\n" not in str(caught.value)
