"""The description of a network's training images, which its checkpoints hold."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from drnas_jax.data.dataset import ImageDataset
from drnas_jax.data.names import listed
from drnas_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The properties of the training images on which every later evaluation depends.

    Attributes:
      name: Value of `data.name`.
      classes: Names of the classes, in the order of the network's outputs.
      shape: Height, width and channels of an image.
      mean: Mean of each channel, of pixels in 0..1.
      std: Standard deviation of each channel.
      max_value: Value of `data.max_value`, by which images of 16 bits were scaled; 0 if unset.
      resized_for: Value of `data.crop`, for which images were resized; '' if they were not.
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    max_value: int = 0
    resized_for: str = ""

    @classmethod
    def of(cls, dataset: ImageDataset) -> "TrainingData":
        """Describes the training images of a data set."""
        height, width, channels = map(int, dataset.shape)
        mean, std = (tuple(map(float, values)) for values in (dataset.mean, dataset.std))
        shape, classes = (height, width, channels), tuple(dataset.classes)
        return cls(dataset.name, classes, shape, mean, std, dataset.max_value, dataset.resized_for)

    def to_json(self) -> dict[str, Any]:
        """Converts to JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TrainingData":
        """Converts back what `to_json` returned, also after a round trip through a file."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**fields)

    def outputs(self, dataset: ImageDataset) -> np.ndarray:
        """Matches the classes of another data set with the network's outputs, by name.

        Args:
          dataset: Images to evaluate the network on.

        Returns:
          Index of the output for each label of the data set, int32 [classes].

        Raises:
          UserError: The images have other channels, another size, another crop or another value of
            white than the training images, or the classes have other names.
        """
        self._check_shape(dataset)
        if self.max_value not in (0, dataset.max_value):
            raise UserError(
                f"the network was trained on images with the white value {self.max_value}, and "
                f"data.max_value is {dataset.max_value}: set data.max_value={self.max_value}"
            )
        if dataset.resized_for not in ("", self.resized_for or dataset.resized_for):
            raise UserError(
                f"the network was trained with data.crop='{self.resized_for}', and data.crop is "
                f"'{dataset.resized_for}', which crops test images differently: set "
                f"data.crop={self.resized_for}"
            )
        if set(dataset.classes) != set(self.classes):
            raise UserError(
                f"the network was trained on the classes of {self.name}, and data set "
                f"{dataset.name} has others: {_difference(self.classes, dataset.classes)}; "
                "evaluate it on images of the same classes, under the same names"
            )
        numbers = {name: number for number, name in enumerate(self.classes)}
        return np.array([numbers[name] for name in dataset.classes], np.int32)

    def _check_shape(self, dataset: ImageDataset) -> None:
        *size, channels = self.shape
        *other_size, other_channels = dataset.shape
        kinds = {1: "gray", 3: "RGB"}
        if channels != other_channels:
            raise UserError(
                f"the network was trained on {kinds[channels]} images, and those of data set "
                f"{dataset.name} are {kinds[other_channels]}: convert them, or evaluate a network "
                "that was trained on such images"
            )
        if size != other_size:
            (height, width), (other_height, other_width) = size, other_size
            what = f"set data.image_size={height}" if height == width else "resize them"
            raise UserError(
                f"the network was trained on images of {height}x{width} pixels, and those of data "
                f"set {dataset.name} have {other_height}x{other_width}: {what}"
            )


def _difference(trained: tuple[str, ...], given: tuple[str, ...]) -> str:
    """Lists the names that are in only one of two lists, in a form that shows every character."""
    sides = (
        ("only the network has", [name for name in trained if name not in given]),
        ("only the data set has", [name for name in given if name not in trained]),
    )
    return ", ".join(f"{what} {listed(map(ascii, names))}" for what, names in sides if names)
