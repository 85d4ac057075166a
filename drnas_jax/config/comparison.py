"""Compares two configs: which differences change the result of a run."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from drnas_jax.config.groups import Config
from drnas_jax.config.schema import FREE, OPTIONS, PHASE_FIELDS, get


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

    def state(fields: Mapping[str, Any], name: str) -> str:
        return repr(fields[name]) if name in fields else "not set"

    return {
        name: f"{name} was {state(old_fields, name)} and is {state(new_fields, name)}"
        for name in sorted({*old_fields, *new_fields} - set(FREE))
        if state(old_fields, name) != state(new_fields, name)
        and (name in shared or is_read(name, begun))
    }


def is_read(name: str, begun: Iterable[str]) -> bool:
    """Returns whether phases that have begun read a field.

    Args:
      name: Full name of the field.
      begun: Phases that have begun.
    """
    others = (prefixes for phase, prefixes in PHASE_FIELDS.items() if phase not in begun)
    return not any(name.startswith(prefixes) for prefixes in others)


def content_files(config: Config) -> dict[str, str]:
    """Returns the files whose content changes the result, by the option that names each."""
    return {
        f"{name}.{declared.name}": file
        for name in OPTIONS
        if (options := get(config, name))
        for declared in dataclasses.fields(options)
        if declared.metadata.get("content") and (file := getattr(options, declared.name))
    }
