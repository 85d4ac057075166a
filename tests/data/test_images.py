"""Decoding, compared with Pillow; crops, compared with plain computations."""

import io
import math
import struct
import warnings

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import draws, encoded, picture, png, seeds
from PIL import ExifTags, Image, PngImagePlugin

from drnas_jax.data import images
from drnas_jax.data.images import (
    centre_crop,
    decode,
    fit,
    has_colours,
    random_resized_crop,
)
from drnas_jax.data.sources.base import Example, UnreadableImage
from drnas_jax.errors import UserError

# Decoding


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("L", "JPEG"),
        ("RGB", "JPEG"),
        ("CMYK", "JPEG"),
        ("1", "PNG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("RGBA", "PNG"),
    ],
)
def test_decode_equals_pillow(mode, kind, channels):
    # Catches a flag of OpenCV that swaps channels or keeps alpha.
    image = Image.fromarray(picture()).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(77)
    example = encoded(image, kind)
    result = decode(example, channels)
    with Image.open(io.BytesIO(example.image)) as file:
        expected = np.asarray(file.convert("L" if channels == 1 else "RGB"))
    assert result.dtype == np.uint8
    assert result.shape == expected.shape
    # Two roundings, one in JPEG's inverse transform (or from CMYK to RGB), one in luma.
    np.testing.assert_allclose(result.astype(int), expected, atol=2)
    if mode != "LA":  # OpenCV takes LA for colours
        assert has_colours(example) == (mode not in ("1", "L"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("max_value", [0, 4095, 1000])
def test_decode_rounds_16_bits(channels, max_value):
    # Catches images of 16 bits that are clipped to white, or cut to their high byte.
    white = max_value or 65535
    image = np.random.default_rng(0).integers(0, white + 1, (50, 70), np.uint16)
    image[0, :2] = 0, white
    file = cv2.imencode(".png", image)[1].tobytes()
    result = decode(Example(file, 0, "deep"), channels, max_value=max_value)
    expected = image if channels == 1 else np.stack([image] * 3, -1)
    assert result.dtype == np.uint8
    np.testing.assert_allclose(result, expected * 255.0 / white, atol=0.5)
    with pytest.raises(UserError, match=f"deep has the value {white}, but data.max_value is 999"):
        decode(Example(file, 0, "deep"), channels, max_value=999)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_other_depths_are_refused(dtype):
    # Catches negative values that become white, and fractions that become black.
    file = cv2.imencode(".tiff", np.full((4, 4), -0.5 if dtype == np.float32 else -5, dtype))[1]
    with pytest.raises(UnreadableImage, match=f"deep has pixels of type {np.dtype(dtype)}"):
        decode(Example(file.tobytes(), 0, "deep"), 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_what_may_be_deep_is_seen_in_the_header(kind):
    # Catches a deep image that is passed over.
    assert images.may_be_deep(encoded(Image.fromarray(picture()), kind).image) == (kind == "TIFF")
    for suffix in (".png", ".tiff", ".pgm"):
        file = cv2.imencode(suffix, np.zeros((4, 4), np.uint16))[1].tobytes()
        assert images.may_be_deep(file)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_decode_at_a_fraction(reduction, channels):
    # Catches channels that are swapped only at a fraction of the size.
    full = picture(40, 56)
    result = decode(png(full), channels, reduction).astype(float)
    assert result.shape[:2] == (40 // reduction, 56 // reduction)
    # The mean of a smooth picture stays nearly the same, and RGB stays RGB.
    expected = full.mean((0, 1)) if channels == 3 else decode(png(full), 1).mean()
    np.testing.assert_allclose(result.mean((0, 1)), expected, atol=4)


def test_decode_leaves_pixels_alone():
    # Catches pixels that are copied or converted.
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(decode(Example(pixels, 0, ""), 1), pixels)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_of_several_frames_the_first_counts(kind):
    # Catches an animation that becomes an array of frames.
    frames = [Image.fromarray(np.full((6, 9, 3), level, np.uint8)) for level in (40, 200)]
    example = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(example, 3), np.full((6, 9, 3), 40))


BROKEN = {
    "empty": b"",
    "text": b"no image",
    "header": b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 3) + b"IHDR" + bytes(7),
    "PNG cut": png(picture()).image[:100],
    "JPEG cut": encoded(Image.fromarray(picture()), "JPEG").image[:200],
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize(
    "read",
    [
        lambda example: decode(example, 3),
        lambda example: decode(example, 1, 4),
        has_colours,
        lambda example: centre_crop(example, 3, 8),
        lambda example: random_resized_crop(example, 3, 8, draws(0)),
    ],
    ids=["decode", "reduced", "has_colours", "centre_crop", "random_resized_crop"],
)
def test_a_broken_image_is_named(read, content):
    # Catches an error of OpenCV that does not say which file is broken.
    with pytest.raises(UnreadableImage, match=r"broken\.png is not an image .*data\.corrupt"):
        read(Example(content, 0, "broken.png"))


@given(seed=seeds, kind=st.sampled_from(["PNG", "JPEG"]))
@settings(deadline=None, max_examples=20)
def test_changed_bytes_give_an_image_or_the_error(seed, kind):
    # Catches a header whose damage crashes our own parser.
    random = np.random.default_rng(seed)
    content = np.frombuffer(encoded(Image.fromarray(picture()), kind).image, np.uint8).copy()
    content[random.integers(0, 60, 3)] = random.integers(0, 256, 3)
    example = Example(content.tobytes(), 0, "changed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged tags and sizes
        try:
            assert random_resized_crop(example, 3, 8, draws(seed)).shape == (8, 8, 3)
        except UnreadableImage as error:
            assert "changed" in str(error)


def test_large_metadata_is_no_obstacle():
    # Catches a limit on metadata that has nothing to do with the image.
    text = PngImagePlugin.PngInfo()
    text.add_text("notes", " " * 2**21, zip=True)
    example = encoded(Image.fromarray(picture()), "PNG", pnginfo=text)
    with pytest.raises(ValueError):
        Image.open(io.BytesIO(example.image))
    expected = picture()[:, 8:56]
    np.testing.assert_array_equal(fit(decode(example, 3), 48), expected)
    assert centre_crop(example, 3, 14).shape == (14, 14, 3)


# The middle of an image


def blocks(image, n):
    """Returns the means of blocks of n x n pixels."""
    height, width = image.shape[0] // n, image.shape[1] // n
    return image.reshape(height, n, width, n, -1).mean((1, 3)).reshape(height, width, -1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(64, 100), (100, 64), (64, 64)])
def test_fit_and_centre_crop_equal_means_of_blocks(height, width, channels):
    # Catches a crop beside the middle, and aliasing.
    image = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    # 256 / 224 of 14 is 16, a quarter of the short side.
    small = blocks(image, 4)
    top, left = (small.shape[0] - 14) // 2, (small.shape[1] - 14) // 2
    expected = small[top : top + 14, left : left + 14]
    image = image[..., 0] if channels == 1 else image
    result = fit(image, 14, 16)
    assert result.dtype == np.uint8
    np.testing.assert_allclose(result.reshape(14, 14, channels), expected, atol=0.51)
    if channels == 1:  # pixels, which are not decoded at a fraction
        example = Example(image, 0, "")
        np.testing.assert_array_equal(centre_crop(example, channels, 14), result)


def test_fit_leaves_what_fits():
    # Catches an image that is resized to the size it has.
    image = picture(20, 30)
    np.testing.assert_array_equal(fit(image, 20), image[:, 5:25])


@given(height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(1, 50))
@settings(deadline=None)
def test_fit_gives_the_size(height, width, size):
    # Catches an odd size that is rounded to one pixel less.
    image = np.full((height, width), 9, np.uint8)
    np.testing.assert_array_equal(fit(image, size), np.full((size, size), 9))
    np.testing.assert_array_equal(centre_crop(Example(image, 0, ""), 1, size)[:, 0], [9] * size)


# Decoding at a fraction of the size


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "crop",
    [centre_crop, *(lambda *a, s=seed: random_resized_crop(*a, draws(s)) for seed in range(4))],
)
def test_decoding_at_a_fraction_changes_little(crop, channels, monkeypatch):
    # Catches a box that is not scaled with the image.
    example, used = encoded(Image.fromarray(picture(600, 800)), "JPEG", quality=95), []
    monkeypatch.setattr(images, "decode", lambda *args: used.append(args[2]) or decode(*args))
    fast = crop(example, channels, 24).astype(float)
    monkeypatch.setattr(images, "_reduction", lambda side, wanted: 1)
    full = crop(example, channels, 24)
    assert used[0] > 1 == used[1]
    # A box is rounded to pixels of the reduced image, by at most a pixel of the result: 10 levels.
    assert np.abs(fast - full).max() < 10
    assert np.abs(fast - full).mean() < 3


def jpeg(image, turn=None):
    """Returns an example as JPEG; `turn` is EXIF's orientation, a quarter turn from 5 on."""
    exif = Image.Exif()
    if turn:
        exif[ExifTags.Base.Orientation] = turn
    return encoded(Image.fromarray(image), "JPEG", exif=exif)


@pytest.mark.parametrize("turn", [None, 6])
def test_decoding_at_a_fraction_leaves_enough_pixels(monkeypatch, turn):
    # Catches a blurred crop, in particular of photos that the decoder turns.
    seen = []
    monkeypatch.setattr(images, "decode", lambda *args: seen.append(decode(*args)) or seen[-1])
    upright = slice(None, None, -1 if turn else 1)
    centre_crop(jpeg(picture(100, 800), turn), 3, 21)  # resized to 24 first
    assert seen.pop().shape[:2] == (25, 200)[upright]
    example, fractions = jpeg(picture(240, 400), turn), set()
    for seed in range(60):
        random_resized_crop(example, 3, 20, draws(seed))
        height, width = seen.pop().shape[:2]
        fractions.add(240 * 400 // (height * width))
        box = images._box(height, width, draws(seed))
        full = images._box(*(240, 400)[upright], draws(seed))
        assert min(box[2:]) >= min(20, *full[2:]) - 1  # rounding
    assert len(fractions) > 1


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"\xff\xc0" * 99}])
def test_the_size_in_a_header(mode, options):
    # Catches a parser that takes a comment for the frame's size.
    image = Image.fromarray(picture(48, 64)).convert(mode)
    example = encoded(image, "JPEG", **options)
    assert images._dimensions(example) == (48, 64)
    filled = example.image[:2] + b"\xff\xff" + example.image[2:]  # as the format allows
    assert images._dimensions(example._replace(image=filled)) == (48, 64)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xc0", b"\xff\xd8" + bytes(99)])
def test_no_size_in_a_header(data):
    # Catches an endless loop or an index beyond the end.
    assert images._dimensions(Example(data, 0, "broken")) == (1, 1)


@given(side=st.integers(1, 5000), wanted=st.integers(1, 400))
def test_the_smallest_sufficient_fraction_is_taken(side, wanted):
    # Catches decoding more pixels than are needed.
    n = images._reduction(side, wanted)
    assert n == 1 or math.ceil(side / n) >= wanted
    assert n == 8 or side < 2 * n * wanted
