"""The KL penalty of DrNAS (arXiv 2006.10355): KL(Dir(beta) || Dir(1)), summed over the edges.

It is the paper's distance from the flat distribution, and defined only for the Dirichlet.
"""

import jax.numpy as jnp

from drnas_jax.errors import UserError
from drnas_jax.penalties.base import Penalty


def create() -> Penalty:
    """Returns the KL penalty."""
    return _kl


def _kl(alpha, cells, distribution, progress):
    kl_from_flat = getattr(distribution, "kl_from_flat", None)
    if kl_from_flat is None:
        raise UserError(
            f"arch.regulariser 'kl' needs a distribution with the method `kl_from_flat`, which "
            f"{type(distribution).__name__} lacks: choose 'l2' or 'none', or set arch.name to "
            "'dirichlet'"
        )
    terms = (kl_from_flat(values, cells[cell_type]) for cell_type, values in alpha.items())
    return sum(terms, start=jnp.zeros(()))
