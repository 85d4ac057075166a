"""The selection rule that samples cells and takes the one of best accuracy in the supernet.

If alpha stays frozen at its initial value, this is random search with parameter sharing (RSPS).
"""

import dataclasses
from typing import Any

import numpy as np

from drnas_jax.config import at_least, field
from drnas_jax.rules.base import Continue, Rule, Stop, View
from drnas_jax.spaces.base import one_hot


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the rule."""

    candidates: int = field(50, "Number of cells drawn after the last epoch.", at_least(1))
    batches: int = field(16, "Number of validation batches to measure each on.", at_least(1))


class Sample:
    """The rule that samples cells from the mixing distribution after the last epoch."""

    def __init__(self, options: Options):
        self.options = options

    def decide(self, view: View, memory: dict[str, Any]) -> Continue | Stop:
        """Stops with the best sampled cell after the last epoch."""
        if view.epoch < view.epochs:
            return Continue()
        cells = view.draw(self.options.candidates)
        view.say(f"measuring {len(cells)} candidates in the supernet")
        mixes = (one_hot(dict(view.spec.cells), cell) for cell in cells)
        accuracies = [view.accuracy(mix, self.options.batches) for mix in mixes]
        best = int(np.argmax(accuracies))
        view.say(
            f"best candidate: {100 * accuracies[best]:.2f} % on validation images, "
            f"{view.space.describe(cells[best])}"
        )
        return Stop(cells[best])


def create(options: Options) -> Rule:
    """Returns the rule that samples cells."""
    return Sample(options)
