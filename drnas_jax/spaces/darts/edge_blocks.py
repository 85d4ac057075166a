"""Blocks of edges whose operations run side by side: which operation is in which row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from drnas_jax.nn.stacked_params import MomentRecorder, PrimitiveArrays
from drnas_jax.spaces.base import Edge
from drnas_jax.spaces.darts.operations import (
    CONVOLUTIONS,
    INPUTS,
    POOLS,
    stacked_rows,
    stride_of,
)

Array = jax.Array
# Mean and variance [..., rows, c], by primitive and suffix of the BatchNorm.
RowMoments = dict[tuple[str, str], tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class EdgeBlock:
    """The operations of all edges that leave some sources, as rows of channels side by side.

    A row holds one operation of one edge. In a loop each step computes the rows of other sources.
    All steps have equally many rows of a primitive; those that a step does not need get the mixing
    weight 0.

    Attributes:
      cell_type: `normal` or `reduce`.
      edges: All edges of the cell.
      steps: Sources of each step, all of the same stride; one step if there is no loop.
      shared: Whether the edges that leave a source share one row of each pool. In training they
        may, because they normalise the same values by the same batch.
    """

    cell_type: str
    edges: tuple[Edge, ...]
    steps: tuple[tuple[int, ...], ...]
    shared: bool

    @property
    def stride(self) -> int:
        """Stride of the operations."""
        return stride_of(self.cell_type, self.steps[0][0])

    @property
    def names(self) -> list[str]:
        """Primitives of the rows in order; convolutions of two layers come first."""
        order = (*CONVOLUTIONS, *POOLS, "skip_connect")
        return [name for name in order if sum(self.counts(name))]

    def counts(self, name: str) -> list[int]:
        """Returns the number of a primitive's rows for each source of a step."""
        steps = [[len(self._leaving(name, s)) for s in sources] for sources in self.steps]
        most = [max(counts) for counts in zip(*steps, strict=True)]
        return [min(count, 1) for count in most] if self._is_shared(name) else most

    def rows(self, name: str) -> list[tuple[int, int, int]]:
        """Returns step, row among the primitive's rows, and edge for each edge that keeps it."""
        firsts = np.cumsum([0, *self.counts(name)])
        return [
            (step, int(firsts[k]) + (0 if self._is_shared(name) else n), edge)
            for step, sources in enumerate(self.steps)
            for k, source in enumerate(sources)
            for n, edge in enumerate(self._leaving(name, source))
        ]

    def _leaving(self, name: str, source: int) -> list[int]:
        """Returns the numbers of the edges that leave a source and keep a primitive."""
        return [
            number
            for number, edge in enumerate(self.edges)
            if edge.source == source and name in edge.primitives
        ]

    def _is_shared(self, name: str) -> bool:
        return (name == "skip_connect" and self.stride == 1) or (self.shared and name in POOLS)

    def arrays(self, arrays: PrimitiveArrays) -> dict[str, dict[str, Array]]:
        """Gathers a cell's arrays [rows, ...] into arrays [steps, rows, ...] of the block."""
        gathered = {}
        for name in self.names:
            index = np.zeros((len(self.steps), sum(self.counts(name))), int)
            stacked = stacked_rows(self.cell_type, self.edges, name)
            for step, row, edge in self.rows(name):
                index[step, row] = stacked.get(edge, 0)
            leaves = arrays.get(name, {})
            gathered[name] = {leaf: jnp.asarray(array)[index] for leaf, array in leaves.items()}
        return gathered

    @property
    def positions(self) -> dict[tuple[int, int], tuple[int, int, int]]:
        """Step, row and target of each operation, by its edge and column of the mixing weights.

        Targets are numbered from the first node that follows the sources of a step.
        """
        positions, first = {}, 0
        for name in self.names:
            for step, row, number in self.rows(name):
                edge = self.edges[number]
                target = edge.target - INPUTS - max(edge.source - INPUTS + 1, 0)
                positions[number, edge.primitives.index(name)] = (step, first + row, target)
            first += sum(self.counts(name))
        return positions

    def weights(self, mix: Array, targets: int) -> Array:
        """Arranges mixing weights [e, o] of the cell as [steps, rows, targets]."""
        rows = sum(sum(self.counts(name)) for name in self.names)
        operations, positions = (
            np.array(list(numbers)).T for numbers in zip(*self.positions.items(), strict=True)
        )
        zeros = jnp.zeros((len(self.steps), rows, targets), mix.dtype)
        return zeros.at[tuple(positions)].set(mix[tuple(operations)])

    def path_factors(self, factors: Array) -> Array:
        """Picks drop path's factors [b, rows] of a block with one step from those of all edges.

        Args:
          factors: Factor of each example and edge, [b, e].
        """
        owners = [edge for name in self.names for *_, edge in self.rows(name)]
        return factors[:, np.array(owners)]

    def record(self, moments: RowMoments, recorder: MomentRecorder) -> None:
        """Records the moments [steps, rows, c] of the block as those of the cell's arrays."""
        for (name, suffix), pair in moments.items():
            steps, rows, edges = np.array(self.rows(name)).T
            stacked = stacked_rows(self.cell_type, self.edges, name)
            mean, var = (values[steps, rows] for values in pair)
            recorder.add(name, suffix, [stacked[edge] for edge in edges], mean, var)
