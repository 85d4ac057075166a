"""Kendall's tau of a history's measurements."""

import pytest

from drnas_jax import spaces
from drnas_jax.genotype import to_cells
from drnas_jax.report.ranking import agreement

SPACE = spaces.find("nasbench201")
CELLS = [SPACE.parse(f"|{a}~0|+|none~0|none~1|+|none~0|none~1|none~2|") for a in SPACE.PRIMITIVES]


def line(epoch, accuracies):
    ranked = [
        {"cells": to_cells(cell), "accuracy": value}
        for cell, value in zip(CELLS, accuracies, strict=True)
    ]
    return {"epoch": epoch, "ranked": ranked}


def test_orders_are_compared():
    # The last two are swapped in epoch 3: one of ten pairs is discordant, (9 - 1) / 10.
    history = [
        line(1, [0.1, 0.2, 0.3, 0.4, 0.5]),
        line(2, [0.5, 0.4, 0.3, 0.2, 0.1]),
        line(3, [0.1, 0.2, 0.3, 0.5, 0.4]),
        line(4, [0.1] * 5),
        {"epoch": 5},
    ]
    assert agreement(history, "nasbench201", lambda cell: 10.0 * CELLS.index(cell)) == [
        (1, pytest.approx(1)),
        (2, pytest.approx(-1)),
        (3, pytest.approx(0.8)),
    ]
