"""Data sets of TensorFlow Datasets (TFDS), read without TensorFlow from ArrayRecord files.

This is not a component: its data sets are named directly, as in `--config.data.name=cifar10`.
"""

import contextlib
import io
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from drnas_jax.data.sources.base import Example, Source, fingerprint_of, title_of
from drnas_jax.errors import UserError

# Letters and figures: a mirror image is no longer the same class (or no character at all).
_CHARACTERS = ("binary_alpha_digits", "cmaterdb", "emnist", "kmnist", "mnist", "omniglot", "svhn")
_CATALOGUE = "https://www.tensorflow.org/datasets/catalog"


class NotPreparedError(UserError):
    """A data set of TFDS that has not been prepared."""


@dataclass(frozen=True, eq=False)
class _Records:
    """A split of serialised examples.

    They are parsed here because TFDS takes much longer to find three values.

    Attributes:
      source: The serialised examples, as TFDS reads them in any order.
      image: Name of the image in an example.
      label: Name of the label in an example.
      title: Name of the split in messages.
      labels: None, since the labels are inside the examples.
    """

    source: Any
    image: str
    label: str
    title: str
    labels: None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        from tensorflow_datasets.proto import tf_example_pb2  # here, as TFDS below

        try:
            record = tf_example_pb2.Example.FromString(self.source[index])
        except (RuntimeError, DecodeError) as error:  # a file is missing or broken
            raise UserError(
                f"TFDS data set {self.title} is broken ({error}): prepare it again"
            ) from error
        features = record.features.feature
        names = features["file_name"].bytes_list.value
        return Example(
            features[self.image].bytes_list.value[0],
            features[self.label].int64_list.value[0],
            "".join(f"{name.decode()}, " for name in names) + f"image {index} of {self.title}",
        )


def is_prepared(name: str, directory: str) -> bool:
    """Returns whether TFDS has prepared a data set in a directory, in any version."""
    return any(Path(directory).expanduser().glob(f"{name}/*/dataset_info.json"))


def open_tfds(name: str, directory: str, others: Iterable[str]) -> Source:
    """Opens a data set that TFDS has prepared as ArrayRecord files.

    Args:
      name: Name in the catalogue of TFDS, such as `cifar10`, `cifar10:3.0.2` or
        `imagenet_resized/32x32`.
      directory: Directory of TFDS; '' for its default.
      others: Names of the data sources that are not of TFDS, for the message if there is no such
        data set.

    Raises:
      NotPreparedError: TFDS knows the data set, but has not prepared it.
      UserError: There is no such data set, or it is not one of images with a class label each.
    """
    import tensorflow_datasets as tfds  # here, since its import takes a while

    title, builder = title_of(name, directory), _find_builder(name, directory, others)
    features = dict(builder.info.features.items())
    image_key, label_key = (builder.info.supervised_keys or ("image", "label"))[:2]
    image, label = features.get(image_key), features.get(label_key)
    if (
        not isinstance(image, tfds.features.Image)
        or not isinstance(label, tfds.features.ClassLabel)
        or np.dtype(image.np_dtype).kind != "u"
        or not label.num_classes
    ):
        raise UserError(
            f"TFDS data set {title} has the features {', '.join(sorted(features))}: expected "
            f"unsigned images {image_key!r}, with a class label {label_key!r} each"
        )

    files: list[str] = []

    def split(stored: str) -> _Records:
        files.extend(map(str, builder.info.splits[stored].filepaths))
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        source = builder.as_data_source(stored, deserialize_method=raw)
        return _Records(source, image_key, label_key, f"{title}, split {stored}")

    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    test_names = [name for name in ("test", "validation") if sizes.get(name)]
    if not sizes.get("train") or not test_names:
        listed = ", ".join(f"{name} ({size})" for name, size in sizes.items())
        raise UserError(
            f"TFDS data set {title} has the splits {listed}: expected images in 'train' and in "
            "'test' or 'validation'"
        )
    train, test = split("train"), split(test_names[0])
    if len(test_names) == 2 and test[0].label < 0:
        test = split("validation")  # ImageNet's test split has no labels
    classes, content = tuple(label.names), [builder.info.full_name, str(sizes)]
    return Source(
        title,
        train,
        test,
        classes,
        channels=1 if image.shape[-1] == 1 else 3,
        flip=not builder.name.startswith(_CHARACTERS),
        fingerprint=fingerprint_of([*content, *classes], files),
    )


def _find_builder(name: str, directory: str, others: Iterable[str]) -> Any:
    import tensorflow_datasets as tfds

    known = f"{', '.join(map(repr, others))}, a module of yours (package.module or FILE.py)"
    # A namespace, as in huggingface:NAME, would go to the network.
    if not re.fullmatch(r"\w+(/[^:]+)?(:[\d.*]+)?", name):
        raise UserError(f"data.name is {name!r}: expected {known} or a name from {_CATALOGUE}")
    arguments = {"data_dir": os.path.expanduser(directory)} if directory else {}
    if ":" not in name:
        arguments["version"] = "*.*.*"  # the newest that is prepared, not the one TFDS would make
    try:
        # TFDS prints to stdout if TensorFlow is missing; stdout belongs to our caller.
        with contextlib.redirect_stdout(io.StringIO()):
            builder = tfds.builder(name, **arguments)
    except (ValueError, AssertionError, ImportError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"no TFDS data set {title_of(name, directory)} ({reason}): set data.name to {known} or "
            f"a name from {_CATALOGUE}, and data.dir to where it is prepared"
        ) from error
    if not builder.info.splits:
        raise NotPreparedError(
            f"TFDS data set {name!r} is not prepared in {builder.data_path}: set data.dir "
            f"to where it is, or prepare it with {prepare_command(name, directory)}"
        )
    if builder.info.file_format.value != "array_record":
        raise UserError(
            f"TFDS data set {title_of(name, directory)} is prepared as "
            f"{builder.info.file_format.value}, which cannot be read in random order: prepare it "
            f"as array_record in another data.dir, with {prepare_command(name, directory)}"
        )
    return builder


def prepare_command(name: str, directory: str) -> str:
    """Returns the command that prepares a data set, and what it needs, for messages."""
    where = f", data_dir={directory!r}" if directory else ""
    return (
        f'`python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}{where})'
        ".download_and_prepare(file_format='array_record')\"`, which for most data sets needs "
        "`pip install tensorflow importlib_resources`, this once"
    )
