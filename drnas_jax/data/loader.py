"""The way from a data set to batches on devices: as indices of examples, or as streamed images.

A data set in memory has a copy on every device, a batch is indices, and the input costs nothing. A
streamed data set is read by worker processes, and a batch is its images, as uint8.
"""

import collections
import functools
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from drnas_jax.data.dataset import ImageDataset, Rows
from drnas_jax.data.preprocess import Images
from drnas_jax.data.schedule import Request, Schedule
from drnas_jax.training import devices
from drnas_jax.training.devices import REPLICATED, SHARDED, STEPS
from drnas_jax.training.programs import Dispatch

_AHEAD = 2  # batches that are prepared before they are needed; streamed ones wait on the devices


class Loader:
    """Puts the batches of a schedule onto devices, one after the other.

    Nothing is put there before it is asked for: the devices need not exist if only `abstract_raw`
    and `abstract_dispatch` are used.

    Args:
      dataset: Data set that the batches come from.
      schedule: What to read.
      mesh: Device mesh with the single axis `data`.
    """

    def __init__(self, dataset: ImageDataset, schedule: Schedule, mesh: Mesh):
        self._dataset, self._schedule, self._mesh = dataset, schedule, mesh
        self._arrays = dataset.arrays(schedule.split)
        self._next = 0  # number of the request that the open generator yields next
        self._open: Generator[tuple[Any, Any], None, None] | None = None
        self._shared: Loader | None = None

    def share_raw(self, other: "Loader") -> None:
        """Takes `raw` from another loader of the same data set, so that it is placed only once."""
        self._shared = other

    @property
    def batch_size(self) -> int:
        """Number of examples in a global batch."""
        return self._schedule.batch_size

    @property
    def count(self) -> int:
        """Number of training examples in the data set."""
        return self._dataset.count

    @property
    def fingerprint(self) -> int:
        """Fingerprint of the data set, see `Source`."""
        return self._dataset.fingerprint

    @property
    def skipped(self) -> dict[str, None]:
        """Messages about the unreadable images that were left out so far, see `ImageDataset`."""
        return self._dataset.skipped

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
        if self._shared is not None:
            return self._shared.raw
        return devices.place(Images(*self._arrays), self._mesh, REPLICATED)

    @property
    def abstract_raw(self) -> Images | None:
        """Shapes and shardings of `raw`, for compiling without devices."""
        if self._arrays is None:
            return None
        return Images(*(self._abstract(a.shape, a.dtype, REPLICATED) for a in self._arrays))

    @property
    def abstract_dispatch(self) -> Dispatch:
        """Shapes and shardings of what `training` yields, for compiling."""
        size = (self.steps_per_dispatch, self._schedule.batch_size)
        batch: Any = self._abstract(size, np.int32, STEPS)  # of indices or labels
        if not self.in_memory:
            batch = Images(self._abstract((*size, *self._dataset.shape), np.uint8, STEPS), batch)
        subsets = len(self._schedule.subsets)
        steps = self._abstract((), np.int32, REPLICATED)
        return Dispatch((batch,) * subsets, steps, self._abstract((subsets,), bool, REPLICATED))

    @property
    def abstract_evaluation(self) -> tuple[Any, jax.ShapeDtypeStruct]:
        """Shapes and shardings of what `evaluation` yields, for compiling."""
        size = self._schedule.batch_size
        batch: Any = self._abstract((size,), np.int32, SHARDED)  # of indices or labels
        if not self.in_memory:
            batch = Images(self._abstract((size, *self._dataset.shape), np.uint8, SHARDED), batch)
        return batch, self._abstract((size,), np.float32, SHARDED)

    @property
    def steps_per_dispatch(self) -> int:
        """Largest number of training steps that run in one dispatch."""
        steps = self._schedule.steps
        return devices.steps_per_dispatch(self._mesh, steps) if self.in_memory else 1

    def training(self, epoch: int, done: int) -> Iterator[tuple[int, Dispatch]]:
        """Yields the number of steps and the input of each dispatch of an epoch.

        Args:
          epoch: Number of the epoch, from 0.
          done: Number of steps of the epoch that are already done.
        """
        names = [subset.name for subset in self._schedule.subsets_in(epoch)]
        subsets = [subset.name for subset in self._schedule.subsets]
        idle = np.array([name not in names for name in subsets])
        position, flags = self._schedule.position(epoch, done), dict[int, Any]()
        while done < self._schedule.steps:
            steps = min(self.steps_per_dispatch, self._schedule.steps - done)
            read = [batch for batch, _ in self._take(position, steps * len(names))]
            position, done = position + len(read), done + steps
            # The batches of a step follow one another.
            stacked = {n: self._stacked(read[i :: len(names)]) for i, n in enumerate(names)}
            batches = tuple(stacked.get(name, stacked[subsets[0]]) for name in subsets)
            if steps not in flags:  # twice in an epoch at most
                flags[steps] = devices.replicate((np.int32(steps), idle), self._mesh)
            yield steps, Dispatch(batches, *flags[steps])

    def evaluation(self, epoch: int = 0) -> Iterator[tuple[Any, jax.Array]]:
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

    def _stacked(self, batches: Sequence[Any]) -> Any:
        """Returns the batches of one subset in a dispatch, [steps, b]."""
        if not self.in_memory:  # one step in a dispatch, and already on the devices
            return batches[0]
        filling = [batches[-1]] * (self.steps_per_dispatch - len(batches))
        return devices.place(np.stack([*batches, *filling]), self._mesh, STEPS)

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
        self._dataset.skipped.update(dict.fromkeys(read.skipped))
        size, batch = self._schedule.batch_size, Images(read.images, read.labels)
        if request.weight is None:
            one_step = Images(*(array[None] for array in batch))
            return devices.place_rows(one_step, self._mesh, STEPS, size), None
        return devices.place_rows((batch, read.weight), self._mesh, SHARDED, size)
