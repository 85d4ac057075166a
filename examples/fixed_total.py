"""A mixing distribution of your own: a Dirichlet whose total concentration stays the same.

    python -m drnas_jax.main --config=configs/digits.py \
        --config.arch.name=examples/fixed_total.py --workdir=runs/fixed_total

Alpha then says which operations are strong, and never how sure the search is.
"""

from drnas_jax.distributions.base import Distribution, masked, normalised, softmax
from drnas_jax.distributions.dirichlet import sample_dirichlet


class FixedTotal(Distribution):
    """Concentration softmax(alpha) times the number of operations."""

    def scores(self, alpha, cell):
        return masked(softmax(alpha, cell) * alpha.shape[-1] + 1e-4, cell)

    def mean(self, alpha, cell):
        return normalised(self.scores(alpha, cell), cell)

    def sample(self, alpha, cell, key, progress, role):
        return sample_dirichlet(self.scores(alpha, cell), cell, key)


create = FixedTotal
