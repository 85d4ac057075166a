"""Checks of a source's images: each class has a readable one, and 16 bits are used in full."""

import itertools
from collections.abc import Collection, Sequence

import numpy as np

from drnas_jax.data.images import FULL_RANGE, check_readable, may_be_deep, next_range, read_pixels
from drnas_jax.data.names import listed
from drnas_jax.data.sources.base import Source, Split, UnreadableImage
from drnas_jax.data.threads import in_threads
from drnas_jax.errors import UserError

_LARGEST_SUSPECT = FULL_RANGE // 8  # images of 16 bits that stay below use fewer bits
_MOST_NAMED = 100  # unreadable images that a message names
_MOST_READ = 20_000  # examples that are read only for their labels


def reasons(messages: Collection[str]) -> str:
    """Joins what is wrong with unreadable images, without advice; at most 100 are named.

    Args:
      messages: Messages of `UnreadableImage`.
    """
    named = []
    for message in itertools.islice(messages, _MOST_NAMED):
        reason, _, advice = message.rpartition(": ")
        named.append(reason if "data.corrupt" in advice else message)
    if (more := len(messages) - len(named)) > 0:
        named.append(f"and {more:,} more")
    return "; ".join(named)


def unreadable_images(source: Source, messages: Sequence[str]) -> UnreadableImage:
    """Makes the error for all unreadable images of a source, one or more."""
    if len(messages) == 1:
        return UnreadableImage(messages[0])
    return UnreadableImage(
        f"data set {source.title} has {len(messages):,} unreadable images ({reasons(messages)}): "
        "fix or remove them, or set data.corrupt=skip, which leaves them out"
    )


def no_readable_image(source: Source, split_name: str) -> UserError:
    """Makes the error for a split in which no image can be read."""
    return UserError(
        f"data set {source.title} has no readable image in its {split_name} split: convert its "
        "images to a format that OpenCV reads, such as PNG"
    )


def unreadable_classes(source: Source, split_name: str, labels: Sequence[int]) -> UserError:
    """Makes the error for classes that would be left without an image in a split."""
    names = [source.classes[i] if 0 <= i < len(source.classes) else str(i) for i in labels]
    them = "this class, or remove it" if len(names) == 1 else "these classes, or remove them"
    return UserError(
        f"data set {source.title} has no readable image of {listed(names)} in its {split_name} "
        f"split: convert or replace the images of {them}"
    )


def check_each_class(source: Source) -> None:
    """Checks that at least one image of every class can be decoded, in both splits.

    A class without any example is not an error. If a split does not list its labels, they are read
    first; a split of more than 20,000 such examples, like ImageNet from TFDS, is not checked.

    Raises:
      UserError: None of the examples of a class can be decoded.
    """
    for name in ("train", "test"):
        split = source.split(name)
        labels = _labels(split)
        order = np.argsort(labels, kind="stable")
        present, starts = np.unique(labels[order], return_index=True)
        members = dict(zip(present.tolist(), np.split(order, starts[1:]), strict=False))
        members.pop(-1, None)  # of unknown class

        def readable(
            label: int, members: dict[int, np.ndarray] = members, split: Split = split
        ) -> bool:
            return any(_is_readable(source, split, int(i)) for i in members[label])

        found = in_threads(readable, members)
        lost = [label for label, fine in zip(members, found, strict=True) if not fine]
        if lost and len(lost) == len(members):
            raise no_readable_image(source, name)
        if lost:
            raise unreadable_classes(source, name, lost)


def _labels(split: Split) -> np.ndarray:
    """Returns the labels, int [n], -1 for unreadable examples; [0] if too many must be read."""
    if split.labels is not None:
        return np.asarray(split.labels)
    if len(split) > _MOST_READ:
        return np.empty(0, int)

    def label(i: int) -> int:
        try:
            return split[i].label
        except UnreadableImage:
            return -1

    return np.array(list(in_threads(label, range(len(split)))), int)


def _is_readable(source: Source, split: Split, index: int) -> bool:
    try:
        check_readable(split[index], source.channels)
    except UnreadableImage:
        return False
    return True


def largest_deep_value(source: Source, count: int) -> int:
    """Returns the largest value of the 16-bit images in a sample of both splits; 0 without any.

    Args:
      source: Source of the images; unreadable ones are skipped.
      count: Number of images of each split to look at, evenly spaced.
    """
    sample = [
        (split, i * len(split) // min(count, len(split)))
        for split in (source.train, source.test)
        for i in range(min(count, len(split)))
    ]

    def largest(k: int) -> int:
        split, i = sample[k]
        try:
            example = split[i]
            if not may_be_deep(example.image):
                return 0
            pixels = read_pixels(example, source.channels)
        except UnreadableImage:
            return 0
        return int(pixels.max()) if pixels.dtype == np.uint16 else 0

    return max(in_threads(largest, range(len(sample))), default=0)


def check_depth(largest: int, source: Source) -> None:
    """Checks that images of 16 bits use their range, for a run that does not set `data.max_value`.

    Args:
      largest: Largest value of any image of 16 bits; 0 without any.
      source: Source of the images.

    Raises:
      UserError: They stay below an eighth of the range, and would become nearly black.
    """
    if 0 < largest <= _LARGEST_SUSPECT:
        raise UserError(
            f"the 16-bit images of data set {source.title} have no value above {largest}, "
            f"although {FULL_RANGE} is possible: set data.max_value to the value of white, such as "
            f"{next_range(largest)} (or to {FULL_RANGE} if they are meant to be dark)"
        )
