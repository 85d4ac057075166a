"""Encoded images to pixels, by OpenCV: whole, or a part of them at one size."""

import math
from typing import NamedTuple

import cv2
import numpy as np

from drnas_jax.errors import UserError

_AREA = (0.08, 1.0)  # shares of the image that a random crop may take (Szegedy et al., 2015)
_RATIO = (3 / 4, 4 / 3)  # and its width over its height
_TRIES = 10
DRAWS = (_TRIES, 4)  # the shape of the uniform numbers that one random crop takes
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG's markers of a frame with its size
_MARGIN = 256 / 224  # of the resized image over the centre that is cut out of it
# JPEG decodes at a half, a quarter or an eighth in a fraction of the time.
_REDUCED = {
    3: {
        1: cv2.IMREAD_COLOR_RGB,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    },
    1: {
        1: cv2.IMREAD_GRAYSCALE,
        2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
        4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
        8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    },
}


class UnreadableImage(UserError):
    """An image that cannot be decoded; the message says which."""


class Example(NamedTuple):
    """One of a data set, still encoded.

    Attributes:
      image: the bytes of an image file, or pixels, uint8 [h, w].
      label: of its class.
      name: for a person.
    """

    image: bytes | np.ndarray
    label: int
    name: str


def decode(example: Example, channels: int, reduction: int = 1) -> np.ndarray:
    """The pixels of an example.

    Args:
      example: gray, colour or CMYK, of 8 or 16 bits, with or without alpha.
      channels: 1 (gray) or 3 (RGB).
      reduction: 1, 2, 4 or 8: at this fraction of its height and width.

    Returns:
      uint8 [h, w] or, in RGB, [h, w, 3].

    Raises:
      UnreadableImage: OpenCV cannot read it.
    """
    if isinstance(example.image, np.ndarray):
        return example.image
    image = _decode(example, _REDUCED[channels][reduction])
    if channels == 3 and reduction > 1:  # there is no such flag that gives RGB
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return image


def has_colours(example: Example) -> bool:
    """Whether the file of an example holds more than gray.

    Raises:
      UnreadableImage: OpenCV cannot read it.
    """
    return _decode(example, cv2.IMREAD_ANYCOLOR).ndim == 3


def _decode(example: Example, flag: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(example.image, np.uint8), flag)
    except cv2.error:  # of an empty file, or an image too large
        image = None
    if image is None:
        raise UnreadableImage(
            f"{example.name} is not an image that OpenCV can read: fix or remove it, or set "
            "data.corrupt to 'skip'"
        )
    return image


def fit(image: np.ndarray, size: int, side: int | None = None) -> np.ndarray:
    """Brings the short side to `side` (or `size`) and cuts out the middle.

    Args:
      image: uint8 [h, w] or [h, w, c].
      size: of the middle, in pixels.
      side: of the resized image.

    Returns:
      uint8 [size, size] or [size, size, c].
    """
    height, width = image.shape[:2]
    scale = (side or size) / min(height, width)
    if scale != 1:
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        shape = (round(width * scale), round(height * scale))
        image = cv2.resize(image, shape, interpolation=method)
    top, left = ((length - size) // 2 for length in image.shape[:2])
    return image[top : top + size, left : left + size]


def centre_crop(example: Example, channels: int, size: int) -> np.ndarray:
    """For evaluation: the short side resized to 256 / 224 of `size`, and the middle cut out."""
    side = round(size * _MARGIN)
    height, width = _dimensions(example)
    reduction = _reduction(min(height, width), side)
    return fit(decode(example, channels, reduction), size, side)


def random_resized_crop(
    example: Example, channels: int, size: int, draws: np.ndarray
) -> np.ndarray:
    """For training: a random part of the image, of random shape, resized (Szegedy et al., 2015).

    Args:
      example: of any size.
      channels: 1 or 3.
      size: of the result.
      draws: uniform numbers in [0, 1), of shape DRAWS.

    Returns:
      uint8 [size, size] or [size, size, c].
    """
    dimensions = _dimensions(example)
    reduction = _reduction(min(_box(*dimensions, draws)[2:]), size)
    if reduction > 1:  # the decoder may turn a photo, by a field that the header's size ignores
        reduction = min(reduction, _reduction(min(_box(*dimensions[::-1], draws)[2:]), size))
    image = decode(example, channels, reduction)
    top, left, height, width = _box(image.shape[0], image.shape[1], draws)
    part = image[top : top + height, left : left + width]
    return cv2.resize(part, (size, size), interpolation=cv2.INTER_LINEAR)


def _box(height: int, width: int, draws: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop: the first draw that fits, or the centre."""
    for area, ratio, down, right in draws:
        share = height * width * (_AREA[0] + area * (_AREA[1] - _AREA[0]))
        shape = math.exp(math.log(_RATIO[0]) + ratio * math.log(_RATIO[1] / _RATIO[0]))
        w, h = round(math.sqrt(share * shape)), round(math.sqrt(share / shape))
        if 0 < w <= width and 0 < h <= height:
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    h = min(height, round(width / _RATIO[0]))
    w = min(width, round(height * _RATIO[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def _reduction(side: int, wanted: int) -> int:
    """The most that a side may be reduced and still be as long as wanted."""
    return max(n for n in (1, 2, 4, 8) if n == 1 or side >= n * wanted)


def _dimensions(example: Example) -> tuple[int, int]:
    """Height and width by the header of a JPEG file; 1 and 1 of others, decoded as a whole anyway.

    Raises nothing: what is no image, the decoder tells.
    """
    data = example.image
    if isinstance(data, np.ndarray):
        return data.shape[0], data.shape[1]
    place = 2
    while data[:2] == b"\xff\xd8" and place + 9 <= len(data):
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker in _FRAMES:
            height, width = (data[place + i : place + i + 2] for i in (5, 7))
            return int.from_bytes(height, "big"), int.from_bytes(width, "big")
        place += 1 if marker == 0xFF else 2 + length  # 0xFF may fill up
    return 1, 1
