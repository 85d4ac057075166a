"""What is printed about a data set when it is loaded, and who may work in a workdir."""

import cv2
import numpy as np
import pytest
from resuming import Listener

from drnas_jax.config import DataConfig, from_config_dict
from drnas_jax.errors import UserError
from drnas_jax.phases.setup import dataset_loader, open_run


def test_what_was_read_is_printed_once(tmp_path):
    # Catches a line for every seed and phase, or none.
    for name in ("cat", "dog", "__MACOSX"):
        (tmp_path / name).mkdir()
        for i in range(2):
            assert cv2.imwrite(str(tmp_path / name / f"{i}.png"), np.zeros((4, 4), np.uint8))
    display = Listener()
    load = dataset_loader(DataConfig(name="folder", dir=str(tmp_path)), display)
    assert display.messages == []
    assert load() is load()
    (line,) = display.messages
    assert "2 classes (cat, dog)" in line and "left out: 1 __MACOSX" in line


def test_of_two_commands_at_once_only_one_config_runs(tmp_path):
    # Would catch a run whose config.json is of another command, opened while data were read.
    first, second = (
        open_run(from_config_dict(dict(seed=seed)), tmp_path, display=Listener()) for seed in (1, 2)
    )
    with pytest.raises(UserError, match="seed was 2 and is 1"), first.locked("search"):
        raise AssertionError
    with second.locked("search") as directory:
        assert directory == tmp_path / "search"
