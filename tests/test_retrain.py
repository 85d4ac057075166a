"""Retraining's schedule of drop path."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from drnas_jax import sharding
from drnas_jax.feed import Images
from drnas_jax.retrain import Recipe, init_state, retrain_step


class Spy(nn.Module):
    """A network whose logits tell the drop path rate and whether there is a key for it."""

    @nn.compact
    def __call__(self, x, train, drop_path=0.0):
        rate = self.variable("batch_stats", "rate", jnp.zeros, ())
        keyed = self.variable("batch_stats", "keyed", jnp.zeros, ())
        if not self.is_initializing():
            rate.value = drop_path + 0 * x.sum()
            keyed.value = float(self.has_rng("drop_path")) + 0 * x.sum()
        return self.param("bias", nn.initializers.zeros, (1, 2)) + 0 * x[:, :1], None


@pytest.mark.parametrize(("drop_path", "keyed"), [(0.3, 1), (0.0, 0)])
def test_drop_path_rises_linearly(drop_path, keyed):
    recipe = Recipe(Spy(), optax.sgd(0.1), 10, 0.0, drop_path, 0.0)
    state = init_state(recipe.network, recipe.optimiser, (4,), seed=0)
    batch = Images(jnp.ones((2, 4)), jnp.zeros(2, jnp.int32))
    mesh = sharding.make_mesh(jax.devices()[:1])
    step = sharding.data_parallel(
        lambda state, batch: retrain_step(recipe, state, batch),
        mesh,
        (sharding.REPLICATED, sharding.SHARDED),
    )
    state = step(state.replace(step=jnp.int32(5)), batch)
    np.testing.assert_allclose(state.batch_stats["rate"], drop_path / 2, rtol=1e-6)
    assert state.batch_stats["keyed"] == keyed
