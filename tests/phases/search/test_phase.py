"""What a search makes of alpha."""

import types

import numpy as np
import pytest

from drnas_jax.phases.search.phase import _SearchPhase
from drnas_jax.training.metrics import Display


@pytest.mark.parametrize(("ranking", "sources"), [("mean", [0, 1]), ("softmax", [0, 2])])
def test_edge_ranking(tiny, ranking, sources):
    """Of a node's inputs the two strongest are kept, by the mean or by the softmax of alpha."""
    problem = tiny(space="darts", operations=(7, 4), edge_ranking=ranking)
    phase = _SearchPhase(problem, Display(quiet=True))
    alpha = np.zeros((14, 7), np.float32)
    alpha[2, 0] = 6  # the second node's inputs: by the mean 0.54, 0.43 and 0.40
    alpha[3, 1:] = -1.5
    alpha[4, 0] = 3  # by the softmax 0.99, 0.43 and 0.77
    state = types.SimpleNamespace(alpha={"normal": alpha, "reduce": alpha})
    for _, cell in phase.genotype(state).cells:
        assert [source for _, source in cell[1]] == sources
