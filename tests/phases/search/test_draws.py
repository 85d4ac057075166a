"""Each update of a search step draws its own mixing weights, in both forms of the step."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from drnas_jax.data import Images
from drnas_jax.distributions import Distribution
from drnas_jax.phases.search import step as steps
from drnas_jax.phases.search.state import SearchState
from drnas_jax.spaces import Cell, Edge, SupernetSpec
from drnas_jax.training import losses
from drnas_jax.training.devices import REPLICATED, SHARDED, data_parallel, make_mesh


class Sum(nn.Module):
    """A loss whose gradient in every mixing weight is the same; keeps the last weights."""

    @nn.compact
    def __call__(self, x, mix, train):
        seen = self.variable("batch_stats", "mix", jnp.zeros, mix["cell"].shape)
        if not self.is_initializing():
            seen.value = mix["cell"]
        total = jnp.sum(mix["cell"]) + jnp.sum(self.param("w", nn.initializers.zeros, ()))
        return jnp.zeros((len(x), 2)).at[:, 0].set(total)


class Uniform(Distribution):
    """Alpha times a uniform draw, so that alpha's gradient is proportional to the draw."""

    def sample(self, alpha, cell, key, progress, role):
        return alpha * jax.random.uniform(key, alpha.shape)


def recorded_draws(share_program, count):
    """Yields the draws behind alpha's and the weights' samples in some steps."""
    descent, alpha = optax.sgd(1e-3), {"cell": jnp.ones((2, 3))}
    cell = Cell(tuple(Edge(i + 1, i, ("a", "b", "c")) for i in range(2)))
    config = steps.StepConfig(
        spec=SupernetSpec((("cell", cell),), 1, 1, 2, (1, 1, 1)),
        supernet=Sum(),
        share_program=share_program,
        distribution=Uniform(),
        penalty=lambda alpha, progress: jnp.zeros(()),
        cost=None,
        weight_optimiser=descent,
        alpha_optimiser=descent,
        alpha_clip=0.0,
        total_steps=10,
        sample_per_device=False,
    )
    state = SearchState(
        seed=jnp.zeros((), jnp.uint32),
        step=jnp.zeros((), jnp.int32),
        params={"w": jnp.zeros(())},
        variables={"batch_stats": {"mix": jnp.zeros((2, 3))}},
        alpha=alpha,
        fixed={},
        weight_opt=descent.init({"w": jnp.zeros(())}),
        alpha_opt=descent.init(alpha),
        totals=losses.zero_totals(),
    )
    images = Images(jnp.zeros((2, 1)), jnp.ones(2, jnp.int32))

    def step(state, train, valid):
        return steps.search_step(config, state, train, valid, False, lambda images, keys: images)

    program = data_parallel(
        step,
        make_mesh(jax.devices()[:1]),
        (REPLICATED, SHARDED, SHARDED),
    )
    for _ in range(count):
        after = program(state, images, images)
        moved = state.alpha["cell"] - after.alpha["cell"]
        yield np.ravel(moved / jnp.max(moved))
        drawn = after.variables["batch_stats"]["mix"] / after.alpha["cell"]
        yield np.ravel(drawn / jnp.max(drawn))
        state = after


@pytest.mark.parametrize("share_program", [False, True])
def test_every_update_draws_afresh(share_program):
    # Would catch one sample for both updates of a step, or the same sample in each step.
    draws = list(recorded_draws(share_program, 3))
    assert len(draws) == 6
    assert all(np.all((draw > 0) & (draw <= 1)) and np.ptp(draw) > 0.1 for draw in draws)
    for i, one in enumerate(draws):
        for other in draws[:i]:
            # They are recovered from differences of float32, to a part in a thousand.
            assert np.abs(one - other).max() > 0.05
