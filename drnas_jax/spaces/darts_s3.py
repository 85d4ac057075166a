"""S3 (Zela et al., ICLR 2020, arXiv 1909.09656): S2 with the operation `none`.

`none` adds nothing to its node. It takes mixing weight from the others in the search, and no cell
is derived with it.
"""

from drnas_jax.spaces.base import Space
from drnas_jax.spaces.darts import PAIRS, Darts, Options, cells_of

__all__ = ["Options", "create"]

PRIMITIVES = ("none", "skip_connect", "sep_conv_3x3")


class S3(Darts):
    """The search space S3: the operations of S2, and `none`."""

    name = "darts_s3"
    cells = cells_of([PRIMITIVES] * len(PAIRS), [PRIMITIVES] * len(PAIRS))


def create(options: Options) -> Space:
    """Returns the space S3."""
    return S3(options)
