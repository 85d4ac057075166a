"""Parts of a network round its cells: what squeezes a cell's inputs, stems, the auxiliary head."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from drnas_jax.errors import UserError
from drnas_jax.nn import norm
from drnas_jax.nn.kernels import convolve

Array = jax.Array


class Squeeze(nn.Module):
    """ReLU-1x1 convolution-BatchNorm, which may halve the size on the way.

    Attributes:
      features: channels of the output.
      halve: half of the channels from the even pixels, the other half from the odd ones.
      affine: BatchNorm has a scale and bias.
      axis_name: mesh axis over which batch statistics are synchronised, or None.
    """

    features: int
    halve: bool
    affine: bool
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[b, h, w, c] -> [b, h, w, features], or half of h and w."""
        parts = 2 if self.halve else 1
        shape = (parts, x.shape[-1], self.features // parts)
        kernel = self.param("kernel", norm.uniform_fan_in(batch_axis=(0,)), shape)
        x = jax.nn.relu(x)
        if self.halve:
            pixels = (x[:, ::2, ::2], x[:, 1::2, 1::2])
            y = jnp.concatenate([p @ k for p, k in zip(pixels, kernel, strict=True)], axis=-1)
        else:
            y = x @ kernel[0]
        return norm.BatchNorm(self.affine, self.axis_name, name="norm")(y, train)


class Stem(nn.Module):
    """The first layers: both inputs of the first cell.

    Attributes:
      kind: 'cifar' (the size stays) or 'imagenet' (a quarter, and an eighth).
      features: channels of the output.
      axis_name: mesh axis over which batch statistics are synchronised, or None.
    """

    kind: str
    features: int
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        """[b, h, w, c] -> the input before the last and the last one."""
        if self.kind == "cifar":
            x = self._conv(x, 0, self.features, 1, train)
            return x, x
        x = self._conv(x, 0, self.features // 2, 2, train)
        first = self._conv(jax.nn.relu(x), 1, self.features, 2, train)
        return first, self._conv(jax.nn.relu(first), 2, self.features, 2, train)

    def _conv(self, x: Array, index: int, features: int, stride: int, train: bool) -> Array:
        taps = (3, 3, x.shape[-1], features)
        kernel = self.param(f"kernel_{index}", norm.uniform_fan_in(), taps)
        normalise = norm.BatchNorm(axis_name=self.axis_name, name=f"norm_{index}")
        return normalise(convolve(x, kernel, stride), train)


class AuxiliaryHead(nn.Module):
    """A second classifier in the middle of a network, for training only.

    Attributes:
      classes: outputs.
      stem: 'cifar' or 'imagenet'; the latter's head has no second BatchNorm.
      axis_name: mesh axis over which batch statistics are synchronised, or None.
    """

    classes: int
    stem: str
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[b, h, w, c] -> logits [b, classes]."""
        stride = 3 if self.stem == "cifar" else 2
        if min(x.shape[1:3]) < 5 + stride:
            raise UserError(
                f"the auxiliary head needs {5 + stride} pixels a side where it stands, and has "
                f"{x.shape[1]}x{x.shape[2]}: enlarge data.image_size, or set "
                "retrain.auxiliary_weight to 0"
            )
        x = nn.avg_pool(jax.nn.relu(x), (5, 5), (stride, stride))
        for index, (size, features) in enumerate(((1, 128), (2, 768))):
            taps = (size, size, x.shape[-1], features)
            kernel = self.param(f"kernel_{index}", norm.uniform_fan_in(), taps)
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            if index == 0 or self.stem == "cifar":
                x = norm.BatchNorm(axis_name=self.axis_name, name=f"norm_{index}")(x, train)
            x = jax.nn.relu(x)
        return classify(jnp.mean(x, axis=(1, 2)), self.classes)


def classify(x: Array, classes: int) -> Array:
    """The last layer, inside a compact module: [b, c] -> logits float32 [b, classes]."""
    dense = nn.Dense(classes, kernel_init=norm.uniform_fan_in(), name="classifier")
    return dense(x.astype(jnp.float32))
