"""Operations of many edges at once: the arrays of one primitive lie stacked in a bank.

A bank holds one primitive for the edges of a cell that keep it: every array has a leading axis of
edges (and, where equal cells are scanned, one of cells before it). Pruning removes rows of banks,
widening lengthens their channel axes, and neither needs to know what the primitive computes.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from drnas_jax.nn import norm

Array = jax.Array
Groups = tuple[tuple[int, ...], ...]
ChannelAxes = Mapping[str, Mapping[int, str]]

# Which axes of a bank's arrays run over channels. Axes with the same label are copied alike when
# partial channels are widened: a copied output keeps its own statistics.
NORM_CHANNEL_AXES: ChannelAxes = {"mean": {-1: "out"}, "var": {-1: "out"}}
CONV_CHANNEL_AXES: ChannelAxes = {"kernel": {-2: "in", -1: "out"}, **NORM_CHANNEL_AXES}


class Weight(NamedTuple):
    """A kind of array in a bank: its initialiser, and its shape for one edge."""

    init: Callable[..., Array]
    shape: tuple[int, ...]


class Bank(nn.Module):
    """The arrays of one primitive.

    Attributes:
      groups: the rows (edges), in groups that are used together: those that leave one node.
      weights: by name.
      norms: of each BatchNorm the suffix of its arrays' names, and the shape of its channels.
      affine: BatchNorm has a scale and bias (networks), or not (supernets).
    """

    groups: Groups
    weights: Mapping[str, Weight]
    norms: Mapping[str, tuple[int, ...]]
    affine: bool

    def setup(self) -> None:
        """Defines the arrays, and sorts the weights into groups."""
        edges = sum(map(len, self.groups))
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        weights = {name: Weight(*weight) for name, weight in self.weights.items()}
        statistics = {}
        for suffix, shape in self.norms.items():
            for name, fill in (("mean", jnp.zeros), ("var", jnp.ones)):
                leaf = name + suffix
                statistics[leaf] = self.variable("batch_stats", leaf, fill, (edges, *shape))
            if self.affine:
                weights |= {"scale" + suffix: Weight(ones, shape)}
                weights |= {"bias" + suffix: Weight(zeros, shape)}
        self.statistics = statistics
        self.grouped = {
            name: split_rows(self.param(name, init, (edges, *shape)), self.groups)
            for name, (init, shape) in weights.items()
        }

    def rows(self, name: str, group: int) -> Array:
        """An array of some edges, [rows, ...]."""
        return self.grouped[name][group]

    def moments(self, suffix: str, group: int) -> list[Array]:
        """Running mean and variance of some edges, [rows, c]."""
        chosen = np.array(self.groups[group])  # statistics are numpy arrays after pruning
        values = (self.statistics[name + suffix].value[chosen] for name in ("mean", "var"))
        return [value.reshape(len(chosen), -1) for value in values]

    def record(self, suffix: str, mean: Array, var: Array) -> None:
        """Updates the running averages by a batch's mean and variance of all edges [edges, c]."""
        if self.is_initializing():  # they exist from now on, and keep their first values
            return
        for name, new in (("mean", mean), ("var", var)):
            variable = self.statistics[name + suffix]
            old = variable.value
            variable.value = norm.running_average(old, new.reshape(old.shape))


class Part(NamedTuple):
    """Rows that are normalised with others: a group of a bank, in the BatchNorm of that suffix."""

    bank: Bank
    group: int
    suffix: str = ""

    @property
    def rows(self) -> tuple[int, ...]:
        """Their numbers in the bank."""
        return self.bank.groups[self.group]


class Normaliser:
    """Batch normalisation of many rows at once, within one call of a cell.

    Args:
      train: normalise by the batch, and not by running averages.
      axis_name: mesh axis over which batch statistics are synchronised, or None.
    """

    def __init__(self, train: bool, axis_name: str | None):
        self.train, self.axis_name = train, axis_name
        self._seen: list[tuple[Sequence[Part], Array, Array]] = []

    def __call__(self, y: Array, parts: Sequence[Part], mix: Array | None = None) -> Array:
        """y [b, h, w, rows, c] -> the same shape; see `factors`."""
        scale, bias = self.factors(y, parts, mix)
        return y * scale + bias

    def factors(
        self, y: Array, parts: Sequence[Part], mix: Array | None = None, shared: bool = False
    ) -> tuple[Array, Array]:
        """What to multiply y by and then to add, each [rows, c].

        Args:
          y: [b, h, w, rows, c], the rows of the parts in order.
          parts: what it consists of.
          mix: mixing weights [rows], folded into both; None: 1.
          shared: y has but one row for each part, [b, h, w, parts, c]: its rows are all alike.
        """
        mean, var = self._batch(y, parts, shared) if self.train else self._running(parts)
        scale = lax.rsqrt(var + norm.EPSILON)
        weight = 1.0 if mix is None else mix[:, None]
        scale = scale * weight
        bias = -mean * scale
        if parts[0].bank.affine:
            gamma, beta = (
                jnp.concatenate([p.bank.rows(name + p.suffix, p.group) for p in parts])
                for name in ("scale", "bias")
            )
            gamma, beta = gamma.reshape(mean.shape), beta.reshape(mean.shape)
            scale, bias = scale * gamma, bias * gamma + weight * beta
        return scale.astype(y.dtype), bias.astype(y.dtype)

    def _running(self, parts: Sequence[Part]) -> tuple[Array, Array]:
        moments = (part.bank.moments(part.suffix, part.group) for part in parts)
        mean, var = map(jnp.concatenate, zip(*moments, strict=True))
        return mean, var

    def _batch(self, y: Array, parts: Sequence[Part], shared: bool) -> tuple[Array, Array]:
        flat = y.reshape(*y.shape[:3], -1)
        mean, var, count = norm.batch_moments(flat, self.axis_name)
        mean, var = mean.reshape(-1, y.shape[-1]), var.reshape(-1, y.shape[-1])
        if shared:
            repeated = np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts])
            mean, var = mean[repeated], var[repeated]
        self._seen.append((parts, mean, norm.unbiased(var, count)))
        return mean, var

    def record(self) -> None:
        """Updates the running averages of all banks that were used, once."""
        if not self._seen:
            return
        places: dict[tuple[str, str], tuple[Bank, dict[int, int]]] = {}
        place = 0
        for part in itertools.chain.from_iterable(parts for parts, _, _ in self._seen):
            _, rows = places.setdefault((str(part.bank.name), part.suffix), (part.bank, {}))
            for row in part.rows:
                rows[row] = place
                place += 1
        means, variances = (
            jnp.concatenate(values) for values in list(zip(*self._seen, strict=True))[1:]
        )
        for (_, suffix), (bank, rows) in places.items():
            index = np.array([rows[row] for row in range(len(rows))])
            bank.record(suffix, means[index], variances[index])


def split_rows(array: Array, groups: Groups) -> list[Array]:
    """The rows of each group: [edges, ...] -> [rows, ...] each."""
    order = [row for group in groups for row in group]
    sorted_rows = array if order == sorted(order) else array[np.array(order)]
    return jnp.split(sorted_rows, np.cumsum([len(group) for group in groups])[:-1])


def channel_shuffle(x: Array, groups: int) -> Array:
    """Interleaves `groups` equal runs of channels: [..., c] -> [..., c] (as PC-DARTS does)."""
    if groups == 1:
        return x
    grouped = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    return jnp.swapaxes(grouped, -1, -2).reshape(x.shape)
