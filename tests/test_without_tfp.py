"""Without TensorFlow Probability everything works except its own sampler."""

import os
import subprocess
import sys

import pytest
from small_run import ROOT

FILES = (
    *("distributions", "penalties", "phases/search/test_experiment.py"),
    *("phases/search/test_phase.py", "tools/test_bench.py"),
)


@pytest.mark.slow
def test_the_tests_pass_without_tfp(tmp_path):
    # Would catch an import that only an environment without tfp notices, and a test that
    # fails there and is not skipped.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['tensorflow_probability'] = None  # as if not installed\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *(f"tests/{name}" for name in FILES)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert skipped and all("needs TensorFlow Probability" in line for line in skipped)
