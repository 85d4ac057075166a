"""beta-decay (beta-DARTS, arXiv 2203.01665): the mean over all edges of logsumexp(alpha).

Its gradient is the softmax of alpha, so it reduces the largest entries most, and the softmax stays
flat. Its weight rises from 0 to its maximum over the search. The authors' code uses it beside the
weight decay 1e-3 of alpha's Adam, and so does this penalty at the default of `arch.strength`:

    arch.strength * |alpha|^2 / 2  +  arch.strength / 1e-3 * maximum * progress * beta-decay
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from drnas_jax.config import at_least, field
from drnas_jax.penalties.base import Penalty

_DEFAULT_STRENGTH = 1e-3  # of `arch.strength`, with which `maximum` is the term's own weight


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of beta-decay."""

    maximum: float = field(
        50.0,
        "Weight at the end of the search, if arch.strength has its default; it rises linearly "
        "from 0.",
        at_least(0),
    )


def create(options: Options) -> Penalty:
    """Returns the penalty of beta-DARTS: beta-decay and L2."""

    def penalty(alpha, cells, distribution, progress):
        squares = [0.5 * jnp.sum(_float32(leaf) ** 2) for leaf in jax.tree.leaves(alpha)]
        weight = options.maximum / _DEFAULT_STRENGTH * progress
        return sum(squares, start=jnp.zeros(())) + weight * beta_decay(alpha, cells)

    return penalty


def beta_decay(alpha, cells):
    """Returns the mean over the edges of all cell types of logsumexp over their operations.

    Leaves of alpha that have another shape than [e, o] do not count.

    Args:
      alpha: Architecture parameters by cell type.
      cells: Cells with the remaining operations, by cell type.
    """
    terms = []
    for cell_type, cell in cells.items():
        mask = True if cell.mask is None else cell.mask
        for leaf in jax.tree.leaves(alpha[cell_type]):
            if leaf.shape == cell.shape:
                terms.append(logsumexp(jnp.where(mask, _float32(leaf), -jnp.inf), axis=-1))
    return jnp.mean(jnp.concatenate(terms))


def _float32(leaf):
    return leaf.astype(jnp.float32)
