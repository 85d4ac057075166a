"""The warnings about the result of a search."""

import dataclasses

import pytest

from drnas_jax.config import CostConfig, defaults, from_config_dict
from drnas_jax.phases.search.advice import is_cheapest, warnings_about
from drnas_jax.phases.search.comparison import Comparison

CONFIG = from_config_dict(defaults())


def config(**cost):
    return dataclasses.replace(CONFIG, cost=CostConfig(name="macs", **cost))


@pytest.mark.parametrize(
    ("cost", "remedies"),
    [
        (dict(weight=0.5, target=1e5), {"lower cost.weight", "raise cost.target"}),
        (dict(weight=0.5), {"lower cost.weight"}),
        (dict(target=1e5), {"raise cost.target"}),
        (dict(), {"train alpha for longer"}),
    ],
)
def test_the_cheapest_network_is_pointed_out_with_what_can_change_it(cost, remedies):
    # Would catch a search that returns a cell without any convolution in silence, and advice to
    # change a setting that the run does not have.
    (warning,) = warnings_about(config(**cost), None, cheapest=True)
    known = {"lower cost.weight", "raise cost.target", "train alpha for longer"}
    assert {words for words in known if words in warning} == remedies
    assert warning.startswith("the result is the cheapest") and warning.endswith("new workdir")


@pytest.mark.parametrize(("accuracy", "warned"), [(0.29, True), (0.3, False), (0.5, False)])
def test_a_result_below_the_mean_of_random_cells_is_pointed_out(accuracy, warned):
    # Would catch a search that was too short and ends as if all were well.
    compared = Comparison(256, accuracy, (0.1, 0.3, 0.5))
    warnings = warnings_about(config(), compared, cheapest=False)
    assert [("better than chance" in each) for each in warnings] == [True] * warned
    assert warnings_about(config(), None, cheapest=False) == []


def test_a_network_is_the_cheapest_up_to_rounding_if_costs_differ():
    # Would catch sums of seconds that differ in their last digit, and a space of equal networks.
    assert is_cheapest(0.1 + 0.2, 0.3, 0.4) and not is_cheapest(0.31, 0.3, 0.4)
    assert not is_cheapest(7.0, 7.0, 7.0)
