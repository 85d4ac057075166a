"""A search space of your own: a chain of layers, each of which chooses its operation.

    python -m drnas_jax.main --config=configs/digits.py --config.space=examples/chain.py \
        --config.search.operations='(4,2)' --workdir=runs/chain

Chains of three layers follow each other, `search.cells` of them, after a convolution that halves
the image. As in NAS-Bench-201 1/K of the channels go through the operations.
"""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from drnas_jax.nn.mixed import FinalNetwork, MixedOp, partial_channels
from drnas_jax.spaces.base import Cell, Edge, Space, check_divisible

PRIMITIVES = ("skip_connect", "avg_pool_3x3", "conv_1x1", "conv_3x3")
LAYERS = 3


class ConvNorm(nn.Module):
    """ReLU, convolution and BatchNorm, which has a scale and bias only in final networks."""

    size: int
    train: bool
    affine: bool
    axis_name: str | None

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(x.shape[-1], (self.size, self.size), use_bias=False)(nn.relu(x))
        norm = nn.BatchNorm(
            not self.train, use_scale=self.affine, use_bias=self.affine, axis_name=self.axis_name
        )
        return norm(x)


class Chains(nn.Module):
    """Stem, chains, pooling and classifier; the final network keeps one operation in each layer."""

    layers: tuple[tuple[str, ...], ...]
    spec: object
    k: int
    affine: bool
    axis_name: str | None

    @nn.compact
    def __call__(self, x, mix, train):
        axis_name = None if self.is_initializing() else self.axis_name

        def operation(name):
            if name == "skip_connect":
                return lambda x: x
            if name == "avg_pool_3x3":
                return lambda x: nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
            return ConvNorm(int(name[-1]), train, self.affine, axis_name)

        x = nn.Conv(self.spec.channels, (3, 3), strides=2, use_bias=False, name="stem")(x)
        for chain in range(self.spec.depth):
            for layer, primitives in enumerate(self.layers):
                mixed = MixedOp(primitives, operation, name=f"chain_{chain}_{layer}")
                x = partial_channels(partial(mixed, weights=mix["chain"][layer]), x, self.k)
        norm = nn.BatchNorm(not train, axis_name=axis_name, name="last_norm")
        return nn.Dense(self.spec.classes)(jnp.mean(nn.relu(norm(x)), axis=(1, 2)))


class Chain(Space):
    """The space; its only cell type has an edge for each layer."""

    name = "chain"
    cells = {"chain": Cell(tuple(Edge(i + 1, i, PRIMITIVES) for i in range(LAYERS)))}

    def check(self, spec):
        """See Space.check."""
        super().check(spec)
        check_divisible(spec.image, 2)

    def supernet(self, spec, backend):
        """See Space.supernet."""
        layers = tuple(edge.primitives for edge in spec.cell("chain").edges)
        return Chains(layers, spec, spec.partial_channels, False, backend.axis_name)

    def network(self, spec, backend):
        """See Space.network."""
        layers = tuple((name,) for ((name, _),) in spec.genotype.cell("chain"))
        return FinalNetwork(Chains(layers, spec, 1, True, backend.axis_name), spec.genotype)


def create():
    """Returns the space."""
    return Chain()
