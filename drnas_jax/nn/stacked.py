"""The operations of the DARTS space on all edges that leave a node at once, for accelerators.

Their launches cost, so what can is stacked: the convolutions of all edges and kinds, and the pools.
Images are [b, h, w, c].
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from drnas_jax.nn.banks import Banks, Mode, Recorder, scaled
from drnas_jax.nn.darts_operations import (
    CONVOLUTIONS,
    POOLS,
    Edge,
    bank_rows,
    stride_of,
)

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Stack:
    """The mixed operations of a cell.

    Attributes:
      mode: how operations run.
      cell_type: 'normal' or 'reduce'.
      edges: of the cell.
      arrays: banks' arrays [rows, ...] by primitive and name.
      mix: mixing weights [e, o].
      recorder: gets the batch's moments.
    """

    mode: Mode
    cell_type: str
    edges: tuple[Edge, ...]
    arrays: Banks
    mix: Array
    recorder: Recorder

    def __call__(self, node: Array, source: int) -> list[tuple[int, str, Array]]:
        """Runs a node through all operations of the edges that leave it.

        Args:
          node: [b, h, w, c], the channels for the operations.
          source: its number.

        Returns:
          Weighted terms, each with the number of its edge and its primitive: [b, h', w', c].
        """
        active = jax.nn.relu(node)
        terms = self._pooled(node, source)
        if stride_of(self.cell_type, source) == 2:
            terms += self._halved(active, source)
        else:
            terms += self._identity(node, source)
        return terms + self._convolved(active, source)

    def _pooled(self, node: Array, source: int) -> list[tuple[int, str, Array]]:
        kernels, stride = self.mode.kernels, stride_of(self.cell_type, source)
        names = self._present(POOLS, source)
        pools = {"max_pool_3x3": lambda: kernels.max_pool(node, 3, stride)}
        pools["avg_pool_3x3"] = lambda: kernels.avg_pool(node, stride)
        rows = {name: [pools[name]()] * len(self._leaving(name, source)) for name in names}
        return self._normalised([y for name in names for y in rows[name]], names, source)

    def _identity(self, node: Array, source: int) -> list[tuple[int, str, Array]]:
        edges = self._leaving("skip_connect", source)
        weights = self._weights(["skip_connect"], source)
        return [(e, "skip_connect", scaled(node, w)) for e, w in zip(edges, weights, strict=True)]

    def _halved(self, active: Array, source: int) -> list[tuple[int, str, Array]]:
        names = self._present(("skip_connect",), source)
        if not names:
            return []
        kernel = self._take("skip_connect", "kernel", source)  # [rows, 2, c, c / 2]
        wide = jnp.transpose(kernel, (1, 2, 0, 3)).reshape(2, active.shape[-1], -1)
        wide = wide.astype(active.dtype)
        halves = [active[:, i::2, i::2] @ wide[i] for i in (0, 1)]
        shape = (*halves[0].shape[:3], len(kernel), -1)
        y = jnp.concatenate([half.reshape(shape) for half in halves], axis=-1)
        return self._normalised([y.reshape(*y.shape[:3], -1)], names, source)

    def _convolved(self, active: Array, source: int) -> list[tuple[int, str, Array]]:
        names, stride = self._present(CONVOLUTIONS, source), stride_of(self.cell_type, source)
        if not names:
            return []
        depthwise = self.mode.kernels.depthwise
        spread = {}  # by primitive, after the depthwise convolution
        for name in names:
            # The rows' common input once for each of them: they lie side by side as channels.
            filters = _side_by_side(self._take(name, "depthwise_0", source))
            tiled = jnp.tile(active, filters.shape[-1] // active.shape[-1])
            dilation = CONVOLUTIONS[name].dilation
            spread[name] = self.mode.apply(depthwise, tiled, filters, stride, dilation)
        twice = [name for name in names if CONVOLUTIONS[name].layers == 2]
        if twice:
            y = self._pointwise([spread[name] for name in twice], twice, 0, source)
            y = jax.nn.relu(self._normalise(y, twice, 0, source))
            widths = np.cumsum([spread[name].shape[-1] for name in twice])[:-1]
            for name, own in zip(twice, jnp.split(y, widths, axis=-1), strict=True):
                filters = _side_by_side(self._take(name, "depthwise_1", source))
                spread[name] = self.mode.apply(depthwise, own, filters, 1, 1)
        y = self._pointwise([spread[name] for name in names], names, -1, source)
        return self._normalised([y], names, source, layer=-1)

    def _pointwise(
        self, parts: Sequence[Array], names: Sequence[str], layer: int, source: int
    ) -> Array:
        """A matrix for every row of [b, h, w, rows * c]."""
        matrices = jnp.concatenate(
            [self._take(n, f"pointwise{_suffix(n, layer)}", source) for n in names]
        )
        x = jnp.concatenate(parts, axis=-1)
        rows = x.reshape(*x.shape[:3], len(matrices), -1)
        y = jnp.einsum("bhwec,ecd->bhwed", rows, matrices.astype(x.dtype))
        return y.reshape(x.shape)

    def _normalised(
        self, parts: Sequence[Array], names: Sequence[str], source: int, layer: int | None = None
    ) -> list[tuple[int, str, Array]]:
        """Normalises rows, times their mixing weights, and gives each with its edge."""
        if not names:
            return []
        y, weights = jnp.concatenate(parts, axis=-1), self._weights(names, source)
        width = y.shape[-1] // len(weights)
        y = self._normalise(y, names, layer, source, jnp.repeat(weights, width))
        owners = [(edge, name) for name in names for edge in self._leaving(name, source)]
        rows = jnp.split(y, len(owners), axis=-1)
        return [(*owner, row) for owner, row in zip(owners, rows, strict=True)]

    def _normalise(
        self,
        y: Array,
        names: Sequence[str],
        layer: int | None,
        source: int,
        weight: Array | float = 1.0,
    ) -> Array:
        own = {}
        for kind in ("mean", "var", "scale", "bias"):
            leaves = [kind + _suffix(name, layer) for name in names]
            if leaves[0] in self.arrays[names[0]]:
                parts = zip(names, leaves, strict=True)
                own[kind] = jnp.concatenate(
                    [self._take(n, leaf, source).reshape(-1) for n, leaf in parts]
                )
        y, moments = self.mode.normalise(y, own, weight=weight)
        if moments:
            counts = [len(self._leaving(name, source)) for name in names]
            ends = np.cumsum(counts)[:-1]
            means, variances = (
                jnp.split(values.reshape(sum(counts), -1), ends) for values in moments[""]
            )
            for name, mean, var in zip(names, means, variances, strict=True):
                rows = self._rows(name, source)
                self.recorder.add(name, _suffix(name, layer), rows, mean, var)
        return y

    def _present(self, names: Sequence[str] | Mapping, source: int) -> list[str]:
        return [name for name in names if self._leaving(name, source)]

    def _leaving(self, name: str, source: int) -> list[int]:
        return [
            i
            for i, edge in enumerate(self.edges)
            if edge.source == source and name in edge.operations
        ]

    def _rows(self, name: str, source: int) -> list[int]:
        rows = bank_rows(self.cell_type, self.edges, name)
        return [rows[edge] for edge in self._leaving(name, source)]

    def _take(self, name: str, leaf: str, source: int) -> Array:
        """An array of the edges that leave a node, [rows, ...]."""
        return jnp.asarray(self.arrays[name][leaf])[np.array(self._rows(name, source))]

    def _weights(self, names: Sequence[str], source: int) -> Array:
        """Mixing weights of each row."""
        rows = [(i, name) for name in names for i in self._leaving(name, source)]
        columns = [self.edges[i].operations.index(name) for i, name in rows]
        return self.mix[np.array([i for i, _ in rows], int), np.array(columns, int)]


def _suffix(name: str, layer: int | None) -> str:
    return "" if layer is None else f"_{range(CONVOLUTIONS[name].layers)[layer]}"


def _side_by_side(filters: Array) -> Array:
    """[rows, k, k, c] -> [k, k, rows * c]."""
    size = filters.shape[1]
    return jnp.moveaxis(filters, 0, 2).reshape(size, size, -1)
