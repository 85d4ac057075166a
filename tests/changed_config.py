"""Configs with some fields changed, and the errors for them."""

import pytest

from drnas_jax.config import defaults, from_config_dict
from drnas_jax.errors import UserError

# A module of a user, with options.
MODULE = """
import dataclasses

from drnas_jax.config import at_least, choices, field

@dataclasses.dataclass(frozen=True)
class Options:
    patch: int = field(4, "Side of a patch.", at_least(1))
    scale: float = 1
    sizes: tuple[int, ...] = field((1, 2), "Sizes.", at_least(1))
    pool: str = field("mean", "Pooling.", choices("mean", "first"))
    bias: bool = True

    def __post_init__(self):
        if self.patch == 7:
            raise ValueError("patch is 7:\\nexpected another number")

def create(options):
    return options
"""


def changed(**fields):
    """Returns the defaults with some fields set, `search__lr` for search.lr."""
    values = defaults().to_dict()
    for name, value in fields.items():
        *groups, last = name.split("__")
        group = values
        for key in groups:
            group = group[key]
        group[last] = value
    return values


def refused(**fields):
    """Returns the message of the error for some fields, which must be one line."""
    with pytest.raises(UserError) as caught:
        from_config_dict(changed(**fields))
    assert "\n" not in str(caught.value)
    return str(caught.value)
