"""Whether the supernet orders cells as the benchmark does."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from scipy.stats import kendalltau

from drnas_jax.genotype import Genotype, from_cells


def agreement(
    history: Iterable[Mapping[str, Any]], space: str, accuracy: Callable[[Genotype], float]
) -> list[tuple[int, float]]:
    """Kendall's tau between the supernet's validation accuracies and the true ones.

    Args:
      history: the lines of search/history.jsonl; `search.ranked_cells` asks for the measurement.
      space: the name of the search space.
      accuracy: the true one of a cell, in percent.

    Returns:
      (epoch, tau) of each epoch with a measurement in which neither side calls all cells equal.
    """
    found = []
    for line in history:
        if ranked := line.get("ranked"):
            cells = [from_cells(space, one["cells"], "history.jsonl") for one in ranked]
            tau = kendalltau([one["accuracy"] for one in ranked], list(map(accuracy, cells)))
            if not math.isnan(tau.statistic):
                found.append((line["epoch"], float(tau.statistic)))
    return found
