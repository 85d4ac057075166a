"""Compares two configs: which differences change the result of a run."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from drnas_jax.config.groups import FREE, PHASE_FIELDS


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the full name and the value of every field of a nested mapping."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], begun: Iterable[str] = tuple(PHASE_FIELDS)
) -> dict[str, str]:
    """Compares two configs, as `to_dict` gives them.

    Args:
      old: One config.
      new: Another config.
      begun: Phases that have begun; fields that only other phases read are not compared.

    Returns:
      The fields that change the result of a run, each with a text that states both values.
    """
    old_fields, new_fields = dict(leaves(old)), dict(leaves(new))
    begun = set(begun)
    if "search" in begun and (old_fields.get("cost.name") or new_fields.get("cost.name")):
        shared = {"retrain.channels", "retrain.cells"}  # the cost is that of the final network
    else:
        shared = set()
    unread = tuple(
        prefix for phase, names in PHASE_FIELDS.items() if phase not in begun for prefix in names
    )

    def state(fields: Mapping[str, Any], name: str) -> str:
        return repr(fields[name]) if name in fields else "not set"

    return {
        name: f"{name} was {state(old_fields, name)} and is {state(new_fields, name)}"
        for name in sorted({*old_fields, *new_fields} - set(FREE))
        if state(old_fields, name) != state(new_fields, name)
        and (name in shared or not name.startswith(unread))
    }
