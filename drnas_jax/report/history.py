"""The lines of a history.jsonl as typed values."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from drnas_jax.files import read_history
from drnas_jax.genotype import Genotype, from_cells
from drnas_jax.report.fields import Fields, is_number

_SMALLEST = 1e-30  # a score that underflowed to 0 would leave an edge without a mean


class Edges(NamedTuple):
    """The edges of a cell type, in the order of the rows of its scores.

    Attributes:
      names: Name of each edge.
      primitives: Operations of each edge before any is pruned; edges may differ in their number.
    """

    names: tuple[str, ...]
    primitives: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One line of a history. A field that the line lacks has its default.

    Attributes:
      epoch: Number of the epoch, from 1.
      stage: Number of the stage, from 1.
      train_accuracy: Accuracy on training images, in 0..1.
      valid_accuracy: Accuracy on validation images, in 0..1.
      entropy: Entropy of the mean mixing weights in nats, averaged over edges.
      expected_cost: Expected cost of the mean mixing weights, in the unit of the run's cost.
      hessian: Largest eigenvalue of the Hessian of the validation loss in alpha.
      scores: Positive score of each operation by cell type, float64 [e, o], nan if it is pruned.
        A row divided by its sum is the mean of the edge's mixing weights.
      genotype: Genotype that the search would have ended with.
      ranked: Genotypes with their validation accuracy in the supernet, in 0..1.
    """

    epoch: int
    stage: int = 1
    train_accuracy: float | None = None
    valid_accuracy: float | None = None
    entropy: float | None = None
    expected_cost: float | None = None
    hessian: float | None = None
    scores: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    genotype: Genotype | None = None
    ranked: tuple[tuple[Genotype, float], ...] = ()


def read_epochs(file: Path, space: str, edges: Mapping[str, Edges]) -> list[Epoch]:
    """Reads a history.jsonl, which may lack fields or be absent.

    Args:
      file: Path of the history.
      space: Name of the search space that its genotypes get.
      edges: Edges of each cell type of the space.

    Raises:
      UserError: A line is damaged; the message names the file, the line and the field.
    """
    return [
        _epoch(Fields(line, f"{file}, line {number}"), space, edges)
        for number, line in enumerate(read_history(file), start=1)
    ]


def _epoch(line: Fields, space: str, edges: Mapping[str, Edges]) -> Epoch:
    return Epoch(
        epoch=line.count("epoch"),
        stage=line.count("stage", default=1),
        train_accuracy=line.number_or_none("train_accuracy"),
        valid_accuracy=line.number_or_none("valid_accuracy"),
        entropy=line.number_or_none("entropy"),
        expected_cost=line.number_or_none("expected_cost"),
        hessian=line.number_or_none("hessian"),
        scores=_scores(line, edges),
        genotype=_genotype(line, "genotype", space) if "genotype" in line.values else None,
        ranked=tuple(
            (_genotype(entry, "cells", space), entry.number("accuracy"))
            for entry in line.objects("ranked")
        ),
    )


def _genotype(fields: Fields, name: str, space: str) -> Genotype:
    return from_cells(space, fields.values.get(name), f"{fields.source}: {name}")


def _scores(line: Fields, edges: Mapping[str, Edges]) -> dict[str, np.ndarray]:
    rows = line.mapping("concentration")
    if rows and set(rows) != set(edges):
        raise line.fault("concentration", f"the cell types {', '.join(edges)}")
    return {name: _cell_scores(line, name, rows[name], edges[name].primitives) for name in rows}


def _cell_scores(
    line: Fields, cell_type: str, rows: Any, primitives: Sequence[Sequence[str]]
) -> np.ndarray:
    if not isinstance(rows, list) or len(rows) != len(primitives):
        raise line.fault("concentration", f"{len(primitives)} edges in {cell_type}")
    scores = np.full((len(rows), max(map(len, primitives))), np.nan)
    for edge, (row, names) in enumerate(zip(rows, primitives, strict=True)):
        if not _is_row(row, len(names)):
            expected = f"{len(names)} numbers or null on edge {edge} of {cell_type}, not all null"
            raise line.fault("concentration", expected)
        for operation, value in enumerate(row[: len(names)]):
            if value is not None:
                scores[edge, operation] = max(value, _SMALLEST)
    return scores


def _is_row(row: Any, operations: int) -> bool:
    """Returns whether a row has a score or null for each operation; null may fill it up."""
    return (
        isinstance(row, list)
        and len(row) >= operations
        and all(value is None or (is_number(value) and value >= 0) for value in row[:operations])
        and any(value is not None for value in row[:operations])
        and all(value is None for value in row[operations:])
    )
