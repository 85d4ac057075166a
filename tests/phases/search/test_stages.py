"""Pruning and widening of a state whose numbers are all different, so that each can be traced."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from drnas_jax import spaces
from drnas_jax.config import Stage
from drnas_jax.errors import UserError
from drnas_jax.nn.counting import count_parameters
from drnas_jax.phases.search.stages import (
    columns_to_keep,
    first_spec,
    resized_spec,
    resized_state,
    stage_at,
)
from drnas_jax.spaces.nasbench201 import CELL, PRIMITIVES
from drnas_jax.training.random_keys import host_generator

EDGES = len(CELL.edges)


@pytest.fixture(scope="module")
def numbered(tiny):
    """Returns a function (alpha [e, o], K) -> spec and state of 2 cells a stage, all different."""
    experiment = tiny()

    @functools.cache
    def shapes(partial_channels):
        spec = dataclasses.replace(
            experiment.first_spec(), depth=2, partial_channels=partial_channels
        )
        return spec, jax.eval_shape(lambda: experiment.init(spec, 0))

    def make(alpha, partial_channels=4):
        spec, state = shapes(partial_channels)
        counter = itertools.count()

        def numbers(leaf):
            start = next(counter) * 2**14  # no array is larger, and float32 is exact to 2**24
            return np.arange(start, start + leaf.size).reshape(leaf.shape).astype(leaf.dtype)

        state = jax.tree.map(numbers, state)
        assert next(counter) * 2**14 < 2**24
        return spec, state.replace(alpha={"cell": np.asarray(alpha, np.float32)})

    return make


@pytest.fixture
def resize(tiny):
    """Returns a function that prunes and widens a state: -> the spec and the state after."""
    experiment = tiny()

    @functools.cache
    def shapes(spec):
        return jax.eval_shape(lambda: experiment.init(spec, 0))

    def make(spec, state, count=5, partial_channels=None, seed=0):
        columns = columns_to_keep(state.alpha, spec, count)
        new = resized_spec(spec, columns, partial_channels or spec.partial_channels)
        given = (state, spec, new, columns, shapes(new), seed)
        return new, resized_state(experiment.space, *given)

    return make


def random_alpha(seed):
    return np.random.default_rng(seed).normal(size=(EDGES, 5))


def tied_alpha(seed):
    return np.random.default_rng(seed).integers(0, 2, (EDGES, 5))


def kept(spec):
    """Returns the operations that are left on each edge."""
    return [edge.primitives for edge in spec.cell("cell").edges]


def apart(spec, state):
    """Takes a state apart: (path, edge, primitive, cell) -> array.

    Arrays that belong to no operation have only a path.
    """
    parts = {}
    for path, array in jax.tree_util.tree_flatten_with_path(state)[0]:
        keys = [str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path]
        name = "/".join(keys)
        if keys[-1] == "cell":  # alpha, or a moment of it
            for edge, primitives in enumerate(kept(spec)):
                for column, primitive in enumerate(primitives):
                    parts[name, edge, primitive, None] = array[edge, column]
        elif keys[-2:-1] and keys[-2] in PRIMITIVES:
            primitive = keys[-2]
            edges = [edge for edge, names in enumerate(kept(spec)) if primitive in names]
            assert array.shape[:2] == (spec.depth, len(edges))
            for cell, (row, edge) in itertools.product(range(spec.depth), enumerate(edges)):
                parts[name, edge, primitive, cell] = array[cell, row]
        else:
            parts[name, None, None, None] = array
    return parts


def assert_same_parts(found, expected):
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, err_msg=str(key))


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def largest(row, count):
    """Returns the columns of the `count` largest numbers of a row; of equal ones the first."""
    return sorted(sorted(range(len(row)), key=lambda column: (-row[column], column))[:count])


# Prune


@pytest.mark.parametrize("alpha", [random_alpha(0), random_alpha(1), tied_alpha(2)])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_pruning_keeps_exactly_the_largest(numbered, resize, alpha, count):
    # Would catch moments or statistics of another operation than the weights.
    spec, state = numbered(alpha)
    smaller, pruned = resize(spec, state, count)
    expected = [tuple(PRIMITIVES[column] for column in largest(row, count)) for row in alpha]
    assert kept(smaller) == expected
    assert dataclasses.replace(smaller, cells=spec.cells) == spec
    whole = apart(spec, state)
    left = {
        key: array for key, array in whole.items() if key[1] is None or key[2] in expected[key[1]]
    }
    assert_same_parts(apart(smaller, pruned), left)
    for field in ("params", "variables", "weight_opt", "alpha", "alpha_opt"):
        gone = [key for key in whole.keys() - left.keys() if key[0].startswith(field)]
        assert gone, f"nothing was removed from {field}"


def test_pruning_twice_is_pruning_once(numbered, resize):
    # Would catch columns that are counted in the first supernet and not in the one before.
    spec, state = numbered(random_alpha(0))
    once = resize(spec, state, 2)
    twice = resize(*resize(spec, state, 4), 2)
    assert once[0] == twice[0]
    assert_equal(once[1], twice[1])


def test_a_stage_like_the_one_before_changes_nothing(numbered, resize):
    # Would catch operations that change their order.
    spec, state = numbered(random_alpha(0))
    same, after = resize(spec, state)
    assert same == spec
    assert_equal(after, state)


def test_pruning_agrees_with_the_reference(numbered, resize, shared):
    # Would catch another order of operations than in the official code.
    with np.load(shared / "reference" / "nb201_search_pruned.npz") as reference:
        alpha, mask, expected = (reference[k] for k in ("alphas", "mask", "pruned_alphas"))
    smaller, pruned = resize(*numbered(alpha), 3)
    for edge, names in enumerate(kept(smaller)):
        assert names == tuple(np.array(PRIMITIVES)[mask[edge]])
        np.testing.assert_array_equal(pruned.alpha["cell"][edge], expected[edge][mask[edge]])


# Widen


def copied_from(after, before):
    """Returns where in `before` [c] each number of `after` [c'] is."""
    place = {number: index for index, number in enumerate(before)}
    return np.array([place[number] for number in after])


@pytest.mark.parametrize("count", [5, 3, 1])
def test_widening_copies_channels_aligned(numbered, resize, count):
    # Would catch a kernel whose statistics or momentum are copied from another channel.
    spec, state = resize(*numbered(random_alpha(0), 4), count)
    wider, widened = resize(spec, state, partial_channels=2, seed=3)
    assert wider == dataclasses.replace(spec, partial_channels=2)
    before, after = apart(spec, state), apart(wider, widened)
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
        # The kernel, its mean, its variance and its momentum share one choice of copies.
        np.testing.assert_array_equal(outputs.setdefault(operation, out), out)
        if leaf == "kernel":
            source = copied_from(array[0, 0, :, 0], old[0, 0, :, 0])
            np.testing.assert_array_equal(source[: old.shape[-2]], np.arange(old.shape[-2]))
            np.testing.assert_array_equal(inputs.setdefault(operation, source), source)
            # Every number is copied along both axes, and not rescaled.
            np.testing.assert_array_equal(array, old[:, :, source][..., out])
        else:
            np.testing.assert_array_equal(array, old[out])
    names = [primitive for edge in kept(spec) for primitive in edge]
    convolutions = sum("conv" in primitive for primitive in names)
    assert convolutions
    assert len(outputs) == len(inputs) == 3 * 2 * convolutions
    # Cells, edges, primitives, inputs and outputs: each copies in its own way. Two choices of
    # the 8 new channels in the last stage agree by chance once in 8**8.
    last = [tuple(c) for table in (outputs, inputs) for o, c in table.items() if o[0] == "cell_2"]
    assert len(set(last)) == len(last)


def test_widening_copies_every_channel_equally_often(numbered, resize):
    # Would catch an index that is never drawn, or drawn too often.
    counts = np.zeros(4, int)
    spec, state = numbered(random_alpha(0), 8)  # K 8 to 1, of 4 channels in the last stage
    for seed in range(4):
        _, widened = resize(spec, state, partial_channels=1, seed=seed)
        statistics = widened.variables["batch_stats"]["cell_2"]["nor_conv_1x1"]
        new = statistics["mean"][..., 4:]
        counts += np.bincount((new % 4).astype(int).ravel(), minlength=4)
    # 1,344 draws from 4: 336 each, with a standard deviation of 16.
    assert counts.sum() == 4 * 2 * EDGES * 28
    assert np.all(np.abs(counts - 336) < 4 * 16)


def test_widening_follows_the_seed(numbered, resize):
    # Would catch copies that are the same for every seed, or other ones after a resume.
    spec, state = numbered(random_alpha(0))
    one, again, other = (
        resize(spec, state, partial_channels=1, seed=seed)[1] for seed in (1, 1, 2)
    )
    assert_equal(one, again)
    kernels = [s.params["cell_2"]["nor_conv_3x3"]["kernel"] for s in (one, other)]
    assert np.any(kernels[0] != kernels[1])


# Stages


@pytest.mark.parametrize(("operations", "partial_channels"), [(3, 2), (3, 4), (5, 2)])
def test_the_next_stage_is_pruned_and_then_widened(
    tiny, numbered, resize, operations, partial_channels
):
    # Would catch a stage that takes the numbers of another one, or another seed.
    spec, state = numbered(random_alpha(0))
    experiment = tiny(
        seed=6,
        search__operations=(5, operations),
        search__partial_channels=(4, partial_channels),
    )
    reached, found = experiment.advance(spec, state, 1)
    seed = int(host_generator(6, "search/widen", 1).integers(2**63))
    pruned = resize(spec, state, operations)
    expected_spec, expected = resize(*pruned, 5, partial_channels, seed)
    assert reached == expected_spec
    assert reached.partial_channels == partial_channels
    assert {len(names) for names in kept(reached)} == {operations}
    assert_equal(found, expected)


def test_every_stage_of_every_seed_copies_other_channels(tiny, numbered):
    # Would catch a seed plus the number of the stage: stage 3 of seed 0 would copy like stage 2 of
    # seed 1.
    spec, state = numbered(random_alpha(0))
    stages = dict(
        search__epochs=(1, 1, 1),
        search__warmup_epochs=(0, 0, 0),
        search__operations=(5, 5, 5),
        search__partial_channels=(4, 2, 2),
    )
    copies = set()
    for seed, stage in ((0, 1), (0, 2), (1, 1)):
        _, widened = tiny(seed=seed, **stages).advance(spec, state, stage)
        means = widened.variables["batch_stats"]["cell_2"]["nor_conv_3x3"]["mean"]
        assert means.shape[-1] == 16
        copies.add(means.tobytes())
    assert len(copies) == 3


def test_fixed_edges_keep_their_operation_in_the_next_stage(tiny, numbered):
    # Would catch the pruning of an operation that a rule has fixed, though alpha says less of it.
    spec, state = numbered(np.tile([0, 1, 2, 3, 4], (EDGES, 1)))
    fixed = np.full((EDGES, 5), -1, np.float32)
    fixed[1], fixed[2] = [1, 0, 0, 0, 0], 0  # an operation, and an edge that was removed
    reached, found = tiny().advance(spec, state.replace(fixed={"cell": fixed}), 1)
    assert kept(reached)[0] == PRIMITIVES[2:] and PRIMITIVES[0] in kept(reached)[1]
    np.testing.assert_array_equal(found.fixed["cell"][:3], [[-1] * 3, [1, 0, 0], [0] * 3])


def test_an_epoch_belongs_to_a_stage_and_may_be_frozen():
    # Would catch a warm-up that is counted from the start of the search.
    stages = (Stage(3, 4, 5, 1), Stage(2, 2, 3, 2))
    expected = [(0, True), (0, False), (0, False), (1, True), (1, True)]
    assert [stage_at(stages, epoch) for epoch in range(5)] == expected


def test_the_first_stage_keeps_all_operations(tiny):
    # Would catch a first stage that silently drops operations.
    search, space = tiny().config.search, tiny().space
    spec = first_spec(space, search, 4, (8, 8, 3))
    assert kept(spec) == [PRIMITIVES] * EDGES
    assert spec.partial_channels == search.partial_channels[0] == 4
    with pytest.raises(UserError, match="search.operations starts with 3.*expected 5"):
        first_spec(space, dataclasses.replace(search, operations=(3, 3)), 4, (8, 8, 3))


def test_one_operation_cannot_choose_edges(tiny):
    # Would catch DARTS cells whose edges are chosen among equal weights of 1.
    search = dataclasses.replace(tiny().config.search, operations=(7, 1))
    with pytest.raises(UserError, match=r"operations is \(7, 1\).*keep at least 2"):
        first_spec(spaces.create("darts"), search, 4, (8, 8, 3))
    first_spec(tiny().space, search, 4, (8, 8, 3))  # its nodes keep all edges


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_pruned_supernet_is_really_smaller(tiny, resize, compiled):
    # Would catch pruned operations that are still computed, for example at weight 0.
    experiment = tiny()  # one cell a stage: the cost analysis counts a loop's body once
    spec = experiment.first_spec()

    def flops(spec, state):
        batch, weight = (jax.ShapeDtypeStruct((16,), kind) for kind in (np.int32, np.float32))
        validation = experiment.validation_program(spec)
        lowered = validation.lower(state, experiment.loader.raw, batch, weight)
        program = lowered.compile() if compiled else lowered
        return program.cost_analysis()["flops"]

    state = jax.eval_shape(lambda: experiment.init(spec, 0))
    alpha = np.tile(np.array([1, 2, 0, 0, 3], np.float32), (EDGES, 1))
    alpha[::2, 2] = 9  # 1x1 convolutions stay on half of the edges
    values = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    smaller, pruned = resize(spec, values.replace(alpha={"cell": alpha}), 3)
    # All 3x3 convolutions are gone, which are nearly all of the cells' work.
    assert count_parameters(pruned.params) < count_parameters(state.params)
    assert flops(smaller, pruned) < 0.8 * flops(spec, state)
