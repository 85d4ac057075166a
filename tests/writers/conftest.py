"""What the writers of this folder are told of a run."""

import pytest

from drnas_jax.config import from_config_dict
from drnas_jax.writers import RunInfo


@pytest.fixture
def info(tmp_path):
    """Returns a function that describes the search of seed 3 of a sweep; `said` has its lines."""
    said = []

    def make(*writers, resume_step=1, phase="search", seed=3):
        config = from_config_dict({"seed": seed, "metrics": {"writers": writers}})
        sweep = tmp_path / "sweep"
        return RunInfo(config, sweep / f"seed{seed}", sweep, phase, resume_step, said.append)

    make.said = said
    return make
