"""The DARTS space (Liu et al., ICLR 2019): normal and reduction cells, 4 nodes, 7 operations.

A cell reads the two cells before it; every node adds up edges from all earlier nodes (in a network:
from two), and the nodes' channels together are the cell's output. Cells at a third and at two
thirds of the depth halve the size and double the channels.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn

from drnas_jax.config import choices, field
from drnas_jax.errors import UserError, check_choice
from drnas_jax.genotype import Genotype
from drnas_jax.nn import stacked_params
from drnas_jax.nn.backend import Backend
from drnas_jax.spaces.base import Cell, Edge, NetworkSpec, Space, SupernetSpec, check_divisible
from drnas_jax.spaces.darts.model import CellEdges, Network, Supernet
from drnas_jax.spaces.darts.operations import (
    INPUTS,
    NODES,
    PRIMITIVES,
    channel_axes,
    stacked_rows,
)
from drnas_jax.spaces.darts.published import PUBLISHED

__all__ = ["PUBLISHED", "Darts", "Options", "cells_of", "create", "genotype_edges"]

PAIRS = tuple((INPUTS + n, source) for n in range(NODES) for source in range(INPUTS + n))
CELL_TYPES = ("normal", "reduce")
CHANNEL_AXES = {name: channel_axes(name) for name in PRIMITIVES}
STEMS = {"cifar": 4, "imagenet": 32}  # by how much the whole network divides height and width


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the space."""

    stem: str = field(
        "cifar",
        "First layers: 'cifar' keeps the image's size, 'imagenet' divides it by 8.",
        choices(*STEMS),
    )


def cells_of(
    normal: Sequence[Sequence[str]], reduce: Sequence[Sequence[str]]
) -> Mapping[str, Cell]:
    """Returns the cells of the DARTS space, or of a subspace with other operations on each edge.

    Args:
      normal: Primitives of each of the 14 edges of a normal cell, in the order of `PAIRS`: those of
        `PRIMITIVES`, `none` or `noise`.
      reduce: The same for a reduction cell.
    """
    cells = {}
    for cell_type, lists in zip(CELL_TYPES, (normal, reduce), strict=True):
        pairs = zip(PAIRS, lists, strict=True)
        edges = (Edge(target, source, tuple(names)) for (target, source), names in pairs)
        cells[cell_type] = Cell(tuple(edges), INPUTS, keep=2)
    return cells


class Darts(Space):
    """The DARTS search space, whose `depth` is the number of all cells."""

    name = "darts"
    cells: Mapping[str, Cell] = cells_of([PRIMITIVES] * len(PAIRS), [PRIMITIVES] * len(PAIRS))

    def __init__(self, options: Options | None = None):
        self.stem = (options or Options()).stem

    def check(self, spec: SupernetSpec | NetworkSpec) -> None:
        """Checks that the image can be halved often enough, and the genotype of a network."""
        check_divisible(spec.image, STEMS[self.stem])
        if self.stem == "imagenet" and spec.channels % 2:
            raise UserError(
                f"the ImageNet stem needs an even number of channels, not {spec.channels}: set "
                "search.channels and retrain.channels to even numbers"
            )
        if isinstance(spec, NetworkSpec):
            genotype_edges(spec.genotype, self.cells)

    def supernet(self, spec: SupernetSpec, backend: Backend) -> nn.Module:
        """Returns the supernet, whose cells have BatchNorm without scale and bias."""
        return Supernet(spec, self.stem, backend)

    def network(self, spec: NetworkSpec, backend: Backend) -> nn.Module:
        """Returns the final network of a genotype."""
        return Network(spec, genotype_edges(spec.genotype, self.cells), self.stem, backend)

    def resize(self, tree: Any, like: Any, old: SupernetSpec, new: SupernetSpec, seed: int) -> Any:
        """Fits the arrays, which stack the weights of all edges that keep a primitive."""
        del like
        partial_channels = old.partial_channels, new.partial_channels

        def rows(cell_type: str, primitive: str) -> Sequence[int]:
            before = stacked_rows(cell_type, old.cell(cell_type).edges, primitive)
            after = stacked_rows(cell_type, new.cell(cell_type).edges, primitive)
            return [before[edge] for edge in after]

        return stacked_params.resize(tree, rows, CHANNEL_AXES, self.cells, partial_channels, seed)


def create(options: Options) -> Space:
    """Returns the DARTS space."""
    return Darts(options)


def genotype_edges(genotype: Genotype, cells: Mapping[str, Cell] = Darts.cells) -> CellEdges:
    """Returns the 8 edges of each of a genotype's cells, each with its only operation.

    Args:
      genotype: Genotype of the DARTS space or of a subspace.
      cells: Cells of that space with all operations.

    Raises:
      UserError: The genotype has other cells, nodes, operations or edges, or `none`.
    """
    edges = []
    for cell_type in CELL_TYPES:
        cell = genotype.cell(cell_type)
        known = {
            (edge.target, edge.source): [name for name in edge.primitives if name != "none"]
            for edge in cells[cell_type].edges
        }
        if len(cell) != NODES:
            raise UserError(f"the {cell_type} cell has {len(cell)} nodes: expected {NODES}")
        for name, _ in itertools.chain.from_iterable(cell):
            check_choice("DARTS operation", name, set(itertools.chain(*known.values())))
        for i, node in enumerate(cell):
            sources = sorted({source for _, source in node})
            if len(node) != 2 or len(sources) != 2 or not 0 <= sources[0] < sources[1] < i + INPUTS:
                raise UserError(
                    f"node {i} of the {cell_type} cell is {node}: expected 2 operations, on 2 of "
                    f"the inputs 0 to {i + INPUTS - 1}"
                )
            for name, source in node:
                edge = f"operation on the edge {INPUTS + i}<-{source} of the {cell_type} cell"
                check_choice(edge, name, known[INPUTS + i, source])
        kept = (
            Edge(INPUTS + i, source, (name,))
            for i, node in enumerate(cell)
            for name, source in node
        )
        edges.append((cell_type, tuple(kept)))
    return tuple(edges)
