"""The description of training images in a checkpoint, and which other images fit it."""

import json
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest

from drnas_jax.data import TrainingData
from drnas_jax.errors import UserError


def images(classes=("cat", "dog", "eel"), shape=(8, 8, 3), max_value=0, resized_for=""):
    mean, std = (np.full(shape[2], value, np.float32) for value in (0.1, 0.3))
    fields = dict(name="folder", classes=classes, shape=shape, max_value=max_value)
    return SimpleNamespace(**fields, mean=mean, std=std, resized_for=resized_for)


def test_a_description_is_the_same_after_a_file():
    # Would catch a float32 mean that is rounded on its way through JSON.
    described = TrainingData.of(images())
    assert TrainingData.from_json(json.loads(json.dumps(described.to_json()))) == described
    assert np.float32(described.mean[0]) == np.float32(0.1)


def test_classes_are_matched_by_name():
    # Would catch labels that are compared by their numbers: accuracy 0 without a word.
    outputs = TrainingData.of(images()).outputs(images(("dog", "eel", "cat")))
    np.testing.assert_array_equal(outputs, [1, 2, 0])


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (images(("cat", "dog", "emu")), "has 'eel', only the data set has 'emu'"),
        (images(("cat", "dog")), "only the network has 'eel'"),
        (images(shape=(8, 8, 1)), "on RGB images, and those of data set folder are gray"),
        (images(shape=(16, 16, 3)), "set data.image_size=8"),
    ],
)
def test_images_that_do_not_fit_are_refused(other, says):
    with pytest.raises(UserError, match=says):
        TrainingData.of(images()).outputs(other)


def test_white_is_what_it_was_in_training():
    # Would catch 12-bit images that are evaluated as if they had 16 bits: nearly black.
    with pytest.raises(
        UserError, match="white value 4095, and data.max_value is 0: set data.max_v"
    ):
        TrainingData.of(images(max_value=4095)).outputs(images())
    TrainingData.of(images()).outputs(images(max_value=4095))  # trained on 8 bits


def test_test_images_are_cut_out_as_in_training():
    # Would catch a network for the middle 7/8 of an image that is evaluated on the whole image.
    trained = TrainingData.of(images(resized_for="resized"))
    for fits in ("resized", ""):  # '': given at the network's size
        trained.outputs(images(resized_for=fits))
    with pytest.raises(UserError, match="data.crop is 'padded', .* set data.crop=resized"):
        trained.outputs(images(resized_for="padded"))
    TrainingData.of(images()).outputs(images(resized_for="padded"))


def test_names_that_look_alike_are_told_apart():
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    with pytest.raises(UserError, match=r"'caf\\xe9', only the data set has 'cafe\\u0301'"):
        TrainingData.of(images((composed, "tea"))).outputs(images((decomposed, "tea")))
