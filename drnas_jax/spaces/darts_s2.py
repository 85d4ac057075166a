"""S2 (Zela et al., ICLR 2020, arXiv 1909.09656): skip connections and separable convolutions.

Every edge chooses between a skip connection and a separable 3x3 convolution, so a search that
prefers skip connections cannot hide it.
"""

from drnas_jax.spaces.base import Space
from drnas_jax.spaces.darts import PAIRS, Darts, Options, cells_of

__all__ = ["Options", "create"]

PRIMITIVES = ("skip_connect", "sep_conv_3x3")


class S2(Darts):
    """The search space S2: a 3x3 separable convolution or a skip connection on each edge."""

    name = "darts_s2"
    cells = cells_of([PRIMITIVES] * len(PAIRS), [PRIMITIVES] * len(PAIRS))


def create(options: Options) -> Space:
    """Returns the space S2."""
    return S2(options)
