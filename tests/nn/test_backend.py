"""The kernels of every backend against the plain ones, and these against loops in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnas_jax.errors import UserError
from drnas_jax.nn import backend, shifts, weight_gradients

# 1x1 and thin images are all border; odd and non-square ones tell rows from columns.
SHAPES = [(2, 8, 8, 4), (3, 5, 7, 3), (1, 4, 9, 2), (2, 1, 1, 3), (2, 1, 6, 2), (1, 2, 2, 5)]
# Compiled for one run: optimisation would take longer than it saves.
FAST_COMPILE = {"xla_backend_optimization_level": 0}
PLATFORMS = ("cpu", "gpu", "tpu")


def other(name):
    """Returns the platforms whose kernel is not the plain function itself."""
    plain = backend.PLAIN
    return [
        platform
        for platform in PLATFORMS
        if getattr(chosen := backend.for_platform(platform), name) is not getattr(plain, name)
        or chosen.channel_axis != plain.channel_axis
    ]


def normal(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def results(platform, name, shape, filters=None, static=(), ties=False, wanted=None):
    """Returns a kernel's value in the plain layout, and its gradients in images and filters.

    Args:
      platform: Platform whose kernel is computed.
      name: Name of the kernel.
      shape: Shape of the images.
      filters: Shape of the filters, if the kernel has any.
      static: The other arguments.
      ties: Whether some values of the images are equal.
      wanted: See `weight_gradients.computed_if`.
    """
    chosen, x = backend.for_platform(platform), normal(0, shape)
    arrays = [np.round(x) if ties else x, *([normal(1, filters)] if filters else [])]

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def compute(arrays, wanted):
        def run(x, *rest):
            kernel = getattr(chosen, name)
            return chosen.transpose(kernel(chosen.transpose(x), *rest, *static))

        with weight_gradients.computed_if(wanted):
            value, pull = jax.vjp(run, *arrays)
            # The cotangent is random, so not symmetric.
            return value, *pull(jnp.asarray(normal(9, value.shape)))

    return compute(arrays, None if wanted is None else jnp.float32(wanted))


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        # Sums of up to 9 * 5 products of size 1 (filters: over all pixels) in another order.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def assert_plain(platform, *case, **more):
    assert_same(results(platform, *case, **more), results("plain", *case, **more))


@pytest.mark.parametrize("platform", other("conv"))
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_conv_agrees_with_plain(platform, size, stride, shape):
    assert_plain(platform, "conv", shape, (size, size, shape[-1], 6), (stride,))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("shape", [(2, 6, 4, 3), (1, 5, 3, 2), (2, 1, 2, 2)])
def test_conv_agrees_with_plain_if_it_takes_some_rows_at_a_time(monkeypatch, rows, shape):
    # Would catch pixels at the border of two blocks that do not see each other.
    batch, _, width, channels = shape
    monkeypatch.setattr(shifts, "_BLOCK_BYTES", rows * 9 * channels * width * batch * 4)
    results.cache_clear()
    assert_plain("cpu", "conv", shape, (3, 3, channels, 4), (1,))


@pytest.mark.parametrize("platform", other("avg_pool"))
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_avg_pool_agrees_with_plain(platform, stride, shape):
    assert_plain(platform, "avg_pool", shape, static=(stride,))


# The first of equal values gets the gradient. A window of 2 is not padded, so sides are at least 2.
@pytest.mark.parametrize("platform", other("max_pool"))
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (2, 2)])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if min(shape[1:3]) > 1])
def test_max_pool_agrees_with_plain(platform, ties, size, stride, shape):
    assert_plain(platform, "max_pool", shape, static=(size, stride), ties=ties)


@pytest.mark.parametrize("platform", ("plain", *other("max_pool")))
@pytest.mark.parametrize("stride", [1, 2])
def test_max_pool_and_avg_pool_pass_a_nan_on(platform, stride):
    # Would catch a comparison that is false for NaN: the loss of a broken network stays finite.
    chosen, x = backend.for_platform(platform), normal(0, (1, 7, 7, 1))
    x[0, 3, 3] = np.nan  # first, in the middle and last in a window, along both axes
    for kernel in (lambda x: chosen.max_pool(x, 3, stride), lambda x: chosen.avg_pool(x, stride)):
        y = np.asarray(chosen.transpose(kernel(chosen.transpose(jnp.asarray(x)))))[0, :, :, 0]
        windows = [i for i in range(len(y)) if abs(stride * i - 3) <= 1]
        expected = np.zeros(y.shape, bool)
        expected[np.ix_(windows, windows)] = True
        np.testing.assert_array_equal(np.isnan(y), expected)


@pytest.mark.parametrize(
    ("platform", "dilation"),
    [
        (platform, dilation)
        for platform in other("depthwise")
        for dilation in (1, 2)
        if (platform, dilation) != ("gpu", 1)  # it calls the plain kernel
    ],
)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (1, 5, 7, 2), (2, 1, 2, 2)])
def test_depthwise_agrees_with_plain(platform, stride, size, dilation, shape):
    assert_plain(platform, "depthwise", shape, (size, size, shape[-1]), (stride, dilation))


@pytest.mark.parametrize("wanted", [0, 1])
@pytest.mark.parametrize(
    ("name", "filters", "static"),
    [
        ("conv", (3, 3, 4, 6), (1,)),
        ("pointwise", (4, 6), ()),
        ("depthwise", (3, 3, 4), (1, 2)),
    ],
)
def test_filters_have_a_gradient_only_if_it_is_wanted(name, filters, static, wanted):
    # Would catch a condition that also skips the gradient of the images.
    case = name, (2, 3, 5, 4), filters, static
    value, d_images, d_filters = results("plain", *case)
    found = results("cpu", *case, wanted=wanted)
    assert_same(found, (value, d_images, wanted * d_filters))


def test_depthwise_gives_each_channel_its_own_filter():
    x, filters = normal(0, (2, 8, 6, 3)), normal(1, (3, 3, 3))
    y = backend.PLAIN.depthwise(x, filters, 1, 1)
    expected = sum(
        x[:, 2 + i, 3 + j] * filters[1 + i, 1 + j] for i in (-1, 0, 1) for j in (-1, 0, 1)
    )
    np.testing.assert_allclose(y[:, 2, 3], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("platform", other("pointwise"))
def test_pointwise_agrees_with_plain(platform):
    assert_plain(platform, "pointwise", (2, 3, 5, 4), (4, 6))


@pytest.mark.parametrize("platform", ["plain", *PLATFORMS])
def test_layout(platform):
    # Would catch values that go to channels where they belong to examples.
    chosen, x = backend.for_platform(platform), normal(0, (2, 3, 5, 4))
    y = chosen.transpose(x)
    np.testing.assert_array_equal(chosen.transpose(y), x)
    assert (y.shape[chosen.batch_axis], y.shape[chosen.channel_axis]) == (2, 4)
    np.testing.assert_allclose(chosen.pixel_mean(y), x.mean((1, 2)), rtol=1e-5, atol=1e-6)
    quarters = x[:, :2, :4].reshape(2, 1, 2, 2, 2, 4).mean((2, 4))
    halved = chosen.transpose(chosen.halve(y[:, :2, :4]))
    np.testing.assert_allclose(halved, quarters, rtol=1e-5, atol=1e-6)
    channel, example = normal(1, (4,)), normal(2, (2,))
    scaled = chosen.transpose(y * chosen.per_channel(channel) * chosen.per_example(example))
    np.testing.assert_allclose(scaled, x * channel * example[:, None, None, None], rtol=1e-5)


@pytest.mark.parametrize("platform", ["plain", *other("avg_pool")])
@pytest.mark.parametrize("shape", SHAPES)
def test_avg_pool_is_the_mean_without_the_padding(platform, shape):
    # Would catch a division by 9 at the border.
    x = normal(0, shape)
    expected = np.empty_like(x)
    for i, j in np.ndindex(shape[1:3]):
        window = x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
        expected[:, i, j] = window.mean((1, 2))
    # At most 9 values of size 1 are added.
    chosen = backend.for_platform(platform)
    found = chosen.transpose(chosen.avg_pool(chosen.transpose(x), 1))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("platform", ["plain", *other("conv")])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("height, width", [(6, 4), (5, 7), (1, 1)])
def test_conv_is_pytorchs(platform, stride, size, height, width):
    # Would catch TensorFlow's padding, which depends on the size of the image.
    x, filters = normal(0, (2, height, width, 3)), normal(1, (size, size, 3, 4))
    half = size // 2
    padded = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    rows, columns = (height - 1) // stride + 1, (width - 1) // stride + 1
    expected = np.empty((2, rows, columns, 4), np.float32)
    for i, j in np.ndindex(rows, columns):
        top, left = i * stride, j * stride
        window = padded[:, top : top + size, left : left + size]
        expected[:, i, j] = np.einsum("bhwc,hwco->bo", window, filters)
    # Sums of 27 products of size 1.
    chosen = backend.for_platform(platform)
    found = chosen.transpose(chosen.conv(chosen.transpose(x), filters, stride))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_backend_is_chosen_by_name_or_platform():
    # Would catch a name that is overruled by the platform.
    assert backend.choose("auto", "gpu") == backend.for_platform("gpu")
    assert backend.choose("plain", "cpu") == backend.PLAIN._replace(remat="auto")
    assert backend.choose("auto", "cpu", "cells") == backend.CPU._replace(remat="cells")
    assert backend.choose("auto", "tpu", axis_name="data") == backend.TPU._replace(axis_name="data")
    with pytest.raises(UserError, match="unknown platform 'cuda'.*cpu, gpu, plain, tpu"):
        backend.for_platform("cuda")


def test_what_is_recomputed():
    # Would catch a setting that is not used, or `auto` on accelerators, where it costs time.
    assert backend.CPU.checkpointing("cells") == {"policy": None}
    assert backend.GPU.checkpointing("cells") is None
    assert backend.GPU._replace(remat="cells").checkpointing("none") == {"policy": None}
    assert backend.CPU._replace(remat="none").checkpointing("cells") is None
