"""Whole data sets as arrays in memory: digits, whatever TFDS has, or a folder of images.

Images are decoded once, to uint8; what is drawn at random happens later, on the device.
"""

import contextlib
import functools
import io
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from drnas_jax.config import DataConfig
from drnas_jax.errors import UserError

# Letters and figures: a mirror image is no longer the same class (or no character at all).
_CHARACTERS = ("binary_alpha_digits", "cmaterdb", "emnist", "kmnist", "mnist", "omniglot", "svhn")
_TEST_FRACTION = 0.2  # held out of a source that has no test split of its own
_CHUNK = 256  # examples a thread decodes at a time


@dataclass(frozen=True, eq=False)
class Dataset:
    """A decoded data set.

    Attributes:
      name: as in the config.
      images: of the training split, uint8 [n, h, w, c]; c is 1 (gray) or 3 (RGB).
      labels: int32 [n], numbers of the classes.
      test_images: as images, for the held-out split.
      test_labels: likewise.
      classes: their names.
      flip: whether augmentation may mirror the images.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    flip: bool

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def mean(self) -> np.ndarray:
        """Mean of each channel over the training images in 0..1, float32 [c]."""
        return self._moments[0]

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of each channel, float32 [c]; 1 where a channel is constant."""
        return self._moments[1]

    @functools.cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        # From histograms: exact, and without a float copy of the images.
        pixels = self.images.reshape(-1, self.images.shape[-1])
        counts = np.zeros((pixels.shape[1], 256))
        for start in range(0, len(pixels), 2**20):
            for channel, values in enumerate(pixels[start : start + 2**20].T):
                counts[channel] += np.bincount(values, minlength=256)
        share = counts / len(pixels)
        level = np.arange(256) / 255
        mean = share @ level
        std = np.sqrt((share * (level - mean[:, None]) ** 2).sum(1))
        return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)


def load(config: DataConfig) -> Dataset:
    """Reads and decodes a data set: the same arrays whenever and wherever it is called.

    Args:
      config: `name` is 'digits' (scikit-learn's, in that package), 'folder' (`dir` holds one
        sub-folder a class, or train/ and test/ with these), or a TFDS name, prepared in `dir`.
        Without a test split of their own, digits and folders hold out a fifth of each class, a
        choice that no seed changes. With `image_size`, the short side is resized to it and the
        middle is cut out.

    Raises:
      UserError: there is no such data set, it is not prepared, an image is unreadable, images
        differ in size, or the whole exceeds `memory_limit_mb`.
    """
    source = {"digits": _digits, "folder": _folder}.get(config.name, _tfds)(config)
    if len(source.classes) < 2:
        found = ", ".join(source.classes) or "none"
        raise UserError(f"data set {_title(config)} needs at least 2 classes, but has {found}")
    first, _ = next(source.train.read(range(1)))
    shape = (*_side(config, first), source.channels)
    _check_memory(config, source.train.size + source.test.size, shape)
    flip = source.flip if config.flip == "auto" else config.flip == "yes"
    images, labels = _decode(config, source.train, shape)
    test_images, test_labels = _decode(config, source.test, shape)
    return Dataset(config.name, images, labels, test_images, test_labels, source.classes, flip)


@dataclass(frozen=True)
class _Split:
    """Examples still to be decoded.

    Attributes:
      name: 'train' or 'test'.
      size: number of examples.
      read: the images (uint8, [h, w] or [h, w, c]) and labels of a range of them.
    """

    name: str
    size: int
    read: Callable[[range], Iterator[tuple[np.ndarray, int]]]


@dataclass(frozen=True)
class _Source:
    """What the three kinds of source have in common; flip: mirrored, an image keeps its class."""

    train: _Split
    test: _Split
    classes: tuple[str, ...]
    channels: int
    flip: bool


def _digits(config: DataConfig) -> _Source:
    from sklearn.datasets import load_digits  # here: its import takes a second

    del config  # nothing to choose
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    train, test = (
        _listed(name, images[index], digits.target[index], lambda image: image)
        for name, index in zip(("train", "test"), _hold_out(digits.target), strict=True)
    )
    return _Source(train, test, tuple(map(str, digits.target_names)), channels=1, flip=False)


def _folder(config: DataConfig) -> _Source:
    root = Path(config.dir).expanduser()
    if not config.dir or not root.is_dir():
        raise UserError(
            f"data.dir is {config.dir!r}, which is no directory: data.name 'folder' needs one that "
            "holds a sub-folder of images for each class, or train/ and test/ with these"
        )
    if _folders(root / "train"):
        classes, files, labels = _list_images(root / "train")
        test_classes, test_files, test_labels = _list_images(root / "test")
        if different := set(classes) ^ set(test_classes):
            raise UserError(
                f"train/ and test/ in {root} need the same class folders, but only one of them "
                f"has {', '.join(sorted(different))}"
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

    everything = files + test_files
    if everything:  # now already, as all are read next if all are gray
        _check_memory(config, len(everything), (*_side(config, _read(everything[0])), 1))
    channels = 3 if any(_read(file).ndim == 3 for file in everything) else 1

    def decode(file: Path) -> np.ndarray:
        return _read(file, cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE)

    train = _listed("train", files, labels, decode)
    test = _listed("test", test_files, test_labels, decode)
    return _Source(train, test, classes, channels, flip=True)


def _tfds(config: DataConfig) -> _Source:
    import tensorflow_datasets as tfds  # here: its import takes a while, and only it needs it

    builder = _tfds_builder(config)
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
    channels = 1 if image.shape[-1] == 1 else 3
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR

    def split(name: str, stored: str) -> _Split:
        try:
            # The bytes of the images, since our own decoding is faster and runs in threads.
            skip = {image_key: tfds.decode.SkipDecoding()}
            source = builder.as_data_source(stored, decoders=skip)
        except NotImplementedError as error:
            raise UserError(
                f"TFDS data set {_title(config)} is prepared as {builder.info.file_format.value}, "
                "which can not be read at random: prepare it as array_record in another data.dir, "
                f"with {_prepare_command(config)}"
            ) from error

        def read(numbers: range) -> Iterator[tuple[np.ndarray, int]]:
            try:
                records = source.__getitems__(list(numbers))
            except RuntimeError as error:  # array_record's, of a file that is missing or broken
                raise UserError(f"TFDS data set {_title(config)} is broken: {error}") from error
            for i, record in zip(numbers, records, strict=True):
                what = f"image {i} of {_title(config)}, split {stored}"
                yield _decode_image(record[image_key], flag, what), int(record[label_key])

        return _Split(name, len(source), read)

    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    held_out = [name for name in ("test", "validation") if sizes.get(name)]
    if not sizes.get("train") or not held_out:
        found = ", ".join(f"{name} ({size})" for name, size in sizes.items())
        raise UserError(
            f"TFDS data set {_title(config)} needs images in a split 'train' and in one of 'test' "
            f"and 'validation', but has {found}"
        )
    test = split("test", held_out[0])
    if len(held_out) == 2 and next(test.read(range(1)))[1] < 0:
        test = split("test", "validation")  # a test split without labels, as ImageNet's
    flip = not builder.name.startswith(_CHARACTERS)
    return _Source(split("train", "train"), test, tuple(label.names), channels, flip)


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


def _listed(name: str, items, labels: np.ndarray, decode: Callable) -> _Split:
    return _Split(
        name, len(items), lambda numbers: ((decode(items[i]), labels[i]) for i in numbers)
    )


def _hold_out(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Example numbers for training and, a fifth of each class, for the test; always the same."""
    random = np.random.RandomState(0)  # its stream is frozen, a Generator's may change with NumPy
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        held_out[members[: max(1, round(_TEST_FRACTION * len(members)))]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


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


def _read(file: Path, flag: int = cv2.IMREAD_ANYCOLOR) -> np.ndarray:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"can not read image {file}: {error.strerror}") from error
    return _decode_image(data, flag, str(file))


def _decode_image(data: bytes, flag: int, what: str) -> np.ndarray:
    """uint8 [h, w] or, in RGB, [h, w, 3]; 16 bits become 8, alpha is dropped."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:  # of an empty file, or an image too large
        image = None
    if image is None:
        raise UserError(f"{what} is not an image that OpenCV can read: mend or remove it")
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _side(config: DataConfig, image: np.ndarray) -> tuple[int, int]:
    """Height and width of the images once decoded."""
    return (config.image_size,) * 2 if config.image_size else image.shape[:2]


def _check_memory(config: DataConfig, count: int, shape: tuple[int, ...]) -> None:
    size = -(-count * int(np.prod(shape)) // 2**20)
    if size > config.memory_limit_mb:
        raise UserError(
            f"data set {_title(config)} would take {size} MB as {count} images of "
            f"{'x'.join(map(str, shape))}, more than data.memory_limit_mb = "
            f"{config.memory_limit_mb}: raise that, or set a smaller data.image_size"
        )


def _decode(
    config: DataConfig, split: _Split, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """All images, uint8 [n, *shape], and labels, int32 [n], of a split."""
    images, labels = np.empty((split.size, *shape), np.uint8), np.empty(split.size, np.int32)

    def fill(numbers: range) -> None:
        for i, (image, label) in zip(numbers, split.read(numbers), strict=True):
            if config.image_size:
                image = _resize(image, config.image_size)
            if image.shape[:2] != shape[:2]:
                sizes = [f"{height}x{width}" for height, width in (shape[:2], image.shape[:2])]
                raise UserError(
                    f"images of data set {_title(config)} differ in size ({' and '.join(sizes)}): "
                    "set data.image_size to bring them to one"
                )
            images[i], labels[i] = image.reshape(shape), label

    chunks = [
        range(start, min(start + _CHUNK, split.size)) for start in range(0, split.size, _CHUNK)
    ]
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for _ in pool.map(fill, chunks):  # stops at the first error
            pass
    if labels.min() < 0:
        raise UserError(f"data set {_title(config)} has no labels in its {split.name} split")
    return images, labels


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    """Brings the short side to `size` and cuts out the middle, [size, size] or [size, size, c]."""
    height, width = image.shape[:2]
    scale = size / min(height, width)
    if scale != 1:
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        image = cv2.resize(
            image, (round(width * scale), round(height * scale)), interpolation=method
        )
    top, left = ((side - size) // 2 for side in image.shape[:2])
    return image[top : top + size, left : left + size]
