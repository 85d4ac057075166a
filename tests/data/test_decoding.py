"""Decoding of whole data sets, compared with TFDS's own; what is streamed instead; statistics."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from loading import config, error

from drnas_jax.data import Stream, load
from drnas_jax.errors import UserError

TFDS = Path(__file__).parents[2].parent / "shared" / "tfds"


@pytest.fixture(scope="session")
def shared_tfds():
    if not TFDS.is_dir():
        pytest.skip(f"needs prepared TFDS data in {TFDS}")
    return str(TFDS)


@pytest.fixture(scope="session")
def cifar10(shared_tfds):
    return load(config("cifar10", dir=shared_tfds))


@pytest.mark.slow
def test_cifar10_is_complete_and_has_its_known_statistics(cifar10):
    # Catches lost records, and statistics of other pixels.
    assert cifar10.images.shape == (50_000, 32, 32, 3)
    assert cifar10.test_images.shape == (10_000, 32, 32, 3)
    assert cifar10.images.dtype == np.uint8
    assert cifar10.labels.dtype == np.int32
    assert cifar10.classes[:2] == ("airplane", "automobile")
    assert cifar10.flip
    np.testing.assert_array_equal(np.bincount(cifar10.labels), [5000] * 10)
    np.testing.assert_array_equal(np.bincount(cifar10.test_labels), [1000] * 10)
    # The published values; the copy here went through JPEG, which loses some contrast.
    np.testing.assert_allclose(cifar10.mean, [0.4914, 0.4822, 0.4465], atol=2e-3)
    np.testing.assert_allclose(cifar10.std, [0.2470, 0.2435, 0.2616], atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar10_equals_what_tfds_decodes(cifar10, shared_tfds, split):
    # Catches an error at the borders of the chunks that threads decode.
    source = tfds.data_source("cifar10", data_dir=shared_tfds, split=split, download=False)
    train = split == "train"
    images = cifar10.images if train else cifar10.test_images
    labels = cifar10.labels if train else cifar10.test_labels
    for i in (0, 1, 255, 256, 5000, len(source) - 1):
        np.testing.assert_array_equal(images[i], source[i]["image"])
        assert labels[i] == source[i]["label"]


def test_a_data_set_beyond_the_memory_limit_is_not_decoded(shared_tfds, monkeypatch):
    # Catches a data set that fills the memory before it is streamed.
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


@pytest.mark.slow
def test_statistics_of_a_stream_are_estimated(shared_tfds, cifar10):
    # Catches a sample of the first images only, which may be of one class.
    data = load(config("cifar10", dir=shared_tfds, memory_limit_mb=1))
    # The mean of 1,024 images has a standard deviation of 0.12 / 32.
    np.testing.assert_allclose(data.mean, cifar10.mean, atol=0.015)
    np.testing.assert_allclose(data.std, cifar10.std, atol=0.015)


def test_given_statistics_are_used(shared_tfds):
    # Catches statistics that are measured all the same.
    given = dict(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    gray = dict(mean=(0.1,), std=(0.4,))
    for data, expected in (
        (load(config("cifar10", dir=shared_tfds, memory_limit_mb=1, **given)), given),
        (load(config("digits", **gray)), gray),
    ):
        np.testing.assert_allclose(data.mean, expected["mean"])
        np.testing.assert_allclose(data.std, expected["std"])
    message = error("digits", **given)
    assert "data.mean is (0.1, 0.2, 0.3)" in message and "1 channels" in message


def test_imagenet_as_it_is_differs_in_size(shared_tfds):
    # Catches an error that does not say what to set.
    assert "set data.image_size" in error("imagenet2012", dir=shared_tfds)


def test_imagenet_is_resized(shared_tfds):
    # Catches pictures that are squeezed instead of cut.
    data = load(config("imagenet2012", dir=shared_tfds, image_size=16))
    assert data.images.shape == (384, 16, 16, 3)
    assert data.test_images.shape == (128, 16, 16, 3)  # its validation split
    assert data.num_classes == 1000
    # The middle of the picture is cut out, not all of it squeezed, and it is RGB.
    source = tfds.data_source("imagenet2012", data_dir=shared_tfds, split="train", download=False)
    wide = next(
        i for i in range(384) if source[i]["image"].shape[1] > 1.3 * len(source[i]["image"])
    )
    image = source[wide]["image"].astype(float)
    side = len(image)
    left = (image.shape[1] - side) // 2
    middle = image[:, left : left + side].mean((0, 1))
    # The mean of a picture and of its exact area averages differ only by the rounded crop.
    np.testing.assert_allclose(data.images[wide].mean((0, 1)), middle, atol=3)


@pytest.mark.parametrize("name", ["imagenet2012", "folder"])
def test_a_bucket_is_no_path(name):
    # Catches a URL that is taken for a local folder.
    assert "'gs://bucket/tfds'" in error(name, dir="gs://bucket/tfds")
