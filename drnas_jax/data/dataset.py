"""A data set as the rest of the package sees it, and the one that is in memory."""

import dataclasses
import functools
from collections.abc import Generator
from typing import NamedTuple, Protocol

import numpy as np

from drnas_jax.data.images import channel_statistics
from drnas_jax.data.schedule import Request, Schedule


class Rows(NamedTuple):
    """The rows of a batch that this process reads from storage.

    Attributes:
      images: Pixels, uint8 [n, h, w, c].
      labels: Indices of the classes, int32 [n].
      weight: Weights as in `Request`, float32 [n]; also 0 for an unreadable image.
      skipped: Messages about the unreadable images that were replaced.
    """

    images: np.ndarray
    labels: np.ndarray
    weight: np.ndarray
    skipped: tuple[str, ...]


class ImageDataset(Protocol):
    """A data set with a training and a test split, in memory (`Dataset`) or streamed (`Stream`)."""

    @property
    def name(self) -> str:
        """Name of the data set, as in `config.data`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image; 1 channel is gray, 3 are RGB."""

    @property
    def count(self) -> int:
        """Number of training examples."""

    @property
    def test_count(self) -> int:
        """Number of test examples."""

    @property
    def fingerprint(self) -> int:
        """Number that changes if the examples or their order change, see `Source`."""

    @property
    def mean(self) -> np.ndarray:
        """Mean of each channel over the training images, of pixels in 0..1, float32 [c]."""

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of each channel, float32 [c]; 1 if a channel is constant."""

    @property
    def flip(self) -> bool:
        """Whether augmentation may mirror the images."""

    @property
    def already_cropped(self) -> bool:
        """Whether training batches hold random crops, so that they are not cropped again."""

    @property
    def max_value(self) -> int:
        """Value of `data.max_value`, by which images of 16 bits are scaled; 0 is the full range."""

    @property
    def resized_for(self) -> str:
        """Value of `data.crop`, for which images were resized; '' if `data.image_size` is unset."""

    @property
    def skipped(self) -> dict[str, None]:
        """Messages about the unreadable images that were left out so far, each once, as keys.

        Those of a streamed data set are added while this process reads batches.
        """

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for the user about what was read, see `Source`."""

    @property
    def workers(self) -> int:
        """Number of processes that read batches; 0 for a data set in memory."""

    @property
    def labels(self) -> np.ndarray | None:
        """Labels of the training examples, int [n]; None if `read_labels` must read them all."""

    def read_labels(self, share: int, shares: int) -> np.ndarray:
        """Returns the training labels, int32 [n], with 0 for those that other processes read.

        Args:
          share: Number of this process among those that share the work, from 0.
          shares: Number of processes that share the work.
        """

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns the images and labels of the 'train' or 'test' split, or None if streamed."""

    def read_test(self, indices: np.ndarray) -> np.ndarray:
        """Returns some test images as they are evaluated, uint8 [n, h, w, c].

        Args:
          indices: Numbers of the images in the test split, int [n].
        """

    def batches(
        self, schedule: Schedule, start: int, rows: np.ndarray
    ) -> Generator[tuple[Request, Rows | None], None, None]:
        """Yields every request of a schedule, with its images if the data set is streamed.

        Args:
          schedule: What to read.
          start: Number of the request to begin with.
          rows: Positions in a global batch that this process reads, int [b].
        """


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory.

    Attributes:
      name: Name of the data set, as in `config.data`.
      images: Training images, uint8 [n, h, w, c]; c is 1 (gray) or 3 (RGB).
      labels: Training labels, int32 [n].
      test_images: Test images, uint8 [n, h, w, c].
      test_labels: Test labels, int32 [n].
      classes: Names of the classes, in the order of the labels.
      flip: Whether augmentation may mirror the images.
      statistics: Mean and standard deviation of each channel, of pixels in 0..1; None to compute
        them from the training images.
      skipped: Messages about the unreadable images that were left out, as keys.
      fingerprint: Number that changes if the examples or their order change, see `Source`.
      max_value: Value of `data.max_value`, by which images of 16 bits were scaled.
      notes: Lines for the user about what was read, see `Source`.
      resized_for: Value of `data.crop`, for which images were resized; '' if they were not.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    flip: bool
    statistics: tuple[np.ndarray, np.ndarray] | None = None
    skipped: dict[str, None] = dataclasses.field(default_factory=dict)
    fingerprint: int = 0
    max_value: int = 0
    notes: tuple[str, ...] = ()
    resized_for: str = ""
    already_cropped = False
    workers = 0

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self.images.shape[1:]

    @property
    def count(self) -> int:
        """Number of training examples."""
        return len(self.labels)

    @property
    def test_count(self) -> int:
        """Number of test examples."""
        return len(self.test_labels)

    @property
    def mean(self) -> np.ndarray:
        """Mean of each channel over the training images, float32 [c]."""
        return self._mean_and_std[0]

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of each channel, float32 [c]; 1 if a channel is constant."""
        return self._mean_and_std[1]

    @functools.cached_property
    def _mean_and_std(self) -> tuple[np.ndarray, np.ndarray]:
        return self.statistics or channel_statistics(self.images)

    def read_labels(self, share: int, shares: int) -> np.ndarray:
        """Returns the labels to the first process and zeros to others, so that they add up."""
        return self.labels if share == 0 else np.zeros_like(self.labels)

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images and labels of the 'train' or 'test' split."""
        if split == "train":
            return self.images, self.labels
        return self.test_images, self.test_labels

    def read_test(self, indices: np.ndarray) -> np.ndarray:
        """Returns some test images, uint8 [n, h, w, c]."""
        return self.test_images[indices]

    def batches(
        self, schedule: Schedule, start: int, rows: np.ndarray
    ) -> Generator[tuple[Request, None], None, None]:
        """Yields every request from `start` on; their indices are those of `arrays`."""
        del rows
        for k in range(start, len(schedule)):
            yield schedule[k], None
