"""Selection by perturbation (DARTS-PT, arXiv 2108.04392): what the supernet misses most stays.

The edges are decided one after another in random order, and the search trains in between. An
operation is measured by what the supernet's validation accuracy is without it: the operation whose
removal hurts most is kept. If nodes keep only some of their edges, the nodes follow in random
order: each loses the edge whose removal leaves the accuracy highest, until it has `keep` edges.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from drnas_jax.config import at_least, field
from drnas_jax.errors import UserError
from drnas_jax.rules.base import Continue, Fix, Rule, Stop, View
from drnas_jax.spaces.base import Cell, SupernetSpec
from drnas_jax.training.random_keys import host_generator

Choice = tuple[str, int, str | None]  # cell type, row of the edge, operation; see rules.base.Fix


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the rule."""

    first_epoch: int = field(
        0,
        "Epoch after which the first edge is decided; 0: so that the last epoch decides the last.",
        at_least(0),
    )
    interval: int = field(5, "Epochs between two decisions.", at_least(1))
    batches: int = field(
        0, "Validation batches to measure each removal on; 0: all images.", at_least(0)
    )


class Perturbation:
    """The rule that keeps the operations whose removal hurts the supernet most."""

    def __init__(self, options: Options):
        self.options = options

    def check(self, spec: SupernetSpec, epochs: int) -> None:
        """Raises UserError if there are fewer epochs than decisions."""
        count = _rounds(dict(spec.cells))
        first = self.options.first_epoch or 1
        if epochs - first + 1 < count:
            raise UserError(
                f"search.epochs has {epochs} epochs, but the selection rule 'perturbation' makes "
                f"{count} decisions, one after each epoch at most, the first after epoch {first}: "
                "add epochs, or lower search.selection_options.first_epoch"
            )

    def decide(self, view: View, memory: dict[str, Any]) -> Continue | Fix | Stop:
        """Decides an edge or a node of each cell type if it is time for it."""
        cells = dict(view.spec.cells)
        made, count = memory.get("decisions", 0), _rounds(cells)
        if view.epoch < self._epoch(made, count, view.epochs):
            return Continue()
        mix = {name: np.array(rows) for name, rows in view.mean.items()}
        longest = max(len(cell.edges) for cell in cells.values())
        decided: list[Choice] = []
        for name, cell in cells.items():
            rows, nodes = orders(view.seed, name, cell)
            if made < len(rows):
                decided.append(self._decide_edge(view, mix, name, rows[made]))
            if 0 <= made - longest < len(nodes):  # after the edges of all cell types
                decided += self._decide_node(view, mix, name, nodes[made - longest])
        memory["decisions"] = made + 1
        if made + 1 < count:
            return Fix(decided)
        reason = "" if view.epoch == view.epochs else "every edge is decided"
        return Stop(view.derive(mix), reason)

    def _epoch(self, made: int, count: int, epochs: int) -> int:
        """Returns the epoch after which the next decision falls, if `made` were made of `count`."""
        interval, left = self.options.interval, count - made - 1
        first = self.options.first_epoch or max(1, epochs - (count - 1) * interval)
        return min(first + made * interval, epochs - left)

    def _decide_edge(
        self, view: View, mix: dict[str, np.ndarray], cell_type: str, row: int
    ) -> Choice:
        """Fixes an edge, in `mix` too, to the operation whose removal leaves the lowest accuracy.

        If nodes choose among their edges, `none` is never chosen, as when a cell is derived.
        """
        cell = view.spec.cell(cell_type)
        edge = cell.edges[row]
        names = [name for name in edge.primitives if cell.keep is None or name != "none"]
        columns = [edge.primitives.index(name) for name in names]
        accuracies = [self._accuracy(view, mix, cell_type, row, column) for column in columns]
        _say(view, cell_type, edge.name, dict(zip(names, accuracies, strict=True)))
        best = int(np.argmin(accuracies))
        mix[cell_type][row] = 0
        mix[cell_type][row, columns[best]] = 1
        return cell_type, row, names[best]

    def _decide_node(
        self, view: View, mix: dict[str, np.ndarray], cell_type: str, node: int
    ) -> list[Choice]:
        """Removes edges of a node, in `mix` too, while the accuracy stays highest."""
        cell, removed = view.spec.cell(cell_type), list[Choice]()
        left = [row for row, edge in enumerate(cell.edges) if edge.target == node]
        while len(left) > (cell.keep or len(cell.edges)):
            accuracies = [self._accuracy(view, mix, cell_type, row) for row in left]
            names = [cell.edges[row].name for row in left]
            _say(view, cell_type, f"node {node}", dict(zip(names, accuracies, strict=True)))
            row = left.pop(int(np.argmax(accuracies)))
            mix[cell_type][row] = 0
            removed.append((cell_type, row, None))
        return removed

    def _accuracy(
        self,
        view: View,
        mix: Mapping[str, np.ndarray],
        cell_type: str,
        row: int,
        column: int | None = None,
    ) -> float:
        """Returns the accuracy without one operation of an edge, or without the whole edge."""
        rows = np.array(mix[cell_type])
        rows[row, slice(None) if column is None else column] = 0
        return view.accuracy({**mix, cell_type: rows}, self.options.batches or None)


def orders(seed: int, cell_type: str, cell: Cell) -> tuple[list[int], list[int]]:
    """Returns the order of a cell's edges, as rows, and that of the nodes that lose edges.

    Args:
      seed: Seed of the run.
      cell_type: Type of the cell.
      cell: The cell.
    """
    random = host_generator(seed, f"search/perturbation/{cell_type}")
    targets = [edge.target for edge in cell.edges]
    keep = cell.keep or len(targets)
    nodes = [node for node in dict.fromkeys(targets) if targets.count(node) > keep]
    return random.permutation(len(targets)).tolist(), random.permutation(nodes).tolist()


def _rounds(cells: Mapping[str, Cell]) -> int:
    """Returns the number of decisions, each of which takes an edge or a node of every cell type."""
    nodes = max(len(orders(0, name, cell)[1]) for name, cell in cells.items())
    return max(len(cell.edges) for cell in cells.values()) + nodes


def _say(view: View, cell_type: str, where: str, accuracies: Mapping[str, float]) -> None:
    listed = ", ".join(f"{name} {100 * value:.2f}" for name, value in accuracies.items())
    view.say(f"{cell_type} {where}, accuracy in % without: {listed}")


def create(options: Options) -> Rule:
    """Returns the rule of selection by perturbation."""
    return Perturbation(options)
