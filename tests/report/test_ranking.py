"""Kendall's tau of the cells that a search has ranked."""

import pytest

from drnas_jax.report.history import Epoch
from drnas_jax.report.ranking import agreement
from drnas_jax.spaces import nasbench201 as space

CELLS = [space.parse(f"|{a}~0|+|none~0|none~1|+|none~0|none~1|none~2|") for a in space.PRIMITIVES]


def line(epoch, accuracies):
    return Epoch(epoch, ranked=tuple(zip(CELLS, accuracies, strict=True)))


def rank(cell):
    return 10.0 * CELLS.index(cell)


def test_orders_are_compared():
    # Would catch a sign error, and an undefined tau (epoch 4) that is reported as a number.
    history = [
        line(1, [0.1, 0.2, 0.3, 0.4, 0.5]),
        line(2, [0.5, 0.4, 0.3, 0.2, 0.1]),
        line(3, [0.1, 0.2, 0.3, 0.5, 0.4]),
        line(4, [0.1] * 5),
        Epoch(5),
    ]
    # In epoch 3 one of ten pairs is discordant: (9 - 1) / 10.
    assert agreement(history, rank) == pytest.approx({1: 1, 2: -1, 3: 0.8})


def test_cells_of_unknown_accuracy_do_not_count():
    # Would catch None as an accuracy, and a tau of a single cell.
    history = [line(1, [0.1, 0.9, 0.8, 0.7, 0.6])]
    assert agreement(history, lambda cell: rank(cell) if cell in CELLS[1:] else None) == {1: -1}
    assert agreement(history, lambda cell: rank(cell) if cell in CELLS[1:2] else None) == {}
