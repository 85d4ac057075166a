"""Cells drawn, and cells as mixing weights."""

import numpy as np
import pytest

from drnas_jax import spaces
from drnas_jax.distributions import dirichlet
from drnas_jax.distributions.base import draw_by_mean
from drnas_jax.errors import UserError
from drnas_jax.phases.search.cells import draw_cell, one_hot
from drnas_jax.spaces import all_operations


def flat(operations):
    return {name: np.ones((len(kept), len(kept[0]))) for name, kept in operations.items()}


@pytest.fixture(params=spaces.names())
def space(request):
    return spaces.find(request.param)


@pytest.mark.parametrize("draw_edge", [dirichlet.draw, draw_by_mean])
def test_a_cell_drawn_is_its_mixing_weights(space, draw_edge):
    """Deriving from a cell's mixing weights gives the cell."""
    operations, rng = all_operations(space), np.random.default_rng(0)
    drawn = [draw_cell(space, operations, flat(operations), draw_edge, rng) for _ in range(20)]
    assert len(set(drawn)) > 15
    for cell in drawn:
        mix = one_hot(space, operations, cell)
        assert space.derive(mix, operations) == cell
        for kind, rows in mix.items():
            assert rows.dtype == np.float32
            assert rows.shape == (len(space.EDGES[kind]), len(space.PRIMITIVES))
            assert rows.sum() == sum(len(node) for node in cell.cell(kind))
            assert set(np.unique(rows)) == {0, 1}


def test_draws_follow_the_concentration(space):
    operations, rng = all_operations(space), np.random.default_rng(0)
    third = 1e6 * (np.arange(len(space.PRIMITIVES)) == 2)
    strong = {kind: rows + third for kind, rows in flat(operations).items()}
    cell = draw_cell(space, operations, strong, dirichlet.draw, rng)
    names = {name for kind, _ in cell.cells for node in cell.cell(kind) for name, _ in node}
    assert names == {space.PRIMITIVES[2]}


@pytest.mark.parametrize("draw_edge", [dirichlet.draw, draw_by_mean])
def test_a_node_takes_the_edges_that_are_surest(draw_edge):
    space = spaces.find("darts")
    operations, rng = all_operations(space), np.random.default_rng(0)
    strong = flat(operations)
    sure = [space.EDGES["normal"].index(name) for name in ("5<-1", "5<-3")]
    strong["normal"][sure, 4] = 1e6
    for _ in range(20):
        node = draw_cell(space, operations, strong, draw_edge, rng).cell("normal")[3]
        assert node == ((space.PRIMITIVES[4], 1), (space.PRIMITIVES[4], 3))


def test_a_pruned_operation_is_no_cell_of_the_supernet(space):
    operations = all_operations(space)
    cell = draw_cell(space, operations, flat(operations), draw_by_mean, np.random.default_rng(0))
    nodes = cell.cells[0][1]
    gone = nodes[0][0][0]
    left = tuple(name for name in space.PRIMITIVES if name != gone)
    pruned = {name: (left,) * len(kept) for name, kept in operations.items()}
    with pytest.raises(UserError, match=f"no operation '{gone}' on the edge"):
        one_hot(space, pruned, cell)
