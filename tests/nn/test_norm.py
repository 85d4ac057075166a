"""Batch normalisation and stacked parameters against formulas in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from drnas_jax.nn import backend, norm
from drnas_jax.nn.norm import BatchNorm
from drnas_jax.nn.stacked_params import (
    ApplyContext,
    MomentRecorder,
    StackedParams,
    Weight,
    channel_shuffle,
)
from drnas_jax.training.devices import AXIS, SHARDED, data_parallel, make_mesh

# Values of size 1 in float32 with some tens of roundings of 1e-7 each.
CLOSE = dict(rtol=1e-5, atol=1e-5)


def normal(seed, shape):
    """Returns channels of different mean and spread, so that no two are alike."""
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    channel = np.arange(shape[-1], dtype=np.float32)
    return values * (0.5 + channel) + channel - 1


def batch_norm_variables(features):
    stats = {"mean": normal(1, (features,)), "var": 0.5 + np.arange(features, dtype=np.float32)}
    params = {"scale": normal(2, (features,)), "bias": normal(3, (features,))}
    return {"params": params, "batch_stats": stats}


def test_batch_norm_in_training():
    # Would catch running averages that move by 0.9 in place of 0.1.
    x = normal(0, (3, 4, 5, 6))
    variables = batch_norm_variables(6)
    y, updated = BatchNorm().apply(variables, x, True, mutable=["batch_stats"])
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    expected = (x - mean) / np.sqrt(var + 1e-5)
    expected = expected * variables["params"]["scale"] + variables["params"]["bias"]
    np.testing.assert_allclose(y, expected, **CLOSE)
    # PyTorch keeps the unbiased variance: it divides by 59 in place of 60, a difference of 1.7 %.
    old = variables["batch_stats"]
    np.testing.assert_allclose(
        updated["batch_stats"]["mean"], 0.9 * old["mean"] + 0.1 * mean, **CLOSE
    )
    unbiased = x.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(
        updated["batch_stats"]["var"], 0.9 * old["var"] + 0.1 * unbiased, **CLOSE
    )


def test_batch_norm_in_evaluation():
    # Would catch an evaluation that depends on the batch, or changes the running averages.
    x = normal(0, (3, 4, 5, 6))
    variables = batch_norm_variables(6)
    y, updated = BatchNorm().apply(variables, x, False, mutable=["batch_stats"])
    mean, var = variables["batch_stats"]["mean"], variables["batch_stats"]["var"]
    expected = (x - mean) / np.sqrt(var + 1e-5)
    expected = expected * variables["params"]["scale"] + variables["params"]["bias"]
    np.testing.assert_allclose(y, expected, **CLOSE)
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])


def test_batch_norm_at_the_start():
    x = normal(0, (2, 3, 3, 4))
    variables = BatchNorm().init(jax.random.key(0), x, True)
    expected = {
        "params": {"scale": np.ones(4), "bias": np.zeros(4)},
        # As in PyTorch the images of the initialisation have no influence.
        "batch_stats": {"mean": np.zeros(4), "var": np.ones(4)},
    }
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_batch_norm_gradient_flows_through_the_statistics():
    # Would catch a custom gradient that treats the statistics as constants.
    x, cotangent = normal(0, (2, 3, 4)), normal(5, (2, 3, 4))
    module, variables = BatchNorm(), batch_norm_variables(4)
    _, pull = jax.vjp(lambda x: module.apply(variables, x, True, mutable=["batch_stats"])[0], x)
    # The textbook formula (Ioffe and Szegedy 2015, section 3).
    rate = 1 / np.sqrt(x.var((0, 1)) + 1e-5)
    normed = (x - x.mean((0, 1))) * rate
    expected = (
        rate
        * variables["params"]["scale"]
        * (cotangent - cotangent.mean((0, 1)) - normed * (cotangent * normed).mean((0, 1)))
    )
    # The division by a standard deviation of 0.5 and more enlarges roundings a few times.
    np.testing.assert_allclose(pull(cotangent)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_single_value_has_no_unbiased_variance():
    # Would catch a division by n - 1 = 0.
    x = normal(0, (1, 1, 1, 3))
    variables = batch_norm_variables(3)
    _, updated = BatchNorm().apply(variables, x, True, mutable=["batch_stats"])
    expected = 0.9 * variables["batch_stats"]["var"]
    np.testing.assert_allclose(updated["batch_stats"]["var"], expected, rtol=1e-6)


@pytest.mark.parametrize("synchronised", [True, False])
def test_batch_norm_over_devices(synchronised):
    # Would catch a variance that is averaged over devices without that of their means.
    x = normal(0, (8, 2, 3, 4))
    variables = batch_norm_variables(4)

    def per_device(x):
        module = BatchNorm(axis_name=AXIS if synchronised else None)
        y, updated = module.apply(variables, x, True, mutable=["batch_stats"])
        return y, jax.tree.map(lambda a: a[None], updated["batch_stats"])

    program = data_parallel(per_device, make_mesh(jax.devices()[:4]), (SHARDED,), SHARDED)
    y, stats = program(x)
    for device in range(4):
        shard = slice(2 * device, 2 * device + 2)
        seen = x if synchronised else x[shard]
        expected, updated = BatchNorm().apply(variables, seen, True, mutable=["batch_stats"])
        np.testing.assert_allclose(y[shard], expected[shard] if synchronised else expected, **CLOSE)
        for name, array in stats.items():
            np.testing.assert_allclose(array[device], updated["batch_stats"][name], **CLOSE)


def test_fan_in_initialisation_is_pytorchs():
    # Would catch the axis of edges in the fan-in.
    filters = norm.uniform_fan_in((0,))(jax.random.key(0), (2, 3, 3, 40, 50), jnp.float32)
    bound = 1 / np.sqrt(9 * 40)
    assert np.abs(filters).max() <= bound
    # The standard deviation of 36,000 uniform values is known to 0.4 % (one sigma).
    assert float(filters.std()) == pytest.approx(bound / np.sqrt(3), rel=0.02)


ROWS, FEATURES = 4, 3


def stacked_variables(affine):
    params = {"kernel": normal(1, (ROWS, FEATURES, FEATURES))}
    if affine:
        params["scale"] = normal(2, (ROWS, FEATURES))
        params["bias"] = normal(3, (ROWS, FEATURES))
    var = 0.5 + np.arange(ROWS * FEATURES, dtype=np.float32).reshape(ROWS, FEATURES)
    return {"params": params, "batch_stats": {"mean": normal(4, (ROWS, FEATURES)), "var": var}}


class Weighted(nn.Module):
    """Pointwise convolutions of all rows side by side, normalised and times a weight each."""

    affine: bool
    train: bool
    chosen: backend.Backend

    @nn.compact
    def __call__(self, x, mix):
        weights = {"kernel": Weight(norm.uniform_fan_in((0,)), (FEATURES, FEATURES))}
        stacked = StackedParams((ROWS,), weights, {"": (FEATURES,)}, self.affine, name="stacked")
        arrays, context = stacked.arrays(self.train), ApplyContext(self.chosen, self.train)
        x = self.chosen.transpose(x)
        y = [self.chosen.pointwise(x, matrix) for matrix in arrays["kernel"]]
        y = jnp.concatenate(y, axis=self.chosen.channel_axis)
        y, moments = context.normalise(y, arrays, weight=jnp.repeat(mix, FEATURES))
        recorder = MomentRecorder()
        for rows in ((3, 1), (0, 2)) if moments else ():  # in no order
            some = (values.reshape(ROWS, FEATURES)[np.array(rows)] for values in moments[""])
            recorder.add("stacked", "", rows, *some)
        stacked.record(recorder.moments().get("stacked", {}))
        return self.chosen.transpose(y)


def separate(variables, x, mix, train):
    """Returns the same from plain Flax, row by row."""
    outputs, stats = [], []
    for row, weight in enumerate(mix):
        of_row = jax.tree.map(lambda array, row=row: array[row], variables)
        y = x @ of_row["params"].pop("kernel")
        affine = {"scale": jnp.ones(FEATURES), "bias": jnp.zeros(FEATURES)}
        of_row["params"] = affine | of_row["params"]
        y, updated = BatchNorm().apply(of_row, y, train, mutable=["batch_stats"])
        outputs.append(weight * y)
        stats.append(updated["batch_stats"])
    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *stats)
    return jnp.concatenate(outputs, axis=-1), stacked


@pytest.mark.parametrize("platform", ["plain", "cpu"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_stacked_rows_are_normalised_separately(platform, affine, train):
    # Would catch moments that are recorded for another row, or a weight without a gradient.
    x, mix = normal(0, (2, 4, 5, FEATURES)), np.array([0.7, -0.2, 0.4, 1.1], np.float32)
    variables = stacked_variables(affine)
    module = Weighted(affine, train, backend.for_platform(platform))

    def stacked(params, x, mix):
        stats = {"stacked": variables["batch_stats"]}
        nested = {"params": {"stacked": params}, "batch_stats": stats}
        y, updated = module.apply(nested, x, mix, mutable=["batch_stats"])
        return y, updated["batch_stats"]["stacked"]

    def apart(params, x, mix):
        return separate({**variables, "params": params}, x, mix, train)

    @partial(jax.jit, static_argnums=0)
    def evaluate(function, *arguments):
        y, pull, stats = jax.vjp(function, *arguments, has_aux=True)
        return y, pull(jnp.asarray(normal(6, y.shape))), stats

    found, expected = (evaluate(f, variables["params"], x, mix) for f in (stacked, apart))
    # Gradients are sums over all pixels in another order; those of the mixing weights reach 100.
    for a, b, tolerance in zip(found, expected, (2e-5, 2e-4, 2e-5), strict=True):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=tolerance), a, b)
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), found[2], variables["batch_stats"])
    assert changed == {"mean": train, "var": train}


def test_moments_survive_a_large_mean():
    # Would catch the mean of squares minus the squared mean, which has no correct digit here.
    x = 1e4 + np.random.default_rng(0).normal(size=(4, 32, 32, 2)).astype(np.float32)
    _, (mean, var) = norm.normalise_batch(x, np.ones(2, np.float32), -1, None)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, wide.var((0, 1, 2), ddof=1), rtol=1e-3)


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6])
def test_channel_shuffle(groups):
    x = normal(0, (2, 3, 12))
    # Would catch the inverse permutation, which is the same for 1 group only.
    expected = np.empty_like(x)
    length = 12 // groups
    for group in range(groups):
        for i in range(length):
            expected[..., i * groups + group] = x[..., group * length + i]
    np.testing.assert_array_equal(channel_shuffle(x, groups), expected)
    first = np.moveaxis(x, -1, 0)
    np.testing.assert_array_equal(channel_shuffle(first, groups, 0), np.moveaxis(expected, -1, 0))
