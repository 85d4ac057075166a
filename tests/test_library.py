"""Use without the command line: the names of the package, and what importing it does."""

import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import drnas_jax
from drnas_jax import evaluate, load_genotype, retrain, search

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("function", [search, retrain, evaluate])
def test_the_phases_are_functions_of_a_config_and_a_workdir(function):
    assert list(inspect.signature(function).parameters) == ["config", "workdir", "display"]


def test_no_module_has_the_name_of_a_public_function():
    # Such a package could not be imported from: the function would hide it.
    modules = {module.name for module in pkgutil.iter_modules(drnas_jax.__path__)}
    assert "main" in modules
    assert not modules & set(drnas_jax.__all__)


def test_all_names_and_the_version():
    assert set(drnas_jax.__all__) == {"evaluate", "load_genotype", "retrain", "search"}
    assert drnas_jax.load_genotype is load_genotype
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert drnas_jax.__version__ == version


def test_importing_starts_no_backend():
    # So that a user can still call jax.distributed.initialize, or choose a platform.
    script = (
        "import drnas_jax.main, jax; from jax._src import xla_bridge;"
        "assert not xla_bridge.backends_are_initialized();"
        "assert jax.config.jax_compilation_cache_dir is None"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
