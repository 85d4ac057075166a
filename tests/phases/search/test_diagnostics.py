"""Accuracies of single genotypes and the curvature in alpha, against the same written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_space import Small, start

from drnas_jax.distributions.base import draw_by_share, draw_genotype
from drnas_jax.phases import loop
from drnas_jax.phases.search.diagnostics import PRODUCTS, Diagnostics, largest_eigenvalue
from drnas_jax.spaces.base import one_hot
from drnas_jax.training.losses import cross_entropy


def validation(experiment, batches):
    """Returns the first images of the validation split, as the supernet gets them."""
    read = list(experiment.loader.evaluation(0))[:batches]
    numbers = np.concatenate([np.asarray(batch) for batch, _ in read])
    return experiment.preprocessing.normalise(experiment.loader.raw, numbers)


def logits_of(state, images, mix):
    """Returns the logits that the small supernet gives by the statistics of these images."""
    variables = {"params": state.params, **state.variables}
    module = Small(4, None)
    return module.apply(variables, images, mix, True, mutable=["batch_stats"])[0]


@pytest.mark.parametrize("devices, batches", [pytest.param(1, 1, marks=pytest.mark.slow), (2, 2)])
def test_curvature_is_the_largest_eigenvalue(small, devices, batches):
    # Would catch a Hessian that is summed and not averaged over batches or devices, and batch
    # statistics of a device in place of those of the batch.
    experiment = small(devices)
    spec = experiment.first_spec()
    state = start(experiment, spec)
    images, labels = validation(experiment, batches)
    here = jax.tree.map(np.asarray, state)

    def loss(alpha):
        mix = {"cell": jax.nn.softmax(alpha.reshape(here.alpha["cell"].shape))}
        parts = []
        for at in range(0, len(images), 16):
            part = slice(at, at + 16)
            logits = logits_of(here, images[part], mix)
            parts.append(jnp.mean(cross_entropy(logits, labels[part])))
        return jnp.mean(jnp.stack(parts))

    expected = np.linalg.eigvalsh(jax.jit(jax.hessian(loss))(here.alpha["cell"].reshape(-1)))
    found = Diagnostics(experiment, spec).curvature(state, 0, batches)
    assert found == pytest.approx(expected[-1], rel=1e-2)
    assert abs(found) > 1e-3


@pytest.mark.parametrize("devices", [1, 8])
def test_accuracy_is_that_of_the_supernet_at_these_mixing_weights(small, devices):
    # Would catch running averages in place of the batch's statistics, or other images, and cells
    # that are selected on the statistics of each device's two images.
    experiment, rng = small(devices), np.random.default_rng(3)
    spec = experiment.first_spec()
    state, diagnostics = start(experiment, spec), Diagnostics(experiment, spec)
    flat = {"cell": np.ones(spec.cell("cell").shape)}
    genotypes = [draw_genotype(experiment.space, spec, flat, draw_by_share, rng) for _ in range(8)]
    images, labels = validation(experiment, 2)
    expected, found = [], []
    for genotype in genotypes:
        mix = one_hot(dict(spec.cells), genotype)
        hits = [
            np.mean(np.argmax(logits_of(state, images[part], mix), -1) == labels[part])
            for part in (slice(0, 16), slice(16, 32))
        ]
        expected.append(np.mean(hits))
        found.append(diagnostics.accuracy(state, mix, 0, 2))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(set(found)) > 1
    assert diagnostics.accuracy(state, mix, 0, None) == pytest.approx(found[-1])  # there are two


def test_validation_does_not_depend_on_the_number_of_devices(small):
    # Would catch batch statistics of a device: with 8 devices these are of two images.
    totals = []
    for devices in (1, 8):
        experiment = small(devices)
        spec = experiment.first_spec()
        program, raw = experiment.validation_program(spec), experiment.loader.raw
        state = start(experiment, spec)
        totals.append(loop.evaluate(program, state, raw, experiment.loader.evaluation(0)))
    assert totals[0] == pytest.approx(totals[1], rel=1e-5)


SPECTRA = {
    "an outlier": [*np.linspace(-0.2, 0.3, 29), 1.0],
    "two of the same size": [*np.linspace(-0.2, 0.3, 28), 0.99, 1.0],
    "a large negative one": [-3.0, *np.linspace(0, 1e-3, 28), 1.0],
    "rapid decay": list(0.7 ** np.arange(200)),
    "rank one": [0.0] * 55 + [2.0],
    "zero": [0.0] * 5,
    "negative": [-2.0, -1.0, -0.5],
    "one": [-4.0],
}


@pytest.mark.parametrize("name", SPECTRA)
def test_lanczos_finds_the_largest_eigenvalue_with_few_products(name):
    # Would catch the eigenvalue of largest magnitude, a division by zero when no direction is left,
    # and more products than a search can afford.
    values, rng = np.array(SPECTRA[name]), np.random.default_rng(7)
    vectors, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
    matrix, products = np.float32(vectors * values @ vectors.T), []

    def product(vector):
        assert np.linalg.norm(vector) == pytest.approx(1)
        products.append(vector)
        return matrix @ np.float32(vector)  # with the rounding of a device

    found = largest_eigenvalue(product, len(values))
    assert found == pytest.approx(max(values), rel=0.01, abs=1e-6)
    assert 1 <= len(products) <= min(PRODUCTS, len(values))
