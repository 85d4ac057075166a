"""Early stopping by skip connections (DARTS+, arXiv 1909.06035, criterion 1).

A search that overfits fills its cells with skip connections. The search stops when a normal cell
has more than a few of them, and returns the last genotype that did not.
"""

import dataclasses
from typing import Any

from drnas_jax.config import at_least, field
from drnas_jax.genotype import Genotype, from_json, to_json
from drnas_jax.rules.base import Continue, Rule, Stop, View


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the rule."""

    most: int = field(2, "Largest number of skip connections in a cell.", at_least(0))
    operation: str = field("skip_connect", "Name of the operation that is counted.")
    first_epoch: int = field(1, "First epoch whose genotype counts.", at_least(1))


class SkipConnections:
    """The rule that stops when a cell has too many skip connections."""

    def __init__(self, options: Options):
        self.options = options

    def decide(self, view: View, memory: dict[str, Any]) -> Continue | Stop:
        """Stops if the genotype exceeds the limit and an earlier one did not."""
        if view.epoch < self.options.first_epoch:
            return Continue()
        count = self.count(view.genotype)
        if count <= self.options.most:
            memory.update(epoch=view.epoch, genotype=to_json(view.genotype))
            return Continue()
        if not memory:  # no genotype that kept to the limit
            return Continue()
        reason = (
            f"a cell has {count} operations {self.options.operation}, more than "
            f"{self.options.most}; the result is the genotype of epoch {memory['epoch']}"
        )
        return Stop(from_json(memory["genotype"], "the rule's memory"), reason)

    def count(self, genotype: Genotype) -> int:
        """Returns the largest number of skip connections in a cell, without the cell `reduce`.

        Args:
          genotype: Genotype of any space. Only the DARTS spaces have a cell type `reduce`.
        """
        cells = [cell for cell_type, cell in genotype.cells if cell_type != "reduce"]
        names = ([name for node in cell for name, _ in node] for cell in cells)
        return max((each.count(self.options.operation) for each in names), default=0)


def create(options: Options) -> Rule:
    """Returns the rule of early stopping by skip connections."""
    return SkipConnections(options)
