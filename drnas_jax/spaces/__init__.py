"""Search spaces, one a file; `find` looks one up by its file's name."""

import sys
from typing import cast

import numpy as np

from drnas_jax import components
from drnas_jax.config import Config
from drnas_jax.errors import UserError, check_choice
from drnas_jax.genotype import Genotype
from drnas_jax.spaces.base import Space, Structure, all_operations

__all__ = [
    "Space",
    "Structure",
    "all_operations",
    "check_genotype",
    "check_image",
    "check_retraining",
    "find",
    "names",
    "random_genotype",
]


def names() -> list[str]:
    """The search spaces there are."""
    return components.names(sys.modules[__name__])


def find(name: str) -> Space:
    """The space of that name.

    Raises:
      UserError: there is none; the message lists those there are.
    """
    return cast(Space, components.find(sys.modules[__name__], "search space", name))


def check_image(space: Space, stem: str, size: tuple[int, int]) -> None:
    """Raises UserError unless the space has such a stem and its strides divide the image (h, w)."""
    check_choice("stem", stem, space.STEMS)
    if any(side % space.STEMS[stem] for side in size):
        raise UserError(
            f"the images are {size[0]}x{size[1]} pixels, and their sides must be divisible by "
            f"{space.STEMS[stem]}: set data.image_size"
        )


def check_genotype(genotype: Genotype, name: str) -> None:
    """Raises UserError unless the genotype is of the named space and has its cell types."""
    if genotype.space != name:
        raise UserError(
            f"the genotype is of the space {genotype.space!r}: expected {name!r}; "
            f"set --config.space={genotype.space} or take another genotype"
        )
    types, expected = (sorted(dict(cells)) for cells in (genotype.cells, find(name).EDGES))
    if types != expected:
        raise UserError(f"the genotype has the cells {types}: the space {name} has {expected}")


def check_retraining(config: Config) -> None:
    """Raises UserError if networks of the config's space lack what `config.retrain` asks for."""
    known = find(config.space).RETRAIN_FIELDS
    for field, what in (
        ("auxiliary_weight", "have no auxiliary head"),
        ("drop_path", "drop no path"),
    ):
        value = getattr(config.retrain, field)
        if value and field not in known:
            raise UserError(
                f"retrain.{field} is {value}, but networks of the space {config.space} {what}: "
                "set it to 0"
            )


def random_genotype(name: str, seed: int) -> Genotype:
    """A cell of the named space whose operations and edges are drawn uniformly.

    Raises:
      UserError: there is no such space.
    """
    space, random = find(name), np.random.default_rng(seed)
    operations = all_operations(space)
    strength = {
        cell_type: random.random((len(kept), len(kept[0])))
        for cell_type, kept in operations.items()
    }
    return space.derive(strength, operations)
