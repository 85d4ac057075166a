"""Images that tests encode and decode, and random numbers for their crops."""

import io

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from drnas_jax.data.images import (
    DRAWS,
)
from drnas_jax.data.sources.base import Example

seeds = st.integers(0, 2**32 - 1)


def picture(height=48, width=64):
    """Returns a smooth image with more red than green than blue, uint8 [h, w, 3]."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [level + 50 * np.sin(7 * x + 3 * y + level) for level in (180, 120, 60)]
    return np.rint(np.stack(waves, -1)).astype(np.uint8)


def encoded(image, kind, **options):
    """Returns an example with the encoded bytes of a Pillow image."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Example(file.getvalue(), 0, "an example")


def png(image):
    """Returns an example with an array as PNG, gray or RGB."""
    return encoded(Image.fromarray(image), "PNG")


def draws(seed):
    return np.random.default_rng(seed).random(DRAWS)
