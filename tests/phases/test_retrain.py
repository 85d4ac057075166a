"""The step of retraining on one device and on several, and what the config makes of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from drnas_jax import spaces
from drnas_jax.config import from_config_dict
from drnas_jax.configs import base
from drnas_jax.data import Dataset, feed
from drnas_jax.data.feed import Images
from drnas_jax.nn import backend
from drnas_jax.nn.counting import count_macs
from drnas_jax.nn.norm import BatchNorm
from drnas_jax.phases.retrain import Recipe, Retraining, choose_genotype, init_state, retrain_step
from drnas_jax.training import devices
from drnas_jax.training.metrics import Display

CELL = spaces.random_genotype("nasbench201", 0)


def program(recipe, count):
    return devices.data_parallel(
        functools.partial(retrain_step, recipe),
        devices.make_mesh(jax.devices()[:count]),
        (devices.REPLICATED, devices.SHARDED),
    )


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
    state = program(recipe, 1)(state.replace(step=jnp.int32(5)), batch)
    np.testing.assert_allclose(state.batch_stats["rate"], drop_path / 2, rtol=1e-6)
    assert state.batch_stats["keyed"] == keyed


class Small(nn.Module):
    """A layer after a BatchNorm."""

    axis_name: str | None

    @nn.compact
    def __call__(self, x, train, drop_path=0.0):
        return nn.Dense(3)(BatchNorm(axis_name=self.axis_name)(x, train)), None


def stepped(count, axis_name=devices.AXIS):
    """What a step on 16 examples changes, on each device."""
    recipe = Recipe(Small(axis_name), optax.sgd(0.1), 10, 0.0, 0.0, 0.0)
    state = init_state(recipe.network, recipe.optimiser, (4,), seed=0)
    images = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    after = program(recipe, count)(state, Images(images, np.arange(16, dtype=np.int32) % 3))
    assert np.any(after.params["Dense_0"]["kernel"] != state.params["Dense_0"]["kernel"])
    changed = after.params, after.batch_stats, after.totals
    shards = (leaf.addressable_shards for leaf in jax.tree.leaves(changed))
    return [np.stack([shard.data for shard in own]) for own in shards]


def test_eight_devices_do_what_one_does():
    for one, eight in zip(stepped(1), stepped(8), strict=True):
        # Sums over the batch in another order.
        np.testing.assert_allclose(eight, np.repeat(one, 8, axis=0), rtol=1e-5, atol=1e-6)


def test_statistics_of_each_device_are_averaged():
    different = 0
    for one, eight in zip(stepped(1, None), stepped(8, None), strict=True):
        np.testing.assert_array_equal(eight, np.repeat(eight[:1], 8, axis=0))
        different += not np.allclose(one[0], eight[0], rtol=1e-3)
    assert different > 1


def retraining(**fields):
    """The phase of a small network on eight random images."""
    config = base.get_config()
    config.retrain.update(dict(channels=4, cells=1, batch_size=8, epochs=1) | fields)
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    labels = np.arange(8, dtype=np.int32) % 2
    dataset = Dataset("noise", images, labels, images, labels, ("a", "b"), True)
    return Retraining(from_config_dict(config), CELL, Display(quiet=True), dataset)


@pytest.mark.parametrize(("sync", "axis_name"), [(True, devices.AXIS), (False, None)])
def test_synchronised_statistics(sync, axis_name):
    assert retraining(sync_batchnorm=sync).recipe.network.axis_name == axis_name


def test_the_widest_network_within_max_macs():
    def macs(channels):
        shape = (channels, 1, 2, "cifar", False, backend.PLAIN, None)
        return count_macs(spaces.find("nasbench201").network(CELL, *shape), (8, 8, 3))

    for limit in (macs(6), macs(8) - 1):
        phase = retraining(max_macs=float(limit))
        assert phase.metadata()["channels"] == phase.recipe.network.structure.channels == 6


def test_augmentation_is_the_configs(monkeypatch):
    make, made = feed.make_feed, []
    monkeypatch.setattr(feed, "make_feed", lambda *args: made.append(make(*args)) or made[0])
    retraining(cutout=3, color_jitter=(0.4, 0.3, 0.2, 0.1)).step_program()
    (own,) = made
    assert (own.crop_padding, own.cutout, own.jitter) == (4, 3, (0.4, 0.3, 0.2, 0.1))


@pytest.mark.parametrize("seed", [3, 4])
def test_a_random_genotype_follows_the_seed(tmp_path, seed):
    config = base.get_config()
    config.update(dict(genotype="random", seed=seed))
    expected = spaces.random_genotype("nasbench201", seed)
    assert choose_genotype(from_config_dict(config), tmp_path) == expected
