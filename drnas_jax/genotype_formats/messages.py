"""What the errors of all formats say."""

import reprlib
from typing import Any

from drnas_jax.errors import UserError

FORMS = (
    "a genotype.json, Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), "
    "reduce=[...], reduce_concat=range(2, 6)), |op~0|+|op~0|op~1|+|op~0|op~1|op~2|, NNI's JSON, or "
    "a code such as 22212220"
)


def not_a_cell(source: str, value: Any) -> UserError:
    """Makes the error for a value that has none of the formats.

    Args:
      source: Name of its origin, for example the file.
      value: The value.
    """
    return UserError(f"{source} is {reprlib.repr(value)}, which is not a cell: expected {FORMS}")
