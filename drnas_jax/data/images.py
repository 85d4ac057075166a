"""Decodes images to pixels with OpenCV: whole images, or crops of one size."""

import math

import cv2
import numpy as np

from drnas_jax.data.sources.base import Example, UnreadableImage
from drnas_jax.errors import UserError

_AREA = (0.08, 1.0)  # shares of the image that a random crop may take (Szegedy et al., 2015)
_RATIO = (3 / 4, 4 / 3)  # width over height that a random crop may have
_TRIES = 10
DRAWS = (_TRIES, 4)  # shape of the uniform numbers that one random crop needs
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG's markers of a frame with its size
_MARGIN = 256 / 224  # size of the resized image over that of the centre that is cut out of it
_PIXELS_AT_ONCE = 2**20
FULL_RANGE = 2**16 - 1  # largest value of a 16-bit image
# JPEG decodes at a half, a quarter or an eighth in a fraction of the time. The order of colours is
# OpenCV's, BGR: with the flag for RGB, OpenCV 5.0 reads TIFF files of 16 bits wrongly.
_FLAGS = {
    3: {
        1: cv2.IMREAD_COLOR,
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


def decode(example: Example, channels: int, reduction: int = 1, max_value: int = 0) -> np.ndarray:
    """Decodes an example to pixels.

    Args:
      example: Example whose image is gray, colour or CMYK, of 8 or 16 bits, with or without alpha.
      channels: 1 for gray, 3 for RGB.
      reduction: 1, 2, 4 or 8, to decode at this fraction of the height and width. Ignored if the
        example holds pixels.
      max_value: Value of white in images of 16 bits, see `to_8_bits`.

    Returns:
      Pixels, uint8 [h, w] or, in RGB, [h, w, 3].

    Raises:
      UnreadableImage: OpenCV cannot read the image, or it has neither 8 nor 16 bits.
      UserError: The example holds pixels of another type or shape, or exceeds `max_value`.
    """
    return to_8_bits(read_pixels(example, channels, reduction), max_value, example.name)


def read_pixels(example: Example, channels: int, reduction: int = 1) -> np.ndarray:
    """Does what `decode` does, except that an image of 16 bits keeps its depth, as uint16."""
    if isinstance(example.image, np.ndarray):
        return _checked_pixels(example.image, channels, example.name)
    flag = _FLAGS[channels][reduction] | cv2.IMREAD_ANYDEPTH
    image = _decode(example.image, flag, example.name)
    if image.dtype not in (np.uint8, np.uint16):
        raise UnreadableImage(
            f"{example.name} has pixels of type {image.dtype}: convert it to 8 or 16 bits, or set "
            "data.corrupt=skip, which leaves out and names all such images"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if channels == 3 else image


def to_8_bits(image: np.ndarray, max_value: int, name: str) -> np.ndarray:
    """Scales pixels of 16 bits so that `max_value` becomes 255; pixels of 8 bits stay as they are.

    Args:
      image: Pixels, uint8 or uint16, of any shape.
      max_value: Value of `data.max_value`; 0 for the full range, 65535.
      name: Name of the image for the error message.

    Returns:
      Pixels, uint8, rounded to the nearest level.

    Raises:
      UserError: A pixel is larger than `max_value`.
    """
    if image.dtype == np.uint8:
        return image
    white = max_value or FULL_RANGE
    if (largest := int(image.max())) > white:
        raise UserError(
            f"{name} has the value {largest}, but data.max_value is {white}: set it to the largest "
            f"value that an image can have, such as {next_range(largest)}"
        )
    return ((image.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)


def next_range(value: int) -> int:
    """Returns the largest value of the fewest bits, at least 8, that can hold a value."""
    return max(255, (1 << value.bit_length()) - 1)


def may_be_deep(data: bytes | np.ndarray) -> bool:
    """Returns False if it is clear without decoding that an image has 8 bits or fewer."""
    if isinstance(data, np.ndarray) or data[:2] == b"\xff\xd8":  # JPEG
        return False
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return data[24:25] == b"\x10"  # the depth in its header
    return True


def check_readable(example: Example, channels: int) -> None:
    """Decodes an image in the cheapest way.

    Raises:
      UnreadableImage: OpenCV cannot read the image, or it has neither 8 nor 16 bits.
    """
    read_pixels(example, channels, _reduction(min(_dimensions(example)), 1))


def has_colours(example: Example) -> bool:
    """Returns whether an image holds more than gray.

    Raises:
      UnreadableImage: OpenCV cannot read the image.
    """
    if isinstance(example.image, np.ndarray):
        return example.image.ndim == 3 and example.image.shape[2] == 3
    return _decode(example.image, cv2.IMREAD_ANYCOLOR, example.name).ndim == 3


def _checked_pixels(image: np.ndarray, channels: int, name: str) -> np.ndarray:
    if channels == 1 and image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    fits = image.ndim == 2 if channels == 1 else image.ndim == 3 and image.shape[2] == 3
    if image.dtype != np.uint8 or not fits or not image.size:
        expected = "[h, w], since the data set is gray" if channels == 1 else "[h, w, 3], RGB"
        raise UserError(
            f"{name} is an array of {image.dtype} {list(image.shape)}: expected uint8 {expected}"
        )
    return image


def _decode(data: bytes, flag: int, name: str) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:  # the file is empty, or the image too large
        image = None
    if image is None:
        raise UnreadableImage(
            f"{name} is not an image that OpenCV can read: fix or remove it, or set "
            "data.corrupt=skip, which leaves out and names all such images"
        )
    return image


def fit(image: np.ndarray, size: int, side: int | None = None) -> np.ndarray:
    """Resizes the short side of an image and cuts out the middle.

    Args:
      image: Pixels, uint8 [h, w] or [h, w, c].
      size: Side of the middle that is cut out, in pixels.
      side: Short side of the resized image, in pixels; None for `size`.

    Returns:
      Pixels, uint8 [size, size] or [size, size, c].
    """
    height, width = image.shape[:2]
    scale = (side or size) / min(height, width)
    if scale != 1:
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        shape = (round(width * scale), round(height * scale))
        image = cv2.resize(image, shape, interpolation=method)
    top, left = ((length - size) // 2 for length in image.shape[:2])
    return image[top : top + size, left : left + size]


def bring_to_shape(image: np.ndarray, size: int, shape: tuple[int, ...], title: str) -> np.ndarray:
    """Resizes an image if the config asks for it, and checks its size.

    Args:
      image: Pixels, uint8 [h, w] or [h, w, c].
      size: `data.image_size`; 0 to leave the image as it is.
      shape: Shape of the data set's images, h, w, c.
      title: Name of the data set for the error message.

    Returns:
      Pixels, uint8 [h, w, c].

    Raises:
      UserError: The image has another size than the data set's.
    """
    if size:
        image = fit(image, size)
    if image.shape[:2] != shape[:2]:
        sizes = [f"{height}x{width}" for height, width in (shape[:2], image.shape[:2])]
        raise UserError(
            f"images of data set {title} differ in size ({' and '.join(sizes)}): "
            "set data.image_size to resize all of them"
        )
    return image.reshape(shape)


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes the mean and standard deviation of each channel, of pixels scaled to 0..1.

    Args:
      images: Pixels, uint8 [n, h, w, c].

    Returns:
      Mean and standard deviation, float32 [c] each; the latter is 1 if a channel is constant.
    """
    # From histograms: exact, and without a copy of the images in floats.
    pixels = images.reshape(-1, images.shape[-1])
    counts = np.zeros((pixels.shape[1], 256))
    for start in range(0, len(pixels), _PIXELS_AT_ONCE):
        for channel, values in enumerate(pixels[start : start + _PIXELS_AT_ONCE].T):
            counts[channel] += np.bincount(values, minlength=256)
    share = counts / len(pixels)
    level = np.arange(256) / 255
    mean = share @ level
    std = np.sqrt((share * (level - mean[:, None]) ** 2).sum(1))
    return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)


def side_before_crop(size: int) -> int:
    """Returns the short side in pixels of the image from which `centre_crop` cuts `size`."""
    return round(size * _MARGIN)


def centre_crop(example: Example, channels: int, size: int, max_value: int = 0) -> np.ndarray:
    """Decodes an image for evaluation: resizes its short side to 256 / 224 of `size`, cuts `size`.

    Args:
      example: Example of any size.
      channels: 1 for gray, 3 for RGB.
      size: Side of the result in pixels.
      max_value: Value of white in images of 16 bits, see `to_8_bits`.

    Returns:
      Pixels, uint8 [size, size] or [size, size, c].
    """
    side = side_before_crop(size)
    height, width = _dimensions(example)
    reduction = _reduction(min(height, width), side)
    return fit(decode(example, channels, reduction, max_value), size, side)


def random_resized_crop(
    example: Example, channels: int, size: int, draws: np.ndarray, max_value: int = 0
) -> np.ndarray:
    """Decodes a random part of an image, of random shape, and resizes it (Szegedy et al., 2015).

    Args:
      example: Example of any size.
      channels: 1 for gray, 3 for RGB.
      size: Side of the result in pixels.
      draws: Uniform numbers in [0, 1), of shape DRAWS.
      max_value: Value of white in images of 16 bits, see `to_8_bits`.

    Returns:
      Pixels, uint8 [size, size] or [size, size, c].
    """
    dimensions = _dimensions(example)
    reduction = _reduction(min(_box(*dimensions, draws)[2:]), size)
    if reduction > 1:  # the decoder may turn a photo, by a field that the header's size ignores
        reduction = min(reduction, _reduction(min(_box(*dimensions[::-1], draws)[2:]), size))
    image = decode(example, channels, reduction, max_value)
    top, left, height, width = _box(image.shape[0], image.shape[1], draws)
    box = image[top : top + height, left : left + width]
    return cv2.resize(box, (size, size), interpolation=cv2.INTER_LINEAR)


def _box(height: int, width: int, draws: np.ndarray) -> tuple[int, int, int, int]:
    """Returns a random crop: the first draw that fits in the image, or the middle.

    The four numbers are top, left, height and width.
    """
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
    """Returns the largest reduction of a side that leaves it at least as long as wanted."""
    return max(n for n in (1, 2, 4, 8) if n == 1 or side >= n * wanted)


def _dimensions(example: Example) -> tuple[int, int]:
    """Reads height and width from the header of a JPEG file.

    Returns 1 and 1 for other files, which are decoded whole in any case. Never raises: if the bytes
    are not an image, the decoder reports it.
    """
    data = example.image
    if isinstance(data, np.ndarray):
        return data.shape[0], data.shape[1]
    offset = 2
    while data[:2] == b"\xff\xd8" and offset + 9 <= len(data):
        marker, length = data[offset + 1], int.from_bytes(data[offset + 2 : offset + 4], "big")
        if marker in _FRAMES:
            height, width = (data[offset + i : offset + i + 2] for i in (5, 7))
            return int.from_bytes(height, "big"), int.from_bytes(width, "big")
        offset += 1 if marker == 0xFF else 2 + length  # 0xFF may fill up
    return 1, 1
