"""The costs of a space's operations, from the exact costs of a few networks."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype
from drnas_jax.spaces import Cell, NetworkSpec, Space, random_genotype

TOLERANCE = 1e-6  # largest difference between a cost and the sum of its parts, relative
_UNSEEN = 8  # random networks whose costs are compared with the sums, and used for nothing else
_PATIENCE = 200  # random genotypes without a new operation, after which none is expected

Entry = tuple[str, int, int]  # cell type, row of the edge, column of the operation
Table = tuple[float, dict[str, np.ndarray]]


class _Sample(NamedTuple):
    """A random genotype, and the entries of the table whose sum is its cost."""

    genotype: Genotype
    entries: tuple[Entry, ...]


def solve(exact: Callable[[NetworkSpec], float], space: Space, network: NetworkSpec) -> Table:
    """Returns the costs of all operations of a space, given the exact cost of any network.

    The cost of a network must be a constant plus the costs of its operations. These costs solve
    linear equations, one for each of a few random genotypes whose exact cost is determined. In most
    spaces an operation costs the same on many edges. So equations with one unknown for all edges
    that read an input of the cell, and one for all others, are tried first. Further random networks
    are counted until each operation of each edge has occurred, and decide whether this holds.

    What every network of the space has to pay is in the constant: the cheapest operation of an edge
    costs 0, and if a node chooses among its edges, the cheapest operation of all of them.

    Args:
      exact: Function that returns the cost of a network.
      space: Search space.
      network: Spec of the final network; its size counts, but not its genotype.

    Returns:
      The constant, and the costs by cell type, float64 [e, o]. They are whole numbers if the costs
      of all networks are. An operation that no genotype has, such as `none` in a cell whose nodes
      choose their edges, costs 0.

    Raises:
      UserError: The cost of a network differs from the sum by more than a relative error of 1e-6.
    """
    pool = list(_random_samples(space))
    known: dict[Genotype, float] = {}

    def cost_of(sample: _Sample) -> float:
        if sample.genotype not in known:
            spec = dataclasses.replace(network, genotype=sample.genotype)
            known[sample.genotype] = float(exact(spec))
        return known[sample.genotype]

    alike = {
        (name, row, column): (name, edge.source < cell.inputs, edge.primitives[column])
        for name, cell in space.cells.items()
        for row, edge in enumerate(cell.edges)
        for column in range(len(edge.primitives))
    }
    table, wrong = _fit(cost_of, pool, alike, space)
    if wrong is not None:
        table, wrong = _fit(cost_of, pool, {entry: entry for entry in alike}, space)
    if wrong is not None:
        raise UserError(
            f"the cost of a network of the space {space.name} is not the sum over its operations: "
            f"{space.describe(wrong.genotype)} costs {cost_of(wrong):,.9g}, but the sum is "
            f"{_sum(table, wrong):,.9g}; set cost.name to your own module, whose table may be an "
            "approximation"
        )
    return table


def _fit(
    cost_of: Callable[[_Sample], float],
    pool: list[_Sample],
    unknown_of: Mapping[Entry, tuple],
    space: Space,
) -> tuple[Table, _Sample | None]:
    """Solves for the unknowns, and returns a network whose cost is not the sum, if there is one."""
    unknowns = {unknown: i for i, unknown in enumerate(dict.fromkeys(unknown_of.values()), start=1)}

    def equation(sample: _Sample) -> np.ndarray:
        counts = np.zeros(len(unknowns) + 1)
        counts[0] = 1  # the constant
        for entry in sample.entries:
            counts[unknowns[unknown_of[entry]]] += 1
        return counts

    solved = _independent(pool, equation)
    seen = {entry for sample in solved for entry in sample.entries}
    checked = [sample for sample in pool if sample not in solved][-_UNSEEN:]
    for sample in pool:
        if not seen.issuperset(sample.entries):
            seen.update(sample.entries)
            checked.append(sample)
    costs = np.array([cost_of(sample) for sample in solved])
    # The costs are divided by the largest, so that rounding has the same effect in every unit.
    scale = np.max(np.abs(costs)) or 1.0
    solution = scale * np.linalg.lstsq(np.stack(list(map(equation, solved))), costs / scale)[0]
    operations = {name: np.zeros(cell.shape) for name, cell in space.cells.items()}
    for (name, row, column), unknown in unknown_of.items():
        operations[name][row, column] = solution[unknowns[unknown]]
    seen_by_name = {name: np.zeros(cell.shape, bool) for name, cell in space.cells.items()}
    for name, row, column in seen:
        seen_by_name[name][row, column] = True
    table = _shifted(float(solution[0]), operations, seen_by_name, space.cells)
    if all(cost.is_integer() for cost in map(cost_of, [*solved, *checked[:1]])):
        table = round(table[0]), {name: np.round(rows) for name, rows in table[1].items()}
    for sample in checked:
        cost = cost_of(sample)
        if abs(_sum(table, sample) - cost) > TOLERANCE * abs(cost):
            return table, sample
    return table, None


def _random_samples(space: Space) -> Iterator[_Sample]:
    """Yields random genotypes until a genotype brings no new operation for a long time."""
    entries: set[Entry] = set()
    total = sum(len(edge.primitives) for cell in space.cells.values() for edge in cell.edges)
    seed = last_new = 0
    while seed - last_new < _PATIENCE + 2 * total:
        genotype = random_genotype(space, seed)
        sample = _Sample(genotype, entries_of(space.cells, genotype))
        if not entries.issuperset(sample.entries):
            entries.update(sample.entries)
            last_new = seed
        yield sample
        seed += 1


def covering(space: Space) -> list[Genotype]:
    """Returns a few genotypes that together have each operation that an edge can have."""
    pool, chosen = list(_random_samples(space)), []
    missing = {entry for sample in pool for entry in sample.entries}
    while missing:
        sample = max(pool, key=lambda sample: len(missing.intersection(sample.entries)))
        missing.difference_update(sample.entries)
        chosen.append(sample.genotype)
    return chosen


def entries_of(cells: Mapping[str, Cell], genotype: Genotype) -> tuple[Entry, ...]:
    """Returns cell type, row and column of each operation that a genotype has."""
    entries = []
    for cell_type, cell in cells.items():
        rows = {(edge.target, edge.source): row for row, edge in enumerate(cell.edges)}
        for target, node in enumerate(genotype.cell(cell_type), start=cell.inputs):
            for name, source in node:
                row = rows[target, source]
                entries.append((cell_type, row, cell.edges[row].primitives.index(name)))
    return tuple(entries)


def _independent(pool: list[_Sample], equation: Callable[[_Sample], np.ndarray]) -> list[_Sample]:
    """Returns samples whose equations are independent and span those of all samples.

    Samples with the most new operations come first, so that few further ones are needed until each
    operation has occurred.
    """
    chosen: list[_Sample] = []
    seen: set[Entry] = set()
    left = list(pool)
    equations = np.stack([equation(sample) for sample in pool])
    basis = np.zeros((0, equations.shape[1]))
    rank = np.linalg.matrix_rank(equations)
    while len(chosen) < rank:
        sample = max(left, key=lambda sample: len(set(sample.entries) - seen))
        left.remove(sample)
        rest = equation(sample)
        length = np.linalg.norm(rest)
        for _ in range(2):  # once more, against rounding
            rest = rest - basis.T @ (basis @ rest)
        if np.linalg.norm(rest) > 1e-6 * length:
            basis = np.concatenate([basis, [rest / np.linalg.norm(rest)]])
            chosen.append(sample)
            seen.update(sample.entries)
    return chosen


def _shifted(
    constant: float,
    operations: dict[str, np.ndarray],
    seen: Mapping[str, np.ndarray],
    cells: Mapping[str, Cell],
) -> Table:
    """Moves what every network has to pay from the operations to the constant."""
    shifted = {}
    for cell_type, cell in cells.items():
        rows = np.where(seen[cell_type], operations[cell_type], np.inf)
        for target in dict.fromkeys(edge.target for edge in cell.edges):
            of_node = [i for i, edge in enumerate(cell.edges) if edge.target == target]
            all_kept = cell.keep is None or len(of_node) <= cell.keep
            for group in [[row] for row in of_node] if all_kept else [of_node]:
                cheapest = rows[group].min()
                if np.isfinite(cheapest):
                    rows[group] -= cheapest
                    constant += float(cheapest) * min(len(group), cell.keep or len(group))
        shifted[cell_type] = np.where(np.isfinite(rows), rows, 0.0)
    return constant, shifted


def _sum(table: Table, sample: _Sample) -> float:
    constant, operations = table
    return constant + sum(
        float(operations[name][row, column]) for name, row, column in sample.entries
    )
