"""The interface of rules, which decide at the end of each epoch how the search continues.

A selection rule chooses the genotype, and may fix edges one after another while the search
continues. A stopping rule may end the search early. Both have the same interface.
"""

import dataclasses
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype
from drnas_jax.spaces.base import Space, SupernetSpec


@dataclasses.dataclass(frozen=True)
class Continue:
    """The decision to continue the search without a change."""


@dataclasses.dataclass(frozen=True)
class Fix:
    """The decision to fix the operations of some edges and to continue the search.

    Attributes:
      edges: Triples (cell type, row of the edge, operation), in a tuple, a list or any other
        iterable. From now on the edge's mixing weights are 1 for this operation and 0 for the
        others; if the operation is None, all are 0, which removes the edge.
    """

    edges: Iterable[tuple[str, int, str | None]]


@dataclasses.dataclass(frozen=True)
class Stop:
    """The decision to end the search after this epoch.

    Attributes:
      genotype: Genotype that the search returns.
      reason: Why the search ends before its last epoch; empty at the last one.
    """

    genotype: Genotype
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class View:
    """The facts about a search, at the end of an epoch, on which a rule decides.

    Attributes:
      epoch: Number of the epoch, from 1.
      epochs: Number of epochs of the whole search.
      seed: The run's seed.
      space: The search space.
      spec: Spec of the supernet, with the remaining operations of each edge.
      mean: Mean mixing weights by cell type [e, o]; rows of fixed edges have their fixed values.
      scores: Scores of the mixing distribution by cell type [e, o].
      genotype: Genotype derived from the mixing distribution.
      line: Line of this epoch in history.jsonl.
      fixed: Edges that were fixed so far, as in `Fix.edges`.
      accuracy: Function (mixing weights by cell type [e, o], number of validation batches or None
        for all) -> validation accuracy of the supernet in 0..1. Rows need not sum to 1.
      curvature: Function (number of validation batches) -> largest eigenvalue of the Hessian of the
        validation loss in alpha, within 1 %.
      derive: Function (ranks of the operations by cell type [e, o]) -> genotype derived from them,
        within `cost.target` if the config sets it.
      draw: Function (count) -> the distinct genotypes among `count` draws from the mixing
        distribution, within `cost.target` as well.
      say: Function that shows the user a line of text.
    """

    epoch: int
    epochs: int
    seed: int
    space: Space
    spec: SupernetSpec
    mean: Mapping[str, np.ndarray]
    scores: Mapping[str, np.ndarray]
    genotype: Genotype
    line: Mapping[str, Any]
    fixed: tuple[tuple[str, int, str | None], ...]
    accuracy: Callable[[Mapping[str, np.ndarray], int | None], float]
    curvature: Callable[[int], float]
    derive: Callable[[Mapping[str, np.ndarray]], Genotype]
    draw: Callable[[int], list[Genotype]]
    say: Callable[[str], None]


class Rule(Protocol):
    """A selection or stopping rule.

    A module that provides a rule has a function `create([options]) -> Rule`. A rule may also have a
    method `check(spec, epochs)`, which gets the spec of the first stage's supernet and the number
    of epochs before the search begins, and raises `UserError` if they are not enough for it.
    """

    def decide(self, view: View, memory: dict[str, Any]) -> Continue | Fix | Stop:
        """Decides at the end of an epoch how the search continues.

        All processes call this and must reach the same decision. At the last epoch
        (`view.epoch == view.epochs`) a selection rule must return `Stop`.

        Args:
          view: State of the search after this epoch.
          memory: JSON values that the rule keeps between epochs and may change in place. They
            are in the checkpoints, so that a resumed search makes the same decisions.
        """


def checked_edges(
    decision: Fix, spec: SupernetSpec, rule: str
) -> tuple[tuple[str, int, str | None], ...]:
    """Checks that all edges which a rule fixes exist, and returns them as a tuple.

    Args:
      decision: Decision of the rule.
      spec: Spec of the supernet, with the remaining operations of each edge.
      rule: Name of the rule in error messages.

    Raises:
      UserError: An edge is not a triple, or names a cell type, a row or an operation that the
        supernet does not have.
    """
    cells, edges = dict(spec.cells), []
    for fixed in decision.edges:
        fault = f"the {rule} returns Fix with the edge {reprlib.repr(fixed)}"
        if not isinstance(fixed, tuple | list) or len(fixed) != 3:
            raise UserError(f"{fault}: expected (cell type, row, operation or None)")
        cell_type, row, primitive = fixed
        if cell_type not in cells:
            raise UserError(f"{fault}: expected one of the cell types {', '.join(cells)}")
        rows = cells[cell_type].edges
        if not isinstance(row, int | np.integer) or not 0 <= row < len(rows):
            raise UserError(f"{fault}: expected a row from 0 to {len(rows) - 1}")
        names = rows[row].primitives
        if primitive is not None and primitive not in names:
            raise UserError(f"{fault}: expected None or one of the operations {', '.join(names)}")
        edges.append((cell_type, int(row), primitive))
    return tuple(edges)
