"""The search step is deterministic in all its forms, and each draw depends on what it should."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from single_steps import (
    assert_close,
    assert_differs,
    assert_equal,
    batch,
    begin,
    call,
    dispatch_of,
    draw_mix,
    indices,
    run,
    spec_of,
    unchanged,
)

from drnas_jax.distributions import Distribution
from drnas_jax.distributions.base import softmax
from drnas_jax.phases.search import step as steps


def test_the_step_is_deterministic(small):
    # Would catch a random key that does not follow from seed and step.
    experiment = small()
    assert_equal(run(experiment, *indices()), run(experiment, *indices()))


def test_several_steps_in_one_dispatch_are_the_same_steps(small):
    # Would catch a loop that gives every step the first batch or the first key, or that also takes
    # a step of the row that only fills the dispatch.
    experiment = small()
    train, valid = indices(4)
    dispatch = dispatch_of(train, valid)._replace(steps=np.int32(3))
    program = experiment.step_program(spec_of(experiment))
    together = program(begin(experiment), experiment.loader.raw, dispatch)
    assert int(together.step) == 3
    # The compiler fuses the same sums in another way in a loop's body.
    assert_close(together, run(experiment, train[:3], valid[:3]), rtol=1e-4, atol=1e-6)


class Sharpened(Distribution):
    """The softmax of alpha, which depends on the role of the sample by a number or by an array."""

    def __init__(self, numbers):
        self.numbers = numbers

    def sample(self, alpha, cell, key, progress, role):
        noise = jax.random.normal(key, alpha.shape)
        return softmax(self.numbers[role] * alpha + 0.1 * noise, cell)

    def mean(self, alpha, cell):
        return softmax(alpha, cell)


@pytest.mark.parametrize(
    "distribution",
    [
        None,
        Sharpened({"alpha": 1.0, "weights": 2.0}),
        Sharpened({"alpha": np.full((3, 4), 1.0), "weights": np.full((3, 4), 2.0)}),
    ],
    ids=["gumbel", "a number by role", "an array by role"],
)
def test_one_program_for_both_passes_is_the_same_step(small, distribution):
    # Would catch the loop that draws both samples as if they were for alpha.
    check_one_program(small(), distribution)


@pytest.mark.slow
def test_one_program_for_both_passes_is_the_same_step_of_a_real_supernet(tiny):
    # Would catch a kernel that skips a gradient which is read.
    check_one_program(tiny(), None)


def check_one_program(experiment, distribution):
    config, before = experiment.step_config(spec_of(experiment)), begin(experiment)
    config = dataclasses.replace(config, distribution=distribution or config.distribution)

    def step(shared, state, train, valid):
        variant = dataclasses.replace(config, share_program=shared)
        return steps.search_step(variant, state, train, valid, False, unchanged)

    one, two = (
        call(functools.partial(step, shared), experiment.mesh, before, batch(1), batch(2))
        for shared in (True, False)
    )
    assert_differs((one.alpha, one.params), (before.alpha, before.params))
    # Sums in another order.
    assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_cells_with_equal_edges_draw_for_themselves(small):
    # Would catch cell types that share their samples, or that get those of another one.
    experiment = small()
    config, cell = experiment.step_config(spec_of(experiment)), spec_of(experiment).cell("cell")
    edge = dataclasses.replace(cell.edges[0], primitives=cell.edges[0].primitives[:2])
    cells = {"a": cell, "b": dataclasses.replace(cell, edges=(edge,)), "c": cell}
    spec = dataclasses.replace(config.spec, cells=tuple(cells.items()))
    config = dataclasses.replace(config, spec=spec)
    rng = np.random.default_rng(0)
    alpha = {name: rng.normal(size=one.shape).astype(np.float32) for name, one in cells.items()}
    state = begin(experiment)
    mix = draw_mix(config, state, alpha, "alpha")
    keys, progress = steps.pass_keys(config, state, "alpha").sample, jnp.zeros(())
    for name, one in cells.items():
        alone = config.distribution.sample(alpha[name], one, keys[name], progress, "alpha")
        np.testing.assert_allclose(mix[name], alone, rtol=1e-6)


def test_progress_is_that_of_the_whole_search(small):
    # Would catch a temperature that starts again in each stage or epoch.
    experiment = small()
    config = experiment.step_config(spec_of(experiment))
    assert config.total_steps == sum(experiment.config.search.epochs) * experiment.steps
    state = begin(experiment).replace(step=jnp.int32(config.total_steps // 4))
    seen = []

    class Spy(Distribution):
        def sample(self, alpha, cell, key, progress, role):
            seen.append((float(progress), role))
            return alpha

    config = dataclasses.replace(config, distribution=Spy())
    draw_mix(config, state, state.alpha, "weights")
    assert seen == [(0.25, "weights")]


def test_mean_logits_use_the_mean_and_the_batch_statistics(small):
    # Would catch validation by a sample or by the running averages.
    experiment = small()
    config, state = experiment.step_config(spec_of(experiment)), begin(experiment)
    images = batch().images
    mix = {"cell": jax.nn.softmax(state.alpha["cell"])}  # the mean of the Gumbel softmax
    variables = {"params": state.params, **state.variables}
    expected, _ = config.supernet.apply(variables, images, mix, True, mutable=["batch_stats"])
    logits = call(functools.partial(steps.mean_logits, config), experiment.mesh, state, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
