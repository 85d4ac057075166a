"""Data flow one way: a module of the package imports only from rooms below its own."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "drnas_jax"

# From the bottom up. Modules of one package may import each other, other members of a floor may
# not: distributions, nn and data know nothing of a search.
ROOMS = (
    ("errors",),
    ("config", "configs", "files", "components"),
    ("genotype", "flags"),
    ("picture",),
    ("training",),
    ("workdir",),
    ("distributions", "nn", "data"),
    ("spaces",),
    ("tables",),
    ("phases",),
    ("report",),
    ("", "main", "tools"),  # "": the package itself, what a library user imports
)
# Their components, one a file, are looked up by name; but what is about two spaces names them.
BY_NAME = ("distributions", "spaces")
ABOUT_SPACES = ("tools.torch_names", "tools.torch_import")


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
    others = {name for name in MODULES if not name.startswith(f"{package}.")}
    for name in others - set(ABOUT_SPACES):
        assert not components & set(imports(name)), f"{name} imports a component of {package}"


def test_the_test_sees_imports():
    """Against reading nothing: these are there for sure."""
    assert {"config", "errors"} <= set(imports("distributions.dirichlet"))
    assert "phases.loop" in imports("phases.search.phase")  # from drnas_jax.phases import loop
    assert "data.dataset" in imports("data.stream")
