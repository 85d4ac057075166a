"""What the terminal shows of a search."""

import pytest

from drnas_jax import spaces
from drnas_jax.phases.search.shown import explain_scores
from drnas_jax.spaces import SupernetSpec


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nasbench201", "1<-0 is the edge from node 0 to node 1 (node 0 is the cell's input)"),
        ("darts", "2<-0 is the edge from node 0 to node 2 (nodes 0 to 1 are the cell's inputs)"),
    ],
)
def test_the_names_of_edges_are_explained_by_one_of_the_space(name, words):
    # Would catch an arrow that is read the wrong way, and an input that is taken for a node.
    cells = spaces.create(name).cells
    spec = SupernetSpec(tuple(cells.items()), 4, 1, 10, (8, 8, 3))
    assert words in explain_scores(spec)
