"""The labels of the training images, which a streamed data set reads only once."""

from pathlib import Path

import jax
import numpy as np

from drnas_jax.data import ImageDataset
from drnas_jax.files import write_array
from drnas_jax.training.hosts import from_primary, total


def labels_of(dataset: ImageDataset, needed: bool, file: Path | None) -> np.ndarray:
    """Returns the training labels, int [n], or zeros if reading them is costly and not needed."""
    if dataset.labels is not None:
        return dataset.labels
    if not needed:
        return np.zeros(dataset.count, np.int32)
    if file is not None:
        file = file.with_stem(f"{file.stem}-{dataset.fingerprint:08x}")
    if file is not None and from_primary(lambda: _holds(file, dataset.count)):
        return np.load(file)
    labels = total(dataset.read_labels(jax.process_index(), jax.process_count()))
    if file is not None:
        from_primary(lambda: write_array(file, labels))
    return labels


def _holds(file: Path, count: int) -> bool:
    """Returns whether a file holds the labels of `count` images."""
    try:
        return np.load(file).shape == (count,)
    except (OSError, ValueError, EOFError):
        return False
