"""The Dirichlet, with both samplers, against its analytic moments and their derivatives."""

import functools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from samplers import needs_tfp
from scipy.special import digamma, gammaln, polygamma

from drnas_jax import distributions
from drnas_jax.distributions import dirichlet
from drnas_jax.errors import UserError
from drnas_jax.spaces.base import Cell, Edge

N = 20_000  # samples of every statistical test
# There are about 600 z-values in this file. One of them exceeds 4.5 for one seed in 250.
Z = 4.5
CONCENTRATIONS = {
    "start": np.ones(7),
    "mixed": np.array([0.1, 2.0, 0.5]),
    "large": np.full(5, 5.0),
    "pruned": np.array([3.0, 0.7]),
}
# The concentrations of a group are edges of one cell, so that the shorter ones are padded.
GROUPS = (("start",), ("mixed", "large", "pruned"))
# For a few runs: optimisation would take longer than it saves.
FAST_COMPILE = {"xla_backend_optimization_level": 0}
DIRICHLET = distributions.create("dirichlet")
SAMPLERS = pytest.mark.parametrize("sampler", [pytest.param("tfp", marks=needs_tfp), "jax"])


@functools.partial(jax.jit, static_argnums=1, compiler_options=FAST_COMPILE)
def kl_and_gradient(alpha, cell):
    return jax.value_and_grad(DIRICHLET.kl_from_flat)(alpha, cell)


def cell(*lengths):
    """Returns a cell whose edges have these numbers of operations."""
    names = tuple("abcdefgh")
    return Cell(tuple(Edge(1, 0, names[:length]) for length in lengths))


def z_values(samples, expected):
    """Returns (mean - expected) / standard error over the leading axis of the samples."""
    error = samples.std(axis=0) / math.sqrt(len(samples))
    return (samples.mean(axis=0) - expected) / error


@functools.cache
def drawn(group, sampler):
    """Samples [n, N, o] of the n concentrations of a group, and their derivatives [n, N, o, o]."""
    lengths = [len(CONCENTRATIONS[name]) for name in group]
    longest, edges = max(lengths), cell(*np.repeat(lengths, N))
    padded = [np.pad(row, (0, longest - len(row))) for row in map(CONCENTRATIONS.get, group)]
    rows = jnp.asarray(np.repeat(padded, N, axis=0), jnp.float32)

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def compute(rows):
        samples, pull = jax.vjp(
            lambda rows: dirichlet.sample_dirichlet(rows, edges, jax.random.key(0), sampler), rows
        )
        units = jnp.eye(longest)[:, None] * jnp.ones((len(rows), 1))
        return samples, jax.vmap(pull, out_axes=1)(units)[0]

    return [np.asarray(x, np.float64).reshape(len(group), N, *x.shape[1:]) for x in compute(rows)]


@pytest.fixture(params=CONCENTRATIONS)
def name(request):
    return request.param


@pytest.fixture(params=[pytest.param("tfp", marks=needs_tfp), "jax"])
def samples_and_jacobians(name, request):
    """The concentration, N samples [N, o] of it, and d sample_i / d concentration_j [N, o, o]."""
    return (CONCENTRATIONS[name], *statistics(name, request.param))


def statistics(name, sampler):
    """Returns the samples [N, o] of a concentration, and their derivatives [N, o, o]."""
    (group,) = (group for group in GROUPS if name in group)
    samples, jacobians = (values[group.index(name)] for values in drawn(group, sampler))
    length = len(CONCENTRATIONS[name])
    assert not samples[:, length:].any() and not jacobians[:, :length, length:].any()
    return samples[:, :length], jacobians[:, :length, :length]


def test_pathwise_gradient_of_the_mean(samples_and_jacobians):
    # Would catch a gradient that leaves out how the normalisation depends on the concentration.
    concentration, _, jacobians = samples_and_jacobians
    total = concentration.sum()
    expected = (np.eye(len(concentration)) - concentration[:, None] / total) / total
    assert np.abs(z_values(jacobians, expected)).max() < Z
    # The bound means something only if the error is far below the values themselves.
    errors = jacobians.std(axis=0) / math.sqrt(N)
    assert (errors.max(axis=1) < 0.04 * np.abs(expected).max(axis=1)).all()


def test_pathwise_gradient_of_the_second_moment(samples_and_jacobians):
    # E[x^2] = c (c + 1) / (s (s + 1)) depends on the spread of the samples, the mean does not.
    concentration, samples, jacobians = samples_and_jacobians
    c, total = concentration, concentration.sum()
    scale = total * (total + 1)
    expected = np.diag((2 * c + 1) / scale) - (c * (c + 1))[:, None] * (2 * total + 1) / scale**2
    assert np.abs(z_values(2 * samples[:, :, None] * jacobians, expected)).max() < Z


def test_sample_moments(samples_and_jacobians):
    # Would catch samples of another concentration, for example without Marsaglia's correction.
    concentration, samples, _ = samples_and_jacobians
    total = concentration.sum()
    mean = concentration / total
    variance = mean * (1 - mean) / (total + 1)
    assert np.abs(z_values(samples, mean)).max() < Z
    assert np.abs(z_values((samples - mean) ** 2, variance)).max() < Z


def test_marginals_are_beta(samples_and_jacobians):
    # Would catch samples of the right mean and variance, but of another shape.
    concentration, samples, _ = samples_and_jacobians
    for c, column in zip(concentration, samples.T, strict=True):
        # One of the 34 p-values of Kolmogorov-Smirnov is below 1e-4 for one seed in 300.
        marginal = scipy.stats.beta(c, concentration.sum() - c)
        assert scipy.stats.kstest(column, marginal.cdf).pvalue > 1e-4


@needs_tfp
def test_both_samplers_have_one_distribution_and_one_gradient_of_an_expectation(name):
    # Would catch a sampler whose gradient fits the wrong expectation: here E[(w . x)^2] of weights
    # without symmetry, which no test above compares.
    weights = np.linspace(-1, 2, len(CONCENTRATIONS[name])) ** 3
    (one, slopes_of_one), (other, slopes_of_other) = (statistics(name, s) for s in ("tfp", "jax"))
    for column, other_column in zip(one.T, other.T, strict=True):
        # One of the 17 p-values is below 1e-4 for one seed in 600.
        assert scipy.stats.ks_2samp(column, other_column).pvalue > 1e-4
    gradients = [
        2 * (x @ weights)[:, None] * np.einsum("nij,i->nj", slopes, weights)
        for x, slopes in ((one, slopes_of_one), (other, slopes_of_other))
    ]
    difference = gradients[0].mean(0) - gradients[1].mean(0)
    errors = np.sqrt(sum(g.var(0) for g in gradients) / N)
    assert (np.abs(difference) < Z * errors).all()
    # The bound means something only if the error is far below the gradient itself.
    assert errors.max() < 0.05 * np.abs(gradients[0].mean(0)).max()


@functools.partial(jax.jit, static_argnums=1, compiler_options=FAST_COMPILE)
def samples_and_gradient(rows, sampler):
    edges = cell(*[rows.shape[1]] * len(rows))

    def loss(rows):
        samples = dirichlet.sample_dirichlet(rows, edges, jax.random.key(3), sampler)
        return jnp.sum(samples @ jnp.array([1.0, -1.0, 0.5, 0.2])), samples

    gradient, samples = jax.grad(loss, has_aux=True)(rows)
    return samples, gradient


@SAMPLERS
@pytest.mark.parametrize("smallest", [1.0, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-8])
def test_small_concentrations_are_finite(smallest, sampler):
    # Would catch gamma samples that underflow to 0, after which a row is 0 / 0.
    one_large = jnp.array([smallest, smallest, smallest, 1.0])
    rows = jnp.concatenate([jnp.tile(one_large, (5000, 1)), jnp.full((5000, 4), smallest)])
    samples, gradient = samples_and_gradient(rows, sampler)
    assert jnp.isfinite(samples).all()
    assert jnp.isfinite(gradient).all()
    np.testing.assert_allclose(samples.sum(axis=-1), 1.0, atol=1e-6)
    # If all four are equally small, samples are nearly one-hot, and each of the four is drawn.
    if smallest <= 0.01:
        assert np.bincount(samples[5000:].argmax(axis=-1), minlength=4).min() > 1000


def test_concentration():
    # Would catch a concentration of 0, or one that loses its digits below alpha -17.
    alpha = jnp.array([[-1000.0, -30.0, -18.0, -1.0, -1e-3, 0.0, 1e-3, 2.0]])
    value = dirichlet.concentration(alpha)[0]
    np.testing.assert_allclose(value[2:], jax.nn.elu(np.float64(alpha[0, 2:])) + 1, atol=1e-7)
    assert (value > 0).all()
    np.testing.assert_allclose(value[2], math.exp(-18), rtol=1e-5)
    slope = jax.grad(lambda alpha: dirichlet.concentration(alpha).sum())(alpha)[0]
    np.testing.assert_allclose(slope[2:], np.minimum(1, np.exp(alpha[0, 2:])), rtol=1e-5)
    assert jnp.isfinite(DIRICHLET.mean(alpha, cell(8))).all()
    assert jnp.isfinite(DIRICHLET.mean(jnp.full((1, 3), -1000.0), cell(3))).all()


@pytest.mark.parametrize("ranking", ["mean", "softmax"])
def test_edges_rank_by_the_mean_or_by_the_softmax_of_alpha(ranking):
    # Would catch an option that is read but not used; the two orders of edges differ here.
    alpha, edges = jnp.array([[3.0, 0.0], [2.0, -1.5]]), cell(2, 2)
    distribution = distributions.create("dirichlet", dirichlet.Options(ranking))
    weights = distribution.ranking(alpha, edges).max(-1)
    # Means: 4 / 5 and 3 / (3 + exp(-1.5)) = 0.93; softmax: 1 / (1 + exp(-3)) = 0.95 and 0.97.
    expected = {"mean": [0.8, 0.9308], "softmax": [0.9526, 0.9707]}[ranking]
    np.testing.assert_allclose(weights, expected, atol=1e-4)


def test_kl_by_hand():
    # Would catch one Dirichlet over all edges, as in NASLib, in place of a sum over edges.
    # The density of beta = (2, 1) is 2x on [0, 1]: the integral of 2x log 2x is log 2 - 1/2.
    expected = math.log(2) - 0.5
    alpha = jnp.array([[1.0, 0.0]])
    np.testing.assert_allclose(kl_and_gradient(alpha, cell(2))[0], expected, rtol=1e-5)
    edges = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(kl_and_gradient(edges, cell(2, 2, 2))[0], 2 * expected, rtol=1e-5)


def test_kl_is_the_formula_on_each_edge_without_its_padding():
    # Would catch the padding of short edges, or an edge of one operation, in the divergence.
    edges = cell(5, 2, 5, 1, 2, 3)
    alpha = jax.random.normal(jax.random.key(4), edges.shape)
    expected = 0.0
    for row, edge in zip(np.asarray(alpha, np.float64), edges.edges, strict=True):
        n = len(edge.primitives)
        beta = np.where(row > 0, row + 1, np.exp(row))[:n]
        expected += gammaln(beta.sum()) - gammaln(beta).sum() - gammaln(n)
        expected += np.sum((beta - 1) * (digamma(beta) - digamma(beta.sum())))
    value, gradient = kl_and_gradient(alpha, edges)
    assert value == pytest.approx(expected, rel=1e-5)
    assert jnp.isfinite(gradient).all()
    assert (gradient[~edges.mask] == 0).all()


def test_the_slope_of_the_kl_near_the_flat_distribution():
    # Would catch the rounding error of digammas that cancel: 8 % of a slope at a search's start.
    alpha = 1e-3 * np.random.default_rng(0).normal(size=(14, 8))
    beta = np.float64(dirichlet.concentration(jnp.float32(alpha)))
    total = beta.sum(-1, keepdims=True)
    slope = (beta - 1) * polygamma(1, beta) - (total - 8) * polygamma(1, total)
    _, gradient = kl_and_gradient(jnp.float32(alpha), cell(*[8] * 14))
    # beta - 1 is right to 6e-8, a unit of float32 at 1.
    np.testing.assert_allclose(gradient, slope * np.minimum(1, np.exp(alpha)), atol=3e-7)


def test_one_operation_has_no_divergence():
    alpha = jnp.array([[1.5], [-2.0]])
    np.testing.assert_allclose(kl_and_gradient(alpha, cell(1, 1))[0], 0, atol=1e-6)


@pytest.fixture
def without_tfp(monkeypatch):
    """Returns a function that replaces TensorFlow Probability by a package with this source."""

    def replace(folder, source):
        package = folder / "tensorflow_probability"
        package.mkdir()
        (package / "__init__.py").write_text(source)
        for module in list(sys.modules):
            if module.split(".")[0] == "tensorflow_probability":
                monkeypatch.delitem(sys.modules, module)
        monkeypatch.syspath_prepend(folder)
        dirichlet._tfp_distributions.cache_clear()

    yield replace
    dirichlet._tfp_distributions.cache_clear()


@pytest.mark.parametrize(
    "source",
    [
        "import jax\njax.interpreters.xla.pytype_aval_mappings",
        "raise RuntimeError('made for another NumPy')",
    ],
)
def test_without_a_fit_tfp_only_its_sampler_is_refused(tiny, without_tfp, tmp_path, source):
    # Would catch an import that fails only in the middle of a search, or that the mean, the
    # penalty, a report's random cells or the other sampler need.
    without_tfp(tmp_path, source)
    with pytest.raises(UserError) as caught:
        tiny(arch__options__sampler="tfp").check()  # what a search calls before its first step
    message = str(caught.value)
    assert "--config.arch.options.sampler=jax" in message and "\n" not in message
    assert "tfp-nightly>=0.26.0.dev20260929" in message
    tiny(arch__options__sampler="jax", arch__regulariser="kl").check()
    assert DIRICHLET.draw(np.ones(3), np.random.default_rng(0)).shape == (3,)
