"""Eight simulated devices, a compilation cache for fast second runs, and shared fixtures."""

import functools
import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]
# Files that take long: they are started first, so that no core is left with one at the end.
LONG = (
    *("processes", "end_to_end", "resume", "signals", "darts_cell", "spaces_common"),
    *("torch_import", "nasbench201_space", "backend"),
)

# Before jax is imported, and inherited by the commands that tests start.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# A shell starts a command in the background, and nohup any, with these ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# On a busy machine an example of hypothesis may take long. By default each run has the same
# examples; `make test-all` draws new ones.
settings.register_profile(
    "random", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("same", settings.get_profile("random"), derandomize=True)
settings.load_profile("same")


def pytest_configure(config):
    # A killed run may leave half an entry, and a checkout may be read-only: jax then compiles.
    for what in ("reading", "writing"):
        config.addinivalue_line("filterwarnings", f"ignore:Error {what} persistent compilation")


def pytest_collection_modifyitems(items):
    names = [*(f"test_{name}" for name in LONG), None, "test_bench"]  # None: all others
    # The benches switch the compilation cache off for their process, hence last.
    items.sort(key=lambda item: names.index(item.path.stem if item.path.stem in names else None))


@pytest.fixture(scope="session")
def shared():
    """Returns the folder of reference values beside the project, or skips the test."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the reference values in {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny():
    """Returns the function that makes the smallest search; see `_tiny_experiment`."""
    return _tiny_experiment


@pytest.fixture(scope="session")
def small(tiny):
    """Returns the same with the space of small_space.py and cheap samples, made once each."""
    space = str(Path(__file__).with_name("small_space.py"))

    @functools.cache
    def make(devices=1, **changes):
        return tiny(devices, **{"space": space, "arch__name": "gumbel", **changes})

    return make


@pytest.fixture
def quick_compilation(monkeypatch):
    """Compiles programs as if they ran only once: optimisation takes longer than it saves here."""
    from drnas_jax.training import compiler

    monkeypatch.setattr(compiler, "options", functools.partial(compiler.options, once=True))


@pytest.fixture
def one_stage(small, quick_compilation, monkeypatch):
    """Returns a function of changed fields -> config and arrays of a search in the small space.

    It has one stage of six epochs of two steps; displays hear of every step.
    """
    from drnas_jax.phases import loop

    monkeypatch.setattr(loop, "_REPORT_EVERY", 0.0)

    def make(**changes):
        fields = dict(epochs=(6,), operations=(4,), partial_channels=(1,), warmup_epochs=(0,))
        experiment = small(**{f"search__{name}": value for name, value in fields.items()} | changes)
        data = experiment.dataset
        arrays = dict(x_train=data.images, y_train=data.labels)
        return experiment.config, arrays | dict(x_test=data.test_images, y_test=data.test_labels)

    return make


def _tiny_experiment(devices=1, *, classes=4, **changes):
    """Returns a search of C 8, N 1 on 64 random 8x8 images, with batches of 16.

    The result is not compared with random cells unless `changes` say so.

    Args:
      devices: Number of devices.
      classes: Number of classes of the images, at most 4.
      changes: Changed fields of the config, with `__` for a dot.
    """
    import jax
    import numpy as np
    import samplers

    from drnas_jax.config import defaults, from_config_dict
    from drnas_jax.data import Dataset
    from drnas_jax.phases.search.experiment import Experiment
    from drnas_jax.training.devices import make_mesh

    config = defaults()
    config.data.crop_padding = 1
    config.search.update(dict(channels=8, cells=1, batch_size=16, compared_cells=0))
    if "arch__name" not in changes:
        config.update_from_flattened_dict(samplers.FIELDS)
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 8, 8, 3), np.uint8)
    labels = rng.integers(0, classes, 64).astype(np.int32)
    names = tuple("abcd"[:classes])
    dataset = Dataset("noise", images, labels, images[:8], labels[:8], names, True)
    return Experiment(from_config_dict(config), dataset, make_mesh(jax.devices()[:devices]))


@pytest.fixture
def on_devices(monkeypatch):
    """Returns a function that sets how many devices a run has."""
    import jax

    from drnas_jax.training import devices

    make, available = devices.make_mesh, jax.devices()

    def set_count(count):
        monkeypatch.setattr(devices, "make_mesh", lambda given=available[:count]: make(given))

    return set_count


@pytest.fixture
def tools(tmp_path):
    """Returns a function (name, script) -> PATH whose first program of that name is the script."""
    folder = tmp_path / "tools"
    folder.mkdir()

    def add(name, script):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
        return f"{folder}:{os.environ['PATH']}"

    return add
