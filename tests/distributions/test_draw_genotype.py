"""Genotypes drawn from a mixing distribution, and genotypes as mixing weights."""

import dataclasses

import numpy as np
import pytest

from drnas_jax import components, distributions, spaces
from drnas_jax.distributions.base import draw_by_share, draw_genotype
from drnas_jax.errors import UserError
from drnas_jax.spaces import Cell, Edge, Space, SupernetSpec
from drnas_jax.spaces.base import one_hot

DRAWS = [distributions.create("dirichlet").draw, draw_by_share]


class Uneven(Space):
    """A space whose edges have lists of unequal length, and whose second node keeps one edge."""

    name = "uneven"

    def __init__(self):
        edges = (Edge(1, 0, ("a", "b", "c")), Edge(2, 0, ("a", "b")), Edge(2, 1, ("b", "c")))
        self.cells = {"cell": Cell(edges, keep=1)}


def spec_of(space):
    return SupernetSpec(tuple(space.cells.items()), 8, 3, 10, (8, 8, 3))


def flat(spec):
    return {cell_type: np.ones(cell.shape) for cell_type, cell in spec.cells}


@pytest.fixture(params=[*components.names("space"), "uneven"])
def space(request):
    return Uneven() if request.param == "uneven" else spaces.create(request.param)


@pytest.mark.parametrize("draw", DRAWS)
def test_a_genotype_drawn_is_derived_from_its_mixing_weights(space, draw):
    # Would catch rows or columns that drawing, deriving and one_hot count in different orders.
    spec, rng = spec_of(space), np.random.default_rng(0)
    drawn = [draw_genotype(space, spec, flat(spec), draw, rng) for _ in range(20)]
    assert len(set(drawn)) > (5 if space.name == "uneven" else 15)
    for genotype in drawn:
        mix = one_hot(dict(spec.cells), genotype)
        assert space.derive(mix, spec) == genotype
        for cell_type, rows in mix.items():
            assert rows.dtype == np.float32
            assert rows.shape == spec.cell(cell_type).shape
            assert rows.sum() == sum(len(node) for node in genotype.cell(cell_type))
            assert set(np.unique(rows)) == {0, 1}


def test_draws_follow_the_scores(space):
    # Would catch a draw that ignores the scores: one operation has nearly all of them.
    spec, rng, strong = spec_of(space), np.random.default_rng(0), {}
    for cell_type, cell in spec.cells:
        strong[cell_type] = np.ones(cell.shape)
        for row, edge in enumerate(cell.edges):
            strong[cell_type][row, len(edge.primitives) - 1] = 1e6
    genotype = draw_genotype(space, spec, strong, DRAWS[0], rng)
    for cell_type, cell in spec.cells:
        last = {(edge.target, edge.source): edge.primitives[-1] for edge in cell.edges}
        for target, node in enumerate(genotype.cell(cell_type), start=cell.inputs):
            assert all(name == last[target, source] for name, source in node)


@pytest.mark.parametrize("draw", DRAWS)
def test_a_node_takes_the_edges_with_the_strongest_operations(draw):
    # Would catch edges that are ranked by the noise of the draw.
    space, rng = spaces.create("darts"), np.random.default_rng(0)
    spec = spec_of(space)
    cell, strong = spec.cell("normal"), flat(spec)
    sure = [[edge.name for edge in cell.edges].index(name) for name in ("5<-1", "5<-3")]
    strong["normal"][sure, 4] = 1e6
    name = cell.edges[0].primitives[4]
    for _ in range(20):
        node = draw_genotype(space, spec, strong, draw, rng).cell("normal")[3]
        assert node == ((name, 1), (name, 3))


def test_a_supernet_has_no_mixing_weights_for_a_pruned_operation(space):
    # Would catch a genotype that is judged by the weights of another operation.
    spec = spec_of(space)
    drawn = draw_genotype(space, spec, flat(spec), draw_by_share, np.random.default_rng(0))
    gone = drawn.cells[0][1][0][0][0]
    pruned = {
        cell_type: dataclasses.replace(
            cell,
            edges=tuple(
                dataclasses.replace(
                    edge, primitives=tuple(name for name in edge.primitives if name != gone)
                )
                for edge in cell.edges
            ),
        )
        for cell_type, cell in spec.cells
    }
    with pytest.raises(UserError, match=f"no operation '{gone}' on the edge"):
        one_hot(pruned, drawn)
