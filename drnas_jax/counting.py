"""Parameters and multiply-adds, counted from the program that runs and not from formulas."""

import math
from typing import Any

import jax
from flax import linen as nn


def count_parameters(params: Any) -> int:
    """Numbers in a tree of arrays (or of their shapes)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def count_macs(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply-adds of convolutions and dense layers for one image, without running anything.

    Args:
      network: called as (x, train); build it with the 'plain' kernels, since faster ones may
        multiply by zeros.
      image_shape: h, w, c.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), "float32")
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, False), image)
    closed = jax.make_jaxpr(lambda v, x: network.apply(v, x, False))(variables, image)
    return _macs(closed.jaxpr)


def _macs(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            spec = params["dimension_numbers"].rhs_spec  # (out, in, *spatial)
            taps = math.prod(kernel[axis] for axis in spec[1:])
            total += math.prod(equation.outvars[0].aval.shape) * taps
        elif name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += math.prod(equation.outvars[0].aval.shape) * depth
        else:
            repeats = params.get("length", 1) if name == "scan" else 1
            inner = (getattr(value, "jaxpr", value) for value in params.values())
            total += repeats * sum(_macs(value) for value in inner if hasattr(value, "eqns"))
    return total
