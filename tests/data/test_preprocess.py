"""Preprocessing: against loops in numpy, in distribution, and however a batch is divided."""

import colorsys
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from drnas_jax.data import Preprocessing
from drnas_jax.data.preprocess import augment_batch, color_jitter, normalise

MEAN = np.array([0.49, 0.48, 0.45], np.float32)
STD = np.array([0.25, 0.24, 0.26], np.float32)
ALL = dict(crop_padding=4, flip=True, cutout=16)
SETTINGS = [
    dict(crop_padding=0, flip=False, cutout=0),
    dict(crop_padding=4, flip=False, cutout=0),
    dict(crop_padding=0, flip=True, cutout=0),
    dict(crop_padding=0, flip=False, cutout=5),
    dict(crop_padding=2, flip=True, cutout=100),
    ALL,
]


def preprocessing(mean=MEAN, std=STD, **settings):
    return Preprocessing(tuple(map(float, mean)), tuple(map(float, std)), **settings)


def augmented(key, position, images, **settings):
    return augment_batch(key, position, images, preprocessing(**settings))


def random_images(b, h=32, w=32, c=3):
    return np.random.default_rng(0).integers(0, 256, (b, h, w, c), np.uint8)


def by_hand(key, position, images, mean, std, crop_padding, flip, cutout):
    """Augments one image after the other in numpy: pad, crop, flip, scale, erase."""
    results = []
    for i, image in zip(position, images, strict=True):
        top, left, mirror, row, column = np.asarray(
            jax.random.uniform(jax.random.fold_in(key, i), 5)
        )
        h, w, _ = image.shape
        p = crop_padding
        image = np.pad(image, ((p, p), (p, p), (0, 0)))
        y, x = int(top * (2 * p + 1)), int(left * (2 * p + 1))
        image = image[y : y + h, x : x + w]
        if flip and mirror < 0.5:
            image = np.fliplr(image)
        image = (image / 255.0 - mean) / std
        if cutout:
            y, x = int(row * h) - cutout // 2, int(column * w) - cutout // 2
            image[max(y, 0) : max(y + cutout, 0), max(x, 0) : max(x + cutout, 0)] = 0
        results.append(image)
    return np.stack(results)


@pytest.mark.parametrize(
    ("kwargs", "shape"),
    [*((kwargs, (12, 20, 3)) for kwargs in SETTINGS), (ALL, (32, 32, 3)), (ALL, (8, 8, 1))],
    ids=str,
)
def test_augment_batch_equals_numpy(kwargs, shape):
    # Catches an operation in another order, or that draws another number.
    key, position = jax.random.key(7), jnp.arange(5, 29)
    images = random_images(24, *shape)
    mean, std = MEAN[: shape[-1]], STD[: shape[-1]]
    augment = jax.jit(functools.partial(augmented, mean=mean, std=std, **kwargs))
    result = augment(key, position, images)
    assert result.dtype == jnp.float32
    expected = by_hand(key, position, images, mean, std, **kwargs)
    # Values up to 2.2 after a few roundings in float32; one level of a pixel is 1 / 255 / 0.26.
    np.testing.assert_allclose(result, expected, atol=2e-6)


def test_normalise():
    # Catches statistics that are applied to pixels in 0..255.
    images = random_images(3, 4, 5)
    expected = (images.astype(float) / 255 - MEAN) / STD
    result = normalise(images, MEAN, STD)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, atol=2e-6)


def test_crop_offsets_are_uniform():
    # Catches an offset that is never drawn, at one of the two ends.
    # Pixels hold 1 + their row and column, so the middle one says where the crop began.
    rows, columns = np.mgrid[1:6, 1:6]
    image = np.stack([rows, columns], axis=-1).astype(np.uint8)
    n = 4500
    images = np.broadcast_to(image, (n, *image.shape))
    scaled = dict(mean=[0], std=[1 / 255])
    result = augmented(jax.random.key(0), jnp.arange(n), images, **scaled, crop_padding=1)
    y, x = np.rint(np.asarray(result)[:, 2, 2].T).astype(int) - 2
    assert {*y, *x} == {0, 1, 2}
    counts = np.bincount(3 * y + x, minlength=9)
    assert np.all(np.abs(counts - n / 9) < 106)  # 5 standard deviations of a binomial
    assert np.all(np.asarray(result)[(y == 0), 0] == 0)  # black came in from above


def test_half_of_the_images_are_mirrored():
    # Catches a coin that is drawn once for the whole batch.
    n = 4000
    images = np.zeros((n, 1, 2, 1), np.uint8)
    images[:, :, 1] = 255
    result = augmented(jax.random.key(0), jnp.arange(n), images, mean=[0], std=[1], flip=True)
    mirrored = np.asarray(result)[:, 0, 0, 0].sum()
    assert abs(mirrored - n / 2) < 158  # 5 standard deviations


@pytest.mark.parametrize("side", [2, 3])
def test_cutout_erases_each_pixel_as_often_as_it_should(side):
    # Catches a square that is moved inside at the borders.
    n, size = 6000, 5
    images = np.full((n, size, size, 1), 255, np.uint8)
    result = augmented(jax.random.key(0), jnp.arange(n), images, mean=[0], std=[1], cutout=side)
    erased = np.asarray(result)[..., 0] == 0
    # Five centres are equally likely; a row is erased by those whose window holds it.
    holds = [
        sum(centre - side // 2 <= row < centre - side // 2 + side for centre in range(size)) / size
        for row in range(size)
    ]
    chance = np.outer(holds, holds)
    deviation = np.sqrt(chance * (1 - chance) / n)
    assert np.all(np.abs(erased.mean(0) - chance) < 5 * deviation)
    # Inside the image it is a whole square, at the border a part of one.
    assert erased.sum((1, 2)).max() == side**2
    assert erased.sum((1, 2)).min() >= (side // 2) ** 2


def test_result_depends_on_key_and_position():
    # Catches equal draws for all images of a batch, or in all steps.
    images = np.broadcast_to(random_images(1), (8, 32, 32, 3))
    augment = jax.jit(functools.partial(augmented, **ALL))
    result = augment(jax.random.key(0), jnp.arange(8), images)
    assert len(np.unique(np.asarray(result), axis=0)) == 8
    assert not np.array_equal(result, augment(jax.random.key(1), jnp.arange(8), images))


def test_the_result_does_not_depend_on_how_the_batch_is_divided():
    # Catches a run that changes with the number of devices.
    n = 8 * jax.device_count()
    images, position = random_images(n, 8, 8), jnp.arange(n)
    key, augment = jax.random.key(3), functools.partial(augmented, **ALL)
    whole = jax.jit(augment)(key, position, images)

    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    batch, same = PartitionSpec("data"), PartitionSpec()
    specs = (same, batch, batch)
    sharded = jax.shard_map(augment, mesh=mesh, in_specs=specs, out_specs=batch)
    # The draws are the same to the bit; a compiler may round the scaling differently.
    result = jax.jit(sharded)(key, position, images)
    np.testing.assert_allclose(result, whole, atol=2e-6)

    # The same on one device, with parts of the batch in another order.
    for part in (slice(0, n // 4), slice(n // 4, None), slice(None, None, -3)):
        result = jax.jit(augment)(key, position[part], images[part])
        np.testing.assert_allclose(result, whole[part], atol=2e-6)


def test_works_under_vmap_and_scan():
    # Catches Python control flow on traced values.
    images = random_images(12, 8, 8).reshape(3, 4, 8, 8, 3)
    position = jnp.arange(4)
    keys = jax.random.split(jax.random.key(0), 3)
    augment = jax.jit(functools.partial(augmented, **ALL))
    one_by_one = np.stack([augment(keys[i], position, images[i]) for i in range(3)])
    mapped = jax.vmap(augment, in_axes=(0, None, 0))(keys, position, images)
    _, scanned = jax.lax.scan(
        lambda _, x: (None, augment(x[0], position, x[1])), None, (keys, images)
    )
    np.testing.assert_allclose(mapped, one_by_one, atol=2e-6)
    np.testing.assert_allclose(scanned, one_by_one, atol=2e-6)


def test_needs_no_convolution():
    # Augmentation runs in a scan, in which a convolution is very slow on CPUs.
    augment = functools.partial(augmented, **ALL)
    program = jax.make_jaxpr(augment)(jax.random.key(0), jnp.arange(2), random_images(2))
    assert "conv_general" not in str(program)


# Colours

JITTER = (0.4, 0.5, 0.6, 0.5)
# Values up to 255 after some twenty roundings in float32; stretching contrast or hue may double it.
CLOSE = 2e-3


def jitter_by_hand(key, position, images, strength):
    """Changes one image at a time in float64, and the hue of one pixel at a time by colorsys."""

    def gray(x):
        return x @ [0.299, 0.587, 0.114] if x.shape[-1] == 3 else x[..., 0]

    def turned(pixel, by):
        hue, *rest = colorsys.rgb_to_hsv(*pixel / 255)
        return 255 * np.array(colorsys.hsv_to_rgb((hue + by) % 1, *rest))

    changes = [
        lambda x, by: x * (1 + by),
        lambda x, by: (1 + by) * x - by * gray(x).mean(),
        lambda x, by: (1 + by) * x - by * gray(x)[..., None],
        lambda x, by: np.apply_along_axis(turned, -1, x, by),
    ][: 4 if images.shape[-1] == 3 else 2]
    order_key, key = jax.random.split(key)
    order = np.asarray(jax.random.permutation(order_key, len(changes)))
    results = []
    for i, image in zip(position, images.astype(float), strict=True):
        draw = jax.random.uniform(jax.random.fold_in(key, i), (4,), minval=-1, maxval=1)
        by = np.asarray(draw, float) * strength
        for change in order:
            image = np.clip(changes[change](image, by[change]), 0, 255)
        results.append(image)
    return np.stack(results), tuple(order)


_jitted = jax.jit(color_jitter)  # the strength is traced, so one program serves for each shape


def jittered(key, position, images, strength=JITTER):
    return np.asarray(_jitted(key, position, images, np.array(strength)))


@pytest.mark.parametrize("c", [1, 3])
def test_color_jitter_equals_numpy(c):
    # Catches an order of the four changes that is not the drawn one.
    position, images = jnp.arange(3, 9), random_images(6, 5, 7, c)
    images[0] = images[0, :1, :1]  # one colour
    images[1, ..., 1:] = images[1, ..., :1]  # no colours
    orders = set()
    for seed in range(8):
        key = jax.random.key(seed)
        expected, order = jitter_by_hand(key, position, images, JITTER)
        result = jittered(key, position, images)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected, atol=CLOSE)
        orders.add(order)
    assert len(orders) == (2 if c == 1 else 6)


@pytest.mark.parametrize("only", range(4))
def test_each_strength_belongs_to_its_change(only):
    # Catches strengths that are exchanged.
    strength = tuple(JITTER[i] if i == only else 0.0 for i in range(4))
    key, position, images = jax.random.key(0), jnp.arange(6), random_images(6, 5, 7)
    expected, _ = jitter_by_hand(key, position, images, strength)
    result = jittered(key, position, images, strength)
    np.testing.assert_allclose(result, expected, atol=CLOSE)
    assert np.abs(result - images).max((1, 2, 3)).min() > 1


def test_no_strength_changes_nothing():
    # Catches a change that is applied at strength 0.
    images = random_images(6, 5, 7)
    result = jittered(jax.random.key(0), jnp.arange(6), images, (0.0,) * 4)
    np.testing.assert_allclose(result, images, atol=CLOSE)


def test_gray_stays_gray():
    # Catches a hue that is computed from rounding errors.
    images = np.repeat(random_images(6, 5, 7, 1), 3, axis=-1)
    result = jittered(jax.random.key(0), jnp.arange(6), images)
    np.testing.assert_allclose(result, np.repeat(result[..., :1], 3, axis=-1), atol=CLOSE)
    assert np.abs(result - images).max() > 1


def test_color_jitter_does_not_depend_on_how_the_batch_is_divided():
    # Catches draws that depend on the size of the shard.
    key, position, images = jax.random.key(5), jnp.arange(6), random_images(6, 5, 7)
    whole = jittered(key, position, images)
    for part in (slice(0, 3), slice(3, None), slice(None, None, -2)):
        result = jittered(key, position[part], images[part])
        np.testing.assert_allclose(result, whole[part], atol=CLOSE)
    alike = jittered(key, position, np.broadcast_to(images[:1], images.shape))
    assert len(np.unique(alike.round(), axis=0)) == 6
