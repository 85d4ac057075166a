"""Counts of parameters and multiply-adds, taken from the traced program, not from formulas."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from drnas_jax.errors import UserError

MIN_CHANNELS = 2  # the fewest that `retrain.max_macs` may lead to


def count_parameters(params: Any) -> int:
    """Counts the numbers in a pytree of arrays.

    Args:
      params: Pytree of arrays, or of `jax.ShapeDtypeStruct`.
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


class Counts(NamedTuple):
    """The size of a network.

    Attributes:
      parameters: Number of parameters.
      macs: Multiply-adds of convolutions and dense layers for one image.
    """

    parameters: int
    macs: int


def count_network(network: nn.Module, image_shape: tuple[int, ...]) -> Counts:
    """Counts the parameters and multiply-adds of a network without running it.

    Batch statistics do not count as parameters.

    Args:
      network: Module (images [b, h, w, c], train) -> outputs. It should have no auxiliary head,
        which is used only in training, and the 'plain' kernels, since others may multiply zeros.
      image_shape: Height, width and channels of an image.
    """
    variables, image = _shapes(network, image_shape)
    return Counts(count_parameters(variables["params"]), _network_macs(network, variables, image))


def count_macs(network: nn.Module, image_shape: tuple[int, ...]) -> int:
    """Counts the multiply-adds of convolutions and dense layers for one image.

    Args:
      network: Module to count, see `count_network`.
      image_shape: Height, width and channels of an image.
    """
    return _network_macs(network, *_shapes(network, image_shape))


def count_network_parameters(network: nn.Module, image_shape: tuple[int, ...]) -> int:
    """Counts the parameters of a network, in less time than `count_network` takes.

    Args:
      network: Module to count, see `count_network`.
      image_shape: Height, width and channels of an image.
    """
    variables, _ = _shapes(network, image_shape)
    return count_parameters(variables["params"])


def widest_channels(macs: Callable[[int], int], limit: float, start: int) -> int:
    """Finds the largest even number of channels whose network is within a limit.

    Args:
      macs: Function from the number of channels to the network's multiply-adds. It should be
        about quadratic, or the search for the number takes long.
      limit: Largest number of multiply-adds.
      start: Number of channels from which the first guess is made.

    Raises:
      UserError: If the network with MIN_CHANNELS channels exceeds the limit.
    """
    macs = functools.cache(macs)
    guess = start * math.sqrt(limit / macs(start))
    channels = max(2 * round(guess / 2), MIN_CHANNELS)
    while channels > MIN_CHANNELS and macs(channels) > limit:
        channels -= 2
    while macs(channels + 2) <= limit:
        channels += 2
    if macs(channels) > limit:
        raise UserError(
            f"retrain.max_macs is {limit:,.0f}, but even a network of {MIN_CHANNELS} channels "
            f"needs {macs(channels):,} multiply-adds: raise it, or lower retrain.cells or "
            "data.image_size"
        )
    return channels


def _shapes(network: nn.Module, image_shape: tuple[int, ...]) -> tuple[Any, jax.ShapeDtypeStruct]:
    """Returns the shapes of a network's variables and of a batch with one image."""
    image = jax.ShapeDtypeStruct((1, *image_shape), "float32")
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, False), image)
    return variables, image


def _network_macs(network: nn.Module, variables: Any, image: jax.ShapeDtypeStruct) -> int:
    streams = {name: jax.random.key(0) for name in ("dropout", "noise")}
    closed = jax.make_jaxpr(lambda v, x: network.apply(v, x, False, rngs=streams))(variables, image)
    return count_work(closed.jaxpr).macs


class Work(NamedTuple):
    """The work of a program.

    Attributes:
      macs: Multiply-adds of convolutions and matrix products.
      bytes: Bytes that convolutions, matrix products and pools read and write.
    """

    macs: int
    bytes: int


def count_work(jaxpr: Any) -> Work:
    """Counts the work of a program over all devices.

    Every operand counts as read once, and every result as written once. The body of a loop counts
    as often as it runs, or once if its length is unknown. If there are several branches, the one
    with the most multiply-adds counts.

    Args:
      jaxpr: Program to count, a `jax.core.Jaxpr`.
    """
    macs = moved = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        equation_macs = _equation_macs(equation)
        macs += equation_macs
        if equation_macs or name.startswith(("reduce_window", "select_and_")):
            moved += sum(var.aval.size * var.aval.dtype.itemsize for var in equation.invars)
            moved += sum(var.aval.size * var.aval.dtype.itemsize for var in equation.outvars)
        repeats = params["length"] if name == "scan" else 1
        repeats *= params["mesh"].size if name == "shard_map" else 1
        inner = [getattr(value, "jaxpr", value) for value in params.values()]
        works = [count_work(program) for program in inner if hasattr(program, "eqns")]
        if name == "cond":
            works.append(max(count_work(branch.jaxpr) for branch in params["branches"]))
        for work in works:
            macs, moved = macs + repeats * work.macs, moved + repeats * work.bytes
    return Work(macs, moved)


def _equation_macs(equation: Any) -> int:
    """Counts the multiply-adds of one equation, without programs inside it."""
    name, params = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        spec = params["dimension_numbers"].rhs_spec  # (out, in, *spatial)
        kernel = equation.invars[1].aval.shape
        # The gradient of a strided convolution puts zeros between the pixels; they do not count.
        depth = math.prod(kernel[axis] for axis in spec[1:]) / math.prod(params["lhs_dilation"])
    elif name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    else:
        return 0
    return round(math.prod(equation.outvars[0].aval.shape) * depth)
