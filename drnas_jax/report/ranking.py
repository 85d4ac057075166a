"""The agreement of the supernet's ranking of cells with that of the true accuracies."""

import math
from collections.abc import Callable, Iterable

from scipy.stats import kendalltau

from drnas_jax.genotype import Genotype
from drnas_jax.report.history import Epoch


def agreement(
    history: Iterable[Epoch], accuracy: Callable[[Genotype], float | None]
) -> dict[int, float]:
    """Computes Kendall's tau between validation accuracies in the supernet and true accuracies.

    Args:
      history: Epochs of a search with `search.ranked_cells`.
      accuracy: Function from a cell to its true accuracy in percent, or None if it is unknown.

    Returns:
      Tau by epoch, from -1 to 1. An epoch is left out if it has fewer than two cells of known
      accuracy, or if all of them are equal on one side.
    """
    taus = {}
    for line in history:
        pairs = [
            (estimate, true)
            for cell, estimate in line.ranked
            if (true := accuracy(cell)) is not None
        ]
        if len(pairs) > 1:
            tau = kendalltau(*zip(*pairs, strict=True)).statistic
            if not math.isnan(tau):
                taus[line.epoch] = float(tau)
    return taus
