"""Reads the JSON of cells that NNI exports."""

import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype, from_cells
from drnas_jax.genotype_formats.darts import CELL_TYPES, INPUTS, from_nodes

# Fields of NNI's networks that say nothing of the cell.
_SIZES = ("width", "depth", "num_cells", "dataset", "auxiliary_loss", "drop_path_prob")
# Operations of NNI 1, in the order of its numbers, and of its NAS-Bench-201 space.
_DARTS = {
    "maxpool": "max_pool_3x3",
    "avgpool": "avg_pool_3x3",
    "skipconnect": "skip_connect",
    "sepconv3x3": "sep_conv_3x3",
    "sepconv5x5": "sep_conv_5x5",
    "dilconv3x3": "dil_conv_3x3",
    "dilconv5x5": "dil_conv_5x5",
}
_NASBENCH201 = {"conv_1x1": "nor_conv_1x1", "conv_3x3": "nor_conv_3x3"}
_MOST_NODES = 100  # that are checked

_KEY = re.compile(r"(normal|reduce)(?:/|__)(op|input)_(\d{1,3})_(\d{1,3})", re.ASCII)
_KEY_OF_1 = re.compile(r"(normal|reduce)_n(\d{1,3})_(?:p(\d{1,3})|switch)", re.ASCII)
_EDGE = re.compile(r"(?:(.*)(?:/|__))?(\d{1,3})_(\d{1,3})", re.ASCII)


def from_object(values: Mapping[str, Any], source: str) -> Genotype | None:
    """Reads a cell from a JSON object, or returns None if no field is one of NNI's.

    Args:
      values: Fields of the object.
      source: Name of its origin in error messages, for example the file.

    Raises:
      UserError: Some fields are missing or not NNI's, or a value is wrong.
    """
    given = {key: value for key, value in values.items() if key not in _SIZES}
    readers: tuple[tuple[re.Pattern, Callable[..., Genotype]], ...] = (
        (_KEY, _from_operations),
        (_KEY_OF_1, _from_version_1),
        (_EDGE, _from_edges),
    )
    for pattern, read in readers:
        matches = {key: match for key in given if (match := pattern.fullmatch(key))}
        if matches:
            if unknown := given.keys() - matches.keys():
                raise UserError(
                    f"{source}: a field is {reprlib.repr(min(unknown))}: expected only fields "
                    f"such as {min(matches)!r}"
                )
            entries = {match.groups(): values[key] for key, match in matches.items()}
            return read(entries, source)
    return None


def _from_operations(entries: Mapping[tuple[Any, ...], Any], source: str) -> Genotype:
    """Reads (cell type, 'op' or 'input', node, number) -> operation or input."""
    cells: dict[str, list[Any]] = {}
    for cell_type in CELL_TYPES:
        numbered = {
            (what, int(node), int(number)): value
            for (kind, what, node, number), value in entries.items()
            if kind == cell_type
        }
        cell = cells[cell_type] = []
        while node := [
            [
                _get(numbered, ("op", target, number), f"{source}: {cell_type}/"),
                _single(_get(numbered, ("input", target, number), f"{source}: {cell_type}/")),
            ]
            for target in [INPUTS + len(cell)]
            for number in sorted({n for _, p, n in numbered if p == target})
        ]:
            cell.append(node)
        if 2 * sum(map(len, cell)) != len(numbered):
            raise UserError(f"{source}: {cell_type} has gaps: expected nodes from {INPUTS} on")
    return from_nodes(cells, source)


def _get(numbered: Mapping[tuple[str, int, int], Any], key: tuple[str, int, int], at: str) -> Any:
    if key not in numbered:
        raise UserError(f"{at}{key[0]}_{key[1]}_{key[2]} is missing: add it")
    return numbered[key]


def _single(value: Any) -> Any:
    """Returns the only item of a list, and anything else as it is."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _from_version_1(entries: Mapping[tuple[Any, ...], Any], source: str) -> Genotype:
    """Reads (cell type, node, input) -> operation, and the same with None -> chosen inputs."""
    cells: dict[str, list[Any]] = {}
    for cell_type in CELL_TYPES:
        cell = cells[cell_type] = []
        nodes = sorted({int(node) for kind, node, _ in entries if kind == cell_type})
        if nodes != list(range(INPUTS, INPUTS + len(nodes))):
            raise UserError(f"{source}: {cell_type} has the nodes {nodes}: expected 2, 3 and so on")
        for node in nodes:
            prefix = f"{cell_type}_n{node}_"
            switch = entries.get((cell_type, str(node), None))
            if not isinstance(switch, list):
                raise UserError(
                    f"{source}: {prefix}switch is {reprlib.repr(switch)}: expected the list of "
                    "the chosen inputs"
                )
            chosen = _chosen(switch, [f"{prefix}p{i}" for i in range(node)], f"{source}: {prefix}")
            cell.append([])
            for i in chosen:
                operation = _single(entries.get((cell_type, str(node), str(i))))
                cell[-1].append([_operation(operation, f"{source}: {prefix}p{i}"), i])
    return from_nodes(cells, source)


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


def _operation(value: Any, field: str) -> str:
    """Returns our name of an operation of NNI 1: a name, a number or a mask."""
    names = list(_DARTS)
    if isinstance(value, list) and value.count(True) == 1:
        value = value.index(True)
    if type(value) is int and 0 <= value < len(names):
        value = names[value]
    if not isinstance(value, str) or value not in {*names, *_DARTS.values()}:
        raise UserError(
            f"{field} is {reprlib.repr(value)}: expected one of the operations {', '.join(names)}"
        )
    return _DARTS.get(value, value)


def _from_edges(entries: Mapping[tuple[Any, ...], Any], source: str) -> Genotype:
    """Reads (label, from node, to node) -> operation, for all edges of one cell."""
    if len({label for label, _, _ in entries}) > 1:
        raise UserError(f"{source} holds several cells: leave one of them")
    edges = {(int(start), int(end)): value for (_, start, end), value in entries.items()}
    nodes = max(end for _, end in edges)
    expected = [
        (start, end) for end in range(1, min(nodes, _MOST_NODES) + 1) for start in range(end)
    ]
    if sorted(edges) != sorted(expected):
        raise UserError(
            f"{source} has the edges {sorted(edges)[:20]}: expected one from each node to each "
            "later node"
        )
    cell: list[list[Any]] = [[] for _ in range(nodes)]
    for start, end in expected:
        name = edges[start, end]
        known = _NASBENCH201.get(name, name) if isinstance(name, str) else name
        cell[end - 1].append([known, start])
    return from_cells("nasbench201", {"cell": cell}, source)
