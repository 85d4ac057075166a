"""What every mixing distribution must do; a new file of drnas_jax/arch is found by itself."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnas_jax import distributions
from drnas_jax.config import ArchConfig
from drnas_jax.errors import UserError


def make(name, regulariser="l2", strength=1e-3):
    return distributions.create(
        ArchConfig(
            name=name,
            lr=3e-4,
            b1=0.5,
            b2=0.999,
            clip=0.0,
            regulariser=regulariser,
            strength=strength,
            temperature=(10.0, 1.0),
        )
    )


def ramp(shape, scale):
    """Alpha from -scale to scale, every edge in another order."""
    values = np.linspace(-scale, scale, shape[0] * shape[1]).reshape(shape)
    return jnp.asarray(np.random.default_rng(0).permuted(values, axis=1), jnp.float32)


@pytest.fixture(params=distributions.names())
def name(request):
    return request.param


@pytest.fixture
def distribution(name):
    return make(name)


@functools.cache
def jitted_sample(name):
    """One compilation a shape for the whole file: tfp's sampler is slow to run without."""
    return jax.jit(make(name).sample)


@pytest.fixture
def sample(name):
    return jitted_sample(name)


def test_cells_are_drawn_by_the_concentration(distribution):
    """The largest is drawn most often, and nothing that has hardly any weight."""
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


def test_names():
    assert {"dirichlet", "gdas", "gumbel", "softmax"} <= set(distributions.names())
    assert "base" not in distributions.names()


def test_unknown_name_lists_the_right_ones():
    with pytest.raises(UserError, match="unknown arch.name 'dirichlte'.*dirichlet, .*softmax"):
        make("dirichlte")


def test_init(distribution):
    alpha = distribution.init(jax.random.key(0), (500, 7))
    assert alpha.shape == (500, 7)
    assert alpha.dtype == jnp.float32
    # The standard deviation of 3,500 normal values is known to 1.2 % (one sigma).
    assert float(alpha.std()) == pytest.approx(1e-3, rel=0.06)
    assert abs(float(alpha.mean())) < 1e-4


@pytest.mark.parametrize("shape", [(14, 7), (4, 1)])
@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_rows_sum_to_one(distribution, sample, shape, progress):
    for scale in (1e-3, 5.0, 50.0):
        alpha = ramp(shape, scale)
        for mix in (
            sample(alpha, jax.random.key(1), progress),
            distribution.mean(alpha),
        ):
            assert mix.shape == shape
            assert mix.dtype == jnp.float32
            assert (mix >= 0).all()
            # A float32 softmax over 7 values is right to a few units of 6e-8.
            np.testing.assert_allclose(mix.sum(axis=-1), 1.0, atol=1e-6)


def test_one_operation_has_all_the_weight(distribution, sample):
    alpha = ramp((4, 1), 10.0)
    assert (sample(alpha, jax.random.key(0), 0.3) == 1).all()
    assert (distribution.mean(alpha) == 1).all()


@pytest.mark.parametrize("shape", [(14, 7), (4, 1)])
def test_gradients_are_finite(distribution, shape):
    weights = jnp.linspace(-1.0, 1.0, shape[0] * shape[1]).reshape(shape)

    @jax.jit
    @jax.vmap
    def gradient(key, alpha):
        def loss(alpha):
            mix = distribution.sample(alpha, key, 0.5) + distribution.mean(alpha)
            return jnp.sum(weights * mix) + distribution.regulariser(alpha)

        return jax.grad(loss)(alpha)

    keys = jax.random.split(jax.random.key(2), 100)
    for scale in (1e-3, 5.0, 50.0):
        alpha = ramp(shape, scale)
        gradients = gradient(keys, jnp.broadcast_to(alpha, (100, *shape)))
        assert gradients.shape == (100, *shape)
        assert gradients.dtype == jnp.float32
        assert jnp.isfinite(gradients).all()
        if shape[1] > 1 and scale < 1:
            assert (jnp.abs(gradients).max(axis=(1, 2)) > 1e-3).all()


def test_sample_follows_alpha(distribution):
    alpha = jnp.array([[0.0, 1.0, -1.0], [2.0, 0.0, 0.5]])
    keys = jax.random.split(jax.random.key(3), 2000)
    mixes = jax.jit(jax.vmap(lambda key: distribution.sample(alpha, key, 1.0)))(keys)
    np.testing.assert_array_equal(jnp.argsort(mixes.mean(axis=0)), jnp.argsort(alpha))
    np.testing.assert_array_equal(jnp.argsort(distribution.mean(alpha)), jnp.argsort(alpha))


def test_vmap_gives_the_same_values(distribution, sample):
    alphas = jnp.stack([ramp((6, 3), 1.0), ramp((6, 3), 3.0)])
    keys = jax.random.split(jax.random.key(4), 2)
    progress = jnp.array([0.0, 1.0])
    alone = [sample(*args) for args in zip(alphas, keys, progress, strict=True)]
    together = jax.jit(jax.vmap(distribution.sample))(alphas, keys, progress)
    # Fused code may round differently, by a few units in the last place.
    np.testing.assert_allclose(together, alone, atol=1e-6)


def is_the_mean(distribution, alpha, mix):
    return bool(jnp.allclose(mix, distribution.mean(alpha), atol=1e-6))


def test_the_key_decides(distribution, sample):
    alpha = ramp((6, 3), 1.0)
    first, again, *others = (sample(alpha, jax.random.key(i), 1.0) for i in (5, 5, *range(6, 16)))
    np.testing.assert_array_equal(first, again)
    # A distribution that draws nothing gives its mean.
    assert is_the_mean(distribution, alpha, first) or any((mix != first).any() for mix in others)


def test_edges_are_independent(distribution, sample):
    alpha = jnp.zeros((14, 7))
    mix = sample(alpha, jax.random.key(7), 0.0)
    rows = {tuple(row) for row in np.asarray(mix).tolist()}
    assert is_the_mean(distribution, alpha, mix) or len(rows) > 3


def test_mean_is_the_normalised_concentration(distribution):
    alpha = ramp((14, 7), 5.0)
    strength = distribution.concentration(alpha)
    assert strength.shape == alpha.shape
    assert strength.dtype == jnp.float32
    assert (strength > 0).all()
    normalised = strength / strength.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(distribution.mean(alpha), normalised, rtol=1e-5)


def test_half_precision_is_computed_in_float32(distribution, sample):
    alpha = ramp((6, 3), 2.0).astype(jnp.bfloat16)
    exact = alpha.astype(jnp.float32)
    key = jax.random.key(8)
    for low, full in (
        (sample(alpha, key, 0.5), sample(exact, key, 0.5)),
        (distribution.mean(alpha), distribution.mean(exact)),
        (distribution.concentration(alpha), distribution.concentration(exact)),
        (distribution.regulariser(alpha), distribution.regulariser(exact)),
    ):
        assert low.dtype == jnp.float32
        np.testing.assert_array_equal(low, full)


def test_l2_gradient_is_the_coupled_decay(name):
    alpha = ramp((6, 5), 2.0)
    gradient = jax.grad(make(name, "l2", 0.25).regulariser)(alpha)
    np.testing.assert_allclose(gradient, 0.25 * alpha, rtol=1e-6)


def test_no_regulariser(name):
    penalty, gradient = jax.value_and_grad(make(name, "none").regulariser)(ramp((6, 5), 2.0))
    assert penalty == 0
    assert (gradient == 0).all()


def test_kl_is_a_penalty_or_says_what_to_choose(name):
    try:
        regulariser = make(name, "kl").regulariser
    except UserError as error:
        assert re.search("'kl'.*dirichlet.*choose 'l2' or 'none'", str(error))
        return
    assert regulariser(jnp.zeros((6, 5))) == pytest.approx(0.0, abs=1e-8)
    assert regulariser(ramp((6, 5), 2.0)) > 0
    assert jnp.isfinite(jax.jit(jax.grad(regulariser))(ramp((6, 5), 50.0))).all()


def test_unknown_regulariser(name):
    with pytest.raises(UserError, match="arch.regulariser 'l1'.*kl, l2, none"):
        make(name, "l1")
