"""DrNAS, Dirichlet neural architecture search (arXiv 2006.10355), in JAX and Flax.

Each phase of a run is a function of a config and a workdir: `search`, `retrain`, `evaluate` and
`export`. `predict` applies the network of a retraining to new images.
"""

from drnas_jax.phases.evaluate import evaluate
from drnas_jax.phases.export import export
from drnas_jax.phases.predict import predict
from drnas_jax.phases.retrain.phase import retrain
from drnas_jax.phases.search.phase import search
from drnas_jax.spaces import load_genotype

__version__ = "0.2.0"
__all__ = ["evaluate", "export", "load_genotype", "predict", "retrain", "search"]
