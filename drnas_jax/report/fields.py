"""The fields of a JSON object from a workdir, checked as they are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as shorten
from typing import Any

from drnas_jax.errors import UserError

_LARGEST = 1e300  # refuses infinity and nan, and leaves room for sums


def is_number(value: Any) -> bool:
    """Returns whether a JSON value is a finite number."""
    return type(value) in (int, float) and -_LARGEST < value < _LARGEST


@dataclass(frozen=True)
class Fields:
    """A JSON object whose fields are read by type.

    Every method raises a UserError that names the source and the field if the value does not fit.

    Attributes:
      values: The object.
      source: Name of its origin in error messages, for instance a file and a line.
    """

    values: Mapping[str, Any]
    source: str

    def fault(self, name: str, expected: str) -> UserError:
        """Returns the error for a field that does not fit."""
        value = shorten(self.values[name])[:200] if name in self.values else "missing"
        return UserError(
            f"{self.source}: {name} is {value}: expected {expected}; restore the file, or leave "
            "this workdir out of the report"
        )

    def count(self, name: str, default: int | None = None) -> int:
        """Reads an integer from 0 to 2^53; `default` replaces a missing one."""
        value = self.values.get(name, default)
        if type(value) is not int or not 0 <= value <= 2**53:
            raise self.fault(name, "an integer, 0 or more")
        return value

    def number(self, name: str) -> float:
        """Reads a finite number."""
        if not is_number(self.values.get(name)):
            raise self.fault(name, "a number")
        return float(self.values[name])

    def number_or_none(self, name: str) -> float | None:
        """Reads a finite number, or None if it is missing or null."""
        return None if self.values.get(name) is None else self.number(name)

    def numbers(self, name: str) -> tuple[float, ...]:
        """Reads a list of finite numbers that is not empty."""
        values = self.values.get(name)
        if not isinstance(values, list) or not values or not all(map(is_number, values)):
            raise self.fault(name, "a list of numbers")
        return tuple(float(value) for value in values)

    def text(self, name: str) -> str:
        """Reads a text."""
        value = self.values.get(name)
        if not isinstance(value, str):
            raise self.fault(name, "a text")
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        """Reads an object, empty if it is missing."""
        value = self.values.get(name, {})
        if not isinstance(value, Mapping):
            raise self.fault(name, "an object")
        return value

    def objects(self, name: str) -> "list[Fields]":
        """Reads a list of objects, empty if it is missing."""
        value = self.values.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
            raise self.fault(name, "a list of objects")
        return [Fields(item, f"{self.source}: {name}[{i}]") for i, item in enumerate(value)]
