"""Batches out of a data set that lies on the device: the input costs nothing (no host copies)."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from drnas_jax.data import Dataset, augment_batch, normalise
from drnas_jax.keys import stream_key
from drnas_jax.sharding import AXIS, REPLICATED, SHARDED, data_parallel, replicate


class Images(NamedTuple):
    """Images with their labels.

    Raw: uint8 [n, h, w, c] and int32 [n]. A batch: one device's shard, float32 [b, h, w, c].
    """

    images: jax.Array
    labels: jax.Array


@dataclasses.dataclass(frozen=True)
class Feed:
    """How raw images become a batch.

    Attributes:
      mean, std: of each channel in 0..1.
      crop_padding, flip, cutout: see `data.augment_batch`.
      seed: of the run.
      dtype: of the images of a batch, and so of all that is computed from them.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int
    flip: bool
    cutout: int
    seed: int
    dtype: str = "float32"

    def augmented(self, raw: Images, index: jax.Array, stream: str, step: jax.Array) -> Images:
        """The examples of this device's shard `index` int32 [b], augmented for training."""
        position = lax.axis_index(AXIS) * index.size + jnp.arange(index.size)
        images = augment_batch(
            stream_key(self.seed, stream, step),
            position,
            raw.images[index],
            jnp.array(self.mean),
            jnp.array(self.std),
            self.crop_padding,
            self.flip,
            self.cutout,
        )
        return Images(images.astype(self.dtype), raw.labels[index])

    def plain(self, raw: Images, index: jax.Array) -> Images:
        """Those examples, only normalised."""
        images = normalise(raw.images[index], jnp.array(self.mean), jnp.array(self.std))
        return Images(images.astype(self.dtype), raw.labels[index])


def make_feed(
    dataset: Dataset, crop_padding: int, cutout: int, seed: int, dtype: str = "float32"
) -> Feed:
    """The feed of a data set, with its own mean and standard deviation."""
    mean, std = (tuple(map(float, values)) for values in (dataset.mean, dataset.std))
    return Feed(mean, std, crop_padding, dataset.flip, cutout, seed, dtype)


def on_devices(images: Any, labels: Any, mesh: Mesh) -> Images:
    """Raw images and labels, a copy on every device."""
    return replicate(Images(images, labels), mesh)


def step_program(
    step: Callable[..., Any], mesh: Mesh, arguments: int, index_arrays: int, donate: bool = True
) -> Any:
    """Compiles a training step that may run several times in one dispatch.

    Args:
      step: (state, *arguments, *index int32 [b]) -> state, of one device's shard.
      mesh: the devices.
      arguments: how many replicated ones there are.
      index_arrays: how many kinds of batch a step takes.
      donate: whether the result takes the state's memory.

    Returns:
      A jitted (state, *arguments, *index [steps, b]) -> state.
    """

    def several(state: Any, *rest: Any) -> Any:
        fixed, index = rest[:arguments], rest[arguments:]
        if index[0].shape[0] == 1:
            return step(state, *fixed, *(rows[0] for rows in index))
        return lax.scan(lambda carry, rows: (step(carry, *fixed, *rows), None), state, index)[0]

    replicated = (REPLICATED,) * (1 + arguments)
    sharded = (jax.P(None, AXIS),) * index_arrays
    return data_parallel(several, mesh, (*replicated, *sharded), donate=(0,) if donate else ())


def sum_program(function: Callable[..., Any], mesh: Mesh, arguments: int) -> Callable[..., Any]:
    """Compiles an evaluation: (*arguments, index [b], weight [b]) -> sums over all devices."""

    def summed(*args: Any) -> Any:
        return lax.psum(function(*args), AXIS)

    return data_parallel(summed, mesh, (REPLICATED,) * arguments + (SHARDED, SHARDED))
