"""Use without the command line: the names of the package, and a whole run on arrays."""

import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from resuming import Listener, checkpoint, history

import drnas_jax
from drnas_jax import evaluate, export, load_genotype, retrain, search
from drnas_jax.config import defaults
from drnas_jax.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("function", [search, retrain, evaluate, export])
def test_the_phases_are_functions_of_a_config_and_a_workdir(function):
    # Would catch a changed order of arguments, which scripts rely on.
    parameters = inspect.signature(function).parameters
    assert list(parameters) == ["config", "workdir", "dataset", "display"]
    assert parameters["dataset"].default is parameters["display"].default is None


def test_no_module_has_the_name_of_a_public_function():
    # Would catch a package that nobody can import from, because the function hides it.
    modules = {module.name for module in pkgutil.iter_modules(drnas_jax.__path__)}
    assert "main" in modules
    assert not modules & set(drnas_jax.__all__)
    for name in ("phases.search.step", "phases.retrain.step", "phases.evaluate"):
        assert inspect.ismodule(importlib.import_module(f"drnas_jax.{name}"))


def test_all_names_and_the_version():
    # Would catch a public name that is missing, and a version that was raised in one place only.
    assert {"evaluate", "export", "load_genotype", "retrain", "search"} <= set(drnas_jax.__all__)
    for name in drnas_jax.__all__:
        assert callable(getattr(drnas_jax, name))
    assert drnas_jax.load_genotype is load_genotype
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert drnas_jax.__version__ == version


def test_importing_starts_no_backend_and_needs_no_tfp():
    # Would catch an import after which a user can no longer choose a platform, or call
    # jax.distributed.initialize; and tfp, which takes seconds, in a run that draws nothing with it.
    script = (
        "import sys, drnas_jax.main, jax; from jax._src import xla_bridge;"
        "from drnas_jax import config, distributions;"
        "config.from_config_dict(config.defaults()); distributions.create('dirichlet');"
        "assert not any(name.startswith('tensorflow_probability') for name in sys.modules);"
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


EDGE_WEIGHTS = """
import jax, jax.numpy as jnp
from drnas_jax.distributions.base import Distribution, softmax

class EdgeWeights(Distribution):
    def init(self, key, cell):
        return {"rows": super().init(key, cell), "edges": jnp.zeros(len(cell.edges))}

    def mean(self, alpha, cell):
        return softmax(alpha["rows"], cell) * jax.nn.sigmoid(alpha["edges"])[:, None]

    def sample(self, alpha, cell, key, progress, role):
        noise = 0.1 * jax.random.uniform(key, cell.shape) if role == "weights" else 0.0
        return self.mean(alpha, cell) + noise

create = EdgeWeights
"""


def arrays_of(brightness):
    """Returns images of two classes: the first are brighter on the left, the others on the right.

    Args:
      brightness: Largest value of a pixel.
    """
    rng, count = np.random.default_rng(0), 48
    labels = np.arange(count) % 2
    images = rng.integers(0, brightness // 2, (count, 4, 6, 3))
    for image, label in zip(images, labels, strict=True):
        image[:, 3 * label : 3 * label + 3] += brightness // 2
    images = images.astype(np.uint8)
    return dict(x_train=images, y_train=labels, x_test=images[:16], y_test=labels[:16])


@pytest.mark.slow
def test_a_whole_run_on_arrays_in_a_space_without_batchnorm(
    on_devices, quick_compilation, tmp_path
):
    # Would catch what takes for granted that there is BatchNorm, SGD, no dropout, edges of equal
    # length, an alpha [e, o] or a data set with a name.
    on_devices(2)
    (tmp_path / "edge_weights.py").write_text(EDGE_WEIGHTS)
    config, workdir = defaults(), tmp_path / "run"
    config.space = str(ROOT / "tests" / "uneven_space.py")
    config.arch.name = str(tmp_path / "edge_weights.py")
    config.data.update(dict(crop_padding=0, flip="no"))
    for group in (config.search, config.retrain):
        group.update(dict(optimizer="adamw", lr=1e-2, channels=8, batch_size=12))
    config.search.update(dict(epochs=(1, 2), warmup_epochs=(1, 0), operations=(3, 2)))
    config.search.partial_channels = (2, 1)
    config.retrain.epochs = 8
    arrays = arrays_of(200)

    found = search(config, workdir, arrays, Listener())
    lines = history(workdir / "search")
    assert [line["stage"] for line in lines] == [1, 2, 2]
    lengths = [
        [sum(x is not None for x in row) for row in line["concentration"]["uneven_block"]]
        for line in lines
    ]
    assert lengths == [[3, 1, 2]] + [[2, 1, 2]] * 2
    assert all(np.isfinite([line["train_loss"], line["valid_loss"]]).all() for line in lines)
    assert load_genotype(workdir / "search/genotype.json") == found.genotype
    assert json.loads((workdir / "config.json").read_text())["config"]["data"]["name"] == "arrays"
    _, saved, metadata = checkpoint(workdir / "search/checkpoints")
    assert not [name for name in saved if "variables" in name]
    assert saved["['alpha']['uneven_block']['edges']"].shape == (3,)
    assert metadata["devices"] == 2

    assert retrain(config, workdir, arrays, Listener()).steps == 8 * 4
    result = evaluate(config, workdir, arrays, Listener())
    assert result.genotype == found.genotype
    assert result.test_accuracy > 0.9  # on images that it was trained on
    written = json.loads((workdir / "result.json").read_text())
    assert written == json.loads(json.dumps(result.to_json()))
    assert result.search_seconds == pytest.approx(found.seconds, abs=0.06)  # it is rounded
    with pytest.raises(UserError, match="is not the one of the retraining"):
        evaluate(config, workdir, arrays_of(100), Listener())


def test_arrays_with_a_mistake_leave_no_workdir(tmp_path):
    # Would catch a folder that then refuses the config without the mistake.
    with pytest.raises(UserError, match="has no y_test"):
        search(defaults(), tmp_path / "run", {"x_train": 0, "y_train": 0, "x_test": 0})
    assert not (tmp_path / "run").exists()
