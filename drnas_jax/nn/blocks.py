"""Layers before and after the cells: stems, the auxiliary head, the classifier."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from drnas_jax.errors import UserError
from drnas_jax.nn import norm
from drnas_jax.nn.stacked_params import ApplyContext

Array = jax.Array


class Stem(nn.Module):
    """The first layers of a DARTS network, which compute both inputs of the first cell.

    Attributes:
      kind: `cifar` (both inputs keep the image's size) or `imagenet` (a quarter and an eighth).
      features: Number of channels of each input.
      context: Kernels, layout and mode.
    """

    kind: str
    features: int
    context: ApplyContext

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Maps images [b, h, w, c] to inputs 0 and 1 of the first cell, in the backend's layout."""
        if self.kind == "cifar":
            x = self._conv(self.context.backend.transpose(x), 0, self.features, 1)
            return x, x
        x = self._conv(self.context.backend.transpose(x), 0, self.features // 2, 2)
        first = self._conv(jax.nn.relu(x), 1, self.features, 2)
        return first, self._conv(jax.nn.relu(first), 2, self.features, 2)

    def _conv(self, x: Array, index: int, features: int, stride: int) -> Array:
        backend = self.context.backend
        taps = (3, 3, x.shape[backend.channel_axis], features)
        kernel = self.param(f"kernel_{index}", norm.uniform_fan_in(), taps)
        x = self.context.apply(backend.conv, x, kernel, stride)
        normalise = norm.BatchNorm(
            axis_name=self.context.backend.axis_name,
            axis=backend.channel_axis,
            name=f"norm_{index}",
        )
        return normalise(x, self.context.train)


class AuxiliaryHead(nn.Module):
    """A second classifier in the middle of a network, which is used only in training.

    Attributes:
      classes: Number of outputs.
      stem: `cifar` or `imagenet`; with `imagenet` the head has no second BatchNorm.
      axis_name: Mesh axis over which batch statistics are synchronised, or None.
    """

    classes: int
    stem: str
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps images [b, h, w, c] to logits [b, classes]."""
        stride = 3 if self.stem == "cifar" else 2
        if min(x.shape[1:3]) < 5 + stride:
            raise UserError(
                f"the auxiliary head needs {5 + stride}x{5 + stride} pixels after the second "
                f"reduction, and there are {x.shape[1]}x{x.shape[2]}: enlarge data.image_size, or "
                "set retrain.auxiliary_weight to 0"
            )
        x = nn.avg_pool(jax.nn.relu(x), (5, 5), (stride, stride))
        for index, (size, features) in enumerate(((1, 128), (2, 768))):
            taps = (size, size, x.shape[-1], features)
            kernel = self.param(f"kernel_{index}", norm.uniform_fan_in(), taps)
            x = jax.lax.conv_general_dilated(
                x,
                kernel.astype(x.dtype),
                (1, 1),
                "VALID",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            if index == 0 or self.stem == "cifar":
                x = norm.BatchNorm(axis_name=self.axis_name, name=f"norm_{index}")(x, train)
            x = jax.nn.relu(x)
        return classify(jnp.mean(x, axis=(1, 2)), self.classes)


def classify(x: Array, classes: int) -> Array:
    """Applies the last layer: maps x [b, c] to logits float32 [b, classes].

    It must be called inside a compact module, which gets a submodule `classifier`.
    """
    dense = nn.Dense(classes, kernel_init=norm.uniform_fan_in(), name="classifier")
    return dense(x.astype(jnp.float32))
