"""Every way of computing a DARTS cell against the plain one: values, statistics, all gradients."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnas_jax.nn import backend, weight_gradients
from drnas_jax.nn.stacked_params import ApplyContext
from drnas_jax.spaces.base import Cell, Edge
from drnas_jax.spaces.darts import block_sums
from drnas_jax.spaces.darts.cell import MixedCell, run_cells
from drnas_jax.spaces.darts.noise import has_noise
from drnas_jax.spaces.darts.operations import INPUTS, NODES, PRIMITIVES

CHANNELS = 4
PAIRS = [(INPUTS + node, source) for node in range(NODES) for source in range(INPUTS + node)]


def edges_of(pairs, primitives_of):
    return tuple(
        Edge(*pair, tuple(primitives_of(number, *pair))) for number, pair in enumerate(pairs)
    )


def unequal(number, target, source):
    """Lists of 2 to 4 primitives, as in S1 to S4; neighbours keep others, and some keep `none`.

    Every edge keeps avg_pool_3x3, and only one edge, which leaves a node, keeps dil_conv_3x3.
    """
    lists = (
        ("none", "avg_pool_3x3", "skip_connect", "sep_conv_3x3"),
        ("max_pool_3x3", "avg_pool_3x3"),
        ("avg_pool_3x3", "skip_connect", "dil_conv_5x5"),
        ("sep_conv_5x5", "avg_pool_3x3"),
        ("avg_pool_3x3", "none"),
    )
    return (*lists[number % 5], *(["dil_conv_3x3"] if (target, source) == (5, 3) else []))


EDGES = {
    "whole": edges_of(PAIRS, lambda *_: PRIMITIVES),
    # Every edge keeps 4 operations, but not the same ones, and none keeps max_pool_3x3.
    "pruned": edges_of(
        PAIRS,
        lambda number, *_: [name for i, name in enumerate(PRIMITIVES) if i and (i + number) % 3][
            :4
        ],
    ),
    "unequal": edges_of(PAIRS, unequal),
    # One operation on each edge, another one for every source.
    "single": edges_of(PAIRS, lambda number, target, source: [PRIMITIVES[(2 + 3 * source) % 7]]),
    # The cell of a final network: two edges for each node.
    "network": edges_of(
        [(INPUTS + node, source) for node in range(NODES) for source in (node, node + 1)],
        lambda number, target, source: [PRIMITIVES[(3 * (target - INPUTS) + source) % 7]],
    ),
    # The cell of a network whose edges all leave the inputs, not in order.
    "inputs": edges_of(
        [(INPUTS + node, source) for node in range(NODES) for source in (1, 0)],
        lambda number, target, source: [PRIMITIVES[(2 + 3 * source) % 7]],
    ),
    "noise": edges_of(
        PAIRS, lambda number, *_: ["noise", *(["skip_connect"] if number % 3 else [])]
    ),
    # No operation has a kernel, and the node 4 has nothing but what bypasses the operations.
    "empty": edges_of(PAIRS, lambda number, target, _: ["none" if target == 4 else "noise"]),
}
# Compiled for one run: optimisation would take longer than it saves.
FAST_COMPILE = {"xla_backend_optimization_level": 0}


def mixed_cell(chosen, cell_type, kept, partial_channels, train=True):
    context = ApplyContext(chosen, train)
    return MixedCell(context, cell_type, EDGES[kept], CHANNELS, partial_channels)


def random_arrays(cell, cells, inputs, halve, seed=0):
    """Returns random arrays for a run of cells, named as a model would name them."""
    random = np.random.default_rng(seed)
    shapes = {}
    for name, params in cell.make_params(cells, affine=False).items():
        rows = params.leading[1]
        shapes[name] = {leaf: (cells, rows, *w.shape) for leaf, w in params.weights.items()}
    for i, (width, half) in enumerate(zip(inputs, (halve, False), strict=True)):
        pixels = 2 if half else 1
        shapes[f"squeeze_{i}"] = {"kernel": (cells, pixels, width, CHANNELS // pixels)}
    return jax.tree.map(
        lambda shape: random.normal(size=shape).astype(np.float32),
        shapes,
        is_leaf=lambda value: isinstance(value, tuple),
    )


def random_mix(edges):
    """Returns mixing weights of which the padding at the end of short edges is 0."""
    cell, random = Cell(edges, INPUTS), np.random.default_rng(5)
    mix = random.dirichlet(np.ones(cell.shape[1]), len(edges))
    return np.where(True if cell.mask is None else cell.mask, mix, 0).astype(np.float32)


def evaluate(cell, runs, images, draw_factors=None, wanted=None):
    """Returns outputs, moments, and the gradients of images, arrays and mixing weights."""
    chosen = cell.context.backend
    keys = jnp.arange(sum(len(run["squeeze_0"]["kernel"]) for run in runs), dtype=jnp.float32)
    noise_keys = jax.random.split(jax.random.key(3), len(keys)) if has_noise(cell.edges) else None

    def function(images, runs, mix):
        inputs = tuple(map(chosen.transpose, images))
        with weight_gradients.computed_if(None if wanted is None else jnp.float32(wanted)):
            outputs, moments = run_cells(cell, inputs, runs, mix, draw_factors, keys, noise_keys)
        return tuple(map(chosen.transpose, outputs)), moments

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def compute(*arguments):
        outputs, pull, moments = jax.vjp(function, *arguments, has_aux=True)
        g = [np.random.default_rng(6).normal(size=y.shape).astype(y.dtype) for y in outputs]
        return outputs, moments, pull(tuple(map(jnp.asarray, g)))

    return compute(images, runs, random_mix(cell.edges))


def assert_same(found, expected):
    flat, tree = jax.tree_util.tree_flatten_with_path(expected)
    values, same = jax.tree.flatten(found)
    assert tree == same
    for (path, want), got in zip(flat, values, strict=True):
        # Sums in another order: float32's rounding, relative to the array's largest value.
        tolerance = 1e-4 * np.abs(want).max() + 1e-5
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance, err_msg=f"{path}")


def random_images(*shapes):
    random = np.random.default_rng(1)
    return tuple(random.normal(size=shape).astype(np.float32) for shape in shapes)


# Input 0 is twice as large as input 1, and their channels differ.
IMAGES = random_images((3, 8, 12, 6), (3, 4, 6, 5))


@functools.cache
def one_cell(platform, kept, cell_type, partial_channels, wanted=None):
    """Returns what `evaluate` computes for a single cell."""
    cell = mixed_cell(backend.for_platform(platform), cell_type, kept, partial_channels)
    return evaluate(cell, [random_arrays(cell, 1, (6, 5), halve=True)], IMAGES, wanted=wanted)


CELLS = (
    *itertools.product(("whole", "pruned", "unequal"), (1, 2)),
    ("single", 2),
    ("network", 1),
    ("inputs", 1),
    ("noise", 2),
    ("empty", 2),
)
# The others show what these show, or only the shuffle's part in it.
FAST_CELLS = {("unequal", 2, "reduce"), ("inputs", 1, "reduce"), ("empty", 2, "reduce")}
ONE_CELL = [
    pytest.param(*case, marks=() if case in FAST_CELLS else pytest.mark.slow)
    for case in ((*cell, cell_type) for cell in CELLS for cell_type in ("normal", "reduce"))
]


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("kept, partial_channels, cell_type", ONE_CELL)
def test_a_cell_is_the_plain_one(kept, partial_channels, cell_type, platform):
    # Would catch an operation with the arrays or the mixing weight of another edge.
    expected = one_cell("plain", kept, cell_type, partial_channels)
    assert_same(one_cell(platform, kept, cell_type, partial_channels), expected)


@pytest.mark.parametrize("kept", [pytest.param("whole", marks=pytest.mark.slow), "network"])
def test_wide_rows_on_accelerators(monkeypatch, kept):
    # Would catch a mistake that only networks of many channels would show: with few lanes, the
    # few channels of this test count as many.
    monkeypatch.setattr(block_sums, "_LANES", 4)
    cell = mixed_cell(backend.GPU, "reduce", kept, 1)
    found = evaluate(cell, [random_arrays(cell, 1, (6, 5), halve=True)], IMAGES)
    assert_same(found, one_cell("plain", kept, "reduce", 1))


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_a_network_in_evaluation(platform):
    # Would catch a scale, bias or running average that is read in one way of computing only.
    random, cell = np.random.default_rng(2), mixed_cell(backend.PLAIN, "reduce", "network", 1)
    arrays = random_arrays(cell, 1, (6, 5), halve=True)
    for name, params in cell.make_params(1, affine=True).items():
        for suffix, shape in params.norms.items():
            for leaf in ("mean", "var", "scale", "bias") if params.affine else ("mean", "var"):
                size = (1, params.leading[1], *shape)
                arrays[name][leaf + suffix] = random.uniform(0.5, 2, size).astype(np.float32)
    for name in ("squeeze_0", "squeeze_1"):
        for leaf in ("mean", "var", "scale", "bias"):
            arrays[name][leaf] = random.uniform(0.5, 2, (1, CHANNELS)).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
    def outputs(chosen):
        cell = mixed_cell(chosen, "reduce", "network", 1, train=False)
        inputs = tuple(map(chosen.transpose, IMAGES))
        mix = jnp.ones((len(cell.edges), 1))
        found, _ = run_cells(cell, inputs, [arrays], mix, None, jnp.arange(1.0))
        return chosen.transpose(found[1])

    assert_same(outputs(backend.for_platform(platform)), np.asarray(outputs(backend.PLAIN)))


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [0, 1])
@pytest.mark.parametrize("cell_type", ["normal", "reduce"])
def test_weights_have_a_gradient_only_if_it_is_wanted(cell_type, wanted):
    # Would catch a loop whose backward pass does not know what is wanted.
    found = one_cell("cpu", "unequal", cell_type, 2, wanted)
    outputs, moments, (d_images, d_arrays, d_mix) = one_cell("cpu", "unequal", cell_type, 2)
    d_arrays = jax.tree.map(lambda gradient: wanted * gradient, d_arrays)
    assert_same(found, (outputs, moments, (d_images, d_arrays, d_mix)))


FAST = {("gpu", "none")}
IN_A_ROW = [
    pytest.param(*case, marks=() if case in FAST else pytest.mark.slow)
    for case in itertools.product(("cpu", "gpu", "plain"), ("none", "cells", "convolutions"))
]


@functools.cache
def cells_in_a_row(chosen):
    """Returns what `evaluate` computes for four cells of a network, with drop path."""
    cell, width = mixed_cell(chosen, "normal", "network", 1), NODES * CHANNELS
    runs = [
        random_arrays(cell, 1, (6, 5), halve=True, seed=1),
        random_arrays(cell, 1, (5, width), halve=False, seed=2),
        random_arrays(cell, 2, (width, width), halve=False, seed=3),
    ]

    def draw_factors(key, x):  # another factor for every cell, example and edge
        del x
        return 0.5 + (key + 1) * jnp.arange(3 * len(cell.edges)).reshape(3, -1) / 50

    return evaluate(cell, runs, IMAGES, draw_factors)


@pytest.mark.parametrize("platform, remat", IN_A_ROW)
def test_cells_in_a_row_whose_first_inputs_differ(platform, remat):
    # Would catch padded inputs that are read, or a cell that gets the inputs of the next one.
    chosen = backend.choose(platform, "cpu", remat)
    assert_same(cells_in_a_row(chosen), cells_in_a_row(backend.PLAIN))
