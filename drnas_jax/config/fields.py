"""Declarations of fields: of the config and of a component's `Options`."""

import dataclasses
from collections.abc import Callable
from typing import Any

# Takes a value (of a tuple, each item); returns None if it is valid, otherwise what was expected.
Check = Callable[[Any], str | None]


def at_least(low: float) -> Check:
    """Returns the check that a number is `low` or more."""
    return lambda value: None if value >= low else f"at least {low}"


def more_than(low: float) -> Check:
    """Returns the check that a number is more than `low`."""
    return lambda value: None if value > low else f"more than {low}"


def less_than(high: float) -> Check:
    """Returns the check that a number is less than `high`."""
    return lambda value: None if value < high else f"less than {high}"


def at_most(high: float) -> Check:
    """Returns the check that a number is `high` or less."""
    return lambda value: None if value <= high else f"at most {high}"


def choices(*allowed: str) -> Check:
    """Returns the check that a text is one of those given."""
    return lambda value: None if value in allowed else f"one of {', '.join(allowed)}"


@dataclasses.dataclass(frozen=True)
class Component:
    """Marks a field whose value names a component.

    Attributes:
      kind: Key of `components.KINDS`.
      options: Name of the field of the same group that holds the component's options.
      none: Value that stands for no component, or None if there must be one.
      others: Whether other words than the names of bundled components are accepted too, as the
        names of TFDS data sets are. They have no options.
    """

    kind: str
    options: str
    none: str | None = None
    others: bool = False


def field(
    default: Any,
    meaning: str,
    *checks: Check,
    component: Component | None = None,
    content: bool = False,
) -> Any:
    """Declares a field of the schema or of a component's `Options`.

    Args:
      default: Value that the field has if none is given.
      meaning: One sentence for `--help`.
      *checks: What a value, or each item of a tuple, must satisfy.
      component: Set if the value names a component.
      content: Whether the value, an option, names a file whose content changes the result. A run
        records its hash, and does not resume with another content.
    """
    metadata = dict(meaning=meaning, checks=checks, component=component, content=content)
    return dataclasses.field(default=default, metadata=metadata)
