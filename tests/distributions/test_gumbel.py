"""The relaxed one-hot samples of SNAS, and the hard ones of GDAS."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnas_jax import distributions
from drnas_jax.distributions.gumbel import Options
from drnas_jax.spaces.base import Cell, Edge

ALPHA = jnp.array([[0.5, -1.0, 2.0, 0.0], [0.0, 0.3, -0.2, 1.0]])
CELL = Cell((Edge(1, 0, tuple("abcd")), Edge(2, 1, tuple("abcd"))))
KEY = jax.random.key(11)


def sample(name, alpha, progress, key=KEY):
    distribution = distributions.create(name, Options(temperature=(10.0, 2.0)))
    return distribution.sample(alpha, CELL, key, progress, "alpha")


@pytest.mark.parametrize(
    ("progress", "temperature"), [(0.0, 10.0), (0.25, 8.0), (1.0, 2.0), (1.5, 2.0), (-1.0, 10.0)]
)
def test_temperature_falls_linearly(progress, temperature):
    # Would catch a temperature that follows the stage, or leaves its range.
    mix = sample("gumbel", ALPHA, progress)
    last = sample("gumbel", ALPHA, 1.0)
    # log mix = logits / temperature + constant, so the spread is inverse to the temperature.
    spread, last_spread = (jnp.ptp(jnp.log(x), axis=-1) for x in (mix, last))
    np.testing.assert_allclose(spread * temperature, last_spread * 2.0, rtol=1e-4)


def test_largest_weight_is_a_categorical_draw():
    # Would catch noise of another distribution, such as a normal one.
    keys = jax.random.split(KEY, 40_000)
    counts = jax.vmap(functools.partial(sample, "gdas", ALPHA, 0.0))(keys).sum(axis=0)
    probability = np.asarray(jax.nn.softmax(ALPHA))
    deviation = np.sqrt(len(keys) * probability * (1 - probability))
    # One of 8 binomial counts exceeds 4.5 deviations for one seed in 20,000.
    assert np.abs((counts - len(keys) * probability) / deviation).max() < 4.5


@pytest.mark.parametrize("progress", [0.0, 0.7, 1.0])
def test_gdas_is_one_hot_with_the_soft_gradient_of_the_drawn_operation(progress):
    # Would catch a straight-through estimator, whose gradient also reaches the other operations.
    soft = functools.partial(sample, "gumbel", progress=progress)
    hard = functools.partial(sample, "gdas", progress=progress)
    mix = np.asarray(hard(ALPHA))
    assert set(mix.ravel().tolist()) == {0.0, 1.0}  # exactly, not to rounding
    np.testing.assert_array_equal(mix.argmax(axis=-1), soft(ALPHA).argmax(axis=-1))
    np.testing.assert_array_equal(jax.jit(hard)(ALPHA), mix)
    expected = mix[:, :, None, None] * jax.jacobian(soft)(ALPHA)
    np.testing.assert_allclose(jax.jacobian(hard)(ALPHA), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("temperature", [(10.0,), (10.0, 5.0, 1.0)])
def test_two_temperatures_are_needed(temperature):
    with pytest.raises(ValueError, match="temperature is .*: expected two numbers"):
        Options(temperature=temperature)
