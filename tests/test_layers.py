"""Data flow one way: a module of the package imports only from rooms below its own."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "drnas_jax"

# From the bottom up. Modules of one package may import each other, other members of a room may
# not: arch, nn and data know nothing of search, search nothing of retraining.
ROOMS = (
    ("compiler", "errors", "interrupt", "keys", "losses", "machine"),
    ("config", "configs", "files", "lookup", "metrics", "sharding", "counting"),
    ("distributed",),
    ("genotype", "workdir", "checkpoint", "optimise", "flags"),
    ("picture",),
    ("arch", "nn", "data"),
    ("spaces", "feed"),
    ("cells", "benchmarks"),
    ("analysis",),
    ("loop",),
    ("search",),
    ("retrain",),
    ("evaluate",),
    ("torch_names",),
    ("torch_import",),
    ("runs",),
    ("report",),
    ("", "main", "bench", "plan"),  # "": the package itself, what a library user imports
)
# Their components, one a file, are looked up by name; but what is about two spaces names them.
BY_NAME = ("arch", "spaces")
ABOUT_SPACES = ("torch_names", "torch_import")


def module_name(file):
    """The name within the package, such as 'search.step'; of a package, its own."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imports(name):
    """The package's modules that one imports, wherever in its code."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            # `from package import x`: x may be a module, or something in the package.
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for path in found:
            head, *rest = path.split(".")
            if head == PACKAGE.name:
                inside = ".".join(rest)
                while inside not in MODULES:
                    inside = inside.rpartition(".")[0]
                yield inside


def place(name):
    """The number of a module's room."""
    top = name.split(".")[0]
    found = [number for number, room in enumerate(ROOMS) if top in room]
    assert len(found) == 1, f"{name} belongs into exactly one room of ROOMS"
    return found[0]


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_downward(name):
    top = name.split(".")[0]
    for imported in imports(name):
        if imported.split(".")[0] == top:
            continue
        assert place(imported) < place(name), f"{name} imports {imported}"


def test_every_room_has_its_modules():
    known = {name.split(".")[0] for name in MODULES}
    assert {member for room in ROOMS for member in room} == known


@pytest.mark.parametrize("package", BY_NAME)
def test_components_are_looked_up_and_not_imported(package):
    """So that a new one is one new file."""
    components = {name for name in MODULES if name.startswith(f"{package}.")} - {f"{package}.base"}
    assert components
    for name in set(MODULES) - set(ABOUT_SPACES):
        assert not components & set(imports(name)), f"{name} imports a component of {package}"


def test_the_test_sees_imports():
    """Against reading nothing: these are there for sure."""
    assert {"config", "errors"} <= set(imports("arch.dirichlet"))
    assert "loop" in imports("search.controller")  # from drnas_jax import loop
    assert "data" in imports("feed")  # from drnas_jax.data import Dataset
