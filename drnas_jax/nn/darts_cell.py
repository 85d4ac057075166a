"""A cell of the DARTS space, of a supernet or of a network."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from drnas_jax.nn.blocks import Squeeze
from drnas_jax.nn.kernels import Kernels
from drnas_jax.nn.mixture import (
    INPUTS,
    NODES,
    PRIMITIVES,
    Edge,
    Mixture,
    bank_groups,
    make_bank,
    stride_of,
)
from drnas_jax.nn.operations import Bank, Normaliser, channel_shuffle

Array = jax.Array


class Cell(nn.Module):
    """A cell of mixed operations, looped over source nodes: what edges share is computed once.

    All convolutions of the edges that leave a node are stacked, and so are the pools.

    Attributes:
      cell_type: 'normal' or 'reduce'.
      edges: of the cell.
      channels: of a node.
      halve: whether the first input is twice as large as the second.
      partial_channels: K.
      kernels: the backend's arithmetic.
      affine: BatchNorm has a scale and bias (networks), or not (supernets).
      axis_name: mesh axis over which batch statistics are synchronised, or None.
      train: normalise by the batch.
    """

    cell_type: str
    edges: tuple[Edge, ...]
    channels: int
    halve: bool
    partial_channels: int
    kernels: Kernels
    affine: bool
    axis_name: str | None
    train: bool

    @nn.compact
    def __call__(
        self, inputs: tuple[Array, Array], mix: Array, drop_path: Array | float
    ) -> tuple[tuple[Array, Array], None]:
        """Two cells' outputs, mix [e, o] -> the last and this cell's output, as a scan wants it."""
        nodes = [
            Squeeze(self.channels, halve, self.affine, self.axis_name, name=f"squeeze_{i}")(
                x, self.train
            )
            for i, (x, halve) in enumerate(zip(inputs, (self.halve, False), strict=True))
        ]
        normalise = Normaliser(self.train, None if self.is_initializing() else self.axis_name)
        mixture = Mixture(
            cell_type=self.cell_type,
            edges=self.edges,
            banks=self._banks(),
            kernels=self.kernels,
            normalise=normalise,
            mix=mix,
            keep=self._keep(inputs[0], drop_path),
        )
        sums: list[list[Array]] = [[] for _ in range(NODES)]  # of the selected channels
        rest: list[list[Array]] = [[] for _ in range(NODES)]  # of the others
        for source in range(INPUTS + NODES - 1):
            out = [edge for edge in self.edges if edge.source == source]
            if out:
                selected, bypass = self._select(nodes[source], stride_of(self.cell_type, source))
                for i, y in mixture(selected, source):
                    sums[self.edges[i].node].append(y)
                for edge in out:
                    rest[edge.node] += bypass
            if source >= INPUTS - 1:
                done = source - INPUTS + 1
                parts = [
                    functools.reduce(jnp.add, terms) for terms in (sums[done], rest[done]) if terms
                ]
                whole = jnp.concatenate(parts, axis=-1)
                nodes.append(channel_shuffle(whole, self.partial_channels))
        normalise.record()
        return (inputs[1], jnp.concatenate(nodes[INPUTS:], axis=-1)), None

    def _select(self, node: Array, stride: int) -> tuple[Array, list[Array]]:
        """The channels for the operations; and the others as they pass by, if there are any."""
        if self.partial_channels == 1:
            return node, []
        selected, bypass = jnp.split(node, [self.channels // self.partial_channels], axis=-1)
        return selected, [self.kernels.max_pool(bypass, 2, 2) if stride == 2 else bypass]

    def _keep(self, x: Array, drop_path: Array | float) -> Array | None:
        """Drop path: for every example and edge 0, or 1 over the share that stays. [b, e]."""
        if not self.train or not self.has_rng("drop_path"):
            return None
        share = 1.0 - jnp.asarray(drop_path, jnp.float32)
        shape = (x.shape[0], len(self.edges))
        return jax.random.bernoulli(self.make_rng("drop_path"), share, shape) / share

    def _banks(self) -> dict[str, Bank]:
        width = self.channels // self.partial_channels
        groups = {name: bank_groups(self.cell_type, self.edges, name) for name in PRIMITIVES}
        return {
            name: make_bank(name, own, width, self.affine)
            for name, own in groups.items()
            if any(own)
        }
