"""Images and labels as arrays: where they come from, how they are split and augmented."""

from drnas_jax.data.augment import augment_batch, normalise
from drnas_jax.data.sources import Dataset, load
from drnas_jax.data.splits import epoch_order, eval_batches, search_split, steps_per_epoch

__all__ = [
    "Dataset",
    "augment_batch",
    "epoch_order",
    "eval_batches",
    "load",
    "normalise",
    "search_split",
    "steps_per_epoch",
]
