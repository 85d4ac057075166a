"""Stacked parameters: one array holds a weight of one primitive for many edges of a cell.

Every array has a leading axis of rows, one for each edge that keeps the primitive, and an axis of
cells before it if equal cells are scanned. Pruning removes rows and widening lengthens channel
axes; neither needs to know what the primitive computes.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from drnas_jax.nn import norm
from drnas_jax.nn.backend import KEPT, Backend
from drnas_jax.training.random_keys import host_generator

Array = jax.Array
Arrays = Mapping[str, Array]  # by leaf name
PrimitiveArrays = Mapping[str, Arrays]  # by primitive
Moments = dict[str, tuple[Array, Array]]  # mean and unbiased variance, by suffix of a BatchNorm
AllMoments = dict[str, Moments]  # by primitive
ChannelAxes = Mapping[str, Mapping[int, str]]  # labels of the channel axes, by leaf name and axis

# Axes with the same label get the same copies when partial channels are widened, so that a copied
# output keeps its statistics.
NORM_CHANNEL_AXES: ChannelAxes = {"mean": {-1: "out"}, "var": {-1: "out"}}
CONV_CHANNEL_AXES: ChannelAxes = {"kernel": {-2: "in", -1: "out"}, **NORM_CHANNEL_AXES}


class Weight(NamedTuple):
    """A weight of a primitive.

    Attributes:
      init: Initialiser (key, shape) -> array of the stacked weights.
      shape: Shape of the weight of one edge.
    """

    init: Callable[..., Array]
    shape: tuple[int, ...]


class StackedParams(nn.Module):
    """The arrays of one primitive.

    Attributes:
      leading: Leading axes of all arrays: (rows,) or (cells, rows); () for a single edge.
      weights: Weights by leaf name.
      norms: Shape of the channels of each BatchNorm, by the suffix of its leaf names.
      affine: Whether each BatchNorm has a scale and bias (in networks), or not (in supernets).
    """

    leading: tuple[int, ...]
    weights: Mapping[str, Weight]
    norms: Mapping[str, tuple[int, ...]]
    affine: bool

    def setup(self) -> None:
        """Defines the arrays."""
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        weights = {name: Weight(*weight) for name, weight in self.weights.items()}
        statistics = {}
        for suffix, shape in self.norms.items():
            for name, fill in (("mean", jnp.zeros), ("var", jnp.ones)):
                leaf = name + suffix
                statistics[leaf] = self.variable("batch_stats", leaf, fill, (*self.leading, *shape))
            if self.affine:
                weights |= {"scale" + suffix: Weight(ones, shape)}
                weights |= {"bias" + suffix: Weight(zeros, shape)}
        self.statistics = statistics
        self.params = {
            name: self.param(name, init, (*self.leading, *shape))
            for name, (init, shape) in weights.items()
        }

    def arrays(self, train: bool) -> dict[str, Array]:
        """Returns arrays [*leading, ...] by leaf name; running statistics only in evaluation."""
        statistics = {} if train else self.statistics
        return {**self.params, **{leaf: variable.value for leaf, variable in statistics.items()}}

    def record(self, moments: Moments) -> None:
        """Updates the running averages with the moments [*leading, ...] of a batch."""
        if self.is_initializing():  # as in PyTorch, an initialisation leaves them at 0 and 1
            return
        for suffix, pair in moments.items():
            for name, new in zip(("mean", "var"), pair, strict=True):
                variable = self.statistics[name + suffix]
                old = variable.value
                variable.value = norm.running_average(old, new.reshape(old.shape))


class MomentRecorder:
    """Collects the moments of stacked rows that are computed in any order."""

    def __init__(self) -> None:
        self._pieces: dict[tuple[str, str], list[tuple[Sequence[int], Array, Array]]] = {}

    def add(self, name: str, suffix: str, rows: Sequence[int], mean: Array, var: Array) -> None:
        """Adds the moments of some rows.

        Args:
          name: Name of the primitive.
          suffix: Suffix of the BatchNorm.
          rows: Numbers of the rows.
          mean: Mean of the batch, [rows * c] or [rows, c].
          var: Unbiased variance of the batch, shaped like `mean`.
        """
        shape = (len(rows), -1)
        piece = (rows, mean.reshape(shape), var.reshape(shape))
        self._pieces.setdefault((name, suffix), []).append(piece)

    def moments(self) -> AllMoments:
        """Returns mean and variance [rows, c] of all rows in order."""
        all_moments: AllMoments = {}
        for (name, suffix), pieces in self._pieces.items():
            rows, means, variances = zip(*pieces, strict=True)
            order = np.argsort(np.concatenate(rows))
            pair = (jnp.concatenate(means)[order], jnp.concatenate(variances)[order])
            all_moments.setdefault(name, {})[suffix] = pair
        return all_moments


@dataclasses.dataclass(frozen=True)
class ApplyContext:
    """The settings that all operations in one call of a model share.

    Attributes:
      backend: Kernels and layout.
      train: Whether to normalise by the batch, and not by the running averages.
    """

    backend: Backend
    train: bool

    def apply(
        self, operation: Callable[..., Array], x: Array, weights: Array, *static: int
    ) -> Array:
        """Applies one of the backend's kernels in the dtype of the images.

        Args:
          operation: Kernel (images, weights, *static) -> images.
          x: Images in the backend's layout.
          weights: Filters or matrix.
          *static: Strides, dilations and the like.
        """
        return checkpoint_name(operation(x, weights.astype(x.dtype), *static), KEPT)

    def normalise(
        self, x: Array, arrays: Arrays, suffix: str = "", weight: Array | float = 1.0
    ) -> tuple[Array, Moments]:
        """Applies BatchNorm and multiplies by a weight.

        Args:
          x: Images in the backend's layout, with c channels.
          arrays: The BatchNorm's `mean`, `var`, `scale` and `bias` + suffix as far as it has them,
            among other arrays; each has c values, whatever its shape.
          suffix: Suffix of the leaf names.
          weight: Scalar or [c] that is folded into the scale and bias.

        Returns:
          Images shaped like x, and the moments of the batch; no moments in evaluation.
        """
        axis = self.backend.channel_axis
        scale = weight * arrays.get("scale" + suffix, jnp.ones(x.shape[axis])).reshape(-1)
        bias = weight * arrays["bias" + suffix].reshape(-1) if "bias" + suffix in arrays else None
        moments: Moments = {}
        if self.train:
            x, moments[suffix] = norm.normalise_batch(x, scale, axis, self.backend.axis_name)
        else:
            scale = scale * lax.rsqrt(arrays["var" + suffix].reshape(-1) + norm.EPSILON)
            offset = -arrays["mean" + suffix].reshape(-1) * scale
            bias = offset if bias is None else bias + offset
            x = x * self.backend.per_channel(scale.astype(x.dtype))
        if bias is not None:
            x = x + self.backend.per_channel(bias.astype(x.dtype))
        return x, moments


def context_of(module: nn.Module, train: bool) -> ApplyContext:
    """Returns the context of a module that has a `backend`.

    While the module is initialised, no mesh axis exists and no statistics are synchronised.
    """
    backend = module.backend
    if module.is_initializing():
        backend = backend._replace(axis_name=None)
    return ApplyContext(backend, train)


def scaled(x: Array, weight: Array | float) -> Array:
    """Multiplies x by a mixing weight, so that the weight's gradient is summed in float32."""
    return (x.astype(jnp.promote_types(x.dtype, jnp.float32)) * weight).astype(x.dtype)


def channel_shuffle(x: Array, groups: int, axis: int = -1) -> Array:
    """Interleaves `groups` groups of consecutive channels, as PC-DARTS does (arXiv 1907.05737)."""
    if groups == 1:
        return x
    axis %= x.ndim
    grouped = x.reshape(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])
    return jnp.swapaxes(grouped, axis, axis + 1).reshape(x.shape)


def resize(
    tree: Any,
    rows: Callable[[str, str], Sequence[int]],
    channel_axes: Mapping[str, ChannelAxes],
    cell_types: Collection[str],
    partial_channels: tuple[int, int],
    seed: int,
) -> Any:
    """Removes the rows of pruned operations and lengthens the channel axes of those that stay.

    The arrays of a primitive are in a dict under its name, below a key that begins with the cell
    type (`cell_0`), and have leading axes (cells, rows). New channels are copies of old ones that
    are chosen at random and not rescaled. The axes of a primitive with the same label share their
    choice, in the weights, the statistics and the optimiser's state alike.

    Args:
      tree: Nested dicts of arrays [cells, rows, ...]; some leaves may be `optax.MaskedNode`.
      rows: Function of a cell type and a primitive that returns the numbers of the rows that stay.
      channel_axes: Labels of the channel axes of each primitive's arrays.
      cell_types: Names of the cell types.
      partial_channels: K before and after.
      seed: Seed of the copies.
    """

    def fit_rows(array: Any, kept: np.ndarray, labels: Mapping[int, str], path: str) -> Any:
        if isinstance(array, optax.MaskedNode):
            return array
        return _lengthen(np.asarray(array)[:, kept], labels, partial_channels, seed, path)

    def fit(tree: Any, cell_type: str, path: str) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        fitted = {}
        for key, value in tree.items():
            inside = f"{path}/{key}" if path else key
            if key in channel_axes:
                kept = np.array(rows(cell_type, key), int)
                if not len(kept):
                    continue
                if not isinstance(value, optax.MaskedNode):
                    value = {
                        leaf: fit_rows(array, kept, channel_axes[key][leaf], inside)
                        for leaf, array in value.items()
                    }
            else:
                types = (t for t in cell_types if key == t or key.startswith(f"{t}_"))
                value = fit(value, max(types, key=len, default=cell_type), inside)
            if not (isinstance(value, Mapping) and not value):
                fitted[key] = value
        return fitted

    return fit(tree, "", "")


def _lengthen(
    array: np.ndarray,
    labels: Mapping[int, str],
    partial_channels: tuple[int, int],
    seed: int,
    path: str,
) -> np.ndarray:
    """Appends copies of channels, drawn separately for each row, to an array [cells, rows, ...]."""
    before, after = partial_channels
    for axis, label in labels.items() if before != after else ():
        generator = host_generator(seed, f"widen/{path}/{label}")
        old, leading = array.shape[axis], array.shape[:2]
        new = old * before // after
        index = np.concatenate(
            [
                np.broadcast_to(np.arange(old), (*leading, old)),
                generator.integers(old, size=(*leading, new - old)),
            ],
            axis=-1,
        )
        spread = [*leading] + [1] * (array.ndim - 2)
        spread[axis] = new
        array = np.take_along_axis(array, index.reshape(spread), axis=axis)
    return array
