"""Which floor each module of the package is on, and what it imports, read from its source."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "drnas_jax"

# From the bottom up. The modules of one package may import each other; different members of one
# floor may not. `python tests/draw_floors.py` draws them.
FLOORS = (
    ("errors",),
    ("components", "extras", "files"),
    ("config", "configs"),
    ("flags", "genotype"),
    ("genotype_formats", "picture", "training"),
    ("data", "nn"),
    ("spaces",),
    ("distributions", "torch_names"),
    ("costs", "export_formats", "penalties", "rules", "tables", "workdir"),
    ("writers",),
    ("phases",),
    ("report",),
    ("", "main", "tools"),  # "": the package itself, what a library user imports
)


def module_name(file):
    """Returns the name of a module within the package, such as `phases.loop`."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imports(name):
    """Yields the package's modules that a module imports, at its top or in a function."""
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


def member(name):
    """Returns the member of a floor that a module belongs to."""
    return name.partition(".")[0]


def floor(name):
    """Returns the number of a module's floor, from 0 at the bottom."""
    found = [number for number, members in enumerate(FLOORS) if member(name) in members]
    assert len(found) == 1, f"{name} must be on exactly one floor of FLOORS"
    return found[0]


def direct_imports():
    """Returns, for each member, the members that it imports and no other import leads to."""
    imported = {name: set() for members in FLOORS for name in members}
    for name in MODULES:
        imported[member(name)] |= {member(other) for other in imports(name)} - {member(name)}
    reached = {}
    for members in FLOORS:  # upward, so what is imported comes first
        for name in members:
            reached[name] = imported[name].union(*(reached[other] for other in imported[name]))
    return {
        name: others - set().union(*(reached[other] for other in others))
        for name, others in imported.items()
    }
