"""The step of retraining on one device and on several, and what follows from the config."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from drnas_jax import spaces
from drnas_jax.config import defaults, from_config_dict
from drnas_jax.data import Dataset, Images, preprocessing_of
from drnas_jax.errors import UserError
from drnas_jax.nn import backend
from drnas_jax.nn.counting import count_macs
from drnas_jax.nn.norm import BatchNorm
from drnas_jax.phases import loop
from drnas_jax.phases.retrain import retraining
from drnas_jax.phases.retrain.retraining import Retraining, choose_genotype
from drnas_jax.phases.retrain.step import StepConfig, init_state, retrain_step
from drnas_jax.training import devices

SPACE = spaces.create("nasbench201")
GENOTYPE = spaces.random_genotype(SPACE, 0)


def step_config(network, drop_path=0.0):
    return StepConfig(network, optax.sgd(0.1), 10, 0.0, drop_path, 0.0)


def program(config, count):
    return devices.data_parallel(
        functools.partial(retrain_step, config),
        devices.make_mesh(jax.devices()[:count]),
        (devices.REPLICATED, devices.SHARDED),
    )


class Spy(nn.Module):
    """A network that keeps the rate of dropped paths, and whether there is a random key for it."""

    @nn.compact
    def __call__(self, x, train, drop_path=0.0):
        rate = self.variable("seen", "rate", jnp.zeros, ())
        keyed = self.variable("seen", "keyed", jnp.zeros, ())
        if not self.is_initializing():
            rate.value = drop_path + 0 * x.sum()
            keyed.value = float(self.has_rng("drop_path")) + 0 * x.sum()
        return self.param("bias", nn.initializers.zeros, (1, 2)) + 0 * x[:, :1]


@pytest.mark.parametrize(("drop_path", "keyed"), [(0.3, 1), (0.0, 0)])
def test_drop_path_rises_linearly(drop_path, keyed):
    # Would catch a rate that is constant, or that drops paths without a random key.
    config = step_config(Spy(), drop_path)
    state = init_state(config.network, config.optimiser, (4,), seed=0)
    batch = Images(jnp.ones((2, 4)), jnp.zeros(2, jnp.int32))
    state = program(config, 1)(state.replace(step=jnp.int32(5)), batch)
    np.testing.assert_allclose(state.variables["seen"]["rate"], drop_path / 2, rtol=1e-6)
    assert state.variables["seen"]["keyed"] == keyed


class Small(nn.Module):
    """A layer after a BatchNorm, if there is one."""

    axis_name: str | None
    normalised: bool = True

    @nn.compact
    def __call__(self, x, train):
        if self.normalised:
            x = BatchNorm(axis_name=self.axis_name)(x, train)
        return nn.Dense(3)(x)


def stepped(count, axis_name=devices.AXIS):
    """Returns what a step on 16 examples changes, an array [device, ...] for each leaf."""
    config = step_config(Small(axis_name))
    state = init_state(config.network, config.optimiser, (4,), seed=0)
    images = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    after = program(config, count)(state, Images(images, np.arange(16, dtype=np.int32) % 3))
    assert np.any(after.params["Dense_0"]["kernel"] != state.params["Dense_0"]["kernel"])
    changed = after.params, after.variables, after.totals
    shards = (leaf.addressable_shards for leaf in jax.tree.leaves(changed))
    return [np.stack([shard.data for shard in own]) for own in shards]


def test_eight_devices_do_the_same_as_one():
    # Would catch a gradient or a statistic that is summed over the devices and not averaged.
    for one, eight in zip(stepped(1), stepped(8), strict=True):
        # Sums over the batch in another order.
        np.testing.assert_allclose(eight, np.repeat(one, 8, axis=0), rtol=1e-5, atol=1e-6)


def test_statistics_of_each_device_are_averaged():
    # Would catch running averages that differ between devices.
    different = 0
    for one, eight in zip(stepped(1, None), stepped(8, None), strict=True):
        np.testing.assert_array_equal(eight, np.repeat(eight[:1], 8, axis=0))
        different += not np.allclose(one[0], eight[0], rtol=1e-3)
    assert different > 1


def test_a_network_without_batchnorm_has_no_other_variables():
    # Would catch a step that takes for granted that there are batch statistics.
    config = step_config(Small(None, normalised=False))
    state = init_state(config.network, config.optimiser, (4,), seed=0)
    batch = Images(jnp.ones((2, 4)), jnp.zeros(2, jnp.int32))
    after = program(config, 1)(state, batch)
    assert state.variables == after.variables == {}
    assert np.any(after.params["Dense_0"]["bias"] != 0)


def small_retraining(devices_count=1, **fields):
    """Returns the retraining of a small network on eight random images."""
    config = defaults()
    config.retrain.update(dict(channels=4, cells=1, batch_size=8, epochs=1) | fields)
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    labels = np.arange(8, dtype=np.int32) % 2
    dataset = Dataset("noise", images, labels, images, labels, ("a", "b"), True)
    mesh = devices.make_mesh(jax.devices()[:devices_count])
    return Retraining(from_config_dict(config), GENOTYPE, dataset, mesh)


@pytest.mark.parametrize(("sync", "axis_name"), [(True, devices.AXIS), (False, None)])
def test_statistics_are_synchronised_if_the_config_says_so(sync, axis_name):
    # Would catch a switch that does not reach the network.
    config = small_retraining(sync_batchnorm=sync).step_config()
    assert config.network.model.backend.axis_name == axis_name


def test_the_widest_network_within_max_macs():
    # Would catch a limit that is exceeded by one multiply-add, or a smaller network than fits.
    made = small_retraining()

    def macs(channels):
        network = SPACE.network(made.spec(channels), backend.PLAIN)
        return count_macs(network, made.dataset.shape)

    for limit in (macs(6), macs(8) - 1):
        found = small_retraining(max_macs=float(limit))
        assert found.channels == found.step_config().network.model.channels == 6


def test_other_devices_change_all_that_follows_from_them():
    # Would catch a loader that still puts its batches onto the devices of before.
    one = small_retraining()
    assert one.loader.abstract_dispatch.batches[0].sharding.mesh.size == 1
    four = dataclasses.replace(one, mesh=devices.make_mesh(jax.devices()[:4]))
    assert four.loader.abstract_dispatch.batches[0].sharding.mesh.size == 4


def test_augmentation_is_that_of_the_config(monkeypatch):
    # Would catch a setting of the augmentation that retraining does not pass on.
    made = []

    def recorded(*args, **fields):
        made.append(preprocessing_of(*args, **fields))
        return made[0]

    monkeypatch.setattr(retraining, "preprocessing_of", recorded)
    small_retraining(cutout=3, color_jitter=(0.4, 0.3, 0.2, 0.1)).step_program()
    (settings,) = made
    assert (settings.crop_padding, settings.cutout, settings.jitter) == (4, 3, (0.4, 0.3, 0.2, 0.1))


@pytest.mark.parametrize("seed", [3, 4])
def test_a_random_genotype_follows_the_seed(tmp_path, seed):
    # Would catch several seeds that all retrain the same random genotype.
    config = defaults()
    config.update(dict(genotype="random", seed=seed))
    expected = spaces.random_genotype(SPACE, seed)
    assert choose_genotype(from_config_dict(config), SPACE, tmp_path) == expected


def split_retraining(seed=0, count=1, fraction=0.6, **changes):
    """Returns the retraining of the small space on 60 % of 40 random images."""
    config = defaults()
    config.update(dict(space=str(Path(__file__).parents[2] / "small_space.py"), seed=seed))
    config.retrain.update(dict(batch_size=8, train_fraction=fraction, **changes))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8, 3), np.uint8)
    labels = rng.integers(0, 4, 40).astype(np.int32)
    dataset = Dataset("noise", images, labels, images[:8], labels[:8], tuple("abcd"), True)
    config = from_config_dict(config)
    genotype = spaces.random_genotype(spaces.create(config.space), 0)
    return Retraining(config, genotype, dataset, devices.make_mesh(jax.devices()[:count]))


def test_the_images_that_are_left_validate():
    # Would catch images that are trained on and validated too, another split for each seed, the
    # statistics of the batch in place of the running ones, and images that are left out.
    whole = split_retraining(fraction=1.0)
    np.testing.assert_array_equal(whole.split[0], np.arange(40))
    assert len(whole.split[1]) == whole.loader._schedule.evaluation_batches == 0
    one, other = split_retraining(), split_retraining(seed=1, count=2)
    for ours, theirs in zip(one.split, other.split, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    train, valid = one.split
    assert sorted([*train, *valid]) == list(range(40)) and len(train) == 24
    assert one.steps == 3
    (subset,) = one.loader._schedule.subsets
    np.testing.assert_array_equal(subset.index, train)

    state = devices.run_once(one.init, one.mesh, 0)
    images, labels = preprocessing_of(one.dataset).normalise(one.loader.raw, valid)
    network = one.space.network(one.spec(4), backend.PLAIN)
    logits = network.apply({"params": state.params, **state.variables}, images, False)
    for each in (one, other):
        state = devices.replicate(jax.device_get(state), each.mesh)
        program, batches = each.validation_program(), each.loader.evaluation(0)
        found = loop.evaluate(program, state, each.loader.raw, batches)
        assert found["accuracy"] == pytest.approx(np.mean(np.argmax(logits, -1) == labels))


def test_a_fraction_that_leaves_no_image_is_refused():
    # Would catch a random search whose cells have no accuracy.
    split_retraining().check()
    with pytest.raises(UserError, match="train_fraction is 0.99, which leaves none of the 40"):
        split_retraining(fraction=0.99).check()
