"""Pruning and widening in every search space: the bundled ones and the examples."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from every_space import (
    BUT_SUBSPACES,
    CHANNELS,
    NAMES,
    SUBSPACES,
    created,
    depth_of,
    first_spec,
    numbered,
    paths,
    primitives_of,
    pruned,
    variables_of,
)

from drnas_jax import components
from drnas_jax.nn.counting import count_parameters
from drnas_jax.training.optimisers import map_like_params


@pytest.fixture(params=NAMES, ids=components.short_name)
def space(request):
    return created(request.param)


def parameters_by_hand(space, edge, cell_type, primitive):
    """Returns the parameters of an operation on an edge, in all cells of the first supernet."""
    depth = depth_of(space)
    if space.name.startswith("darts"):
        # One normal cell of C channels, then two reduction cells of 2 C and 4 C.
        widths, halves = {"normal": ([2], False), "reduce": ([4, 8], edge.source < 2)}[cell_type]
        kind, _, size = primitive.rpartition("_")
        if kind in ("sep_conv", "dil_conv"):
            layers, taps = {"sep_conv": 2, "dil_conv": 1}[kind], int(size[0]) ** 2
            return sum(layers * (taps * w + w * w) for w in widths)
        return sum(w * w for w in widths) if primitive == "skip_connect" and halves else 0
    if space.name == "nasbench201":
        taps = {"nor_conv_1x1": 1, "nor_conv_3x3": 9}.get(primitive, 0)
        return sum(depth * taps * w * w for w in (2, 4, 8))
    if space.name == "macro":
        layer = edge.target - 1
        wide = 8 * 2 ** sum(layer > first for first in (0, 2, 5))  # channels of the input
        output = 2 * wide if layer in (0, 2, 5) else wide
        if primitive == "identity":
            return wide * output if output > wide else 0
        taps, expansion = {"mbconv_3x3_e3": (9, 3), "mbconv_5x5_e6": (25, 6)}[primitive]
        return expansion * wide * (wide + taps + output)
    if space.name == "chain":
        return depth * {"conv_1x1": 1, "conv_3x3": 9}.get(primitive, 0) * 2 * 2
    assert space.name == "vit"
    kind, _, number = primitive.partition("_")
    # Query, key, value and output, and the two layers of a perceptron, each with a bias.
    if kind == "heads":
        return depth * 4 * (CHANNELS * CHANNELS + CHANNELS)
    wide = int(number or 0) * CHANNELS
    return depth * (CHANNELS * wide + wide + wide * CHANNELS + CHANNELS) if wide else 0


COUNTED = ("darts", *SUBSPACES, "nasbench201", "macro", "chain", "vit")


@BUT_SUBSPACES
@pytest.mark.parametrize("count", [1, 2])
def test_pruning_removes_exactly_the_parameters_of_the_dropped_operations(space, count):
    # Would catch parameters that stay although nothing reads them, or that two operations share.
    if space.name not in COUNTED:
        pytest.skip("its parameters were not counted by hand")
    old = first_spec(space)
    new = pruned(old, count)
    before, after = variables_of(space, old), variables_of(space, new)
    dropped = sum(
        parameters_by_hand(space, edge, cell_type, primitive)
        for cell_type, cell in old.cells
        for edge, kept in zip(cell.edges, new.cell(cell_type).edges, strict=True)
        for primitive in edge.primitives
        if primitive not in kept.primitives
    )
    tree = numbered(before["params"])
    resized = space.resize(tree, after["params"], old, new, seed=0)
    assert count_parameters(resized) == count_parameters(tree) - dropped
    assert dropped > 0 or count >= max(cell.shape[1] for cell in space.cells.values())
    # None is changed, and none is there twice.
    left = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(resized)])
    assert len(np.unique(left)) == len(left)
    assert set(left) <= set(range(count_parameters(tree)))


OPTIMISERS = {
    "sgd": optax.sgd(0.1, momentum=0.9),
    "adamw": optax.adamw(0.1),
    "masked adamw": optax.masked(
        optax.adamw(0.1),
        lambda params: jax.tree.map_with_path(lambda path, _: "kernel" in str(path[-1]), params),
    ),
}


def with_values(params, tree):
    """Returns a tree of moments whose values are those of the parameters; masked ones stay."""

    def masked(leaf):
        return isinstance(leaf, optax.MaskedNode)

    return jax.tree.map(
        lambda leaf, value: leaf if masked(leaf) else value, tree, params, is_leaf=masked
    )


def assert_equal(found, expected):
    if isinstance(expected, jax.ShapeDtypeStruct):  # a counter
        assert found == expected
    else:
        np.testing.assert_array_equal(found, expected)


@BUT_SUBSPACES
@pytest.mark.parametrize("count, partial_channels", [(2, 4), (99, 2), (1, 1)])
def test_a_resized_state_is_shaped_like_a_fresh_one(space, count, partial_channels):
    # Would catch arrays or moments that keep the old shape, or other copies in the moments.
    old = first_spec(space)
    new = pruned(old, count, partial_channels=min(partial_channels, old.partial_channels))
    before, after = variables_of(space, old), variables_of(space, new)

    def resize(tree, collection="params"):
        return space.resize(tree, after[collection], old, new, seed=1)

    values = {name: numbered(tree) for name, tree in before.items()}
    resized = {name: resize(tree, name) for name, tree in values.items()}
    assert jax.tree.map(np.shape, resized) == jax.tree.map(lambda leaf: leaf.shape, after)

    def state(optimiser, params):
        """Returns the optimiser's state, in which each moment is the parameter itself."""
        fill = functools.partial(with_values, params)
        return map_like_params(params, fill, jax.eval_shape(optimiser.init, params))

    for name, optimiser in OPTIMISERS.items():
        moved = map_like_params(values["params"], resize, state(optimiser, values["params"]))
        expected = state(optimiser, resized["params"])
        assert jax.tree.structure(moved) == jax.tree.structure(expected), name
        jax.tree.map(assert_equal, moved, expected)


def copied_channels(space, old, new, axis):
    """Returns which old channels an axis of each array copies, by operation and path inside it.

    An array has a set of lists of channels: one list if all its rows copy the same channels.
    """
    before, after = variables_of(space, old), variables_of(space, new)
    primitives, copies = primitives_of(space), {}

    def channel_numbers(leaf):
        if leaf.ndim < -axis:
            return np.zeros(leaf.shape, int)
        ends = [leaf.shape[axis]] + [1] * (-axis - 1)
        return np.broadcast_to(np.arange(leaf.shape[axis]).reshape(ends), leaf.shape)

    for name, tree in before.items():
        marked = jax.tree.map(channel_numbers, tree)
        resized = space.resize(marked, after[name], old, new, seed=1)
        for path, array in paths(resized).items():
            inside = next((i for i, key in enumerate(path) if key in primitives), None)
            if inside is not None and array.ndim >= -axis:
                rows = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
                operation = copies.setdefault(path[: inside + 1], {})
                operation[name, *path[inside + 1 :]] = set(map(tuple, rows.tolist()))
    return copies


@BUT_SUBSPACES
def test_widening_copies_whole_channels(space):
    # Would catch a copied output that gets the statistics of another channel.
    old = dataclasses.replace(first_spec(space), channels=32, depth=1)
    if old.partial_channels == 1:
        pytest.skip("the space has no partial channels")
    new = dataclasses.replace(pruned(old, 2), partial_channels=2)
    copies = copied_channels(space, old, new, axis=-1)
    assert copies
    for operation, leaves in copies.items():
        weights = [rows for (name, *_), rows in leaves.items() if name == "params"]
        for (name, *path), rows in leaves.items():
            for row in rows:
                length = max(row) + 1
                # The old channels come first. A skip connection of DARTS halves the width.
                assert row[:length] == tuple(range(length)), (operation, path)
                assert len(row) == 2 * length
            if name != "params" and weights:
                assert rows in weights, (operation, path)
