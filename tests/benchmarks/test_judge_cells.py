"""Cells in the supernet of a search that has ended."""

import json
import subprocess
import sys

import pytest
import small_run


@pytest.mark.slow
def test_the_result_of_a_search_is_judged_as_the_search_did(tmp_path):
    # Would catch another checkpoint, other statistics of BatchNorm, and cells in another order.
    workdir, file = tmp_path / "run", tmp_path / "run/search/genotype.json"
    flags = ["--phases=search", "--config.search.operations=(5,5)"]
    changes = ["--config.search.compared_cells=5", "--config.search.compared_batches=1000"]
    small_run.run(small_run.command(workdir, *flags, *changes))
    compared = json.loads(file.read_text())["provenance"]["compared"]
    other = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
    command = [sys.executable, "benchmarks/judge_cells.py", str(workdir), other, str(file)]
    printed = subprocess.run(
        command,
        cwd=small_run.ROOT,
        env=small_run.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    none, found = map(json.loads, printed.stdout.splitlines())
    assert found == {"genotype": str(file), "valid_accuracy": round(compared["accuracy"], 4)}
    assert none["genotype"] == other and none["valid_accuracy"] < found["valid_accuracy"]
