"""Reads cells in the formats of other projects. Nothing that is read is executed.

- `Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), reduce=..., ...)`: the
  text of DARTS, of what is derived from it, and of confopt; or the same fields as a JSON object or
  array. A cell is a list of two pairs for each node, or a list of nodes.
- `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`: the arch string of NAS-Bench-201, NATS-Bench, NASLib and
  confopt.
- JSON of NNI: `normal/op_2_0` and `normal/input_2_0` (DARTS in versions 2 and 3), `normal_n2_p0`
  and `normal_n2_switch` (DARTS in version 1 and early 2), or `0_1` or `LABEL/0_1` for the edge from
  node 0 to node 1 (NAS-Bench-201).
- `22212220`: the code of NAS-Bench-Macro, the number of the operation of each of eight layers.

None of them names its space: cells of types `normal` and `reduce` are of the space `darts`, codes
of `macro`, the others of `nasbench201`. The spaces check the edges.
"""

import re
import reprlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype, from_cells, from_json, parse_json
from drnas_jax.genotype_formats import darts, nni
from drnas_jax.genotype_formats.messages import FORMS, not_a_cell

__all__ = ["FORMS", "is_text", "parse", "parse_arch", "parse_code"]

_PAIR = r"([A-Za-z]\w*)~(0|[1-9]\d{0,2})"
_NODE = rf"\|(?:{_PAIR}\|)+"
_ARCH = re.compile(rf"{_NODE}(?:\+{_NODE})*", re.ASCII)
_STRUCTURE = re.compile(r"Structure\(\d+ nodes with (.*)\)")  # how the benchmark's code prints it
_CODE = re.compile(r"[012]{8}")  # of NAS-Bench-Macro: 3 operations, 8 layers


def is_text(text: str) -> bool:
    """Returns whether a text looks like a cell rather than like the name or path of one."""
    if text.lstrip().startswith(("{", "[")) or "|" in text or _CODE.fullmatch(_bare(text)):
        return True
    return bool(darts.CALL.search(text))


def parse(text: str, source: str, primitives: Mapping[str, Collection[str]]) -> Genotype:
    """Reads a cell from a text in any of the formats, or of a genotype.json.

    Args:
      text: The text, with or without white space and comments around it.
      source: Name of its origin in error messages, for example the file.
      primitives: Operations of the spaces `darts`, `nasbench201` and `macro`, in which the cells
        of other projects are looked up.

    Raises:
      UserError: The text is in none of the formats, or is ambiguous, such as two cells, or has an
        operation that the space lacks.
    """
    text = text.strip().lstrip("\ufeff")
    if text.startswith("{"):
        values = parse_json(text, source)
        if {"version", "space", "cells"} & values.keys():
            return from_json(values, source)
    genotype = _parse_other(text, source, primitives)
    known = primitives[genotype.space]
    for cell_type, cell in genotype.cells:
        for name in (name for node in cell for name, _ in node):
            if name not in known:
                raise UserError(
                    f"{source}: the {cell_type} cell has the operation {name!r}: expected one of "
                    f"those of the space {genotype.space}, {', '.join(known)}"
                )
    return genotype


def _parse_other(text: str, source: str, primitives: Mapping[str, Collection[str]]) -> Genotype:
    """Reads a cell in the format of another project."""
    bare = _bare(text)
    structure = _STRUCTURE.fullmatch(bare)
    if genotype := parse_arch(structure[1] if structure else bare):
        return genotype
    if genotype := parse_code(bare, tuple(primitives["macro"])):
        return genotype
    if text.startswith(("{", "[")):
        return _from_parsed_json(parse_json(text, source), source)
    if darts.CALL.search(text):
        return darts.from_python(text.strip("\"'"), source)
    raise not_a_cell(source, text)


def _bare(text: str) -> str:
    """Returns a text without comments, and without the quotes and white space around it."""
    return re.sub(r"#[^\n]*", "", text).strip().strip("\"'")


def parse_arch(text: str) -> Genotype | None:
    """Reads an arch string, or returns None if the text is none.

    Raises:
      UserError: A name is too long.
    """
    text = re.sub(r"\s+", "", text)
    if not _ARCH.fullmatch(text):
        return None
    pairs = [re.findall(_PAIR, node, re.ASCII) for node in text.split("+")]
    cell = [[[name, int(source)] for name, source in node] for node in pairs]
    if any([source for _, source in node] != [*range(i)] for i, node in enumerate(cell, start=1)):
        return None
    return from_cells("nasbench201", {"cell": cell}, "the arch string")


def parse_code(text: str, primitives: Sequence[str]) -> Genotype | None:
    """Reads a code of NAS-Bench-Macro, or returns None if the text is none.

    Args:
      text: Text with eight digits and nothing else but white space around them.
      primitives: Names of the operations 0, 1 and 2.
    """
    code = text.strip()
    if not _CODE.fullmatch(code):
        return None
    layers = [[[primitives[int(digit)], layer]] for layer, digit in enumerate(code)]
    return from_cells("macro", {"layers": layers}, "the code")


def _from_parsed_json(values: Any, source: str) -> Genotype:
    """Reads a cell from the values of a JSON text."""
    if isinstance(values, list):
        if len(values) == len(darts.FIELDS) and not any(isinstance(item, dict) for item in values):
            return darts.from_fields(dict(zip(darts.FIELDS, values, strict=True)), source)
        if len(values) != 1:  # NNI exports a list of the best ones
            raise UserError(f"{source} is a list of {len(values)}: leave one cell, {FORMS}")
        (values,) = values
    if not isinstance(values, dict):
        raise not_a_cell(source, values)
    if {"normal", "reduce"} & values.keys():
        if unknown := values.keys() - set(darts.FIELDS):
            raise UserError(
                f"{source}: a field is {reprlib.repr(min(unknown))}: expected one of "
                f"{', '.join(darts.FIELDS)}"
            )
        return darts.from_fields(values, source)
    if genotype := nni.from_object(values, source):
        return genotype
    raise not_a_cell(source, values)
