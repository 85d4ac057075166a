"""Arrays as a data set: what is accepted, and one line for everything that is refused."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest
from loading import config

from drnas_jax.data import from_arrays, source_from_arrays
from drnas_jax.data.sources.base import check_source
from drnas_jax.errors import UserError


def arrays(h=6, w=5, c=3, classes=3, **changes):
    """Returns 9 training and 6 test images; a change of None leaves its array out."""
    random = np.random.default_rng(0)
    values = {}
    for name, n in (("train", 9), ("test", 6)):
        values[f"x_{name}"] = random.integers(0, 256, (n, h, w, c), np.uint8)
        values[f"y_{name}"] = np.arange(n) % classes
    values |= changes
    return {key: value for key, value in values.items() if value is not None}


def settings(**changes):
    return config("digits", **changes)


@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_arrays_are_taken_as_they_are(c, dtype):
    # Catches images that are reordered or copied wrongly, and labels of another type.
    given = arrays(c=c)
    given |= {key: given[key].astype(dtype) for key in ("y_train", "y_test")}
    dataset = from_arrays(given, settings())
    np.testing.assert_array_equal(dataset.images, given["x_train"])
    np.testing.assert_array_equal(dataset.test_images, given["x_test"])
    np.testing.assert_array_equal(dataset.labels, given["y_train"])
    np.testing.assert_array_equal(dataset.test_labels, given["y_test"])
    assert dataset.labels.dtype == dataset.test_labels.dtype == np.int32
    assert dataset.classes == ("0", "1", "2")


def test_jax_arrays_and_npz_files_are_accepted(tmp_path):
    # Catches a check that is stricter than what arrays come as.
    given = arrays()
    np.savez(tmp_path / "images.npz", **given)
    expected = from_arrays(given, settings())
    of_jax = from_arrays({key: jnp.asarray(value) for key, value in given.items()}, settings())
    with np.load(tmp_path / "images.npz") as file:
        of_file = from_arrays(file, settings())
    for dataset in (of_jax, of_file):
        np.testing.assert_array_equal(dataset.images, expected.images)
        assert dataset.fingerprint == expected.fingerprint


def test_the_config_applies_to_arrays():
    # Catches settings that work for files and are ignored for arrays.
    given = arrays(h=8, w=8)
    blocks = given["x_train"].reshape(9, 4, 2, 4, 2, 3).mean((2, 4))
    resized = from_arrays(given, settings(image_size=4))
    np.testing.assert_allclose(resized.images, blocks, atol=0.51)
    assert resized.test_images.shape == (6, 4, 4, 3)
    for flip, expected in (("auto", True), ("yes", True), ("no", False)):
        assert from_arrays(given, settings(flip=flip)).flip == expected
    statistics = dict(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    dataset = from_arrays(given, settings(**statistics))
    np.testing.assert_allclose([dataset.mean, dataset.std], list(statistics.values()))


def test_a_fingerprint_follows_the_contents():
    # Catches a run that resumes on other images, or with a label changed.
    def fingerprint(key=None, **changes):
        given = arrays(**changes)
        if key:
            given[key][-1] = 1 - np.minimum(given[key][-1], 1)
        return from_arrays(given, settings()).fingerprint

    assert fingerprint() == fingerprint()
    others = [fingerprint(key) for key in ("x_train", "y_train", "x_test", "y_test")]
    others.append(fingerprint(h=5, w=6))  # the same bytes
    assert len({fingerprint(), *others}) == 6


def test_names_of_classes_allow_classes_without_images():
    # Catches a source whose label numbers are taken for a count of classes.
    source = source_from_arrays(arrays(), title="pets", classes=("cat", "dog", "cow", "owl"))
    assert source.classes == ("cat", "dog", "cow", "owl") and source.title == "pets"
    with pytest.raises(UserError, match=r"y_train of the data set pets has the label 2"):
        source_from_arrays(arrays(), title="pets", classes=("cat", "dog"))


def images(*shape, dtype=np.uint8):
    return np.zeros(shape, dtype)


def labels(*values, dtype=np.int64):
    return np.array(values, dtype)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(x_test=None), ["no x_test", "x_train, y_train, x_test, y_test"]),
        (dict(x_valid=images(1, 6, 5, 3)), ["'x_valid'", "and no other"]),
        (dict(x_train=images(9, 6, 5, 3).tolist()), ["x_train", "list", "uint8 [n, h, w, c]"]),
        (dict(y_train="012"), ["y_train", "str", "integers [n]"]),
        (dict(x_train=images(9, 6, 5, 3, dtype=np.float32)), ["x_train", "float32 [9, 6, 5, 3]"]),
        (dict(x_test=np.full((6, 6, 5, 3), np.nan)), ["x_test", "float64", "with NaN"]),
        (dict(x_train=images(9, 6, 5)), ["x_train", "uint8 [9, 6, 5]", "c = 1 (gray) or 3"]),
        (dict(x_train=images(9, 3, 6, 5)), ["x_train", "uint8 [9, 3, 6, 5]"]),
        (dict(x_train=images(0, 6, 5, 3), y_train=labels()), ["x_train", "at least one image"]),
        (dict(x_test=images(6, 6, 4, 3)), ["x_test", "[6, 4, 3]", "[6, 5, 3], as in x_train"]),
        (dict(x_test=images(6, 6, 5, 1)), ["x_test", "[6, 5, 1]"]),
        (dict(y_train=labels(0, 1)), ["y_train", "2 labels", "9 images in x_train"]),
        (dict(y_test=labels(0, 1)), ["y_test", "2 labels", "6 images in x_test"]),
        (dict(y_train=np.arange(9.0)), ["y_train", "float64 [9]", "integers [n]"]),
        (dict(y_train=np.full(9, np.nan)), ["y_train", "with NaN"]),
        (dict(y_train=np.arange(9) > 4), ["y_train", "bool [9]"]),
        (dict(y_train=np.eye(9, dtype=np.int64)), ["y_train", "int64 [9, 9]"]),
        (dict(y_train=np.arange(9) - 1), ["y_train", "label -1", "from 0"]),
        (dict(y_train=np.arange(9) + 1, y_test=np.arange(6) + 1), ["from 1", "subtract 1"]),
        (dict(y_train=np.zeros(9, int), y_test=np.zeros(6, int)), ["at least 2 classes"]),
        (dict(y_test=labels(0, 1, 2, 3, 0, 1)), ["y_test", "label 3", "from 0 to 2"]),
        (dict(y_train=10**12 * (np.arange(9) % 2)), ["y_train", "1000000000000", "15 images"]),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_anything_else_is_refused_in_one_line(changes, words):
    # Catches arrays that fail with a traceback, or are silently taken for something else.
    with pytest.raises(UserError) as raised:
        from_arrays(arrays(**changes), settings())
    message = str(raised.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("given", [None, (1, 2, 3, 4), types.SimpleNamespace(**arrays())])
def test_something_that_is_no_mapping_is_refused(given):
    # Catches a tuple in the order of another library.
    with pytest.raises(UserError, match=f"is a {type(given).__name__}, not a mapping"):
        from_arrays(given, settings())


def test_resized_crops_are_refused():
    # Catches a config for large photos that is silently ignored.
    with pytest.raises(UserError, match=r"data\.crop is 'resized'.* set data\.crop to 'padded'"):
        from_arrays(arrays(), settings(crop="resized", image_size=4))


def test_wrong_statistics_are_refused():
    # Catches a mean of three channels for gray images.
    with pytest.raises(UserError, match=r"data\.mean is \(0\.5, 0\.5, 0\.5\)"):
        from_arrays(arrays(c=1), settings(mean=(0.5,) * 3, std=(0.2,) * 3))


def test_names_of_classes_are_texts_and_differ():
    # Catches labels of two classes that are scored as one, and a traceback for numbers.
    assert source_from_arrays(arrays(), classes=range(3)).classes == ("0", "1", "2")
    for names in (("a", "b", "a"), (1, 2, 3)):
        source = dataclasses.replace(source_from_arrays(arrays()), classes=names)
        with pytest.raises(UserError, match="named ('a': give|1, which is a int)"):
            check_source(source, "mine")
