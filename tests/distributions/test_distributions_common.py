"""What every mixing distribution must do: the bundled ones, found by themselves, and the example.

Architecture parameters may be any pytree, so these tests make them from what `init` returns.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers import FIELDS, needs_tfp

from drnas_jax import components, distributions
from drnas_jax.distributions import dirichlet
from drnas_jax.spaces.base import Cell, Edge

EXAMPLE = Path(__file__).parents[2] / "examples" / "fixed_total.py"
NAMES = [*components.names("distribution"), str(EXAMPLE)]
ROLES = ("alpha", "weights")


def cell(*lengths):
    """Returns a cell whose edges have these numbers of operations."""
    names = tuple("abcdefgh")
    return Cell(tuple(Edge(i + 1, i, names[:length]) for i, length in enumerate(lengths)))


EQUAL, UNEQUAL = cell(*[4] * 6), cell(3, 1, 5, 2, 5)
CELLS = pytest.mark.parametrize("cell", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
# For a few runs: optimisation would take longer than it saves.
FAST_COMPILE = {"xla_backend_optimization_level": 0}


@pytest.fixture(
    params=[pytest.param(n, marks=needs_tfp if n == str(EXAMPLE) else ()) for n in NAMES],
    ids=components.short_name,
)
def distribution(request):
    return created(request.param)


@functools.cache
def created(name):
    if name == "dirichlet" and FIELDS:
        return distributions.create(name, dirichlet.Options(sampler="jax"))
    return distributions.create(name)


@functools.cache
def sampler(distribution, cell):
    """Returns (alpha, key, progress) -> samples for both roles, compiled once."""

    def samples(alpha, key, progress):
        return [distribution.sample(alpha, cell, key, progress, role) for role in ROLES]

    return jax.jit(samples, compiler_options=FAST_COMPILE)


def sample(distribution, cell, alpha, seed, progress=0.5):
    """Returns a sample for alpha's step."""
    return sampler(distribution, cell)(alpha, jax.random.key(seed), progress)[0]


def alpha_of(distribution, cell, scale):
    """Returns parameters from -scale to scale, in another order in each row of each leaf."""

    def fill(leaf):
        ramp = np.linspace(-scale, scale, leaf.size, dtype=np.float32).reshape(leaf.shape)
        return jnp.asarray(np.random.default_rng(0).permuted(ramp, axis=-1))

    return jax.tree.map(fill, distribution.init(jax.random.key(0), cell))


def test_parameters_start_near_zero(distribution):
    # Would catch an initialisation that prefers an operation, or whose shape is not the cell's.
    alpha = distribution.init(jax.random.key(0), UNEQUAL)
    again = distribution.init(jax.random.key(0), UNEQUAL)
    jax.tree.map(np.testing.assert_array_equal, alpha, again)
    for leaf in jax.tree.leaves(alpha):
        assert leaf.dtype == jnp.float32
        assert jnp.abs(leaf).max() < 0.01
    assert UNEQUAL.shape in [leaf.shape for leaf in jax.tree.leaves(alpha)]


@CELLS
def test_weights_share_each_row_and_are_zero_beyond_the_end_of_an_edge(distribution, cell):
    # Would catch a normalisation over the padded row, or weight that goes to no operation.
    mask = np.ones(cell.shape, bool) if cell.mask is None else cell.mask
    for scale in (1e-3, 5.0, 50.0):
        alpha = alpha_of(distribution, cell, scale)
        mean = distribution.mean(alpha, cell)
        first, last = (
            sampler(distribution, cell)(alpha, jax.random.key(1), progress)
            for progress in (0.0, 1.0)
        )
        for mix in (mean, *first, *last):
            assert mix.shape == cell.shape
            assert mix.dtype == jnp.float32
            assert (mix >= 0).all()
            assert (mix[~mask] == 0).all()  # exactly
            # A float32 softmax over 7 values is right to a few units of 6e-8.
            np.testing.assert_allclose(mix.sum(-1), mean.sum(-1), atol=1e-6)
        if len(jax.tree.leaves(alpha)) == 1:  # else other parameters may weigh the edges
            np.testing.assert_allclose(mean.sum(-1), 1, atol=1e-6)


@CELLS
def test_gradients_are_finite_and_reach_every_operation_but_no_padding(distribution, cell):
    # Would catch 0 * inf at the end of a short edge, which would spoil all parameters.
    mask = np.ones(cell.shape, bool) if cell.mask is None else cell.mask
    weights = np.random.default_rng(0).normal(size=cell.shape).astype(np.float32)

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    @functools.partial(jax.vmap, in_axes=(0, None))
    def gradient(key, alpha):
        def loss(alpha):
            mix = distribution.sample(alpha, cell, key, 0.5, "alpha")
            mix += distribution.mean(alpha, cell) + distribution.ranking(alpha, cell)
            return jnp.sum(weights * mix)

        return jax.grad(loss)(alpha)

    for scale in (1e-3, 5.0, 50.0):
        alpha = alpha_of(distribution, cell, scale)
        gradients = gradient(jax.random.split(jax.random.key(2), 50), alpha)
        for leaf in jax.tree.leaves(gradients):
            assert leaf.dtype == jnp.float32
            assert jnp.isfinite(leaf).all()
            if leaf.shape[1:] == cell.shape:
                assert (leaf[:, ~mask] == 0).all()
                if scale < 1:  # larger alphas may leave an operation without any weight
                    several = mask & (mask.sum(-1, keepdims=True) > 1)
                    assert (jnp.abs(leaf).max(0) > 1e-4)[several].all()


def test_samples_have_the_order_of_the_mean(distribution):
    # Would catch a sampler that reads other parameters than `mean` and `scores` do.
    alpha = alpha_of(distribution, UNEQUAL, 10.0)
    average = np.mean([sample(distribution, UNEQUAL, alpha, seed, 1.0) for seed in range(500)], 0)
    mean = distribution.mean(alpha, UNEQUAL)
    for row, edge in enumerate(UNEQUAL.edges):
        length = len(edge.primitives)
        expected = np.argsort(mean[row, :length])
        for values in (average, distribution.scores(alpha, UNEQUAL)):
            np.testing.assert_array_equal(np.argsort(values[row, :length]), expected)


def test_a_larger_parameter_has_a_larger_mean(distribution):
    # Would catch a sign error, by which pruning would remove the best operations.
    alpha = alpha_of(distribution, EQUAL, 2.0)
    (leaf,) = (leaf for leaf in jax.tree.leaves(alpha) if leaf.shape == EQUAL.shape)
    mean = distribution.mean(alpha, EQUAL)
    np.testing.assert_array_equal(np.argsort(mean), np.argsort(leaf))


def test_scores_are_positive_where_there_is_an_operation(distribution):
    # Would catch scores whose logarithm or share `draw_genotype` cannot take.
    scores = np.asarray(distribution.scores(alpha_of(distribution, UNEQUAL, 5.0), UNEQUAL))
    assert scores.dtype == np.float32
    assert (scores[UNEQUAL.mask] > 0).all()
    assert (scores[~UNEQUAL.mask] == 0).all()


def test_edges_are_drawn_independently_and_by_the_key(distribution):
    # Would catch one draw for all edges, or a key that is not used.
    alpha = jax.tree.map(jnp.zeros_like, alpha_of(distribution, EQUAL, 1.0))
    first, again, *others = (sample(distribution, EQUAL, alpha, seed) for seed in (5, 5, 6, 7))
    np.testing.assert_array_equal(first, again)
    if not np.allclose(first, distribution.mean(alpha, EQUAL), atol=1e-6):  # some draw nothing
        assert any((mix != first).any() for mix in others)
        assert len(np.unique(first, axis=0)) > 2


def test_half_precision_is_computed_in_float32(distribution):
    # Would catch arithmetic in bfloat16, which has no correct third digit.
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), alpha_of(distribution, UNEQUAL, 2.0))
    full = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), low)
    for method in (distribution.mean, distribution.scores, distribution.ranking):
        assert method(low, UNEQUAL).dtype == jnp.float32
        np.testing.assert_array_equal(method(low, UNEQUAL), method(full, UNEQUAL))
    drawn = sample(distribution, UNEQUAL, low, 8)
    assert drawn.dtype == jnp.float32
    np.testing.assert_array_equal(drawn, sample(distribution, UNEQUAL, full, 8))


def test_random_cells_are_drawn_by_the_scores(distribution):
    # Would catch a draw that always takes the strongest, or sometimes one of hardly any weight.
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(400):
        strengths = distribution.draw(np.array([1.0, 4.0, 1e-6, 2.0]), random)
        assert strengths.shape == (4,)
        assert np.all(np.isfinite(strengths)) and np.all(strengths >= 0)
        drawn.append(int(np.argmax(strengths)))
    counts = np.bincount(drawn, minlength=4)
    assert counts[1] > counts[3] > counts[0] > 0 == counts[2]
    assert distribution.draw(np.array([0.3]), random).shape == (1,)
