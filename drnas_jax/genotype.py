"""Genotypes, which are the results of searches, and their versioned JSON files.

A genotype says which operations a network keeps. This module checks only its structure, so that any
file can be read safely; the search space checks whether the operations, nodes and edges exist.
"""

import codecs
import json
import os
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drnas_jax.errors import UserError
from drnas_jax.files import read_json, write_json

Pair = tuple[str, int]
Node = tuple[Pair, ...]
Cell = tuple[Node, ...]

VERSION = 1

_FIELDS = ("version", "space", "cells", "provenance")

# Limits for files of unknown origin, far above any cell that can be trained.
MAX_BYTES = 1_000_000
_MAX_CELLS = 64
_MAX_INPUTS = 8
_MAX_NODES = 64
_MAX_PAIRS = 128
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True)
class Genotype:
    """The cells of a network, one for each cell type; hashable.

    A cell is a tuple of nodes, and a node is a tuple of (operation, source) pairs. Sources number
    the inputs of the cell first and its nodes after them. A NAS-Bench-201 cell has one input, 0,
    and its three nodes read all earlier ones in order. A DARTS cell has two inputs (1 is the output
    of the previous cell, 0 that of the cell before it), and each of its four nodes reads two
    earlier ones.

    Attributes:
      space: Name of the search space.
      cells: Pairs of a cell type and its cell, in order.
    """

    space: str
    cells: tuple[tuple[str, Cell], ...]

    @property
    def inputs(self) -> int:
        """Number of inputs of a cell: the smallest one that the sources allow."""
        reach = (
            source - number
            for _, cell in self.cells
            for number, node in enumerate(cell)
            for _, source in node
        )
        return max(reach, default=0) + 1

    def cell(self, cell_type: str) -> Cell:
        """Returns the cell of one type, for example `normal`.

        Raises:
          UserError: The genotype has no such cell type; the message lists its cell types.
        """
        for known, cell in self.cells:
            if known == cell_type:
                return cell
        types = ", ".join(known for known, _ in self.cells)
        raise UserError(f"the genotype has no cell {cell_type!r}: expected one of {types}")


def to_cells(genotype: Genotype) -> dict[str, Any]:
    """Returns the cells of a genotype as plain values, ready for JSON."""
    return {
        cell_type: [[list(pair) for pair in node] for node in cell]
        for cell_type, cell in genotype.cells
    }


def to_json(genotype: Genotype, provenance: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the content of a genotype.json as plain values.

    Args:
      genotype: Genotype to convert.
      provenance: Plain values that describe the origin of the genotype.

    Raises:
      UserError: `from_json` would refuse the result.
    """
    plain = {
        "version": VERSION,
        "space": genotype.space,
        "cells": to_cells(genotype),
        "provenance": dict(provenance or {}),
    }
    from_json(plain, "the genotype to be written")
    return plain


def from_json(mapping: Any, source: str) -> Genotype:
    """Checks the content of a genotype.json and converts it to a genotype.

    Args:
      mapping: Values as `to_json` returns them; `provenance` is optional.
      source: Name of their origin in error messages, for example the file.

    Raises:
      UserError: The values are not a genotype; the message names the source and the field.
    """
    if not isinstance(mapping, Mapping):
        raise _fault(f"{source}: the content", mapping, "an object with version, space and cells")
    version = mapping.get("version")
    if type(version) is not int or version != VERSION:
        raise _fault(f"{source}: version", version, f"{VERSION}, the only known version")
    for key in mapping:
        if key not in _FIELDS:
            raise _fault(f"{source}: a field", key, f"one of {', '.join(_FIELDS)}")
    if not isinstance(mapping.get("provenance", {}), Mapping):
        raise _fault(f"{source}: provenance", mapping["provenance"], "an object")
    space = _check_name(f"{source}: space", mapping.get("space"))
    return from_cells(space, mapping.get("cells"), source)


def from_cells(space: str, cells: Any, source: str) -> Genotype:
    """Checks the `cells` of a genotype.json or of a history line and converts them to a genotype.

    Args:
      space: Name of the search space.
      cells: Values as `to_cells` returns them.
      source: Name of their origin in error messages.

    Raises:
      UserError: The values are not cells; the message names the source and the field.
    """
    if not isinstance(cells, Mapping) or not 1 <= len(cells) <= _MAX_CELLS:
        raise _fault(f"{source}: cells", cells, f"an object of 1 to {_MAX_CELLS} cell types")
    return Genotype(
        space,
        tuple(
            (
                _check_name(f"{source}: a cell type", cell_type),
                _check_cell(f"{source}: cells.{cell_type}", cell),
            )
            for cell_type, cell in cells.items()
        ),
    )


def save(path: str | os.PathLike[str], genotype: Genotype, provenance: Mapping[str, Any]) -> None:
    """Writes a genotype.json in one atomic step.

    Args:
      path: Path of the file.
      genotype: Genotype to write.
      provenance: Plain values that describe the origin of the genotype.

    Raises:
      UserError: `load` would refuse the file.
    """
    write_json(path, to_json(genotype, provenance))


def load(path: str | os.PathLike[str]) -> Genotype:
    """Reads a genotype.json.

    Raises:
      UserError: The file cannot be read or is not a genotype.json.
    """
    return from_json(parse_json(read_text(path), str(path)), str(path))


def read_text(path: str | os.PathLike[str]) -> str:
    """Reads a small text file in UTF-8, or in UTF-16 if a byte-order mark says so.

    Raises:
      UserError: The file cannot be read, is too large or is not text.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} is too large: expected at most {MAX_BYTES} bytes")
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except ValueError as error:
        raise UserError(
            f"{path} is not a genotype.json ({error}): expected text in UTF-8 or UTF-16"
        ) from error


def parse_json(text: str, source: str) -> Any:
    """Parses JSON strictly: no key occurs twice, and all numbers are finite.

    Raises:
      UserError: The text is not JSON; the message names the source.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{source} is not a genotype.json ({error}): restore it, or give another cell"
        ) from error


def search_seconds(path: str | os.PathLike[str]) -> float | None:
    """Returns the duration, in seconds, of the search that wrote a genotype.json; None if unknown.

    Raises:
      UserError: The file is damaged.
    """
    provenance = (read_json(path) or {}).get("provenance")
    seconds = provenance.get("search_seconds") if isinstance(provenance, dict) else None
    return float(seconds) if isinstance(seconds, int | float) else None


def _fault(field: str, value: Any, expected: str) -> UserError:
    return UserError(f"{field} is {reprlib.repr(value)[:200]}: expected {expected}")


def _check_name(field: str, value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise _fault(field, value, "a name of at most 64 letters, digits and _")
    return value


def _check_list(field: str, value: Any, longest: int) -> list | tuple:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= longest:
        raise _fault(field, value, f"a list of 1 to {longest}")
    return value


def _check_cell(field: str, value: Any) -> Cell:
    return tuple(
        tuple(
            _check_pair(f"{field}[{i}][{j}]", pair, _MAX_INPUTS + i)
            for j, pair in enumerate(_check_list(f"{field}[{i}]", node, _MAX_PAIRS))
        )
        for i, node in enumerate(_check_list(field, value, _MAX_NODES))
    )


def _check_pair(field: str, value: Any, sources: int) -> Pair:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise _fault(field, value, "an operation and its source")
    operation, source = value
    if type(source) is not int or not 0 <= source < sources:  # refuses bools too
        raise _fault(f"{field}[1]", source, f"an integer from 0 to {sources - 1}")
    return _check_name(f"{field}[0]", operation), source


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key occurs twice")
    return values


def _no_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")
