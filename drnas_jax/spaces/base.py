"""What a search space gives, and what a supernet consists of at one stage."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import flax.linen as nn
import numpy as np

from drnas_jax.genotype import Genotype
from drnas_jax.nn.backend import Kernels

Operations = tuple[tuple[str, ...], ...]  # the primitives kept on each edge of a cell type


@dataclasses.dataclass(frozen=True)
class Structure:
    """The static shape of a supernet; it changes only between stages.

    Attributes:
      channels: C of the first cell.
      cells: cells (what they count is the space's).
      classes: outputs.
      partial_channels: K; 1/K of the channels pass through the operations.
      operations: (cell type, primitives kept on each of its edges), in the order of primitives.
        Every edge of a cell type keeps equally many.
      stem: the network's first layers, one of the space's STEMS.
    """

    channels: int
    cells: int
    classes: int
    partial_channels: int
    operations: tuple[tuple[str, Operations], ...]
    stem: str

    def kept(self, cell_type: str) -> Operations:
        """The primitives kept on each edge of a cell type."""
        return dict(self.operations)[cell_type]


def all_operations(space: "Space") -> dict[str, Operations]:
    """Every edge keeps all primitives; by cell type."""
    return {name: (space.PRIMITIVES,) * len(edges) for name, edges in space.EDGES.items()}


class Space(Protocol):
    """A module of `drnas_jax.spaces`. `mix` and `alpha` are dicts by cell type of [e, o].

    Parameters follow one convention, so that pruning and widening need no code of a space: the
    arrays of a primitive lie under a key with its name, below a key that begins with the cell type
    (`cell`, `cell_0`), with leading axes (cells, edges that keep the primitive).

    Attributes:
      PRIMITIVES: the operations of the space, in the order of alpha's columns.
      EDGES: edge names of each cell type, in the order of alpha's rows: 'TARGET<-SOURCE', numbered
        as in a genotype (the cell's inputs, then its nodes); those of a target follow each other.
      CHANNEL_AXES: of each primitive with arrays: its arrays' channel axes and their labels
        (see `drnas_jax.nn.banks.CONV_CHANNEL_AXES`).
      STEMS: the kinds of first layers, with what a side of the image is divided by on its way
        through such a network.
      RETRAIN_FIELDS: out of 'auxiliary_weight' and 'drop_path' of a config's `retrain`, what
        networks of the space can do.
    """

    PRIMITIVES: tuple[str, ...]
    EDGES: Mapping[str, tuple[str, ...]]
    CHANNEL_AXES: Mapping[str, Mapping[str, Mapping[int, str]]]
    STEMS: Mapping[str, int]
    RETRAIN_FIELDS: tuple[str, ...]

    def has_row(self, cell_type: str, edge: int, primitive: str) -> bool:
        """Whether a primitive of CHANNEL_AXES has a row in its bank for an edge that keeps it."""

    def supernet(self, structure: Structure, kernels: Kernels, axis_name: str | None) -> nn.Module:
        """A module called as (x [b, h, w, c], mix, train, learn = None) -> logits [b, classes].

        `learn`: see `drnas_jax.nn.backend.Kernels`.
        """

    def network(
        self,
        genotype: Genotype,
        channels: int,
        cells: int,
        classes: int,
        stem: str,
        auxiliary: bool,
        kernels: Kernels,
        axis_name: str | None,
    ) -> nn.Module:
        """The final network: (x [b, h, w, c], train, drop_path = 0.0) -> (logits, auxiliary ones).

        Both logits are [b, classes]; the latter are None without an auxiliary head, and outside
        training. `drop_path` is the rate, which counts where there is a random key of that name.
        """

    def derive(
        self, strength: Mapping[str, np.ndarray], operations: Mapping[str, Operations]
    ) -> Genotype:
        """The strongest operation of each edge; where a node selects inputs, the strongest edges.

        Args:
          strength: of each operation, by cell type [e, o]: the mean mixing weights (DrNAS paper).
          operations: the primitives kept on each edge, by cell type.
        """

    def describe(self, genotype: Genotype) -> str:
        """One line for people and tables."""
