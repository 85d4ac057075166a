"""All batches of a phase, in order, as a pure function of the seed: what worker processes read."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from drnas_jax.data.splits import epoch_order, eval_batches


class Request(NamedTuple):
    """A batch to read.

    Attributes:
      split: Split to read from, 'train' or 'test'.
      indices: Indices of the examples in that split, int32 [b].
      weight: None in training; in evaluation float32 [b], 0 for examples that only fill the batch.
      name: Name of the `Subset` in training, which decides the random crops; '' in evaluation.
      step: Number of the training step over all epochs; 0 in evaluation.
    """

    split: str
    indices: np.ndarray
    weight: np.ndarray | None
    name: str
    step: int


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """The training examples that one of the batches of each step is drawn from.

    Attributes:
      name: Name of its random stream, which decides the order of its examples.
      index: Indices of its examples in the training split, int32 [n].
      idle: Epochs in which steps take no batch of it.
    """

    name: str
    index: np.ndarray
    idle: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """A sequence of requests: in each epoch the training steps, then an evaluation.

    A step takes one batch of each subset that is not idle. A batch depends only on the seed and its
    position in the sequence, so a run can resume anywhere, with any number of processes.

    Attributes:
      batch_size: Number of examples in a global batch, over all devices.
      seed: Seed of the run.
      subsets: Subsets that each training step takes a batch of. The first one is never idle.
      epochs: Number of epochs in the phase.
      steps: Number of training steps in an epoch.
      evaluated: Indices of the examples to evaluate after each epoch, int32 [n].
      split: Split that all indices refer to, 'train' or 'test'.
    """

    batch_size: int
    seed: int
    subsets: tuple[Subset, ...] = ()
    epochs: int = 1
    steps: int = 0
    evaluated: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int32))
    split: str = "train"

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, k: int) -> Request:
        epoch = int(np.searchsorted(self._starts, k, "right")) - 1
        offset, subsets = k - self._starts[epoch], self.subsets_in(epoch)
        if offset >= self.steps * len(subsets):
            return self._evaluation(offset - self.steps * len(subsets))
        step, subset = offset // len(subsets), subsets[offset % len(subsets)]
        order = _order(
            len(subset.index), self.batch_size, self.steps, self.seed, subset.name, epoch
        )
        indices = subset.index[order[step]]
        return Request(self.split, indices, None, subset.name, epoch * self.steps + step)

    def position(self, epoch: int, done: int) -> int:
        """Returns the number of the first request after `done` steps of an epoch."""
        return self._starts[epoch] + done * len(self.subsets_in(epoch))

    def subsets_in(self, epoch: int) -> list[Subset]:
        """Returns the subsets that the steps of an epoch take batches of."""
        return [subset for subset in self.subsets if epoch not in subset.idle]

    @property
    def evaluation_batches(self) -> int:
        """Number of batches in the evaluation of each epoch."""
        return -(-len(self.evaluated) // self.batch_size)

    @functools.cached_property
    def _starts(self) -> list[int]:
        """Number of the first request of each epoch, then the number of all requests."""
        lengths = [
            self.steps * len(self.subsets_in(epoch)) + self.evaluation_batches
            for epoch in range(self.epochs)
        ]
        return np.cumsum([0, *lengths]).tolist()

    def _evaluation(self, batch: int) -> Request:
        index, weight = eval_batches(len(self.evaluated), self.batch_size)
        return Request(self.split, self.evaluated[index[batch]], weight[batch], "", 0)


# Two subsets, and the next epoch is read ahead while the last one ends.
_order = functools.lru_cache(maxsize=4)(epoch_order)
