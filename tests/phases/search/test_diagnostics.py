"""Measurements of single cells and of the curvature, against the same written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_step import Small, small, start, structure_of  # noqa: F401 (small: a fixture)

from drnas_jax.distributions.base import draw_by_mean
from drnas_jax.phases.search.cells import draw_cell, one_hot
from drnas_jax.phases.search.diagnostics import Probe
from drnas_jax.training.losses import cross_entropy


def validation(problem, batches):
    """The first images of the validation split, as the supernet gets them."""
    read = list(problem.reader.evaluation(0))[:batches]
    numbers = np.concatenate([np.asarray(batch) for batch, _ in read])
    return problem.feed.plain(problem.reader.raw, numbers)


@pytest.mark.parametrize("devices, batches", [(1, 1), (2, 2)])
def test_curvature_is_the_largest_eigenvalue(small, devices, batches):  # noqa: F811
    problem = small(devices)
    state = start(problem)
    images, labels = validation(problem, batches)
    state_here = jax.tree.map(np.asarray, state)

    def loss(alpha):
        variables = {"params": state_here.params, "batch_stats": state_here.batch_stats}
        mix = {"cell": jax.nn.softmax(alpha.reshape(state_here.alpha["cell"].shape))}
        parts = []
        for at in range(0, len(images), 16 // devices):  # batch statistics of each device
            part = slice(at, at + 16 // devices)
            logits, _ = Small(problem.classes, None).apply(
                variables, images[part], mix, True, mutable=["batch_stats"]
            )
            parts.append(jnp.mean(cross_entropy(logits, labels[part])))
        return jnp.mean(jnp.stack(parts))

    expected = np.linalg.eigvalsh(jax.hessian(loss)(state_here.alpha["cell"].reshape(-1)))
    found = Probe(problem, structure_of(problem)).curvature(state, 0, batches)
    assert found == pytest.approx(expected[-1], rel=1e-3)
    assert abs(found) > 1e-3


def test_accuracies_are_those_of_the_cells_alone(small):  # noqa: F811
    problem = small()
    state, structure, rng = start(problem), structure_of(problem), np.random.default_rng(3)
    space, operations = problem.space, dict(structure.operations)
    flat = {"cell": np.ones_like(state.alpha["cell"])}
    cells = [draw_cell(space, operations, flat, draw_by_mean, rng) for _ in range(12)]
    images, labels = validation(problem, 2)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    expected = []
    for cell in cells:
        mix = one_hot(space, operations, cell)
        hits = []
        for part in (slice(0, 16), slice(16, 32)):  # batch statistics, so batch by batch
            logits, _ = Small(problem.classes, None).apply(
                variables, images[part], mix, True, mutable=["batch_stats"]
            )
            hits.append(np.mean(np.argmax(logits, -1) == labels[part]))
        expected.append(np.mean(hits))
    found = Probe(problem, structure).accuracies(state, cells, 0, 2)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(set(found)) > 1
