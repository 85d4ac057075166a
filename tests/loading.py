"""What tests of data sets share."""

import cv2
import numpy as np
import pytest

from drnas_jax.config import DataConfig
from drnas_jax.data import load
from drnas_jax.errors import UserError


def config(name, **changes):
    """A data config with some fields changed."""
    return DataConfig(name=name, **changes)


def error(name, **changes):
    """The message of the error that `load` gives, which must be one line."""
    with pytest.raises(UserError) as raised:
        load(config(name, **changes))
    message = str(raised.value)
    assert "\n" not in message
    return message


def write_folder(root):
    """Ten random images of each of two classes, 9 x 11; gives the folder."""
    random = np.random.default_rng(0)
    for name in "ab":
        (root / name).mkdir()
        for i in range(10):
            image = random.integers(0, 256, (9, 11, 3), np.uint8)
            assert cv2.imwrite(str(root / name / f"{i}.png"), image)
    return root
