"""Search spaces, one module each; `base.Space` describes their interface."""

import os
import reprlib
from typing import Any

import numpy as np

from drnas_jax import components, genotype_formats
from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype, read_text
from drnas_jax.spaces.base import Cell, Edge, Mix, NetworkSpec, Space, SupernetSpec

__all__ = [
    "Cell",
    "Edge",
    "Mix",
    "NetworkSpec",
    "Space",
    "SupernetSpec",
    "check_genotype",
    "create",
    "load_genotype",
    "published",
    "random_genotype",
    "uniform_genotypes",
]


def create(name: str, options: Any = None) -> Space:
    """Returns a search space: a bundled one by its name, or a user's by its module's path.

    Args:
      name: Value of `config.space`.
      options: Value of `config.space_options`; None for the defaults.

    Raises:
      UserError: There is no such space, or its options are invalid.
    """
    return components.create("space", name, options, field="space")


def published() -> dict[str, Genotype]:
    """Returns the published genotypes by name: the constants `PUBLISHED` of all bundled spaces."""
    return {
        name: genotype
        for space in components.names("space")
        for name, genotype in getattr(
            components.find("space", space, "space"), "PUBLISHED", {}
        ).items()
    }


def load_genotype(genotype: str | os.PathLike[str]) -> Genotype:
    """Returns a published genotype, or reads one from a file or a text.

    Args:
      genotype: Name of a published genotype, path of a file, or the text of a cell. A text and the
        content of a file may have the format of another project, see
        `drnas_jax.genotype_formats`.

    Raises:
      UserError: There is neither such a name nor such a file, or it holds no cell, or the cell
        has an operation that its space lacks.
    """
    name, known = os.fspath(genotype), published()
    if name in known:
        return known[name]
    file = os.path.expanduser(name)
    if os.path.isfile(file):
        return genotype_formats.parse(read_text(file), str(file), _primitives())
    if genotype_formats.is_text(name):
        return genotype_formats.parse(name, "the genotype", _primitives())
    raise UserError(
        f"genotype {reprlib.repr(name)} is neither a file nor a published name: give a file, the "
        f"text of a cell ({genotype_formats.FORMS}), or one of {', '.join(sorted(known))}"
    )


def _primitives() -> dict[str, tuple[str, ...]]:
    """Returns the operations of the bundled spaces: their constants `PRIMITIVES`."""
    modules = {name: components.find("space", name, "space") for name in components.names("space")}
    return {name: getattr(module, "PRIMITIVES", ()) for name, module in modules.items()}


def check_genotype(genotype: Genotype, space: Space) -> None:
    """Raises UserError unless the genotype belongs to this space and has its cell types."""
    if genotype.space != space.name:
        other = f"--config.space to the module of the space {genotype.space!r}"
        if genotype.space in components.names("space"):
            other = f"--config.space={genotype.space}"
        raise UserError(
            f"the genotype is of the space {genotype.space!r}: expected {space.name!r}; set "
            f"{other}, or take another genotype"
        )
    types, expected = sorted(dict(genotype.cells)), sorted(space.cells)
    if types != expected:
        raise UserError(
            f"the genotype has the cells {types}: expected {expected}, as in the space {space.name}"
        )


def uniform_genotypes(space: Space) -> list[Genotype]:
    """Returns genotypes with equal operations on all edges, one for each position in the lists."""
    spec = SupernetSpec(tuple(space.cells.items()), 1, 1, 1, (1, 1, 1))
    longest = max(cell.shape[1] for cell in space.cells.values())
    columns = np.eye(longest, dtype=np.float32)
    return [
        space.derive(
            {name: np.tile(column[: c.shape[1]], (c.shape[0], 1)) for name, c in spec.cells}, spec
        )
        for column in columns
    ]


def random_genotype(space: Space, seed: int) -> Genotype:
    """Returns a genotype whose operations and edges are drawn uniformly."""
    random = np.random.default_rng(seed)
    scores = {cell_type: random.random(cell.shape) for cell_type, cell in space.cells.items()}
    spec = SupernetSpec(tuple(space.cells.items()), 1, 1, 1, (1, 1, 1))
    return space.derive(scores, spec)
