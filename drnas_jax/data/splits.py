"""The choice and order of examples, as pure functions of a seed that are equal on every host."""

import numpy as np

from drnas_jax.errors import UserError
from drnas_jax.training.random_keys import host_generator


def search_split(
    labels: np.ndarray, train_fraction: float, alpha_fraction: float, by_class: bool, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the training examples for the weights and those for the architecture parameters.

    Args:
      labels: Labels of all examples, int [n].
      train_fraction: Share of the examples for the weights, rounded to whole examples.
      alpha_fraction: Share for the architecture parameters, rounded as well; 0 for all the others.
      by_class: Whether each class gives these shares of its examples (as for ImageNet in the DrNAS
        paper), or all examples together.
      seed: Seed of the draw.

    Returns:
      Indices of the examples for the weights and of those for the architecture parameters, int32,
      disjoint, the latter in random order.

    Raises:
      UserError: One of the two would be empty.
    """
    random, n = host_generator(seed, "search split"), len(labels)
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
    if by_class:  # validation reads them in this order, in batches that normalise themselves
        for_alpha = random.permutation(for_alpha)
    if not len(for_weights) or not len(for_alpha):
        raise UserError(
            f"search.train_fraction is {train_fraction} and search.alpha_fraction "
            f"{alpha_fraction}: of {n} training images in {len(groups)} groups they give "
            f"{len(for_weights)} to the weights and {len(for_alpha)} to alpha; choose shares that "
            "give at least one to both"
        )
    return for_weights, for_alpha


def epoch_order(
    n: int, batch_size: int, steps: int, seed: int, stream: str, epoch: int
) -> np.ndarray:
    """Returns the examples of one epoch: whole permutations in sequence, cut into batches.

    No example comes twice while steps * batch_size <= n; beyond that, none comes a second time
    before all have come once.

    Args:
      n: Number of examples to choose from, at least 1.
      batch_size: Number of examples in a batch.
      steps: Number of steps in the epoch.
      seed: Seed of the run.
      stream: Name of the random stream; streams of different names are independent.
      epoch: Number of the epoch; each has its own order.

    Returns:
      Indices below n, int32 [steps, batch_size].
    """
    random = host_generator(seed, stream, epoch)
    total = steps * batch_size
    chain = [random.permutation(n) for _ in range(-(-total // n))]
    order = np.concatenate([np.empty(0, int), *chain])[:total]
    return order.astype(np.int32).reshape(steps, batch_size)


def steps_per_epoch(n: int, batch_size: int, what: str) -> int:
    """Returns the number of full batches in n examples.

    Args:
      n: Number of examples in the split.
      batch_size: Number of examples in a global batch, over all devices.
      what: Name of the split for the error message.

    Raises:
      UserError: The split is smaller than a batch.
    """
    if n < batch_size:
        raise UserError(
            f"{what} has {n} images, fewer than one batch of {batch_size}: "
            "choose a smaller batch_size or more images"
        )
    return n // batch_size


def eval_batches(n: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides n examples into batches of one fixed size that hold every example exactly once.

    Returns:
      Indices of the examples, int32 [batches, batch_size], in order, and their weights, float32 of
      the same shape: 1, or 0 for the examples that fill the last batch, which are those from the
      first on. The padding examples must differ: a supernet normalises by the statistics of the
      batch, and copies of one image would bias them.
    """
    batches = -(-n // batch_size)
    index = np.arange(batches * batch_size, dtype=np.int32).reshape(batches, batch_size)
    return index % np.int32(max(n, 1)), (index < n).astype(np.float32)
