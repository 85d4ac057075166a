"""The model of the DARTS space: one module is both supernet and final network.

A network is a supernet of fewer edges, with one operation each, all channels and affine BatchNorm.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from drnas_jax.nn.backend import Backend
from drnas_jax.nn.blocks import AuxiliaryHead, Stem, classify
from drnas_jax.nn.stacked_params import ApplyContext, StackedParams, context_of
from drnas_jax.spaces.base import Edge, NetworkSpec, SupernetSpec
from drnas_jax.spaces.darts.cell import Inputs, MixedCell, run_cells, squeeze_params
from drnas_jax.spaces.darts.noise import has_noise
from drnas_jax.spaces.darts.operations import NODES

Array = jax.Array
CellEdges = tuple[tuple[str, tuple[Edge, ...]], ...]  # by cell type


@dataclasses.dataclass(frozen=True)
class CellRun:
    """Consecutive cells of the same type and shapes, whose arrays are stacked.

    Attributes:
      cell_type: `normal` or `reduce`.
      channels: Channels of a node.
      halve: Whether input 0 is twice as large as input 1.
      inputs: Channels of the two inputs.
      first: Number of the first cell, from 0.
      length: Number of cells.
    """

    cell_type: str
    channels: int
    halve: bool
    inputs: tuple[int, int]
    first: int = 0
    length: int = 1

    @property
    def name(self) -> str:
        """Name of the parameters."""
        return f"{self.cell_type}_{self.first}"


def cell_runs(channels: int, depth: int, stem: str, stem_features: int) -> list[CellRun]:
    """Groups the cells of a model into runs of equal ones, in order.

    Args:
      channels: Channels C of a node of the first cell.
      depth: Number of cells.
      stem: `cifar` or `imagenet`.
      stem_features: Channels of the stem.
    """
    cells = []
    inputs, halve = (stem_features, stem_features), stem == "imagenet"
    for i in range(depth):
        cell_type = "reduce" if i in (depth // 3, 2 * depth // 3) else "normal"
        channels = 2 * channels if cell_type == "reduce" else channels
        cells.append(CellRun(cell_type, channels, halve, inputs))
        inputs, halve = (inputs[1], NODES * channels), cell_type == "reduce"
    runs, first = [], 0
    for cell, equal in itertools.groupby(cells):
        length = len(list(equal))
        runs.append(dataclasses.replace(cell, first=first, length=length))
        first += length
    return runs


def stem_features(channels: int, stem: str, network: bool) -> int:
    """Returns the channels of the stem: C in a final network for ImageNet, else 3 C."""
    return channels if network and stem == "imagenet" else 3 * channels


class Model(nn.Module):
    """Stem, cells, global pooling and classifier.

    Attributes:
      edges: Edges of each cell type.
      channels: Channels C of a node of the first cell.
      depth: Number of cells.
      classes: Number of outputs.
      stem: `cifar` or `imagenet`.
      stem_features: Channels of the stem.
      backend: Kernels and layout.
      partial_channels: K.
      auxiliary: Whether there is an auxiliary head, after the second reduction.
      affine: Whether BatchNorm inside cells has a scale and bias (in networks), or not (in
        supernets).
    """

    edges: CellEdges
    channels: int
    depth: int
    classes: int
    stem: str
    stem_features: int
    backend: Backend
    partial_channels: int = 1
    auxiliary: bool = False
    affine: bool = False

    @nn.compact
    def __call__(
        self, x: Array, mix: Mapping[str, Array], train: bool, drop_path: Array | float = 0.0
    ) -> tuple[Array, Array | None]:
        """Maps images [b, h, w, c] and mixing weights [e, o] by cell type to logits [b, classes].

        The second result is the logits of the auxiliary head, or None outside training or if there
        is no such head.
        """
        context = context_of(self, train)
        inputs = Stem(self.stem, self.stem_features, context, name="stem")(x)
        auxiliary, wanted = None, self.auxiliary and (train or self.is_initializing())
        runs = cell_runs(self.channels, self.depth, self.stem, self.stem_features)
        # Between two reductions the cells are equal except for their inputs.
        for _, equal in itertools.groupby(runs, lambda run: (run.cell_type, run.channels)):
            group = list(equal)
            inputs = self._cells(group, context, inputs, mix[group[0].cell_type], drop_path)
            if group[0].first == 2 * self.depth // 3 and wanted:
                head = AuxiliaryHead(
                    self.classes, self.stem, self.backend.axis_name, name="auxiliary"
                )
                auxiliary = head(self.backend.transpose(inputs[1]), train)
        return classify(self.backend.pixel_mean(inputs[1]), self.classes), auxiliary

    def _cells(
        self,
        runs: list[CellRun],
        context: ApplyContext,
        inputs: Inputs,
        mix: Array,
        drop_path: Array | float,
    ) -> Inputs:
        """Computes the cells of several runs whose nodes are equal."""
        cell_type = runs[0].cell_type
        edges = dict(self.edges)[cell_type]
        cell = MixedCell(context, cell_type, edges, runs[0].channels, self.partial_channels)
        params = [CellRunParams(run, cell, self.affine, name=run.name)() for run in runs]
        arrays = [
            {name: stacked.arrays(context.train) for name, stacked in of_run.items()}
            for of_run in params
        ]
        draw_factors, keys = None, jnp.zeros(sum(run.length for run in runs))
        if context.train and self.has_rng("drop_path"):
            draw_factors = partial(draw_path_factors, cell, drop_path)
            keys = jax.random.split(self.make_rng("drop_path"), len(keys))
        noise_keys = None
        if has_noise(edges):
            noise_keys = jax.random.split(self.make_rng("noise"), len(keys))
        outputs, moments = run_cells(cell, inputs, arrays, mix, draw_factors, keys, noise_keys)
        first = 0
        for run, of_run in zip(runs, params, strict=True) if context.train else ():
            cells = slice(first, first + run.length)
            for name, stacked in of_run.items():
                stacked.record(jax.tree.map(lambda array, cells=cells: array[cells], moments[name]))
            first += run.length
        return outputs


class CellRunParams(nn.Module):
    """The parameters of the cells of a run.

    Attributes:
      run: The run.
      cell: Each of its cells.
      affine: Whether BatchNorm has a scale and bias (in networks), or not (in supernets).
    """

    run: CellRun
    cell: MixedCell
    affine: bool

    @nn.compact
    def __call__(self) -> dict[str, StackedParams]:
        """Returns the arrays by primitive, and those of `squeeze_0` and `squeeze_1`."""
        run, params = self.run, self.cell.make_params(self.run.length, self.affine)
        for i, halve in enumerate((run.halve, False)):
            name = f"squeeze_{i}"
            shape = (run.length, run.inputs[i], run.channels, halve)
            params[name] = squeeze_params(*shape, self.affine, name)
        return params


def draw_path_factors(cell: MixedCell, rate: Array | float, key: Array, x: Array) -> Array:
    """Draws drop path's factors: 0 for a dropped path, else 1 / (1 - rate).

    Args:
      cell: The cell.
      rate: Share of the paths that are dropped.
      key: Random key.
      x: Images in the backend's layout, whose batch size counts.

    Returns:
      Factor of each example and edge, float32 [b, e].
    """
    share = 1.0 - jnp.asarray(rate, jnp.float32)
    shape = (x.shape[cell.context.backend.batch_axis], len(cell.edges))
    return jax.random.bernoulli(key, share, shape) / share


class Supernet(nn.Module):
    """The supernet: the model of all edges. BatchNorm in its cells has no scale and bias."""

    spec: SupernetSpec
    stem: str
    backend: Backend

    @nn.compact
    def __call__(self, x: Array, mix: Mapping[str, Array], train: bool) -> Array:
        """Maps images [b, h, w, c] and mixing weights [14, o] by cell type to logits."""
        spec = self.spec
        model = Model(
            tuple((cell_type, cell.edges) for cell_type, cell in spec.cells),
            spec.channels,
            spec.depth,
            spec.classes,
            self.stem,
            stem_features(spec.channels, self.stem, network=False),
            self.backend,
            partial_channels=spec.partial_channels,
            name="model",
        )
        return model(x, mix, train)[0]


class Network(nn.Module):
    """The final network: the model of a genotype's edges, each at mixing weight 1."""

    spec: NetworkSpec
    edges: CellEdges
    stem: str
    backend: Backend

    @nn.compact
    def __call__(
        self, x: Array, train: bool, drop_path: Array | float = 0.0
    ) -> Array | tuple[Array, Array]:
        """Maps images to logits [b, classes], in training also those of the auxiliary head."""
        spec = self.spec
        model = Model(
            self.edges,
            spec.channels,
            spec.depth,
            spec.classes,
            self.stem,
            stem_features(spec.channels, self.stem, network=True),
            self.backend,
            auxiliary=spec.auxiliary,
            affine=True,
            name="model",
        )
        mix = {cell_type: jnp.ones((len(edges), 1)) for cell_type, edges in self.edges}
        logits, auxiliary = model(x, mix, train, drop_path)
        return logits if auxiliary is None else (logits, auxiliary)
