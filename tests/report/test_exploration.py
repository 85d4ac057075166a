"""Cells drawn from the scores of a history."""

import numpy as np
import pytest

from drnas_jax import distributions, spaces
from drnas_jax.distributions.base import draw_by_share
from drnas_jax.report.exploration import explore
from drnas_jax.report.history import Epoch
from drnas_jax.spaces import nasbench201

SPACE = spaces.create("nasbench201")
DRAW = distributions.create("dirichlet").draw
NAMES = nasbench201.PRIMITIVES
COUNT = len(nasbench201.CELL.edges)


def line(rows, epoch=1):
    return Epoch(epoch, scores={"cell": np.array(rows, np.float64)})


def convolutions(genotype):
    """A made-up accuracy: the percentage of 3x3 convolutions."""
    return 100 * SPACE.describe(genotype).count("nor_conv_3x3") / COUNT


def favouring(name, strength):
    return [[strength if other == name else 1.0 for other in NAMES]] * COUNT


@pytest.mark.parametrize("draw_edge", [DRAW, draw_by_share])
def test_the_range_narrows_around_the_mean(draw_edge):
    # Would catch draws that ignore the scores, and quartiles in the wrong order.
    history = [line(favouring("nor_conv_3x3", 10.0**i), epoch=i + 1) for i in range(5)]
    explored = explore(history, SPACE, draw_edge, convolutions, samples=200)
    assert [epoch.epoch for epoch in explored] == [1, 2, 3, 4, 5]
    assert all(epoch.mean == 100 for epoch in explored[1:])
    for epoch in explored:
        assert epoch.low <= epoch.quartiles[0] <= epoch.quartiles[1]
        assert epoch.quartiles[1] <= epoch.quartiles[2] <= epoch.high
    assert explored[0].high - explored[0].low >= 50 and explored[0].distinct > 150
    assert (explored[4].low, explored[4].high, explored[4].distinct) == (100, 100, 1)


def test_a_softmax_is_drawn_in_proportion_to_its_mean():
    # Would catch draws that favour the largest score over its share.
    values = []
    accuracy = lambda genotype: values.append(convolutions(genotype)) or values[-1]  # noqa: E731
    explore([line(favouring("nor_conv_3x3", 4.0))], SPACE, draw_by_share, accuracy, 4000)
    drawn = np.mean(values[1:])
    assert drawn == pytest.approx(50, abs=1.5)  # 4 of 8; 24,000 draws, standard deviation 0.3


def test_pruned_operations_are_not_drawn():
    # Would catch columns that shift when operations before them are pruned.
    seen = set()

    def accuracy(genotype):
        seen.update(name for node in genotype.cell("cell") for name, _ in node)
        return 0.0

    rows = [[np.nan, 1.0, np.nan, 1.0, np.nan]] * COUNT
    explore([line(rows)], SPACE, DRAW, accuracy)
    assert seen == {NAMES[1], NAMES[3]}


def test_the_draws_depend_on_seed_and_epoch_only():
    # Would catch a report that changes from one call to the next.
    history = [line(favouring("none", 2.0), epoch=i) for i in (1, 2)]
    once, again, other = (
        explore(history, SPACE, DRAW, convolutions, seed=seed) for seed in (0, 0, 1)
    )
    assert once == again != other
    assert once[0][2:] != once[1][2:]


def test_an_epoch_with_cells_of_unknown_accuracy_is_left_out():
    # Would catch a range over the few cells that a partial table holds, which says nothing.
    known = nasbench201.parse("|N~0|+|N~0|N~1|+|N~0|N~1|N~2|".replace("N", "nor_conv_3x3"))
    history = [line(favouring("nor_conv_3x3", strength), i) for i, strength in ((1, 1.0), (2, 1e9))]
    accuracy = lambda genotype: 93.0 if genotype == known else None  # noqa: E731
    (epoch,) = explore([*history, Epoch(3)], SPACE, DRAW, accuracy)
    assert (epoch.epoch, epoch.low, epoch.high) == (2, 93, 93)


def test_cells_of_several_types_are_drawn():
    # Would catch code that knows one cell type only.
    space = spaces.create("darts")
    scores = {name: np.ones((14, 7)) for name in ("normal", "reduce")}
    (epoch,) = explore([Epoch(1, scores=scores)], space, DRAW, lambda _: 1.0)
    assert epoch.distinct == 100
