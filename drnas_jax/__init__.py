"""DrNAS, Dirichlet neural architecture search (arXiv 2006.10355), in JAX and Flax.

The functions `search`, `retrain` and `evaluate` share their names with the modules they live in: as
attributes of the package the functions win, and `from drnas_jax.search.step import ...` works too.
"""

from drnas_jax.evaluate import evaluate
from drnas_jax.genotype import load_genotype
from drnas_jax.retrain import retrain
from drnas_jax.search.controller import search

__version__ = "0.1.0"
__all__ = ["evaluate", "load_genotype", "retrain", "search"]
