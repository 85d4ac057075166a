"""The Gumbel-softmax and its straight-through form, GDAS."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnas_jax import distributions
from drnas_jax.config import ArchConfig

CONFIG = ArchConfig(
    name="gumbel",
    lr=3e-4,
    b1=0.5,
    b2=0.999,
    clip=0.0,
    regulariser="none",
    strength=0.0,
    temperature=(10.0, 2.0),
)
ALPHA = jnp.array([[0.5, -1.0, 2.0, 0.0], [0.0, 0.3, -0.2, 1.0]])
KEY = jax.random.key(11)


def make(name):
    return distributions.create(dataclasses.replace(CONFIG, name=name))


@pytest.mark.parametrize(
    ("progress", "temperature"), [(0.0, 10.0), (0.25, 8.0), (1.0, 2.0), (1.5, 2.0), (-1.0, 10.0)]
)
def test_temperature_falls_linearly(progress, temperature):
    mix = make("gumbel").sample(ALPHA, KEY, progress)
    last = make("gumbel").sample(ALPHA, KEY, 1.0)
    # log mix = logits / temperature + constant, so that spreads are as the temperatures.
    spread, last_spread = (jnp.ptp(jnp.log(x), axis=-1) for x in (mix, last))
    np.testing.assert_allclose(spread * temperature, last_spread * 2.0, rtol=1e-4)


def test_largest_weight_is_a_categorical_draw():
    keys = jax.random.split(KEY, 40_000)
    sample = make("gdas").sample
    counts = jax.vmap(lambda key: sample(ALPHA, key, 0.0))(keys).sum(axis=0)
    probability = np.asarray(jax.nn.softmax(ALPHA))
    deviation = np.sqrt(len(keys) * probability * (1 - probability))
    # 8 binomial counts: beyond 4.5 deviations once in 20,000 seeds.
    assert np.abs((counts - len(keys) * probability) / deviation).max() < 4.5


@pytest.mark.parametrize("progress", [0.0, 0.7, 1.0])
def test_gdas_is_one_hot_with_the_soft_gradient_of_the_drawn(progress):
    def soft(alpha):
        return make("gumbel").sample(alpha, KEY, progress)

    def hard(alpha):
        return make("gdas").sample(alpha, KEY, progress)

    mix = np.asarray(hard(ALPHA))
    assert set(mix.ravel().tolist()) == {0.0, 1.0}  # exactly, not to rounding
    np.testing.assert_array_equal(mix.argmax(axis=-1), soft(ALPHA).argmax(axis=-1))
    np.testing.assert_array_equal(jax.jit(hard)(ALPHA), mix)
    expected = mix[:, :, None, None] * jax.jacobian(soft)(ALPHA)  # nothing through the others
    np.testing.assert_allclose(jax.jacobian(hard)(ALPHA), expected, rtol=1e-6, atol=1e-8)
