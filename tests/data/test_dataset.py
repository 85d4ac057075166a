"""What a data set in memory and a streamed one have in common."""

import numpy as np
import pytest
from loading import config

from drnas_jax.data import Dataset, ImageDataset, Schedule, Stream, Subset, load

GRAY = dict(mean=(0.5,), std=(0.2,))


@pytest.fixture(scope="module")
def both():
    """Returns the digits in memory, and streamed."""
    return load(config("digits", **GRAY)), load(config("digits", memory_limit_mb=0, **GRAY))


def test_both_have_all_of_the_protocol(both):
    # Catches a reader of data sets that works only with one of the two.
    members = {name for name in vars(ImageDataset) if not name.startswith("_")}
    assert {"shape", "labels", "batches", "num_classes"} <= members
    for dataset, kind in zip(both, (Dataset, Stream), strict=True):
        assert isinstance(dataset, kind)
        assert members <= set(dir(dataset))


def test_both_describe_the_same_images(both):
    # Catches a data set that changes when it grows beyond the memory limit.
    memory, stream = both
    for name in ("name", "classes", "num_classes", "shape", "count", "test_count", "fingerprint"):
        assert getattr(memory, name) == getattr(stream, name)
    for name in ("mean", "std", "labels"):
        np.testing.assert_array_equal(getattr(memory, name), getattr(stream, name))
    assert memory.flip == stream.flip == memory.already_cropped == stream.already_cropped
    assert memory.skipped == stream.skipped == {}


def test_only_what_is_in_memory_has_arrays(both):
    # Catches a loader that waits for workers of a data set in memory, or places no images.
    memory, stream = both
    assert memory.workers == 0 and stream.workers > 0
    for split, count in (("train", memory.count), ("test", memory.test_count)):
        images, labels = memory.arrays(split)
        assert len(images) == len(labels) == count
        assert stream.arrays(split) is None


def test_shares_of_the_labels_add_up(both):
    # Catches labels that several processes count twice.
    for dataset in both:
        shares = [dataset.read_labels(share, 3) for share in range(3)]
        np.testing.assert_array_equal(sum(shares), dataset.labels)


def test_a_data_set_in_memory_gives_the_requests(both):
    # Catches a resume at another batch.
    subset = Subset("weights", np.arange(16, dtype=np.int32))
    schedule = Schedule(4, 0, (subset,), epochs=2, steps=3, evaluated=subset.index)
    requests = list(both[0].batches(schedule, 3, np.arange(4)))
    assert len(requests) == len(schedule) - 3
    for k, (request, rows) in enumerate(requests, 3):
        assert rows is None
        np.testing.assert_array_equal(request.indices, schedule[k].indices)


# Statistics


def of_images(images):
    labels = np.zeros(len(images), np.int32)
    return Dataset("toy", images, labels, images, labels, ("a", "b"), flip=True)


@pytest.mark.parametrize("shape", [(50, 9, 7, 3), (3000, 32, 32, 1)])
def test_mean_and_std_are_exact(shape):
    # Catches sums that lose digits, and the last pixels of a large data set.
    images = np.random.default_rng(0).integers(0, 200, shape, np.uint8)
    dataset, exact = of_images(images), images / 255
    assert dataset.mean.dtype == dataset.std.dtype == np.float32
    np.testing.assert_allclose(dataset.mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(dataset.std, exact.std((0, 1, 2)), rtol=1e-6)
    assert dataset.mean is dataset.mean  # computed once


def test_std_of_a_constant_channel_is_one():
    # Catches a division by zero.
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 2), np.uint8)
    images[..., 1] = 77
    dataset = of_images(images)
    assert dataset.std[1] == 1
    assert 0 < dataset.std[0] < 1
    assert dataset.mean[1] == np.float32(77 / 255)
