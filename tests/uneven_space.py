"""A user's search space without BatchNorm, with another list of operations on each edge.

Its pruning and widening are the defaults of `Space.resize`.
"""

from collections.abc import Mapping
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from drnas_jax.nn.mixed import FinalNetwork, MixedOp, partial_channels
from drnas_jax.spaces.base import Cell, Edge, Space

LISTS = (("skip", "times_1", "times_2"), ("times_1",), ("times_2", "skip"))
CELL_TYPE = "uneven_block"


class Branch(nn.Module):
    """Two dense layers, the hidden one some times as wide as the input."""

    times: int
    train: bool

    @nn.compact
    def __call__(self, x):
        y = nn.Dropout(0.1, deterministic=not self.train)(nn.Dense(self.times * x.shape[-1])(x))
        return nn.Dense(x.shape[-1])(nn.tanh(y))


class Chain(nn.Module):
    """Residual branches, each of which mixes the operations of one edge."""

    lists: tuple[tuple[str, ...], ...]
    spec: object
    k: int = 1

    @nn.compact
    def __call__(self, x, mix, train):
        def operation(name):
            return jnp.asarray if name == "skip" else Branch(int(name[-1]), train)

        x = nn.Dense(self.spec.channels, name="stem")(x.reshape(len(x), -1))
        for row, names in enumerate(self.lists):
            mixed = MixedOp(names, operation, name=f"mixed_{row}")
            branch = partial(mixed, weights=mix[CELL_TYPE][row])
            x += partial_channels(branch, nn.LayerNorm(name=f"norm_{row}")(x), self.k)
        return nn.Dense(self.spec.classes, name="classifier")(x)


class UnevenSpace(Space):
    """One cell type, a chain of three edges."""

    name = "uneven"
    cells: Mapping[str, Cell] = {
        CELL_TYPE: Cell(tuple(Edge(i + 1, i, names) for i, names in enumerate(LISTS)))
    }

    def supernet(self, spec, backend):
        lists = tuple(edge.primitives for edge in spec.cell(CELL_TYPE).edges)
        return Chain(lists, spec, spec.partial_channels)

    def network(self, spec, backend):
        lists = tuple((name,) for ((name, _),) in spec.genotype.cell(CELL_TYPE))
        return FinalNetwork(Chain(lists, spec), spec.genotype)


create = UnevenSpace
