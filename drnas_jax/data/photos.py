"""The steps that turn a photo into the input of a trained network, for programs that run it."""

import dataclasses
from typing import Any

from drnas_jax.data.description import TrainingData
from drnas_jax.data.images import FULL_RANGE, side_before_crop


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotoPreprocessing:
    """The steps from a photo to the input of a network, in the order in which they are done.

    They are those of test images in the evaluation. `card.json` and the metadata of an ONNX model
    have them as `preprocessing`.

    Attributes:
      orientation: 'EXIF': the photo is turned and mirrored as its EXIF data say.
      channels: Channels and their order, 'RGB' or 'gray' (luma, ITU-R 601). An alpha channel is
        dropped.
      max_value: Value that becomes 255 in a photo of 16 bits; one of 8 bits stays as it is.
      shortest_edge: Length in pixels to which the short side is resized. The long side keeps the
        ratio, rounded to a whole number. None if images were not resized: then a photo must have
        the size of the input.
      shrinking: How a photo is made smaller; 'area': a new pixel is the mean of the area of the old
        ones that it covers.
      enlarging: How a photo is made larger; 'bilinear', between the centres of pixels.
      centre_crop: Height and width in pixels of the middle that is cut out, from row
        (height - crop) // 2 and column (width - crop) // 2; None if images were not resized.
      value_range: Least and largest possible value of a pixel, before it is normalised.
      normalisation: Formula by which pixels are normalised.
      mean, std: Mean and standard deviation of each channel in that formula.
      normalised: 'by the program', which then takes uint8 pixels, or 'by the caller'.
    """

    orientation: str = "EXIF"
    channels: str
    max_value: int
    shortest_edge: int | None
    shrinking: str = "area"
    enlarging: str = "bilinear"
    centre_crop: tuple[int, int] | None
    value_range: tuple[int, int] = (0, 255)
    normalisation: str = "(pixels / 255 - mean) / std"
    mean: tuple[float, ...]
    std: tuple[float, ...]
    normalised: str

    @classmethod
    def of(cls, trained: TrainingData, uint8: bool) -> "PhotoPreprocessing":
        """Returns the steps for a network.

        Args:
          trained: Description of the network's training images.
          uint8: Whether the program normalises the pixels itself.
        """
        height, width, channels = trained.shape
        edge = side_before_crop(height) if trained.resized_for == "resized" else height
        return cls(
            channels="RGB" if channels == 3 else "gray",
            max_value=trained.max_value or FULL_RANGE,
            shortest_edge=edge if trained.resized_for else None,
            centre_crop=(height, width) if trained.resized_for else None,
            mean=trained.mean,
            std=trained.std,
            normalised="by the program" if uint8 else "by the caller",
        )

    def to_json(self) -> dict[str, Any]:
        """Converts to JSON values."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
