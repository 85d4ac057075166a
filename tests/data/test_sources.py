"""Sources: what is decoded, against independent reading, and every error a user can cause."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from loading import config, error
from sklearn.datasets import load_digits

from drnas_jax.data import Dataset, Stream, load
from drnas_jax.errors import UserError

TFDS = Path(__file__).parents[2].parent / "shared" / "tfds"


def toy(images):
    images = np.asarray(images, np.uint8)
    return Dataset("toy", images, np.zeros(len(images), np.int32), images, None, ("a", "b"), True)


@pytest.fixture(scope="session")
def shared_tfds():
    if not TFDS.is_dir():
        pytest.skip(f"needs prepared TFDS data in {TFDS}")
    return str(TFDS)


@pytest.fixture(scope="session")
def cifar10(shared_tfds):
    return load(config("cifar10", dir=shared_tfds))


# Dataset


@pytest.mark.parametrize("shape", [(50, 9, 7, 3), (3000, 32, 32, 1)])
def test_mean_and_std_are_exact(shape):
    images = np.random.default_rng(0).integers(0, 200, shape, np.uint8)
    data, exact = toy(images), images / 255
    assert data.mean.dtype == data.std.dtype == np.float32
    np.testing.assert_allclose(data.mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(data.std, exact.std((0, 1, 2)), rtol=1e-6)
    assert data.mean is data.mean  # computed once


def test_std_of_a_constant_channel_is_one():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 2), np.uint8)
    images[..., 1] = 77
    data = toy(images)
    assert data.std[1] == 1
    assert 0 < data.std[0] < 1
    assert data.mean[1] == np.float32(77 / 255)


# Digits


def test_digits_are_all_of_scikit_learns():
    data = load(config("digits"))
    assert data.images.dtype == data.test_images.dtype == np.uint8
    assert data.labels.dtype == data.test_labels.dtype == np.int32
    assert data.images.shape[1:] == data.test_images.shape[1:] == (8, 8, 1)
    assert data.classes == tuple("0123456789")
    assert data.num_classes == 10
    assert not data.flip
    assert data.images.min() == 0
    assert data.images.max() == 255

    bunch = load_digits()
    images = np.concatenate([data.images, data.test_images])[..., 0] / 255 * 16
    labels = np.concatenate([data.labels, data.test_labels])
    ours = sorted((*np.rint(x).ravel(), y) for x, y in zip(images, labels, strict=True))
    assert ours == sorted((*x.ravel(), y) for x, y in zip(bunch.images, bunch.target, strict=True))


def test_digits_test_split_is_a_fixed_fifth_of_each_class():
    data, again = load(config("digits")), load(config("digits"))
    np.testing.assert_array_equal(data.test_images, again.test_images)
    train, test = np.bincount(data.labels), np.bincount(data.test_labels)
    np.testing.assert_array_equal(test, np.rint(0.2 * (train + test)))
    # Drawn from all of them: the first and the last come from different writers.
    places = {image.tobytes(): i for i, image in enumerate(load_digits().images)}
    test = np.rint(data.test_images[..., 0] / 255 * 16)
    held_out = [places[image.tobytes()] for image in test]
    assert 850 < np.mean(held_out) < 950  # all 1,797: 898, standard deviation 25


# TFDS


def test_cifar10_is_complete_and_has_its_known_statistics(cifar10):
    assert cifar10.images.shape == (50_000, 32, 32, 3)
    assert cifar10.test_images.shape == (10_000, 32, 32, 3)
    assert cifar10.images.dtype == np.uint8
    assert cifar10.labels.dtype == np.int32
    assert cifar10.classes[:2] == ("airplane", "automobile")
    assert cifar10.flip
    np.testing.assert_array_equal(np.bincount(cifar10.labels), [5000] * 10)
    np.testing.assert_array_equal(np.bincount(cifar10.test_labels), [1000] * 10)
    # As published everywhere; the copy here went through JPEG, which takes some contrast.
    np.testing.assert_allclose(cifar10.mean, [0.4914, 0.4822, 0.4465], atol=2e-3)
    np.testing.assert_allclose(cifar10.std, [0.2470, 0.2435, 0.2616], atol=2e-3)


@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar10_equals_what_tfds_decodes(cifar10, shared_tfds, split):
    source = tfds.data_source("cifar10", data_dir=shared_tfds, split=split, download=False)
    train = split == "train"
    images = cifar10.images if train else cifar10.test_images
    labels = cifar10.labels if train else cifar10.test_labels
    for i in (0, 1, 255, 256, 5000, len(source) - 1):
        np.testing.assert_array_equal(images[i], source[i]["image"])
        assert labels[i] == source[i]["label"]


def test_what_exceeds_the_memory_limit_is_not_decoded(shared_tfds, monkeypatch):
    calls, decode = [], cv2.imdecode

    def counted(*args):
        calls.append(args)
        if len(calls) > 100:
            raise UserError("enough")
        return decode(*args)

    monkeypatch.setattr(cv2, "imdecode", counted)
    # 60,000 * 3,072 bytes are 175.8 MB of 2 ** 20 bytes.
    given = dict(dir=shared_tfds, mean=(0.5,) * 3, std=(0.2,) * 3)
    data = load(config("cifar10", memory_limit_mb=175, **given))
    assert isinstance(data, Stream)
    assert (data.count, data.test_count, data.shape) == (50_000, 10_000, (32, 32, 3))
    assert data.num_classes == 10 and data.flip
    assert len(calls) == 1
    with pytest.raises(UserError, match="enough"):
        load(config("cifar10", memory_limit_mb=176, **given))


def test_statistics_of_a_stream_are_estimated(shared_tfds, cifar10):
    data = load(config("cifar10", dir=shared_tfds, memory_limit_mb=1))
    # Of 1,024 images: the mean of an image's mean has a standard deviation of 0.12 / 32.
    np.testing.assert_allclose(data.mean, cifar10.mean, atol=0.015)
    np.testing.assert_allclose(data.std, cifar10.std, atol=0.015)


def test_given_statistics_are_used(shared_tfds):
    given = dict(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    gray = dict(mean=(0.1,), std=(0.4,))
    for data, own in (
        (load(config("cifar10", dir=shared_tfds, memory_limit_mb=1, **given)), given),
        (load(config("digits", **gray)), gray),
    ):
        np.testing.assert_allclose(data.mean, own["mean"])
        np.testing.assert_allclose(data.std, own["std"])
    message = error("digits", **given)
    assert "data.mean is (0.1, 0.2, 0.3)" in message and "1 channels" in message


def test_imagenet_as_it_is_differs_in_size(shared_tfds):
    assert "set data.image_size" in error("imagenet2012", dir=shared_tfds)


def test_imagenet_is_resized(shared_tfds):
    data = load(config("imagenet2012", dir=shared_tfds, image_size=16))
    assert data.images.shape == (384, 16, 16, 3)
    assert data.test_images.shape == (128, 16, 16, 3)  # its validation split
    assert data.num_classes == 1000
    # The middle of the picture, not all of it squeezed, and in RGB.
    source = tfds.data_source("imagenet2012", data_dir=shared_tfds, split="train", download=False)
    wide = next(
        i for i in range(384) if source[i]["image"].shape[1] > 1.3 * len(source[i]["image"])
    )
    image = source[wide]["image"].astype(float)
    side = len(image)
    left = (image.shape[1] - side) // 2
    middle = image[:, left : left + side].mean((0, 1))
    # The means of a picture and of its exact area averages differ by the crop's rounding only.
    np.testing.assert_allclose(data.images[wide].mean((0, 1)), middle, atol=3)


@pytest.mark.parametrize("name", ["imagenet2012", "folder"])
def test_a_bucket_is_no_path(name):
    assert "'gs://bucket/tfds'" in error(name, dir="gs://bucket/tfds")
