"""Which examples, in which order: pure functions of a seed, so every host gets the same answer."""

import zlib

import numpy as np

from drnas_jax.errors import UserError


def search_split(n: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides the training examples at random between the two levels of the search.

    Args:
      n: number of examples.
      fraction: the share of them for the weights, between 0 and 1; rounded to whole examples.
      seed: of the permutation.

    Returns:
      The example numbers for the weights and those for alpha, int32: disjoint, together all n.

    Raises:
      UserError: one of the two would be empty.
    """
    count = round(n * fraction)
    if not 0 < count < n:
        raise UserError(
            f"search.train_fraction is {fraction}: of {n} training images it leaves {count} for "
            f"the weights and {n - count} for alpha; both need at least one"
        )
    order = _generator(seed, "search split").permutation(n).astype(np.int32)
    return order[:count], order[count:]


def epoch_order(
    n: int, batch_size: int, steps: int, seed: int, stream: str, epoch: int
) -> np.ndarray:
    """The examples of one epoch: whole permutations, one after the other, cut into batches.

    No example comes twice while steps * batch_size <= n; beyond that, none comes a second time
    before all have come once.

    Args:
      n: number of examples to choose from, at least 1.
      batch_size: examples a step.
      steps: steps of the epoch.
      seed: of the run.
      stream: names the use; streams of different names are independent.
      epoch: its number; each has its own order.

    Returns:
      Numbers below n, int32 [steps, batch_size].
    """
    generator = _generator(seed, stream, epoch)
    total = steps * batch_size
    chain = [generator.permutation(n) for _ in range(-(-total // n))]
    order = np.concatenate([np.empty(0, int), *chain])[:total]
    return order.astype(np.int32).reshape(steps, batch_size)


def steps_per_epoch(n: int, batch_size: int, what: str) -> int:
    """The full batches in n examples.

    Args:
      n: size of the split.
      batch_size: examples a step, over all devices.
      what: the split, in words, for the error message.

    Raises:
      UserError: the split is smaller than a batch.
    """
    if n < batch_size:
        raise UserError(
            f"{what} has {n} images, less than one batch of {batch_size}: "
            "choose a smaller batch_size or more images"
        )
    return n // batch_size


def eval_batches(n: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Batches of one fixed size that hold every example exactly once.

    Returns:
      Example numbers, int32 [batches, batch_size], in order, and their weights, float32 of the
      same shape: 1, or 0 where example 0 stands in to fill the last batch.
    """
    batches = -(-n // batch_size)
    index = np.arange(batches * batch_size, dtype=np.int32).reshape(batches, batch_size)
    real = index < n
    return np.where(real, index, np.int32(0)), real.astype(np.float32)


def _generator(seed: int, stream: str, *numbers: int) -> np.random.Generator:
    key = (zlib.crc32(stream.encode()), *numbers)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))
