"""The comparison of a search's result with random cells."""

import numpy as np
import pytest

from drnas_jax.costs.base import largest_cost
from drnas_jax.phases.search.budget import smallest_cost
from drnas_jax.phases.search.comparison import Comparison, compare
from drnas_jax.phases.search.history import random_cells


@pytest.mark.parametrize(("accuracy", "worse"), [(0.5, 2), (0.2, 1)])
def test_a_tie_is_no_win(accuracy, worse):
    # Would catch a random cell of equal accuracy that counts as beaten.
    line = Comparison(256, accuracy, (0.1, 0.2, 0.6)).describe()
    assert line == (
        f"{100 * accuracy:.2f} % on 256 validation images, better than {worse} of the 3 other "
        "random cells (mean 30.00 %, best 60.00 %)"
    )


class Recorder:
    """Stands for the measurements: notes the mixing weights, and finds all equally accurate."""

    def accuracies(self, state, mixes, epoch, batches):
        self.mixes = mixes
        return [0.5] * len(mixes)


@pytest.mark.parametrize("share", [None, 0.7])
def test_random_cells_are_within_the_target(small, share):
    # Would catch a cheap result that is compared with cells which the search must not return.
    options = dict(search__epochs=(1,), search__warmup_epochs=(0,), search__operations=(4,))
    options |= dict(search__partial_channels=(1,), search__compared_cells=8)
    options |= dict(cost__name="params", retrain__channels=4, retrain__cells=1)
    experiment = small(**options)
    spec = experiment.first_spec()
    table = experiment.costing.table(spec)
    low, high = smallest_cost(table, spec), largest_cost(table, dict(spec.cells))
    target = low + share * (high - low) if share else 0.0
    experiment, recorder = small(**options, cost__target=target), Recorder()
    genotype = random_cells(experiment.space, spec, 1, [0])[0]
    found = compare(experiment, recorder, spec, None, genotype, 0)
    _, *others = recorder.mixes
    costs = [
        table.constant + sum(np.sum(mix[name] * table.operations[name]) for name in mix)
        for mix in others
    ]
    assert len(found.random) == len(others) > 4
    assert (max(costs) <= target) if share else max(costs) == high
