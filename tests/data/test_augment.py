"""Augmentation: against loops in numpy, in distribution, and however the batch is divided."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from drnas_jax.data import augment_batch, normalise

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


def random_images(b, h=32, w=32, c=3):
    return np.random.default_rng(0).integers(0, 256, (b, h, w, c), np.uint8)


def by_hand(key, position, images, mean, std, crop_padding, flip, cutout):
    """One image at a time in numpy, as PyTorch recipes do it: pad, crop, flip, scale, erase."""
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


@pytest.mark.parametrize("kwargs", SETTINGS, ids=str)
@pytest.mark.parametrize("shape", [(32, 32, 3), (8, 8, 1), (12, 20, 3)], ids=str)
def test_augment_batch_equals_numpy(kwargs, shape):
    key, position = jax.random.key(7), jnp.arange(5, 29)
    images = random_images(24, *shape)
    mean, std = MEAN[: shape[-1]], STD[: shape[-1]]
    augment = jax.jit(functools.partial(augment_batch, **kwargs))
    result = augment(key, position, images, mean, std)
    assert result.dtype == jnp.float32
    expected = by_hand(key, position, images, mean, std, **kwargs)
    # Values up to 2.2 with a few roundings each in float32; the smallest step is 1 / 255 / 0.26.
    np.testing.assert_allclose(result, expected, atol=2e-6)


def test_normalise():
    images = random_images(3, 4, 5)
    expected = (images.astype(float) / 255 - MEAN) / STD
    result = normalise(images, MEAN, STD)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, atol=2e-6)


def test_crop_offsets_are_uniform():
    # Pixels hold 1 + their row and column, so the middle one tells where the crop began.
    rows, columns = np.mgrid[1:6, 1:6]
    image = np.stack([rows, columns], axis=-1).astype(np.uint8)
    n = 4500
    images = np.broadcast_to(image, (n, *image.shape))
    result = augment_batch(
        jax.random.key(0), jnp.arange(n), images, 0.0, 1 / 255, crop_padding=1, flip=False, cutout=0
    )
    y, x = np.rint(np.asarray(result)[:, 2, 2].T).astype(int) - 2
    assert {*y, *x} == {0, 1, 2}
    counts = np.bincount(3 * y + x, minlength=9)
    assert np.all(np.abs(counts - n / 9) < 106)  # 5 standard deviations of a binomial
    assert np.all(np.asarray(result)[(y == 0), 0] == 0)  # black came in from above


def test_half_of_the_images_are_mirrored():
    n = 4000
    images = np.zeros((n, 1, 2, 1), np.uint8)
    images[:, :, 1] = 255
    result = augment_batch(
        jax.random.key(0), jnp.arange(n), images, 0.0, 1.0, crop_padding=0, flip=True, cutout=0
    )
    mirrored = np.asarray(result)[:, 0, 0, 0].sum()
    assert abs(mirrored - n / 2) < 158  # 5 standard deviations


@pytest.mark.parametrize("side", [2, 3])
def test_cutout_erases_each_pixel_as_often_as_it_should(side):
    n, size = 6000, 5
    images = np.full((n, size, size, 1), 255, np.uint8)
    result = augment_batch(
        jax.random.key(0), jnp.arange(n), images, 0.0, 1.0, crop_padding=0, flip=False, cutout=side
    )
    erased = np.asarray(result)[..., 0] == 0
    # A row is erased by the centres whose window holds it, of five equally likely ones.
    holds = [
        sum(centre - side // 2 <= row < centre - side // 2 + side for centre in range(size)) / size
        for row in range(size)
    ]
    chance = np.outer(holds, holds)
    deviation = np.sqrt(chance * (1 - chance) / n)
    assert np.all(np.abs(erased.mean(0) - chance) < 5 * deviation)
    # Inside it is a whole square, at the border a part of one.
    assert erased.sum((1, 2)).max() == side**2
    assert erased.sum((1, 2)).min() >= (side // 2) ** 2


def test_result_depends_on_key_and_position():
    images = np.broadcast_to(random_images(1), (8, 32, 32, 3))
    augment = jax.jit(functools.partial(augment_batch, mean=MEAN, std=STD, **ALL))
    result = augment(jax.random.key(0), jnp.arange(8), images)
    assert len(np.unique(np.asarray(result), axis=0)) == 8
    assert not np.array_equal(result, augment(jax.random.key(1), jnp.arange(8), images))


def test_batch_may_lie_on_any_devices():
    n = 8 * jax.device_count()
    images, position = random_images(n, 8, 8), jnp.arange(n)
    key, augment = jax.random.key(3), functools.partial(augment_batch, **ALL)
    whole = jax.jit(augment)(key, position, images, MEAN, STD)

    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    batch, same = PartitionSpec("data"), PartitionSpec()
    sharded = jax.shard_map(
        augment, mesh=mesh, in_specs=(same, batch, batch, same, same), out_specs=batch
    )
    # The draws are the same to the bit; a compiler may round the scaling differently.
    result = jax.jit(sharded)(key, position, images, MEAN, STD)
    np.testing.assert_allclose(result, whole, atol=2e-6)

    # The same on one device: parts of the batch, in another order.
    for part in (slice(0, n // 4), slice(n // 4, None), slice(None, None, -3)):
        result = jax.jit(augment)(key, position[part], images[part], MEAN, STD)
        np.testing.assert_allclose(result, whole[part], atol=2e-6)


def test_works_under_vmap_and_scan():
    images = random_images(12, 8, 8).reshape(3, 4, 8, 8, 3)
    position = jnp.arange(4)
    keys = jax.random.split(jax.random.key(0), 3)
    augment = jax.jit(functools.partial(augment_batch, mean=MEAN, std=STD, **ALL))
    one_by_one = np.stack([augment(keys[i], position, images[i]) for i in range(3)])
    mapped = jax.vmap(augment, in_axes=(0, None, 0))(keys, position, images)
    _, scanned = jax.lax.scan(
        lambda _, x: (None, augment(x[0], position, x[1])), None, (keys, images)
    )
    np.testing.assert_allclose(mapped, one_by_one, atol=2e-6)
    np.testing.assert_allclose(scanned, one_by_one, atol=2e-6)


def test_needs_no_convolution():
    # In a scan, where augmentation lives, a convolution is very slow on CPUs.
    augment = functools.partial(augment_batch, **ALL)
    program = jax.make_jaxpr(augment)(jax.random.key(0), jnp.arange(2), random_images(2), MEAN, STD)
    assert "conv_general" not in str(program)
