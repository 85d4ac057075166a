"""Builds networks of this package from the weights of the authors' PyTorch code."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from drnas_jax import spaces
from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype
from drnas_jax.nn import backend
from drnas_jax.phases.search.stages import resized_spec
from drnas_jax.spaces import Cell, NetworkSpec, Space, SupernetSpec, darts, nasbench201
from drnas_jax.torch_names import Link, State, darts_links, nasbench201_links, to_variables

# Tensors of a state_dict that have no effect on a network's outputs.
_IGNORED = re.compile(r".*num_batches_tracked|_?(arch_parameters|alphas?)(_.*)?")

Masks = Mapping[str, np.ndarray]

_KNOWN = "that of a network of the original PyTorch code"

_CELL = re.compile(r"cells\.(\d+)\.")
_RESIDUAL = re.compile(r"cells\.(\d+)\.conv_a\.")
_FIRST_CELL_NORM = re.compile(
    r"cells\.0\.(edges\.[^.]+\.\d+|_ops\.\d+\._ops\.\d+)\.(op\.\d+|bn)\.running_mean"
)


@dataclasses.dataclass(frozen=True)
class Imported:
    """A network of the reference, as a module of this package.

    Attributes:
      module: Supernet or final network of a `Space`.
      variables: Weights and running statistics of the module.
      links: Correspondence of tensors and arrays.
      masks: Operations that a supernet keeps, by cell type, bool [e, o] over all operations; None
        for a final network.
    """

    module: nn.Module
    variables: Any
    links: list[Link]
    masks: Masks | None = None


def from_torch(
    state: State, genotype: Genotype | None = None, masks: Masks | None = None
) -> Imported:
    """Builds the network of a state_dict, with its weights.

    The sizes of the network and K follow from the shapes of the tensors.

    Args:
      state: Tensors by name.
      genotype: Genotype of a final network, whose edges are not in a state_dict.
      masks: Operations that a pruned supernet keeps, by cell type, bool [e, o] over all operations.

    Raises:
      UserError: The tensors are not those of a network of the reference.
    """
    cells = 1 + max((int(match[1]) for match in map(_CELL.match, state) if match), default=-1)
    if not cells:
        raise UserError(f"the state_dict has no tensor 'cells.0...': expected {_KNOWN}")
    classes = len(_tensor(state, "classifier.bias"))
    if any(name.startswith("cells.0.edges.") for name in state):
        return _nasbench201_supernet(state, cells, classes, masks)
    if any(name.startswith("cells.0._ops.0._ops.") for name in state):
        return _darts_supernet(state, cells, classes, masks)
    if genotype is None:
        raise UserError(
            "the state_dict of a final network does not contain its edges: give its genotype"
        )
    if "lastact.0.weight" in state:
        return _nasbench201_network(state, cells, classes, genotype)
    return _darts_network(state, cells, classes, genotype)


def _nasbench201_supernet(state: State, depth: int, classes: int, masks: Masks | None) -> Imported:
    space = nasbench201.create()
    channels, per_stage = _nasbench201_shape(state, depth)
    masks, cells = _kept_operations(space, masks)
    k = _partial_channels(state, channels)
    spec = SupernetSpec(cells, channels, per_stage, classes, (8, 8, 3), k)
    links, all_links = (
        nasbench201_links(per_stage, edges, network=False)
        for edges in (spec.cell("cell").edges, nasbench201.CELL.edges)
    )
    return _filled(space.supernet(spec, _backend()), state, links, all_links, spec.image, masks)


def _nasbench201_network(state: State, depth: int, classes: int, genotype: Genotype) -> Imported:
    space = nasbench201.create()
    channels, per_stage = _nasbench201_shape(state, depth)
    spaces.check_genotype(genotype, space)
    inputs = np.shape(_tensor(state, "stem.0.weight"))[1]
    spec = NetworkSpec(genotype, channels, per_stage, classes, (8, 8, inputs))
    links = nasbench201_links(per_stage, nasbench201.genotype_edges(genotype), network=True)
    return _filled(space.network(spec, _backend()), state, links, links, spec.image, None)


def _darts_supernet(state: State, depth: int, classes: int, masks: Masks | None) -> Imported:
    channels, stem = _darts_shape(state, depth)
    space = darts.create(darts.Options(stem))
    masks, cells = _kept_operations(space, masks)
    first, side = channels * (2 if depth // 3 == 0 else 1), 2 * darts.STEMS[stem]
    k = _partial_channels(state, first)
    spec = SupernetSpec(cells, channels, depth, classes, (side, side, 3), k)
    links, all_links = (
        darts_links(channels, depth, stem, {t: cell.edges for t, cell in pairs}, network=False)
        for pairs in (cells, space.cells.items())
    )
    return _filled(space.supernet(spec, _backend()), state, links, all_links, spec.image, masks)


def _darts_network(state: State, depth: int, classes: int, genotype: Genotype) -> Imported:
    channels, stem = _darts_shape(state, depth)
    space, side = darts.create(darts.Options(stem)), {"cifar": 32, "imagenet": 224}[stem]
    spaces.check_genotype(genotype, space)
    auxiliary = "auxiliary_head.classifier.weight" in state
    inputs = np.shape(_tensor(state, "stem.0.weight" if stem == "cifar" else "stem0.0.weight"))[1]
    spec = NetworkSpec(genotype, channels, depth, classes, (side, side, inputs), auxiliary)
    edges = dict(darts.genotype_edges(genotype))
    links = darts_links(channels, depth, stem, edges, network=True, auxiliary=auxiliary)
    return _filled(space.network(spec, _backend()), state, links, links, spec.image, None)


def _filled(
    module: nn.Module,
    state: State,
    links: list[Link],
    all_links: list[Link],
    image: tuple[int, int, int],
    masks: Masks | None,
) -> Imported:
    """Fills a module with the tensors of a state_dict.

    Args:
      module: Supernet or final network.
      state: Tensors by name.
      links: Links of the module.
      all_links: Links of the module without pruning; the state_dict may contain their tensors.
      image: Shape [h, w, c] of an image that the module accepts.
      masks: Operations that a supernet keeps, or None.
    """
    known = {link.name for link in all_links}
    for name in state:
        if name not in known and not _IGNORED.fullmatch(name):
            raise UserError(
                f"the state_dict has {name!r}, which the network of the other tensors lacks: "
                "remove it"
            )
    mix = {
        cell_type: jnp.ones((len(mask), max(mask.sum(1))))
        for cell_type, mask in (masks or {}).items()
    }
    arguments = (jnp.zeros((1, *image)), *([mix] if masks else []), False)
    like = jax.eval_shape(lambda: module.init(jax.random.key(0), *arguments))
    return Imported(module, to_variables(links, state, like), links, masks)


def _backend() -> backend.Backend:
    return backend.for_platform(jax.default_backend())


def _tensor(state: State, name: str) -> np.ndarray:
    if name not in state:
        raise UserError(f"the state_dict lacks {name!r}: expected {_KNOWN}")
    return np.asarray(state[name])


def _nasbench201_shape(state: State, cells: int) -> tuple[int, int]:
    """Returns the number of channels C, and of cells in each stage.

    The first residual block follows the first stage. Cells without convolutions have no tensors.
    """
    residual = [int(match[1]) for match in map(_RESIDUAL.match, state) if match]
    return len(_tensor(state, "stem.0.weight")), min(residual, default=(cells - 2) // 3)


def _darts_shape(state: State, cells: int) -> tuple[int, str]:
    """Returns the number of channels C, and the kind of stem."""
    width = len(_tensor(state, "cells.0.preprocess1.op.1.weight"))
    stem = "imagenet" if "stem0.0.weight" in state else "cifar"
    return width // (2 if cells // 3 == 0 else 1), stem


def _partial_channels(state: State, channels: int) -> int:
    """Returns K, from the channels of the first cell and of its operations."""
    for name in state:
        if _FIRST_CELL_NORM.fullmatch(name):
            return max(channels // len(state[name]), 1)
    raise UserError(f"the first cell of the state_dict has no operations: expected {_KNOWN}")


def _kept_operations(
    space: Space, masks: Masks | None
) -> tuple[Masks, tuple[tuple[str, Cell], ...]]:
    """Returns the masks, which are all True if none are given, and the cells that remain."""
    shapes = {cell_type: cell.shape for cell_type, cell in space.cells.items()}
    if masks is None:
        masks = {cell_type: np.ones(shape, bool) for cell_type, shape in shapes.items()}
    if {cell_type: np.shape(mask) for cell_type, mask in masks.items()} != shapes:
        raise UserError(f"the masks have other shapes: expected {shapes}")
    if any(np.asarray(mask).dtype != bool for mask in masks.values()):
        types = sorted({str(np.asarray(mask).dtype) for mask in masks.values()})
        raise UserError(f"the masks are of the types {', '.join(types)}: expected bool")
    columns = {cell_type: [np.flatnonzero(row) for row in masks[cell_type]] for cell_type in shapes}
    spec = SupernetSpec(tuple(space.cells.items()), 1, 1, 1, (1, 1, 1))
    return masks, resized_spec(spec, columns, partial_channels=1).cells
