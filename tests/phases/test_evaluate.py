"""Evaluation of a final network on the test images."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from drnas_jax import data
from drnas_jax.config import defaults, from_config_dict
from drnas_jax.data import TrainingData
from drnas_jax.nn.counting import count_network
from drnas_jax.phases.evaluate import score
from drnas_jax.training.devices import make_mesh
from drnas_jax.training.metrics import Display

QUIET = Display(quiet=True)


class Noisy(nn.Module):
    """A network with a random operation: its logits are the mean pixel and noise."""

    @nn.compact
    def __call__(self, x, train):
        noise = jax.random.normal(self.make_rng("noise"), (len(x), 3))
        return nn.Dense(3)(jnp.mean(x, axis=(1, 2, 3))[:, None] + noise)


def test_a_network_with_random_operations_is_counted_and_evaluated_the_same_each_time():
    # Would catch an evaluation without the random stream `noise`, which spaces may rely on.
    arrays = {
        "x_train": np.arange(48, dtype=np.uint8).reshape(12, 2, 2, 1),
        "y_train": np.arange(12) % 3,
        "x_test": np.arange(40, dtype=np.uint8).reshape(10, 2, 2, 1),
        "y_test": np.arange(10) % 3,
    }
    config = defaults()
    config.retrain.batch_size = 4
    config = from_config_dict(config)
    dataset = data.from_arrays(arrays, config.data)
    network = Noisy()
    assert count_network(network, dataset.shape) == (3 * 3 + 3, 3 * 3)
    variables = network.init(jax.random.key(0), jnp.zeros((1, *dataset.shape)), False)
    mesh = make_mesh(jax.devices()[:2])
    scores = [
        score(network, variables, TrainingData.of(dataset), dataset, config, mesh, QUIET)
        for _ in range(2)
    ]
    (first, predictions), (second, _) = scores
    assert first == second
    assert first["accuracy"] == np.mean(predictions.label == predictions.predicted)


class Brightness(nn.Module):
    """A network that sees three classes in the brightness: dark, middle and bright."""

    @nn.compact
    def __call__(self, x, train):
        level = jnp.mean(x, axis=(1, 2, 3))[:, None]
        return -jnp.abs(level - jnp.array([-1.0, 0.0, 1.0]))


def test_another_data_set_is_evaluated_as_the_network_was_trained():
    # Would catch the mean of the other set's training images, and labels matched by number.
    config = defaults()
    config.retrain.batch_size = 4
    config = from_config_dict(config)

    def dataset(bright, classes, order):
        # The same test images, but the training images are brighter in one of the sets.
        levels = np.array([0, 100, 200], np.uint8)
        test, train = np.tile(levels, 4), np.tile(levels, 4) + bright
        labels = np.tile(np.array(order), 4)
        fields = [np.broadcast_to(x[:, None, None, None], (12, 2, 2, 1)) for x in (train, test)]
        return data.Dataset("arrays", fields[0], labels, fields[1], labels, classes, flip=False)

    trained = dataset(np.uint8(0), ("dark", "middle", "bright"), [0, 1, 2])
    other = dataset(np.uint8(50), ("bright", "dark", "middle"), [1, 2, 0])
    mesh = make_mesh(jax.devices()[:2])
    scores = [
        score(Brightness(), {}, TrainingData.of(trained), images, config, mesh, QUIET)
        for images in (trained, other)
    ]
    assert scores[0][0]["accuracy"] == scores[1][0]["accuracy"] == 1
    # Classes are the network's outputs, in whatever order the data set has them.
    for _, predictions in scores:
        np.testing.assert_array_equal(predictions.label, np.tile([0, 1, 2], 4))
