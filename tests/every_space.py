"""Specs, variables and values with which tests run every search space."""

import contextlib
import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from drnas_jax import components, spaces
from drnas_jax.errors import UserError
from drnas_jax.nn import backend
from drnas_jax.phases.search import stages
from drnas_jax.spaces.base import NetworkSpec, SupernetSpec

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = [*components.names("space"), *(str(EXAMPLES / f"{name}.py") for name in ("chain", "vit"))]
CHANNELS, CLASSES, IMAGE = 8, 5, (8, 8, 3)
# Compiled for one run: optimisation would take longer than it saves.
FAST_COMPILE = {"xla_backend_optimization_level": 0}

SUBSPACES = ("darts_s1", "darts_s2", "darts_s3", "darts_s4")


def all_but(*slow):
    """Runs a test with all spaces, but with the `slow` ones only among the slow tests."""
    names = [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in NAMES]
    return pytest.mark.parametrize("space", names, ids=components.short_name, indirect=True)


# The largest supernets; the tests of their cells compare the same gradients with plain code.
BUT_DARTS = all_but("darts", *SUBSPACES)
# They have the code of the DARTS space, which runs at once.
BUT_SUBSPACES = all_but(*SUBSPACES)


@functools.cache
def created(name):
    return spaces.create(name)


def depth_of(space):
    """Returns a depth at which there are cells of all types: that of DARTS is 3, of macro 8."""
    if space.name == "macro":
        return 8
    return 3 if len(space.cells) > 1 else 2


def first_spec(space, partial_channels=4):
    """Returns the supernet with all operations; K is 1 if the space has no partial channels."""
    cells, depth = tuple(space.cells.items()), depth_of(space)
    spec = SupernetSpec(cells, CHANNELS, depth, CLASSES, IMAGE, partial_channels)
    with contextlib.suppress(UserError):
        space.check(spec)
        return spec
    return dataclasses.replace(spec, partial_channels=1)


def pruned(spec, count, seed=0, partial_channels=None):
    """Returns the spec with `count` operations on each edge, chosen at random."""
    random = np.random.default_rng(seed)
    scores = {cell_type: random.random(cell.shape) for cell_type, cell in spec.cells}
    columns = stages.columns_to_keep(scores, spec, count)
    return stages.resized_spec(spec, columns, partial_channels or spec.partial_channels)


def network_spec(space, genotype, image=IMAGE):
    return NetworkSpec(genotype, CHANNELS, depth_of(space), CLASSES, image)


def random_mix(spec):
    """Returns positive mixing weights that are 0 beyond the end of an edge's list."""
    random = np.random.default_rng(0)
    mix = {}
    for cell_type, cell in spec.cells:
        weights = random.uniform(0.2, 1, cell.shape) * (True if cell.mask is None else cell.mask)
        mix[cell_type] = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
    return mix


def random_images(shape=IMAGE):
    return np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)


def streams():
    return {name: jax.random.key(0) for name in ("params", "dropout", "noise", "drop_path")}


@functools.cache
def variables_of(space, spec):
    """Returns the shapes of a supernet's variables; nothing is compiled."""
    module = space.supernet(spec, backend.GPU)
    mix = {cell_type: jnp.ones(cell.shape) for cell_type, cell in spec.cells}
    images = jnp.zeros((1, *spec.image))
    return jax.eval_shape(lambda: module.init(streams(), images, mix, True))


def random_values(variables):
    """Returns random numbers in place of an initialisation, which takes longer to compile.

    Weights are about as large as in an initialisation. All are such that values neither vanish nor
    explode in evaluation.
    """
    random = np.random.default_rng(0)

    def values(path, leaf):
        if path[-1].startswith("mean"):
            return random.uniform(-0.5, 0.5, leaf.shape).astype(leaf.dtype)
        if path[-1].startswith(("var", "scale", "bias")):
            return random.uniform(0.3, 1, leaf.shape).astype(leaf.dtype)
        inputs = np.prod(leaf.shape[-3:-1])
        return (random.normal(size=leaf.shape) / np.sqrt(inputs)).astype(leaf.dtype)

    return unflatten_dict({path: values(path, leaf) for path, leaf in paths(variables).items()})


def numbered(tree):
    """Returns the tree with another number in every place, from 0 on."""
    leaves, structure = jax.tree.flatten(tree)
    firsts = np.cumsum([0, *(leaf.size for leaf in leaves)])
    values = (first + np.arange(leaf.size) for first, leaf in zip(firsts, leaves, strict=False))
    return structure.unflatten(
        [value.reshape(leaf.shape) for value, leaf in zip(values, leaves, strict=True)]
    )


def paths(tree):
    return flatten_dict(dict(tree))


def primitives_of(space):
    return {op for cell in space.cells.values() for edge in cell.edges for op in edge.primitives}
