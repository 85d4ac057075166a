"""The search step: what it changes and what not, on which batch, and on how many devices.

Most of it holds for any supernet, and is tested with the small one.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from single_steps import (
    BATCH,
    assert_close,
    assert_differs,
    assert_equal,
    assert_replicated,
    batch,
    begin,
    draw_mix,
    indices,
    run,
    spec_of,
    update,
)

from drnas_jax.phases.search import step as steps
from drnas_jax.training.devices import REPLICATED, SHARDED, data_parallel
from drnas_jax.training.losses import cross_entropy

# Devices


def assert_moved_alike(one, other, before):
    states = (state.replace(seed=None) for state in (one, other, before))
    for a, b, c in zip(*map(jax.tree.leaves, states), strict=True):
        moved = np.abs(np.asarray(a) - c).max()
        assert moved > 0
        # Sums over the batch run in another order, and numbers a thousand times as large as
        # what they move by in a step (alpha's) are rounded to 1e-7.
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-3 * moved)


@pytest.mark.parametrize("kind", ["small", pytest.param("tiny", marks=pytest.mark.slow)])
def test_eight_devices_do_the_same_as_one(kind, request):
    # Would catch a gradient or a statistic that is summed over the devices and not averaged.
    make = request.getfixturevalue(kind)
    train, valid = indices()
    before = begin(make(search__sync_batchnorm=True))
    one = run(make(1, search__sync_batchnorm=True), train, valid)
    eight = run(make(8, search__sync_batchnorm=True), train, valid)
    assert_replicated(eight)
    assert int(one.step) == int(eight.step) == 3
    assert_moved_alike(one, eight, before)


@pytest.mark.parametrize("kind", ["small", pytest.param("tiny", marks=pytest.mark.slow)])
@pytest.mark.parametrize("sample_per_device", [False, True])
def test_devices_stay_equal_with_their_own_statistics(kind, sample_per_device, request):
    # Would catch an output that is not averaged, of which each device then keeps its own.
    make = request.getfixturevalue(kind)
    train, valid = indices()
    state = run(make(8, search__sample_per_device=sample_per_device), train, valid)
    assert_replicated(state)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))
    # Statistics of a device's 2 images are not those of all 16: the default is really in use.
    together = run(make(8, search__sync_batchnorm=True), train, valid)
    assert_differs(state.params, together.params)


@pytest.mark.parametrize("sample_per_device", [False, True])
def test_devices_draw_one_sample_or_each_its_own(small, sample_per_device):
    # Would catch a switch without effect, or a step that does not use these samples.
    experiment = small(8, search__sample_per_device=sample_per_device)
    config, state = experiment.step_config(spec_of(experiment)), begin(experiment)

    def draw(state):
        return draw_mix(config, state, state.alpha, "weights")["cell"][None]

    mixes = np.asarray(data_parallel(draw, experiment.mesh, (REPLICATED,), SHARDED)(state))
    different = {mix.tobytes() for mix in mixes}
    assert len(different) == (8 if sample_per_device else 1)
    # The supernet has kept, and the devices have averaged, the sample that it was given.
    after = update(steps.update_weights, config, state, experiment.mesh)
    np.testing.assert_allclose(after.variables["batch_stats"]["mix"], mixes.mean(0), rtol=1e-5)


# Alpha and weights


@pytest.mark.slow
def test_a_step_on_the_darts_space(tiny):
    # Would catch a cell type whose alpha gets another's gradient.
    changes = dict(space="darts", search__operations=(7, 4), arch__regulariser="none")
    experiment = tiny(**changes)
    before, after = begin(experiment), run(experiment, *indices(1))
    assert 0 < float(after.totals["loss"]) < np.inf
    # The only cell is a reduction.
    assert_differs(after.alpha["reduce"], before.alpha["reduce"])
    assert_equal(after.alpha["normal"], before.alpha["normal"])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after))


@pytest.mark.parametrize("kernels", ["cpu", "plain"])  # one loop for both passes, and two passes
def test_a_frozen_step_moves_only_the_weights(small, kernels):
    # Would catch Adam's moments that move while alpha is frozen, or a validation batch that is
    # read then.
    experiment = small(compute__kernels=kernels)
    assert experiment.backend().share_program == (kernels == "cpu")
    before, (train, valid) = begin(experiment), indices()
    after = run(experiment, train, valid, frozen=True)
    assert_equal((after.alpha, after.alpha_opt), (before.alpha, before.alpha_opt))
    assert_differs(after.params, before.params)
    assert int(after.step) == 3
    assert_equal(run(experiment, train, train, frozen=True), after)
    alive = run(experiment, train, valid, frozen=False)
    assert_differs(alive.alpha, before.alpha)


def test_the_update_of_alpha_moves_nothing_else(small):
    # Would catch running statistics of validation images.
    experiment = small()
    before = begin(experiment)
    after = update(steps.update_alpha, experiment.step_config(spec_of(experiment)), before)
    assert_differs(after.alpha, before.alpha)
    assert_differs(after.alpha_opt[0].mu, before.alpha_opt[0].mu)
    restored = after.replace(alpha=before.alpha, alpha_opt=before.alpha_opt)
    assert_equal(restored, before)


def test_the_update_of_the_weights_leaves_alpha(small):
    # Would catch a step that is counted twice, or totals of the wrong batch.
    experiment = small()
    before = begin(experiment)
    after = update(steps.update_weights, experiment.step_config(spec_of(experiment)), before)
    assert_equal((after.alpha, after.alpha_opt), (before.alpha, before.alpha_opt))
    assert_differs(after.params, before.params)
    assert_differs(after.variables, before.variables)
    assert int(after.step) == 1
    assert float(after.totals["count"]) == BATCH


def test_alpha_learns_from_validation_images_and_weights_from_training_images(small):
    # Would catch the two batches exchanged, and weights that move before alpha.
    experiment = small()
    train, valid = indices(2)
    train, other_train, valid, other_valid = train[:1], train[1:], valid[:1], valid[1:]
    state = run(experiment, train, valid)
    another = run(experiment, other_train, valid)
    assert_equal((another.alpha, another.alpha_opt), (state.alpha, state.alpha_opt))
    assert_differs(another.params, state.params)
    another = run(experiment, train, other_valid)
    assert_differs(another.alpha, state.alpha)
    # Alpha moves first: the weights' sample already comes from the new alpha.
    mixes = (one.variables["batch_stats"]["mix"] for one in (another, state))
    assert_differs(*mixes)


def gradient_of(config, state, role):
    """Returns the gradient, by its definition, of the loss on `batch()` under a step's sample."""
    images = batch()

    @jax.jit
    @functools.partial(jax.grad, argnums=("weights", "alpha").index(role))
    def compute(params, alpha):
        mix = draw_mix(config, state, alpha, role)
        variables = {"params": params, **state.variables}
        logits, _ = config.supernet.apply(
            variables, images.images, mix, True, mutable=["batch_stats"]
        )
        return jnp.mean(cross_entropy(logits, images.labels))

    return compute(state.params, state.alpha)


def with_plain_descent(experiment):
    """Returns a StepConfig and a state of SGD at rate 1: an update is minus the gradient."""
    descent = optax.sgd(1.0)
    config = dataclasses.replace(
        experiment.step_config(spec_of(experiment)),
        alpha_optimiser=descent,
        weight_optimiser=descent,
    )
    state = begin(experiment)
    return config, state.replace(
        alpha_opt=descent.init(state.alpha), weight_opt=descent.init(state.params)
    )


def test_weights_follow_the_gradient_under_their_sample(small):
    # Would catch a gradient at the sample of alpha's step, or at the mean.
    config, before = with_plain_descent(small())
    after = update(steps.update_weights, config, before)
    expected = gradient_of(config, before, "weights")
    moved = jax.tree.map(jnp.subtract, before.params, after.params)
    assert_close(moved, expected, atol=1e-6)  # differences of float32 numbers of size 1
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 1e-2


@pytest.mark.parametrize("clip", [0.0, 0.001])
def test_the_regulariser_is_added_after_clipping(small, clip):
    # Would catch a clipped sum: the regulariser is so strong that little of it would be left.
    config, before = with_plain_descent(small(arch__regulariser="l2", arch__strength=0.5))
    after = update(steps.update_alpha, dataclasses.replace(config, alpha_clip=clip), before)
    gradient = gradient_of(config, before, "alpha")["cell"]
    norm = np.linalg.norm(gradient)
    assert norm > 2 * 0.001
    clipped = gradient * (clip / norm) if clip else gradient
    alpha = before.alpha["cell"]
    # Differences of float32 numbers of size 1.
    np.testing.assert_allclose(alpha - after.alpha["cell"], clipped + 0.5 * alpha, atol=1e-6)


PENALTY = """
import dataclasses
import jax.numpy as jnp

@dataclasses.dataclass(frozen=True)
class Options:
    power: int = 2

def create(options):
    def penalty(alpha, cells, distribution, progress):
        rows = alpha["cell"]
        assert rows.shape == cells["cell"].shape
        weights = distribution.mean(rows, cells["cell"])  # a penalty may read them too
        return (1 + progress) * jnp.sum(rows**options.power) + 0 * jnp.sum(weights)
    return penalty
"""


def test_the_gradient_of_a_users_penalty_reaches_alpha(small, tmp_path):
    # Would catch a penalty without its options, its strength or the progress of the search.
    (tmp_path / "cubes.py").write_text(PENALTY)
    changes = dict(arch__regulariser=str(tmp_path / "cubes.py"), arch__strength=0.25)
    changes |= dict(search__operations=(4, 4))  # the small space cannot be pruned
    experiment = small(**changes, arch__regulariser_options__power=3)
    experiment.check()
    config, before = with_plain_descent(experiment)
    before = before.replace(step=jnp.int32(config.total_steps // 2))
    after = update(steps.update_alpha, config, before)
    gradient, alpha = gradient_of(config, before, "alpha")["cell"], before.alpha["cell"]
    expected = gradient + 0.25 * 1.5 * 3 * alpha**2
    # Differences of float32 numbers of size 1.
    np.testing.assert_allclose(alpha - after.alpha["cell"], expected, rtol=1e-5, atol=1e-6)


COST = """
import numpy as np
from drnas_jax.costs.base import CostTable

class Cost:
    unit = "points"

    def table(self, space, spec, network):
        assert network.channels == 32  # counted at the final network's size
        shape = spec.cell("cell").shape
        return CostTable(2.0, {"cell": np.arange(np.prod(shape), dtype=np.float32).reshape(shape)})

    def exact(self, space, network):
        raise AssertionError

create = Cost
"""


@pytest.mark.parametrize("target", [0.0, 8.0, 1e3])
def test_a_cost_changes_the_gradient_of_alpha_by_its_finite_differences(small, tmp_path, target):
    # Would catch a cost of the sample instead of the mean, and a target that is ignored.
    (tmp_path / "points.py").write_text(COST)
    changes = dict(cost__name=str(tmp_path / "points.py"), retrain__channels=32)
    changes |= dict(cost__weight=0.5, cost__target=target)
    config, before = with_plain_descent(small(**changes, arch__regulariser="none"))
    after = update(steps.update_alpha, config, before)
    gradient, alpha = gradient_of(config, before, "alpha")["cell"], before.alpha["cell"]
    costs, largest = np.arange(12.0).reshape(3, 4), 2 + 3 + 7 + 11

    def term(alpha):
        shares = np.exp(alpha) / np.exp(alpha).sum(axis=1, keepdims=True)
        expected = 2 + np.sum(shares * costs)
        return 0.5 * (max(0, expected / target - 1) if target else expected / largest)

    slope, exact = np.zeros((3, 4)), np.asarray(alpha, np.float64)
    for index in np.ndindex(slope.shape):
        one = np.zeros_like(slope)
        one[index] = 1e-5
        slope[index] = (term(exact + one) - term(exact - one)) / 2e-5
    assert (np.abs(slope).max() > 1e-2) == (target < 1e3)
    # Differences of float32 numbers of size 1.
    np.testing.assert_allclose(alpha - after.alpha["cell"], gradient + slope, atol=2e-6)
