"""The correspondence between tensors of the authors' PyTorch networks and arrays of this package.

A link names one tensor of a state_dict, and the array that contains it: a leaf of the variables,
and an index into it (leaves stack cells and edges). The layout follows from the tensor's rank:
filters [out, in, h, w] become [h, w, in, out], matrices [out, in] become [in, out], and axes of
length 1 that the leaf lacks are removed.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from drnas_jax.errors import UserError
from drnas_jax.spaces import nasbench201
from drnas_jax.spaces.base import Edge
from drnas_jax.spaces.darts.model import cell_runs, stem_features
from drnas_jax.spaces.darts.operations import CONVOLUTIONS, POOLS, PRIMITIVES, stacked_rows

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
    """

    name: str
    path: Path
    index: tuple[int, ...] = ()


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
            raise UserError(f"the state_dict lacks {link.name!r}")
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


def to_torch(links: Iterable[Link], tree: Any, state: State) -> dict[str, np.ndarray]:
    """Converts a tree like a module's variables to tensors by name, in the layout of PyTorch.

    Args:
      links: Links of the network; those whose leaf the tree lacks are left out.
      tree: Nested dicts of arrays, for example {'params': gradients}.
      state: Tensors of the network by name, of which only the shapes are read.
    """
    leaves, out = flatten_dict(tree), {}
    for link in links:
        if link.path in leaves:
            shape = np.shape(state[link.name])
            axes = _axes(len(shape))
            value = np.asarray(leaves[link.path][link.index])
            value = value.reshape([shape[axis] for axis in axes])
            out[link.name] = np.ascontiguousarray(value.transpose(np.argsort(axes)))
    return out


def _axes(rank: int) -> tuple[int, ...]:
    return {4: (2, 3, 1, 0), 2: (1, 0)}.get(rank, tuple(range(rank)))


def _squeezed(shape: tuple[int, ...]) -> list[int]:
    return [side for side in shape if side != 1]


def nasbench201_links(depth: int, edges: Sequence[Edge]) -> list[Link]:
    """Returns the links of a NAS-Bench-201 supernet with `depth` cells in each stage."""
    links = [*_conv("stem.0", (), "stem_kernel"), *_norm("stem.1", ("stem_norm",))]
    number = 0
    for stage in range(3):
        if stage:
            links += _reduction_block(f"cells.{number}", f"reduction_{stage}")
            number += 1
        for cell in range(depth):
            for name in nasbench201.FILTER_SIZES:
                operation = nasbench201.PRIMITIVES.index(name)
                for stacked_row, row in enumerate(nasbench201.stacked_rows(edges, name)):
                    old = f"cells.{number}.edges.{edges[row].name}.{operation}.op"
                    params, index = (f"cell_{stage}", name), (cell, stacked_row)
                    links += _conv(f"{old}.1", params, "kernel", index)
                    links += _norm(f"{old}.2", params, index, affine=False)
            number += 1
    return [*links, *_norm("lastact.0", ("last_norm",)), *_dense("classifier", ("classifier",))]


def _reduction_block(old: str, new: str) -> Iterator[Link]:
    for name in ("conv_a", "conv_b"):
        yield from _conv(f"{old}.{name}.op.1", (new,), f"{name}_kernel")
        yield from _norm(f"{old}.{name}.op.2", (new, f"{name}_norm"))
    yield from _conv(f"{old}.downsample.1", (new,), "shortcut_kernel")


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
    yield Link(f"{old}.weight", ("params", *new, leaf), index)


def _dense(old: str, new: Path) -> Iterator[Link]:
    yield Link(f"{old}.weight", ("params", *new, "kernel"))
    yield Link(f"{old}.bias", ("params", *new, "bias"))


def _norm(
    old: str, new: Path, index: tuple[int, ...] = (), suffix: str = "", affine: bool = True
) -> Iterator[Link]:
    for torch_name, flax_name in _STATISTICS:
        yield Link(f"{old}.{torch_name}", ("batch_stats", *new, flax_name + suffix), index)
    if affine:
        for torch_name, flax_name in _AFFINE:
            yield Link(f"{old}.{torch_name}", ("params", *new, flax_name + suffix), index)
