"""From a data set to the batches of compiled steps: as example numbers, or as streamed images.

A data set in memory lies on every device, a batch is example numbers, and the input costs nothing.
A streamed one is read by worker processes, and a batch is its images, as uint8.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding

from drnas_jax.data import (
    Dataset,
    Schedule,
    Stream,
    augment_batch,
    color_jitter,
    normalise,
    stream_batches,
)
from drnas_jax.training import devices
from drnas_jax.training.devices import AXIS, REPLICATED, SHARDED, STEPS, data_parallel
from drnas_jax.training.random_keys import stream_key

_AHEAD = 2  # streamed batches that wait on the devices


class Images(NamedTuple):
    """Images with their labels.

    Raw: uint8 [n, h, w, c] and int32 [n]. A batch: one device's shard, float32 [b, h, w, c].
    """

    images: Any
    labels: Any


# What a step is given: example numbers int32 [b] of a data set in memory, or raw Images.
Batch = jax.Array | Images


@dataclasses.dataclass(frozen=True)
class Feed:
    """How raw images become a batch, on the device.

    Attributes:
      mean, std: of each channel in 0..1.
      crop_padding, flip, cutout: see `data.augment_batch`.
      jitter: see `data.color_jitter`; () for none.
      dtype: of the images of a batch, and so of all that is computed from them.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int
    flip: bool
    cutout: int
    jitter: tuple[float, ...]
    dtype: str = "float32"

    def augmented(
        self, raw: Images | None, batch: Batch, name: str, seed: jax.Array, step: jax.Array
    ) -> Images:
        """The examples of this device's shard, augmented for training.

        Args:
          raw: the data set in memory, or None.
          batch: this device's shard.
          name: of the random stream.
          seed: of the run.
          step: within it.
        """
        images, labels = _gather(raw, batch)
        key, count = stream_key(seed, name, step), labels.size
        position = lax.axis_index(AXIS) * count + jnp.arange(count)
        if self.jitter:
            images = color_jitter(
                stream_key(seed, f"{name}/jitter", step), position, images, self.jitter
            )
        images = augment_batch(
            key,
            position,
            images,
            jnp.array(self.mean),
            jnp.array(self.std),
            self.crop_padding,
            self.flip,
            self.cutout,
        )
        return Images(images.astype(self.dtype), labels)

    def plain(self, raw: Images | None, batch: Batch) -> Images:
        """Those examples, only normalised."""
        images, labels = _gather(raw, batch)
        images = normalise(images, jnp.array(self.mean), jnp.array(self.std))
        return Images(images.astype(self.dtype), labels)


def _gather(raw: Images | None, batch: Batch) -> Images:
    if isinstance(batch, Images):
        return batch
    assert raw is not None
    return Images(raw.images[batch], raw.labels[batch])


def make_feed(
    dataset: Dataset | Stream,
    crop_padding: int,
    cutout: int,
    dtype: str = "float32",
    jitter: tuple[float, ...] = (),
) -> Feed:
    """The feed of a data set, with its own mean and standard deviation."""
    mean, std = (tuple(map(float, values)) for values in (dataset.mean, dataset.std))
    if isinstance(dataset, Stream) and dataset.crop == "resized":
        crop_padding = 0  # the crop is behind it
    return Feed(mean, std, crop_padding, dataset.flip, cutout, jitter, dtype)


class Reader:
    """The batches of a schedule, one after the other, on the devices.

    Args:
      dataset: where they come from.
      schedule: what to read.
      mesh: the devices.

    Attributes:
      raw: images and labels of a data set in memory, a copy on every device; of a streamed one
        None. The first argument of every program after the state.
      skipped: which unreadable images were left out or replaced in this process so far, each once.
    """

    def __init__(self, dataset: Dataset | Stream, schedule: Schedule, mesh: Mesh):
        self._dataset, self._schedule, self._mesh = dataset, schedule, mesh
        self.raw: Images | None = None
        self.skipped: dict[str, None] = {}  # in the order of their finding
        self._whole = schedule.steps  # how many steps whole dispatches must make
        if isinstance(dataset, Dataset):
            self.skipped.update(dict.fromkeys(dataset.skipped))
            arrays = dataset.split(schedule.split)
            self.raw = devices.place(Images(*arrays), mesh, REPLICATED)
        self._at = 0  # the request that the open iterator gives next
        self._open: Iterator[tuple[Any, Any]] | None = None

    @property
    def images(self) -> int:
        """Training images of the data set."""
        return self._dataset.count

    @property
    def fingerprint(self) -> int:
        """Of the data set."""
        return self._dataset.fingerprint

    def go_on(self, step: int) -> None:
        """Training begins after this step of the phase.

        What is left of its epoch must be whole dispatches too, also where the steps before it ran
        on other devices, one by one.
        """
        self._whole = math.gcd(self._schedule.steps, step)

    @property
    def dispatch(self) -> int:
        """Steps that run in one dispatch."""
        if self.raw is None:
            return 1
        return devices.steps_per_dispatch(self._mesh, self._whole)

    def training(self, epoch: int, done: int) -> Iterator[tuple[Batch, ...]]:
        """The batches [steps, b] of each dispatch of an epoch, after `done` steps."""
        parts = len(self._schedule.parts_in(epoch))
        position = self._schedule.position(epoch, done)
        for _ in range(done, self._schedule.steps, self.dispatch):
            batches = [batch for batch, _ in self._take(position, self.dispatch * parts)]
            position += len(batches)
            yield tuple(self._stacked(batches[part::parts]) for part in range(parts))

    def evaluation(self, epoch: int = 0) -> Iterator[tuple[Batch, jax.Array]]:
        """The batches of the evaluation after an epoch, and their weights, float32 [b]."""
        first = self._schedule.position(epoch, self._schedule.steps)
        for batch in range(self._schedule.evaluation_batches):
            yield from self._take(first + batch, 1)

    def abstract(self, epoch: int) -> tuple[Any, ...]:
        """The shapes and shardings of what `training` gives, to compile for."""
        shape = self._dataset.shape if self.raw is None else None
        size = (self.dispatch, self._schedule.batch_size)
        batch = abstract_batch(size, shape, self._mesh)
        return (batch,) * len(self._schedule.parts_in(epoch))

    def close(self) -> None:
        """Ends worker processes, if there are any."""
        if isinstance(self._open, Generator):
            self._open.close()
        self._open = None

    def _take(self, position: int, count: int) -> list[tuple[Any, Any]]:
        if self._open is None or position != self._at:
            self.close()
            resident = self.raw is not None
            self._open = self._numbers(position) if resident else self._streamed(position)
        self._at = position + count
        return [next(self._open) for _ in range(count)]

    def _stacked(self, batches: list[Any]) -> Batch:
        if self.raw is None:
            return batches[0]
        return devices.place(np.stack(batches), self._mesh, STEPS)

    def _numbers(self, start: int) -> Iterator[tuple[Any, Any]]:
        for k in range(start, len(self._schedule)):
            request = self._schedule[k]
            if request.weight is None:
                yield request.numbers, None
            else:
                yield devices.place((request.numbers, request.weight), self._mesh, SHARDED)

    def _streamed(self, start: int) -> Generator[tuple[Any, Any], None, None]:
        size = self._schedule.batch_size
        mesh, rows = self._mesh, devices.local_rows(self._mesh, size)
        assert isinstance(self._dataset, Stream)
        reader = stream_batches(self._dataset, self._schedule, start, rows)
        waiting: collections.deque[tuple[Any, Any]] = collections.deque()
        try:
            for request, read in reader:
                self.skipped.update(dict.fromkeys(read.skipped))
                batch, weight = Images(read.images, read.labels), None
                if request.weight is None:
                    batch = devices.place_rows(_with_step(batch), mesh, STEPS, size)
                else:
                    batch, weight = devices.place_rows((batch, read.weight), mesh, SHARDED, size)
                waiting.append((batch, weight))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft()
            yield from waiting
        finally:
            reader.close()


def _with_step(batch: Images) -> Images:
    return Images(*(array[None] for array in batch))


def abstract_batch(size: tuple[int, int], shape: tuple[int, int, int] | None, mesh: Mesh) -> Any:
    """What a training program takes for a batch.

    Args:
      size: steps in a dispatch, and examples in a global batch.
      shape: of an image, h, w, c, where batches are streamed; None: they are example numbers.
      mesh: the devices.
    """

    def array(dtype: str, *rest: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*size, *rest), dtype, sharding=NamedSharding(mesh, STEPS))

    return array("int32") if shape is None else Images(array("uint8", *shape), array("int32"))


def step_program(step: Callable[..., Any], mesh: Mesh, parts: int, donate: bool = True) -> Any:
    """Compiles a training step that may run several times in one dispatch.

    Args:
      step: (state, raw, *batches [b]) -> state, of one device's shard.
      mesh: the devices.
      parts: how many batches a step takes.
      donate: whether the result takes the state's memory.

    Returns:
      A jitted (state, raw, *batches [steps, b]) -> state.
    """

    def several(state: Any, raw: Images | None, *batches: Batch) -> Any:
        if jax.tree.leaves(batches)[0].shape[0] == 1:
            return step(state, raw, *jax.tree.map(lambda rows: rows[0], batches))
        return lax.scan(lambda carry, rows: (step(carry, raw, *rows), None), state, batches)[0]

    specs = (REPLICATED, REPLICATED, *(STEPS,) * parts)
    return data_parallel(several, mesh, specs, donate=(0,) if donate else ())


def sum_program(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Compiles an evaluation: (state, raw, batch [b], weight [b]) -> sums over all devices."""

    def summed(*args: Any) -> Any:
        return lax.psum(function(*args), AXIS)

    return data_parallel(summed, mesh, (REPLICATED, REPLICATED, SHARDED, SHARDED))
