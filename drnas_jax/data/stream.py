"""A data set that stays where it is stored: worker processes read, decode and crop its batches.

What is random in a batch follows from the seed, the step and the position in the global batch, so
the number of workers and of hosts does not matter, and a run resumes anywhere without the state of
an iterator.
"""

import dataclasses
import math
from collections.abc import Generator

import numpy as np

from drnas_jax.data.dataset import Rows
from drnas_jax.data.images import (
    DRAWS,
    bring_to_shape,
    centre_crop,
    decode,
    random_resized_crop,
)
from drnas_jax.data.ring import Ring
from drnas_jax.data.schedule import Request, Schedule
from drnas_jax.data.sources.base import Example, Source, Split, UnreadableImage
from drnas_jax.data.workers import AHEAD, read_in_workers
from drnas_jax.errors import UserError
from drnas_jax.training.random_keys import host_generator

_CHUNK = 64  # examples that a worker hands over at a time
_LABELS = 1024  # labels that a worker hands over at a time
_SLOTS = AHEAD + 2  # chunks of each worker in shared memory: one being written, one being read
_ALIGNMENT = 64  # bytes; XLA uses memory with this alignment on the CPU without copying it


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """A data set that stays where it is stored; see `ImageDataset` for what is not listed here.

    Attributes:
      name: Value of `data.name`.
      source: The encoded examples.
      shape: Height, width and channels of an image in a batch.
      flip: Whether augmentation may mirror the images.
      mean, std: Mean and standard deviation of each channel, of pixels in 0..1, float32 [c].
      image_size: Value of `data.image_size`.
      crop: 'resized' for random parts of the images, resized, or 'padded' for whole images.
      skip: Whether unreadable images are replaced; otherwise they are errors.
      workers: Number of processes that decode.
      max_value: Value of `data.max_value`, by which images of 16 bits are scaled.
      skipped: Messages about the unreadable images that this process has replaced so far, as keys.
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
    max_value: int = 0
    skipped: dict[str, None] = dataclasses.field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return self.source.classes

    @property
    def fingerprint(self) -> int:
        """Number that changes if the examples or their order change, see `Source`."""
        return self.source.fingerprint

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for the user about what was read."""
        return self.source.notes

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def count(self) -> int:
        """Number of training examples."""
        return len(self.source.train)

    @property
    def test_count(self) -> int:
        """Number of test examples."""
        return len(self.source.test)

    @property
    def resized_for(self) -> str:
        """Value of `data.crop` if images are resized, otherwise ''."""
        return self.crop if self.image_size else ""

    @property
    def already_cropped(self) -> bool:
        """Whether training batches hold random crops."""
        return self.crop == "resized"

    @property
    def labels(self) -> np.ndarray | None:
        """Labels of the training examples, int32 [n]; None if the source does not list them."""
        labels = self.source.train.labels
        return None if labels is None else np.asarray(labels, np.int32)

    def read_labels(self, share: int, shares: int) -> np.ndarray:
        """Reads a share of the training examples for their labels.

        Args:
          share: Number of this process among those that share the work, from 0.
          shares: Number of processes that share the work.

        Returns:
          Labels, int32 [n], with 0 for those that other processes read.
        """
        split = self.source.train
        labels = np.zeros(len(split), np.int32)
        if self.labels is not None:
            return self.labels if share == 0 else labels
        chunks = _Labels(split, share, shares, self.skip)
        workers = min(self.workers, len(chunks))
        for start, values in read_in_workers(chunks, workers):
            labels[start : start + len(values)] = values
        return labels

    def arrays(self, split: str) -> None:
        """Returns None: the images are not in memory."""
        del split

    def read_test(self, indices: np.ndarray) -> np.ndarray:
        """Reads some test images in this process, uint8 [n, h, w, c]."""
        images = np.empty((len(indices), *self.shape), np.uint8)
        for image, index in zip(images, indices, strict=True):
            image[...] = _pixels(self, self.source.test[int(index)], None).reshape(self.shape)
        return images

    def batches(
        self, schedule: Schedule, start: int, rows: np.ndarray
    ) -> Generator[tuple[Request, Rows], None, None]:
        """Reads the batches of a schedule in worker processes, which end with the generator.

        Args:
          schedule: What to read.
          start: Number of the request to begin with.
          rows: Positions in a global batch that this process reads, int [b].

        Yields:
          Every request from `start` on, with its rows in the order of `rows`.

        Raises:
          UserError: An image is unreadable, has no label or another size than the rest.
          ChildProcessError: A worker was killed.
        """
        ring = Ring(_SLOTS * self.workers, (_CHUNK, *self.shape))
        pieces = _Pieces(self, schedule, start, rows, ring)
        reading = read_in_workers(pieces, self.workers)
        number = 0  # of the next piece
        try:
            for k in range(start, len(schedule)):
                images, rest = _aligned((len(rows), *self.shape)), []
                for first in range(0, len(rows), _CHUNK):
                    rest.append(next(reading))
                    target = images[first : first + _CHUNK]
                    target[...] = ring.read(number)[: len(target)]
                    ring.release(number)
                    number += 1
                labels, weight, skipped = zip(*rest, strict=True)
                joined = np.concatenate(labels), np.concatenate(weight), sum(skipped, ())
                yield schedule[k], Rows(images, *joined)
        finally:
            ring.release_all()
            reading.close()
            ring.close()


def read_rows(
    stream: Stream, request: Request, rows: np.ndarray, seed: int, out: np.ndarray | None = None
) -> Rows:
    """Reads some rows of a batch in this process.

    Args:
      stream: Data set to read from.
      request: Batch to read from.
      rows: Positions in the batch, int [n].
      seed: Seed of the run.
      out: Array that receives the images, uint8 [n, h, w, c]; None for a new one.

    Raises:
      UserError: An image is unreadable, has no label or another size than the rest.
    """
    split, size = stream.source.split(request.split), len(request.indices)
    draws = [None] * len(rows)
    if request.name and stream.crop == "resized":
        random = host_generator(seed, f"{request.name}/crop", request.step)
        draws = random.random((size, *DRAWS))[rows]

    def read(row: int) -> Example | UnreadableImage:
        try:
            return split[int(request.indices[row])]
        except UnreadableImage as error:
            return error

    images = np.empty((len(rows), *stream.shape), np.uint8) if out is None else out
    labels, weight = np.empty(len(rows), np.int32), np.ones(len(rows), np.float32)
    skipped: list[str] = []
    # All files first: reading and decoding in turn would evict each other's data from the caches.
    for i, (row, first) in enumerate([(row, read(row)) for row in rows]):
        # An unreadable image is replaced by the next readable one of the global batch.
        for other in range(row, row + size):
            example = first if other == row else read(other % size)
            try:
                if isinstance(example, UnreadableImage):
                    raise example
                pixels = _pixels(stream, example, draws[i])
                break
            except UnreadableImage as error:
                if not stream.skip:
                    raise
                weight[i], reason = 0, str(error)
                if other == row and (request.weight is None or request.weight[row]):
                    skipped.append(reason)
        else:
            raise UserError(
                f"a whole batch of {stream.source.title} is unreadable: {reason}; replace these "
                "images, since no other image of the batch can take their place"
            )
        _check_label(example, stream.num_classes)
        images[i], labels[i] = pixels.reshape(stream.shape), example.label
    if request.weight is not None:
        weight *= request.weight[rows]
    return Rows(images, labels, weight, tuple(skipped))


def _check_label(example: Example, classes: int) -> None:
    if example.label < 0:
        raise UserError(
            f"{example.name} has no label: give it one, or take it out of the training images"
        )
    if example.label >= classes:
        raise UserError(
            f"{example.name} has label {example.label}: expected 0 to {classes - 1}, one of the "
            f"{classes} classes"
        )


def _pixels(stream: Stream, example: Example, draws: np.ndarray | None) -> np.ndarray:
    channels, size = stream.shape[2], stream.shape[0]
    if stream.crop == "padded":
        image = decode(example, channels, max_value=stream.max_value)
        return bring_to_shape(image, stream.image_size, stream.shape, stream.source.title)
    if draws is None:
        return centre_crop(example, channels, size, stream.max_value)
    return random_resized_crop(example, channels, size, draws, stream.max_value)


@dataclasses.dataclass(frozen=True, eq=False)
class _Pieces:
    """Pieces of requests, for worker processes; their images are written into the ring."""

    stream: Stream
    schedule: Schedule
    start: int
    rows: np.ndarray
    ring: Ring

    @property
    def per_request(self) -> int:
        return -(-len(self.rows) // _CHUNK)

    def __len__(self) -> int:
        return (len(self.schedule) - self.start) * self.per_request

    def __getitem__(self, k: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """Reads a piece, and returns the `Rows` without the images."""
        request, piece = divmod(k, self.per_request)
        rows = self.rows[piece * _CHUNK : (piece + 1) * _CHUNK]
        out = self.ring.wait_to_write(k)[: len(rows)]
        return read_rows(
            self.stream, self.schedule[self.start + request], rows, self.schedule.seed, out
        )[1:]


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Returns uninitialised memory for a batch, uint8, that XLA need not copy."""
    size = math.prod(shape)
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    return memory[first : first + size].reshape(shape)


@dataclasses.dataclass(frozen=True, eq=False)
class _Labels:
    """A share of a split's labels, a thousand at a time, for worker processes.

    If `skip` is set, an example that cannot be read gets the label 0. This label is never used,
    since another example replaces it in every batch.
    """

    split: Split
    share: int
    shares: int
    skip: bool = False

    def __len__(self) -> int:
        chunks = -(-len(self.split) // _LABELS)
        return len(range(self.share, chunks, self.shares))

    def __getitem__(self, k: int) -> tuple[int, np.ndarray]:
        """Returns the index of the first example, and the labels from there, int32."""
        start = (self.share + k * self.shares) * _LABELS
        indices = range(start, min(start + _LABELS, len(self.split)))
        return start, np.array([self._label(i) for i in indices], np.int32)

    def _label(self, index: int) -> int:
        try:
            return self.split[index].label
        except UnreadableImage:
            if not self.skip:
                raise
            return 0
