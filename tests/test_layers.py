"""Data flow one way: a module of the package imports only from floors below its own."""

import ast
import re
import sys
import tomllib

import draw_floors
import pytest
from floors import FLOORS, MODULES, PACKAGE, floor, imports, member

from drnas_jax.components import KINDS

# These are about PyTorch's networks of two spaces, so they name them.
ABOUT_SPACES = ("torch_names", "tools.torch_import", "tools.torch_networks")


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_downward(name):
    # Catches a lower floor that begins to know an upper one, such as a space that imports a phase.
    top = member(name)
    for imported in imports(name):
        if member(imported) == top:
            continue
        assert floor(imported) < floor(name), f"{name} imports {imported}"


def test_every_member_of_a_floor_exists():
    # Catches a package that was renamed or removed and is still listed.
    known = {member(name) for name in MODULES}
    assert {name for members in FLOORS for name in members} == known


def test_the_picture_shows_the_imports():
    # Catches a picture of imports that have changed since: `python tests/draw_floors.py` draws it.
    assert draw_floors.FILE.read_text() == draw_floors.draw()


@pytest.mark.parametrize("kind", KINDS)
def test_components_are_looked_up_and_not_imported(kind):
    # Catches an import that would make a new component more than one new file.
    package = KINDS[kind].removeprefix(f"{PACKAGE.name}.")
    inside = {name for name in MODULES if name.startswith(f"{package}.")}
    private = (f"{package}._", f"{package}.base")
    components = {name for name in inside if not name.startswith(private)}
    assert package in MODULES
    for name in MODULES.keys() - inside - set(ABOUT_SPACES):
        assert not components & set(imports(name)), f"{name} imports a component of {package}"


def test_imports_are_seen():
    # Catches a parser that finds nothing, with which all tests above would pass.
    assert {"config", "errors"} <= set(imports("distributions.dirichlet"))
    assert "phases.loop" in imports("phases.search.phase")  # from drnas_jax.phases import loop
    assert "data.dataset" in imports("data.stream")


# Names under which packages are imported, if they have others.
IMPORTED = {
    "absl-py": "absl",
    "opencv-python-headless": "cv2",
    "orbax-checkpoint": "orbax",
    "protobuf": "google",
    "scikit-learn": "sklearn",
    "tfp-nightly": "tensorflow_probability",
}
# Not seen below: JAX's other half, the files of TFDS, and what checkpoints.py imports by its name.
UNSEEN = {"jaxlib", "array_record", "orbax"}
BY_HAND = {"nats_bench"}  # whoever makes a table from the archive of NAS-Bench-201 installs it


def required(lines):
    """Returns the names under which the packages in lines such as `jax>=0.10` are imported."""
    names = [re.match(r"[\w.-]+", line)[0] for line in lines if line[0] != "#"]
    return {IMPORTED.get(name, name.replace("-", "_")) for name in names}


def test_the_core_installs_what_it_imports_and_nothing_else():
    # Catches a package that only tests need, or that is installed only because another needs it.
    root = PACKAGE.parent
    core = required((root / "requirements.txt").read_text().splitlines())
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].items()
    optional = required(line for name, lines in extras if name != "dev" for line in lines)
    files = [*MODULES.values(), *(root / "configs").glob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    for node in nodes:
        imported |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
    tops = {name.split(".")[0] for name in imported} - sys.stdlib_module_names - {PACKAGE.name}
    assert tops <= core | optional | BY_HAND
    assert core <= tops | UNSEEN
