"""Each update of a search step draws mixing weights of its own, in both forms of the step."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from drnas_jax.data.feed import Images
from drnas_jax.distributions import MixingDistribution
from drnas_jax.phases.search import step as steps
from drnas_jax.training.devices import REPLICATED, SHARDED, data_parallel, make_mesh


class Sum(nn.Module):
    """A loss whose gradient in every mixing weight is the same; keeps the last mix."""

    @nn.compact
    def __call__(self, x, mix, train, learn=None):
        seen = self.variable("batch_stats", "mix", jnp.zeros, mix["cell"].shape)
        if not self.is_initializing():
            seen.value = mix["cell"]
        total = jnp.sum(mix["cell"]) + jnp.sum(self.param("w", nn.initializers.zeros, ()))
        return jnp.zeros((len(x), 2)).at[:, 0].set(total)


def recorded_draws(one_pass, count):
    """The uniform draws that alpha's and the weights' samples used in some steps."""
    distribution = MixingDistribution(
        init=None,
        # The gradient in alpha is then proportional to the draw.
        sample=lambda alpha, key, progress: alpha * jax.random.uniform(key, alpha.shape),
        mean=None,
        concentration=None,
        regulariser=lambda alpha: jnp.zeros(()),
        draw=None,
    )
    descent = optax.sgd(1e-3)
    recipe = steps.Recipe(Sum(), one_pass, distribution, descent, descent, 0.0, 10, False)
    alpha = {"cell": jnp.ones((2, 3))}
    state = steps.SearchState(
        seed=jnp.zeros((), jnp.uint32),
        step=jnp.zeros((), jnp.int32),
        params={"w": jnp.zeros(())},
        batch_stats={"mix": jnp.zeros((2, 3))},
        alpha=alpha,
        weight_opt=descent.init({"w": jnp.zeros(())}),
        alpha_opt=descent.init(alpha),
        totals=steps.losses.zero_totals(),
    )
    images = Images(jnp.zeros((2, 1)), jnp.ones(2, jnp.int32))
    program = data_parallel(
        functools.partial(steps.search_step, recipe, frozen=False),
        make_mesh(jax.devices()[:1]),
        (REPLICATED, SHARDED, SHARDED),
    )
    for _ in range(count):
        after = program(state, images, images)
        moved = state.alpha["cell"] - after.alpha["cell"]
        yield np.ravel(moved / jnp.max(moved))
        drawn = after.batch_stats["mix"] / after.alpha["cell"]
        yield np.ravel(drawn / jnp.max(drawn))
        state = after


@pytest.mark.parametrize("one_pass", [False, True])
def test_every_update_draws_anew(one_pass):
    draws = list(recorded_draws(one_pass, 3))
    assert len(draws) == 6
    assert all(np.all((draw > 0) & (draw <= 1)) and np.ptp(draw) > 0.1 for draw in draws)
    for i, one in enumerate(draws):
        for other in draws[:i]:
            # Recovered from differences of float32: known to a part in a thousand.
            assert np.abs(one - other).max() > 0.05
