"""What the terminal shows of a search."""

from collections.abc import Mapping

import numpy as np

from drnas_jax.config import Stage
from drnas_jax.spaces import SupernetSpec
from drnas_jax.training.metrics import Display


def describe_stage(spec: SupernetSpec, stage: Stage, parameters: int) -> str:
    """Returns a line about a stage.

    Args:
      spec: Spec of the stage's supernet.
      stage: Config of the stage.
      parameters: Number of parameters of the supernet.
    """
    operations = ", ".join(_operations(spec))
    frozen = f", alpha is frozen for {stage.warmup_epochs} of {stage.epochs} epochs"
    return (
        f"{operations}, K {spec.partial_channels}, {parameters:,} parameters"
        f"{frozen if stage.warmup_epochs else ''}"
    )


def _operations(spec: SupernetSpec) -> list[str]:
    """Returns how many operations the edges of each cell type have."""
    counts = []
    for cell_type, cell in spec.cells:
        lengths = sorted({len(edge.primitives) for edge in cell.edges})
        most = f"{lengths[0]} to {lengths[-1]}" if len(lengths) > 1 else f"{lengths[0]}"
        counts.append(f"{most} operations on each {cell_type} edge")
    return counts


def explain_scores(spec: SupernetSpec) -> str:
    """Returns a line that explains the tables of `show_scores`."""
    _, cell = spec.cells[0]
    edge = cell.edges[0]
    inputs = "node 0 is the cell's input"
    if cell.inputs > 1:
        inputs = f"nodes 0 to {cell.inputs - 1} are the cell's inputs"
    return (
        f"scores: what pruning ranks the operations of an edge by; {edge.name} is the edge from "
        f"node {edge.source} to node {edge.target} ({inputs}), * marks the largest score of an edge"
    )


def show_scores(display: Display, spec: SupernetSpec, scores: Mapping[str, np.ndarray]) -> None:
    """Prints the scores of all edges, one table for each cell type.

    Args:
      display: What the user sees.
      spec: Spec of the supernet.
      scores: Scores of the operations by cell type [e, o].
    """
    for cell_type, cell in spec.cells:
        names, kept = zip(*((e.name, e.primitives) for e in cell.edges), strict=True)
        pairs = zip(scores[cell_type], kept, strict=True)
        rows = [row[: len(primitives)] for row, primitives in pairs]
        display.scores(cell_type, names, kept, rows)
