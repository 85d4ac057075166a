"""The search step: what it changes and what not, on which batch, and on how many devices.

Most of it holds for any supernet, and is tested with one that compiles in no time.
"""

import dataclasses
import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from drnas_jax.data.feed import Images
from drnas_jax.nn.norm import BatchNorm
from drnas_jax.phases.search import step as steps
from drnas_jax.spaces import nasbench201
from drnas_jax.training.devices import REPLICATED, SHARDED, data_parallel, make_mesh, replicate
from drnas_jax.training.losses import cross_entropy

BATCH = 16


class Small(nn.Module):
    """Hidden features times their mixing weights, with a BatchNorm before; keeps the last mix."""

    classes: int
    axis_name: str | None

    @nn.compact
    def __call__(self, x, mix, train, learn=None):
        x = BatchNorm(axis_name=self.axis_name)(x.reshape(len(x), -1), train)
        hidden = jnp.tanh(nn.Dense(mix["cell"].size)(x))
        seen = self.variable("batch_stats", "mix", jnp.zeros, mix["cell"].shape)
        if train and not self.is_initializing():
            seen.value = mix["cell"]
        return nn.Dense(self.classes)(hidden * mix["cell"].reshape(-1))


SMALL_SPACE = types.SimpleNamespace(
    **{name: getattr(nasbench201, name) for name in ("PRIMITIVES", "EDGES", "STEMS", "derive")},
    supernet=lambda structure, kernels, axis_name: Small(structure.classes, axis_name),
)


@pytest.fixture(scope="module")
def small(tiny):
    """Like `tiny`, with the small supernet and cheap samples."""

    @functools.cache
    def make(devices=1, *, arch=(), **search):
        problem = tiny(devices, arch=(("name", "gumbel"), *arch), **search)
        return dataclasses.replace(problem, space=SMALL_SPACE)

    return make


def structure_of(problem):
    """All operations for the small supernet; two an edge, which all occur, for a real one."""
    first = problem.first_structure()
    if problem.space is SMALL_SPACE:
        return first
    names, kept = problem.space.PRIMITIVES, []
    for kind, edges in first.operations:
        pairs = ((i % len(names), (i + 1) % len(names)) for i in range(len(edges)))
        kept.append((kind, tuple(tuple(names[i] for i in sorted(pair)) for pair in pairs)))
    return dataclasses.replace(first, operations=tuple(kept))


def start(problem):
    """A state of random numbers: an initialisation would take longer to compile."""
    rng = np.random.default_rng(0)
    state = jax.eval_shape(lambda: problem.init(structure_of(problem), 0))

    def numbers(path, leaf):
        name = path[-1].key
        value = np.ones(leaf.shape) if name in ("var", "scale") else np.zeros(leaf.shape)
        spread = np.sqrt(2 / max(1, np.prod(leaf.shape[-4:-1]))) if name == "kernel" else 0.1
        return (value + spread * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    params = jax.tree_util.tree_map_with_path(numbers, state.params)
    alpha = {
        kind: rng.normal(size=rows.shape).astype(np.float32) for kind, rows in state.alpha.items()
    }
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    batch_stats = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.full(leaf.shape, path[-1].key == "var", leaf.dtype),
        state.batch_stats,
    )
    state = zeros.replace(params=params, alpha=alpha, batch_stats=batch_stats)
    return replicate(state, problem.mesh)


def indices(rows=3):
    """Training and validation examples of some steps, [rows, b] each, all different."""
    order = np.random.default_rng(1).permutation(64).astype(np.int32)
    return tuple(
        np.stack([np.roll(half, 8 * row)[:BATCH] for row in range(rows)])
        for half in (order[:32], order[32:])
    )


def run(problem, train, valid, frozen=False):
    """The state after a step for each row of the indices, in separate dispatches."""
    program, state = compiled(problem, frozen), start(problem)
    for row in range(len(train)):
        batches = [part[row : row + 1] for part in ((train,) if frozen else (train, valid))]
        state = program(state, problem.reader.raw, *batches)
    return state


@functools.cache
def compiled(problem, frozen):
    index = jax.ShapeDtypeStruct((1, BATCH), np.int32)
    program = problem.step_program(structure_of(problem), frozen)
    batches = (index,) if frozen else (index, index)
    lowered = program.lower(start(problem), problem.reader.raw, *batches)
    # Compiled for a few steps: optimisation would take longer than it saves.
    return lowered.compile(compiler_options={"xla_backend_optimization_level": 0})


def batch(seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(BATCH, 8, 8, 3)).astype(np.float32)
    return Images(images, rng.integers(0, 4, BATCH).astype(np.int32))


def update(function, recipe, state, mesh=None):
    """`update_alpha` or `update_weights` on one batch, split over the mesh's devices."""
    program = data_parallel(
        functools.partial(function, recipe),
        mesh or make_mesh(jax.devices()[:1]),
        (REPLICATED, SHARDED),
    )
    return program(state, batch())


def assert_equal(found, expected):
    """To the last bit."""
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def assert_differs(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.any(np.asarray(a) != np.asarray(b))


def assert_replicated(state):
    """Every device holds the same bits."""
    for array in jax.tree.leaves(state):
        first, *others = [np.asarray(shard.data) for shard in array.addressable_shards]
        assert len(others) == 7
        for other in others:
            np.testing.assert_array_equal(other, first)


# Devices


def assert_moved_alike(one, other, before):
    states = (state.replace(seed=None) for state in (one, other, before))
    for a, b, c in zip(*map(jax.tree.leaves, states), strict=True):
        moved = np.abs(np.asarray(a) - c).max()
        assert moved > 0
        # Sums over the batch run in another order, and numbers a thousand times as large as
        # what they move by in a step (alpha's) are rounded to 1e-7.
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-3 * moved)


@pytest.mark.parametrize("kind", ["small", "tiny"])
def test_eight_devices_do_what_one_does(kind, request):
    make = request.getfixturevalue(kind)
    train, valid = indices()
    before = start(make(sync_batchnorm=True))
    one = run(make(1, sync_batchnorm=True), train, valid)
    eight = run(make(8, sync_batchnorm=True), train, valid)
    assert_replicated(eight)
    assert int(one.step) == int(eight.step) == 3
    assert_moved_alike(one, eight, before)


@pytest.mark.parametrize("kind", ["small", pytest.param("tiny", marks=pytest.mark.slow)])
@pytest.mark.parametrize("sample_per_device", [False, True])
def test_devices_stay_equal_with_their_own_statistics(kind, sample_per_device, request):
    make = request.getfixturevalue(kind)
    train, valid = indices()
    state = run(make(8, sample_per_device=sample_per_device), train, valid)
    assert_replicated(state)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))
    # Statistics of 2 images a device are not those of the 16: the default is really in use.
    together = run(make(8, sync_batchnorm=True), train, valid)
    assert_differs(state.params, together.params)


@pytest.mark.parametrize("sample_per_device", [False, True])
def test_samples_of_the_devices(small, sample_per_device):
    problem = small(8, sample_per_device=sample_per_device)
    recipe, state = problem.recipe(structure_of(problem)), start(problem)

    def draw(alpha):
        return steps.sample(recipe, alpha, "weight-sample", 0, 0)["cell"][None]

    mixes = np.asarray(data_parallel(draw, problem.mesh, (REPLICATED,), SHARDED)(state.alpha))
    different = {mix.tobytes() for mix in mixes}
    assert len(different) == (8 if sample_per_device else 1)
    # The step uses these: the supernet has kept, and the devices averaged, what it was given.
    after = update(steps.update_weights, recipe, state, problem.mesh)
    np.testing.assert_allclose(after.batch_stats["mix"], mixes.mean(0), rtol=1e-5)


# Alpha and weights


def test_a_step_on_the_darts_space(tiny):
    problem = tiny(space="darts", operations=(7, 4), arch=[("regulariser", "none")])
    before, after = start(problem), run(problem, *indices(1))
    assert 0 < float(after.totals["loss"]) < np.inf
    # The only cell is a reduction.
    assert_differs(after.alpha["reduce"], before.alpha["reduce"])
    assert_equal(after.alpha["normal"], before.alpha["normal"])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after))


def test_a_frozen_step_moves_the_weights_alone(small):
    problem = small()
    before = start(problem)
    after = run(problem, *indices(), frozen=True)
    assert_equal((after.alpha, after.alpha_opt), (before.alpha, before.alpha_opt))
    assert_differs(after.params, before.params)
    assert int(after.step) == 3
    alive = run(problem, *indices(), frozen=False)
    assert_differs(alive.alpha, before.alpha)


def test_alpha_moves_alone(small):
    problem = small()
    before = start(problem)
    after = update(steps.update_alpha, problem.recipe(structure_of(problem)), before)
    assert_differs(after.alpha, before.alpha)
    assert_differs(after.alpha_opt[0].mu, before.alpha_opt[0].mu)
    restored = after.replace(alpha=before.alpha, alpha_opt=before.alpha_opt)
    assert_equal(restored, before)  # the running statistics as well


def test_weights_move_alone(small):
    problem = small()
    before = start(problem)
    after = update(steps.update_weights, problem.recipe(structure_of(problem)), before)
    assert_equal((after.alpha, after.alpha_opt), (before.alpha, before.alpha_opt))
    assert_differs(after.params, before.params)
    assert_differs(after.batch_stats, before.batch_stats)
    assert int(after.step) == 1
    assert float(after.totals["count"]) == BATCH


def test_alpha_learns_from_validation_images_and_weights_from_training_ones(small):
    problem = small()
    train, valid = indices(2)
    train, other_train, valid, other_valid = train[:1], train[1:], valid[:1], valid[1:]
    state = run(problem, train, valid)
    another = run(problem, other_train, valid)
    assert_equal((another.alpha, another.alpha_opt), (state.alpha, state.alpha_opt))
    assert_differs(another.params, state.params)
    another = run(problem, train, other_valid)
    assert_differs(another.alpha, state.alpha)
    # Alpha moves first: the weights' sample already comes from the new one.
    assert_differs(another.batch_stats["mix"], state.batch_stats["mix"])


def gradient_of(problem, state, stream, wanted):
    """The gradient, by its definition, of the loss on `batch()` under a step's own sample."""
    recipe, images = problem.recipe(structure_of(problem)), batch()

    @jax.jit
    @functools.partial(jax.grad, argnums=("params", "alpha").index(wanted))
    def compute(params, alpha):
        mix = steps.sample(recipe, alpha, stream, 0, state.step)
        logits, _ = recipe.supernet.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images.images,
            mix,
            True,
            mutable=["batch_stats"],
        )
        return jnp.mean(cross_entropy(logits, images.labels))

    return compute(state.params, state.alpha)


def plain_descent(problem):
    """The recipe with SGD of rate 1, and a state for it: an update is minus the gradient."""
    descent = optax.sgd(1.0)
    recipe = dataclasses.replace(
        problem.recipe(structure_of(problem)), alpha_optimiser=descent, weight_optimiser=descent
    )
    state = start(problem)
    return recipe, state.replace(
        alpha_opt=descent.init(state.alpha), weight_opt=descent.init(state.params)
    )


def test_weights_follow_the_gradient_under_their_sample(small):
    problem = small()
    recipe, before = plain_descent(problem)
    after = update(steps.update_weights, recipe, before)
    expected = gradient_of(problem, before, "weight-sample", "params")
    moved = jax.tree.map(jnp.subtract, before.params, after.params)
    # Differences of numbers of size 1 in float32.
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), moved, expected)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 1e-2


@pytest.mark.parametrize("clip", [0.0, 0.001])
def test_the_regulariser_is_added_after_clipping(small, clip):
    """Strong enough that clipping the sum would leave next to nothing of it."""
    problem = small(arch=(("regulariser", "l2"), ("strength", 0.5)))
    recipe, before = plain_descent(problem)
    after = update(steps.update_alpha, dataclasses.replace(recipe, alpha_clip=clip), before)
    gradient = gradient_of(problem, before, "alpha-sample", "alpha")["cell"]
    norm = np.linalg.norm(gradient)
    assert norm > 2 * 0.001
    clipped = gradient * (clip / norm) if clip else gradient
    alpha = before.alpha["cell"]
    # Differences of numbers of size 1 in float32.
    np.testing.assert_allclose(alpha - after.alpha["cell"], clipped + 0.5 * alpha, atol=1e-6)


# Randomness


def test_the_step_is_deterministic(small):
    problem = small()
    assert_equal(run(problem, *indices()), run(problem, *indices()))


def test_several_steps_in_one_dispatch_are_the_same_steps(small):
    problem = small()
    train, valid = indices(3)
    program = problem.step_program(structure_of(problem), frozen=False)
    together = program(start(problem), problem.reader.raw, train, valid)
    # The same sums in a loop's body, where the compiler fuses them otherwise.
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        together,
        run(problem, train, valid),
    )


@pytest.mark.parametrize("name", [pytest.param("tiny", marks=pytest.mark.slow), "small"])
def test_one_program_for_both_passes_is_the_same_step(name, request):
    problem = request.getfixturevalue(name)()
    recipe = problem.recipe(structure_of(problem))
    one, two = (
        data_parallel(
            functools.partial(
                steps.search_step, dataclasses.replace(recipe, one_pass=one_pass), frozen=False
            ),
            make_mesh(jax.devices()[:1]),
            (REPLICATED, SHARDED, SHARDED),
        )(start(problem), batch(1), batch(2))
        for one_pass in (True, False)
    )
    before = start(problem)
    assert_differs((one.alpha, one.params), (before.alpha, before.params))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), one, two)


def test_temperature_follows_the_whole_search(small):
    problem = small()
    recipe = problem.recipe(structure_of(problem))
    assert recipe.total_steps == sum(problem.config.search.epochs) * problem.steps
    told = recipe.distribution._replace(sample=lambda alpha, key, progress: 0 * alpha + progress)
    recipe = dataclasses.replace(recipe, distribution=told)
    mix = steps.sample(recipe, {"cell": jnp.ones((2, 3))}, "x", 0, recipe.total_steps // 4)
    np.testing.assert_allclose(mix["cell"], 0.25, rtol=1e-6)


def test_mean_logits_use_the_mean_and_the_batch_statistics(small):
    problem = small()
    recipe, state = problem.recipe(structure_of(problem)), start(problem)
    images = batch().images
    mix = {"cell": jax.nn.softmax(state.alpha["cell"])}  # the mean of the Gumbel softmax
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    expected, _ = recipe.supernet.apply(variables, images, mix, True, mutable=["batch_stats"])
    np.testing.assert_allclose(steps.mean_logits(recipe, state, images), expected, rtol=1e-6)
