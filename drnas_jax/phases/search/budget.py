"""The discretisation under a target: the best genotype among those whose cost is small enough.

A genotype's cost is a constant plus the costs of its operations, and its score is the sum of the
logarithms of their ranks. So the choice is a knapsack problem with one choice for each edge, or for
each node that keeps only some of its edges. It is solved exactly, by dynamic programming over
these choices.

Shapes: `n` partial choices, `m` choices of one group, `e` edges, `o` operations.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from drnas_jax.costs.base import CostTable, cost_in
from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype
from drnas_jax.spaces import Cell, SupernetSpec

_SMALLEST = 1e-300  # replaces a rank of 0, which operations have that a rule has ruled out
_ROUNDING = 1e-9  # relative error of sums of scores
_SLACK = 1e-12  # relative error of sums of costs that are not whole numbers
_TOLERANCE = 1e-5  # of a table, relative: above the 1e-6 that AdditiveCost allows
_ATTEMPTS = 20

Pick = tuple[int, int]  # row of the edge, column of the operation
Picks = tuple[Pick, ...]


class Group(NamedTuple):
    """The choices among which exactly one is made: those of an edge, or of a node's edges.

    Attributes:
      cell_type: Cell type of the edges.
      costs: Cost of each choice, float64 [m], increasing.
      scores: Score of each choice, float64 [m], increasing.
      picks: Operations of each choice.
    """

    cell_type: str
    costs: np.ndarray
    scores: np.ndarray
    picks: tuple[Picks, ...]


def smallest_cost(table: CostTable, spec: SupernetSpec) -> float:
    """Returns the smallest cost of a genotype of the supernet's remaining operations."""
    flat = {name: np.ones(cell.shape) for name, cell in spec.cells}
    return table.constant + sum(float(group.costs[0]) for group in _groups(table, spec, flat))


def format_cost(cost: float) -> str:
    """Returns a cost as text: all digits of a whole number, else six, rounded up."""
    if float(cost).is_integer():
        return f"{cost:,.0f}"
    unit = 10.0 ** (math.floor(math.log10(abs(cost))) - 5)
    return f"{math.ceil(cost / unit) * unit:.6g}"


@dataclasses.dataclass(frozen=True)
class Budget:
    """The largest cost of a genotype of a supernet.

    Attributes:
      target: Largest cost.
      table: Costs of the operations.
      spec: Spec of the supernet, with the remaining operations of each edge.
      space: Name of the space.
    """

    target: float
    table: CostTable
    spec: SupernetSpec
    space: str

    def best(self, ranks: Mapping[str, np.ndarray], target: float) -> Genotype | None:
        """Returns the genotype of largest score within a target, according to the table.

        The score of a genotype is the sum of log(rank) of its operations. A node that keeps only
        some of its edges never takes `none`, as in `Space.derive`. Operations of rank 0, which a
        rule has ruled out, are taken only if nothing else is within the target.

        Args:
          ranks: Ranks of the operations by cell type [e, o], at least 0: the mean mixing weights.
          target: Largest cost.

        Returns:
          The genotype, or None if each one costs more than the target.
        """
        groups = _groups(self.table, self.spec, ranks)
        slack = _SLACK * abs(target)  # sums in another order differ by rounding
        chosen = _solve(groups, target + slack - self.table.constant)
        if chosen is None:
            return None
        picks: dict[str, list[Pick]] = {name: [] for name, _ in self.spec.cells}
        for group, choice in zip(groups, chosen, strict=True):
            picks[group.cell_type] += group.picks[choice]
        cells = ((name, _nodes(cell, sorted(picks[name]))) for name, cell in self.spec.cells)
        return Genotype(self.space, tuple(cells))

    def derive(
        self,
        ranks: Mapping[str, np.ndarray],
        unlimited: Genotype,
        exact: Callable[[Genotype], float],
    ) -> Genotype:
        """Returns the genotype of largest score whose exact cost is at most the target.

        Args:
          ranks: Ranks of the operations, see `best`.
          unlimited: Genotype that is derived without a target; if it fits, it is the result.
          exact: Function that returns a genotype's exact cost. It is called only for genotypes that
            the table puts close to the target.

        Raises:
          UserError: The table of the cost disagrees with its exact costs.
        """
        candidate: Genotype | None = unlimited
        limit = self.target
        for _ in range(_ATTEMPTS):
            if candidate is None:
                break
            cost = cost_in(self.table, dict(self.spec.cells), candidate)
            if cost <= self.target * (1 - _TOLERANCE):
                return candidate
            if cost <= self.target * (1 + _TOLERANCE):
                excess = exact(candidate) - self.target
                if excess <= _SLACK * self.target:
                    return candidate
                limit = min(limit, cost) - excess
            candidate = self.best(ranks, limit)
        raise UserError(
            f"cost.target is {self.target:g}, but networks within it by `table` exceed it by "
            "`exact`: correct `table` or `exact` of the cost's module"
        )


def _nodes(cell: Cell, picks: Sequence[Pick]) -> tuple[tuple[tuple[str, int], ...], ...]:
    by_node = itertools.groupby(picks, lambda pick: cell.edges[pick[0]].target)
    return tuple(
        tuple((cell.edges[row].primitives[column], cell.edges[row].source) for row, column in node)
        for _, node in by_node
    )


def _groups(table: CostTable, spec: SupernetSpec, ranks: Mapping[str, np.ndarray]) -> list[Group]:
    """Returns the groups of all cells, without choices that are no better than a cheaper one."""
    groups = []
    for cell_type, cell in spec.cells:
        scores = np.log(np.maximum(np.asarray(ranks[cell_type], np.float64), _SMALLEST))
        costs = np.asarray(table.operations[cell_type], np.float64)
        numbered = enumerate(cell.edges)
        for _, node in itertools.groupby(numbered, lambda pair: pair[1].target):
            edges = [_edge_group(cell_type, cell, row, costs, scores) for row, _ in node]
            if cell.keep is None or cell.keep >= len(edges):
                groups += edges
            else:
                groups.append(_node_group(edges, cell.keep))
    return groups


def _edge_group(
    cell_type: str, cell: Cell, row: int, costs: np.ndarray, scores: np.ndarray
) -> Group:
    names = cell.edges[row].primitives
    columns = [i for i, name in enumerate(names) if cell.keep is None or name != "none"]
    columns = columns or [0]  # nothing else is left
    picks = tuple(((row, column),) for column in columns)
    return _pareto(Group(cell_type, costs[row, columns], scores[row, columns], picks))


def _node_group(edges: Sequence[Group], keep: int) -> Group:
    """Returns all choices of `keep` edges and one operation on each, for one node."""
    cell_type = edges[0].cell_type
    # best[k]: choices of k of the edges so far
    best: list[Group | None] = [Group(cell_type, np.zeros(1), np.zeros(1), ((),))] + [None] * keep
    for edge in edges:
        for count in range(keep, 0, -1):
            fewer = best[count - 1]
            if fewer is None:
                continue
            joined = Group(
                cell_type,
                np.add.outer(fewer.costs, edge.costs).ravel(),
                np.add.outer(fewer.scores, edge.scores).ravel(),
                tuple(first + last for first in fewer.picks for last in edge.picks),
            )
            same = best[count]
            if same is not None:
                joined = Group(
                    cell_type,
                    np.concatenate([same.costs, joined.costs]),
                    np.concatenate([same.scores, joined.scores]),
                    same.picks + joined.picks,
                )
            best[count] = _pareto(joined)
    result = best[keep]
    assert result is not None  # the node has more than `keep` edges
    return result


def _pareto(group: Group) -> Group:
    order = undominated(group.costs, group.scores)
    picks = tuple(group.picks[i] for i in order)
    return Group(group.cell_type, group.costs[order], group.scores[order], picks)


def undominated(costs: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns the indices of the Pareto front: what scores more than all that costs no more.

    Args:
      costs: Cost of each choice [n].
      scores: Score of each choice [n]. If choices are equal in both, the first one is returned.

    Returns:
      Indices by increasing cost and score, int [m].
    """
    order = np.lexsort((-scores, costs))
    before = np.concatenate([[-np.inf], np.maximum.accumulate(scores[order])[:-1]])
    return order[scores[order] > before]


def _solve(groups: Sequence[Group], budget: float) -> list[int] | None:
    """Returns the index of each group's choice for the largest score within the budget, or None."""
    # Sums from the last group to the first: what the groups after one cost at least.
    cheapest = _sums_after(groups, lambda group: group.costs[0])
    if cheapest[0] > budget:
        return None
    budget = min(budget, sum(float(group.costs[-1]) for group in groups))
    price, known = _price(groups, budget)
    # At a price for each unit of cost, no choice of the groups after one can score more than this.
    most = _sums_after(groups, lambda group: np.max(group.scores - price * group.costs))
    least = known - _ROUNDING * (1 + abs(known))
    costs, scores = np.zeros(1), np.zeros(1)
    origins: list[tuple[np.ndarray, np.ndarray]] = []
    for number, group in enumerate(groups, start=1):
        new_costs = np.add.outer(costs, group.costs).ravel()
        new_scores = np.add.outer(scores, group.scores).ravel()
        bound = new_scores + most[number] + price * (budget - new_costs)
        possible = np.flatnonzero((new_costs + cheapest[number] <= budget) & (bound >= least))
        kept = possible[undominated(new_costs[possible], new_scores[possible])]
        costs, scores = new_costs[kept], new_scores[kept]
        origins.append(np.divmod(kept, len(group.costs)))
    chosen, index = [], int(np.argmax(scores))
    for parents, choices in reversed(origins):
        chosen.append(int(choices[index]))
        index = int(parents[index])
    return chosen[::-1]


def _sums_after(groups: Sequence[Group], value: Callable[[Group], float]) -> np.ndarray:
    """Returns the sum of a value over all groups, over all but the first, and so on down to 0."""
    values = [float(value(group)) for group in groups]
    return np.concatenate([np.cumsum(values[::-1])[::-1], [0.0]])


def _price(groups: Sequence[Group], budget: float) -> tuple[float, float]:
    """Returns the price of cost that bounds the scores best, and the score of a choice that fits.

    If each group takes what is best at a price for each unit of cost, it spends less the higher the
    price is. The lowest price at which all groups together stay within the budget is found by
    bisection (Lagrangian relaxation).
    """

    def at(price: float) -> tuple[float, float]:
        chosen = [int(np.argmax(group.scores - price * group.costs)) for group in groups]
        pairs = list(zip(groups, chosen, strict=True))
        cost = sum(float(group.costs[i]) for group, i in pairs)
        return cost, sum(float(group.scores[i]) for group, i in pairs)

    cost, score = at(0.0)
    if cost <= budget:
        return 0.0, score
    known = sum(float(group.scores[0]) for group in groups)  # that of the cheapest choices
    # Above the steepest slope between two choices, each group takes its cheapest one.
    slopes = [np.diff(group.scores) / np.diff(group.costs) for group in groups]
    low, high = 0.0, 2 * max(float(slope.max()) for slope in slopes if len(slope))
    for _ in range(60):
        middle = (low + high) / 2
        cost, score = at(middle)
        if cost <= budget:
            high, known = middle, max(known, score)
        else:
            low = middle
    return high, known
