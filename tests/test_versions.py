"""The package works with the oldest and the newest versions that requirements.txt allows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from small_run import FIELDS, environment

ROOT = Path(__file__).parents[1]
# Imports all modules, then prints the versions of all installed packages.
IMPORT = """
import importlib, importlib.metadata, json, pkgutil
import drnas_jax
for module in pkgutil.walk_packages(drnas_jax.__path__, "drnas_jax."):
    importlib.import_module(module.name)
installed = importlib.metadata.distributions()
print(json.dumps({package.metadata["Name"]: package.version for package in installed}))
"""


def requirements():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def oldest(requirement):
    (bound,) = requirement.specifier
    assert bound.operator == ">="
    if requirement.name == "tfp-nightly":  # an index may list only the latest ones
        return str(requirement)
    return f"{requirement.name}=={bound.version}"


def run(folder, *command):
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("which", ["oldest", "newest"])
def test_an_installed_package(which, tmp_path):
    # Would catch a missing requirement, or recipes that are only in the checkout.
    pip = (sys.executable, "-m", "pip", "index", "versions", "absl-py")
    if subprocess.run(pip, capture_output=True).returncode:
        pytest.skip("needs a package index")
    run(tmp_path, sys.executable, "-m", "venv", "venv")
    programs = tmp_path / "venv" / "bin"
    wanted = [oldest(each) for each in requirements()] if which == "oldest" else []
    run(tmp_path, str(programs / "pip"), "install", "-q", *wanted, str(ROOT))
    installed = json.loads(run(tmp_path, str(programs / "python"), "-c", IMPORT))
    installed = {canonicalize_name(name): version for name, version in installed.items()}
    for requirement in requirements():
        version = installed[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, requirement
    flags = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    command = str(programs / "drnas")
    run(tmp_path, command, "--config=configs/digits.py", "--workdir=run", *flags)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0.2 < result["test_accuracy"] <= 1
