"""A campaign of faults; see faults.py."""

import time

import pytest
from faults import FAULTS, campaign, table


@pytest.mark.slow
def test_nothing_is_lost(tmp_path):
    seed = time.time_ns()
    print(f"seed {seed}")
    outcomes = campaign(tmp_path, 100, seed)
    print(table(outcomes))
    assert outcomes.keys() == FAULTS.keys()
    assert sum(counter.total() for counter in outcomes.values()) == 100
