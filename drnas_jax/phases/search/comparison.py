"""The comparison of a search's result with random cells, all in the final supernet."""

import contextlib
import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

from drnas_jax.genotype import Genotype
from drnas_jax.phases.search.diagnostics import Diagnostics
from drnas_jax.phases.search.experiment import Experiment
from drnas_jax.phases.search.history import random_cells
from drnas_jax.phases.search.state import SearchState
from drnas_jax.spaces import SupernetSpec
from drnas_jax.spaces.base import one_hot
from drnas_jax.training.random_keys import stream_number

_DRAWS = 20  # draws for each random cell that is within `cost.target`


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Validation accuracies of the result and of random cells in the supernet, in 0..1.

    Attributes:
      images: Number of validation images.
      accuracy: Accuracy of the result.
      random: Accuracies of the random cells.
    """

    images: int
    accuracy: float
    random: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean accuracy of the random cells."""
        return statistics.mean(self.random)

    @property
    def worse(self) -> int:
        """Number of random cells that are less accurate than the result."""
        return sum(other < self.accuracy for other in self.random)

    def describe(self) -> str:
        """Returns the comparison in one line, for the terminal and the report."""
        return (
            f"{100 * self.accuracy:.2f} % on {self.images:,} validation images, better than "
            f"{self.worse} of the {len(self.random)} other random cells (mean "
            f"{100 * self.mean:.2f} %, best {100 * max(self.random):.2f} %)"
        )

    def to_json(self) -> dict[str, Any]:
        """Converts to JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Comparison":
        """Converts back what `to_json` returned."""
        return cls(values["images"], values["accuracy"], tuple(values["random"]))


def compare(
    experiment: Experiment,
    diagnostics: Diagnostics,
    spec: SupernetSpec,
    state: SearchState,
    genotype: Genotype,
    epoch: int,
) -> Comparison | None:
    """Judges a genotype beside `search.compared_cells` random ones of the remaining operations.

    Random cells that cost more than `cost.target` are replaced by further ones, if enough of the
    first draws are within it. Cells that are drawn again, and the genotype itself, are left out.

    Args:
      experiment: Inputs of the search.
      diagnostics: Measurements on the supernet.
      spec: Spec of the supernet.
      state: State at the end of the search.
      genotype: Result of the search.
      epoch: Number of the last epoch, from 0.

    Returns:
      The comparison, or None if no other cell was drawn.

    Raises:
      UserError: The supernet lacks an operation of the genotype, which is then from a stage before.
    """
    config, (_, valid) = experiment.config.search, experiment.split
    seed = [experiment.config.seed, int(stream_number("search/compared"))]
    count, fits = config.compared_cells, experiment.costing.fits
    draws = _DRAWS * count if experiment.config.cost.target else count
    cells = random_cells(experiment.space, spec, draws, seed)
    within = [cell for cell in cells if fits(cell, spec)][:count]
    others = [cell for cell in within if cell != genotype]
    if not others:
        return None
    mixes = [one_hot(dict(spec.cells), cell) for cell in (genotype, *others)]
    with contextlib.closing(experiment.loader):  # the epochs have ended, and closed it
        first, *rest = diagnostics.accuracies(state, mixes, epoch, config.compared_batches)
    images = min(len(valid), config.compared_batches * config.batch_size)
    return Comparison(images, first, tuple(rest))
