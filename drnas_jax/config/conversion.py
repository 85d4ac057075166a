"""Converts nested values to a frozen Config and back, and checks every value on the way."""

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from types import ModuleType
from typing import Any, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict

from drnas_jax import components
from drnas_jax.config.checks import check_together
from drnas_jax.config.fields import Check
from drnas_jax.config.groups import Config
from drnas_jax.config.schema import COMPONENTS, GROUPS, OPTIONS, component_names, get, schema
from drnas_jax.errors import UserError

_SUFFIXES = dict(k=3, m=6, g=9, b=9, thousand=3, million=6, billion=9)  # with their exponents


def defaults() -> ConfigDict:
    """Returns all fields with their defaults, as a ConfigDict in which only these can be set.

    A recipe sets the options of a component after its name, either way:

        config.space = "my_spaces/vit.py"
        config.space_options = dict(patch=4)
        config.space_options.patch = 4
    """
    return to_config_dict(plain(Config()))


def to_config_dict(values: Mapping[str, Any]) -> ConfigDict:
    """Returns nested values as a ConfigDict that is locked, except for the groups of options."""
    config = ConfigDict(values)
    config.lock()
    for name in OPTIONS:
        get(config, name).unlock()
    return config


def from_config_dict(values: Mapping[str, Any]) -> Config:
    """Checks a ConfigDict, or a plain nested mapping, and returns it as a frozen Config.

    Fields that are not given have their defaults.

    Raises:
      UserError: A field is unknown, of the wrong type or out of range, or names a component that
        does not exist.
    """
    config = build(values)
    check_together(config)
    return config


def build(values: Mapping[str, Any]) -> Config:
    """Does what `from_config_dict` does, except for the checks that compare several fields."""
    config = Config(**_values(Config, values, ""))
    used = component_names(config)
    for name in OPTIONS:
        config = _with_options(config, name, used.get(OPTIONS[name]))
    return config


def freeze(config: Config | Mapping[str, Any]) -> Config:
    """Returns a Config as it is and passes anything else to `from_config_dict`."""
    return config if isinstance(config, Config) else from_config_dict(config)


def plain(config: Config) -> dict[str, Any]:
    """Returns all fields as nested dicts; a component without options has an empty dict of them."""
    values = dataclasses.asdict(config)
    for name in OPTIONS:
        group, _, last = name.rpartition(".")
        owner = values[group] if group else values
        owner[last] = owner[last] or {}
    return values


def to_dict(config: Config) -> dict[str, Any]:
    """Returns all fields as they are written to config.json: nested, with lists for tuples."""
    return json.loads(json.dumps(plain(config)))


def unknown_field(name: str, known: Iterable[str]) -> UserError:
    """Makes the error for an unknown field, which lists similar fields or those of its group.

    A component has few options, so all of them are listed.
    """
    known = list(known)
    group = name if name in OPTIONS else name.rpartition(".")[0]
    inside = [other for other in known if other.startswith(f"{name}.")]
    if inside:
        return UserError(
            f"config field {name} is a group: set one of its fields, such as {inside[0]}"
        )
    prefix = f"{group}." if group else ""
    beside = [other.removeprefix(prefix) for other in known if other.startswith(prefix)]
    siblings = list(dict.fromkeys(other.partition(".")[0] for other in beside))
    if group in OPTIONS and not siblings:
        return UserError(
            f"unknown config field {name!r}: the component that {OPTIONS[group]} names has no "
            "options, so remove it"
        )
    last = name.rpartition(".")[2]
    near = [prefix + other for other in difflib.get_close_matches(last, siblings)]
    near += [other for other in known if other.endswith(f".{last}")]  # of another group
    if not siblings:
        near = difflib.get_close_matches(name, known, cutoff=0.75)
    if not near and not siblings:
        return UserError(f"unknown config field {name!r}: choose one of those that --help lists")
    if group in OPTIONS:
        near = []
    listed = ", ".join(near or [prefix + other for other in siblings])
    return UserError(f"unknown config field {name!r}: choose one of {listed}")


def near_fields(key: str) -> list[str]:
    """Returns the full names of the groups and fields whose last part is spelt like a key."""
    names = [*GROUPS, *(name for name, _ in schema())]
    last = {name: name.rpartition(".")[2] for name in names}
    near = difflib.get_close_matches(key.rpartition(".")[2], set(last.values()))
    return [name for spelling in near for name in names if last[name] == spelling]


def written_out(text: str, kind: type) -> str | None:
    """Returns how to write the first number of a text that has a suffix, such as 600e6 for 600M.

    Args:
      text: Value that is not a number, such as '600M', '(150k,300k)' or '5 million'.
      kind: `int` for the number in digits, `float` for one with an exponent.

    Returns:
      A phrase such as 'write 600e6 for 600M', or None if no number has a suffix.
    """
    match = re.search(rf"(\d+(?:\.\d+)?)[ _]?({'|'.join(_SUFFIXES)})\b", text, re.IGNORECASE)
    if match is None:
        return None
    exponent = _SUFFIXES[match[2].lower()]
    digits = f"{Decimal(match[1]).scaleb(exponent):f}"
    number = digits if kind is int else f"{match[1]}e{exponent}"
    return f"write {number} for {match[0]}"


def _mapping(values: Any, name: str) -> Mapping[str, Any]:
    if hasattr(values, "items"):
        return dict(values.items())
    what = f"config field {name} is {values!r}" if name else f"the config is {values!r}"
    raise UserError(f"{what}: expected a group of fields")


def _values(cls: type, given: Any, prefix: str) -> dict[str, Any]:
    """Checks the values given for a dataclass, and adds the defaults of its other fields."""
    given = _mapping(given, prefix.rstrip("."))
    fields = {declared.name: declared for declared in dataclasses.fields(cls) if declared.init}
    types = get_type_hints(cls)
    for name in given:
        if name not in fields:
            raise unknown_field(prefix + name, [prefix + known for known in fields])
    values = {}
    for name, declared in fields.items():
        if (kind := types[name]) in GROUPS.values():
            values[name] = kind(**_values(kind, given.get(name, {}), f"{name}."))
            continue
        value = given[name] if name in given else _default(declared, prefix + name)
        if prefix + name not in OPTIONS:  # `build` checks them later
            value = _convert(kind, value, prefix + name)
            _apply(declared.metadata.get("checks", ()), value, prefix + name)
        values[name] = value
    return values


def _default(declared: dataclasses.Field, name: str) -> Any:
    if declared.default is not dataclasses.MISSING:
        return declared.default
    if declared.default_factory is not dataclasses.MISSING:
        return declared.default_factory()
    raise UserError(f"config field {name} has no default: give it one in the class Options")


def _convert(kind: Any, value: Any, name: str) -> Any:
    """Checks the type of a value; an int becomes a float if a float is expected."""
    if get_origin(kind) is tuple and get_args(kind)[1:] == (...,):
        if not isinstance(value, list | tuple):
            return (_convert(get_args(kind)[0], value, name),)
        items = enumerate(value)
        return tuple(_convert(get_args(kind)[0], item, f"{name}[{i}]") for i, item in items)
    if kind not in (bool, int, float, str):
        raise UserError(
            f"config field {name} has the type {kind}: give it one of bool, int, float and str, or "
            "a tuple of one of them, such as tuple[int, ...]"
        )
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (kind is not bool and isinstance(value, bool)):
        expected = kind.__name__
        if kind in (int, float) and isinstance(value, str):
            expected = "; ".join(filter(None, [expected, written_out(value, kind)]))
        raise UserError(f"config field {name} is {value!r}: expected {expected}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"config field {name} is {value!r}: expected a finite number")
    return kind(value)


def _apply(checks: Iterable[Check], value: Any, name: str) -> None:
    items = [(name, value)]
    if isinstance(value, tuple):
        items = [(f"{name}[{i}]", item) for i, item in enumerate(value)]
    for check in checks:
        for where, item in items:
            if expected := check(item):
                raise UserError(f"config field {where} is {item!r}: expected {expected}")


def _module(name: str, field_name: str) -> ModuleType | None:
    """Returns the module of a component, or None for a name that has no module."""
    kind, others = COMPONENTS[field_name].kind, COMPONENTS[field_name].others
    if others and not components.is_users(name) and name not in components.names(kind):
        return None
    return components.find(kind, name, field_name)


def _with_options(config: Config, name: str, component: str | None) -> Config:
    """Replaces the given options of a component by an instance of its `Options`.

    Args:
      config: Config in which the options are still a mapping, or None.
      name: Full name of the field with the options.
      component: Name of the component; None if the run has none.
    """
    given = _mapping(get(config, name) or {}, name)
    module = None if component is None else _module(component, OPTIONS[name])
    options = None if module is None else components.options_type(module)
    if options is None and given:
        raise unknown_field(f"{name}.{next(iter(given))}", ())
    group, _, last = name.rpartition(".")
    changed: dict[str, Any] = {last: None if options is None else _make(options, given, name)}
    if group:
        changed = {group: dataclasses.replace(getattr(config, group), **changed)}
    return dataclasses.replace(config, **changed)


def _make(options: type, given: Mapping[str, Any], name: str) -> Any:
    values = _values(options, given, f"{name}.")
    try:
        return options(**values)
    except ValueError as error:  # of its own __post_init__
        raise UserError(f"config field {name}: {' '.join(str(error).split())}") from error
