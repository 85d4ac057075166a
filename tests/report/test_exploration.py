"""Cells drawn from a history's distributions."""

import numpy as np
import pytest

from drnas_jax import spaces
from drnas_jax.distributions import dirichlet
from drnas_jax.distributions.base import draw_by_mean
from drnas_jax.report.exploration import explore

SPACE = spaces.find("nasbench201")
NAMES = SPACE.PRIMITIVES
EDGES = len(SPACE.EDGES["cell"])


def line(rows, epoch=1, stage=1):
    return {"stage": stage, "epoch": epoch, "concentration": {"cell": rows}}


def convolutions(genotype):
    """A made-up accuracy: the share of 3x3 convolutions."""
    return 100 * SPACE.describe(genotype).count("nor_conv_3x3") / EDGES


def favouring(name, strength):
    return [[strength if other == name else 1.0 for other in NAMES]] * EDGES


@pytest.mark.parametrize("draw_edge", [dirichlet.draw, draw_by_mean])
def test_the_range_narrows_around_the_mean(draw_edge):
    history = [line(favouring("nor_conv_3x3", 10.0**i), epoch=i + 1) for i in range(5)]
    found = explore(history, SPACE, draw_edge, convolutions, samples=200)
    assert [one.epoch for one in found] == [1, 2, 3, 4, 5]
    assert all(one.mean == 100 for one in found[1:])
    for one in found:
        assert one.low <= one.quartiles[0] <= one.quartiles[1] <= one.quartiles[2] <= one.high
    assert found[0].high - found[0].low >= 50 and found[0].cells > 150
    assert (found[4].low, found[4].high, found[4].cells) == (100, 100, 1)


def test_the_shares_of_a_softmax_are_its_mean():
    values = []
    accuracy = lambda genotype: values.append(convolutions(genotype)) or values[-1]  # noqa: E731
    explore([line(favouring("nor_conv_3x3", 4.0))], SPACE, draw_by_mean, accuracy, 4000)
    drawn = np.mean(values[:4000])
    assert drawn == pytest.approx(50, abs=1.5)  # 4 of 8; 24,000 draws, standard deviation 0.3


def test_what_is_pruned_is_not_drawn():
    rows = [[None, 1.0, None, 1.0, None]] * EDGES
    kept = {NAMES[1], NAMES[3]}
    seen = set()

    def accuracy(genotype):
        seen.update(name for node in genotype.cell("cell") for name, _ in node)
        return 0.0

    explore([line(rows)], SPACE, dirichlet.draw, accuracy)
    assert seen == kept


def test_the_same_seed_draws_the_same():
    history = [line(favouring("none", 2.0), epoch=i) for i in (1, 2)]
    once, again, other = (
        explore(history, SPACE, dirichlet.draw, convolutions, seed=seed) for seed in (0, 0, 1)
    )
    assert once == again != other
    assert once[0][2:] != once[1][2:]  # every epoch its own cells


def test_darts_cells_too():
    space = spaces.find("darts")
    rows = [[1.0] * len(space.PRIMITIVES)] * len(space.EDGES["normal"])
    history = [{"stage": 1, "epoch": 1, "concentration": {"normal": rows, "reduce": rows}}]
    found = explore(history, space, dirichlet.draw, lambda genotype: 1.0)
    assert found[0].cells == 100
