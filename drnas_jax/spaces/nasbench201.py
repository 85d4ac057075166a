"""NAS-Bench-201 (Dong & Yang, ICLR 2020): one cell type of 4 nodes and 6 edges, 5 operations.

A model has three stages of N equal cells with C, 2C and 4C channels, and residual reduction blocks
between the stages. The final network is the supernet with one operation on each edge, all channels
and affine BatchNorm, so one module serves as both.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from drnas_jax.errors import UserError, check_choice
from drnas_jax.genotype import Genotype
from drnas_jax.genotype_formats import parse_arch
from drnas_jax.nn import norm, stacked_params
from drnas_jax.nn.backend import Backend
from drnas_jax.nn.blocks import classify
from drnas_jax.nn.mixed import FinalNetwork
from drnas_jax.nn.stacked_params import (
    CONV_CHANNEL_AXES,
    ApplyContext,
    Arrays,
    MomentRecorder,
    StackedParams,
    Weight,
    channel_shuffle,
    context_of,
    scaled,
)
from drnas_jax.spaces.base import Cell, Edge, NetworkSpec, Space, SupernetSpec, check_divisible

Array = jax.Array

PRIMITIVES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NODES = 4  # number of nodes of a cell, including its input
FILTER_SIZES = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}
CHANNEL_AXES = {name: CONV_CHANNEL_AXES for name in FILTER_SIZES}
PAIRS = tuple((target, source) for target in range(1, NODES) for source in range(target))
CELL = Cell(tuple(Edge(target, source, PRIMITIVES) for target, source in PAIRS))


class MixedCell(nn.Module):
    """A cell of mixed operations, in which edges that leave the same node share their computations.

    Attributes:
      edges: Edges with their remaining operations.
      partial_channels: K; 1/K of the channels pass through the operations.
      backend: Kernels and layout of images.
      affine: Whether BatchNorm has a scale and a bias: only in final networks.
      train: Whether to normalise by the statistics of the batch.
    """

    edges: tuple[Edge, ...]
    partial_channels: int
    backend: Backend
    affine: bool
    train: bool

    @nn.compact
    def __call__(self, x: Array, mix: Array) -> tuple[Array, None]:
        """Maps x in the backend's layout and mix [e, o] to (x, None), as `nn.scan` expects."""
        backend, axis = self.backend, self.backend.channel_axis
        context = context_of(self, self.train)
        width = x.shape[axis] // self.partial_channels
        params, recorder = self._params(width), MomentRecorder()
        arrays = {name: stack.arrays(self.train) for name, stack in params.items()}
        sums: list[list[Array]] = [
            [] for _ in range(NODES)
        ]  # by node, of the channels in the operations
        bypass: list[Array] = []
        for source in range(NODES - 1):
            selected, rest = jnp.split(x, [width], axis)
            convolved = partial(self._convolved, context, arrays, recorder, selected, mix, source)
            for name in params:
                for row, y in convolved(name):
                    sums[self.edges[row].target].append(y)
            pooling = self._leaving("avg_pool_3x3", source)
            pooled = backend.avg_pool(selected, 1) if pooling else selected
            for name, value in (("skip_connect", selected), ("avg_pool_3x3", pooled)):
                for row in self._leaving(name, source):
                    weighted = scaled(value, self._weight(mix, row, name))
                    sums[self.edges[row].target].append(weighted)
            bypass.append(rest)
            mixed = sum(sums[source + 1], start=jnp.zeros_like(selected))
            x = jnp.concatenate([mixed, sum(bypass[1:], start=bypass[0])], axis)
            x = channel_shuffle(x, self.partial_channels, axis)
        for name, moments in recorder.moments().items():
            params[name].record(moments)
        return x, None

    def _convolved(
        self,
        context: ApplyContext,
        arrays: Mapping[str, Arrays],
        recorder: MomentRecorder,
        x: Array,
        mix: Array,
        source: int,
        name: str,
    ) -> list[tuple[int, Array]]:
        """Computes ReLU, convolution and BatchNorm of all edges that leave a node at once."""
        leaving = self._leaving(name, source)
        if not leaving:
            return []
        kept = stacked_rows(self.edges, name)
        rows = [kept.index(row) for row in leaving]
        stacked = {
            leaf: jnp.stack([array[r] for r in rows]) for leaf, array in arrays[name].items()
        }
        y = context.apply(self.backend.conv, jax.nn.relu(x), _wide(stacked["kernel"]), 1)
        weights = jnp.stack([self._weight(mix, row, name) for row in leaving])
        axis = self.backend.channel_axis
        y, moments = context.normalise(y, stacked, weight=jnp.repeat(weights, x.shape[axis]))
        for mean, var in moments.values():
            recorder.add(name, "", rows, mean, var)
        return list(zip(leaving, jnp.split(y, len(leaving), axis), strict=True))

    def _leaving(self, name: str, source: int) -> list[int]:
        """Returns the rows of the edges that leave a node and keep a primitive."""
        return [
            row
            for row, edge in enumerate(self.edges)
            if edge.source == source and name in edge.primitives
        ]

    def _weight(self, mix: Array, row: int, name: str) -> Array:
        return mix[row, self.edges[row].primitives.index(name)]

    def _params(self, features: int) -> dict[str, StackedParams]:
        params = {}
        for name, size in FILTER_SIZES.items():
            rows = len(stacked_rows(self.edges, name))
            shape = (size, size, features, features)
            weights = {"kernel": Weight(norm.uniform_fan_in(batch_axis=(0,)), shape)}
            if rows:
                norms = {"": (features,)}
                params[name] = StackedParams((rows,), weights, norms, self.affine, name=name)
        return params


def stacked_rows(edges: Sequence[Edge], primitive: str) -> list[int]:
    """Returns the rows of the edges that keep a primitive: its arrays are stacked in this order."""
    return [row for row, edge in enumerate(edges) if primitive in edge.primitives]


def _wide(filters: Array) -> Array:
    """Joins filters [rows, h, w, c, d] to [h, w, c, rows * d]: the rows share their input."""
    return jnp.moveaxis(filters, 0, 3).reshape(*filters.shape[1:4], -1)


class ReductionBlock(nn.Module):
    """The residual block between stages, which halves the size and doubles the channels.

    Attributes:
      context: Backend and mode of this call.
    """

    context: ApplyContext

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x to half its size, both in the backend's layout."""
        context, backend = self.context, self.context.backend
        axis = backend.channel_axis
        features, y = x.shape[axis], x
        for name, inputs, stride in (("conv_a", features, 2), ("conv_b", 2 * features, 1)):
            taps = (3, 3, inputs, 2 * features)
            kernel = self.param(f"{name}_kernel", norm.uniform_fan_in(), taps)
            y = context.apply(backend.conv, jax.nn.relu(y), kernel, stride)
            normalise = norm.BatchNorm(axis_name=backend.axis_name, axis=axis, name=f"{name}_norm")
            y = normalise(y, context.train)
        shortcut = self.param(
            "shortcut_kernel", norm.uniform_fan_in(), (1, 1, features, 2 * features)
        )
        return y + context.apply(backend.pointwise, backend.halve(x), shortcut[0, 0])


class Model(nn.Module):
    """The whole model: stem, three stages of cells, global pooling and classifier.

    Attributes:
      edges: Edges of the cell with their remaining operations.
      channels: Number of channels C of the first cell.
      depth: Number of cells N in each stage.
      classes: Number of outputs.
      partial_channels: K; 1/K of the channels pass through the operations.
      backend: Kernels and layout of images.
      affine: Whether BatchNorm inside cells has a scale and a bias: only in final networks.
    """

    edges: tuple[Edge, ...]
    channels: int
    depth: int
    classes: int
    partial_channels: int
    backend: Backend
    affine: bool

    @nn.compact
    def __call__(self, x: Array, mix: Mapping[str, Array], train: bool) -> Array:
        """Maps x [b, h, w, c] and mix {'cell': [6, o]} to logits [b, classes]."""
        backend = self.backend
        context = ApplyContext(backend, train)
        normalise = partial(norm.BatchNorm, axis_name=backend.axis_name, axis=backend.channel_axis)
        taps = (3, 3, x.shape[-1], self.channels)
        kernel = self.param("stem_kernel", norm.uniform_fan_in(), taps)
        x = context.apply(backend.conv, backend.transpose(x), kernel, 1)
        x = normalise(name="stem_norm")(x, train)
        remat = backend.checkpointing(fastest="convolutions")
        cell = MixedCell if remat is None else nn.remat(MixedCell, **remat, prevent_cse=False)
        cells = nn.scan(
            cell,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
        )
        for stage in range(3):
            if stage:
                x = ReductionBlock(context, name=f"reduction_{stage}")(x)
            x, _ = cells(
                edges=self.edges,
                partial_channels=self.partial_channels,
                backend=backend,
                affine=self.affine,
                train=train,
                name=f"cell_{stage}",
            )(x, mix["cell"])
        x = jax.nn.relu(normalise(name="last_norm")(x, train))
        return classify(backend.pixel_mean(x), self.classes)


class NasBench201(Space):
    """The search space of NAS-Bench-201, whose `depth` is the number of cells N in each stage."""

    name = "nasbench201"
    cells: Mapping[str, Cell] = {"cell": CELL}

    def check(self, spec: SupernetSpec | NetworkSpec) -> None:
        """Checks that the image can be halved twice, and that a network has no extras."""
        super().check(spec)
        check_divisible(spec.image, 4)
        if isinstance(spec, NetworkSpec):
            genotype_edges(spec.genotype)

    def supernet(self, spec: SupernetSpec, backend: Backend) -> nn.Module:
        """Returns the supernet, whose cells have BatchNorm without scale and bias."""
        edges, shape = spec.cell("cell").edges, (spec.channels, spec.depth, spec.classes)
        return Model(edges, *shape, spec.partial_channels, backend, False)

    def network(self, spec: NetworkSpec, backend: Backend) -> nn.Module:
        """Returns the final network of a genotype."""
        edges, shape = genotype_edges(spec.genotype), (spec.channels, spec.depth, spec.classes)
        return FinalNetwork(Model(edges, *shape, 1, backend, True), spec.genotype)

    def resize(self, tree: Any, like: Any, old: SupernetSpec, new: SupernetSpec, seed: int) -> Any:
        """Fits the arrays, which stack the weights of all edges with the same primitive."""
        del like
        partial_channels = old.partial_channels, new.partial_channels

        def rows(cell_type: str, primitive: str) -> list[int]:
            before = stacked_rows(old.cell(cell_type).edges, primitive)
            after = stacked_rows(new.cell(cell_type).edges, primitive)
            return [before.index(row) for row in after]

        return stacked_params.resize(tree, rows, CHANNEL_AXES, self.cells, partial_channels, seed)

    def describe(self, genotype: Genotype) -> str:
        """Returns the arch string, such as `|none~0|+|none~0|none~1|+|none~0|none~1|none~2|`."""
        names = iter(edge.primitives[0] for edge in genotype_edges(genotype))
        nodes = [[f"{next(names)}~{source}" for source in range(node)] for node in range(1, NODES)]
        return "+".join(f"|{'|'.join(node)}|" for node in nodes)


def create() -> Space:
    """Returns the space of NAS-Bench-201."""
    return NasBench201()


def parse(arch: str) -> Genotype:
    """Returns the genotype of an arch string; the inverse of `NasBench201.describe`.

    Args:
      arch: The arch string; white space around it does not matter.

    Raises:
      UserError: The text is not an arch string of NAS-Bench-201.
    """
    genotype = parse_arch(arch)
    if genotype is not None:
        cell = genotype.cell("cell")
        names = {name for node in cell for name, _ in node}
        sources = [[source for _, source in node] for node in cell]
        if names <= {*PRIMITIVES} and sources == [[*range(n)] for n in range(1, NODES)]:
            return genotype
    raise UserError(
        f"{arch[:200]!r} is not an arch string: expected |op~0|+|op~0|op~1|+|op~0|op~1|op~2| "
        f"with operations from {', '.join(PRIMITIVES)}"
    )


def genotype_edges(genotype: Genotype) -> tuple[Edge, ...]:
    """Returns the 6 edges of a genotype's cell, each with its only operation.

    Raises:
      UserError: The cell has other edges or operations.
    """
    cell = genotype.cell("cell")
    if [[source for _, source in node] for node in cell] != [[*range(n)] for n in range(1, NODES)]:
        names = ", ".join(edge.name for edge in CELL.edges)
        raise UserError(f"the cell is {cell}: expected one operation on each edge of {names}")
    for node in cell:
        for name, _ in node:
            check_choice("NAS-Bench-201 operation", name, PRIMITIVES)
    return tuple(
        Edge(target, source, (name,))
        for target, node in enumerate(cell, start=1)
        for name, source in node
    )
