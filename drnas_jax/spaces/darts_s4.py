"""S4 (Zela et al., ICLR 2020, arXiv 1909.09656): separable convolutions or noise.

`noise` gives standard normal values, whatever its input is, other ones in each call: the search
should never prefer it. It has no parameters and no BatchNorm, and a final network that has it
draws noise in its evaluation as well, from the run's seed.
"""

from drnas_jax.spaces.base import Space
from drnas_jax.spaces.darts import PAIRS, Darts, Options, cells_of

__all__ = ["Options", "create"]

PRIMITIVES = ("noise", "sep_conv_3x3")


class S4(Darts):
    """The search space S4: a 3x3 separable convolution or noise on each edge."""

    name = "darts_s4"
    cells = cells_of([PRIMITIVES] * len(PAIRS), [PRIMITIVES] * len(PAIRS))


def create(options: Options) -> Space:
    """Returns the space S4."""
    return S4(options)
