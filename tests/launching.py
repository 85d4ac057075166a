"""Helpers for the tests of the launch scripts."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = ("local", "slurm", "tpu_vm", "xpk")
PROGRAM = ["--config=configs/digits.py", "--config.search.epochs=(25,25)", "--config.x=it's"]

# The smallest valid options of each script.
REQUIRED = {
    "local": [],
    "slurm": [],
    "tpu_vm": ["--name=pod", "--zone=z", "--type=v6e-8", "--version=v2"],
    "xpk": ["--cluster=c", "--workload=w", "--tpu-type=v6e-8", "--docker-image=i"],
}
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in ("XLA_FLAGS", "CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS")
}


def launch(script, *arguments, **environment):
    """Runs a launch script to its end, with extra environment variables."""
    return subprocess.run(
        [LAUNCH / f"{script}.sh", *arguments],
        cwd=ROOT,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def error(done):
    """Returns the single line by which a script refused its options."""
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line
