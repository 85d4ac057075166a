"""The 1,797 handwritten digits that scikit-learn brings, 8 by 8 pixels: needs no download.

A fifth of each class is held out for the test, a choice that no seed changes.
"""

import numpy as np

from drnas_jax.data.sources.base import ArraySplit, Source, hold_out


def create(directory: str) -> Source:
    """Returns the digits; `directory` is ignored."""
    from sklearn.datasets import load_digits  # here, since its import takes a second

    del directory
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int32)
    train, test = (ArraySplit(images[index], labels[index]) for index in hold_out(labels))
    classes = tuple(map(str, digits.target_names))
    return Source("'digits'", train, test, classes, channels=1, flip=False)
