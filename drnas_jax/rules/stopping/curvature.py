"""Early stopping by curvature (DARTS-ES; Zela et al., arXiv 1909.09656, section 4.3).

The largest eigenvalue of the Hessian of the validation loss in alpha rises when a search begins to
overfit. The search stops when its mean over a window exceeds that of an earlier window by a factor,
and returns the genotype of the epoch in the middle of the earlier window.
"""

import dataclasses
from typing import Any

import numpy as np

from drnas_jax.config import at_least, field
from drnas_jax.genotype import from_json, to_json
from drnas_jax.rules.base import Continue, Rule, Stop, View


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the rule; the defaults are those of the authors' code."""

    window: int = field(5, "Measurements that are averaged.", at_least(1))
    factor: float = field(1.3, "Factor by which the average may rise.", at_least(0))
    distance: int = field(4, "Measurements between the windows that are compared.", at_least(1))
    frequency: int = field(2, "Epochs from one measurement to the next.", at_least(1))
    first_epoch: int = field(10, "First epoch to which the search may return.", at_least(1))
    batches: int = field(1, "Validation batches to measure on.", at_least(1))


class Curvature:
    """The rule that stops when the curvature of the validation loss rises."""

    def __init__(self, options: Options):
        self.options = options

    def decide(self, view: View, memory: dict[str, Any]) -> Continue | Stop:
        """Measures the curvature, and compares the newest window with an earlier one.

        A new stage has other architecture parameters, so it begins with empty windows.
        """
        options = self.options
        if view.epoch % options.frequency:
            return Continue()
        if memory.get("stage") != view.line["stage"]:
            memory.update(stage=view.line["stage"], epochs=[], values=[], genotypes=[])
        measured = view.curvature(options.batches)
        view.say(f"largest eigenvalue in alpha: {measured:.4g}")
        latest = ("epochs", view.epoch), ("values", measured), ("genotypes", to_json(view.genotype))
        needed = options.window + options.distance
        for name, value in latest:
            memory[name] = [*memory[name], value][-needed:]
        if len(memory["values"]) < needed:
            return Continue()
        now = float(np.mean(memory["values"][-options.window :]))
        before = float(np.mean(memory["values"][: options.window]))
        middle = options.window // 2
        epoch = memory["epochs"][middle]
        if epoch < options.first_epoch or now <= options.factor * max(before, 0.0):
            return Continue()
        genotype = from_json(memory["genotypes"][middle], "the rule's memory")
        reason = f"the curvature has risen from {before:.4g} to {now:.4g}"
        return Stop(genotype, f"{reason}; the result is the genotype of epoch {epoch}")


def create(options: Options) -> Rule:
    """Returns the rule of early stopping by curvature."""
    return Curvature(options)
