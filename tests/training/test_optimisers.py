"""The weights' optimiser against PyTorch's SGD in numpy, and the learning rate's schedule."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from drnas_jax.config import from_config_dict
from drnas_jax.configs import base
from drnas_jax.training import optimisers

CONFIG = from_config_dict(base.get_config())
STEPS = 7  # of an epoch


def search_config(**changes):
    return dataclasses.replace(CONFIG.search, **changes)


def single(tree):
    """In float32."""
    return jax.tree.map(jnp.float32, tree)


def rates(config, epochs):
    """The learning rate of every step of a run."""
    schedule = optimisers.learning_rate(config, STEPS, epochs)
    return np.array([float(schedule(step)) for step in range(epochs * STEPS + 1)])


@pytest.mark.parametrize("clip", [0.0, 1.5])
@pytest.mark.parametrize(("part", "nesterov"), [("search", False), ("retrain", True)])
def test_weights_move_as_in_pytorch(clip, part, nesterov):
    """torch.nn.utils.clip_grad_norm_, then torch.optim.SGD with weight decay and momentum."""
    config = dataclasses.replace(
        getattr(CONFIG, part), clip=clip, weight_decay=0.1, momentum=0.9, lr=0.3, lr_end=0.03
    )
    rng = np.random.default_rng(0)
    weights = {"a": rng.normal(size=(3, 4)), "b": {"c": rng.normal(size=5)}}
    optimiser = optimisers.weight_optimiser(config, STEPS, epochs=1, nesterov=nesterov)
    theirs, ours = weights, single(weights)
    state = optimiser.init(ours)
    buffers = jax.tree.map(np.zeros_like, weights)
    for step in range(STEPS):
        # Norms from 0.3 to 30: some are clipped and some not.
        size = 10.0 ** (step % 3 - 1)
        gradient = jax.tree.map(lambda w, s=size: s * rng.normal(size=w.shape), weights)
        updates, state = optimiser.update(single(gradient), state, ours)
        ours = optax.apply_updates(ours, updates)

        norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(gradient)))
        factor = min(1.0, clip / norm) if clip else 1.0
        rate = 0.03 + (0.3 - 0.03) * (1 + np.cos(np.pi * step / STEPS)) / 2
        gradient = jax.tree.map(lambda g, w, f=factor: f * g + 0.1 * w, gradient, theirs)
        buffers = jax.tree.map(lambda v, g: 0.9 * v + g, buffers, gradient)
        moves = jax.tree.map(lambda v, g: 0.9 * v + g, buffers, gradient) if nesterov else buffers
        theirs = jax.tree.map(lambda w, v, r=rate: w - r * v, theirs, moves)
        # Ours is float32: a few roundings a step of values of size 1 to 10.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs
        )


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("end", [0.0, 0.02])
def test_learning_rate_without_warmup(schedule, end):
    config = search_config(lr=0.5, lr_end=end, lr_schedule=schedule, lr_warmup_epochs=0)
    done = np.arange(10 * STEPS + 1) / (10 * STEPS)
    falling = (1 + np.cos(np.pi * done)) / 2 if schedule == "cosine" else 1 - done
    # optax computes in float32.
    np.testing.assert_allclose(rates(config, 10), end + (0.5 - end) * falling, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [1, 3])
def test_learning_rate_with_warmup(schedule, warmup):
    config = search_config(lr=0.5, lr_end=0.01, lr_schedule=schedule, lr_warmup_epochs=warmup)
    found = rates(config, 10)
    rising = warmup * STEPS
    # From the first step on, which is not lost at a rate of 0, to the full rate.
    np.testing.assert_allclose(found[:rising], 0.5 * np.arange(1, rising + 1) / rising, rtol=1e-5)
    without = rates(dataclasses.replace(config, lr_warmup_epochs=0), 10)
    np.testing.assert_array_equal(found[rising:], without[rising:])
    assert found[-1] == pytest.approx(0.01, rel=1e-5)


def test_learning_rate_with_a_warmup_of_one_step():
    config = search_config(lr=0.5, lr_end=0.0, lr_schedule="linear", lr_warmup_epochs=1)
    schedule = optimisers.learning_rate(config, steps_per_epoch=1, epochs=3)
    found = [float(schedule(step)) for step in range(4)]
    np.testing.assert_allclose(found, [0.5, 0.5 * 2 / 3, 0.5 / 3, 0.0], rtol=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_learning_rate_of_zero(schedule):
    config = search_config(lr=0.0, lr_end=0.0, lr_schedule=schedule)
    np.testing.assert_array_equal(rates(config, 2), 0)


def test_alpha_moves_by_adam():
    """Against Adam in numpy (Kingma and Ba 2015), with b1 0.5 and no decay of its own."""
    config = dataclasses.replace(CONFIG.arch, lr=0.01, b1=0.5, b2=0.999)
    rng = np.random.default_rng(0)
    alpha = ours = rng.normal(size=(6, 5))
    optimiser = optimisers.alpha_optimiser(config)
    state = optimiser.init(alpha)
    first = second = np.zeros_like(alpha)
    for step in range(1, 6):
        gradient = rng.normal(size=alpha.shape)
        updates, state = optimiser.update(gradient, state, ours)
        ours = optax.apply_updates(ours, updates)
        first = 0.5 * first + 0.5 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        scaled = (first / (1 - 0.5**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        alpha = alpha - 0.01 * scaled
    # 1 - 0.999**step loses three digits in float32, and the rate takes two off the error.
    np.testing.assert_allclose(ours, alpha, rtol=0, atol=1e-5)
