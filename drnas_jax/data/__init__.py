"""Images and labels: where they come from, how they are split, scheduled, read and augmented."""

from drnas_jax.data.augment import augment_batch, color_jitter, normalise
from drnas_jax.data.dataset import Dataset, Stream, load
from drnas_jax.data.schedule import Part, Request, Schedule
from drnas_jax.data.splits import epoch_order, eval_batches, search_split, steps_per_epoch
from drnas_jax.data.stream import read_labels, stream_batches

__all__ = [
    "Dataset",
    "Part",
    "Request",
    "Schedule",
    "Stream",
    "augment_batch",
    "color_jitter",
    "epoch_order",
    "eval_batches",
    "load",
    "normalise",
    "read_labels",
    "search_split",
    "steps_per_epoch",
    "stream_batches",
]
