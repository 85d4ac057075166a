"""Checks before the first step of a search that every stage fits in the memory of the devices.

A later stage has fewer operations but a smaller K, and may need more memory than the first one: in
the paper's CIFAR-10 search it needs a quarter more.
"""

from typing import Any

import numpy as np

from drnas_jax.nn.counting import count_parameters
from drnas_jax.phases.search.compilation import compile_step, lower_step
from drnas_jax.phases.search.experiment import Experiment
from drnas_jax.phases.search.stages import columns_to_keep, resized_spec
from drnas_jax.spaces import SupernetSpec
from drnas_jax.training import memory

# A later stage is compiled for the check only if an estimate comes as near to the limit as this.
_NEAR = 0.5


def check_later_stages(experiment: Experiment, stage: int, spec: SupernetSpec, step: Any) -> None:
    """Raises NotEnoughMemoryError if a later stage needs more memory than the devices have.

    Which operations will remain is not known yet, so those with the most parameters are assumed.
    Devices that do not report their memory, such as CPUs, are not checked. Neither is a stage that
    is estimated to stay far below the limit, because its compilation takes time.

    Args:
      experiment: Inputs of the search.
      stage: Number of the current stage, from 0.
      spec: Spec of the current stage's supernet.
      step: Compiled step of the current stage.
    """
    limit, stages = memory.available(experiment.mesh), experiment.config.search.stages
    if limit is None:
        return
    for later in stages[stage + 1 :]:
        growth = spec.partial_channels / later.partial_channels
        if memory.needed(step) * max(1.0, growth) < _NEAR * limit:
            continue
        heavy = heaviest(experiment, spec, later.operations, later.partial_channels)
        lowered = lower_step(experiment, heavy, experiment.abstract_state(heavy))
        compile_step(experiment, heavy, lowered)


def heaviest(
    experiment: Experiment, spec: SupernetSpec, operations: int, partial_channels: int
) -> SupernetSpec:
    """Returns the spec of a later stage that keeps the operations with the most parameters.

    Args:
      experiment: Inputs of the search.
      spec: Spec of the current stage's supernet.
      operations: Largest number of operations that the later stage keeps on an edge.
      partial_channels: K of the later stage.
    """

    def parameters(columns: Any) -> int:
        smaller = resized_spec(spec, columns, spec.partial_channels)
        return count_parameters(experiment.state_shapes(smaller).params)

    def columns_without(name: str | None) -> dict[str, list[np.ndarray]]:
        return {
            cell_type: [
                np.array([i for i, other in enumerate(edge.primitives) if other != name] or [0])
                for edge in cell.edges
            ]
            for cell_type, cell in spec.cells
        }

    edges = [edge for _, cell in spec.cells for edge in cell.edges if len(edge.primitives) > 1]
    whole, sizes = parameters(columns_without(None)), {}
    for name in {name: None for edge in edges for name in edge.primitives}:
        removed = whole - parameters(columns_without(name))
        sizes[name] = removed / sum(name in edge.primitives for edge in edges)
    scores = {name: np.zeros(cell.shape) for name, cell in spec.cells}
    for cell_type, cell in spec.cells:
        for row, edge in zip(scores[cell_type], cell.edges, strict=True):
            row[: len(edge.primitives)] = [sizes.get(name, 0) for name in edge.primitives]
    return resized_spec(spec, columns_to_keep(scores, spec, operations), partial_channels)
