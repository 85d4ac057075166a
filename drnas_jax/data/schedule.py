"""All batches of a phase, in order, as a pure function of the seed: what worker processes read."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from drnas_jax.data.splits import epoch_order, eval_batches


class Request(NamedTuple):
    """A batch to read.

    Attributes:
      split: 'train' or 'test'.
      numbers: of the examples, int32 [b].
      weight: in evaluation, float32 [b]: 0 where an example only fills the batch. Else None.
      name: in training, of the part, and so of the randomness of its crops. Else ''.
      step: in training, the number of the step, over all epochs.
    """

    split: str
    numbers: np.ndarray
    weight: np.ndarray | None
    name: str
    step: int


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """One of the batches that every training step takes.

    Attributes:
      name: of its use, and so of its randomness.
      index: the training examples to choose from, int32 [n].
      idle: epochs in which steps do without it.
    """

    name: str
    index: np.ndarray
    idle: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """A sequence of requests: in each epoch the parts of each step in turn, then an evaluation.

    A batch depends on the seed and its place alone, so that a run may go on anywhere, with any
    number of processes.

    Attributes:
      batch_size: global, over all devices.
      seed: of the run.
      parts: of each training step.
      epochs: of the phase.
      steps: in an epoch.
      evaluated: examples to judge after each epoch, int32 [n].
      split: whose examples all numbers mean, 'train' or 'test'.
    """

    batch_size: int
    seed: int
    parts: tuple[Part, ...] = ()
    epochs: int = 1
    steps: int = 0
    evaluated: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int32))
    split: str = "train"

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, k: int) -> Request:
        epoch = int(np.searchsorted(self._starts, k, "right")) - 1
        at, parts = k - self._starts[epoch], self.parts_in(epoch)
        if at >= self.steps * len(parts):
            return self._evaluation(at - self.steps * len(parts))
        step, part = at // len(parts), parts[at % len(parts)]
        order = _order(len(part.index), self.batch_size, self.steps, self.seed, part.name, epoch)
        numbers = part.index[order[step]]
        return Request(self.split, numbers, None, part.name, epoch * self.steps + step)

    def position(self, epoch: int, done: int) -> int:
        """The number of the first request after so many steps of an epoch."""
        return self._starts[epoch] + done * len(self.parts_in(epoch))

    def parts_in(self, epoch: int) -> list[Part]:
        """The parts of the steps of an epoch."""
        return [part for part in self.parts if epoch not in part.idle]

    @property
    def evaluation_batches(self) -> int:
        """In each epoch."""
        return -(-len(self.evaluated) // self.batch_size)

    @functools.cached_property
    def _starts(self) -> list[int]:
        """The first request of each epoch, and their number."""
        lengths = [
            self.steps * len(self.parts_in(epoch)) + self.evaluation_batches
            for epoch in range(self.epochs)
        ]
        return np.cumsum([0, *lengths]).tolist()

    def _evaluation(self, batch: int) -> Request:
        index, weight = eval_batches(len(self.evaluated), self.batch_size)
        return Request(self.split, self.evaluated[index[batch]], weight[batch], "", 0)


# Two streams, and the next epoch begins while the last one ends.
_order = functools.lru_cache(maxsize=4)(epoch_order)
