"""The interface of data sources. A new one is a module with a function `create` -> `Source`.

The module is used by its name, as in `--config.data.name=my_images.py`, and `create` gets the value
of `data.dir`, which may be empty. A source has two splits, and a split is anything with labels and
a length that returns an `Example` for an index. This one reads the files that a list names, with a
split, a path and a label in each line:

    import csv
    from pathlib import Path

    import numpy as np

    from drnas_jax.data import Example, Source, fingerprint_of


    class Files:
        def __init__(self, rows):
            self.paths = [path for _, path, _ in rows]
            self.labels = np.array([label for *_, label in rows], np.int32)

        def __len__(self):
            return len(self.paths)

        def __getitem__(self, index):
            path = self.paths[index]
            return Example(Path(path).read_bytes(), int(self.labels[index]), path)


    def create(directory):
        with open(f"{directory}/images.csv") as file:
            rows = [(split, path, int(label)) for split, path, label in csv.reader(file)]
        train, test = (Files([row for row in rows if row[0] == name]) for name in ("train", "test"))
        fingerprint = fingerprint_of(map(str, rows), files=[path for _, path, _ in rows])
        return Source("my images", train, test, ("cat", "dog"), 3, fingerprint=fingerprint)

Images that are already arrays need no such class: see `drnas_jax.data.source_from_arrays`. If a
module has settings, they are a frozen dataclass `Options`, which `create` takes as its second
argument.

Images of any size and format may be returned: decoding, resizing, the statistics of the channels,
caching in memory and streaming by worker processes are the same for all sources. Worker processes
get a pickled copy of a split, so it should hold paths rather than open files.
"""

import os
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from drnas_jax.data.threads import in_threads
from drnas_jax.errors import UserError

# A fingerprint covers the whole contents of files up to these limits. Beyond them it covers a few
# blocks of a few files.
_ALL_FILES, _ALL_BYTES = 10_000, 2**30
_FILES, _BLOCKS, _BLOCK = 1000, 4, 2**14
_AT_ONCE = 512  # files for each task of a thread
_TEST_FRACTION = 0.2  # share of each class that a source without a test split holds out


class UnreadableImage(UserError):
    """An image that cannot be read or decoded; `data.corrupt` says what happens then.

    The message names the image.
    """


class Example(NamedTuple):
    """One image with its label.

    Attributes:
      image: Bytes of an image file in a format that OpenCV reads, or pixels, uint8 [h, w] in a gray
        data set and uint8 [h, w, 3] (RGB) in a colour data set.
      label: Index of the class.
      name: Name of the image in error messages, for example its path.
    """

    image: bytes | np.ndarray
    label: int
    name: str = "an image"


class Split(Protocol):
    """Examples that can be read in any order, by several threads at once.

    A split is pickled to send it to worker processes.
    """

    @property
    def labels(self) -> np.ndarray | None:
        """Labels of all examples, int [n], or None if examples must be read for their labels."""

    def __len__(self) -> int:
        """Returns the number of examples."""

    def __getitem__(self, index: int) -> Example:
        """Reads one example.

        Raises:
          UnreadableImage: The image cannot be read. Errors of any other type end the run.
        """


@dataclass(frozen=True)
class Source:
    """A data set as it is stored, before any image is decoded.

    Attributes:
      title: Name of the data set in messages.
      train: Training split.
      test: Test split.
      classes: Names of the classes, in the order of the labels.
      channels: 1 for gray images, 3 for RGB.
      flip: Whether the mirror image of an example belongs to the same class, so that augmentation
        may mirror images if `data.flip` is 'auto'.
      fingerprint: Number that changes if the examples or their order change. A run refuses to
        resume on a data set with another one. See `fingerprint_of`.
      notes: Lines for the user about what was read and what was left out. A run prints each once.
    """

    title: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    channels: int
    flip: bool = True
    fingerprint: int = 0
    notes: tuple[str, ...] = ()

    def split(self, name: str) -> Split:
        """Returns the split named 'train' or 'test'."""
        return self.train if name == "train" else self.test


@dataclass(frozen=True, eq=False)
class ArraySplit:
    """A split whose pixels are in memory.

    Attributes:
      images: Pixels, uint8 [n, h, w] or [n, h, w, c].
      labels: Labels, int [n].
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return Example(self.images[index], int(self.labels[index]), f"image {index}")


def fingerprint_of_arrays(train: ArraySplit, test: ArraySplit, classes: tuple[str, ...]) -> int:
    """Returns a number that changes if any pixel, label or class name changes."""
    fingerprint = zlib.crc32("\0".join(classes).encode())
    for split in (train, test):
        for array in (split.images, split.labels.astype(np.int64)):
            fingerprint = zlib.crc32(str(array.shape).encode(), fingerprint)
            fingerprint = zlib.crc32(np.ascontiguousarray(array).data, fingerprint)
    return fingerprint


def check_source(source: object, name: str) -> Source:
    """Checks what a component's `create` returned, as far as that needs no image.

    Args:
      source: What `create` returned.
      name: Value of `data.name`.

    Raises:
      UserError: It is not a `Source`, or its fields do not fit together.
    """
    if not isinstance(source, Source):
        raise UserError(
            f"create() of data source {name!r} returned a {type(source).__name__}: expected a "
            "drnas_jax.data.Source"
        )
    classes = source.classes
    if len(classes) < 2:
        listed = ", ".join(map(str, classes)) or "none"
        raise UserError(
            f"data set {source.title} needs at least 2 classes, but has {listed}: add another one"
        )
    for class_name, count in Counter(classes).items():
        if not isinstance(class_name, str):
            raise UserError(
                f"data set {source.title} has a class named {class_name!r}, which is a "
                f"{type(class_name).__name__}: expected a str"
            )
        if count > 1:
            raise UserError(
                f"data set {source.title} has {count} classes named {class_name!r}: give each "
                "class another name"
            )
    if source.channels not in (1, 3):
        raise UserError(
            f"data set {source.title} has channels = {source.channels}: expected 1 (gray) or 3 "
            "(RGB)"
        )
    for split_name in ("train", "test"):
        split = source.split(split_name)
        for attribute in ("labels", "__len__", "__getitem__"):
            if not hasattr(split, attribute):
                raise UserError(
                    f"the {split_name} split of data set {source.title} is a "
                    f"{type(split).__name__} without {attribute}: define labels (or None), "
                    "__len__ and a __getitem__ that returns an Example"
                )
        if split.labels is None:
            continue
        labels = np.asarray(split.labels)
        if labels.shape != (len(split),) or labels.dtype.kind not in "iu":
            raise UserError(
                f"labels in the {split_name} split of data set {source.title} are {labels.dtype} "
                f"{list(labels.shape)}: expected one integer for each of its {len(split)} examples"
            )
        check_labels(labels, source, split_name)
    return source


def check_labels(labels: np.ndarray, source: Source, split_name: str) -> None:
    """Checks that every label is the index of a class.

    Raises:
      UserError: A label is negative or too large.
    """
    if not len(labels):
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0:  # TFDS writes -1 if the labels of a split are secret
        raise UserError(
            f"data set {source.title} has no labels in its {split_name} split, but {low} in their "
            "place: expected labels from 0, so take a data set with labels"
        )
    if high >= len(source.classes):
        raise UserError(
            f"data set {source.title} has label {high} in its {split_name} split, but "
            f"{len(source.classes)} classes: expected labels from 0 to {len(source.classes) - 1}"
        )


def hold_out(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splits examples for a data set that has no test split, the same way every time.

    Args:
      labels: Labels of all examples, int [n].

    Returns:
      Indices of the training examples, and those of the fifth of each class that is held out.
    """
    random = np.random.RandomState(0)  # its stream is frozen, a Generator's may change with NumPy
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        held_out[members[: max(1, round(_TEST_FRACTION * len(members)))]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def fingerprint_of(names: Iterable[str], files: Sequence[str | os.PathLike[str]] = ()) -> int:
    """Returns a number that changes if names change, or the sizes or contents of files.

    It covers the sizes of all files, and the whole contents of up to 10,000 files of up to 1 GiB in
    all. For a larger set it covers a sample of the contents, always the same: 1,000 files, evenly
    spaced, and up to four blocks of 16 KiB of each. So changes in a large set that leave the sizes
    as they are may go unnoticed.

    Args:
      names: Names in order, for example those of images with their classes.
      files: Paths of files in order. A file that cannot be read counts as if its size were -1.
    """
    paths = [os.fspath(file) for file in files]
    starts = range(0, len(paths), _AT_ONCE)
    chunks = in_threads(lambda start: list(map(_size, paths[start : start + _AT_ONCE])), starts)
    sizes = [size for chunk in chunks for size in chunk]
    everything = len(paths) <= _ALL_FILES and sum(sizes) <= _ALL_BYTES
    count = len(paths) if everything else min(_FILES, len(paths))
    sample = [i * len(paths) // count for i in range(count)]

    def checksum(start: int) -> list[str]:
        chosen = sample[start : start + _AT_ONCE]
        return [str(_checksum(paths[i], sizes[i], everything)) for i in chosen]

    contents = in_threads(checksum, range(0, count, _AT_ONCE)) if count else ()
    listed = [*names, *map(str, sizes), *(line for chunk in contents for line in chunk)]
    return zlib.crc32("\0".join(listed).encode(errors="surrogateescape"))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _checksum(path: str, size: int, everything: bool) -> int:
    """Returns the CRC-32 of a file, or of evenly spaced blocks of it."""
    checksum = 0
    try:
        with open(path, "rb", buffering=0) as file:
            if everything or size <= _BLOCKS * _BLOCK:
                while data := file.read(2**20):
                    checksum = zlib.crc32(data, checksum)
                return checksum
            for i in range(_BLOCKS):
                file.seek(i * (size - _BLOCK) // (_BLOCKS - 1))
                checksum = zlib.crc32(file.read(_BLOCK), checksum)
    except OSError:
        return -1
    return checksum


def title_of(name: str, directory: str) -> str:
    """Returns a title for messages, such as `'folder' in my_images`."""
    return f"{name!r} in {directory}" if directory else repr(name)
