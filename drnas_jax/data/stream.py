"""Batches out of a stored data set: Grain's worker processes read, decode and crop them.

What is random in a batch follows from the seed, the step and the place in the global batch: the
number of workers and of hosts does not matter, and a run goes on anywhere without a saved iterator.
"""

import dataclasses
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator
from typing import Any, NamedTuple

import cv2
import grain
import numpy as np
from absl import flags

from drnas_jax.data.dataset import Stream, sized, split_of
from drnas_jax.data.images import (
    DRAWS,
    Example,
    UnreadableImage,
    centre_crop,
    decode,
    random_resized_crop,
)
from drnas_jax.data.ring import Ring
from drnas_jax.data.schedule import Request, Schedule
from drnas_jax.data.sources import Split
from drnas_jax.data.splits import generator
from drnas_jax.errors import UserError

_CHUNK = 64  # examples a worker hands over at a time
_LABELS = 1024  # labels likewise
_AHEAD = 2  # chunks or labels of each worker that wait to be sent
_SLOTS = _AHEAD + 2  # chunks of each worker in shared memory: one being written, one being read
_ALIGNMENT = 64  # bytes; XLA uses such memory on the CPU as it is


class Rows(NamedTuple):
    """A part of a batch.

    Attributes:
      images: uint8 [n, h, w, c].
      labels: int32 [n].
      weight: float32 [n], see Request; 0 too for an unreadable image.
      skipped: which images could not be read, and were replaced.
    """

    images: np.ndarray
    labels: np.ndarray
    weight: np.ndarray
    skipped: tuple[str, ...]


def stream_batches(
    stream: Stream, schedule: Schedule, start: int, rows: np.ndarray
) -> Generator[tuple[Request, Rows], None, None]:
    """Reads the batches of a schedule.

    Args:
      stream: the data set.
      schedule: what to read.
      start: the request to begin with.
      rows: the places in a global batch which this process reads, int [b].

    Yields:
      Every request from `start` on, with its rows in their order. Workers end with the generator.

    Raises:
      UserError: an image is unreadable, has no label or another size than the rest.
      ChildProcessError: a worker was killed.
    """
    workers = stream.workers
    ring = Ring(_SLOTS * workers, (_CHUNK, *stream.shape))
    reader = _read(_Chunks(stream, schedule, start, rows, ring), workers)
    place = 0  # of the next chunk
    try:
        for k in range(start, len(schedule)):
            images, parts = _empty((len(rows), *stream.shape)), []
            for first in range(0, len(rows), _CHUNK):
                parts.append(next(reader))
                part = images[first : first + _CHUNK]
                part[...] = ring.to_read(place)[: len(part)]
                ring.release(place)
                place += 1
            labels, weight, skipped = zip(*parts, strict=True)
            rest = np.concatenate(labels), np.concatenate(weight), sum(skipped, ())
            yield schedule[k], Rows(images, *rest)
    finally:
        ring.release_all()
        reader.close()
        ring.close()


def _read(source: Any, workers: int) -> Generator[Any, None, None]:
    """The elements of a source, read by worker processes, in order."""
    if not flags.FLAGS.is_parsed():  # Grain asks for flags of its own; the defaults serve
        flags.FLAGS.mark_as_parsed()
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    dataset = grain.MapDataset.source(source).map(_Sent).to_iter_dataset(options)
    processes = grain.MultiprocessingOptions(workers, per_worker_buffer_size=_AHEAD)
    iterator = iter(dataset.mp_prefetch(processes, worker_init_fn=_begin_worker))
    try:
        for element in iterator:
            yield element.value
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):  # Grain's words for a worker that is gone
            raise
        reason = str(error).partition(". ")[0]
        raise ChildProcessError(
            f"an input worker was killed ({reason}); if memory ran out, set data.workers below "
            f"{workers}"
        ) from error
    finally:
        iterator.close()


@dataclasses.dataclass(frozen=True)
class _Sent:
    """An element, sent as a whole: else Grain makes a file in shared memory of each array."""

    value: Any


def read_rows(
    stream: Stream, request: Request, rows: np.ndarray, seed: int, out: np.ndarray | None = None
) -> Rows:
    """Reads some rows of a batch in this process; see `stream_batches`.

    Args:
      stream: the data set.
      request: the batch.
      rows: places in it, int [n].
      seed: of the run.
      out: takes the images, uint8 [n, h, w, c].
    """
    split, size = split_of(stream.source, request.split), len(request.numbers)
    draws = [None] * len(rows)
    if request.name and stream.crop == "resized":
        random = generator(seed, f"{request.name}/crop", request.step)
        draws = random.random((size, *DRAWS))[rows]

    def read(row: int) -> Example | UnreadableImage:
        try:
            return split[int(request.numbers[row])]
        except UnreadableImage as error:
            return error

    images = np.empty((len(rows), *stream.shape), np.uint8) if out is None else out
    labels, weight = np.empty(len(rows), np.int32), np.ones(len(rows), np.float32)
    skipped: list[str] = []
    # All files first: reading and decoding in turn would fill the core's caches with the other.
    for i, (row, first) in enumerate([(row, read(row)) for row in rows]):
        # An unreadable image is replaced by the next one of the global batch.
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
            raise UserError(f"a whole batch of {stream.source.title} is unreadable: {reason}")
        if example.label < 0:
            raise UserError(f"{example.name} has no label, so it cannot be trained on")
        images[i], labels[i] = pixels.reshape(stream.shape), example.label
    if request.weight is not None:
        weight *= request.weight[rows]
    return Rows(images, labels, weight, tuple(skipped))


def _pixels(stream: Stream, example: Example, draws: np.ndarray | None) -> np.ndarray:
    channels, size = stream.shape[2], stream.shape[0]
    if stream.crop == "padded":
        image = decode(example, channels)
        return sized(image, stream.image_size, stream.shape, stream.source.title)
    if draws is None:
        return centre_crop(example, channels, size)
    return random_resized_crop(example, channels, size, draws)


@dataclasses.dataclass(frozen=True, eq=False)
class _Chunks:
    """The source of a Grain pipeline: pieces of requests, whose images are left in the ring."""

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
        """The rest of the `Rows` of a piece."""
        request, piece = divmod(k, self.per_request)
        rows = self.rows[piece * _CHUNK : (piece + 1) * _CHUNK]
        out = self.ring.to_write(k)[: len(rows)]
        return read_rows(
            self.stream, self.schedule[self.start + request], rows, self.schedule.seed, out
        )[1:]


def _empty(shape: tuple[int, ...]) -> np.ndarray:
    """Memory for a batch, uint8."""
    size = math.prod(shape)
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    return memory[first : first + size].reshape(shape)


def _begin_worker(number: int, count: int) -> None:
    """Signals are for the main process, which ends its workers; they end, too, if it is killed."""
    del number, count
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    cv2.setNumThreads(1)
    main = multiprocessing.parent_process()

    def watch() -> None:
        if main is not None:
            main.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclasses.dataclass(frozen=True, eq=False)
class _Labels:
    """The source of a Grain pipeline: the labels of every `parts`-th thousand of examples."""

    split: Split
    part: int
    parts: int

    def __len__(self) -> int:
        chunks = -(-len(self.split) // _LABELS)
        return len(range(self.part, chunks, self.parts))

    def __getitem__(self, k: int) -> tuple[int, np.ndarray]:
        start = (self.part + k * self.parts) * _LABELS
        numbers = range(start, min(start + _LABELS, len(self.split)))
        return start, np.array([self.split[i].label for i in numbers], np.int32)


def read_labels(stream: Stream, part: int, parts: int) -> np.ndarray:
    """The labels of a share of the training examples, int32 [n]; 0 where others read them.

    Where the source does not list its labels, every example has to be read for them.

    Args:
      stream: the data set.
      part: of those who share the work, this one's number, from 0.
      parts: how many there are.
    """
    split = stream.source.train
    found = np.zeros(len(split), np.int32)
    if split.labels is not None:
        return split.labels if part == 0 else found
    chunks = _Labels(split, part, parts)
    for start, values in _read(chunks, min(stream.workers, len(chunks))):
        found[start : start + len(values)] = values
    return found
