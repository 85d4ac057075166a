"""Penalties on the architecture parameters: what all must do, and each by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnas_jax import components, distributions
from drnas_jax.config import from_config_dict
from drnas_jax.configs import nasbench201
from drnas_jax.errors import UserError
from drnas_jax.penalties import beta_decay
from drnas_jax.spaces.base import Cell, Edge


def create(name, options=None):
    return components.create("penalty", name, options, field="arch.regulariser")


def cell(*lengths):
    """Returns a cell whose edges have these numbers of operations."""
    names = tuple("abcdefgh")
    return Cell(tuple(Edge(i + 1, i, names[:length]) for i, length in enumerate(lengths)))


# For one run: optimisation would take longer than it saves.
FAST_COMPILE = {"xla_backend_optimization_level": 0}
CELLS = {"normal": cell(3, 1, 5, 2), "reduce": cell(4, 4)}


@pytest.mark.parametrize("distribution", components.names("distribution"))
@pytest.mark.parametrize("name", components.names("penalty"))
def test_every_penalty_has_a_finite_gradient_or_refuses_the_distribution(name, distribution):
    # Would catch a penalty that breaks on short edges, or fails only when it is first used.
    distribution = distributions.create(distribution)
    alpha = {
        cell_type: jax.tree.map(lambda leaf: 30e3 * leaf, distribution.init(jax.random.key(0), c))
        for cell_type, c in CELLS.items()
    }

    def penalty(alpha):
        return create(name)(alpha, CELLS, distribution, jnp.float32(0.5))

    try:
        value, gradient = jax.jit(jax.value_and_grad(penalty), compiler_options=FAST_COMPILE)(alpha)
    except UserError as error:
        assert f"'{name}' needs" in str(error) and type(distribution).__name__ in str(error)
        return
    assert value.shape == () and value.dtype == jnp.float32 and value > 0
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_l2_pulls_every_parameter_by_its_own_value():
    # Would catch a mean in place of the sum, or leaves of a pytree that are left out.
    alpha = {"cell": {"operations": jnp.array([[1.0, -2.0]]), "edges": jnp.array([3.0])}}
    arguments = {"cell": cell(2)}, distributions.create("softmax"), jnp.float32(0)
    value, gradient = jax.value_and_grad(create("l2"))(alpha, *arguments)
    assert value == 7  # (1 + 4 + 9) / 2
    jax.tree.map(np.testing.assert_array_equal, gradient, alpha)


def test_kl_is_summed_over_edges_and_cell_types():
    # Would catch a mean over edges, or a cell type that is left out.
    alpha = {"normal": jnp.array([[1.0, 0.0], [0.0, 1.0]]), "reduce": jnp.array([[0.0, 1.0]])}
    cells = {"normal": cell(2, 2), "reduce": cell(2)}
    value = create("kl")(alpha, cells, distributions.create("dirichlet"), jnp.float32(0))
    # The density of beta = (2, 1) is 2x on [0, 1]: the integral of 2x log 2x is log 2 - 1/2.
    assert value == pytest.approx(3 * (math.log(2) - 0.5), rel=1e-5)
    flat = jax.tree.map(jnp.zeros_like, alpha)
    assert create("kl")(flat, cells, distributions.create("dirichlet"), jnp.float32(0)) == 0


# beta-decay


RANDOM = {
    cell_type: np.random.default_rng(0).normal(size=c.shape).astype(np.float32)
    for cell_type, c in CELLS.items()
}


def beta_decay_of(alpha, progress, maximum=50.0):
    penalty = create("beta_decay", beta_decay.Options(maximum))
    return penalty(alpha, CELLS, distributions.create("softmax"), jnp.float32(progress))


def test_beta_decay_is_the_mean_over_edges_of_the_logarithm_of_the_sum_of_exponentials():
    # Would catch a mean over cell types, padding in the sum, or a weight that is not 50 at the end.
    rows = [
        math.log(sum(math.exp(value) for value in row[: len(edge.primitives)]))
        for cell_type, c in CELLS.items()
        for row, edge in zip(RANDOM[cell_type], c.edges, strict=True)
    ]
    strength = from_config_dict(nasbench201.get_config("cpu,beta_decay")).arch.strength
    for progress, weight in ((1.0, 50), (0.25, 12.5), (0.0, 0)):
        added = beta_decay_of(RANDOM, progress) - beta_decay_of(RANDOM, progress, maximum=0.0)
        expected = weight * sum(rows) / len(rows)
        # A difference of two float32 of 5e4.
        assert strength * added == pytest.approx(expected, rel=1e-5)


def test_at_the_start_only_the_decay_of_adam_is_left():
    # Would catch a weight that does not start at 0, or a decay that is missing.
    gradient = jax.grad(beta_decay_of)(RANDOM, 0.0)
    jax.tree.map(np.testing.assert_array_equal, gradient, RANDOM)


def test_the_gradient_of_beta_decay_is_that_of_finite_differences():
    # Would catch a gradient that does not flow through the maximum, or that reaches padding.
    gradient = jax.grad(beta_decay.beta_decay)(RANDOM, CELLS)
    for cell_type, c in CELLS.items():
        mask = np.ones(c.shape, bool) if c.mask is None else c.mask
        assert (np.asarray(gradient[cell_type])[~mask] == 0).all()
        for place in zip(*np.nonzero(mask), strict=True):
            ends = []
            for step in (0.1, -0.1):
                moved = {**RANDOM, cell_type: RANDOM[cell_type].copy()}
                moved[cell_type][place] += step
                ends.append(float(beta_decay.beta_decay(moved, CELLS)))
            # The third derivative is below 1 / 6 for one of six edges: an error below 3e-4.
            slope = (ends[0] - ends[1]) / 0.2
            assert gradient[cell_type][place] == pytest.approx(slope, abs=3e-4)
