"""A data source from arrays, checked so that a mistake is found before any long work begins."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from drnas_jax.data.sources.base import ArraySplit, Source, fingerprint_of_arrays
from drnas_jax.errors import UserError

_KEYS = ("x_train", "y_train", "x_test", "y_test")


def source_from_arrays(
    arrays: Mapping[str, Any],
    *,
    title: str = "given as arrays",
    classes: Iterable[str] = (),
    flip: bool = True,
) -> Source:
    """Makes a data source of arrays.

    The data source `npz` does this with a file. For example, this is a whole module for `data.name`
    that reads two CSV files, with the label and 784 pixels in each line:

        import numpy as np
        from drnas_jax.data import source_from_arrays

        def create(directory):
            arrays = {}
            for name in ("train", "test"):
                table = np.loadtxt(f"{directory}/{name}.csv", delimiter=",", dtype=np.uint8)
                arrays[f"x_{name}"] = table[:, 1:].reshape(-1, 28, 28, 1)
                arrays[f"y_{name}"] = table[:, 0]
            return source_from_arrays(arrays, title="my images")

    Args:
      arrays: Images `x_train` and `x_test`, uint8 [n, h, w, c] with c = 1 (gray) or 3 (RGB), and
        labels `y_train` and `y_test`, integers [n] from 0.
      title: Name of the data set in messages.
      classes: Names of the classes; () to number them, up to the largest training label.
      flip: Whether a mirror image belongs to the same class.

    Raises:
      UserError: The arrays have another type, shape or range.
    """
    _check_keys(arrays, title)
    train, test = (
        ArraySplit(
            _images(f"x_{name}", arrays[f"x_{name}"], title),
            _labels(f"y_{name}", arrays[f"y_{name}"], title),
        )
        for name in ("train", "test")
    )
    for name, split in (("train", train), ("test", test)):
        if len(split.images) != len(split.labels):
            raise UserError(
                f"y_{name} of the data set {title} has {len(split.labels)} labels: expected one "
                f"for each of the {len(split.images)} images in x_{name}"
            )
    shape, test_shape = train.images.shape[1:], test.images.shape[1:]
    if test_shape != shape:
        raise UserError(
            f"x_test of the data set {title} has images {list(test_shape)}: expected "
            f"{list(shape)}, as in x_train"
        )
    names = _class_names(train.labels, test.labels, tuple(map(str, classes)), title)
    fingerprint = fingerprint_of_arrays(train, test, names)
    return Source(title, train, test, names, shape[2], flip, fingerprint)


def _check_keys(arrays: Mapping[str, Any], title: str) -> None:
    expected = f"expected the arrays {', '.join(_KEYS)}"
    if not isinstance(arrays, Mapping):
        raise UserError(
            f"the data set {title} is a {type(arrays).__name__}, not a mapping: {expected}"
        )
    for key in _KEYS:
        if key not in arrays:
            raise UserError(f"the data set {title} has no {key}: {expected}")
    for key in arrays:
        if key not in _KEYS:
            raise UserError(f"the data set {title} also has {key!r}: {expected} and no other")


def _array(key: str, value: Any, title: str, expected: str) -> np.ndarray:
    if not isinstance(value, np.ndarray | jax.Array):
        raise UserError(
            f"{key} of the data set {title} is a {type(value).__name__}: expected an array, "
            f"{expected}"
        )
    return np.asarray(value)


def _refused(key: str, array: np.ndarray, title: str, expected: str) -> UserError:
    nan = " with NaN" if array.dtype.kind == "f" and np.isnan(array).any() else ""
    what = f"{array.dtype} {list(array.shape)}{nan}"
    return UserError(f"{key} of the data set {title} is {what}: expected {expected}")


def _images(key: str, value: Any, title: str) -> np.ndarray:
    expected = "uint8 [n, h, w, c], pixels in 0..255, with c = 1 (gray) or 3 (RGB)"
    images = _array(key, value, title, expected)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise _refused(key, images, title, expected)
    if not images.size:
        raise _refused(key, images, title, "at least one image")
    return images


def _labels(key: str, value: Any, title: str) -> np.ndarray:
    expected = "integers [n], the number of each image's class"
    labels = _array(key, value, title, expected)
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise _refused(key, labels, title, expected)
    if len(labels) and labels.min() < 0:
        raise UserError(
            f"{key} of the data set {title} has the label {labels.min()}: expected labels from 0"
        )
    return labels


def _class_names(
    labels: np.ndarray, test_labels: np.ndarray, names: tuple[str, ...], title: str
) -> tuple[str, ...]:
    """Checks the range of the labels, and numbers the classes if they have no names."""
    if not names:
        if low := min(labels.min(), test_labels.min()):
            raise UserError(
                f"y_train of the data set {title} has labels from {low}: expected labels from 0, "
                f"so subtract {low} from y_train and y_test"
            )
        if labels.max() == 0:
            raise UserError(
                f"y_train of the data set {title} has only the label 0: expected at least 2 classes"
            )
        # A label that is not a class, such as the number of an image, would make a huge network.
        if labels.max() >= len(labels) + len(test_labels):
            raise UserError(
                f"y_train of the data set {title} has the label {labels.max()}: expected fewer "
                f"classes than its {len(labels) + len(test_labels)} images"
            )
        names = tuple(map(str, range(int(labels.max()) + 1)))
    for key, values in (("y_train", labels), ("y_test", test_labels)):
        if values.max() >= len(names):
            raise UserError(
                f"{key} of the data set {title} has the label {values.max()}: expected labels "
                f"from 0 to {len(names) - 1}, those of the {len(names)} classes"
            )
    return names
