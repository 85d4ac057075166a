"""The metadata of a search, which its checkpoints store in addition to the state."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from drnas_jax.genotype import from_json, to_json
from drnas_jax.rules.base import Stop
from drnas_jax.spaces import Cell, Edge, SupernetSpec

FixedEdges = tuple[tuple[str, int, str | None], ...]  # see rules.base.Fix


@dataclasses.dataclass(frozen=True)
class SearchMetadata:
    """The values that a search needs besides its state to resume, stored in each checkpoint.

    Attributes:
      stage: Number of the stage, from 0.
      partial_channels: K of the stage; 1/K of the channels pass through the operations.
      primitives: Remaining operations of each edge, by cell type.
      fixed: Edges that the selection rule has fixed.
      memory: Memory of the rules, by their kind.
      decision: Decision of the rule that ended the search, or None.
    """

    stage: int
    partial_channels: int
    primitives: Mapping[str, Sequence[Sequence[str]]]
    fixed: FixedEdges
    memory: Mapping[str, dict[str, Any]]
    decision: Stop | None

    def to_json(self) -> dict[str, Any]:
        """Converts to JSON values."""
        decision = self.decision
        return {
            "stage": self.stage,
            "partial_channels": self.partial_channels,
            "primitives": self.primitives,
            "fixed": self.fixed,
            "memory": self.memory,
            "decision": decision
            and {"genotype": to_json(decision.genotype), "reason": decision.reason},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "SearchMetadata":
        """Converts back what `to_json` returned."""
        decision = values["decision"]
        genotype = decision and from_json(decision["genotype"], "the checkpoint's genotype")
        return cls(
            stage=values["stage"],
            partial_channels=values["partial_channels"],
            primitives=values["primitives"],
            fixed=tuple((kind, row, name) for kind, row, name in values["fixed"]),
            memory=values["memory"],
            decision=Stop(genotype, decision["reason"]) if decision else None,
        )

    @classmethod
    def of(
        cls,
        stage: int,
        spec: SupernetSpec,
        fixed: FixedEdges,
        memory: Mapping[str, dict[str, Any]],
        decision: Stop | None,
    ) -> "SearchMetadata":
        """Returns the metadata of a search at a stage."""
        primitives = {
            cell_type: [list(edge.primitives) for edge in cell.edges]
            for cell_type, cell in spec.cells
        }
        return cls(stage, spec.partial_channels, primitives, fixed, memory, decision)

    def spec(self, first: SupernetSpec) -> SupernetSpec:
        """Returns the spec of the supernet at this stage, given that of the first stage."""

        def kept(cell_type: str, cell: Cell) -> Cell:
            pairs = zip(cell.edges, self.primitives[cell_type], strict=True)
            edges = (Edge(edge.target, edge.source, tuple(names)) for edge, names in pairs)
            return dataclasses.replace(cell, edges=tuple(edges))

        cells = tuple((cell_type, kept(cell_type, cell)) for cell_type, cell in first.cells)
        return dataclasses.replace(first, cells=cells, partial_channels=self.partial_channels)
