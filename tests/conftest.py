"""Eight simulated devices, a compilation cache for fast second runs, and shared fixtures."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]
# Begun first, so that no core is left with one of them at the end.
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
# A shell's background and nohup start a command with these ignored, which is inherited too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# A busy machine is no fault of an example's.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


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
    """The folder of reference values, beside the project."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the reference values in {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny():
    """The smallest search: (device count, changed fields) -> Problem; see below."""
    return _tiny_problem


def _tiny_problem(devices=1, *, space="nasbench201", classes=4, arch=(), compute=(), **search):
    """A search of C 8, N 1 on 64 random 8x8 images, batch 16.

    Args:
      devices: how many.
      space: of the supernet.
      classes: of the images.
      arch, compute: changed fields of config.arch and config.compute, pairs.
      search: changed fields of config.search.
    """
    import jax
    import numpy as np

    from drnas_jax.config import from_config_dict
    from drnas_jax.configs import base
    from drnas_jax.data import Dataset
    from drnas_jax.phases.search.problem import make_problem
    from drnas_jax.training.devices import make_mesh

    config = base.get_config()
    config.space, config.data.crop_padding = space, 1
    config.arch.update(dict(arch))
    config.compute.update(dict(compute))
    config.search.update(dict(channels=8, cells=1, batch_size=16) | search)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 8, 8, 3), np.uint8)
    labels = rng.integers(0, classes, 64).astype(np.int32)
    names = tuple("abcd"[:classes])
    dataset = Dataset("noise", images, labels, images[:8], labels[:8], names, True)
    return make_problem(from_config_dict(config), dataset, make_mesh(jax.devices()[:devices]))


@pytest.fixture
def tools(tmp_path):
    """Puts pretended tools before the others: name, script -> PATH."""
    folder = tmp_path / "tools"
    folder.mkdir()

    def add(name, script):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
        return f"{folder}:{os.environ['PATH']}"

    return add
