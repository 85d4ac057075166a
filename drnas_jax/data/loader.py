"""The way from a data set to batches on devices: as indices of examples, or as streamed images.

A data set in memory has a copy on every device, a batch is indices, and the input costs nothing. A
streamed data set is read by worker processes, and a batch is its images, as uint8.
"""

import collections
import functools
import math
from collections.abc import Generator, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from drnas_jax.data.dataset import ImageDataset, Rows
from drnas_jax.data.preprocess import Batch, Images
from drnas_jax.data.schedule import Request, Schedule
from drnas_jax.training import devices
from drnas_jax.training.devices import REPLICATED, SHARDED, STEPS

_AHEAD = 2  # batches that are prepared before they are needed; streamed ones wait on the devices


class Loader:
    """Puts the batches of a schedule onto devices, one after the other.

    Nothing is put there before it is asked for: the devices need not exist if only `abstract_raw`,
    `abstract_batch` and `abstract_batches` are used.

    Args:
      dataset: Data set that the batches come from.
      schedule: What to read.
      mesh: Device mesh with the single axis `data`.

    Attributes:
      skipped: Messages about the unreadable images that were left out or replaced in this process
        so far, each once, as the keys of a dict in order.
    """

    def __init__(self, dataset: ImageDataset, schedule: Schedule, mesh: Mesh):
        self._dataset, self._schedule, self._mesh = dataset, schedule, mesh
        self._arrays = dataset.arrays(schedule.split)
        self.skipped: dict[str, None] = dict.fromkeys(dataset.skipped)
        self._steps_left = schedule.steps  # steps that whole dispatches must make up
        self._next = 0  # number of the request that the open generator yields next
        self._open: Generator[tuple[Any, Any], None, None] | None = None

    @property
    def count(self) -> int:
        """Number of training examples in the data set."""
        return self._dataset.count

    @property
    def fingerprint(self) -> int:
        """Fingerprint of the data set, see `Source`."""
        return self._dataset.fingerprint

    @property
    def in_memory(self) -> bool:
        """Whether the data set is in memory, so that a batch is indices."""
        return self._arrays is not None

    @functools.cached_property
    def raw(self) -> Images | None:
        """Images and labels of a data set in memory, a copy on every device; None if streamed.

        This is the second argument of every program, after the state. The images are put onto the
        devices when it is first read.
        """
        if self._arrays is None:
            return None
        return devices.place(Images(*self._arrays), self._mesh, REPLICATED)

    @property
    def abstract_raw(self) -> Images | None:
        """Shapes and shardings of `raw`, for compiling without devices."""
        if self._arrays is None:
            return None
        return Images(*(self._abstract(a.shape, a.dtype, REPLICATED) for a in self._arrays))

    @property
    def abstract_batch(self) -> Any:
        """Shapes and shardings of the batches [steps, b] of one subset, for compiling."""
        size = (self.steps_per_dispatch, self._schedule.batch_size)
        indices_or_labels = self._abstract(size, np.int32, STEPS)
        if self.in_memory:
            return indices_or_labels
        images = self._abstract((*size, *self._dataset.shape), np.uint8, STEPS)
        return Images(images, indices_or_labels)

    def abstract_batches(self, epoch: int) -> tuple[Any, ...]:
        """Returns the shapes and shardings of what `training` yields in an epoch."""
        return (self.abstract_batch,) * len(self._schedule.subsets_in(epoch))

    def resume_after(self, step: int) -> None:
        """Lets training begin after a step of the phase.

        The rest of that step's epoch is divided into whole dispatches too, even if the steps before
        ran one by one, on other devices.
        """
        self._steps_left = math.gcd(self._schedule.steps, step)

    @property
    def steps_per_dispatch(self) -> int:
        """Number of training steps that run in one dispatch."""
        return devices.steps_per_dispatch(self._mesh, self._steps_left) if self.in_memory else 1

    def training(self, epoch: int, done: int) -> Iterator[tuple[Batch, ...]]:
        """Yields the batches [steps, b] of each dispatch of an epoch, one for each subset.

        Args:
          epoch: Number of the epoch, from 0.
          done: Number of steps of the epoch that are already done.
        """
        subsets, steps = len(self._schedule.subsets_in(epoch)), self.steps_per_dispatch
        position = self._schedule.position(epoch, done)
        for _ in range(done, self._schedule.steps, steps):
            batches = [batch for batch, _ in self._take(position, steps * subsets)]
            position += len(batches)
            yield tuple(self._stacked(batches[subset::subsets]) for subset in range(subsets))

    def evaluation(self, epoch: int = 0) -> Iterator[tuple[Batch, jax.Array]]:
        """Yields the batches [b] of the evaluation after an epoch, with weights, float32 [b]."""
        first = self._schedule.position(epoch, self._schedule.steps)
        for batch in range(self._schedule.evaluation_batches):
            yield from self._take(first + batch, 1)

    def close(self) -> None:
        """Ends worker processes, if there are any. Reading again starts new ones."""
        if self._open is not None:
            self._open.close()
        self._open = None

    def _abstract(
        self, shape: tuple[int, ...], dtype: Any, spec: PartitionSpec
    ) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self._mesh, spec))

    def _take(self, position: int, count: int) -> list[tuple[Any, Any]]:
        """Returns some batches and weights from a position on; a jump opens a new generator."""
        if self._open is None or position != self._next:
            self.close()
            self._open = self._read(position)
        self._next = position + count
        return [next(self._open) for _ in range(count)]

    def _stacked(self, batches: list[Any]) -> Batch:
        if not self.in_memory:  # one step in a dispatch, and already on the devices
            return batches[0]
        return devices.place(np.stack(batches), self._mesh, STEPS)

    def _read(self, start: int) -> Generator[tuple[Any, Any], None, None]:
        rows = devices.local_rows(self._mesh, self._schedule.batch_size)
        reading = self._dataset.batches(self._schedule, start, rows)
        waiting: collections.deque[tuple[Any, Any]] = collections.deque()
        try:
            for request, read in reading:
                waiting.append(
                    self._indices(request) if read is None else self._images(request, read)
                )
                if len(waiting) > _AHEAD:
                    yield waiting.popleft()
            yield from waiting
        finally:
            reading.close()

    def _indices(self, request: Request) -> tuple[Any, Any]:
        if request.weight is None:
            return request.indices, None  # put on the devices with those of the same dispatch
        return devices.place((request.indices, request.weight), self._mesh, SHARDED)

    def _images(self, request: Request, read: Rows) -> tuple[Any, Any]:
        self.skipped.update(dict.fromkeys(read.skipped))
        size, batch = self._schedule.batch_size, Images(read.images, read.labels)
        if request.weight is None:
            one_step = Images(*(array[None] for array in batch))
            return devices.place_rows(one_step, self._mesh, STEPS, size), None
        return devices.place_rows((batch, read.weight), self._mesh, SHARDED, size)
