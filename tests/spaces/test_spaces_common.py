"""What every search space must do; a new file of drnas_jax/spaces is found by itself."""

import contextlib
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from drnas_jax import distributions, spaces
from drnas_jax.config import from_config_dict
from drnas_jax.configs import base
from drnas_jax.errors import UserError
from drnas_jax.nn import backend
from drnas_jax.phases.search import stages
from drnas_jax.phases.search.state import init_state
from drnas_jax.spaces import Structure, check_image

CHANNELS, CELLS, CLASSES, PARTIAL = 8, 3, 5, 4


@pytest.fixture(params=spaces.names())
def name(request):
    return request.param


@pytest.fixture
def space(name):
    return spaces.find(name)


def whole(space, partial_channels=PARTIAL):
    """The structure with all operations on every edge."""
    operations = tuple((kind, (space.PRIMITIVES,) * len(e)) for kind, e in space.EDGES.items())
    return Structure(CHANNELS, CELLS, CLASSES, partial_channels, operations, stem(space))


def stem(space):
    return next(iter(space.STEMS))


def image_shape(space, kind=None):
    side = space.STEMS[kind or stem(space)]
    return (2 * side, 3 * side, 3)


@functools.cache
def fresh(space, structure):
    """A fresh search state's shapes."""
    distribution = distributions.create(from_config_dict(base.get_config()).arch)
    return jax.eval_shape(
        lambda: init_state(
            structure,
            space.supernet(structure, backend.GPU, None),
            distribution,
            optax.sgd(0.1, momentum=0.9),
            optax.adam(0.1),
            image_shape(space),
            0,
        )
    )


def ones_with_alpha(state, seed):
    """Values for those shapes, with alpha at random."""
    rng = np.random.default_rng(seed)
    state = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), state)
    alpha = {kind: rng.normal(size=rows.shape) for kind, rows in state.alpha.items()}
    return state.replace(alpha={kind: rows.astype(np.float32) for kind, rows in alpha.items()})


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def assert_same_shapes(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert jax.tree.leaves(shapes(found)) == jax.tree.leaves(shapes(expected))


def test_names_and_unknown_name(name):
    assert "base" not in spaces.names()
    with pytest.raises(UserError, match=f"unknown search space 'drats'.*{name}"):
        spaces.find("drats")


def test_constants_agree(space):
    assert len(set(space.PRIMITIVES)) == len(space.PRIMITIVES)
    assert set(space.CHANNEL_AXES) <= set(space.PRIMITIVES)
    assert not any(kind in other for kind in space.EDGES for other in space.EDGES if kind != other)


def test_image_must_be_divisible(space):
    for kind in space.STEMS:
        height, width, _ = image_shape(space, kind)
        check_image(space, kind, (height, width))
        for size in ((height + 1, width), (height, width + 1)):
            with pytest.raises(UserError, match="must be divisible by"):
                check_image(space, kind, size)


def test_unknown_stem(space):
    with pytest.raises(UserError, match=f"unknown stem 'leaf'.*{stem(space)}"):
        check_image(space, "leaf", (64, 64))


def test_genotype_of_another_space(name):
    genotype = spaces.random_genotype(name, 0)
    spaces.check_genotype(genotype, name)
    with pytest.raises(UserError, match=f"'{name}': expected 'other'; set --config.space={name}"):
        spaces.check_genotype(genotype, "other")


def test_genotype_with_another_cell(name):
    genotype = spaces.random_genotype(name, 0)
    more = dataclasses.replace(genotype, cells=(*genotype.cells, ("more", genotype.cells[0][1])))
    for unfit in (more, dataclasses.replace(genotype, cells=())):
        with pytest.raises(UserError, match=f"has the cells .*: the space {name} has"):
            spaces.check_genotype(unfit, name)


@pytest.mark.parametrize("field", ["auxiliary_weight", "drop_path"])
def test_retraining_asks_for_what_the_networks_have(name, space, field):
    values = base.get_config()
    values.space = name
    spaces.check_retraining(from_config_dict(values))
    values.retrain[field] = 0.25
    with contextlib.ExitStack() as stack:
        if field not in space.RETRAIN_FIELDS:
            stack.enter_context(pytest.raises(UserError, match=f"retrain.{field} is 0.25, but"))
        spaces.check_retraining(from_config_dict(values))


def random_mix(structure, rng):
    """Mixing weights of the operations that are kept."""
    return {
        kind: rng.dirichlet(np.ones(len(edges[0])), len(edges)).astype(np.float32)
        for kind, edges in structure.operations
    }


def fill(shapes, rng):
    """Random numbers in place of an initialisation, which takes longer to compile."""
    return jax.tree.map(lambda leaf: rng.uniform(-0.5, 0.5, leaf.shape).astype(leaf.dtype), shapes)


def test_logits(space):
    """Finite, of the right shape, and dependent on every mixing weight but that of 'none'."""
    structure = whole(space)
    module = space.supernet(structure, backend.GPU, None)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, *image_shape(space))).astype(np.float32)
    mix = random_mix(structure, rng)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, mix, False))
    variables = fill(shapes, rng)

    # Compiled for a few runs: optimisation would take longer than it saves.
    options = {"xla_backend_optimization_level": 0}

    @functools.partial(jax.jit, compiler_options=options)
    def forward(mix):  # normalised by the batch, so that no path outgrows or starves the others
        return module.apply(variables, x, mix, True, mutable=["batch_stats"])[0]

    logits = forward(mix)
    assert logits.shape == (4, CLASSES)
    assert np.all(np.isfinite(logits))
    for kind, rows in mix.items():
        for (edge, column), _ in np.ndenumerate(rows):
            changed = np.array(rows)
            changed[edge, column] += 0.5
            differs = bool(np.any(forward({**mix, kind: changed}) != logits))
            assert differs == (space.PRIMITIVES[column] != "none"), (kind, edge, column)


def evaluate(space, own, dtype, structure):
    """Logits, gradients in parameters and mixing weights, and statistics of a supernet."""
    module = space.supernet(structure, own, None)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, *image_shape(space))).astype(np.float32)
    mix = random_mix(structure, rng)
    g = rng.normal(size=(len(x), CLASSES)).astype(np.float32)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def compute(variables, mix):
        def apply(params, mix):
            own = {**variables, "params": params}
            return module.apply(own, x.astype(dtype), mix, True, mutable=["batch_stats"])

        logits, pull, updated = jax.vjp(apply, variables["params"], mix, has_aux=True)
        return logits, pull(g), updated

    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, mix, True))
    return compute(fill(shapes, rng), mix)


FAST = ("darts", "gpu")  # to compile


@pytest.mark.parametrize(
    "name, platform",
    [
        pytest.param(*case, marks=() if case == FAST else pytest.mark.slow)
        for case in itertools.product(spaces.names(), ("cpu", "gpu"))
    ],
)
def test_bfloat16_is_near_float32(space, platform):
    """Parameters, statistics and all gradients stay float32; they differ by bfloat16's rounding."""
    own, structure = backend.for_platform(platform), dataclasses.replace(whole(space), cells=1)
    found, expected = (evaluate(space, own, dtype, structure) for dtype in ("bfloat16", "float32"))
    for low, high in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert low.dtype == high.dtype == np.float32
    # 8 bits of mantissa, through some 20 layers: a hundredth, in the mean over many numbers.
    for low, high in zip(found, expected, strict=True):
        low, high = (np.concatenate([np.ravel(v) for v in jax.tree.leaves(t)]) for t in (low, high))
        assert np.linalg.norm(low - high) < 0.1 * np.linalg.norm(high)
    assert np.any(np.asarray(found[0]) != np.asarray(expected[0]))


def random_structure(space, seed):
    """Channels, cells, K, and on every edge the operations that are kept, all at random."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, len(space.PRIMITIVES) + 1))

    def some():
        columns = np.sort(rng.permutation(len(space.PRIMITIVES))[:count])
        return tuple(space.PRIMITIVES[column] for column in columns)

    kept = tuple((kind, tuple(some() for _ in edges)) for kind, edges in space.EDGES.items())
    partial = int(rng.choice([1, 2, 4]))
    channels, cells = partial * int(rng.integers(1, 4)), int(rng.integers(1, 4))
    return Structure(channels, cells, CLASSES, partial, kept, stem(space))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_all_kernels_agree_on_any_structure(space, seed):
    structure = random_structure(space, seed)
    expected = evaluate(space, backend.PLAIN, np.float32, structure)
    for platform in ("cpu", "gpu", "tpu"):
        found = evaluate(space, backend.for_platform(platform), np.float32, structure)
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            # A ReLU whose input is within rounding of 0 may flip, which moves few numbers much:
            # so as a whole, and not number by number.
            assert np.linalg.norm(got - want) <= 1e-2 * np.linalg.norm(want) + 1e-6, structure


def banks(tree, space):
    """(cell type, primitive, leaf name, array) of every array below a primitive's name."""
    for path, array in jax.tree_util.tree_flatten_with_path(tree)[0]:
        keys = [entry.key for entry in path]
        for place, key in enumerate(keys):
            if key in space.PRIMITIVES:
                kinds = {k.split("_")[0] for k in keys[:place]} & set(space.EDGES)
                assert len(kinds) == 1, keys
                assert len(keys) == place + 2, keys
                yield kinds.pop(), key, keys[-1], array


@pytest.mark.parametrize("count", [1, 2, None])
def test_parameters_follow_the_convention(space, count):
    structure, state = whole(space), fresh(space, whole(space))
    if count:
        values = ones_with_alpha(state, 0)
        _, structure = stages.prune(space, values, structure, count)
        state = fresh(space, structure)
    found = set()
    for tree in (state.params, state.batch_stats):  # a pool has statistics, but no weights
        for kind, primitive, leaf, array in banks(tree, space):
            found.add((kind, primitive))
            keeping = [
                edge
                for edge, kept in enumerate(structure.kept(kind))
                if primitive in kept and space.has_row(kind, edge, primitive)
            ]
            assert 1 <= array.shape[0] <= 3 * CELLS
            assert array.shape[1] == len(keeping)
            axes = space.CHANNEL_AXES[primitive][leaf]
            assert axes, "an array that widening would not lengthen"
            for axis in axes:  # from the end, so that leading axes never matter
                assert axis < 0
                assert array.shape[axis] % (CHANNELS // PARTIAL) == 0
    assert found == {
        (kind, primitive)
        for kind, edges in structure.operations
        for edge, kept in enumerate(edges)
        for primitive in kept
        if primitive in space.CHANNEL_AXES and space.has_row(kind, edge, primitive)
    }


def test_pruned_state_is_shaped_like_a_fresh_one(space):
    structure = whole(space)
    state = ones_with_alpha(fresh(space, structure), 0)
    for count in (len(space.PRIMITIVES), 3, 1):
        pruned, smaller = stages.prune(space, state, structure, count)
        assert all(len(edge) == count for _, edges in smaller.operations for edge in edges)
        assert_same_shapes(pruned, fresh(space, smaller))


def test_pruning_to_one_primitive_drops_the_other_banks(space):
    structure = whole(space)
    for primitive in space.PRIMITIVES[:: len(space.PRIMITIVES) // 3]:  # some, for the time
        state = ones_with_alpha(fresh(space, structure), 0)
        column = space.PRIMITIVES.index(primitive)
        alpha = jax.tree.map(np.copy, state.alpha)
        for rows in alpha.values():
            rows[:, column] = 10
        pruned, smaller = stages.prune(space, state.replace(alpha=alpha), structure, 1)
        assert {edge for _, edges in smaller.operations for edge in edges} == {(primitive,)}
        assert {name for _, name, _, _ in banks(pruned.params, space)} <= {primitive}
        assert_same_shapes(pruned, fresh(space, smaller))


@pytest.mark.parametrize("before, after", [(4, 2), (8, 1)])
def test_widened_state_is_shaped_like_a_fresh_one(space, before, after):
    structure = whole(space, before)
    state = ones_with_alpha(fresh(space, structure), 0)
    widened, wider = stages.widen(space, state, structure, after, seed=0)
    assert wider == dataclasses.replace(structure, partial_channels=after)
    assert_same_shapes(widened, fresh(space, wider))


def test_pruned_then_widened_state_is_shaped_like_a_fresh_one(space):
    structure = whole(space)
    state = ones_with_alpha(fresh(space, structure), 0)
    state, structure = stages.prune(space, state, structure, 2)
    state, structure = stages.widen(space, state, structure, 2, seed=0)
    assert_same_shapes(state, fresh(space, structure))


def test_derived_genotype_makes_a_network(space):
    structure = whole(space)
    rng = np.random.default_rng(0)
    mean = {
        kind: rng.dirichlet(np.ones(len(edges[0])), len(edges))
        for kind, edges in structure.operations
    }
    genotype = space.derive(mean, dict(structure.operations))
    for kind in space.STEMS:
        shape = (CHANNELS, CELLS, CLASSES, kind, False)
        network = space.network(genotype, *shape, backend.PLAIN, None)
        x = jnp.zeros((2, *image_shape(space, kind)))
        (logits, auxiliary), variables = jax.eval_shape(
            lambda network=network, x=x: network.init_with_output(jax.random.key(0), x, False)
        )
        assert logits.shape == (2, CLASSES)
        assert auxiliary is None
        assert {"params", "batch_stats"} == set(variables)
    assert "\n" not in space.describe(genotype)


def test_random_genotypes(name, space):
    many = [spaces.random_genotype(name, seed) for seed in range(40)]
    assert many == [spaces.random_genotype(name, seed) for seed in range(40)]
    assert len(set(many)) > 30
    # 40 cells of at least 6 operations each: that one of up to 10 primitives is missing has a
    # probability below 1e-9.
    seen = {op for one in many for _, cell in one.cells for node in cell for op, _ in node}
    assert seen == set(space.PRIMITIVES)
    assert space.describe(many[0])
