"""What the search phase makes of alpha, and what it refuses before it begins."""

import types

import numpy as np
import pytest

from drnas_jax.phases.search.phase import SearchPhase
from drnas_jax.training.metrics import Display


@pytest.mark.parametrize(("ranking", "sources"), [("mean", [0, 1]), ("softmax", [0, 2])])
def test_edges_rank_by_the_mean_or_by_the_softmax_of_alpha(tiny, ranking, sources):
    # Would catch an option that the derivation of the genotype does not read.
    changes = dict(space="darts", search__operations=(7, 4), arch__options__edge_ranking=ranking)
    phase = SearchPhase(tiny(**changes), Display(quiet=True))
    alpha = np.zeros((14, 7), np.float32)
    alpha[2, 0] = 6  # the second node's inputs: by the mean 0.54, 0.43 and 0.40
    alpha[3, 1:] = -1.5
    alpha[4, 0] = 3  # by the softmax 0.99, 0.43 and 0.77
    state = types.SimpleNamespace(alpha={"normal": alpha, "reduce": alpha}, fixed={})
    for _, cell in phase.experiment.derived(state, phase.spec).cells:
        assert [source for _, source in cell[1]] == sources
