"""The Dirichlet against its analytic moments and their derivatives."""

import importlib
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from tensorflow_probability.substrates.jax import distributions as tfd

from drnas_jax import distributions
from drnas_jax.config import ArchConfig
from drnas_jax.distributions import dirichlet
from drnas_jax.errors import UserError

N = 20_000  # samples of every statistical test
# Of the 200 or so z-values in this file, one beyond 4.5 comes once in 700 seeds.
Z = 4.5
CONCENTRATIONS = {
    "start": np.ones(7),
    "mixed": np.array([0.1, 2.0, 0.5]),
    "large": np.full(5, 5.0),
    "pruned": np.array([3.0, 0.7]),
}


def z_values(samples, expected):
    """(mean - expected) / standard error, over the leading axis of `samples`."""
    error = samples.std(axis=0) / math.sqrt(len(samples))
    return (samples.mean(axis=0) - expected) / error


@pytest.fixture(params=CONCENTRATIONS, scope="module")
def samples_and_jacobians(request):
    """The concentration, N samples [N, o] of it, and d sample_i / d concentration_j [N, o, o]."""
    concentration = CONCENTRATIONS[request.param]
    rows = jnp.broadcast_to(jnp.asarray(concentration, jnp.float32), (N, len(concentration)))

    @jax.jit
    def compute(rows):
        samples, pull = jax.vjp(
            lambda rows: dirichlet.sample_dirichlet(rows, jax.random.key(0)), rows
        )
        units = jnp.eye(rows.shape[1])[:, None] * jnp.ones((N, 1))
        return samples, jax.vmap(pull, out_axes=1)(units)[0]

    samples, jacobians = compute(rows)
    return concentration, np.asarray(samples, np.float64), np.asarray(jacobians, np.float64)


def test_pathwise_gradient_of_the_mean(samples_and_jacobians):
    concentration, _, jacobians = samples_and_jacobians
    total = concentration.sum()
    expected = (np.eye(len(concentration)) - concentration[:, None] / total) / total
    assert np.abs(z_values(jacobians, expected)).max() < Z
    # The bound says something only where the error is far below the values themselves.
    errors = jacobians.std(axis=0) / math.sqrt(N)
    assert (errors.max(axis=1) < 0.04 * np.abs(expected).max(axis=1)).all()


def test_pathwise_gradient_of_the_second_moment(samples_and_jacobians):
    """E[x^2] = c (c + 1) / (s (s + 1)): feels how samples spread, as the mean does not."""
    concentration, samples, jacobians = samples_and_jacobians
    c, total = concentration, concentration.sum()
    scale = total * (total + 1)
    expected = np.diag((2 * c + 1) / scale) - (c * (c + 1))[:, None] * (2 * total + 1) / scale**2
    assert np.abs(z_values(2 * samples[:, :, None] * jacobians, expected)).max() < Z


def test_sample_moments(samples_and_jacobians):
    concentration, samples, _ = samples_and_jacobians
    total = concentration.sum()
    mean = concentration / total
    variance = mean * (1 - mean) / (total + 1)
    assert np.abs(z_values(samples, mean)).max() < Z
    assert np.abs(z_values((samples - mean) ** 2, variance)).max() < Z


def test_marginals_are_beta(samples_and_jacobians):
    concentration, samples, _ = samples_and_jacobians
    for c, column in zip(concentration, samples.T, strict=True):
        # Kolmogorov-Smirnov; 17 columns, so one below 1e-4 comes once in 600 seeds.
        marginal = scipy.stats.beta(c, concentration.sum() - c)
        assert scipy.stats.kstest(column, marginal.cdf).pvalue > 1e-4


@jax.jit
def samples_and_gradient(rows):
    def loss(rows):
        samples = dirichlet.sample_dirichlet(rows, jax.random.key(3))
        return jnp.sum(samples @ jnp.array([1.0, -1.0, 0.5, 0.2])), samples

    gradient, samples = jax.grad(loss, has_aux=True)(rows)
    return samples, gradient


@pytest.mark.parametrize("smallest", [1.0, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-8])
def test_small_concentrations_are_finite(smallest):
    one_large = jnp.array([smallest, smallest, smallest, 1.0])
    rows = jnp.concatenate([jnp.tile(one_large, (5000, 1)), jnp.full((5000, 4), smallest)])
    samples, gradient = samples_and_gradient(rows)
    assert jnp.isfinite(samples).all()
    assert jnp.isfinite(gradient).all()
    np.testing.assert_allclose(samples.sum(axis=-1), 1.0, atol=1e-6)
    # All four equally small: nearly one-hot, and any of them.
    if smallest <= 0.01:
        assert np.bincount(samples[5000:].argmax(axis=-1), minlength=4).min() > 1000


def test_concentration():
    alpha = jnp.array([[-1000.0, -30.0, -18.0, -1.0, -1e-3, 0.0, 1e-3, 2.0]])
    value = dirichlet.concentration(alpha)[0]
    np.testing.assert_allclose(value[2:], jax.nn.elu(np.float64(alpha[0, 2:])) + 1, atol=1e-7)
    assert (value > 0).all()
    np.testing.assert_allclose(value[2], math.exp(-18), rtol=1e-5)
    slope = jax.grad(lambda alpha: dirichlet.concentration(alpha).sum())(alpha)[0]
    np.testing.assert_allclose(slope[2:], np.minimum(1, np.exp(alpha[0, 2:])), rtol=1e-5)
    assert jnp.isfinite(dirichlet.mean(alpha)).all()
    assert jnp.isfinite(dirichlet.mean(jnp.full((1, 3), -1000.0))).all()


def test_kl_by_hand():
    # Density 2x on [0, 1]: the integral of 2x log 2x is log 2 - 1/2.
    expected = math.log(2) - 0.5
    alpha = jnp.array([[1.0, 0.0]])  # beta = (2, 1)
    np.testing.assert_allclose(dirichlet.kl_from_flat(alpha), expected, rtol=1e-5)
    # A sum over edges, not one Dirichlet over all of them.
    edges = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(dirichlet.kl_from_flat(edges), 2 * expected, rtol=1e-5)


def test_kl_is_tfps_own_edge_by_edge():
    alpha = jax.random.normal(jax.random.key(4), (6, 5))
    flat = tfd.Dirichlet(jnp.ones(5))
    expected = sum(
        tfd.kl_divergence(tfd.Dirichlet(dirichlet.concentration(row)), flat) for row in alpha
    )
    np.testing.assert_allclose(dirichlet.kl_from_flat(alpha), expected, rtol=1e-6)


def test_kl_has_the_strength():
    config = ArchConfig("dirichlet", 3e-4, 0.5, 0.999, 0.0, "kl", 0.25, (10.0, 1.0))
    alpha = jax.random.normal(jax.random.key(5), (6, 5))
    penalty = distributions.create(config).regulariser(alpha)
    np.testing.assert_allclose(penalty, 0.25 * dirichlet.kl_from_flat(alpha), rtol=1e-6)


def test_one_operation_has_no_divergence():
    np.testing.assert_allclose(dirichlet.kl_from_flat(jnp.array([[1.5], [-2.0]])), 0, atol=1e-6)


@pytest.mark.parametrize(
    "source", ["import jax\njax.interpreters.xla.pytype_aval_mappings", "import no_such_module"]
)
def test_unfit_tfp_says_what_to_install(monkeypatch, tmp_path, source):
    package = tmp_path / "tensorflow_probability"
    package.mkdir()
    (package / "__init__.py").write_text(source)
    for module in list(sys.modules):
        if module.split(".")[0] == "tensorflow_probability":
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, "drnas_jax.distributions.dirichlet")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UserError,
        match="uninstall tensorflow-probability, .* install tfp-nightly>=0.26.0.dev20260929",
    ):
        importlib.import_module("drnas_jax.distributions.dirichlet")
