"""Parameters and multiply-adds, counted from the program that runs and not from formulas."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from drnas_jax.errors import UserError


def count_parameters(params: Any) -> int:
    """Numbers in a tree of arrays (or of their shapes)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


class Counts(NamedTuple):
    """Of a network: numbers in its parameters, and multiply-adds for one image."""

    parameters: int
    macs: int


def count_network(network: nn.Module, image_shape: tuple[int, ...]) -> Counts:
    """Parameters and multiply-adds, without running anything; batch statistics do not count.

    Args:
      network: see Space.network; build it without an auxiliary head, which is for training only,
        and with the 'plain' kernels, since faster ones may multiply by zeros.
      image_shape: h, w, c.
    """
    variables, image = _shapes(network, image_shape)
    return Counts(count_parameters(variables["params"]), _network_macs(network, variables, image))


def count_macs(network: nn.Module, image_shape: tuple[int, ...]) -> int:
    """Multiply-adds of convolutions and dense layers for one image; see `count_network`."""
    return _network_macs(network, *_shapes(network, image_shape))


def widest_channels(macs: Callable[[int], int], limit: float, start: int) -> int:
    """The widest even C whose network needs at most `limit` multiply-adds.

    Args:
      macs: multiply-adds of the network of C channels; about quadratic in C.
      limit: of multiply-adds.
      start: a C from which to guess.

    Raises:
      UserError: even C 2 needs more.
    """
    macs = functools.cache(macs)
    guess = start * math.sqrt(limit / macs(start))
    channels = max(2 * round(guess / 2), 2)
    while channels > 2 and macs(channels) > limit:
        channels -= 2
    while macs(channels + 2) <= limit:
        channels += 2
    if macs(channels) > limit:
        raise UserError(
            f"retrain.max_macs is {limit:,.0f}, and a network of 2 channels needs {macs(2):,} "
            "multiply-adds: raise it, or set retrain.cells or data.image_size lower"
        )
    return channels


def _shapes(network: nn.Module, image_shape: tuple[int, ...]) -> tuple[Any, jax.ShapeDtypeStruct]:
    image = jax.ShapeDtypeStruct((1, *image_shape), "float32")
    init = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, False), image)
    return init, image


def _network_macs(network: nn.Module, variables: Any, image: jax.ShapeDtypeStruct) -> int:
    closed = jax.make_jaxpr(lambda v, x: network.apply(v, x, False))(variables, image)
    return count_work(closed.jaxpr).macs


class Work(NamedTuple):
    """Multiply-adds of convolutions and matrix products; bytes that these and pools move."""

    macs: int
    bytes: int


def count_work(jaxpr: Any) -> Work:
    """The work of a program over all devices: every operand read once, every result written once.

    Loops count as often as they run, those of unknown length once; branches are not looked into.
    """
    macs = moved = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        own = _own_macs(equation)
        macs += own
        if own or name.startswith(("reduce_window", "select_and_")):
            moved += sum(var.aval.size * var.aval.dtype.itemsize for var in equation.invars)
            moved += sum(var.aval.size * var.aval.dtype.itemsize for var in equation.outvars)
        repeats = params["length"] if name == "scan" else 1
        repeats *= params["mesh"].size if name == "shard_map" else 1
        for value in params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                work = count_work(inner)
                macs, moved = macs + repeats * work.macs, moved + repeats * work.bytes
    return Work(macs, moved)


def _own_macs(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        spec = params["dimension_numbers"].rhs_spec  # (out, in, *spatial)
        kernel = equation.invars[1].aval.shape
        # A strided convolution's gradient puts zeros between the pixels, which are no work.
        depth = math.prod(kernel[axis] for axis in spec[1:]) / math.prod(params["lhs_dilation"])
    elif name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    else:
        return 0
    return round(math.prod(equation.outvars[0].aval.shape) * depth)
