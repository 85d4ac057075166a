"""NAS-Bench-201 (Dong & Yang, ICLR 2020): one cell type of 4 nodes and 6 edges, 5 operations.

Three stages of N equal cells with C, 2C, 4C channels, residual reduction blocks between them. The
final network is the supernet with one operation an edge, all channels and affine BatchNorm, so both
are one module.
"""

import re
from collections.abc import Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from drnas_jax.errors import UserError, check_choice
from drnas_jax.genotype import Genotype
from drnas_jax.nn import norm
from drnas_jax.nn.backend import Kernels
from drnas_jax.nn.banks import (
    CONV_CHANNEL_AXES,
    Arrays,
    Bank,
    Mode,
    Recorder,
    Weight,
    channel_shuffle,
    scaled,
)
from drnas_jax.nn.blocks import classify
from drnas_jax.spaces.base import Operations, Structure

Array = jax.Array

PRIMITIVES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NODES = 4
PAIRS = tuple((target, source) for target in range(1, NODES) for source in range(target))
EDGES = {"cell": tuple(f"{target}<-{source}" for target, source in PAIRS)}
FILTER_SIZES = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}
CHANNEL_AXES = {name: CONV_CHANNEL_AXES for name in FILTER_SIZES}
STEMS = {"cifar": 4}
RETRAIN_FIELDS = ()  # the benchmark's cells were trained without


def has_row(cell_type: str, edge: int, primitive: str) -> bool:
    """See Space.has_row."""
    del cell_type, edge
    return primitive in CHANNEL_AXES


class Cell(nn.Module):
    """A cell of mixed operations, looped over source nodes: what edges share is computed once.

    Attributes:
      operations: primitives kept on each edge.
      partial_channels: K.
      kernels, affine, axis_name: see Model.
      train: normalise by the batch.
    """

    operations: Operations
    partial_channels: int
    kernels: Kernels
    affine: bool
    axis_name: str | None
    train: bool

    @nn.compact
    def __call__(self, x: Array, mix: Array, learn: Array | None = None) -> tuple[Array, None]:
        """x in the kernels' layout, mix [e, o] -> (x, None), as a scan over cells wants it."""
        kernels, axis = self.kernels, self.kernels.channel_axis
        axis_name = None if self.is_initializing() else self.axis_name
        mode = Mode(kernels, self.train, axis_name, learn)
        width = x.shape[axis] // self.partial_channels
        banks, recorder = self._banks(width), Recorder()
        arrays = {name: bank.arrays(self.train) for name, bank in banks.items()}
        sums: list[list[Array]] = [[] for _ in range(NODES)]  # of the selected channels
        bypass: list[Array] = []
        for source in range(NODES - 1):
            selected, rest = jnp.split(x, [width], axis)
            convolved = partial(self._convolved, mode, arrays, recorder, selected, mix, source)
            for name in banks:
                for edge, y in convolved(name):
                    sums[PAIRS[edge][0]].append(y)
            pooling = self._leaving("avg_pool_3x3", source)
            pooled = kernels.avg_pool(selected, 1) if pooling else selected
            for name, value in (("skip_connect", selected), ("avg_pool_3x3", pooled)):
                for edge in self._leaving(name, source):
                    sums[PAIRS[edge][0]].append(scaled(value, self._weight(mix, edge, name)))
            bypass.append(rest)
            mixed = sum(sums[source + 1], start=jnp.zeros_like(selected))
            x = jnp.concatenate([mixed, sum(bypass[1:], start=bypass[0])], axis)
            x = channel_shuffle(x, self.partial_channels, axis)
        for name, moments in recorder.moments().items():
            banks[name].record(moments)
        return x, None

    def _convolved(
        self,
        mode: Mode,
        arrays: Mapping[str, Arrays],
        recorder: Recorder,
        x: Array,
        mix: Array,
        source: int,
        name: str,
    ) -> list[tuple[int, Array]]:
        """ReLU-convolution-BatchNorm of all edges that leave a node, as one wider convolution."""
        edges = self._leaving(name, source)
        if not edges:
            return []
        held = [edge for edge, kept in enumerate(self.operations) if name in kept]
        rows = [held.index(edge) for edge in edges]
        own = {leaf: jnp.stack([array[r] for r in rows]) for leaf, array in arrays[name].items()}
        y = mode.apply(self.kernels.conv, jax.nn.relu(x), _wide(own["kernel"]), 1)
        weights = jnp.stack([self._weight(mix, edge, name) for edge in edges])
        axis = self.kernels.channel_axis
        y, moments = mode.normalise(y, own, weight=jnp.repeat(weights, x.shape[axis]))
        for mean, var in moments.values():
            recorder.add(name, "", rows, mean, var)
        return list(zip(edges, jnp.split(y, len(edges), axis), strict=True))

    def _leaving(self, name: str, source: int) -> list[int]:
        """The edges from a node that keep a primitive."""
        return [
            edge
            for edge, kept in enumerate(self.operations)
            if PAIRS[edge][1] == source and name in kept
        ]

    def _weight(self, mix: Array, edge: int, name: str) -> Array:
        return mix[edge, self.operations[edge].index(name)]

    def _banks(self, features: int) -> dict[str, Bank]:
        banks = {}
        for name, size in FILTER_SIZES.items():
            edges = sum(name in kept for kept in self.operations)
            shape = (size, size, features, features)
            weights = {"kernel": Weight(norm.uniform_fan_in(batch_axis=(0,)), shape)}
            if edges:
                banks[name] = Bank((edges,), weights, {"": (features,)}, self.affine, name=name)
        return banks


def _wide(kernels: Array) -> Array:
    """[rows, h, w, c, d] -> [h, w, c, rows * d]: one wider convolution, as rows share its input."""
    return jnp.moveaxis(kernels, 0, 3).reshape(*kernels.shape[1:4], -1)


class ReductionBlock(nn.Module):
    """The residual block between stages: half the size, twice the channels."""

    mode: Mode

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x in the kernels' layout."""
        mode, axis = self.mode, self.mode.kernels.channel_axis
        features, y = x.shape[axis], x
        for name, inputs, stride in (("conv_a", features, 2), ("conv_b", 2 * features, 1)):
            taps = (3, 3, inputs, 2 * features)
            kernel = self.param(f"{name}_kernel", norm.uniform_fan_in(), taps)
            y = mode.apply(mode.kernels.conv, jax.nn.relu(y), kernel, stride)
            normalise = norm.BatchNorm(axis_name=mode.axis_name, axis=axis, name=f"{name}_norm")
            y = normalise(y, mode.train)
        shortcut = self.param(
            "shortcut_kernel", norm.uniform_fan_in(), (1, 1, features, 2 * features)
        )
        return y + mode.apply(mode.kernels.pointwise, mode.kernels.halve(x), shortcut[0, 0])


class Model(nn.Module):
    """Stem, three stages of cells, global pooling and classifier.

    Attributes:
      structure: its shape.
      kernels: of the backend.
      affine: BatchNorm inside cells has a scale and bias (networks), or not (supernets).
      axis_name: mesh axis over which batch statistics are synchronised, or None.
    """

    structure: Structure
    kernels: Kernels
    affine: bool
    axis_name: str | None

    @nn.compact
    def __call__(
        self, x: Array, mix: Mapping[str, Array], train: bool, learn: Array | None = None
    ) -> Array:
        """x [b, h, w, c], mix {'cell': [6, o]} -> logits [b, classes]."""
        structure, kernels = self.structure, self.kernels
        mode = Mode(kernels, train, self.axis_name, learn)
        normalise = partial(norm.BatchNorm, axis_name=self.axis_name, axis=kernels.channel_axis)
        taps = (3, 3, x.shape[-1], structure.channels)
        kernel = self.param("stem_kernel", norm.uniform_fan_in(), taps)
        x = mode.apply(kernels.conv, kernels.transpose(x), kernel, 1)
        x = normalise(name="stem_norm")(x, train)
        remat = kernels.checkpointing(fastest="convolutions")
        cell = Cell if remat is None else nn.remat(Cell, **remat, prevent_cse=False)
        cells = nn.scan(
            cell,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=structure.cells,
        )
        for stage in range(3):
            if stage:
                x = ReductionBlock(mode, name=f"reduction_{stage}")(x)
            x, _ = cells(
                operations=structure.kept("cell"),
                partial_channels=structure.partial_channels,
                kernels=kernels,
                affine=self.affine,
                axis_name=self.axis_name,
                train=train,
                name=f"cell_{stage}",
            )(x, mix["cell"], learn)
        x = jax.nn.relu(normalise(name="last_norm")(x, train))
        return classify(kernels.pixel_mean(x), structure.classes)


class Network(nn.Module):
    """The final network: the model of one operation an edge, at mixing weight 1."""

    structure: Structure
    kernels: Kernels
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Array, train: bool, drop_path: Array | float = 0.0) -> tuple[Array, None]:
        """x [b, h, w, c] -> logits [b, classes], None."""
        del drop_path
        model = Model(self.structure, self.kernels, True, self.axis_name, name="model")
        return model(x, {"cell": jnp.ones((len(PAIRS), 1))}, train), None


def supernet(structure: Structure, kernels: Kernels, axis_name: str | None) -> nn.Module:
    """See Space.supernet. BatchNorm inside cells has no affine parameters."""
    return Model(structure, kernels, False, axis_name)


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
      UserError: the genotype's cell is not one of NAS-Bench-201.
    """
    del auxiliary
    operations = tuple((name,) for name in _operations(genotype))
    structure = Structure(channels, cells, classes, 1, (("cell", operations),), stem)
    return Network(structure, kernels, axis_name)


def derive(strength: Mapping[str, np.ndarray], operations: Mapping[str, Operations]) -> Genotype:
    """See Space.derive: every edge keeps its operation of largest mean."""
    kept = operations["cell"]
    best = [kept[edge][int(np.argmax(row))] for edge, row in enumerate(strength["cell"])]
    return _genotype(best)


def describe(genotype: Genotype) -> str:
    """The benchmark's arch string, such as `|none~0|+|none~0|none~1|+|none~0|none~1|none~2|`."""
    names = iter(_operations(genotype))
    nodes = [[f"{next(names)}~{source}" for source in range(node)] for node in range(1, NODES)]
    return "+".join(f"|{'|'.join(node)}|" for node in nodes)


def parse(arch: str) -> Genotype:
    """The genotype of an arch string; the inverse of `describe`.

    Raises:
      UserError: it is not an arch string of NAS-Bench-201.
    """
    pairs = re.findall(r"([a-z0-9_]+)~([0-9]+)", arch)
    sources = [int(source) for _, source in pairs]
    if sources == [source for _, source in PAIRS] and {n for n, _ in pairs} <= {*PRIMITIVES}:
        genotype = _genotype([name for name, _ in pairs])
        if describe(genotype) == arch:
            return genotype
    raise UserError(
        f"{arch[:200]!r} is not an arch string: expected |op~0|+|op~0|op~1|+|op~0|op~1|op~2| "
        f"with operations out of {', '.join(PRIMITIVES)}"
    )


def _genotype(names: list[str]) -> Genotype:
    nodes = tuple(
        tuple((names[PAIRS.index((node, source))], source) for source in range(node))
        for node in range(1, NODES)
    )
    return Genotype("nasbench201", (("cell", nodes),))


def _operations(genotype: Genotype) -> list[str]:
    cell = genotype.cell("cell")
    if [[source for _, source in node] for node in cell] != [[*range(n)] for n in range(1, NODES)]:
        raise UserError(f"a NAS-Bench-201 cell has the edges {EDGES['cell']}, not those of {cell}")
    pairs = [pair for node in cell for pair in node]
    for name, _ in pairs:
        check_choice("NAS-Bench-201 operation", name, PRIMITIVES)
    return [name for name, _ in pairs]
