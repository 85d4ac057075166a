"""Which examples, in which order: pure functions of a seed, so every host gets the same answer."""

import zlib

import numpy as np

from drnas_jax.errors import UserError


def search_split(
    labels: np.ndarray, train_fraction: float, alpha_fraction: float, by_class: bool, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the training examples of the two levels of the search.

    Args:
      labels: of all examples, int [n].
      train_fraction: the share of them for the weights; rounded to whole examples.
      alpha_fraction: the share for alpha, likewise; 0: all the others.
      by_class: whether each class gives these shares of its examples (as for ImageNet in the DrNAS
        paper), or all examples together.
      seed: of the draw.

    Returns:
      The example numbers for the weights and those for alpha, int32, disjoint, the latter in
      random order.

    Raises:
      UserError: one of the two would be empty.
    """
    random, n = generator(seed, "search split"), len(labels)
    groups = (
        [np.flatnonzero(labels == c) for c in np.unique(labels)] if by_class else [np.arange(n)]
    )
    weights, alpha = [], []
    for group in groups:
        order = random.permutation(group).astype(np.int32)
        first = round(len(group) * train_fraction)
        count = round(len(group) * alpha_fraction) if alpha_fraction else len(group) - first
        weights.append(order[:first])
        alpha.append(order[first : first + count])
    for_weights, for_alpha = np.concatenate(weights), np.concatenate(alpha)
    if by_class:  # validation reads them in this order, by batches that normalise themselves
        for_alpha = random.permutation(for_alpha)
    if not len(for_weights) or not len(for_alpha):
        raise UserError(
            f"search.train_fraction is {train_fraction} and search.alpha_fraction "
            f"{alpha_fraction}: of {n} training images in {len(groups)} groups they give "
            f"{len(for_weights)} to the weights and {len(for_alpha)} to alpha; both need one"
        )
    return for_weights, for_alpha


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
    random = generator(seed, stream, epoch)
    total = steps * batch_size
    chain = [random.permutation(n) for _ in range(-(-total // n))]
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
      same shape: 1, or 0 where the examples come again, from the first on, to fill the last batch.
      Different ones, since a supernet normalises by the batch, and copies of one would bend that.
    """
    batches = -(-n // batch_size)
    index = np.arange(batches * batch_size, dtype=np.int32).reshape(batches, batch_size)
    return index % np.int32(max(n, 1)), (index < n).astype(np.float32)


def generator(seed: int, stream: str, *numbers: int) -> np.random.Generator:
    """Random numbers of a named stream on the host: the same on every host and after a resume.

    Args:
      seed: of the run.
      stream: names the use; streams of different names are independent.
      numbers: a place within the stream, such as the epoch.
    """
    key = (zlib.crc32(stream.encode()), *numbers)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))
