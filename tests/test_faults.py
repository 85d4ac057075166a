"""Runs the campaign of faults.py."""

import time

import pytest
from faults import FAULTS, campaign, table


@pytest.mark.slow
def test_no_fault_changes_or_loses_results(tmp_path):
    # Catches faults whose resumed run differs from an undisturbed one in any bit.
    seed = time.time_ns()
    print(f"seed {seed}")
    outcomes = campaign(tmp_path, 100, seed)
    print(table(outcomes))
    assert outcomes.keys() == FAULTS.keys()
    assert sum(counter.total() for counter in outcomes.values()) == 100
