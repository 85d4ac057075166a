"""Where the arrays of the reference's PyTorch networks lie in ours.

A link names one tensor of a state_dict and its place: a leaf of our variables, and which part of it
(our leaves stack cells and edges). The layouts follow from the tensor's rank alone: filters
[out, in, h, w] become [h, w, in, out], matrices [out, in] become [in, out], and axes of length 1
that we do not have fall away.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from drnas_jax.errors import UserError
from drnas_jax.spaces import darts, nasbench201
from drnas_jax.spaces.darts.operations import CONVOLUTIONS, POOLS, PRIMITIVES, Edge, bank_rows

State = Mapping[str, np.ndarray]
Path = tuple[str, ...]

_STATISTICS = (("running_mean", "mean"), ("running_var", "var"))
_AFFINE = (("weight", "scale"), ("bias", "bias"))


@dataclasses.dataclass(frozen=True)
class Link:
    """One tensor of a state_dict and its place in our variables.

    Attributes:
      name: of the tensor.
      path: of the leaf; the collection first ('params' or 'batch_stats').
      index: which part of the leaf.
    """

    name: str
    path: Path
    index: tuple[int, ...] = ()


def to_variables(links: Iterable[Link], state: State, like: Any) -> Any:
    """Our variables, from a state_dict.

    Args:
      links: of the network.
      state: the tensors by name.
      like: our variables, or only their shapes.

    Raises:
      UserError: a tensor is missing or has another shape than the network needs.
    """
    leaves = {path: np.zeros(leaf.shape, np.float32) for path, leaf in flatten_dict(like).items()}
    for link in links:
        place = leaves[link.path][link.index]
        if link.name not in state:
            raise UserError(f"the state_dict lacks {link.name!r}")
        value = np.asarray(state[link.name])
        value = value.transpose(_axes(value.ndim))
        # A vector may be folded (the halves of a skip's channels), other arrays only lose axes.
        fits = value.size == place.size and (
            value.ndim == 1 or _squeezed(value.shape) == _squeezed(place.shape)
        )
        if not fits:
            raise UserError(
                f"{link.name} has the shape {np.shape(state[link.name])}, which does not fit the "
                f"network that the other arrays suggest: expected {place.shape} in our layout"
            )
        leaves[link.path][link.index] = value.reshape(place.shape)
    return unflatten_dict({path: jnp.asarray(leaf) for path, leaf in leaves.items()})


def to_torch(links: Iterable[Link], tree: Any, state: State) -> dict[str, np.ndarray]:
    """The arrays of a tree like our variables, by the tensors' names and in their layout.

    Args:
      links: of the network; those whose leaf the tree lacks are left out.
      tree: such as {'params': gradients}.
      state: tells the tensors' shapes.
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


def nasbench201_links(cells: int, operations: nasbench201.Operations) -> list[Link]:
    """Of a NAS-Bench-201 supernet with `cells` cells a stage."""
    links = [*_conv("stem.0", (), "stem_kernel"), *_norm("stem.1", ("stem_norm",))]
    number = 0
    for stage in range(3):
        if stage:
            links += _reduction_block(f"cells.{number}", f"reduction_{stage}")
            number += 1
        for cell in range(cells):
            for name in nasbench201.FILTER_SIZES:
                held = [edge for edge, kept in enumerate(operations) if name in kept]
                for row, edge in enumerate(held):
                    operation = nasbench201.PRIMITIVES.index(name)
                    edge_name = nasbench201.EDGES["cell"][edge]
                    old = f"cells.{number}.edges.{edge_name}.{operation}.op"
                    bank, index = (f"cell_{stage}", name), (cell, row)
                    links += _conv(f"{old}.1", bank, "kernel", index)
                    links += _norm(f"{old}.2", bank, index, affine=False)
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
    """Of a network of the DARTS space.

    Args:
      channels: C.
      cells: how many.
      stem: 'cifar' or 'imagenet'.
      edges: of each cell type.
      network: whether it is a final network, not a supernet.
      auxiliary: with an auxiliary head.
    """
    links = [*_darts_stem(stem), *_dense("classifier", ("model", "classifier"))]
    if auxiliary:
        links += _auxiliary_head(stem)
    features = darts.stem_features(channels, stem, network)
    for run in darts.cell_runs(channels, cells, stem, features):
        for place in range(run.length):
            old, new = f"cells.{run.first + place}", ("model", run.name)
            for i, halve in enumerate((run.halve, False)):
                links += _squeeze(
                    f"{old}.preprocess{i}", (*new, f"squeeze_{i}"), place, halve, network
                )
            own = edges[run.cell_type]
            links += _operations(old, new, run.cell_type, own, place, network)
    return links


def _operations(
    old: str, new: Path, cell_type: str, edges: tuple[Edge, ...], cell: int, network: bool
) -> Iterator[Link]:
    for column, name in enumerate(PRIMITIVES):
        for i, row in bank_rows(cell_type, edges, name).items():
            operation = f"{old}._ops.{i}" + ("" if network else f"._ops.{column}")
            yield from _operation(operation, (*new, name), name, (cell, row), network)


def _operation(
    old: str, bank: Path, name: str, index: tuple[int, int], affine: bool
) -> Iterator[Link]:
    if name in POOLS:
        yield from _norm(f"{old}.op.1", bank, index, affine=False)
    elif name == "skip_connect":
        yield from _conv(f"{old}.conv_1", bank, "kernel", (*index, 0))
        yield from _conv(f"{old}.conv_2", bank, "kernel", (*index, 1))
        yield from _norm(f"{old}.bn", bank, index, affine=affine)
    else:
        for layer in range(CONVOLUTIONS[name].layers):
            first = 4 * layer + 1
            yield from _conv(f"{old}.op.{first}", bank, f"depthwise_{layer}", index)
            yield from _conv(f"{old}.op.{first + 1}", bank, f"pointwise_{layer}", index)
            suffix = f"_{layer}"
            yield from _norm(f"{old}.op.{first + 2}", bank, index, suffix, affine=affine)


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
    for theirs, ours in _STATISTICS:
        yield Link(f"{old}.{theirs}", ("batch_stats", *new, ours + suffix), index)
    if affine:
        for theirs, ours in _AFFINE:
            yield Link(f"{old}.{theirs}", ("params", *new, ours + suffix), index)
