"""The interface of export formats: the network that they are given, and the files they write.

Shapes: `n` images, `h w` height and width, `c` channels.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax

from drnas_jax.genotype import Genotype
from drnas_jax.spaces.base import NetworkSpec, Space


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A trained network, ready to be written.

    Attributes:
      apply: Pure function of images [n, h, w, c] of `dtype` that returns the logits, float32
        [n, classes]. It computes with the plain kernels and the running averages of BatchNorm.
        Operations that draw random numbers draw the same ones in each call.
      shape: Height, width and channels of an image.
      dtype: `uint8` (pixels in 0..255, which `apply` normalises) or `float32` (normalised images).
      classes: Names of the classes, in the order of the logits.
      space: Search space of the network.
      spec: Spec of the network, without an auxiliary head.
      variables: Parameters and, if there are any, batch statistics, as NumPy arrays: those of
        `space.network(spec, backend)`.
      preprocessing: Steps from a photo to an image that `apply` takes, the JSON values of
        `drnas_jax.data.PhotoPreprocessing`; None if they are not known.
      batch_size: Number n of images in a batch, or 0 if a program must take any number.
      platforms: Platforms on which a compiled program must run: `cpu`, `cuda`, `rocm`, `tpu`.
    """

    apply: Callable[[jax.Array], jax.Array]
    shape: tuple[int, int, int]
    dtype: str
    classes: tuple[str, ...]
    space: Space
    spec: NetworkSpec
    variables: Mapping[str, Any]
    preprocessing: Mapping[str, Any] | None = None
    batch_size: int = 0
    platforms: tuple[str, ...] = ("cpu",)

    @property
    def batch_shape(self) -> list[int | None]:
        """Shape [n, h, w, c] of a batch of images; n is None if a program takes any number."""
        return [self.batch_size or None, *self.shape]

    @property
    def genotype(self) -> Genotype:
        """Genotype of the network."""
        return self.spec.genotype


class Format(Protocol):
    """A format of files. A module that provides one has a function `create() -> Format`."""

    def check(self, space: Space) -> None:
        """Raises UserError if nothing can be written; called before any phase runs.

        A package that the format needs may be missing, or it may not know the networks of a space.

        Args:
          space: Search space of the network that will be written.
        """

    def write(self, network: Network, directory: Path) -> list[Path]:
        """Writes a network into an empty directory and returns the files.

        The files move to their final place when all formats are done, so half a file is never
        found there.

        Args:
          network: The network.
          directory: Existing directory, in which the files lie without folders.

        Raises:
          UserError: The network has something that the format cannot express.
        """
