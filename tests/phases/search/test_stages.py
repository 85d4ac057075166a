"""Pruning and widening of a state whose numbers are all different, so that each can be traced."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from drnas_jax import spaces
from drnas_jax.errors import UserError
from drnas_jax.nn.counting import count_parameters
from drnas_jax.phases.search.stages import advance, first_structure, prune, widen
from drnas_jax.spaces import nasbench201 as space

EDGES = len(space.EDGES["cell"])


@pytest.fixture(scope="module")
def numbered(tiny):
    """(alpha [e, o], K) -> state and structure of 2 cells a stage; every number is unique."""
    problem = tiny()

    @functools.cache
    def shapes(partial_channels):
        first = problem.first_structure()
        structure = dataclasses.replace(first, cells=2, partial_channels=partial_channels)
        return jax.eval_shape(lambda: problem.init(structure, 0)), structure

    def make(alpha, partial_channels=4):
        state, structure = shapes(partial_channels)
        counter = itertools.count()

        def numbers(leaf):
            start = next(counter) * 2**14  # no array is larger, and float32 is exact to 2**24
            return np.arange(start, start + leaf.size).reshape(leaf.shape).astype(leaf.dtype)

        state = jax.tree.map(numbers, state)
        assert next(counter) * 2**14 < 2**24
        return state.replace(alpha={"cell": np.asarray(alpha, np.float32)}), structure

    return make


def random_alpha(seed):
    return np.random.default_rng(seed).normal(size=(EDGES, 5))


def tied_alpha(seed):
    return np.random.default_rng(seed).integers(0, 2, (EDGES, 5))


def apart(state, structure):
    """Everything in a state, taken apart: (path, edge, primitive, cell) -> array.

    Arrays that belong to no operation have the path alone.
    """
    parts = {}
    for path, array in jax.tree_util.tree_flatten_with_path(state)[0]:
        keys = [str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path]
        kept = structure.kept("cell")
        name = "/".join(keys)
        if keys[-1] == "cell":  # alpha, or a moment of it
            for edge, primitives in enumerate(kept):
                for column, primitive in enumerate(primitives):
                    parts[name, edge, primitive, None] = array[edge, column]
        elif keys[-2:-1] and keys[-2] in space.PRIMITIVES:
            primitive = keys[-2]
            edges = [edge for edge, primitives in enumerate(kept) if primitive in primitives]
            assert array.shape[:2] == (structure.cells, len(edges))
            for cell, (row, edge) in itertools.product(range(structure.cells), enumerate(edges)):
                parts[name, edge, primitive, cell] = array[cell, row]
        else:
            parts[name, None, None, None] = array
    return parts


def assert_same_parts(found, expected):
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, err_msg=str(key))


def largest(row, count):
    """The `count` largest of a row's numbers, as columns; of equal ones the first."""
    return sorted(sorted(range(len(row)), key=lambda column: (-row[column], column))[:count])


# Prune


@pytest.mark.parametrize("alpha", [random_alpha(0), random_alpha(1), tied_alpha(2)])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_prune_keeps_exactly_the_largest(numbered, alpha, count):
    state, structure = numbered(alpha)
    pruned, smaller = prune(space, state, structure, count)
    expected = [tuple(space.PRIMITIVES[column] for column in largest(row, count)) for row in alpha]
    assert smaller == dataclasses.replace(structure, operations=(("cell", tuple(expected)),))
    whole = apart(state, structure)
    # Weights, statistics, momentum, alpha and its moments: as they were, and no others.
    kept = {
        key: array for key, array in whole.items() if key[1] is None or key[2] in expected[key[1]]
    }
    assert_same_parts(apart(pruned, smaller), kept)
    for place in ("params", "batch_stats", "weight_opt", "alpha", "alpha_opt"):
        gone = [key for key in whole.keys() - kept.keys() if key[0].startswith(place)]
        assert gone, f"nothing left {place}"


def test_prune_twice_is_pruning_once(numbered):
    state, structure = numbered(random_alpha(0))
    once = prune(space, state, structure, 2)
    twice = prune(space, *prune(space, state, structure, 4), 2)
    assert once[1] == twice[1]
    jax.tree.map(np.testing.assert_array_equal, once[0], twice[0])


def test_prune_to_all_operations_is_the_identity(numbered):
    state, structure = numbered(random_alpha(0))
    same, still = prune(space, state, structure, 5)
    assert still == structure
    jax.tree.map(np.testing.assert_array_equal, same, state)


def test_prune_agrees_with_the_reference(numbered, shared):
    with np.load(shared / "reference" / "nb201_search_pruned.npz") as reference:
        alpha, mask, expected = (reference[k] for k in ("alphas", "mask", "pruned_alphas"))
    state, structure = numbered(alpha)
    pruned, smaller = prune(space, state, structure, 3)
    for edge, names in enumerate(smaller.kept("cell")):
        assert names == tuple(np.array(space.PRIMITIVES)[mask[edge]])
        np.testing.assert_array_equal(pruned.alpha["cell"][edge], expected[edge][mask[edge]])


# Widen


def copied_from(after, before):
    """Where in `before` [c] each number of `after` [c'] is."""
    place = {number: index for index, number in enumerate(before)}
    return np.array([place[number] for number in after])


@pytest.mark.parametrize("count", [5, 3, 1])
def test_widen_copies_channels_aligned(numbered, count):
    state, structure = prune(space, *numbered(random_alpha(0), 4), count)
    widened, wider = widen(space, state, structure, 2, seed=3)
    assert wider == dataclasses.replace(structure, partial_channels=2)
    before, after = apart(state, structure), apart(widened, wider)
    assert before.keys() == after.keys()
    outputs, inputs = {}, {}
    for (name, edge, primitive, cell), array in after.items():
        old = before[name, edge, primitive, cell]
        leaf = name.rpartition("/")[2]
        if primitive is None or cell is None:  # not an operation's, or alpha
            np.testing.assert_array_equal(array, old)
            continue
        stage = next(part for part in name.split("/") if part.startswith("cell_"))
        operation = (stage, cell, edge, primitive)
        out = copied_from(array.reshape(-1, array.shape[-1])[0], old.reshape(-1, old.shape[-1])[0])
        assert len(out) == 2 * old.shape[-1]
        np.testing.assert_array_equal(out[: old.shape[-1]], np.arange(old.shape[-1]))
        # The kernel, its mean, its variance and its momentum: one choice of copies.
        np.testing.assert_array_equal(outputs.setdefault(operation, out), out)
        if leaf == "kernel":
            source = copied_from(array[0, 0, :, 0], old[0, 0, :, 0])
            np.testing.assert_array_equal(source[: old.shape[-2]], np.arange(old.shape[-2]))
            np.testing.assert_array_equal(inputs.setdefault(operation, source), source)
            # Every number: copied along both axes, and not rescaled.
            np.testing.assert_array_equal(array, old[:, :, source][..., out])
        else:
            np.testing.assert_array_equal(array, old[out])
    kept = [primitive for edge in structure.kept("cell") for primitive in edge]
    convolutions = sum("conv" in primitive for primitive in kept)
    assert convolutions
    assert len(outputs) == len(inputs) == 3 * 2 * convolutions
    # Cells, edges, primitives, inputs and outputs: each copies in its own way. Two choices of
    # the 8 new channels in the last stage agree by chance once in 8**8.
    last = [tuple(c) for table in (outputs, inputs) for o, c in table.items() if o[0] == "cell_2"]
    assert len(set(last)) == len(last)


def test_widen_copies_every_channel_alike_often(numbered):
    counts = np.zeros(4, int)
    state, structure = numbered(random_alpha(0), 8)  # K 8 to 1: of 4 channels in the last stage
    for seed in range(4):
        widened, _ = widen(space, state, structure, 1, seed)
        new = widened.batch_stats["cell_2"]["nor_conv_1x1"]["mean"][..., 4:]
        counts += np.bincount((new % 4).astype(int).ravel(), minlength=4)
    # 1,344 draws from 4: 336 each, with a standard deviation of 16.
    assert counts.sum() == 4 * 2 * EDGES * 28
    assert np.all(np.abs(counts - 336) < 4 * 16)


def test_widen_to_the_same_channels_is_the_identity(numbered):
    state, structure = numbered(random_alpha(0))
    same, still = widen(space, state, structure, 4, seed=0)
    assert still == structure
    jax.tree.map(np.testing.assert_array_equal, same, state)


def test_widen_follows_the_seed(numbered):
    state, structure = numbered(random_alpha(0))
    one, again, other = (widen(space, state, structure, 1, seed)[0] for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    kernels = [s.params["cell_2"]["nor_conv_3x3"]["kernel"] for s in (one, other)]
    assert np.any(kernels[0] != kernels[1])


# Both


@pytest.mark.parametrize(("operations", "partial_channels"), [(3, 2), (3, 4), (5, 2)])
def test_advance_is_prune_then_widen(tiny, numbered, operations, partial_channels):
    state, structure = numbered(random_alpha(0))
    config = dataclasses.replace(
        tiny().config.search,
        epochs=(1, 1),
        warmup_epochs=(0, 0),
        operations=(5, operations),
        partial_channels=(4, partial_channels),
    )
    found, reached = advance(space, state, structure, config, 1, seed=6)
    pruned = prune(space, state, structure, operations)
    expected, expected_structure = widen(space, *pruned, partial_channels, seed=7)
    assert reached == expected_structure
    assert reached.partial_channels == partial_channels
    assert {len(edge) for edge in reached.kept("cell")} == {operations}
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_first_structure(tiny):
    search = tiny().config.search
    structure = first_structure(space, search, 4, "cifar")
    assert structure.kept("cell") == (space.PRIMITIVES,) * EDGES
    assert structure.partial_channels == search.partial_channels[0] == 4
    with pytest.raises(UserError, match="search.operations starts with 3.*all 5 operations"):
        first_structure(space, dataclasses.replace(search, operations=(3, 3)), 4, "cifar")


def test_one_operation_cannot_choose_edges(tiny):
    search = dataclasses.replace(tiny().config.search, operations=(7, 1))
    with pytest.raises(UserError, match=r"operations is \(7, 1\).*keep at least 2"):
        first_structure(spaces.find("darts"), search, 4, "cifar")
    search = dataclasses.replace(search, operations=(5, 1))  # where a cell has all edges
    first_structure(spaces.find("nasbench201"), search, 4, "cifar")


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_pruned_supernet_is_really_smaller(tiny, compiled):
    problem = tiny()  # one cell a stage: the cost analysis counts a loop's body once
    structure = problem.first_structure()

    def flops(state, structure):
        index = jax.ShapeDtypeStruct((1, 16), np.int32)
        lowered = problem.step_program(structure, frozen=True).lower(
            state, problem.reader.raw, index
        )
        program = lowered.compile() if compiled else lowered
        return program.cost_analysis()["flops"]

    state = jax.eval_shape(lambda: problem.init(structure, 0))
    alpha = np.tile(np.array([1, 2, 0, 0, 3], np.float32), (EDGES, 1))
    alpha[::2, 2] = 9  # 1x1 convolutions stay on half the edges
    values = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    pruned, smaller = prune(space, values.replace(alpha={"cell": alpha}), structure, 3)
    # Gone are all of the 3x3 convolutions, which are nearly all of the cells' work.
    assert count_parameters(pruned.params) < count_parameters(state.params)
    assert flops(pruned, smaller) < 0.8 * flops(state, structure)
