"""The interface of costs, and the expected cost of mixing weights.

Shapes: `e` edges, `o` operations on the edge that has most.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from drnas_jax.costs import _additive
from drnas_jax.genotype import Genotype
from drnas_jax.spaces import uniform_genotypes
from drnas_jax.spaces.base import Cell, Edge, Mix, NetworkSpec, Space, SupernetSpec


class CostTable(NamedTuple):
    """The costs of a space's operations in a network of the final size.

    Attributes:
      constant: Cost of the layers that every network of the space has.
      operations: Cost of each operation on each edge, by cell type, float32 or
        float64 [e, o]. Whole numbers above 2^24 are exact only in float64.
    """

    constant: float
    operations: Mapping[str, np.ndarray]


class Cost(Protocol):
    """A measure of networks, such as their multiply-adds or their latency.

    A module that provides a cost has a function `create([options]) -> Cost`.

    Attributes:
      unit: Name of the unit, for example `multiply-adds` or `seconds`.
    """

    unit: str

    def table(self, space: Space, spec: SupernetSpec, network: NetworkSpec) -> CostTable:
        """Returns the costs of a supernet's remaining operations.

        Args:
          space: The search space.
          spec: Spec of the supernet, whose cells list the operations in order.
          network: Spec of the final network; its size counts, but not its genotype.
        """

    def exact(self, space: Space, network: NetworkSpec) -> float:
        """Returns the cost of a final network."""


class AdditiveCost:
    """A cost whose table follows from its exact costs. A subclass defines `unit` and `exact`.

    The cost of a network must be a constant plus the costs of its operations, as the number of
    parameters is. `exact` is called for some dozens of networks, once in a search.
    """

    unit: str

    def __init__(self) -> None:
        self._tables: list[tuple[Space, NetworkSpec, CostTable]] = []

    def exact(self, space: Space, network: NetworkSpec) -> float:
        """Returns the cost of a final network.

        Args:
          space: The search space.
          network: Spec of the final network.
        """
        raise NotImplementedError

    def table(self, space: Space, spec: SupernetSpec, network: NetworkSpec) -> CostTable:
        """Returns the costs of a supernet's remaining operations, see `Cost.table`.

        The cheapest operation of an edge costs 0, as `none` does; what an edge costs with any of
        its operations is in the constant.

        Raises:
          UserError: The cost of a network differs from the sum over its operations by more than a
            relative error of 1e-6.
        """
        whole = self._table_of_all(space, dataclasses.replace(network, auxiliary=False))
        return CostTable(
            whole.constant,
            {
                name: remaining_columns(whole.operations[name], space.cells[name], cell)
                for name, cell in spec.cells
            },
        )

    def _table_of_all(self, space: Space, network: NetworkSpec) -> CostTable:
        """Returns the costs of all operations; a stage asks for those of the same space again."""
        for known, size, table in self._tables:
            if known is space and size == dataclasses.replace(network, genotype=size.genotype):
                return table
        table = CostTable(*_additive.solve(functools.partial(self.exact, space), space, network))
        self._tables.append((space, network, table))
        return table


def remaining_columns(rows: np.ndarray, whole: Cell, cell: Cell) -> np.ndarray:
    """Returns the costs [e, o] of the operations that a cell still has.

    Args:
      rows: Costs of the operations of the whole cell [e, o].
      whole: Cell with all operations.
      cell: Cell with the remaining operations; entries beyond the end of an edge's list are 0.
    """
    remaining = np.zeros(cell.shape, rows.dtype)
    for row, (before, now) in enumerate(zip(whole.edges, cell.edges, strict=True)):
        columns = [before.primitives.index(name) for name in now.primitives]
        remaining[row, : len(columns)] = rows[row, columns]
    return remaining


def typical_genotypes(space: Space) -> list[Genotype]:
    """Returns genotypes that together have every operation on every edge, for measurements.

    If nodes keep all edges, the first genotype has the first operation on each edge, and the others
    differ from it on one edge. An operation is then not hidden by others that share its work.
    """
    if any(cell.keep for cell in space.cells.values()):
        return _additive.covering(space)
    first = uniform_genotypes(space)[0]
    return [first] + [
        with_operation(space, first, cell_type, row, name)
        for cell_type, cell in space.cells.items()
        for row, edge in enumerate(cell.edges)
        for name in edge.primitives[1:]
    ]


def with_operation(
    space: Space, genotype: Genotype, cell_type: str, row: int, name: str
) -> Genotype:
    """Returns a genotype with another operation on one of its edges.

    Args:
      space: The search space.
      genotype: Genotype that has this edge.
      cell_type: Cell type of the edge.
      row: Row of the edge in its cell.
      name: The other operation.
    """
    cell = space.cells[cell_type]
    edge = cell.edges[row]
    nodes = list(genotype.cell(cell_type))
    number = edge.target - cell.inputs
    nodes[number] = tuple(
        (name if source == edge.source else kept, source) for kept, source in nodes[number]
    )
    return Genotype(
        genotype.space,
        tuple((kind, tuple(nodes) if kind == cell_type else old) for kind, old in genotype.cells),
    )


def expected_cost(table: CostTable, cells: Mapping[str, Cell], mix: Mix) -> jax.Array:
    """Returns the expected cost of mixing weights, a scalar.

    constant + sum over cell types, edges and operations of keep * mix * cost. `keep` is the number
    of edges that a node keeps divided by the number of its rows that are not all 0, at most 1: a
    node of DARTS keeps 2 of up to 5, so a plain sum would count 14 edges although a cell has 8. At
    the one-hot mixing weights of a genotype this is the genotype's cost.

    Args:
      table: Costs of the operations.
      cells: Cells of the supernet by cell type.
      mix: Mixing weights by cell type [e, o].
    """
    total = jnp.asarray(table.constant, jnp.float32)
    for cell_type, cell in cells.items():
        keep = jnp.ones(len(cell.edges))
        if cell.keep is not None:
            targets = np.array([edge.target for edge in cell.edges])
            in_use = jnp.any(mix[cell_type] != 0, axis=-1)
            edges_of_node = (targets[:, None] == targets).astype(np.float32) @ in_use
            keep = jnp.minimum(cell.keep / jnp.maximum(edges_of_node, 1), 1)
        total += jnp.sum(keep[:, None] * mix[cell_type] * table.operations[cell_type])
    return total


def cost_in(table: CostTable, cells: Mapping[str, Cell], genotype: Genotype) -> float:
    """Returns a genotype's cost according to a table.

    Args:
      table: Costs of the operations.
      cells: Cells of the supernet by cell type, which have all operations of the genotype.
      genotype: Genotype of the space.
    """
    entries = _additive.entries_of(cells, genotype)
    return table.constant + sum(float(table.operations[name][i, j]) for name, i, j in entries)


def largest_cost(table: CostTable, cells: Mapping[str, Cell]) -> float:
    """Returns an upper bound of the cost of a network: that of the most expensive operations.

    In a cell whose nodes keep only some of their edges `none` does not count, unless an edge has
    nothing else, since it never wins there.
    """
    total = table.constant
    for cell_type, cell in cells.items():
        pairs = zip(cell.edges, table.operations[cell_type], strict=True)
        most_expensive = np.array([_most(cell, edge, costs) for edge, costs in pairs])
        for target in {edge.target for edge in cell.edges}:
            rows = [i for i, edge in enumerate(cell.edges) if edge.target == target]
            total += float(np.sort(most_expensive[rows])[::-1][: cell.keep].sum())
    return total


def _most(cell: Cell, edge: Edge, costs: np.ndarray) -> float:
    """Returns the largest cost of the operations that an edge can have in a network."""
    names = [name for name in edge.primitives if cell.keep is None or name != "none"]
    return float(max(costs[edge.primitives.index(name)] for name in names or edge.primitives))


def penalty(expected: jax.Array, weight: float, target: float, largest: float) -> jax.Array:
    """Returns the cost's term in the loss of alpha, a scalar.

    The term is weight * max(0, expected / target - 1), or weight * expected / largest if there is
    no target.

    Args:
      expected: Expected cost, a scalar.
      weight: Factor of the term.
      target: Cost from which on the term is positive; 0 for no target.
      largest: Upper bound of the cost, see `largest_cost`.
    """
    if target:
        return weight * jnp.maximum(expected / target - 1, 0)
    return weight * expected / largest
