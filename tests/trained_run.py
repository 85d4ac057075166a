"""The workdir of a retraining that has ended, with random weights in place of trained ones."""

import jax
import numpy as np

from drnas_jax import spaces
from drnas_jax.config import defaults, from_config_dict
from drnas_jax.data import TrainingData
from drnas_jax.nn.backend import PLAIN
from drnas_jax.phases.retrain.retraining import RetrainMetadata
from drnas_jax.phases.setup import split_variables
from drnas_jax.training.checkpoints import Checkpoints
from drnas_jax.training.progress import Progress

SHAPE = (8, 8, 3)
EPOCHS = 2


def config_of(**changes):
    """Returns a config of two epochs of retraining on data that is never read.

    Args:
      changes: Changed fields of the config, with `__` for a dot.
    """
    config = defaults()
    config.data.name = "digits"
    config.retrain.epochs = EPOCHS
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    return from_config_dict(config)


def random_variables(network, shape=SHAPE, seed=0):
    """Returns random variables of a module, in which variances and scales are positive."""
    image = jax.ShapeDtypeStruct((1, *shape), "float32")
    like = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, False), image)
    rng = np.random.default_rng(seed)

    def numbers(path, leaf):
        if path[-1].key.startswith(("var", "scale")):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        return (0.3 * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(numbers, like)


def make(
    workdir, config, *, channels=4, depth=1, epochs=EPOCHS, shape=SHAPE, seed=0, resized_for=""
):
    """Writes a checkpoint of a random genotype's network.

    Args:
      workdir: Directory of the run.
      config: Config that names the space.
      channels: Number of channels C.
      depth: Number of cells.
      epochs: Number of epochs that are done.
      shape: Shape of an image.
      seed: Seed of genotype and weights.
      resized_for: Value of `data.crop` for which images were resized; '' if they were not.

    Returns:
      Description of the network, and its variables.
    """
    space = spaces.create(config.space, config.space_options)
    statistics = (0.4,) * shape[2], (0.2,) * shape[2]
    names = ("ant", "bee", "cat")
    data = TrainingData("noise", names, shape, *statistics, resized_for=resized_for)
    genotype = spaces.random_genotype(space, seed)
    metadata = RetrainMetadata(genotype, config.space, channels, depth, data)
    variables = random_variables(space.network(metadata.spec, PLAIN), shape, seed)
    params, rest = split_variables(variables)
    progress = Progress(epochs, 7.04, devices=1, jax="0.10", images=8, fingerprint=1, steps=1)
    with Checkpoints(workdir / "retrain/checkpoints") as checkpoints:
        state = {"params": params, "variables": rest}
        checkpoints.save(epochs, state, progress, metadata.to_json())
    return metadata, variables
