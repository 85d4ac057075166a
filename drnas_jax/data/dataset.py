"""A data set as the rest of the package sees it: in memory, or streamed from where it is stored."""

import dataclasses
import functools

import numpy as np

from drnas_jax.config import DataConfig
from drnas_jax.data.images import UnreadableImage, centre_crop, decode, fit
from drnas_jax.data.sources import Source, Split, in_threads, open_source
from drnas_jax.errors import UserError
from drnas_jax.training.machine import cores

_CHUNK = 256  # examples a thread decodes at a time
_SAMPLE = 1024  # training images from which the statistics of a streamed data set are estimated


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory.

    Attributes:
      name: as in the config.
      images: of the training split, uint8 [n, h, w, c]; c is 1 (gray) or 3 (RGB).
      labels: int32 [n], numbers of the classes.
      test_images: as images, for the held-out split.
      test_labels: likewise.
      classes: their names.
      flip: whether augmentation may mirror the images.
      statistics: mean and standard deviation of each channel in 0..1; None: to be computed.
      skipped: which unreadable images were left out.
      fingerprint: see Source.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    flip: bool
    statistics: tuple[np.ndarray, np.ndarray] | None = None
    skipped: tuple[str, ...] = ()
    fingerprint: int = 0

    def split(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of the 'train' or 'test' split."""
        if name == "train":
            return self.images, self.labels
        return self.test_images, self.test_labels

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: h, w, c."""
        return self.images.shape[1:]

    @property
    def count(self) -> int:
        """Training examples."""
        return len(self.labels)

    @property
    def test_count(self) -> int:
        """Held-out examples."""
        return len(self.test_labels)

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
        return self.statistics or _moments(self.images)


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """A data set that stays where it is stored; `data.stream` reads batches of it.

    Attributes as of a Dataset, but for those of images and labels.

    Attributes:
      source: the encoded examples.
      image_size: see DataConfig.
      crop: 'resized' (random parts of the images, resized) or 'padded' (as in memory).
      skip: replace unreadable images.
      workers: how many processes decode.
    """

    name: str
    source: Source
    shape: tuple[int, int, int]
    flip: bool
    mean: np.ndarray
    std: np.ndarray
    image_size: int
    crop: str
    skip: bool
    workers: int

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names."""
        return self.source.classes

    @property
    def fingerprint(self) -> int:
        """See Source."""
        return self.source.fingerprint

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def count(self) -> int:
        """Training examples."""
        return len(self.source.train)

    @property
    def test_count(self) -> int:
        """Held-out examples."""
        return len(self.source.test)


def load(config: DataConfig) -> Dataset | Stream:
    """Finds a data set, and decodes it if it fits in memory: the same whenever and wherever.

    Args:
      config: names the source, see `open_source`. With `image_size`, the short side is resized to
        it and the middle is cut out. What exceeds `memory_limit_mb` is streamed, and so is
        everything if `crop` is 'resized'.

    Raises:
      UserError: there is no such data set, it is not prepared, an image is unreadable, or images
        differ in size.
    """
    source = open_source(config)
    side = (config.image_size,) * 2 if config.image_size else _first_size(source, config)
    shape = (*side, source.channels)
    flip = source.flip if config.flip == "auto" else config.flip == "yes"
    statistics = _given_statistics(config, source)
    size = (len(source.train) + len(source.test)) * int(np.prod(shape))
    if config.crop == "resized" or size > config.memory_limit_mb * 2**20:
        mean, std = statistics or _moments(_sample(config, source, shape))
        return Stream(
            name=config.name,
            source=source,
            shape=shape,
            flip=flip,
            mean=mean,
            std=std,
            image_size=config.image_size,
            crop=config.crop,
            skip=config.corrupt == "skip",
            workers=config.workers or cores(),
        )
    train, test = (_decode(config, source, name, shape) for name in ("train", "test"))
    return Dataset(
        name=config.name,
        images=train[0],
        labels=train[1],
        test_images=test[0],
        test_labels=test[1],
        classes=source.classes,
        flip=flip,
        statistics=statistics,
        skipped=train[2] + test[2],
        fingerprint=source.fingerprint,
    )


def split_of(source: Source, name: str) -> Split:
    """The 'train' or 'test' split of a source."""
    return source.train if name == "train" else source.test


def sized(image: np.ndarray, config_size: int, shape: tuple[int, ...], title: str) -> np.ndarray:
    """An image as it is kept: brought to the config's size, if that names one; [h, w, c].

    Raises:
      UserError: it has another size than `shape`, the data set's.
    """
    if config_size:
        image = fit(image, config_size)
    if image.shape[:2] != shape[:2]:
        sizes = [f"{height}x{width}" for height, width in (shape[:2], image.shape[:2])]
        raise UserError(
            f"images of data set {title} differ in size ({' and '.join(sizes)}): "
            "set data.image_size to bring them to one"
        )
    return image.reshape(shape)


def _first_size(source: Source, config: DataConfig) -> tuple[int, int]:
    for i in range(len(source.train)):
        try:
            height, width = decode(source.train[i], source.channels).shape[:2]
            return height, width
        except UnreadableImage:
            if config.corrupt == "error":
                raise
    raise _nothing_readable(source, "train")


def _given_statistics(config: DataConfig, source: Source) -> tuple[np.ndarray, np.ndarray] | None:
    if not config.mean and not config.std:
        return None
    for name in ("mean", "std"):
        if len(getattr(config, name)) != source.channels:
            raise UserError(
                f"data.{name} is {getattr(config, name)}, but the images of {source.title} have "
                f"{source.channels} channels: give one number for each, or () to measure them"
            )
    return np.array(config.mean, np.float32), np.array(config.std, np.float32)


def _decode(
    config: DataConfig, source: Source, name: str, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """All images, uint8 [n, *shape], and labels, int32 [n], of a split; and which were bad."""
    split = split_of(source, name)
    size = len(split)
    images, labels = np.empty((size, *shape), np.uint8), np.empty(size, np.int32)
    bad: dict[int, str] = {}

    def fill(start: int) -> None:
        for i in range(start, min(start + _CHUNK, size)):
            try:
                example = split[i]
                image = decode(example, source.channels)
            except UnreadableImage as error:
                if config.corrupt == "error":
                    raise
                bad[i] = str(error)
                continue
            images[i] = sized(image, config.image_size, shape, source.title)
            labels[i] = example.label

    list(in_threads(fill, range(0, size, _CHUNK)))
    if bad:
        good = np.setdiff1d(np.arange(size), list(bad))
        images, labels = images[good], labels[good]
    if not len(labels):
        raise _nothing_readable(source, name)
    if labels.min() < 0:
        raise UserError(f"data set {source.title} has no labels in its {name} split")
    return images, labels, tuple(bad[i] for i in sorted(bad))


def _nothing_readable(source: Source, name: str) -> UserError:
    return UserError(f"data set {source.title} has no readable image in its {name} split")


def _sample(config: DataConfig, source: Source, shape: tuple[int, int, int]) -> np.ndarray:
    """Some training images in a streamed data set's own size, uint8 [n, h, w, c]."""
    count = min(_SAMPLE, len(source.train))
    images = np.zeros((count, *shape), np.uint8)
    good = np.ones(count, bool)

    def fill(i: int) -> None:
        example = source.train[i * len(source.train) // count]
        try:
            if config.crop == "resized":
                images[i] = centre_crop(example, shape[2], shape[0]).reshape(shape)
            else:
                image = decode(example, shape[2])
                images[i] = sized(image, config.image_size, shape, source.title)
        except UnreadableImage:
            if config.corrupt == "error":
                raise
            good[i] = False

    list(in_threads(fill, range(count)))
    if not good.any():
        raise _nothing_readable(source, "train")
    return images[good]


def _moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # From histograms: exact, and without a float copy of the images.
    pixels = images.reshape(-1, images.shape[-1])
    counts = np.zeros((pixels.shape[1], 256))
    for start in range(0, len(pixels), 2**20):
        for channel, values in enumerate(pixels[start : start + 2**20].T):
            counts[channel] += np.bincount(values, minlength=256)
    share = counts / len(pixels)
    level = np.arange(256) / 255
    mean = share @ level
    std = np.sqrt((share * (level - mean[:, None]) ** 2).sum(1))
    return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)
