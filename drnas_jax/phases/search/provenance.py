"""The provenance in genotype.json: where the genotype comes from."""

from collections.abc import Mapping
from typing import Any

from drnas_jax.config import Config
from drnas_jax.costs.base import largest_cost
from drnas_jax.genotype import Genotype
from drnas_jax.phases.search.budget import format_cost, smallest_cost
from drnas_jax.phases.search.comparison import Comparison
from drnas_jax.phases.search.experiment import Experiment
from drnas_jax.training.metrics import Display
from drnas_jax.training.progress import Progress
from drnas_jax.workdir import version


def provenance(
    config: Config,
    progress: Progress,
    stopped: str,
    cost: Mapping[str, Any] | None,
    comparison: Comparison | None,
) -> dict[str, Any]:
    """Returns the origin of the result of a search, as JSON values.

    Args:
      config: Config of the run.
      progress: Progress at the end of the search, which a rule may have stopped early.
      stopped: Why a rule has done so, or an empty string.
      cost: Result of `result_cost`.
      comparison: Comparison of the result with random cells, or None.
    """
    return {
        "distribution": config.arch.name,
        "data": config.data.name,
        "epochs": progress.epochs_done,
        "seed": config.seed,
        "selection": config.search.selection,
        **({"stopped": stopped} if stopped else {}),
        **({"cost": cost} if cost else {}),
        **({"compared": comparison.to_json()} if comparison else {}),
        "search_seconds": round(progress.seconds, 1),
        "drnas_jax": version("drnas_jax"),
        "jax": version("jax"),
    }


def result_cost(
    experiment: Experiment, genotype: Genotype, display: Display
) -> dict[str, Any] | None:
    """Returns the costs of the result, of the cheapest and of the largest network, and the target.

    Prints the cost of the result. Returns None if the config names no cost.

    Args:
      experiment: Inputs of the search.
      genotype: Result of the search.
      display: What the user sees.
    """
    config = experiment.config.cost
    if experiment.costing.cost is None:
        return None
    exact, target = experiment.costing.exact(genotype), config.target
    spec = experiment.first_spec()
    table = experiment.costing.table(spec)
    assert table is not None  # since there is a cost
    unit, over = experiment.costing.cost.unit, ""
    size = f" at {config.image_size}x{config.image_size}" if config.image_size else ""
    if target and exact > target:
        over = f", more than cost.target = {target:g}: the rule did not keep to it"
    display.message(f"the result costs {format_cost(exact)} {unit}{size}{over}")
    described = {
        "name": config.name,
        "unit": unit,
        "exact": exact,
        "smallest": smallest_cost(table, spec),
        "largest": largest_cost(table, dict(spec.cells)),
    }
    return {**described, "target": target} if target else described
