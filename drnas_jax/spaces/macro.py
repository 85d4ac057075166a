"""The space of NAS-Bench-Macro (Su et al., CVPR 2021): eight layers, each with three operations.

    image -> stem (3x3 convolution) -> 8 layers in stages of 2, 3 and 3 -> head (1x1 convolution)
          -> mean over the pixels -> classifier

The first layer of each stage halves the size and doubles the channels. A layer is the identity or
one of two inverted residual blocks of MobileNetV2 (arXiv 1801.04381), so there are 3^8 = 6,561
networks. The benchmark numbers the operations 0, 1, 2 and writes a network as a code of eight
digits, one for each layer, for example 22212220.

The final network is the supernet with one operation in each layer and affine BatchNorm, so one
module serves as both.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax

from drnas_jax.errors import UserError, check_choice
from drnas_jax.genotype import Genotype
from drnas_jax.genotype_formats import parse_code
from drnas_jax.nn import norm
from drnas_jax.nn.backend import Backend
from drnas_jax.nn.blocks import classify
from drnas_jax.nn.mixed import FinalNetwork
from drnas_jax.nn.stacked_params import (
    ApplyContext,
    Arrays,
    Moments,
    StackedParams,
    Weight,
    context_of,
    scaled,
)
from drnas_jax.spaces.base import Cell, Edge, NetworkSpec, Space, SupernetSpec

Array = jax.Array


class InvertedResidual(NamedTuple):
    """A block of MobileNetV2: 1x1, depthwise and 1x1 convolution, each with BatchNorm.

    Attributes:
      size: Side of the depthwise filters, in pixels.
      expansion: Number of channels between the 1x1 convolutions, as a multiple of the input's.
    """

    size: int
    expansion: int


BLOCKS = {"mbconv_3x3_e3": InvertedResidual(3, 3), "mbconv_5x5_e6": InvertedResidual(5, 6)}
PRIMITIVES = ("identity", *BLOCKS)  # in the order of the digits of a code
STAGES = (2, 3, 3)  # layers of each stage
LAYERS = sum(STAGES)
HEAD = 40  # channels of the head, as a multiple of C: 1,280 if C is 32
CELL_TYPE = "layers"
CELL = Cell(tuple(Edge(i + 1, i, PRIMITIVES) for i in range(LAYERS)))
_FIRST_LAYERS = tuple(sum(STAGES[:stage]) for stage in range(len(STAGES)))


class Layer(nn.Module):
    """The weighted sum of a layer's operations, each with parameters under its own name.

    Attributes:
      primitives: Names of the operations.
      first: Whether the layer is the first of its stage: it halves the size and doubles the
        channels, and nothing of its input passes by.
      backend: Kernels and layout of images.
      affine: Whether BatchNorm has a scale and a bias: only in final networks.
      train: Whether to normalise by the statistics of the batch.
    """

    primitives: tuple[str, ...]
    first: bool
    backend: Backend
    affine: bool
    train: bool

    @nn.compact
    def __call__(self, x: Array, weights: Array) -> Array:
        """Maps x in the backend's layout and mixing weights [o] to the layer's output."""
        context = context_of(self, self.train)
        inputs = x.shape[self.backend.channel_axis]
        features, stride = (2 * inputs, 2) if self.first else (inputs, 1)
        terms = []
        for column, name in enumerate(self.primitives):
            if name == "identity" and not self.first:
                continue
            operate = _project if name == "identity" else _invert
            params = self._params(name, inputs, features)
            arrays = params.arrays(self.train)
            y, moments = operate(context, arrays, x, weights[column], stride)
            params.record(moments)
            terms.append(y)
        if not self.first:  # the identity, and the shortcuts of all blocks
            passing = sum(weights[column] for column in range(len(self.primitives)))
            terms.append(scaled(x, passing))
        return sum(terms[1:], start=terms[0])

    def _params(self, name: str, inputs: int, features: int) -> StackedParams:
        init = norm.uniform_fan_in()
        if name == "identity":
            weights = {"kernel": Weight(init, (inputs, features))}
            return StackedParams((), weights, {"": (features,)}, self.affine, name=name)
        size, expansion = BLOCKS[name]
        width = expansion * inputs
        weights = {
            "expand": Weight(init, (inputs, width)),
            # The initialiser takes the second axis for the inputs, so it counts size * size.
            "depthwise": Weight(init, (size, size, width)),
            "project": Weight(init, (width, features)),
        }
        norms = {"_expand": (width,), "_depthwise": (width,), "_project": (features,)}
        return StackedParams((), weights, norms, self.affine, name=name)


def _project(
    context: ApplyContext, arrays: Arrays, x: Array, weight: Array, stride: int
) -> tuple[Array, Moments]:
    """Computes the identity of a stage's first layer: 1x1 convolution and BatchNorm."""
    y = context.apply(context.backend.pointwise, x[:, ::stride, ::stride], arrays["kernel"])
    return context.normalise(y, arrays, weight=weight)


def _invert(
    context: ApplyContext, arrays: Arrays, x: Array, weight: Array, stride: int
) -> tuple[Array, Moments]:
    """Computes an inverted residual block without its shortcut, times a mixing weight."""
    backend = context.backend
    y = context.apply(backend.pointwise, x, arrays["expand"])
    y, moments = context.normalise(y, arrays, "_expand")
    y = context.apply(backend.depthwise, jax.nn.relu(y), arrays["depthwise"], stride, 1)
    y, more = context.normalise(y, arrays, "_depthwise")
    y = context.apply(backend.pointwise, jax.nn.relu(y), arrays["project"])
    y, last = context.normalise(y, arrays, "_project", weight)
    return y, {**moments, **more, **last}


class Model(nn.Module):
    """The whole model: stem, eight layers, head, global pooling and classifier.

    Attributes:
      layers: Operations of each layer.
      channels: Number of channels C of the stem.
      classes: Number of outputs.
      backend: Kernels and layout of images.
      affine: Whether BatchNorm in the layers has a scale and a bias: only in final networks.
    """

    layers: tuple[tuple[str, ...], ...]
    channels: int
    classes: int
    backend: Backend
    affine: bool

    @nn.compact
    def __call__(self, x: Array, mix: Mapping[str, Array], train: bool) -> Array:
        """Maps x [b, h, w, c] and mix {'layers': [8, o]} to logits [b, classes]."""
        backend = self.backend
        context = ApplyContext(backend, train)
        normalise = partial(norm.BatchNorm, axis_name=backend.axis_name, axis=backend.channel_axis)
        taps = (3, 3, x.shape[-1], self.channels)
        kernel = self.param("stem_kernel", norm.uniform_fan_in(), taps)
        x = context.apply(backend.conv, backend.transpose(x), kernel, 1)
        x = jax.nn.relu(normalise(name="stem_norm")(x, train))
        remat = backend.checkpointing(fastest="none")
        layer = Layer if remat is None else nn.remat(Layer, **remat)
        for number, primitives in enumerate(self.layers):
            first = number in _FIRST_LAYERS
            x = layer(primitives, first, backend, self.affine, train, name=f"layer_{number}")(
                x, mix[CELL_TYPE][number]
            )
        matrix = (x.shape[backend.channel_axis], HEAD * self.channels)
        kernel = self.param("head_kernel", norm.uniform_fan_in(), matrix)
        x = context.apply(backend.pointwise, x, kernel)
        x = jax.nn.relu(normalise(name="head_norm")(x, train))
        return classify(backend.pixel_mean(x), self.classes)


class Macro(Space):
    """The search space of NAS-Bench-Macro, whose `depth` is the number of layers, always 8.

    With C channels in the stem, the stages have 2C, 4C and 8C, and the head has 40C. The benchmark
    has C 32 and images of 32x32 pixels. Images of any size can be used: each stage halves the size
    and rounds it up.
    """

    name = "macro"
    cells: Mapping[str, Cell] = {CELL_TYPE: CELL}

    def check(self, spec: SupernetSpec | NetworkSpec) -> None:
        """Checks that there are eight layers, and neither partial channels nor other extras."""
        super().check(spec)
        phase = "search" if isinstance(spec, SupernetSpec) else "retrain"
        if spec.depth != LAYERS:
            raise UserError(
                f"{phase}.cells is {spec.depth}, but networks of the space {self.name} have "
                f"{LAYERS} layers: set it to {LAYERS}"
            )
        if isinstance(spec, NetworkSpec):
            chosen_operations(spec.genotype)
        elif spec.partial_channels != 1:
            raise UserError(
                f"search.partial_channels has the K {spec.partial_channels}, but layers of the "
                f"space {self.name} change their channels, so none can bypass them: set each K to 1"
            )

    def supernet(self, spec: SupernetSpec, backend: Backend) -> nn.Module:
        """Returns the supernet, whose layers have BatchNorm without scale and bias."""
        layers = tuple(edge.primitives for edge in spec.cell(CELL_TYPE).edges)
        return Model(layers, spec.channels, spec.classes, backend, affine=False)

    def network(self, spec: NetworkSpec, backend: Backend) -> nn.Module:
        """Returns the final network of a genotype."""
        layers = tuple((name,) for name in chosen_operations(spec.genotype))
        model = Model(layers, spec.channels, spec.classes, backend, affine=True)
        return FinalNetwork(model, spec.genotype)

    def describe(self, genotype: Genotype) -> str:
        """Returns the benchmark's code of a network, for example 22212220."""
        return "".join(str(PRIMITIVES.index(name)) for name in chosen_operations(genotype))


def create() -> Space:
    """Returns the space of NAS-Bench-Macro."""
    return Macro()


def parse(code: str) -> Genotype:
    """Returns the genotype of a code; the inverse of `Macro.describe`.

    Args:
      code: Eight digits 0 (identity), 1 (3x3, expansion 3) or 2 (5x5, expansion 6), in the order of
        the layers.

    Raises:
      UserError: The text is not such a code.
    """
    genotype = parse_code(code, PRIMITIVES)
    if genotype is None:
        raise UserError(
            f"{code[:200]!r} is not a code of NAS-Bench-Macro: expected {LAYERS} digits 0, 1 or 2, "
            "for example 22212220"
        )
    return genotype


def chosen_operations(genotype: Genotype) -> Sequence[str]:
    """Returns the names of the eight operations of a genotype, in the order of the layers.

    Raises:
      UserError: The genotype has other layers or operations.
    """
    nodes = genotype.cell(CELL_TYPE)
    if [[source for _, source in node] for node in nodes] != [[i] for i in range(LAYERS)]:
        edges = ", ".join(edge.name for edge in CELL.edges)
        raise UserError(f"the layers are {nodes}: expected one operation on each edge of {edges}")
    names = [name for node in nodes for name, _ in node]
    for name in names:
        check_choice("NAS-Bench-Macro operation", name, PRIMITIVES)
    return names
