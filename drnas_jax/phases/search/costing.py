"""The costs of a search's networks and operations, and the discretisation within the target."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from drnas_jax import components
from drnas_jax.config import Config
from drnas_jax.costs import base as costs
from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype
from drnas_jax.phases.search.budget import Budget, format_cost, smallest_cost
from drnas_jax.spaces import Mix, NetworkSpec, Space, SupernetSpec


@dataclasses.dataclass(frozen=True, eq=False)
class Costing:
    """The costs that `config.cost` names, for the networks of a search.

    Attributes:
      config: Config of the run.
      space: Search space of the config.
      network: Spec of the network whose cost counts, with an arbitrary genotype.
    """

    config: Config
    space: Space
    network: NetworkSpec

    @functools.cached_property
    def cost(self) -> costs.Cost | None:
        """Cost of the config, or None if it names none."""
        config = self.config.cost
        if not config.name:
            return None
        cost: costs.Cost = components.create("cost", config.name, config.options, field="cost.name")
        return cost

    def table(self, spec: SupernetSpec) -> costs.CostTable | None:
        """Returns the costs of a supernet's operations, or None if the config names no cost."""
        if self.cost is not None and spec not in self._tables:
            self._tables[spec] = self.cost.table(self.space, spec, self.network)
        return self._tables.get(spec)

    @functools.cached_property
    def _tables(self) -> dict[SupernetSpec, costs.CostTable]:
        return {}

    def exact(self, genotype: Genotype) -> float:
        """Returns the cost of the final network of a genotype; the config names a cost."""
        assert self.cost is not None
        network = dataclasses.replace(self.network, genotype=genotype)
        return float(self.cost.exact(self.space, network))

    def derive(self, ranks: Mapping[str, np.ndarray], spec: SupernetSpec) -> Genotype:
        """Discretises: returns the best genotype of a supernet, within `cost.target` if it is set.

        Args:
          ranks: Ranks of the operations by cell type [e, o], such as the mean mixing weights.
          spec: Spec of the supernet, with the remaining operations of each edge.
        """
        genotype = self.space.derive(ranks, spec)
        table, target = self.table(spec), self.config.cost.target
        if table is None or not target:
            return genotype
        return Budget(target, table, spec, self.space.name).derive(ranks, genotype, self.exact)

    def fits(self, genotype: Genotype, spec: SupernetSpec) -> bool:
        """Returns whether a genotype is within `cost.target` by the table, or there is no target.

        Args:
          genotype: Genotype of the supernet's remaining operations.
          spec: Spec of the supernet.
        """
        table, target = self.table(spec), self.config.cost.target
        if table is None or not target:
            return True
        return costs.cost_in(table, dict(spec.cells), genotype) <= target

    def check_targets(self, field: str, targets: Sequence[float], spec: SupernetSpec) -> None:
        """Raises UserError if the cost cannot be determined, or no genotype is within a target.

        Args:
          field: Name of the config field that has the targets.
          targets: Largest costs of results.
          spec: Spec of the first stage's supernet.
        """
        if self.cost is not None:
            self.space.check(self.network)
        table = self.table(spec)
        if table is not None and self.cost is not None and targets:
            smallest, lowest = smallest_cost(table, spec), min(targets)
            if smallest > lowest * (1 + 1e-12):
                raise UserError(
                    f"{field} is {lowest:g}, but the smallest network of the space "
                    f"{self.space.name} costs {format_cost(smallest)} {self.cost.unit}: raise it, "
                    "or lower retrain.channels, retrain.cells or cost.image_size"
                )

    def describe(self, spec: SupernetSpec) -> list[str]:
        """Returns messages about the costs of the space, and a target that excludes no network.

        Args:
          spec: Spec of the first stage's supernet; the config names a cost.
        """
        table, target = self.table(spec), self.config.cost.target
        assert table is not None and self.cost is not None
        low, high = smallest_cost(table, spec), costs.largest_cost(table, dict(spec.cells))
        messages = [f"networks cost {format_cost(low)} to {format_cost(high)} {self.cost.unit}"]
        if target >= high:
            messages.append(
                f"warning: cost.target is {format_cost(target)}, which no network exceeds, so it "
                "excludes nothing: lower it, or raise retrain.channels or retrain.cells"
            )
        return messages

    def term(self, spec: SupernetSpec) -> Callable[[Mix], jax.Array] | None:
        """Returns the function from mixing weights to the term of alpha's loss; None without it."""
        table, config, cells = self.table(spec), self.config.cost, dict(spec.cells)
        if table is None or not config.weight:
            return None
        largest = costs.largest_cost(table, cells)

        def term(mix: Mix) -> jax.Array:
            expected = costs.expected_cost(table, cells, mix)
            return costs.penalty(expected, config.weight, config.target, largest)

        return term
