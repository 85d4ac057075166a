"""SDARTS-RS: noise within its bound, in the step that trains the weights and nowhere else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnas_jax import distributions
from drnas_jax.distributions.sdarts import Options
from drnas_jax.spaces.base import Cell, Edge

CELL = Cell((Edge(1, 0, ("a", "b")), Edge(2, 0, ("a", "b")), Edge(2, 1, ("a", "b"))))
FLAT = jnp.zeros(CELL.shape)


def samples(progress, alpha=FLAT, cell=CELL, role="weights", epsilon=(0.03, 0.3)):
    """Returns 2000 samples [n, e, o]."""
    distribution = distributions.create("sdarts", Options(epsilon))
    keys = jax.random.split(jax.random.key(0), 2000)
    return jax.vmap(lambda key: distribution.sample(alpha, cell, key, progress, role))(keys)


@pytest.mark.parametrize("progress, epsilon", [(0.0, 0.03), (0.5, 0.165), (1.0, 0.3)])
def test_noise_keeps_to_its_bound_which_rises(progress, epsilon):
    # Would catch noise on alpha in place of the weights, or a bound that does not rise. Of two
    # equal weights, the larger one is at most (0.5 + epsilon) / 1 after the division.
    mix = samples(progress)
    np.testing.assert_allclose(mix.sum(-1), 1, atol=1e-6)
    assert (mix >= 0).all()
    largest = np.abs(mix - 0.5).max()
    assert 0.9 * epsilon < largest <= epsilon + 1e-6
    assert abs(mix.mean() - 0.5) < 0.01


def test_only_the_step_of_the_weights_has_noise():
    # Would catch alpha's gradient at other mixing weights than its own.
    mix = samples(1.0, role="alpha")
    np.testing.assert_array_equal(mix, np.full(mix.shape, 0.5))
    assert len(np.unique(samples(1.0), axis=0)) == 2000


def test_weights_are_clipped_to_the_simplex():
    # Would catch a negative weight: at these alphas the smaller one is 0.12.
    mix = np.asarray(samples(1.0, alpha=jnp.tile(jnp.array([2.0, 0.0]), (3, 1))))
    assert (mix[..., 1] == 0).mean() > 0.1
    np.testing.assert_allclose(mix[mix[..., 1] == 0][:, 0], 1, atol=1e-6)


def test_an_edge_on_which_noise_leaves_nothing_keeps_its_mean():
    # Would catch 0 / 0, which a gradient of alpha would spread through the shared program.
    names = tuple("abcdefgh")
    cell = Cell((Edge(1, 0, names[:3]), Edge(2, 0, names)))

    distribution = distributions.create("sdarts", Options((0.9, 0.9)))

    def sample(alpha, key):
        return distribution.sample(alpha, cell, key, 0.0, "weights")[0]

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def both(alpha, key):
        mix, pull = jax.vjp(lambda alpha: sample(alpha, key), alpha)
        return mix, pull(jnp.arange(8.0))[0]

    mix, slopes = both(jnp.zeros(cell.shape), jax.random.split(jax.random.key(1), 200))
    kept = np.isclose(mix[:, :3], 1 / 3, atol=1e-6).all(-1)
    assert kept.any() and not kept.all()
    np.testing.assert_allclose(mix.sum(-1), 1, atol=1e-6)
    assert np.isfinite(slopes).all()


def test_two_values_of_epsilon_are_needed():
    # Would catch a third value that is ignored.
    with pytest.raises(ValueError, match="expected two numbers"):
        Options((0.1, 0.2, 0.3))
