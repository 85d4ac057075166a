"""A derived cell as a value and as a versioned JSON file; the cells that papers published."""

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

# Bounds on a file from anywhere, far above any cell that can be trained.
MAX_BYTES = 1_000_000
_MAX_CELLS = 8
_MAX_INPUTS = 2  # of a cell: the cells before it
_MAX_NODES = 32
_MAX_PAIRS = 32
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True)
class Genotype:
    """A network's cells, one a type. Hashable.

    Attributes:
      space: the search space that they belong to.
      cells: pairs of a cell type and its cell. A cell is a tuple of nodes, a node a tuple of
        (operation, input) pairs. Inputs count the cell's own inputs first, then its nodes:
        NAS-Bench-201 has one cell input, 0, and its 3 nodes take every earlier one in order;
        DARTS has two, 0 and 1 (the cell before the last, and the last), and its 4 nodes take two
        earlier ones each.
    """

    space: str
    cells: tuple[tuple[str, Cell], ...]

    @property
    def inputs(self) -> int:
        """How many inputs a cell has: as few as its edges allow."""
        reach = (
            source - number
            for _, cell in self.cells
            for number, node in enumerate(cell)
            for _, source in node
        )
        return max(reach, default=0) + 1

    def cell(self, cell_type: str) -> Cell:
        """The cell of one type, for instance 'normal'.

        Raises:
          UserError: there is none; the message lists those there are.
        """
        for known, cell in self.cells:
            if known == cell_type:
                return cell
        types = ", ".join(known for known, _ in self.cells)
        raise UserError(f"the genotype has no cell {cell_type!r}: it has {types}")


def to_cells(genotype: Genotype) -> dict[str, Any]:
    """A genotype's cells as plain values."""
    return {
        cell_type: [[list(pair) for pair in node] for node in cell]
        for cell_type, cell in genotype.cells
    }


def to_json(genotype: Genotype, provenance: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Plain values for a genotype.json; `provenance` says, in plain values, where it is from.

    Raises:
      UserError: the genotype is not one that `from_json` would accept.
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
    """Checks plain values and freezes them.

    Only the structure is checked: a cell has at most two inputs. Which operations, nodes and
    edges there are is for the space to say.

    Args:
      mapping: what `to_json` gives; `provenance` may be missing.
      source: what to call it in errors, for instance the file's name.

    Raises:
      UserError: it is not a genotype; the message names the source and the place.
    """
    if not isinstance(mapping, Mapping):
        raise _fault(f"{source}: the content", mapping, "an object with version, space and cells")
    version = mapping.get("version")
    if type(version) is not int or version != VERSION:
        raise _fault(f"{source}: version", version, f"{VERSION}, the only one known here")
    for key in mapping:
        if key not in _FIELDS:
            raise _fault(f"{source}: a field", key, f"one of {', '.join(_FIELDS)}")
    if not isinstance(mapping.get("provenance", {}), Mapping):
        raise _fault(f"{source}: provenance", mapping["provenance"], "an object")
    space = _check_name(f"{source}: space", mapping.get("space"))
    return from_cells(space, mapping.get("cells"), source)


def from_cells(space: str, cells: Any, source: str) -> Genotype:
    """Of the `cells` of a genotype.json or of a line of search/history.jsonl; see from_json."""
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
    """Writes a genotype.json, whole or not at all.

    Raises:
      UserError: the genotype is not one that could be read again.
    """
    write_json(path, to_json(genotype, provenance))


def load_genotype(path_or_name: str | os.PathLike[str]) -> Genotype:
    """Reads a genotype.json, or gives a published cell by its name.

    Args:
      path_or_name: a file, or a key of `PUBLISHED`.

    Raises:
      UserError: neither a file nor a name (the message lists the names), or not a genotype.
    """
    name = os.fspath(path_or_name)
    if name in PUBLISHED:
        return PUBLISHED[name]
    name = os.path.expanduser(name)
    if not os.path.isfile(name):
        raise UserError(
            f"genotype {reprlib.repr(name)} is neither a file nor a published cell: give a "
            f"genotype.json or one of {', '.join(sorted(PUBLISHED))}"
        )
    try:
        with open(name, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{name} is larger than {MAX_BYTES} bytes: not a genotype.json")
    try:
        values = json.loads(
            content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not a genotype.json: {error}") from error
    return from_json(values, name)


def search_seconds(path: str | os.PathLike[str]) -> float | None:
    """How long the search took that wrote this genotype.json, or None if nothing says.

    Raises:
      UserError: the file is damaged.
    """
    provenance = (read_json(path) or {}).get("provenance")
    seconds = provenance.get("search_seconds") if isinstance(provenance, dict) else None
    return float(seconds) if isinstance(seconds, int | float) else None


def _fault(place: str, value: Any, expected: str) -> UserError:
    return UserError(f"{place} is {reprlib.repr(value)[:200]}: expected {expected}")


def _check_name(place: str, value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise _fault(place, value, "a name of letters, digits and _, at most 64 long")
    return value


def _check_list(place: str, value: Any, most: int) -> list | tuple:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= most:
        raise _fault(place, value, f"a list of 1 to {most}")
    return value


def _check_cell(place: str, value: Any) -> Cell:
    return tuple(
        tuple(
            _check_pair(f"{place}[{i}][{j}]", pair, _MAX_INPUTS + i)
            for j, pair in enumerate(_check_list(f"{place}[{i}]", node, _MAX_PAIRS))
        )
        for i, node in enumerate(_check_list(place, value, _MAX_NODES))
    )


def _check_pair(place: str, value: Any, inputs: int) -> Pair:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise _fault(place, value, "an operation and its input")
    operation, node = value
    if type(node) is not int or not 0 <= node < inputs:  # a bool is no int here
        raise _fault(f"{place}[1]", node, f"an integer from 0 to {inputs - 1}")
    return _check_name(f"{place}[0]", operation), node


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is there twice")
    return values


def _no_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def _darts(normal: Cell, reduce: Cell) -> Genotype:
    return Genotype("darts", (("normal", normal), ("reduce", reduce)))


PUBLISHED: dict[str, Genotype] = {
    # DrNAS (arXiv 2006.10355), searched on CIFAR-10.
    "drnas_cifar10": _darts(
        normal=(
            (("sep_conv_3x3", 0), ("sep_conv_5x5", 1)),
            (("sep_conv_3x3", 1), ("sep_conv_3x3", 2)),
            (("skip_connect", 0), ("sep_conv_3x3", 1)),
            (("sep_conv_3x3", 2), ("dil_conv_5x5", 3)),
        ),
        reduce=(
            (("max_pool_3x3", 0), ("sep_conv_5x5", 1)),
            (("dil_conv_5x5", 2), ("sep_conv_5x5", 1)),
            (("sep_conv_5x5", 1), ("dil_conv_5x5", 3)),
            (("skip_connect", 4), ("sep_conv_5x5", 1)),
        ),
    ),
    # DrNAS (arXiv 2006.10355), searched on ImageNet.
    "drnas_imagenet": _darts(
        normal=(
            (("sep_conv_3x3", 1), ("sep_conv_3x3", 0)),
            (("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
            (("sep_conv_3x3", 0), ("dil_conv_3x3", 3)),
            (("skip_connect", 0), ("sep_conv_3x3", 1)),
        ),
        reduce=(
            (("max_pool_3x3", 0), ("sep_conv_3x3", 1)),
            (("sep_conv_3x3", 0), ("skip_connect", 2)),
            (("sep_conv_3x3", 0), ("sep_conv_3x3", 2)),
            (("sep_conv_3x3", 3), ("sep_conv_3x3", 1)),
        ),
    ),
    # DARTS (arXiv 1806.09055), first order, searched on CIFAR-10.
    "darts_v1": _darts(
        normal=(
            (("sep_conv_3x3", 1), ("sep_conv_3x3", 0)),
            (("skip_connect", 0), ("sep_conv_3x3", 1)),
            (("skip_connect", 0), ("sep_conv_3x3", 1)),
            (("sep_conv_3x3", 0), ("skip_connect", 2)),
        ),
        reduce=(
            (("max_pool_3x3", 0), ("max_pool_3x3", 1)),
            (("skip_connect", 2), ("max_pool_3x3", 0)),
            (("max_pool_3x3", 0), ("skip_connect", 2)),
            (("skip_connect", 2), ("avg_pool_3x3", 0)),
        ),
    ),
    # DARTS (arXiv 1806.09055), second order, searched on CIFAR-10.
    "darts_v2": _darts(
        normal=(
            (("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
            (("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
            (("sep_conv_3x3", 1), ("skip_connect", 0)),
            (("skip_connect", 0), ("dil_conv_3x3", 2)),
        ),
        reduce=(
            (("max_pool_3x3", 0), ("max_pool_3x3", 1)),
            (("skip_connect", 2), ("max_pool_3x3", 1)),
            (("max_pool_3x3", 0), ("skip_connect", 2)),
            (("skip_connect", 2), ("max_pool_3x3", 1)),
        ),
    ),
    # PC-DARTS (arXiv 1907.05737), searched on CIFAR-10.
    "pc_darts_cifar": _darts(
        normal=(
            (("sep_conv_3x3", 1), ("skip_connect", 0)),
            (("sep_conv_3x3", 0), ("dil_conv_3x3", 1)),
            (("sep_conv_5x5", 0), ("sep_conv_3x3", 1)),
            (("avg_pool_3x3", 0), ("dil_conv_3x3", 1)),
        ),
        reduce=(
            (("sep_conv_5x5", 1), ("max_pool_3x3", 0)),
            (("sep_conv_5x5", 1), ("sep_conv_5x5", 2)),
            (("sep_conv_3x3", 0), ("sep_conv_3x3", 3)),
            (("sep_conv_3x3", 1), ("sep_conv_3x3", 2)),
        ),
    ),
    # PC-DARTS (arXiv 1907.05737), searched on ImageNet.
    "pc_darts_imagenet": _darts(
        normal=(
            (("skip_connect", 1), ("sep_conv_3x3", 0)),
            (("sep_conv_3x3", 0), ("skip_connect", 1)),
            (("sep_conv_3x3", 1), ("sep_conv_3x3", 3)),
            (("sep_conv_3x3", 1), ("dil_conv_5x5", 4)),
        ),
        reduce=(
            (("sep_conv_3x3", 0), ("skip_connect", 1)),
            (("dil_conv_5x5", 2), ("max_pool_3x3", 1)),
            (("sep_conv_3x3", 2), ("sep_conv_3x3", 1)),
            (("sep_conv_5x5", 0), ("sep_conv_3x3", 3)),
        ),
    ),
}
