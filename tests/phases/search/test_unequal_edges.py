"""Pruning if the edges have different numbers of operations, or alpha is a tree."""

from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from single_steps import assert_equal

from drnas_jax.phases.search.stages import (
    columns_to_keep,
    keep_columns,
    resized_spec,
)
from drnas_jax.spaces import Cell, Edge, SupernetSpec

UNEQUAL = SupernetSpec(
    (("cell", Cell((Edge(1, 0, ("a", "b", "c")), Edge(2, 0, ("d",)), Edge(2, 1, ("e", "f"))))),),
    *(4, 1, 2, (8, 8, 3)),
)


def shapes_of(tree):
    return jax.tree.map(lambda leaf: (np.shape(leaf), np.result_type(leaf)), tree)


@pytest.mark.parametrize(
    ("count", "expected"), [(3, ["abc", "d", "ef"]), (2, ["ac", "d", "ef"]), (1, ["c", "d", "f"])]
)
def test_an_edge_with_few_operations_keeps_what_it_has(count, expected):
    # Would catch a column beyond the end of an edge's list: those hold the largest scores here.
    scores = np.array([[2.0, 1.0, 3.0], [1.0, 9.0, 9.0], [1.0, 2.0, 9.0]])
    columns = columns_to_keep({"cell": scores}, UNEQUAL, count)
    spec = resized_spec(UNEQUAL, columns, 1)
    assert ["".join(edge.primitives) for edge in spec.cell("cell").edges] == expected
    names = np.array([list("abc"), list("d??"), list("ef?")])
    after = keep_columns(names, UNEQUAL.cell("cell"), columns["cell"])
    assert after.shape == spec.cell("cell").shape
    for row, edge in zip(after, spec.cell("cell").edges, strict=True):
        assert tuple(row[: len(edge.primitives)]) == edge.primitives


def test_only_leaves_of_edges_and_operations_lose_columns():
    # Would catch a weight of edges, [e], that is pruned by the columns of operations.
    rng, cell = np.random.default_rng(0), UNEQUAL.cell("cell")
    alpha = {"rows": rng.normal(size=(3, 3)), "edges": rng.normal(size=3), "scale": np.float32(2)}
    columns = [np.array([0, 2]), np.array([0]), np.array([0, 1])]
    after = keep_columns(alpha, cell, columns)
    np.testing.assert_array_equal(after["rows"][0], alpha["rows"][0, [0, 2]])
    np.testing.assert_array_equal(after["rows"][2], alpha["rows"][2, [0, 1]])
    assert after["rows"].shape == (3, 2) and after["rows"][1, 0] == alpha["rows"][1, 0]
    assert_equal((after["edges"], after["scale"]), (alpha["edges"], alpha["scale"]))


EDGE_WEIGHTS = """
import jax, jax.numpy as jnp
from drnas_jax.distributions.base import Distribution, softmax

class EdgeWeights(Distribution):
    def init(self, key, cell):
        return {"rows": super().init(key, cell), "edges": jnp.zeros(len(cell.edges))}

    def mean(self, alpha, cell):
        return softmax(alpha["rows"], cell) * jax.nn.sigmoid(alpha["edges"])[:, None]

    def sample(self, alpha, cell, key, progress, role):
        return self.mean(alpha, cell)

create = EdgeWeights
"""


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_whole_state_of_a_users_space_and_distribution_advances(tiny, tmp_path, optimizer):
    # Would catch moments that keep the shapes, or the numbers, of pruned operations.
    (tmp_path / "edge_weights.py").write_text(EDGE_WEIGHTS)
    experiment = tiny(
        space=str(Path(__file__).parents[2] / "uneven_space.py"),
        arch__name=str(tmp_path / "edge_weights.py"),
        search__optimizer=optimizer,
        search__operations=(3, 1),
        search__partial_channels=(2, 1),
    )
    spec, rng = experiment.first_spec(), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: experiment.init(spec, 0))
    assert shapes.variables == {}  # there is no BatchNorm
    state = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)
    rows = np.array([[0, 0, 9], [0, 9, 9], [5, 0, 9]], np.float32)
    state = state.replace(alpha={"uneven_block": {**state.alpha["uneven_block"], "rows": rows}})
    new, after = experiment.advance(spec, state, 1)
    names = [edge.primitives for edge in new.cell("uneven_block").edges]
    assert names == [("times_2",), ("times_1",), ("times_2",)]
    assert shapes_of(after) == shapes_of(jax.eval_shape(lambda: experiment.init(new, 0)))
    np.testing.assert_array_equal(after.alpha["uneven_block"]["rows"], [[9], [0], [5]])
    edges = (s.alpha["uneven_block"]["edges"] for s in (after, state))
    np.testing.assert_array_equal(*edges)

    def trees(state):  # the weights, and what the optimiser keeps of each
        found = [state.params]
        optax.tree_utils.tree_map_params(
            experiment.optimisers[0], found.append, state.weight_opt, is_leaf=lambda _: True
        )
        return found

    assert len(trees(after)) == (3 if optimizer == "adamw" else 2)
    for one, other in zip(trees(after), trees(state), strict=True):
        ours, theirs = (tree["mixed_0"]["times_2"]["Dense_0"]["kernel"] for tree in (one, other))
        assert (ours.shape, theirs.shape) == ((8, 16), (4, 8))
        np.testing.assert_array_equal(ours[:4, :8], theirs)
