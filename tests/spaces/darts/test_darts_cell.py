"""Every way of running a DARTS cell against the plain one: values, statistics, all gradients."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnas_jax.nn import backend
from drnas_jax.nn.banks import Mode
from drnas_jax.spaces.darts import stacked
from drnas_jax.spaces.darts.cell import Cell, run_cells
from drnas_jax.spaces.darts.operations import INPUTS, NODES, PRIMITIVES, Edge

CHANNELS = 4
PAIRS = [(node, source) for node in range(NODES) for source in range(INPUTS + node)]
WHOLE = tuple(Edge(*pair, PRIMITIVES) for pair in PAIRS)
# Every edge keeps other operations, and no edge keeps max_pool_3x3.
PRUNED = tuple(
    Edge(*pair, tuple(name for i, name in enumerate(PRIMITIVES) if i and (i + e) % 3))
    for e, pair in enumerate(PAIRS)
)
PRUNED = tuple(edge._replace(operations=edge.operations[:4]) for edge in PRUNED)
NETWORK = tuple(
    Edge(node, source, (PRIMITIVES[(3 * node + source) % 7],))
    for node in range(NODES)
    for source in (node, node + 1)
)
# One operation an edge, another one for every source.
SINGLE = tuple(Edge(*pair, (PRIMITIVES[(2 + 3 * pair[1]) % 7],)) for pair in PAIRS)
# For one run: optimisation would take longer than it saves.
FAST_COMPILE = {"xla_backend_optimization_level": 0}
EDGES = {"whole": WHOLE, "pruned": PRUNED, "single": SINGLE, "network": NETWORK}


def arrays(cell, cells, inputs, halve, seed=0):
    """Random arrays of a run of cells, as a model's banks would hand them over."""
    random = np.random.default_rng(seed)
    shapes = {}
    for name, bank in cell.make_banks(cells, affine=False).items():
        shapes[name] = {
            leaf: (cells, bank.leading[1], *w.shape) for leaf, w in bank.weights.items()
        }
    for i, (width, half) in enumerate(zip(inputs, (halve, False), strict=True)):
        parts = 2 if half else 1
        shapes[f"squeeze_{i}"] = {"kernel": (cells, parts, width, CHANNELS // parts)}
    return jax.tree.map(
        lambda shape: random.normal(size=shape).astype(np.float32),
        shapes,
        is_leaf=lambda value: isinstance(value, tuple),
    )


def evaluate(own, kind, edges, partial_channels, runs, images, keep=None, learn=None):
    """Outputs, moments, and gradients of all that runs through the cells."""
    random = np.random.default_rng(5)
    count = len(edges[0].operations)
    mix = random.dirichlet(np.ones(count), len(edges)).astype(np.float32)
    keys = jnp.arange(sum(len(run["squeeze_0"]["kernel"]) for run in runs), dtype=jnp.float32)

    def function(images, runs, mix):
        mode = Mode(own, True, None, None if learn is None else jnp.float32(learn))
        cell = Cell(mode, kind, edges, CHANNELS, partial_channels)
        inputs = tuple(map(own.transpose, images))
        outputs, moments = run_cells(cell, inputs, runs, mix, keep, keys)
        return tuple(map(own.transpose, outputs)), moments

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def compute(*arguments):
        outputs, pull, moments = jax.vjp(function, *arguments, has_aux=True)
        g = [np.random.default_rng(6).normal(size=y.shape).astype(y.dtype) for y in outputs]
        return outputs, moments, pull(tuple(map(jnp.asarray, g)))

    return compute(images, runs, mix)


def assert_same(found, expected):
    flat, tree = jax.tree_util.tree_flatten_with_path(expected)
    values, same = jax.tree.flatten(found)
    assert tree == same
    for (path, want), got in zip(flat, values, strict=True):
        # Sums in another order: float32's rounding, relative to the array's largest value.
        tolerance = 1e-4 * np.abs(want).max() + 1e-5
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance, err_msg=f"{path}")


def images(*shapes):
    random = np.random.default_rng(1)
    return tuple(random.normal(size=shape).astype(np.float32) for shape in shapes)


@functools.cache
def one_cell(platform, kept, kind, partial_channels, learn=None):
    edges = EDGES[kept]
    plain = Cell(Mode(backend.PLAIN, True, None), kind, edges, CHANNELS, partial_channels)
    runs = [arrays(plain, 1, (6, 5), halve=True)]
    inputs = images((3, 8, 12, 6), (3, 4, 6, 5))
    own = backend.for_platform(platform)
    return evaluate(own, kind, edges, partial_channels, runs, inputs, learn=learn)


SLOW = {
    ("whole", 1), ("pruned", 1),  # the same but for the shuffle
    # Nothing that no other has.
    ("whole", 2, "normal"), ("pruned", 2, "reduce"), ("single", 2), ("network", 1, "normal"),
}  # fmt: skip
CELLS = (("whole", 1), ("whole", 2), ("pruned", 1), ("pruned", 2), ("single", 2), ("network", 1))
ONE_CELL = [
    pytest.param(*case, kind, marks=pytest.mark.slow if SLOW & {case, (*case, kind)} else ())
    for case in CELLS
    for kind in ("normal", "reduce")
]


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("kept, partial_channels, kind", ONE_CELL)
def test_one_cell(kept, partial_channels, kind, platform):
    expected = one_cell("plain", kept, kind, partial_channels)
    assert_same(one_cell(platform, kept, kind, partial_channels), expected)


@pytest.mark.parametrize("kept", [pytest.param("whole", marks=pytest.mark.slow), "network"])
def test_wide_rows_on_accelerators(monkeypatch, kept):
    """With few lanes, these few channels are treated as wide ones are: not side by side."""
    monkeypatch.setattr(stacked, "_LANES", 4)
    edges, partial_channels = EDGES[kept], 1
    plain = Cell(Mode(backend.PLAIN, True, None), "reduce", edges, CHANNELS, partial_channels)
    runs, inputs = [arrays(plain, 1, (6, 5), halve=True)], images((3, 8, 12, 6), (3, 4, 6, 5))
    found = evaluate(backend.GPU, "reduce", edges, partial_channels, runs, inputs)
    assert_same(found, one_cell("plain", kept, "reduce", partial_channels))


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_a_network_in_evaluation(platform):
    """By running statistics, with scale and bias, as retrained networks are judged."""
    edges, random = NETWORK, np.random.default_rng(2)
    cell = Cell(Mode(backend.PLAIN, False, None), "reduce", edges, CHANNELS, 1)
    own = arrays(cell, 1, (6, 5), halve=True)
    for name, bank in cell.make_banks(1, affine=True).items():
        for suffix, shape in bank.norms.items():
            for leaf in ("mean", "var", "scale", "bias") if bank.affine else ("mean", "var"):
                size = (1, bank.leading[1], *shape)
                own[name][leaf + suffix] = random.uniform(0.5, 2, size).astype(np.float32)
    for name in ("squeeze_0", "squeeze_1"):
        for leaf in ("mean", "var", "scale", "bias"):
            own[name][leaf] = random.uniform(0.5, 2, (1, CHANNELS)).astype(np.float32)
    inputs = images((3, 8, 12, 6), (3, 4, 6, 5))

    @functools.partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
    def outputs(chosen):
        mode = Mode(chosen, False, None)
        found, _ = run_cells(
            Cell(mode, "reduce", edges, CHANNELS, 1),
            tuple(map(chosen.transpose, inputs)),
            [own],
            jnp.ones((len(edges), 1)),
            None,
            jnp.arange(1.0),
        )
        return chosen.transpose(found[1])

    assert_same(outputs(backend.for_platform(platform)), np.asarray(outputs(backend.PLAIN)))


@pytest.mark.parametrize("learn", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["normal", pytest.param("reduce", marks=pytest.mark.slow)])
def test_weights_get_a_gradient_where_they_learn(kind, learn):
    found = one_cell("cpu", "pruned", kind, 2, learn)
    outputs, moments, (d_images, d_runs, d_mix) = one_cell("cpu", "pruned", kind, 2)
    d_runs = jax.tree.map(lambda gradient: learn * gradient, d_runs)
    assert_same(found, (outputs, moments, (d_images, d_runs, d_mix)))


FAST = {("cpu", "cells"), ("gpu", "none"), ("plain", "cells")}
IN_A_ROW = [
    pytest.param(*case, marks=() if case in FAST else pytest.mark.slow)
    for case in itertools.product(("cpu", "gpu", "plain"), ("none", "cells", "convolutions"))
]


@functools.cache
def cells_in_a_row(own):
    """A network's cells whose first inputs differ, with drop path."""
    edges = NETWORK
    plain = Cell(Mode(backend.PLAIN, True, None), "normal", edges, CHANNELS, 1)
    width = NODES * CHANNELS
    runs = [
        arrays(plain, 1, (6, 5), halve=True, seed=1),
        arrays(plain, 1, (5, width), halve=False, seed=2),
        arrays(plain, 2, (width, width), halve=False, seed=3),
    ]
    inputs = images((3, 8, 12, 6), (3, 4, 6, 5))

    def keep(key, x):  # another factor for every cell, example and edge
        del x
        return 0.5 + (key + 1) * jnp.arange(3 * len(edges)).reshape(3, -1) / 50

    return evaluate(own, "normal", edges, 1, runs, inputs, keep)


@pytest.mark.parametrize("platform, remat", IN_A_ROW)
def test_cells_in_a_row_whose_first_inputs_differ(platform, remat):
    own = backend.choose(platform, "cpu", remat)
    assert_same(cells_in_a_row(own), cells_in_a_row(backend.PLAIN))
