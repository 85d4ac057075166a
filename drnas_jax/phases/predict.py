"""Predicts the classes of new images with a trained network."""

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from flax import linen as nn

from drnas_jax import spaces
from drnas_jax.config import from_config_dict
from drnas_jax.data import Example, TrainingData, UnreadableImage
from drnas_jax.data.images import centre_crop, decode, fit
from drnas_jax.data.preprocess import normalise
from drnas_jax.data.threads import in_threads
from drnas_jax.errors import UserError
from drnas_jax.files import read_json
from drnas_jax.nn import backend
from drnas_jax.phases.retrain.retraining import RetrainMetadata
from drnas_jax.phases.trained import restore
from drnas_jax.spaces import Space
from drnas_jax.training import devices
from drnas_jax.training.checkpoints import Checkpoints
from drnas_jax.training.random_keys import module_streams

AnyPath = str | os.PathLike[str]


class Prediction(NamedTuple):
    """The probabilities of the classes of some images.

    Attributes:
      classes: Names of the classes.
      probabilities: Probability of each class for each image, float32 [n, classes].
    """

    classes: tuple[str, ...]
    probabilities: np.ndarray


def predict(
    network: AnyPath, images: np.ndarray | AnyPath | Sequence[AnyPath], batch_size: int = 64
) -> Prediction:
    """Computes the probabilities of the classes of images with a network that was retrained.

    Files are decoded, resized and cropped as the test images of the training's data set were, and
    all images are normalised by the mean and standard deviation of its training images. For
    example, for the most probable class of two photographs:

        classes, probabilities = drnas_jax.predict("runs/final", ["a.jpg", "b.jpg"])
        print([classes[i] for i in probabilities.argmax(axis=1)])

    Args:
      network: Workdir of the retraining, or its folder retrain/checkpoints. The newest checkpoint
        is used.
      images: Pixels, uint8 [n, h, w, c] of the size and channels of the training images, c = 1
        (gray) or 3 (RGB); or the path of an image file, or a sequence of paths.
      batch_size: Number of images that are computed at a time, which affects speed and memory.

    Returns:
      A named tuple `(classes, probabilities)`: the names of the classes, and float32 [n, classes].

    Raises:
      UserError: There is no checkpoint, or the images have another type, size or number of
        channels than the training images, or a file is not an image.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: expected 1 or more")
    folder, workdir = _checkpoint_folder(Path(network).expanduser())
    with Checkpoints(folder, cleanup=False) as checkpoints:
        saved = checkpoints.latest()
        if saved is None or "genotype" not in saved.phase:
            raise UserError(
                f"{folder} holds no checkpoint of retraining: give the workdir of a retraining, or "
                "its folder retrain/checkpoints"
            )
        metadata = RetrainMetadata.from_json(saved.phase)
        given = _checked(images, metadata.data)  # before anything is loaded
        space = _space(metadata, workdir)
        mesh = devices.make_mesh(jax.local_devices()[:1])
        module = space.network(metadata.spec, backend.for_platform(devices.platform(mesh)))
        variables = restore(checkpoints, saved, module, mesh)
    statistics = [np.array(v, np.float32) for v in (metadata.data.mean, metadata.data.std)]
    rows = [
        np.asarray(_probabilities(module, variables, batch, *statistics))[:count]
        for batch, count in _batches(given, metadata.data, batch_size)
    ]
    return Prediction(metadata.data.classes, np.concatenate(rows))


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(
    network: nn.Module, variables: Any, images: jax.Array, mean: jax.Array, std: jax.Array
) -> jax.Array:
    """Returns the probabilities of the classes, [b, classes], of images uint8 [b, h, w, c]."""
    streams = module_streams(0, "predict", 0, 0)
    inputs = normalise(images, mean, std)
    logits = cast(jax.Array, network.apply(variables, inputs, False, rngs=streams))
    return jax.nn.softmax(logits)


def _checkpoint_folder(network: Path) -> tuple[Path, Path]:
    """Returns the folder of the checkpoints, and the workdir that it is in if it was not moved."""
    if (network / "config.json").exists():
        folder = network / "retrain" / "checkpoints"
        if not folder.is_dir():
            raise UserError(
                f"{network} has no trained network: {folder} does not exist; run the retrain phase "
                "first"
            )
        return folder, network
    if not network.is_dir():
        raise UserError(
            f"there is no folder {network}: give the workdir of a retraining, or its folder "
            "retrain/checkpoints"
        )
    return network, network.absolute().parent.parent


def _space(metadata: RetrainMetadata, workdir: Path) -> Space:
    """Returns the search space, with the options of the workdir's config if there is one."""
    described, options = read_json(workdir / "config.json"), None
    if described is not None:
        config = from_config_dict(described.get("config", {}))
        options = config.space_options if config.space == metadata.space else None
    return spaces.create(metadata.space, options)


def _checked(
    images: np.ndarray | AnyPath | Sequence[AnyPath], trained: TrainingData
) -> np.ndarray | list[str]:
    """Returns the images, or the paths of their files, after checks that read no file."""
    if isinstance(images, np.ndarray | jax.Array):
        array = np.asarray(images)
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:] != trained.shape:
            raise UserError(
                f"images is {array.dtype} {list(array.shape)}: expected uint8 "
                f"[n, {', '.join(map(str, trained.shape))}], as the network was trained on"
            )
        checked: np.ndarray | list[str] = array
    elif isinstance(images, str | os.PathLike):
        checked = [os.fspath(images)]
    elif isinstance(images, Sequence) and all(isinstance(i, str | os.PathLike) for i in images):
        checked = [os.fspath(image) for image in images]
    else:
        raise UserError(
            f"images is a {type(images).__name__}: expected an array, uint8 [n, h, w, c], or paths "
            "of image files"
        )
    if not len(checked):
        raise UserError("images has length 0: expected at least one image")
    return checked


def _batches(
    images: np.ndarray | list[str], trained: TrainingData, size: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields batches, uint8 [b, h, w, c], each with the number of its images; zeros fill it up."""
    size = min(size, len(images))
    for start in range(0, len(images), size):
        some = images[start : start + size]
        if isinstance(some, list):
            some = np.stack(
                list(in_threads(functools.partial(_read, some, trained), range(len(some))))
            )
        batch = np.zeros((size, *trained.shape), np.uint8)
        batch[: len(some)] = some
        yield batch, len(some)


def _read(files: Sequence[str], trained: TrainingData, number: int) -> np.ndarray:
    """Reads a file as a test image of the training's data set, uint8 [h, w, c]."""
    file = files[number]
    try:
        example = Example(Path(file).expanduser().read_bytes(), 0, file)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): check its path") from error
    height, width, channels = trained.shape
    try:
        if trained.resized_for == "resized":
            image = centre_crop(example, channels, height, trained.max_value)
        else:
            image = decode(example, channels, max_value=trained.max_value)
            image = fit(image, height) if trained.resized_for else image
    except UnreadableImage as error:
        raise UserError(
            f"{file} is not an image that OpenCV can read: convert it to a format of 8 or 16 bits "
            "such as PNG, or leave it out"
        ) from error
    except UserError as error:
        raise UserError(
            f"{file} has a value above {trained.max_value}, the white of the training images "
            "(data.max_value): scale its values, or leave it out"
        ) from error
    if image.shape[:2] != (height, width):
        raise UserError(
            f"{file} has {image.shape[0]}x{image.shape[1]} pixels: expected {height}x{width}, "
            "since the network was trained on images that were not resized; resize it"
        )
    return image.reshape(trained.shape)
