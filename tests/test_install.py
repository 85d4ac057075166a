"""Plugins beside an installed wheel: each is one file in an empty folder, far from the checkout."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import FIELDS, environment

ROOT = Path(__file__).parents[1]
PLUGINS = ("chain.py", "vit.py", "fixed_total.py")
# Short searches in two stages, after which the networks still reach 90 % of the test images.
TWO_STAGES = {
    "search.epochs": (6, 6),
    "search.warmup_epochs": (2, 0),
    "search.operations": (4, 2),
    "retrain.epochs": 60,
}
ADAMW = {
    "search.optimizer": "adamw",
    "search.lr": 3e-3,
    "search.partial_channels": (1, 1),
    "retrain.optimizer": "adamw",
    "retrain.lr": 3e-3,
    "space_options.blocks": 1,
    "space_options.dropout": 0.0,
    "data.crop_padding": 0,
}
pytestmark = pytest.mark.install


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Returns the Python of an environment with the wheel, and with this one's other packages.

    The wheel is built from the sdist, as by `python -m build` and by pip for a published sdist.

    Only the folder of this environment's packages is added, so the finder of an editable install in
    it stays out, and the build uses this environment's tools: the test needs no network.
    """
    folder = tmp_path_factory.mktemp("install")
    source = folder / "source"  # a copy, for the build leaves files behind and reads old ones
    for name in ("drnas_jax", "configs"):
        shutil.copytree(ROOT / name, source / name)
    for name in (
        "pyproject.toml",
        "requirements.txt",
        "MANIFEST.in",
        "CHANGELOG.md",
        "README.md",
        "LICENSE",
    ):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    offline = ("--no-deps", "--no-index")
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    run(source, sys.executable, "-c", build)
    (sdist,) = folder.glob("*.tar.gz")
    run(folder, *pip, "wheel", *offline, "--no-build-isolation", "-w", folder, sdist)
    run(folder, sys.executable, "-m", "venv", "--without-pip", "own")
    python = folder / "own" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    run(folder, *pip, "--python", python, "install", *offline, wheel)
    packages = run(folder, python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    others = (path for path in sys.path if Path(path).name in ("site-packages", "dist-packages"))
    Path(packages.strip(), "others.pth").write_text("\n".join(others))
    return python


@pytest.fixture
def folder(installed, tmp_path):
    """A folder with nothing but the plugins."""
    for name in PLUGINS:
        shutil.copy(ROOT / "examples" / name, tmp_path)
    return tmp_path


def run(folder, *command):
    """Runs a command in a folder and returns what it printed."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={name: value for name, value in environment().items() if name != "PYTHONPATH"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def main(folder, python, **fields):
    """Runs the digits recipe from search to report in `run`; returns what is in its result.json."""
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    command = ("-m", "drnas_jax.main", "--config=configs/digits.py", "--workdir=run", *flags)
    print(run(folder, python, *command))
    assert (folder / "run" / "report.html").stat().st_size > 10_000
    return json.loads((folder / "run" / "result.json").read_text())


def recorded(folder, field):
    """Returns the file that config.json records for a component."""
    values = json.loads((folder / "run" / "config.json").read_text())
    return values["components"][field]["file"]


def test_the_package_comes_from_the_wheel(installed, tmp_path):
    # Would catch a test of the checkout, through an editable install or the current directory.
    found = Path(run(tmp_path, installed, "-c", "import drnas_jax; print(drnas_jax.__file__)"))
    assert found.is_relative_to(installed.parents[1])


@pytest.mark.parametrize(
    ("name", "fields"), [("chain", TWO_STAGES), ("vit", TWO_STAGES | ADAMW)], ids=["chain", "vit"]
)
def test_a_users_space_is_searched_retrained_and_reported(folder, installed, name, fields):
    # Would catch a space that only the checkout can find, or that stages or retraining break.
    result = main(folder, installed, **{"space": f"{name}.py"} | fields)
    assert result["genotype"]["space"] == name
    assert result["test_accuracy"] >= 0.9
    assert recorded(folder, "space") == str(folder / f"{name}.py")
    history = (folder / "run" / "search" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in history] == [1] * 6 + [2] * 6


def test_a_users_distribution_is_searched(folder, installed):
    # Would catch a distribution that works only with bundled files of its kind.
    fields = FIELDS | {"arch.name": "fixed_total.py"}
    result = main(folder, installed, **fields)
    assert 0.1 < result["test_accuracy"] <= 1
    assert recorded(folder, "arch.name") == str(folder / "fixed_total.py")
