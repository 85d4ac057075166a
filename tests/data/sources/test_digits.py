"""Scikit-learn's digits: all of them, and a test split that never changes."""

import numpy as np
from loading import config
from sklearn.datasets import load_digits

from drnas_jax.data import load


def test_digits_are_all_of_scikit_learns():
    # Catches images that are lost, scaled wrongly or given another label.
    dataset = load(config("digits"))
    assert dataset.images.dtype == dataset.test_images.dtype == np.uint8
    assert dataset.labels.dtype == dataset.test_labels.dtype == np.int32
    assert dataset.images.shape[1:] == dataset.test_images.shape[1:] == (8, 8, 1)
    assert dataset.classes == tuple("0123456789")
    assert dataset.num_classes == 10
    assert not dataset.flip
    assert dataset.images.min() == 0
    assert dataset.images.max() == 255

    bunch = load_digits()
    images = np.concatenate([dataset.images, dataset.test_images])[..., 0] / 255 * 16
    labels = np.concatenate([dataset.labels, dataset.test_labels])
    ours = sorted((*np.rint(x).ravel(), y) for x, y in zip(images, labels, strict=True))
    assert ours == sorted((*x.ravel(), y) for x, y in zip(bunch.images, bunch.target, strict=True))


def test_the_test_split_is_a_fixed_fifth_of_each_class():
    # Catches a split that changes between runs, or takes the last writers only.
    dataset, again = load(config("digits")), load(config("digits"))
    np.testing.assert_array_equal(dataset.test_images, again.test_images)
    train, test = np.bincount(dataset.labels), np.bincount(dataset.test_labels)
    np.testing.assert_array_equal(test, np.rint(0.2 * (train + test)))
    # The first and the last images come from different writers.
    numbers = {image.tobytes(): i for i, image in enumerate(load_digits().images)}
    test = np.rint(dataset.test_images[..., 0] / 255 * 16)
    held_out = [numbers[image.tobytes()] for image in test]
    assert 850 < np.mean(held_out) < 950  # that of all 1,797 is 898, with standard deviation 25
