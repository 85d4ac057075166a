"""Reads the tuple `Genotype` of DARTS: Python text, which is parsed but not run, or JSON values."""

import ast
import re
import reprlib
import warnings
from collections.abc import Mapping
from typing import Any

from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype, from_cells
from drnas_jax.genotype_formats.messages import FORMS

CELL_TYPES = ("normal", "reduce")
FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")
INPUTS = 2  # of a cell
CALL = re.compile(r"\b\w*Genotype\s*\(")

_LONGEST_CODE = 100_000  # most characters of Python that are parsed
_MOST_NUMBERS = 100  # taken from a range


def from_nodes(cells: Mapping[str, Any], source: str) -> Genotype:
    """Makes a genotype of the space `darts`, in which a node reads the nodes before it."""
    genotype = from_cells("darts", cells, source)
    for cell_type, cell in genotype.cells:
        for node, pairs in enumerate(cell, start=INPUTS):
            for name, number in pairs:
                if number >= node:
                    raise UserError(
                        f"{source}: node {node} of the {cell_type} cell has {name!r} on the input "
                        f"{number}: expected an input from 0 to {node - 1}"
                    )
    return genotype


def from_python(text: str, source: str) -> Genotype:
    """Reads the only call of `Genotype` in a text, which is parsed but not run."""
    if len(text) > _LONGEST_CODE:
        raise UserError(f"{source} has more than {_LONGEST_CODE} characters: leave only the cell")
    start = CALL.search(text)
    assert start is not None
    try:
        with warnings.catch_warnings(action="ignore"):
            try:
                tree = ast.parse(text)
            except SyntaxError:  # such as the time that a log puts before the cell
                tree = ast.parse(text[start.start() :])
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(
            f"{source} is not valid Python ({error}): leave only the cell, {FORMS}"
        ) from error
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_genotype(node)]
    if len(calls) != 1:
        raise UserError(f"{source} holds {len(calls)} cells: leave one of them")
    (call,) = calls
    if len(call.args) > len(FIELDS):
        raise UserError(f"{source}: Genotype has {len(call.args)} arguments: expected 4")
    fields = dict(zip(FIELDS, call.args, strict=False))
    for keyword in call.keywords:
        if keyword.arg not in FIELDS or keyword.arg in fields:
            argument = reprlib.repr(keyword.arg)
            raise UserError(
                f"{source}: Genotype has the argument {argument}: expected each of "
                f"{', '.join(FIELDS)} once"
            )
        fields[keyword.arg] = keyword.value
    values = {name: _literal(node, f"{source}: {name}") for name, node in fields.items()}
    return from_fields(values, source)


def _is_genotype(call: ast.Call) -> bool:
    name = getattr(call.func, "id", getattr(call.func, "attr", ""))
    return name.endswith("Genotype")


def _literal(node: ast.expr, field: str) -> Any:
    """Returns the value of a literal or of a range."""
    try:
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("range", "list"):
            inner = [_literal(argument, field) for argument in node.args]
            if node.func.id == "list" and len(inner) == 1:  # type: ignore[attr-defined]
                return inner[0]
            if all(isinstance(bound, int) for bound in inner) and len(inner) in (1, 2, 3):
                return list(range(*inner)[:_MOST_NUMBERS])
            raise ValueError
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        kind = type(node).__name__
        raise UserError(
            f"{field} is not a list of literals or a range ({kind}): write out its values"
        ) from error


def from_fields(fields: Mapping[str, Any], source: str) -> Genotype:
    """Reads the fields of the tuple `Genotype`; those that end in `concat` may be missing."""
    cells = {}
    for cell_type in CELL_TYPES:
        if cell_type not in fields:
            raise UserError(f"{source} has no {cell_type!r}: expected {FORMS}")
        cells[cell_type] = _nodes(fields[cell_type], f"{source}: {cell_type}")
    genotype = from_nodes(cells, source)
    for cell_type in CELL_TYPES:
        name, nodes = f"{cell_type}_concat", len(genotype.cell(cell_type))
        expected = list(range(INPUTS, INPUTS + nodes))
        joined = fields.get(name, expected)
        if not isinstance(joined, list | tuple) or list(joined) != expected:
            raise UserError(
                f"{source}: {name} is {reprlib.repr(joined)}: expected {expected}, since the space "
                "'darts' joins all nodes of a cell"
            )
    return genotype


def _nodes(value: Any, field: str) -> list[Any]:
    """Returns the nodes of a cell that is given as a list of nodes, or of two pairs a node."""
    if not isinstance(value, list | tuple) or not value:
        raise UserError(f"{field} is {reprlib.repr(value)}: expected a list of (operation, input)")
    first = value[0]
    if isinstance(first, list | tuple) and first and isinstance(first[0], list | tuple):
        return list(value)
    if len(value) % 2:
        raise UserError(f"{field} has {len(value)} pairs: expected 2 for each node")
    return [list(value[i : i + 2]) for i in range(0, len(value), 2)]
