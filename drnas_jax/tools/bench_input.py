"""Times the input: how fast images are read, decoded and augmented."""

import contextlib
import time
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from drnas_jax import data
from drnas_jax.config import Config
from drnas_jax.data import (
    ImageDataset,
    Images,
    Loader,
    augmentation_streams,
    open_source,
    preprocessing_of,
)
from drnas_jax.data.images import decode
from drnas_jax.training import devices
from drnas_jax.training.hosts import cores
from drnas_jax.training.random_keys import stream_keys, stream_number

_REPEATS = 3  # measurements of streamed input, and of the plain loop to compare with


def bench_input(config: Config, steps: int) -> dict[str, Any]:
    """Times only the input: the data of the config, as the search reads it.

    For a data set in memory, the augmentation is timed. For a streamed data set, the time is until
    the images are on the devices, where the step augments them; `opencv_images_per_s` is then the
    rate of a plain loop in one process that decodes the same images as a whole and resizes them.
    Both are the best of several measurements.

    Args:
      config: Config of the run.
      steps: Number of steps to time.

    Returns:
      Values of the JSON line.
    """
    mesh = devices.make_mesh()
    devices.check_batch(config.search.batch_size, mesh, "search.batch_size")
    dataset = data.load(config.data)
    if not dataset.workers:
        rate = _augmentation_rate(config, dataset, mesh, steps)
        return {"images_per_s": round(rate, 1)}
    workers = dataset.workers
    schedule = _schedule(config, dataset, 4 * workers + steps)
    rates = [
        (
            _stream_rate(dataset, schedule, mesh, warm=4 * workers),
            _plain_rate(config, dataset.shape),
        )
        for _ in range(_REPEATS)
    ]
    rate, plain = map(max, *rates)
    return {
        "images_per_s": round(rate, 1),
        "workers": workers,
        "opencv_images_per_s": round(plain, 1),
        "of_opencv_per_core": round(rate / plain / min(workers, cores()), 2),
    }


def _schedule(config: Config, dataset: ImageDataset, steps: int) -> data.Schedule:
    everything = np.arange(dataset.count, dtype=np.int32)
    subsets = (data.Subset("bench", everything),)
    return data.Schedule(config.search.batch_size, config.seed, subsets, epochs=2, steps=steps)


def _augmentation_rate(config: Config, dataset: ImageDataset, mesh: Mesh, steps: int) -> float:
    """Returns the images per second of the augmentation, in the second of two epochs."""
    preprocessing = preprocessing_of(dataset, crop_padding=config.data.crop_padding)
    seed = jnp.uint32(config.seed)

    def augment(raw: Images, batch: jax.Array, step: jax.Array) -> Images:
        keys = stream_keys(seed, jax.tree.map(stream_number, augmentation_streams("bench")), step)
        return jax.lax.map(lambda rows: preprocessing.augment(raw, rows, keys), batch)

    specs = (devices.REPLICATED, devices.STEPS, devices.REPLICATED)
    program = devices.data_parallel(augment, mesh, specs, out_specs=devices.STEPS)
    loader = Loader(dataset, _schedule(config, dataset, steps), mesh)
    for epoch in range(2):
        began = time.perf_counter()
        for step, (_, dispatch) in enumerate(loader.training(epoch, 0)):
            jax.block_until_ready(program(loader.raw, *dispatch.batches, step))
    return config.search.batch_size * steps / (time.perf_counter() - began)


def _stream_rate(dataset: ImageDataset, schedule: data.Schedule, mesh: Mesh, warm: int) -> float:
    """Returns the images per second on the devices, after `warm` batches for workers to start."""
    with contextlib.closing(Loader(dataset, schedule, mesh)) as loader:
        for step, (_, dispatch) in enumerate(loader.training(0, 0)):
            if step == warm:
                began = time.perf_counter()
            jax.block_until_ready(dispatch.batches)
        seconds = time.perf_counter() - began
    return schedule.batch_size * (schedule.steps - warm) / seconds


def _plain_rate(config: Config, shape: tuple[int, int, int]) -> float:
    """Returns the images per second of a single thread that has the files in memory."""
    cv2.setNumThreads(1)
    split = open_source(config.data).train
    examples = [split[i] for i in range(min(len(split), 512))]
    began = time.perf_counter()
    for example in examples:
        cv2.resize(decode(example, shape[2]), shape[:2])
    return len(examples) / (time.perf_counter() - began)
