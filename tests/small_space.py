"""A user's search space whose supernet compiles in no time, and states of random numbers.

Tests of what holds for any supernet find it by the path of this file, as a user's own space is.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from drnas_jax.nn.norm import BatchNorm
from drnas_jax.spaces.base import Cell, Edge, Space
from drnas_jax.training.devices import replicate

PRIMITIVES = ("none", "left", "middle", "right")
CELL = Cell(tuple(Edge(i + 1, i, PRIMITIVES) for i in range(3)))


class Small(nn.Module):
    """Hidden features times their mixing weights, after a BatchNorm; keeps the last weights."""

    classes: int
    axis_name: str | None

    @nn.compact
    def __call__(self, x, mix, train):
        x = BatchNorm(axis_name=self.axis_name)(x.reshape(len(x), -1), train)
        hidden = jnp.tanh(nn.Dense(mix["cell"].size)(x))
        seen = self.variable("batch_stats", "mix", jnp.zeros, mix["cell"].shape)
        if train and not self.is_initializing():
            seen.value = mix["cell"]
        return nn.Dense(self.classes)(hidden * mix["cell"].reshape(-1))


class Network(nn.Module):
    """The number of features is that of the operations other than `none` in the genotype."""

    spec: object
    axis_name: str | None

    @nn.compact
    def __call__(self, x, train):
        chosen = [name for node in self.spec.genotype.cell("cell") for name, _ in node]
        width = len(chosen) - chosen.count("none") + 1
        model = Small(self.spec.classes, self.axis_name, name="model")
        return model(x, {"cell": jnp.ones((1, width))}, train)


class SmallSpace(Space):
    """One cell type, a chain of three layers; a stage cannot prune it."""

    name = "small"
    cells: Mapping[str, Cell] = {"cell": CELL}

    def supernet(self, spec, backend):
        return Small(spec.classes, backend.axis_name)

    def network(self, spec, backend):
        return Network(spec, backend.axis_name)


create = SmallSpace


def start(experiment, spec):
    """Returns a state of random numbers: an initialisation would take longer to compile."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: experiment.init(spec, 0))

    def numbers(path, leaf):
        name = path[-1].key
        value = np.ones(leaf.shape) if name in ("var", "scale") else np.zeros(leaf.shape)
        spread = np.sqrt(2 / max(1, np.prod(leaf.shape[-4:-1]))) if name == "kernel" else 0.1
        return (value + spread * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    params = jax.tree_util.tree_map_with_path(numbers, shapes.params)
    alpha = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes.alpha)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.full(leaf.shape, path[-1].key == "var", leaf.dtype),
        shapes.variables,
    )
    state = zeros.replace(params=params, alpha=alpha, variables=variables)
    return replicate(state, experiment.mesh)
