"""The correspondence between tensors of the authors' PyTorch networks and arrays of this package.

A link names one tensor of a state_dict, and the array that contains it: a leaf of the variables,
and an index into it (leaves stack cells and edges). The layout of a convolution's filters follows
from the rank of the array: dense filters [h, w, in, out], depthwise ones [h, w, c] and matrices
[in, out] are all [out, in, h, w] in PyTorch.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from drnas_jax.errors import UserError
from drnas_jax.spaces import darts, nasbench201
from drnas_jax.spaces.base import Edge, NetworkSpec, Space
from drnas_jax.spaces.darts.model import cell_runs, stem_features
from drnas_jax.spaces.darts.operations import CONVOLUTIONS, NOISE, POOLS, PRIMITIVES, stacked_rows

State = Mapping[str, np.ndarray]
Path = tuple[str, ...]

_STATISTICS = (("running_mean", "mean"), ("running_var", "var"))
_AFFINE = (("weight", "scale"), ("bias", "bias"))


@dataclasses.dataclass(frozen=True)
class Link:
    """A tensor of a state_dict, and the position of its values in a module's variables.

    Attributes:
      name: Name of the tensor.
      path: Path of the leaf, which begins with its collection ('params' or 'batch_stats').
      index: Index of the tensor's values in the leaf.
      kind: Kind of the tensor: `conv` (filters), `dense` (a matrix) or `vector`.
    """

    name: str
    path: Path
    index: tuple[int, ...] = ()
    kind: str = "vector"


def to_variables(links: Iterable[Link], state: State, like: Any) -> Any:
    """Converts a state_dict to the variables of a module.

    Args:
      links: Links of the network.
      state: Tensors by name.
      like: Variables of the module, or only their shapes.

    Raises:
      UserError: A tensor is missing or has another shape than the network needs.
    """
    leaves = {path: np.zeros(leaf.shape, np.float32) for path, leaf in flatten_dict(like).items()}
    for link in links:
        target = leaves[link.path][link.index]
        if link.name not in state:
            raise UserError(f"the state_dict lacks {link.name!r}: add this tensor")
        value = np.asarray(state[link.name])
        value = value.transpose(_axes(value.ndim))
        # A vector may become a matrix (both halves of a skip); others only lose axes.
        fits = value.size == target.size and (
            value.ndim == 1 or _squeezed(value.shape) == _squeezed(target.shape)
        )
        if not fits:
            raise UserError(
                f"{link.name} has the shape {np.shape(state[link.name])}, which does not fit the "
                f"network that the other arrays suggest: expected {target.shape} in Flax's layout"
            )
        leaves[link.path][link.index] = value.reshape(target.shape)
    return unflatten_dict({path: jnp.asarray(leaf) for path, leaf in leaves.items()})


def to_torch(links: Iterable[Link], tree: Any) -> dict[str, np.ndarray]:
    """Converts a tree like a module's variables to tensors by name, in the layout of PyTorch.

    Args:
      links: Links of the network; those whose leaf the tree lacks are left out.
      tree: Nested dicts of arrays, for example {'params': gradients}.
    """
    leaves = flatten_dict(tree)
    return {
        link.name: np.ascontiguousarray(_tensor(np.asarray(leaves[link.path])[link.index], link))
        for link in links
        if link.path in leaves
    }


def _tensor(value: np.ndarray, link: Link) -> np.ndarray:
    """Returns the values of a link in the layout of PyTorch."""
    if link.kind == "vector":
        return value.reshape(-1)  # both halves of a skip connection's BatchNorm are one tensor
    if link.kind == "dense":
        return value.T
    if value.ndim == 2:  # [in, out]
        return value.T[:, :, None, None]
    if value.ndim == 3:  # [h, w, c]
        return value.transpose(2, 0, 1)[:, None]
    return value.transpose(3, 2, 0, 1)


def _axes(rank: int) -> tuple[int, ...]:
    return {4: (2, 3, 1, 0), 2: (1, 0)}.get(rank, tuple(range(rank)))


def _squeezed(shape: tuple[int, ...]) -> list[int]:
    return [side for side in shape if side != 1]


def has_original(space: Space) -> bool:
    """Returns whether the authors' PyTorch code has final networks of a space."""
    return isinstance(space, darts.Darts | nasbench201.NasBench201)


def network_links(space: Space, spec: NetworkSpec) -> list[Link]:
    """Returns the links of a final network without an auxiliary head.

    Args:
      space: Space that `has_original` accepts.
      spec: Spec of the network.

    Raises:
      UserError: The network has the operation `noise`, which the authors' code lacks.
    """
    if isinstance(space, nasbench201.NasBench201):
        edges = nasbench201.genotype_edges(spec.genotype)
        return nasbench201_links(spec.depth, edges, network=True)
    assert isinstance(space, darts.Darts)
    cells = dict(darts.genotype_edges(spec.genotype, space.cells))
    if any(NOISE in edge.primitives for edges in cells.values() for edge in edges):
        raise UserError(
            f"the genotype has the operation {NOISE!r}, which the networks of the original PyTorch "
            "code lack: set export.formats=stablehlo"
        )
    return darts_links(spec.channels, spec.depth, space.stem, cells, network=True)


def nasbench201_links(depth: int, edges: Sequence[Edge], *, network: bool) -> list[Link]:
    """Returns the links of a supernet or final network of NAS-Bench-201.

    Args:
      depth: Number of cells in each stage.
      edges: Edges of the cell.
      network: Whether it is a final network (`TinyNetwork` of AutoDL-Projects), not a supernet.
    """
    top = ("model",) if network else ()
    links = [*_conv("stem.0", top, "stem_kernel"), *_norm("stem.1", (*top, "stem_norm"))]
    number = 0
    for stage in range(3):
        if stage:
            links += _reduction_block(f"cells.{number}", (*top, f"reduction_{stage}"))
            number += 1
        for cell in range(depth):
            for name in nasbench201.FILTER_SIZES:
                operation = nasbench201.PRIMITIVES.index(name)
                for stacked_row, row in enumerate(nasbench201.stacked_rows(edges, name)):
                    old = f"layers.{row}" if network else f"edges.{edges[row].name}.{operation}"
                    old = f"cells.{number}.{old}.op"
                    params, index = (*top, f"cell_{stage}", name), (cell, stacked_row)
                    links += _conv(f"{old}.1", params, "kernel", index)
                    links += _norm(f"{old}.2", params, index, affine=network)
            number += 1
    links += _norm("lastact.0", (*top, "last_norm"))
    return [*links, *_dense("classifier", (*top, "classifier"))]


def _reduction_block(old: str, new: Path) -> Iterator[Link]:
    for name in ("conv_a", "conv_b"):
        yield from _conv(f"{old}.{name}.op.1", new, f"{name}_kernel")
        yield from _norm(f"{old}.{name}.op.2", (*new, f"{name}_norm"))
    yield from _conv(f"{old}.downsample.1", new, "shortcut_kernel")


def darts_links(
    channels: int,
    cells: int,
    stem: str,
    edges: Mapping[str, tuple[Edge, ...]],
    *,
    network: bool,
    auxiliary: bool = False,
) -> list[Link]:
    """Returns the links of a supernet or final network of the DARTS space.

    Args:
      channels: Number of channels C.
      cells: Number of cells.
      stem: Kind of stem, 'cifar' or 'imagenet'.
      edges: Edges of each cell type.
      network: Whether it is a final network, not a supernet.
      auxiliary: Whether it has an auxiliary head.
    """
    links = [*_darts_stem(stem), *_dense("classifier", ("model", "classifier"))]
    if auxiliary:
        links += _auxiliary_head(stem)
    features = stem_features(channels, stem, network)
    for run in cell_runs(channels, cells, stem, features):
        for position in range(run.length):
            old, new = f"cells.{run.first + position}", ("model", run.name)
            for i, halve in enumerate((run.halve, False)):
                links += _squeeze(
                    f"{old}.preprocess{i}", (*new, f"squeeze_{i}"), position, halve, network
                )
            cell_edges = edges[run.cell_type]
            links += _operations(old, new, run.cell_type, cell_edges, position, network)
    return links


def _operations(
    old: str, new: Path, cell_type: str, edges: tuple[Edge, ...], cell: int, network: bool
) -> Iterator[Link]:
    for column, name in enumerate(PRIMITIVES):
        for i, row in stacked_rows(cell_type, edges, name).items():
            operation = f"{old}._ops.{i}" + ("" if network else f"._ops.{column}")
            yield from _operation(operation, (*new, name), name, (cell, row), network)


def _operation(
    old: str, new: Path, name: str, index: tuple[int, int], affine: bool
) -> Iterator[Link]:
    if name in POOLS:
        yield from _norm(f"{old}.op.1", new, index, affine=False)
    elif name == "skip_connect":
        yield from _conv(f"{old}.conv_1", new, "kernel", (*index, 0))
        yield from _conv(f"{old}.conv_2", new, "kernel", (*index, 1))
        yield from _norm(f"{old}.bn", new, index, affine=affine)
    else:
        for layer in range(CONVOLUTIONS[name].layers):
            first = 4 * layer + 1
            yield from _conv(f"{old}.op.{first}", new, f"depthwise_{layer}", index)
            yield from _conv(f"{old}.op.{first + 1}", new, f"pointwise_{layer}", index)
            suffix = f"_{layer}"
            yield from _norm(f"{old}.op.{first + 2}", new, index, suffix, affine=affine)


def _squeeze(old: str, new: Path, cell: int, halve: bool, affine: bool) -> Iterator[Link]:
    if halve:
        yield from _conv(f"{old}.conv_1", new, "kernel", (cell, 0))
        yield from _conv(f"{old}.conv_2", new, "kernel", (cell, 1))
        yield from _norm(f"{old}.bn", new, (cell,), affine=affine)
    else:
        yield from _conv(f"{old}.op.1", new, "kernel", (cell, 0))
        yield from _norm(f"{old}.op.2", new, (cell,), affine=affine)


def _darts_stem(stem: str) -> Iterator[Link]:
    layers = [("stem", 0)] if stem == "cifar" else [("stem0", 0), ("stem0", 3), ("stem1", 1)]
    for i, (name, layer) in enumerate(layers):
        yield from _conv(f"{name}.{layer}", ("model", "stem"), f"kernel_{i}")
        yield from _norm(f"{name}.{layer + 1}", ("model", "stem", f"norm_{i}"))


def _auxiliary_head(stem: str) -> Iterator[Link]:
    head = ("model", "auxiliary")
    for i, layer in enumerate((2, 5)):
        yield from _conv(f"auxiliary_head.features.{layer}", head, f"kernel_{i}")
        if i == 0 or stem == "cifar":
            yield from _norm(f"auxiliary_head.features.{layer + 1}", (*head, f"norm_{i}"))
    yield from _dense("auxiliary_head.classifier", (*head, "classifier"))


def _conv(old: str, new: Path, leaf: str, index: tuple[int, ...] = ()) -> Iterator[Link]:
    yield Link(f"{old}.weight", ("params", *new, leaf), index, "conv")


def _dense(old: str, new: Path) -> Iterator[Link]:
    yield Link(f"{old}.weight", ("params", *new, "kernel"), kind="dense")
    yield Link(f"{old}.bias", ("params", *new, "bias"))


def _norm(
    old: str, new: Path, index: tuple[int, ...] = (), suffix: str = "", affine: bool = True
) -> Iterator[Link]:
    for torch_name, flax_name in _STATISTICS:
        yield Link(f"{old}.{torch_name}", ("batch_stats", *new, flax_name + suffix), index)
    if affine:
        for torch_name, flax_name in _AFFINE:
            yield Link(f"{old}.{torch_name}", ("params", *new, flax_name + suffix), index)
