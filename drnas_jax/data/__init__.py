"""Images and labels: where they come from, how they are split, scheduled, read and preprocessed."""

from drnas_jax.data.arrays import source_from_arrays
from drnas_jax.data.dataset import Dataset, ImageDataset
from drnas_jax.data.decoding import from_arrays, load
from drnas_jax.data.description import TrainingData
from drnas_jax.data.loader import Loader
from drnas_jax.data.photos import PhotoPreprocessing
from drnas_jax.data.preprocess import (
    AugmentationKeys,
    Batch,
    Images,
    Preprocessing,
    augmentation_streams,
    preprocessing_of,
)
from drnas_jax.data.schedule import Request, Schedule, Subset
from drnas_jax.data.sources import open_source
from drnas_jax.data.sources.base import Example, Source, Split, UnreadableImage, fingerprint_of
from drnas_jax.data.splits import search_split, steps_per_epoch
from drnas_jax.data.stream import Stream

__all__ = [
    "AugmentationKeys",
    "Batch",
    "Dataset",
    "Example",
    "ImageDataset",
    "Images",
    "Loader",
    "PhotoPreprocessing",
    "Preprocessing",
    "Request",
    "Schedule",
    "Source",
    "Split",
    "Stream",
    "Subset",
    "TrainingData",
    "UnreadableImage",
    "augmentation_streams",
    "fingerprint_of",
    "from_arrays",
    "load",
    "open_source",
    "preprocessing_of",
    "search_split",
    "source_from_arrays",
    "steps_per_epoch",
]
