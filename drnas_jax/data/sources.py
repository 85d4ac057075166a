"""Where images come from: digits, whatever TFDS has, or a folder; read at random, still encoded."""

import contextlib
import io
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from google.protobuf.message import DecodeError

from drnas_jax.config import DataConfig
from drnas_jax.data.images import Example, UnreadableImage, has_colours
from drnas_jax.errors import UserError
from drnas_jax.training.machine import cores

# Letters and figures: a mirror image is no longer the same class (or no character at all).
_CHARACTERS = ("binary_alpha_digits", "cmaterdb", "emnist", "kmnist", "mnist", "omniglot", "svhn")
_CHUNK = 256  # examples a thread reads at a time
_TEST_FRACTION = 0.2  # held out of a source that has no test split of its own


class Split(Protocol):
    """Encoded examples, read at random; can be pickled, for worker processes."""

    @property
    def labels(self) -> np.ndarray | None:
        """Of all, int32 [n], where they are known without reading the examples."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, i: int) -> Example:
        """The example of that number."""


@dataclass(frozen=True)
class Source:
    """A data set, still encoded.

    Attributes:
      title: for a person.
      train, test: its two splits.
      classes: their names.
      channels: 1 (gray) or 3 (RGB).
      flip: whether a mirror image keeps its class.
      fingerprint: another number where there are other examples, or other ones are held out.
    """

    title: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    channels: int
    flip: bool
    fingerprint: int = 0


def open_source(config: DataConfig) -> Source:
    """Finds a data set.

    Args:
      config: `name` is 'digits' (scikit-learn's, in that package), 'folder' (`dir` holds one
        sub-folder a class, or train/ and test/ with these), or a TFDS name, prepared in `dir`.
        Without a test split of their own, digits and folders hold out a fifth of each class, a
        choice that no seed changes.

    Raises:
      UserError: there is no such data set, it is not prepared, or has less than two classes.
    """
    if "://" in config.dir:
        raise UserError(
            f"data.dir is {config.dir!r}, but examples are read at random from files: mount the "
            "bucket and give the path where it lies (docs/scaling.md)"
        )
    source = {"digits": _digits, "folder": _folder}.get(config.name, _tfds)(config)
    if len(source.classes) < 2:
        found = ", ".join(source.classes) or "none"
        raise UserError(f"data set {source.title} needs at least 2 classes, but has {found}")
    return source


@dataclass(frozen=True, eq=False)
class _Arrays:
    """Pixels in memory, uint8 [n, h, w]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Example:
        return Example(self.images[i], int(self.labels[i]), f"image {i}")


@dataclass(frozen=True, eq=False)
class _Files:
    """One file an image."""

    files: tuple[Path, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Example:
        try:
            data = self.files[i].read_bytes()
        except OSError as error:
            raise UnreadableImage(f"cannot read image {self.files[i]}: {error.strerror}") from error
        return Example(data, int(self.labels[i]), str(self.files[i]))


@dataclass(frozen=True, eq=False)
class _Records:
    """What TFDS reads at random, with the keys of image and label.

    Its serialised examples are parsed here: TFDS takes much longer to find three values.
    """

    source: Any
    image: str
    label: str
    title: str
    labels: None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Example:
        from tensorflow_datasets.proto import tf_example_pb2  # as TFDS itself, only where needed

        try:
            record = tf_example_pb2.Example.FromString(self.source[i])
        except (RuntimeError, DecodeError) as error:  # of a file that is missing or broken
            raise UserError(f"TFDS data set {self.title} is broken: {error}") from error
        features = record.features.feature
        names = features["file_name"].bytes_list.value
        return Example(
            features[self.image].bytes_list.value[0],
            features[self.label].int64_list.value[0],
            "".join(f"{name.decode()}, " for name in names) + f"image {i} of {self.title}",
        )


def _digits(config: DataConfig) -> Source:
    from sklearn.datasets import load_digits  # here: its import takes a second

    del config  # nothing to choose
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int32)
    train, test = (_Arrays(images[index], labels[index]) for index in _hold_out(labels))
    classes = tuple(map(str, digits.target_names))
    return Source("'digits'", train, test, classes, channels=1, flip=False)


def _folder(config: DataConfig) -> Source:
    root = Path(config.dir).expanduser()
    if not config.dir or not root.is_dir():
        raise UserError(
            f"data.dir is {config.dir!r}, which is no directory: data.name 'folder' needs one that "
            "holds a sub-folder of images for each class, or train/ and test/ with these"
        )
    names = {path.name for path in _folders(root)}
    if _folders(root / "train"):
        classes, files, labels = _list_images(root / "train")
        test_classes, test_files, test_labels = _list_images(root / "test")
        if different := set(classes) ^ set(test_classes):
            raise UserError(
                f"train/ and test/ in {root} need the same class folders, but only one of them "
                f"has {', '.join(sorted(different))}"
            )
    elif names and names <= {"train", "test", "val", "valid", "validation"}:
        raise UserError(
            f"{root} has folders {', '.join(sorted(names))}, but there is no folder for each class "
            "in its train/: put the images into train/CLASS/ and test/CLASS/"
        )
    else:
        classes, all_files, all_labels = _list_images(root)
        for name, count in zip(classes, np.bincount(all_labels), strict=True):
            if count < 2:
                raise UserError(
                    f"class folder {root / name} has 1 image: a fifth of each class is held out "
                    "for the test, so at least 2 are needed"
                )
        index, test_index = _hold_out(all_labels)
        files, labels = [all_files[i] for i in index], all_labels[index]
        test_files, test_labels = [all_files[i] for i in test_index], all_labels[test_index]

    train, test = _Files(tuple(files), labels), _Files(tuple(test_files), test_labels)
    listed = [
        f"{name} {file.relative_to(root)}"
        for name, part in (("train", train), ("test", test))
        for file in part.files
    ]
    return Source(
        _title(config),
        train,
        test,
        classes,
        _channels(train, test),
        flip=True,
        fingerprint=_fingerprint(listed),
    )


def _channels(*splits: Split) -> int:
    """3 if any image has colours, else 1. An unreadable one is reported when it is needed."""
    for split in splits:

        def coloured(start: int, split: Split = split) -> bool:
            for i in range(start, min(start + _CHUNK, len(split))):
                with contextlib.suppress(UnreadableImage):
                    if has_colours(split[i]):
                        return True
            return False

        if any(in_threads(coloured, range(0, len(split), _CHUNK))):
            return 3
    return 1


def in_threads(function: Callable[[int], Any], arguments: Iterable[int]) -> Iterator[Any]:
    """The results of calls in several threads, in order; an error, or an end, cancels the rest."""
    pool = ThreadPoolExecutor(min(16, cores()))
    try:
        yield from pool.map(function, arguments)
    finally:
        pool.shutdown(cancel_futures=True)


def _tfds(config: DataConfig) -> Source:
    import tensorflow_datasets as tfds  # here: its import takes a while, and only it needs it

    builder = _tfds_builder(config)
    if builder.info.file_format.value != "array_record":
        raise UserError(
            f"TFDS data set {_title(config)} is prepared as {builder.info.file_format.value}, "
            "which cannot be read at random: prepare it as array_record in another data.dir, "
            f"with {_prepare_command(config)}"
        )
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
            f"TFDS data set {_title(config)} is not one of images with a class label each: "
            f"it has {', '.join(sorted(features))}"
        )

    def split(stored: str) -> _Records:
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        source = builder.as_data_source(stored, deserialize_method=raw)
        return _Records(source, image_key, label_key, f"{_title(config)}, split {stored}")

    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    held_out = [name for name in ("test", "validation") if sizes.get(name)]
    if not sizes.get("train") or not held_out:
        found = ", ".join(f"{name} ({size})" for name, size in sizes.items())
        raise UserError(
            f"TFDS data set {_title(config)} needs images in a split 'train' and in one of 'test' "
            f"and 'validation', but has {found}"
        )
    test = split(held_out[0])
    if len(held_out) == 2 and test[0].label < 0:
        test = split("validation")  # a test split without labels, as ImageNet's
    channels = 1 if image.shape[-1] == 1 else 3
    flip = not builder.name.startswith(_CHARACTERS)
    classes, content = tuple(label.names), [builder.info.full_name, str(sizes)]
    fingerprint = _fingerprint([*content, *classes])
    return Source(_title(config), split("train"), test, classes, channels, flip, fingerprint)


def _tfds_builder(config: DataConfig):
    import tensorflow_datasets as tfds

    catalogue = "https://www.tensorflow.org/datasets/catalog"
    # A namespace, as in huggingface:NAME, would go to the network.
    if not re.fullmatch(r"\w+(/[^:]+)?(:[\d.*]+)?", config.name):
        raise UserError(
            f"data.name is {config.name!r}: expected 'digits', 'folder' or a name from {catalogue}"
        )
    arguments = {"data_dir": os.path.expanduser(config.dir)} if config.dir else {}
    if ":" not in config.name:
        arguments["version"] = "*.*.*"  # the newest that is prepared, not the one TFDS would make
    try:
        # TFDS prints to stdout where it misses TensorFlow; stdout belongs to our caller.
        with contextlib.redirect_stdout(io.StringIO()):
            builder = tfds.builder(config.name, **arguments)
    except (ValueError, AssertionError, ImportError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"no TFDS data set {_title(config)} ({reason}): set data.name to 'digits', 'folder' or "
            f"a name from {catalogue}, and data.dir to where it is prepared"
        ) from error
    if not builder.info.splits:
        raise UserError(
            f"TFDS data set {config.name!r} is not prepared in {builder.data_path}: set data.dir "
            f"to where it is, or prepare it with {_prepare_command(config)}"
        )
    return builder


def _prepare_command(config: DataConfig) -> str:
    where = f", data_dir={config.dir!r}" if config.dir else ""
    return (
        f'`python -c "import tensorflow_datasets as tfds; tfds.builder({config.name!r}{where})'
        ".download_and_prepare(file_format='array_record')\"`, which for most data sets needs "
        "`pip install tensorflow importlib_resources`, this once"
    )


def _title(config: DataConfig) -> str:
    return f"{config.name!r} in {config.dir}" if config.dir else repr(config.name)


def _hold_out(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Example numbers for training and, a fifth of each class, for the test; always the same."""
    random = np.random.RandomState(0)  # its stream is frozen, a Generator's may change with NumPy
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        held_out[members[: max(1, round(_TEST_FRACTION * len(members)))]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _fingerprint(parts: Iterable[str]) -> int:
    return zlib.crc32("\0".join(parts).encode(errors="surrogateescape"))


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")


def _list_images(root: Path) -> tuple[tuple[str, ...], list[Path], np.ndarray]:
    """The class names, and all files in their folders with labels int32 [n], in sorted order."""
    files, labels = [], []
    for label, folder in enumerate(_folders(root)):
        found = sorted(path for path in folder.iterdir() if path.name[0] != ".")
        if not found:
            raise UserError(f"class folder {folder} has no images: add some, or remove it")
        files += found
        labels += [label] * len(found)
    return tuple(path.name for path in _folders(root)), files, np.array(labels, np.int32)
