"""What is printed about a data set when it is loaded."""

import cv2
import numpy as np
from resuming import Listener

from drnas_jax.config import DataConfig
from drnas_jax.phases.setup import dataset_loader


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
