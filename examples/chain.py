"""A search space of one's own: a chain of layers, each of which chooses its operation.

Every layer is a mixed operation and feeds the next one; chains of three layers follow each other,
`search.cells` of them. To use it, copy this file to drnas_jax/spaces/ and give
`--config.space=chain --config.search.operations='(4,2)'`.
"""

from collections.abc import Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from drnas_jax.genotype import Genotype
from drnas_jax.nn import norm
from drnas_jax.nn.backend import Kernels
from drnas_jax.nn.banks import CONV_CHANNEL_AXES, Bank, Mode, Recorder, Weight, channel_shuffle
from drnas_jax.nn.blocks import classify
from drnas_jax.spaces.base import Operations, Structure

PRIMITIVES = ("skip_connect", "avg_pool_3x3", "nor_conv_1x1", "nor_conv_3x3")
FILTER_SIZES = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}
LAYERS = 3
EDGES = {"chain": tuple(f"{layer + 1}<-{layer}" for layer in range(LAYERS))}
CHANNEL_AXES = {name: CONV_CHANNEL_AXES for name in FILTER_SIZES}
STEMS = {"cifar": 2}
RETRAIN_FIELDS = ()  # no auxiliary head, and no path is dropped


def has_row(cell_type: str, edge: int, primitive: str) -> bool:
    """See Space.has_row."""
    del cell_type, edge
    return primitive in CHANNEL_AXES


class Chain(nn.Module):
    """Mixed layers, one after the other; 1/K of the channels go through the operations.

    Attributes:
      operations: primitives kept in each layer.
      partial_channels: K.
      kernels, affine, axis_name: of the backend, of BatchNorm, of the devices.
      train: normalise by the batch.
    """

    operations: Operations
    partial_channels: int
    kernels: Kernels
    affine: bool
    axis_name: str | None
    train: bool

    @nn.compact
    def __call__(
        self, x: jax.Array, mix: jax.Array, learn: jax.Array | None
    ) -> tuple[jax.Array, None]:
        """x in the kernels' layout, mix [e, o] -> (x, None), as a scan wants it."""
        axis = self.kernels.channel_axis
        mode = Mode(self.kernels, self.train, self.axis_name, learn)
        width = x.shape[axis] // self.partial_channels
        banks, recorder = self._banks(width), Recorder()
        arrays = {name: bank.arrays(self.train) for name, bank in banks.items()}
        for layer, kept in enumerate(self.operations):
            selected, rest = jnp.split(x, [width], axis)
            mixed = jnp.zeros_like(selected)
            for name, weight in zip(kept, mix[layer], strict=True):
                y = selected
                if name == "avg_pool_3x3":
                    y = self.kernels.avg_pool(selected, 1)
                if name in banks:
                    row = sum(name in earlier for earlier in self.operations[:layer])
                    own = {leaf: array[row] for leaf, array in arrays[name].items()}
                    y = mode.apply(self.kernels.conv, jax.nn.relu(selected), own["kernel"], 1)
                    y, moments = mode.normalise(y, own)
                    for mean, var in moments.values():
                        recorder.add(name, "", [row], mean, var)
                mixed += (weight * y).astype(y.dtype)
            x = channel_shuffle(jnp.concatenate([mixed, rest], axis), self.partial_channels, axis)
        for name, moments in recorder.moments().items():
            banks[name].record(moments)
        return x, None

    def _banks(self, features: int) -> dict[str, Bank]:
        """The arrays of each convolution, a row for every layer that keeps it."""
        banks = {}
        for name, size in FILTER_SIZES.items():
            rows = sum(name in kept for kept in self.operations)
            weight = Weight(norm.uniform_fan_in(batch_axis=(0,)), (size, size, features, features))
            if rows:
                banks[name] = Bank(
                    (rows,), {"kernel": weight}, {"": (features,)}, self.affine, name=name
                )
        return banks


class Model(nn.Module):
    """A convolution at half the size, the chains, pooling and a classifier.

    Attributes:
      structure: its shape.
      kernels, affine, axis_name: see Chain.
    """

    structure: Structure
    kernels: Kernels
    affine: bool
    axis_name: str | None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mix: Mapping[str, jax.Array],
        train: bool,
        learn: jax.Array | None = None,
    ) -> jax.Array:
        """x [b, h, w, c], mix {'chain': [3, o]} -> logits [b, classes]."""
        structure, kernels = self.structure, self.kernels
        axis_name = None if self.is_initializing() else self.axis_name
        mode = Mode(kernels, train, axis_name, learn)
        normalise = partial(norm.BatchNorm, axis_name=axis_name, axis=kernels.channel_axis)
        taps = (3, 3, x.shape[-1], structure.channels)
        kernel = self.param("stem_kernel", norm.uniform_fan_in(), taps)
        x = mode.apply(kernels.conv, kernels.transpose(x), kernel, 2)
        x = normalise(name="stem_norm")(x, train)
        chains = nn.scan(  # equal cells, compiled once
            Chain,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=structure.cells,
        )
        x, _ = chains(
            operations=structure.kept("chain"),
            partial_channels=structure.partial_channels,
            kernels=kernels,
            affine=self.affine,
            axis_name=axis_name,
            train=train,
            name="chain",
        )(x, mix["chain"], learn)
        x = jax.nn.relu(normalise(name="last_norm")(x, train))
        return classify(kernels.pixel_mean(x), structure.classes)


class Network(nn.Module):
    """The final network: the model with one operation a layer, at mixing weight 1."""

    structure: Structure
    kernels: Kernels
    axis_name: str | None

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, drop_path: jax.Array | float = 0.0
    ) -> tuple[jax.Array, None]:
        """x [b, h, w, c] -> logits [b, classes], None."""
        del drop_path
        model = Model(self.structure, self.kernels, True, self.axis_name, name="model")
        return model(x, {"chain": jnp.ones((LAYERS, 1))}, train), None


def supernet(structure: Structure, kernels: Kernels, axis_name: str | None) -> nn.Module:
    """See Space.supernet."""
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
    """See Space.network."""
    del auxiliary
    kept = tuple((name,) for ((name, _),) in genotype.cell("chain"))
    structure = Structure(channels, cells, classes, 1, (("chain", kept),), stem)
    return Network(structure, kernels, axis_name)


def derive(strength: Mapping[str, np.ndarray], operations: Mapping[str, Operations]) -> Genotype:
    """See Space.derive: every layer keeps its strongest operation."""
    kept = operations["chain"]
    best = [kept[layer][int(np.argmax(row))] for layer, row in enumerate(strength["chain"])]
    nodes = tuple(((name, layer),) for layer, name in enumerate(best))
    return Genotype("chain", (("chain", nodes),))


def describe(genotype: Genotype) -> str:
    """The operations in order."""
    return " > ".join(name for ((name, _),) in genotype.cell("chain"))
