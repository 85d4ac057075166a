"""The data in the figures."""

import numpy as np

from drnas_jax.report import figures
from drnas_jax.report.history import Edges, Epoch


def test_edges_may_have_different_primitives():
    # Would catch columns taken from one list of primitives for all edges.
    edges = Edges(("2<-0", "2<-1", "2<-1"), (("skip", "conv"), ("pool",), ("conv", "pool")))
    nan = np.nan
    scores = np.array([[1.0, 3.0], [2.0, nan], [nan, 5.0]])
    figure = figures.mixing_weights([Epoch(1, scores={"cell": scores})], "cell", edges)
    (heatmap,) = figure.data
    assert heatmap.x == ("skip", "conv", "pool")
    expected = [[0.25, 0.75, nan], [nan, nan, 1], [nan, nan, 1]]
    np.testing.assert_array_equal(heatmap.z, expected)
    # plotly draws rows of one name over each other.
    assert heatmap.y == ("2<-0", "2<-1 (1)", "2<-1 (2)")


def test_epochs_that_lack_a_value_are_left_out():
    # Would catch an epoch without validation that stops the report, or counts as 0.
    history = [Epoch(1, valid_accuracy=0.5), Epoch(2), Epoch(3, valid_accuracy=0.75, stage=2)]
    figure = figures.curves(history)
    (line,) = figure.data
    assert (line.name, line.x, line.y) == ("validation", (1, 3), (50, 75))
    (mark,) = figure.layout.shapes
    assert mark.x0 == 2.5
