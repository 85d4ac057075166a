"""Loads a source as a data set, decoded into memory or streamed from where it is stored."""

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from drnas_jax.config import DataConfig
from drnas_jax.data.arrays import source_from_arrays
from drnas_jax.data.checks import (
    check_depth,
    check_each_class,
    largest_deep_value,
    no_readable_image,
    reasons,
    unreadable_classes,
    unreadable_images,
)
from drnas_jax.data.dataset import Dataset, ImageDataset
from drnas_jax.data.images import (
    bring_to_shape,
    centre_crop,
    channel_statistics,
    decode,
    read_pixels,
    to_8_bits,
)
from drnas_jax.data.sources import open_source
from drnas_jax.data.sources.base import Source, UnreadableImage, check_labels
from drnas_jax.data.stream import Stream
from drnas_jax.data.threads import in_threads
from drnas_jax.errors import UserError
from drnas_jax.training.hosts import cores

_CHUNK = 256  # examples that a thread decodes at a time
_SAMPLE = 1024  # training images from which the statistics of a streamed data set are estimated


def load(config: DataConfig) -> ImageDataset:
    """Opens the data set that a config names, and decodes it if it fits in memory.

    The result is the same every time and on every machine.

    Args:
      config: Names the source, see `open_source`. With `image_size`, the short side of each image
        is resized to it and the middle is cut out. A data set larger than `memory_limit_mb` is
        streamed, and so is any data set if `crop` is 'resized'.

    Raises:
      UserError: There is no such data set, it is not prepared, images are unreadable (all of them
        are named), images differ in size, a class has no readable image (if `corrupt` is 'skip'),
        or images of 16 bits use so little of their range that `max_value` must be set. What is
        wrong with images is found in all of a data set in memory, but only in a sample of a
        streamed one.
    """
    source = open_source(config)
    shape = _shape(config, source)
    size = (len(source.train) + len(source.test)) * int(np.prod(shape))
    if config.crop == "resized" or size > config.memory_limit_mb * 2**20:
        return _streamed(config, source, shape)
    return _in_memory(config.name, config, source, shape)


def from_arrays(arrays: Mapping[str, Any], config: DataConfig) -> Dataset:
    """Makes a data set of arrays, which takes the place of the one that a config names.

    Args:
      arrays: Images `x_train` and `x_test`, uint8 [n, h, w, c] with c = 1 (gray) or 3 (RGB), and
        labels `y_train` and `y_test`, integers [n] from 0.
      config: Its `image_size`, `mean`, `std` and `flip` apply as to any other data set; 'auto'
        mirrors the images.

    Raises:
      UserError: The arrays have another type, shape or range, or `config.crop` is 'resized'.
    """
    if config.crop == "resized":
        raise UserError(
            "data.crop is 'resized', but the data set is given as arrays, whose images are cropped "
            "after padding: set data.crop to 'padded', or write a data source "
            "(drnas_jax.data.source_from_arrays) for data.name"
        )
    source = source_from_arrays(arrays, title="given by dataset=")
    return _in_memory(source.title, config, source, _shape(config, source))


def _shape(config: DataConfig, source: Source) -> tuple[int, int, int]:
    """Returns the shape of the images: that of the config, or of the first readable one."""
    if config.image_size:
        return config.image_size, config.image_size, source.channels
    for i in range(len(source.train)):
        with contextlib.suppress(UnreadableImage):  # which are reported when all are decoded
            height, width = read_pixels(source.train[i], source.channels).shape[:2]
            return height, width, source.channels
    raise no_readable_image(source, "train")


def _flip(config: DataConfig, source: Source) -> bool:
    return source.flip if config.flip == "auto" else config.flip == "yes"


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


def _streamed(config: DataConfig, source: Source, shape: tuple[int, int, int]) -> Stream:
    statistics = _given_statistics(config, source)
    if not config.max_value:
        check_depth(largest_deep_value(source, _SAMPLE), source)
    if config.corrupt == "skip":
        check_each_class(source)
    mean, std = statistics or channel_statistics(_sample(config, source, shape))
    return Stream(
        name=config.name,
        source=source,
        shape=shape,
        flip=_flip(config, source),
        mean=mean,
        std=std,
        image_size=config.image_size,
        crop=config.crop,
        skip=config.corrupt == "skip",
        workers=config.workers or cores(),
        max_value=config.max_value,
    )


def _in_memory(
    name: str, config: DataConfig, source: Source, shape: tuple[int, int, int]
) -> Dataset:
    statistics = _given_statistics(config, source)
    train, test = (_decode_split(config, source, split, shape) for split in ("train", "test"))
    notes = source.notes
    if unreadable := train.unreadable + test.unreadable:
        if config.corrupt == "error":
            raise unreadable_images(source, unreadable)
        notes += (
            f"data set {source.title}: {len(unreadable):,} unreadable "
            f"image{' is' if len(unreadable) == 1 else 's are'} left out, so "
            f"{len(train.labels):,} training images and {len(test.labels):,} test images remain: "
            f"{reasons(unreadable)}",
        )
    if not config.max_value:
        check_depth(max(train.largest_deep, test.largest_deep), source)
    return Dataset(
        name=name,
        images=train.images,
        labels=train.labels,
        test_images=test.images,
        test_labels=test.labels,
        classes=source.classes,
        flip=_flip(config, source),
        statistics=statistics,
        skipped=dict.fromkeys(unreadable),
        fingerprint=source.fingerprint,
        max_value=config.max_value,
        notes=notes,
        resized_for=config.crop if config.image_size else "",
    )


class _Decoded(NamedTuple):
    """A decoded split.

    Attributes:
      images: Images, uint8 [n, h, w, c], only the readable ones if `data.corrupt` is 'skip'.
      labels: Their labels, int32 [n].
      unreadable: Messages about the unreadable images.
      largest_deep: Largest value of the images of 16 bits; 0 without any.
    """

    images: np.ndarray
    labels: np.ndarray
    unreadable: tuple[str, ...]
    largest_deep: int


def _decode_split(
    config: DataConfig, source: Source, name: str, shape: tuple[int, ...]
) -> _Decoded:
    """Decodes a split."""
    split = source.split(name)
    size = len(split)
    images, labels = np.empty((size, *shape), np.uint8), np.full(size, -1, np.int32)
    if split.labels is not None:
        labels[:] = split.labels
    largest = np.zeros(size, np.uint16)
    unreadable: dict[int, str] = {}

    def fill(start: int) -> None:
        for i in range(start, min(start + _CHUNK, size)):
            try:
                example = split[i]
                labels[i] = example.label
                pixels = read_pixels(example, source.channels)
            except UnreadableImage as error:
                unreadable[i] = str(error)
                continue
            if pixels.dtype == np.uint16:
                largest[i] = pixels.max()
            image = to_8_bits(pixels, config.max_value, example.name)
            images[i] = bring_to_shape(image, config.image_size, shape, source.title)

    list(in_threads(fill, range(0, size, _CHUNK)))
    messages = tuple(unreadable[i] for i in sorted(unreadable))
    if unreadable and config.corrupt == "error":
        return _Decoded(images, labels, messages, 0)
    if unreadable:
        lost = np.array(sorted(unreadable))
        readable = np.setdiff1d(np.arange(size), lost)
        if not len(readable):
            raise no_readable_image(source, name)
        known = lost[labels[lost] >= 0]  # -1: the label was not read either
        if classes := np.setdiff1d(labels[known], labels[readable]).tolist():
            raise unreadable_classes(source, name, classes)
        images, labels = images[readable], labels[readable]
    if not size:
        raise no_readable_image(source, name)
    check_labels(labels, source, name)
    return _Decoded(images, labels, messages, int(largest.max(initial=0)))


def _sample(config: DataConfig, source: Source, shape: tuple[int, int, int]) -> np.ndarray:
    """Decodes some training images of a data set that will be streamed, uint8 [n, h, w, c]."""
    count = min(_SAMPLE, len(source.train))
    images = np.zeros((count, *shape), np.uint8)
    unreadable: dict[int, str] = {}

    def fill(i: int) -> None:
        try:
            example = source.train[i * len(source.train) // count]
            if config.crop == "resized":
                images[i] = centre_crop(example, shape[2], shape[0], config.max_value).reshape(
                    shape
                )
            else:
                image = decode(example, shape[2], max_value=config.max_value)
                images[i] = bring_to_shape(image, config.image_size, shape, source.title)
        except UnreadableImage as error:
            unreadable[i] = str(error)

    list(in_threads(fill, range(count)))
    if unreadable and config.corrupt == "error":
        raise unreadable_images(source, [unreadable[i] for i in sorted(unreadable)])
    if len(unreadable) == count:
        raise no_readable_image(source, "train")
    return np.delete(images, list(unreadable), axis=0)
