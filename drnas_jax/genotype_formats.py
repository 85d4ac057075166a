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

import ast
import re
import reprlib
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype, from_cells, from_json, parse_json

FORMS = (
    "a genotype.json, Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), "
    "reduce=[...], reduce_concat=range(2, 6)), |op~0|+|op~0|op~1|+|op~0|op~1|op~2|, NNI's JSON, or "
    "a code such as 22212220"
)

_CELL_TYPES = ("normal", "reduce")
_FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")
_INPUTS = 2  # of a DARTS cell
_LONGEST_CODE = 100_000  # most characters of Python that are parsed
_MOST = 100  # numbers that are taken from a range, and nodes that are checked
# Fields of NNI's networks that say nothing of the cell.
_NNI_SIZES = ("width", "depth", "num_cells", "dataset", "auxiliary_loss", "drop_path_prob")
# Operations of NNI 1, in the order of its numbers, and of its NAS-Bench-201 space.
_NNI_DARTS = {
    "maxpool": "max_pool_3x3",
    "avgpool": "avg_pool_3x3",
    "skipconnect": "skip_connect",
    "sepconv3x3": "sep_conv_3x3",
    "sepconv5x5": "sep_conv_5x5",
    "dilconv3x3": "dil_conv_3x3",
    "dilconv5x5": "dil_conv_5x5",
}
_NNI_NASBENCH201 = {"conv_1x1": "nor_conv_1x1", "conv_3x3": "nor_conv_3x3"}

_PAIR = r"([A-Za-z]\w*)~(0|[1-9]\d{0,2})"
_NODE = rf"\|(?:{_PAIR}\|)+"
_ARCH = re.compile(rf"{_NODE}(?:\+{_NODE})*", re.ASCII)
_STRUCTURE = re.compile(r"Structure\(\d+ nodes with (.*)\)")  # how the benchmark's code prints it
_CODE = re.compile(r"[012]{8}")  # of NAS-Bench-Macro: 3 operations, 8 layers
_CALL = re.compile(r"\b\w*Genotype\s*\(")
_NNI_KEY = re.compile(r"(normal|reduce)(?:/|__)(op|input)_(\d{1,3})_(\d{1,3})", re.ASCII)
_NNI_1_KEY = re.compile(r"(normal|reduce)_n(\d{1,3})_(?:p(\d{1,3})|switch)", re.ASCII)
_NNI_EDGE = re.compile(r"(?:(.*)(?:/|__))?(\d{1,3})_(\d{1,3})", re.ASCII)


def is_text(text: str) -> bool:
    """Returns whether a text looks like a cell rather than like the name or path of one."""
    if text.lstrip().startswith(("{", "[")) or "|" in text or _CODE.fullmatch(_bare(text)):
        return True
    return bool(_CALL.search(text))


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
        return _from_values(parse_json(text, source), source)
    if _CALL.search(text):
        return _from_python(text.strip("\"'"), source)
    raise _fault(source, text)


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


def _darts(cells: Mapping[str, Any], source: str) -> Genotype:
    """Makes a genotype of the space `darts`, in which a node reads the nodes before it."""
    genotype = from_cells("darts", cells, source)
    for cell_type, cell in genotype.cells:
        for node, pairs in enumerate(cell, start=_INPUTS):
            for name, number in pairs:
                if number >= node:
                    raise UserError(
                        f"{source}: node {node} of the {cell_type} cell has {name!r} on the input "
                        f"{number}: expected an input from 0 to {node - 1}"
                    )
    return genotype


def _fault(source: str, value: Any) -> UserError:
    return UserError(f"{source} is {reprlib.repr(value)}, which is not a cell: expected {FORMS}")


# Python


def _from_python(text: str, source: str) -> Genotype:
    """Reads the only call of `Genotype` in a text, which is parsed but not run."""
    if len(text) > _LONGEST_CODE:
        raise UserError(f"{source} has more than {_LONGEST_CODE} characters: leave only the cell")
    start = _CALL.search(text)
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
    if len(call.args) > len(_FIELDS):
        raise UserError(f"{source}: Genotype has {len(call.args)} arguments: expected 4")
    fields = dict(zip(_FIELDS, call.args, strict=False))
    for keyword in call.keywords:
        if keyword.arg not in _FIELDS or keyword.arg in fields:
            argument = reprlib.repr(keyword.arg)
            raise UserError(
                f"{source}: Genotype has the argument {argument}: expected each of "
                f"{', '.join(_FIELDS)} once"
            )
        fields[keyword.arg] = keyword.value
    values = {name: _literal(node, f"{source}: {name}") for name, node in fields.items()}
    return _from_fields(values, source)


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
                return list(range(*inner)[:_MOST])
            raise ValueError
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        kind = type(node).__name__
        raise UserError(
            f"{field} is not a list of literals or a range ({kind}): write out its values"
        ) from error


def _from_fields(fields: Mapping[str, Any], source: str) -> Genotype:
    """Reads the fields of the tuple `Genotype`; those that end in `concat` may be missing."""
    cells = {}
    for cell_type in _CELL_TYPES:
        if cell_type not in fields:
            raise UserError(f"{source} has no {cell_type!r}: expected {FORMS}")
        cells[cell_type] = _nodes(fields[cell_type], f"{source}: {cell_type}")
    genotype = _darts(cells, source)
    for cell_type in _CELL_TYPES:
        name, nodes = f"{cell_type}_concat", len(genotype.cell(cell_type))
        expected = list(range(_INPUTS, _INPUTS + nodes))
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


# JSON


def _from_values(values: Any, source: str) -> Genotype:
    """Reads parsed JSON."""
    if isinstance(values, list):
        if len(values) == len(_FIELDS) and not any(isinstance(item, dict) for item in values):
            return _from_fields(dict(zip(_FIELDS, values, strict=True)), source)
        if len(values) != 1:  # NNI exports a list of the best ones
            raise UserError(f"{source} is a list of {len(values)}: leave one cell, {FORMS}")
        (values,) = values
    if not isinstance(values, dict):
        raise _fault(source, values)
    if {"normal", "reduce"} & values.keys():
        if unknown := values.keys() - set(_FIELDS):
            raise UserError(
                f"{source}: a field is {reprlib.repr(min(unknown))}: expected {', '.join(_FIELDS)}"
            )
        return _from_fields(values, source)
    given = {key: value for key, value in values.items() if key not in _NNI_SIZES}
    readers: tuple[tuple[re.Pattern, Callable[..., Genotype]], ...] = (
        (_NNI_KEY, _from_nni),
        (_NNI_1_KEY, _from_nni_1),
        (_NNI_EDGE, _from_nni_edges),
    )
    for pattern, read in readers:
        matches = {key: match for key in given if (match := pattern.fullmatch(key))}
        if matches:
            if unknown := given.keys() - matches.keys():
                raise UserError(
                    f"{source}: a field is {reprlib.repr(min(unknown))}: expected only fields "
                    f"such as {min(matches)!r}"
                )
            parts = {match.groups(): values[key] for key, match in matches.items()}
            return read(parts, source)
    raise _fault(source, values)


def _from_nni(parts: Mapping[tuple[Any, ...], Any], source: str) -> Genotype:
    """Reads (cell type, 'op' or 'input', node, number) -> operation or input."""
    cells: dict[str, list[Any]] = {}
    for cell_type in _CELL_TYPES:
        numbered = {
            (what, int(node), int(number)): value
            for (kind, what, node, number), value in parts.items()
            if kind == cell_type
        }
        cell = cells[cell_type] = []
        while node := [
            [
                _get(numbered, ("op", place, number), f"{source}: {cell_type}/"),
                _single(_get(numbered, ("input", place, number), f"{source}: {cell_type}/")),
            ]
            for place in [_INPUTS + len(cell)]
            for number in sorted({n for _, p, n in numbered if p == place})
        ]:
            cell.append(node)
        if 2 * sum(map(len, cell)) != len(numbered):
            raise UserError(f"{source}: {cell_type} has gaps: expected nodes from {_INPUTS} on")
    return _darts(cells, source)


def _get(numbered: Mapping[tuple[str, int, int], Any], key: tuple[str, int, int], at: str) -> Any:
    if key not in numbered:
        raise UserError(f"{at}{key[0]}_{key[1]}_{key[2]} is missing: add it")
    return numbered[key]


def _single(value: Any) -> Any:
    """Returns the only item of a list, and anything else as it is."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _from_nni_1(parts: Mapping[tuple[Any, ...], Any], source: str) -> Genotype:
    """Reads (cell type, node, input) -> operation, and the same with None -> chosen inputs."""
    cells: dict[str, list[Any]] = {}
    for cell_type in _CELL_TYPES:
        cell = cells[cell_type] = []
        nodes = sorted({int(node) for kind, node, _ in parts if kind == cell_type})
        if nodes != list(range(_INPUTS, _INPUTS + len(nodes))):
            raise UserError(f"{source}: {cell_type} has the nodes {nodes}: expected 2, 3 and so on")
        for node in nodes:
            prefix = f"{cell_type}_n{node}_"
            switch = parts.get((cell_type, str(node), None))
            if not isinstance(switch, list):
                raise UserError(
                    f"{source}: {prefix}switch is {reprlib.repr(switch)}: expected the list of "
                    "the chosen inputs"
                )
            chosen = _chosen(switch, [f"{prefix}p{i}" for i in range(node)], f"{source}: {prefix}")
            cell.append([])
            for i in chosen:
                operation = _single(parts.get((cell_type, str(node), str(i))))
                cell[-1].append([_nni_operation(operation, f"{source}: {prefix}p{i}"), i])
    return _darts(cells, source)


def _chosen(switch: list[Any], names: Sequence[str], prefix: str) -> list[int]:
    """Returns the inputs that a switch of NNI 1 chooses, given as names, numbers or a mask."""
    if len(switch) == len(names) and all(isinstance(item, bool) for item in switch):
        return [i for i, item in enumerate(switch) if item]
    numbers = [names.index(item) if item in names else item for item in switch]
    if not all(type(i) is int and 0 <= i < len(names) for i in numbers):
        raise UserError(
            f"{prefix}switch is {reprlib.repr(switch)}: expected names out of {', '.join(names)}"
        )
    return sorted(numbers)


def _nni_operation(value: Any, field: str) -> str:
    """Returns our name of an operation of NNI 1: a name, a number or a mask."""
    names = list(_NNI_DARTS)
    if isinstance(value, list) and value.count(True) == 1:
        value = value.index(True)
    if type(value) is int and 0 <= value < len(names):
        value = names[value]
    if not isinstance(value, str) or value not in {*names, *_NNI_DARTS.values()}:
        raise UserError(
            f"{field} is {reprlib.repr(value)}: expected one of the operations {', '.join(names)}"
        )
    return _NNI_DARTS.get(value, value)


def _from_nni_edges(parts: Mapping[tuple[Any, ...], Any], source: str) -> Genotype:
    """Reads (label, from node, to node) -> operation, for all edges of one cell."""
    if len({label for label, _, _ in parts}) > 1:
        raise UserError(f"{source} holds several cells: leave one of them")
    edges = {(int(start), int(end)): value for (_, start, end), value in parts.items()}
    nodes = max(end for _, end in edges)
    expected = [(start, end) for end in range(1, min(nodes, _MOST) + 1) for start in range(end)]
    if sorted(edges) != sorted(expected):
        raise UserError(
            f"{source} has the edges {sorted(edges)[:20]}: expected one from each node to each "
            "later node"
        )
    cell: list[list[Any]] = [[] for _ in range(nodes)]
    for start, end in expected:
        name = edges[start, end]
        known = _NNI_NASBENCH201.get(name, name) if isinstance(name, str) else name
        cell[end - 1].append([known, start])
    return from_cells("nasbench201", {"cell": cell}, source)
