"""The optimisers against NumPy, the schedules of the learning rate, and how states are pruned."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from drnas_jax.config import defaults, from_config_dict
from drnas_jax.training import optimisers

CONFIG = from_config_dict(defaults())
STEPS = 7  # steps per epoch


def search_config(**changes):
    return dataclasses.replace(CONFIG.search, **changes)


def to_float32(tree):
    return jax.tree.map(jnp.float32, tree)


def rates(config, epochs):
    """Returns the learning rate of every step of a run."""
    schedule = optimisers.learning_rate(config, STEPS, epochs)
    return np.array([float(schedule(step)) for step in range(epochs * STEPS + 1)])


def sgd_step(weights, gradient, state, rate, step, nesterov):
    """torch.optim.SGD with weight decay 0.1 and momentum 0.9; the state is the momentum."""
    del step
    gradient = gradient + 0.1 * weights
    momentum = 0.9 * state[0] + gradient
    move = gradient + 0.9 * momentum if nesterov else momentum
    return weights - rate * move, (momentum, state[1])


def adamw_step(weights, gradient, state, rate, step, nesterov):
    """torch.optim.AdamW (or NAdam's form of it, Dozat 2016) with decay 0.1, b1 0.9, b2 0.999."""
    first = 0.9 * state[0] + 0.1 * gradient
    second = 0.999 * state[1] + 0.001 * gradient**2
    mean = first / (1 - 0.9 ** (step + 1))
    if nesterov:
        mean = 0.9 * first / (1 - 0.9 ** (step + 2)) + 0.1 * gradient / (1 - 0.9 ** (step + 1))
    scaled = mean / (np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8)
    return weights - rate * (scaled + 0.1 * weights), (first, second)


@pytest.mark.parametrize("clip", [0.0, 1.5])
@pytest.mark.parametrize(("section", "nesterov"), [("search", False), ("retrain", True)])
@pytest.mark.parametrize(("name", "reference"), [("sgd", sgd_step), ("adamw", adamw_step)])
def test_weights_move_as_in_numpy(clip, section, nesterov, name, reference):
    # Catches another order of clipping, weight decay and momentum, and a wrong schedule.
    config = dataclasses.replace(
        getattr(CONFIG, section),
        optimizer=name,
        clip=clip,
        weight_decay=0.1,
        momentum=0.9,
        lr=0.3,
        lr_end=0.03,
    )
    rng = np.random.default_rng(0)
    weights = {"a": rng.normal(size=(3, 4)), "b": {"c": rng.normal(size=5)}}
    optimiser = optimisers.weight_optimiser(config, STEPS, epochs=1, nesterov=nesterov)
    ours, (theirs, structure) = to_float32(weights), jax.tree.flatten(weights)
    state = optimiser.init(ours)
    their_states = [(np.zeros_like(w), np.zeros_like(w)) for w in theirs]
    for step in range(STEPS):
        # Norms from 0.3 to 30: some are clipped and some are not.
        scale = 10.0 ** (step % 3 - 1)
        gradients = [scale * rng.normal(size=w.shape) for w in theirs]
        updates, state = optimiser.update(
            to_float32(jax.tree.unflatten(structure, gradients)), state, ours
        )
        ours = optax.apply_updates(ours, updates)

        norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
        factor = min(1.0, clip / norm) if clip else 1.0
        rate = 0.03 + (0.3 - 0.03) * (1 + np.cos(np.pi * step / STEPS)) / 2
        steps = [
            reference(w, factor * g, s, rate, step, nesterov)
            for w, g, s in zip(theirs, gradients, their_states, strict=True)
        ]
        theirs, their_states = map(list, zip(*steps, strict=True))
        # Ours is float32: a few roundings per step, of values from 1 to 10. In Adam 1 - 0.999**step
        # loses three digits, and the rate makes up for two of them.
        for a, b in zip(jax.tree.leaves(ours), theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 if name == "sgd" else 1e-4)


def test_the_global_norm_of_many_numbers():
    # Catches numbers that the rows leave out, and one long float32 sum, which is off by 1e-3 here.
    rng = np.random.default_rng(0)
    tree = {"a": rng.normal(1, 0.1, (1000, 1003)), "b": [rng.normal(size=7), np.float32(3)]}
    expected = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))
    np.testing.assert_allclose(optimisers.global_norm(to_float32(tree)), expected, rtol=1e-6)
    assert optimisers.global_norm({}) == 0


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("end", [0.0, 0.02])
def test_the_learning_rate_decays_to_its_end(schedule, end):
    # Catches an end that is relative to the start, or reached too early.
    config = search_config(lr=0.5, lr_end=end, lr_schedule=schedule, lr_warmup_epochs=0)
    done = np.arange(10 * STEPS + 1) / (10 * STEPS)
    falling = (1 + np.cos(np.pi * done)) / 2 if schedule == "cosine" else 1 - done
    # optax computes in float32.
    np.testing.assert_allclose(rates(config, 10), end + (0.5 - end) * falling, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [1, 3])
def test_a_warmup_replaces_the_first_epochs(schedule, warmup):
    # Catches a decay that starts only after the warm-up, and a first step at a rate of 0.
    config = search_config(lr=0.5, lr_end=0.01, lr_schedule=schedule, lr_warmup_epochs=warmup)
    actual = rates(config, 10)
    rising = warmup * STEPS
    np.testing.assert_allclose(actual[:rising], 0.5 * np.arange(1, rising + 1) / rising, rtol=1e-5)
    without = rates(dataclasses.replace(config, lr_warmup_epochs=0), 10)
    np.testing.assert_array_equal(actual[rising:], without[rising:])
    assert actual[-1] == pytest.approx(0.01, rel=1e-5)


def test_a_warmup_of_one_step():
    # Catches a division by zero.
    config = search_config(lr=0.5, lr_end=0.0, lr_schedule="linear", lr_warmup_epochs=1)
    schedule = optimisers.learning_rate(config, steps_per_epoch=1, epochs=3)
    actual = [float(schedule(step)) for step in range(4)]
    np.testing.assert_allclose(actual, [0.5, 0.5 * 2 / 3, 0.5 / 3, 0.0], rtol=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 2])
def test_the_schedule_starts_again_for_the_tuning_epochs(schedule, warmup):
    # Catches a first decay that does not reach its end, and tuning that begins a step late.
    config = search_config(
        lr=0.5, lr_end=0.01, lr_schedule=schedule, lr_warmup_epochs=warmup, tuning_lr=0.05
    )
    tuned = rates(dataclasses.replace(config, tuning_epochs=3), 10)
    np.testing.assert_array_equal(tuned[: 7 * STEPS], rates(config, 7)[:-1])
    again = dataclasses.replace(config, lr=0.05, lr_warmup_epochs=0)
    np.testing.assert_array_equal(tuned[7 * STEPS :], rates(again, 3))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_learning_rate_of_zero_stays_zero(schedule):
    # Catches 0 / 0, where the end is relative to the start.
    config = search_config(lr=0.0, lr_end=0.0, lr_schedule=schedule)
    np.testing.assert_array_equal(rates(config, 2), 0)


def test_alpha_moves_by_adam():
    """Compares with Adam in NumPy (Kingma and Ba 2015), with b1 0.5 and no decay of its own."""
    # Catches swapped betas, and a decay that would be applied twice.
    config = dataclasses.replace(CONFIG.arch, lr=0.01, b1=0.5, b2=0.999)
    rng = np.random.default_rng(0)
    alpha = ours = rng.normal(size=(6, 5))
    optimiser = optimisers.alpha_optimiser(config)
    state = optimiser.init(alpha)
    first = second = np.zeros_like(alpha)
    for step in range(1, 6):
        gradient = rng.normal(size=alpha.shape)
        updates, state = optimiser.update(gradient, state, ours)
        ours = optax.apply_updates(ours, updates)
        first = 0.5 * first + 0.5 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        scaled = (first / (1 - 0.5**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        alpha = alpha - 0.01 * scaled
    # 1 - 0.999**step loses three digits in float32, and the rate makes up for two of them.
    np.testing.assert_allclose(ours, alpha, rtol=0, atol=1e-5)


def supernet_params():
    """Returns parameters of a small supernet: two operations in a cell, and a stem."""
    cell = {"conv": {"kernel": jnp.ones((4, 3))}, "pool": {"bias": jnp.ones(2)}}
    return {"cell": cell, "stem": {"kernel": jnp.ones((2, 2))}}


def prune(tree):
    """Keeps one row of the kernel and removes the other operation, as the end of a stage does."""
    if isinstance(tree["cell"], optax.MaskedNode):
        return tree
    kept = jax.tree.map(lambda array: array[:1], tree["cell"]["conv"])
    return {"cell": {"conv": kept}, "stem": tree["stem"]}


def is_kernel(tree):
    """Marks the kernels, in any pytree."""
    return jax.tree.map_with_path(lambda path, _: "kernel" in jax.tree_util.keystr(path), tree)


def label(tree):
    return jax.tree.map(lambda kernel: "adam" if kernel else "sgd", is_kernel(tree))


def walk(tree, label="sgd"):
    """Labels arrays by the key above them, for trees of dictionaries only."""
    if not hasattr(tree, "items"):
        return label
    return {key: walk(value, "adam" if key == "conv" else label) for key, value in tree.items()}


ADAM_AND_SGD = {"adam": optax.adam(0.1), "sgd": optax.sgd(0.1, momentum=0.9)}
OPTIMISERS = {
    "sgd": optax.sgd(0.1, momentum=0.9),
    "sgd without momentum": optax.sgd(0.1),
    "adamw": optax.adamw(0.1),
    "adamw with masked decay": optax.adamw(0.1, mask=is_kernel),
    "masked adamw": optax.masked(optax.adamw(0.1), is_kernel),
    "several": optax.multi_transform(ADAM_AND_SGD, label),
    "several, by a walk": optax.multi_transform(ADAM_AND_SGD, walk),
    "several, whole subtrees": optax.multi_transform(
        ADAM_AND_SGD, lambda tree: {key: "adam" if key == "cell" else "sgd" for key in tree}
    ),
    "several, nested": optax.chain(
        optax.clip_by_global_norm(1e6),
        optax.multi_transform(
            {"adam": optax.masked(optax.adam(0.1), is_kernel), "sgd": optax.sgd(0.1)}, walk
        ),
        optax.ema(0.9),
    ),
    "injected": optax.inject_hyperparams(optax.adamw)(0.1, weight_decay=0.01),
    "every second step": optax.MultiSteps(
        optax.adam(0.1), every_k_schedule=2
    ).gradient_transformation(),
    "search": optimisers.weight_optimiser(CONFIG.search, STEPS, 1),
    "search, adamw": optimisers.weight_optimiser(search_config(optimizer="adamw"), STEPS, 1),
}


def trained(optimiser, params, steps=2):
    """Returns the state after a few updates, so that momenta and counters are not zero."""
    state = optimiser.init(params)
    for _ in range(steps):
        _, state = optimiser.update(jax.tree.map(jnp.ones_like, params), state, params)
    return state


def assert_same_shapes(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert jax.tree.map(jnp.shape, a) == jax.tree.map(jnp.shape, b)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_pruned_state_fits_the_pruned_parameters(name):
    # Catches momenta that keep pruned operations, which a later update would not accept.
    optimiser, params = OPTIMISERS[name], supernet_params()
    smaller = prune(params)
    state = optimisers.map_like_params(params, prune, trained(optimiser, params))
    assert_same_shapes(state, optimiser.init(smaller))
    # A step on the pruned state is the same as on a state that was small from the start.
    gradient = jax.tree.map(jnp.ones_like, smaller)
    ours, _ = optimiser.update(gradient, state, smaller)
    theirs, _ = optimiser.update(gradient, trained(optimiser, smaller), smaller)
    if name not in ("search", "search, adamw"):  # their clipping depends on all gradients
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_the_momenta_of_alpha_lose_columns_by_cell_type():
    # Catches columns of one cell type that are taken from another one.
    alpha = {"normal": jnp.ones((3, 4)), "reduce": jnp.ones((2, 5))}
    columns = {"normal": np.array([0, 2]), "reduce": np.array([1, 4])}
    optimiser = optimisers.alpha_optimiser(CONFIG.arch)
    gradient = {
        name: jnp.broadcast_to(jnp.arange(1.0, 1 + rows.shape[1]), rows.shape)
        for name, rows in alpha.items()
    }
    _, state = optimiser.update(gradient, optimiser.init(alpha), alpha)

    def keep(tree):
        return {name: rows[:, columns[name]] for name, rows in tree.items()}

    mapped = optimisers.map_like_params(alpha, keep, state)
    assert_same_shapes(mapped, optimiser.init(keep(alpha)))
    (adam, _), (before, _) = mapped, state
    assert int(adam.count) == int(before.count) == 1
    for moments, full in ((adam.mu, before.mu), (adam.nu, before.nu)):
        jax.tree.map(np.testing.assert_array_equal, moments, keep(full))


def test_only_trees_like_the_parameters_are_mapped():
    # Catches counters that are mapped too, and single arrays in place of whole trees.
    params, trees = supernet_params(), []
    optimiser = optax.adam(0.1)

    def record(tree):
        trees.append(tree)
        return tree

    state = trained(optimiser, params)
    jax.tree.map(
        np.testing.assert_array_equal, optimisers.map_like_params(params, record, state), state
    )
    assert len(trees) == 2  # the two moments
    assert all(jax.tree.structure(tree) == jax.tree.structure(params) for tree in trees)
