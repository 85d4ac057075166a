"""The selection rule of DrNAS: each edge takes the operation of largest mean mixing weight."""

from typing import Any

from drnas_jax.rules.base import Continue, Rule, Stop, View


class Mean:
    """The rule that chooses the genotype of the mean mixing weights."""

    def decide(self, view: View, memory: dict[str, Any]) -> Continue | Stop:
        """Stops with the derived genotype after the last epoch."""
        return Stop(view.genotype) if view.epoch == view.epochs else Continue()


def create() -> Rule:
    """Returns the selection rule of DrNAS."""
    return Mean()
