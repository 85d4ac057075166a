"""Single steps of a search, and comparisons of what they change."""

import dataclasses
import functools

import jax
import numpy as np
from small_space import start

from drnas_jax.data import Images
from drnas_jax.phases.search import step as steps
from drnas_jax.training.devices import REPLICATED, SHARDED, data_parallel, make_mesh
from drnas_jax.training.programs import Dispatch

BATCH = 16
# Programs are compiled for a few steps: optimisation would take longer than it saves.
FAST = {"xla_backend_optimization_level": 0}


def spec_of(experiment):
    """Returns the first supernet; that of a real space keeps two operations on each edge."""
    first = experiment.first_spec()
    if experiment.space.name == "small":
        return first

    def two(i, names):
        return tuple(names[j] for j in sorted((i % len(names), (i + 1) % len(names))))

    cells = []
    for cell_type, cell in first.cells:
        edges = (
            dataclasses.replace(edge, primitives=two(i, edge.primitives))
            for i, edge in enumerate(cell.edges)
        )
        cells.append((cell_type, dataclasses.replace(cell, edges=tuple(edges))))
    return dataclasses.replace(first, cells=tuple(cells))


def begin(experiment):
    """Returns a state of random numbers for `spec_of`."""
    return start(experiment, spec_of(experiment))


def indices(rows=3):
    """Returns training and validation examples of some steps, [rows, b] each, all different."""
    order = np.random.default_rng(1).permutation(64).astype(np.int32)
    return tuple(
        np.stack([np.roll(half, 8 * row)[:BATCH] for row in range(rows)])
        for half in (order[:32], order[32:])
    )


def run(experiment, train, valid, frozen=False):
    """Returns the state after a step for each row of the indices, in separate dispatches."""
    program, state = compiled(experiment), begin(experiment)
    for row in range(len(train)):
        dispatch = dispatch_of(train[row : row + 1], valid[row : row + 1], frozen)
        state = program(state, experiment.loader.raw, dispatch)
    return state


def dispatch_of(train, valid, frozen=False):
    return Dispatch((train, valid), np.int32(len(train)), np.array([False, frozen]))


@functools.cache
def compiled(experiment):
    program, row = experiment.step_program(spec_of(experiment)), np.zeros((1, BATCH), np.int32)
    lowered = program.lower(begin(experiment), experiment.loader.raw, dispatch_of(row, row))
    return lowered.compile(compiler_options=FAST)


def unchanged(images, keys):
    """Takes the place of the augmentation."""
    del keys
    return images


def draw_mix(config, state, alpha, role):
    keys = steps.pass_keys(config, state, role)
    return steps.sample(config, state, keys.sample, role, alpha)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(BATCH, 8, 8, 3)).astype(np.float32)
    return Images(images, rng.integers(0, 4, BATCH).astype(np.int32))


def call(function, mesh, state, *batches):
    """Calls a function of one device's shards: a state, and batches split over the devices."""
    program = data_parallel(function, mesh, (REPLICATED, *(SHARDED,) * len(batches)))
    return program.lower(state, *batches).compile(compiler_options=FAST)(state, *batches)


def update(function, config, state, mesh=None):
    """Runs `update_alpha` or `update_weights` on one batch."""
    one_device = make_mesh(jax.devices()[:1])
    unaugmented = functools.partial(function, config, augment=unchanged)
    return call(unaugmented, mesh or one_device, state, batch())


def assert_equal(found, expected):
    """Asserts that two trees are equal to the last bit."""
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def assert_differs(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.any(np.asarray(a) != np.asarray(b))


def assert_close(found, expected, **tolerances):
    close = functools.partial(np.testing.assert_allclose, **tolerances)
    jax.tree.map(close, found, expected)


def assert_replicated(state):
    """Asserts that every device holds the same bits."""
    for array in jax.tree.leaves(state):
        first, *others = [np.asarray(shard.data) for shard in array.addressable_shards]
        assert len(others) == 7
        for other in others:
            np.testing.assert_array_equal(other, first)
