"""The line that compares a search's result with random cells."""

import pytest

from drnas_jax.phases.search.comparison import Comparison


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [
        (0.5, "50.00 % on 256 validation images, better than 2 of 3 random cells (mean 30.00 %, "),
        (0.2, "20.00 % on 256 validation images, better than 1 of 3 random cells (mean 30.00 %, "),
    ],
)
def test_a_result_below_the_mean_of_random_cells_is_pointed_out(accuracy, words):
    # Would catch a search that was too short and ends as if all were well.
    line = Comparison(256, accuracy, (0.1, 0.2, 0.6)).describe()
    assert line.startswith(words + "best 60.00 %)")
    assert line.endswith("; below their mean: train alpha for more epochs") == (accuracy < 0.3)
