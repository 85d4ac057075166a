"""Which classes a network confuses on the test images, and the pictures that it gets wrong."""

import dataclasses
import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from drnas_jax.data import ImageDataset
from drnas_jax.errors import UserError
from drnas_jax.files import write_arrays
from drnas_jax.training.devices import AXIS

FILE = "evaluation.npz"  # in the workdir
_PAIRS, _PICTURES = 8, 3  # confusions with pictures, and pictures of each
_LONGEST = 96  # longer side of a picture, in pixels


class Predictions(NamedTuple):
    """The predictions of a network for test images.

    Attributes:
      number: Number of each image in the test split, int [n].
      label: True class as the number of the network's output, int [n].
      predicted: Output with the largest logit, int [n].
      confidence: Probability of the predicted class, float32 [n].
    """

    number: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray


def shard_predictions(
    logits: jax.Array, labels: jax.Array, weight: jax.Array, shards: int
) -> dict[str, jax.Array]:
    """Describes the predictions of one device's shard, so that their sum is the global batch.

    Args:
      logits: Outputs of the network, [b, classes].
      labels: True classes, int [b].
      weight: Weights of the examples, [b], 0 for padding.
      shards: Number of devices.

    Returns:
      Arrays [shards * b] by name, which are 0 at the positions of the other devices' examples.
    """
    size = labels.size
    start = lax.axis_index(AXIS) * size

    def in_batch(values: jax.Array) -> jax.Array:
        empty = jnp.zeros((shards * size,), values.dtype)
        return lax.dynamic_update_slice(empty, values, (start,))

    predicted = jnp.argmax(logits, axis=-1)
    confidence = jnp.max(jax.nn.softmax(logits.astype(jnp.float32)), axis=-1)
    found = dict(label=labels, predicted=predicted, confidence=confidence, weight=weight)
    return {name: in_batch(values) for name, values in found.items()}


def join(batches: Sequence[Mapping[str, Any]]) -> Predictions:
    """Joins the predictions of all batches of an evaluation, without those that have no weight.

    Args:
      batches: Sums of `shard_predictions` over the devices, in the order of the examples.
    """
    names = ("label", "predicted", "confidence", "weight")
    label, predicted, confidence, weight = (
        np.concatenate([np.asarray(batch[name]) for batch in batches]) for name in names
    )
    kept = np.flatnonzero(weight > 0)
    return Predictions(kept, label[kept], predicted[kept], confidence[kept])


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """The content of evaluation.npz: the confusions of a network on the test images.

    Attributes:
      classes: Names of the classes.
      confusion: Number of images by true and by predicted class, int64 [classes, classes].
      number: Numbers of some wrongly classified images in the test split, int64 [k]. They are the
        most confident ones of each of the largest confusions.
      label: True classes of these images, int64 [k].
      predicted: Predicted classes of these images, int64 [k].
      confidence: Probabilities of the predicted classes, float32 [k].
      picture: These images, made smaller if they are large, uint8 [k, h, w, c].
    """

    classes: tuple[str, ...]
    confusion: np.ndarray
    number: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    picture: np.ndarray

    @property
    def class_accuracy(self) -> np.ndarray:
        """Accuracy of each class in 0..1, float64 [classes]; nan for a class without an image."""
        with np.errstate(invalid="ignore"):
            return np.diag(self.confusion) / self.confusion.sum(axis=1)

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.confusion.sum())

    def largest(self, count: int) -> list[tuple[int, int, int]]:
        """Returns the largest confusions: the true class, the predicted one, and how many images.

        Args:
          count: Largest number of confusions.
        """
        return _largest(self.confusion, count)

    def save(self, file: Path) -> None:
        """Writes the file, with the accuracy of each class beside the attributes."""
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        arrays["classes"] = np.array(self.classes, np.str_)
        write_arrays(file, {**arrays, "class_accuracy": self.class_accuracy})


def evaluation_of(
    predictions: Predictions, classes: tuple[str, ...], dataset: ImageDataset
) -> Evaluation:
    """Counts the confusions, and reads the images of the largest ones.

    Args:
      predictions: Predictions for the test images.
      classes: Names of the classes, in the order of the network's outputs.
      dataset: Data set of the images.
    """
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (predictions.label, predictions.predicted), 1)
    chosen: list[int] = []
    for pair in _largest(confusion, _PAIRS):
        wrong = (predictions.label == pair[0]) & (predictions.predicted == pair[1])
        members = np.flatnonzero(wrong)
        order = np.argsort(-predictions.confidence[members], kind="stable")
        chosen += members[order[:_PICTURES]].tolist()
    some = Predictions(*(values[np.array(chosen, int)] for values in predictions))
    return Evaluation(
        classes,
        confusion,
        some.number.astype(np.int64),
        some.label.astype(np.int64),
        some.predicted.astype(np.int64),
        some.confidence,
        _pictures(dataset.read_test(some.number)),
    )


def _largest(confusion: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    wrong = confusion - np.diag(np.diag(confusion))
    pairs = np.argwhere(wrong)
    counts = wrong[tuple(pairs.T)]
    order = np.argsort(-counts, kind="stable")[:count]
    return [(int(i), int(j), int(n)) for (i, j), n in zip(pairs[order], counts[order], strict=True)]


def _pictures(images: np.ndarray) -> np.ndarray:
    """Makes large images smaller, uint8 [k, h, w, c]."""
    height, width, channels = images.shape[1:]
    scale = _LONGEST / max(height, width)
    if scale >= 1 or not len(images):
        return images
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images]
    return np.stack(small).reshape(len(images), size[1], size[0], channels)


def read_evaluation(file: Path) -> Evaluation | None:
    """Reads an evaluation.npz, or returns None if there is none.

    Raises:
      UserError: The file is damaged.
    """
    if not file.exists():
        return None
    names = [field.name for field in dataclasses.fields(Evaluation)]
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            values = {name: arrays[name] for name in names}
        _check(values)
    except (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{file} is damaged ({reason}): remove it, or run the evaluate phase again"
        ) from error
    return Evaluation(**values | {"classes": tuple(map(str, values["classes"]))})


def _check(values: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError unless types and shapes belong together."""
    classes, errors = values["classes"].size, values["number"].size
    pictures = values["picture"].shape
    if len(pictures) != 4 or pictures[3] not in (1, 3) or values["picture"].dtype != np.uint8:
        raise ValueError("picture is not of gray or RGB images")
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "classes": ("U", (classes,)),
        "confusion": ("i", (classes, classes)),
        **{name: ("i", (errors,)) for name in ("number", "label", "predicted")},
        "confidence": ("f", (errors,)),
        "picture": ("u", (errors, *pictures[1:])),
    }
    for name, (kind, shape) in expected.items():
        array = values[name]
        if array.dtype.kind != kind or array.shape != shape:
            raise ValueError(f"{name} is {array.dtype} {list(array.shape)}")
    if values["confusion"].size and values["confusion"].min() < 0:
        raise ValueError("confusion has a negative count")
    for name in ("label", "predicted"):
        if errors and not 0 <= values[name].min() <= values[name].max() < classes:
            raise ValueError(f"{name} has a class that does not exist")
