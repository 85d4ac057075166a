"""The sampler of the Dirichlet that tests search with: tfp, or jax if tfp is not installed."""

import importlib.util

import pytest

HAS_TFP = importlib.util.find_spec("tensorflow_probability") is not None
FIELDS = {} if HAS_TFP else {"arch.options.sampler": "jax"}
FLAGS = [f"--config.{name}={value}" for name, value in FIELDS.items()]
needs_tfp = pytest.mark.skipif(
    not HAS_TFP, reason="needs TensorFlow Probability, the default sampler of the Dirichlet"
)
