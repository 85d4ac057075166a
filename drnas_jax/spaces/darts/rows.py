"""The rows of stacked edges: which operation of which edge lies where; static, but for gathers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from drnas_jax.nn.banks import Banks, Recorder
from drnas_jax.spaces.darts.operations import (
    CONVOLUTIONS,
    INPUTS,
    POOLS,
    Edge,
    bank_rows,
    stride_of,
)

Array = jax.Array
Means = dict[tuple[str, str], tuple[Array, Array]]  # by primitive and suffix: [..., rows, c]


@dataclasses.dataclass(frozen=True)
class Block:
    """The rows of one or several sources at once, or of so many in each turn of a loop; static.

    A row is an operation of an edge, and lies where its channels do. Turns have equally many rows
    of a primitive; where one needs less, the others have no weight.

    Attributes:
      cell_type: 'normal' or 'reduce'.
      edges: of the cell.
      turns: the sources of each turn.
      shared: pools have one row a source, for all edges.
    """

    cell_type: str
    edges: tuple[Edge, ...]
    turns: tuple[tuple[int, ...], ...]
    shared: bool

    @property
    def stride(self) -> int:
        """Of the operations."""
        return stride_of(self.cell_type, self.turns[0][0])

    @property
    def names(self) -> list[str]:
        """The primitives of its edges, convolutions of two layers first."""
        order = (*CONVOLUTIONS, *POOLS, "skip_connect")
        return [name for name in order if sum(self.counts(name))]

    def counts(self, name: str) -> list[int]:
        """A primitive's rows in a turn, by source."""
        turns = [[len(self._leaving(name, s)) for s in turn] for turn in self.turns]
        most = [max(own) for own in zip(*turns, strict=True)]
        return [min(n, 1) for n in most] if self._once(name) else most

    def rows(self, name: str) -> list[tuple[int, int, int]]:
        """Of every edge with that primitive: the turn, the row, and the edge."""
        firsts = np.cumsum([0, *self.counts(name)])
        return [
            (i, int(firsts[k]) + (0 if self._once(name) else n), edge)
            for i, turn in enumerate(self.turns)
            for k, source in enumerate(turn)
            for n, edge in enumerate(self._leaving(name, source))
        ]

    def _leaving(self, name: str, source: int) -> list[int]:
        return [
            i
            for i, edge in enumerate(self.edges)
            if edge.source == source and name in edge.operations
        ]

    def _once(self, name: str) -> bool:
        return (name == "skip_connect" and self.stride == 1) or (self.shared and name in POOLS)

    def arrays(self, banks: Banks) -> dict[str, dict[str, Array]]:
        """Arrays of all rows, [turns, rows, ...] by primitive and name."""
        found = {}
        for name in self.names:
            table = np.zeros((len(self.turns), sum(self.counts(name))), int)
            bank = bank_rows(self.cell_type, self.edges, name)
            for turn, row, edge in self.rows(name):
                table[turn, row] = bank.get(edge, 0)
            own = banks.get(name, {})
            found[name] = {leaf: jnp.asarray(array)[table] for leaf, array in own.items()}
        return found

    @property
    def places(self) -> dict[tuple[int, int], tuple[int, int, int]]:
        """Of each operation (edge, column) of the turns' edges: its turn, row and target.

        Targets are nodes, counted from the first one that a source of nodes leads to.
        """
        found, first = {}, 0
        for name in self.names:
            for turn, row, edge in self.rows(name):
                node, source, operations = self.edges[edge]
                target = node - max(source - INPUTS + 1, 0)
                found[edge, operations.index(name)] = (turn, first + row, target)
            first += sum(self.counts(name))
        return found

    def weights(self, mix: Array, targets: int) -> Array:
        """Mixing weights [turns, rows, targets]."""
        rows = sum(sum(self.counts(name)) for name in self.names)
        operations, places = (
            np.array(list(part)).T for part in zip(*self.places.items(), strict=True)
        )
        zeros = jnp.zeros((len(self.turns), rows, targets), mix.dtype)
        return zeros.at[tuple(places)].set(mix[tuple(operations)])

    def keep(self, keep: Array) -> Array:
        """Drop path's factors [b, edges] of the only turn's rows [b, rows], but for skips."""
        owners = [edge for name in self.names for *_, edge in self.rows(name)]
        return keep[:, np.array(owners)]

    def record(self, found: Means, recorder: Recorder) -> None:
        """Gives the moments of all turns [turns, rows, c] to the rows of the banks."""
        for (name, suffix), pair in found.items():
            turns, rows, edges = np.array(self.rows(name)).T
            bank = bank_rows(self.cell_type, self.edges, name)
            mean, var = (values[turns, rows] for values in pair)
            recorder.add(name, suffix, [bank[edge] for edge in edges], mean, var)
