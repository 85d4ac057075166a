"""The DARTS space (Liu et al., ICLR 2019): normal and reduction cells, 4 nodes, 7 operations.

A cell reads the two cells before it; every node adds up edges from all earlier nodes (in a network:
from two), and the nodes' channels together are the cell's output. Cells at a third and at two
thirds of the depth halve the size and double the channels. A network is a supernet of fewer edges,
with one operation each, all channels and affine BatchNorm, so both are one model.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from drnas_jax.errors import UserError, check_choice
from drnas_jax.genotype import Genotype
from drnas_jax.nn.backend import Kernels
from drnas_jax.nn.banks import Bank, Mode
from drnas_jax.nn.blocks import AuxiliaryHead, Stem, classify
from drnas_jax.spaces.base import Operations, Structure
from drnas_jax.spaces.darts import operations
from drnas_jax.spaces.darts.cell import Cell, Inputs, run_cells, squeeze_bank
from drnas_jax.spaces.darts.operations import INPUTS, NODES, PRIMITIVES, Edge, channel_axes

Array = jax.Array

Edges = tuple[tuple[str, tuple[Edge, ...]], ...]  # by cell type

PAIRS = tuple((node, source) for node in range(NODES) for source in range(INPUTS + node))
_NAMES = tuple(f"{INPUTS + node}<-{source}" for node, source in PAIRS)
EDGES = {"normal": _NAMES, "reduce": _NAMES}
CHANNEL_AXES = {name: channel_axes(name) for name in PRIMITIVES}
STEMS = {"cifar": 4, "imagenet": 32}
RETRAIN_FIELDS = ("auxiliary_weight", "drop_path")


def has_row(cell_type: str, edge: int, primitive: str) -> bool:
    """See Space.has_row: a skip that keeps the size has none."""
    return operations.has_row(cell_type, PAIRS[edge][1], primitive)


@dataclasses.dataclass(frozen=True)
class Run:
    """Consecutive cells of the same type and shapes.

    Attributes:
      cell_type: 'normal' or 'reduce'.
      channels: of a node.
      halve: whether the first input is twice as large as the second.
      inputs: channels of the two inputs.
      first: number of the first cell, from 0.
      length: how many.
    """

    cell_type: str
    channels: int
    halve: bool
    inputs: tuple[int, int]
    first: int = 0
    length: int = 1

    @property
    def name(self) -> str:
        """Of the parameters."""
        return f"{self.cell_type}_{self.first}"


def cell_runs(channels: int, cells: int, stem: str, stem_features: int) -> list[Run]:
    """The cells of a network in order, in runs of equal ones."""
    kinds = []
    inputs, halve = (stem_features, stem_features), stem == "imagenet"
    for i in range(cells):
        cell_type = "reduce" if i in (cells // 3, 2 * cells // 3) else "normal"
        channels = 2 * channels if cell_type == "reduce" else channels
        kinds.append(Run(cell_type, channels, halve, inputs))
        inputs, halve = (inputs[1], NODES * channels), cell_type == "reduce"
    runs, first = [], 0
    for kind, group in itertools.groupby(kinds):
        length = len(list(group))
        runs.append(dataclasses.replace(kind, first=first, length=length))
        first += length
    return runs


def stem_features(channels: int, stem: str, network: bool) -> int:
    """Channels of the stem: 3 C, but C in a final network for ImageNet."""
    return channels if network and stem == "imagenet" else 3 * channels


def supernet_edges(structure: Structure) -> Edges:
    """All edges of each cell type, with the primitives they keep."""
    return tuple(
        (cell_type, tuple(Edge(*pair, kept) for pair, kept in zip(PAIRS, edges, strict=True)))
        for cell_type, edges in structure.operations
    )


def network_edges(genotype: Genotype) -> Edges:
    """The edges of a genotype's cells.

    Raises:
      UserError: it has other cells, nodes, operations or edges.
    """
    edges = []
    for cell_type in EDGES:
        cell = genotype.cell(cell_type)
        if len(cell) != NODES:
            raise UserError(f"a DARTS cell has {NODES} nodes, and the {cell_type} cell {len(cell)}")
        for name, _ in itertools.chain.from_iterable(cell):
            check_choice("DARTS operation", name, PRIMITIVES)
        for i, node in enumerate(cell):
            sources = sorted({source for _, source in node})
            if len(node) != 2 or len(sources) != 2 or not 0 <= sources[0] < sources[1] < i + INPUTS:
                raise UserError(
                    f"node {i} of the {cell_type} cell is {node}: expected 2 operations, on 2 of "
                    f"the inputs 0 to {i + INPUTS - 1}"
                )
        own = (Edge(i, source, (name,)) for i, node in enumerate(cell) for name, source in node)
        edges.append((cell_type, tuple(own)))
    return tuple(edges)


class Model(nn.Module):
    """Stem, cells, global pooling and classifier.

    Attributes:
      channels: C, of a node of the first cell.
      cells: how many.
      classes: outputs.
      stem: 'cifar' or 'imagenet'.
      stem_features: channels of the stem.
      edges: by cell type.
      partial_channels: K.
      auxiliary: whether there is an auxiliary head, after the second reduction.
      affine: BatchNorm inside cells has a scale and bias (networks), or not (supernets).
      kernels: of the backend.
      axis_name: mesh axis over which batch statistics are synchronised, or None.
    """

    channels: int
    cells: int
    classes: int
    stem: str
    stem_features: int
    edges: Edges
    partial_channels: int
    auxiliary: bool
    affine: bool
    kernels: Kernels
    axis_name: str | None

    @nn.compact
    def __call__(
        self,
        x: Array,
        mix: Mapping[str, Array],
        train: bool,
        drop_path: Array | float = 0.0,
        learn: Array | None = None,
    ) -> tuple[Array, Array | None]:
        """x [b, h, w, c], mix by cell type [e, o] -> logits [b, classes], auxiliary or None."""
        axis_name = None if self.is_initializing() else self.axis_name
        mode = Mode(self.kernels, train, axis_name, learn)
        inputs = Stem(self.stem, self.stem_features, mode, name="stem")(x)
        auxiliary, wanted = None, self.auxiliary and (train or self.is_initializing())
        runs = cell_runs(self.channels, self.cells, self.stem, self.stem_features)
        # From a reduction to the next, cells are equal but for what their inputs are.
        for _, equal in itertools.groupby(runs, lambda run: (run.cell_type, run.channels)):
            group = list(equal)
            inputs = self._cells(group, mode, inputs, mix[group[0].cell_type], drop_path)
            if group[0].first == 2 * self.cells // 3 and wanted:
                head = AuxiliaryHead(self.classes, self.stem, self.axis_name, name="auxiliary")
                auxiliary = head(self.kernels.transpose(inputs[1]), train)
        return classify(self.kernels.pixel_mean(inputs[1]), self.classes), auxiliary

    def _cells(
        self,
        runs: list[Run],
        mode: Mode,
        inputs: Inputs,
        mix: Array,
        drop_path: Array | float,
    ) -> Inputs:
        """The cells of some runs that have equal nodes."""
        cell_type = runs[0].cell_type
        edges = dict(self.edges)[cell_type]
        cell = Cell(mode, cell_type, edges, runs[0].channels, self.partial_channels)
        variables = [RunBanks(run, cell, self.affine, name=run.name)() for run in runs]
        arrays = [
            {name: bank.arrays(mode.train) for name, bank in banks.items()} for banks in variables
        ]
        keep, keys = None, jnp.zeros(sum(run.length for run in runs))
        if mode.train and self.has_rng("drop_path"):
            keep = partial(_keep, cell, drop_path)
            keys = jax.random.split(self.make_rng("drop_path"), len(keys))
        outputs, moments = run_cells(cell, inputs, arrays, mix, keep, keys)
        first = 0
        for run, banks in zip(runs, variables, strict=True) if mode.train else ():
            cells = slice(first, first + run.length)
            for name, bank in banks.items():
                bank.record(jax.tree.map(lambda array, cells=cells: array[cells], moments[name]))
            first += run.length
        return outputs


class RunBanks(nn.Module):
    """The parameters of a run: banks by primitive, and by `squeeze_0` and `squeeze_1`.

    Attributes:
      run: the run.
      cell: of its cells.
      affine: BatchNorm has a scale and bias (networks), or not (supernets).
    """

    run: Run
    cell: Cell
    affine: bool

    @nn.compact
    def __call__(self) -> dict[str, Bank]:
        """Each bank's arrays begin with an axis of cells."""
        run, banks = self.run, self.cell.make_banks(self.run.length, self.affine)
        for i, halve in enumerate((run.halve, False)):
            name = f"squeeze_{i}"
            shape = (run.length, run.inputs[i], run.channels, halve)
            banks[name] = squeeze_bank(*shape, self.affine, name)
        return banks


def _keep(cell: Cell, drop_path: Array | float, key: Array, x: Array) -> Array:
    """Drop path: for every example and edge 0, or 1 over the share that stays. [b, e]."""
    share = 1.0 - jnp.asarray(drop_path, jnp.float32)
    shape = (x.shape[cell.mode.kernels.batch_axis], len(cell.edges))
    return jax.random.bernoulli(key, share, shape) / share


class Supernet(nn.Module):
    """See Space.supernet. BatchNorm inside cells has no affine parameters."""

    structure: Structure
    kernels: Kernels
    axis_name: str | None

    @nn.compact
    def __call__(
        self, x: Array, mix: Mapping[str, Array], train: bool, learn: Array | None = None
    ) -> Array:
        """x [b, h, w, c], mix by cell type [14, o] -> logits [b, classes]."""
        structure = self.structure
        model = Model(
            structure.channels,
            structure.cells,
            structure.classes,
            structure.stem,
            stem_features=stem_features(structure.channels, structure.stem, network=False),
            edges=supernet_edges(structure),
            partial_channels=structure.partial_channels,
            auxiliary=False,
            affine=False,
            kernels=self.kernels,
            axis_name=self.axis_name,
            name="model",
        )
        return model(x, mix, train, learn=learn)[0]


class Network(nn.Module):
    """See Space.network: the model of the genotype's edges, at mixing weight 1."""

    genotype: Genotype
    channels: int
    cells: int
    classes: int
    stem: str
    auxiliary: bool
    kernels: Kernels
    axis_name: str | None

    @nn.compact
    def __call__(
        self, x: Array, train: bool, drop_path: Array | float = 0.0
    ) -> tuple[Array, Array | None]:
        """x [b, h, w, c] -> logits [b, classes], auxiliary logits or None."""
        edges = network_edges(self.genotype)
        model = Model(
            self.channels,
            self.cells,
            self.classes,
            self.stem,
            stem_features=stem_features(self.channels, self.stem, network=True),
            edges=edges,
            partial_channels=1,
            auxiliary=self.auxiliary,
            affine=True,
            kernels=self.kernels,
            axis_name=self.axis_name,
            name="model",
        )
        mix = {cell_type: jnp.ones((len(own), 1)) for cell_type, own in edges}
        return model(x, mix, train, drop_path)


def supernet(structure: Structure, kernels: Kernels, axis_name: str | None) -> nn.Module:
    """See Space.supernet.

    Raises:
      UserError: the stem does not go with the channels.
    """
    _check_stem(structure.stem, structure.channels)
    return Supernet(structure, kernels, axis_name)


def network(
    genotype: Genotype,
    channels: int,
    cells: int,
    classes: int,
    stem: str,
    auxiliary: bool,
    kernels: Kernels,
    axis_name: str | None,
) -> nn.Module:
    """See Space.network.

    Raises:
      UserError: the genotype has other edges, or the stem does not go with the channels.
    """
    _check_stem(stem, channels)
    network_edges(genotype)
    return Network(genotype, channels, cells, classes, stem, auxiliary, kernels, axis_name)


def _check_stem(stem: str, channels: int) -> None:
    if stem == "imagenet" and channels % 2:
        raise UserError(
            f"the ImageNet stem needs an even number of channels, not {channels}: set "
            "search.channels and retrain.channels to even numbers"
        )


def derive(strength: Mapping[str, np.ndarray], operations: Mapping[str, Operations]) -> Genotype:
    """See Space.derive: of every node the two input edges whose best operation is strongest."""
    return Genotype(
        "darts",
        tuple(
            (cell_type, strongest_edges(strength[cell_type], operations[cell_type]))
            for cell_type in EDGES
        ),
    )


def strongest_edges(
    strength: np.ndarray, kept: tuple[tuple[str, ...], ...]
) -> tuple[tuple[tuple[str, int], ...], ...]:
    """A cell of each node's two strongest input edges, with their strongest operation.

    Args:
      strength: of each operation [e, o].
      kept: the primitives of each edge.
    """
    cell = []
    for node in range(NODES):
        rows = [row for row, pair in enumerate(PAIRS) if pair[0] == node]
        strongest = sorted(rows, key=lambda row: -np.max(strength[row]))[:2]
        cell.append(
            tuple(
                (kept[row][int(np.argmax(strength[row]))], PAIRS[row][1])
                for row in sorted(strongest)
            )
        )
    return tuple(cell)


def describe(genotype: Genotype) -> str:
    """One line, such as `normal: sep_conv_3x3(0) + skip_connect(1), ...; reduce: ...`."""
    cells = []
    for cell_type, cell in genotype.cells:
        nodes = (" + ".join(f"{name}({source})" for name, source in node) for node in cell)
        cells.append(f"{cell_type}: {', '.join(nodes)}")
    return "; ".join(cells)
