"""A photo becomes a network's input by the words of the card, as in the evaluation."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from loading import config
from pictures import picture
from PIL import Image, ImageOps

from drnas_jax.data import (
    Images,
    PhotoPreprocessing,
    Preprocessing,
    TrainingData,
    load,
    open_source,
)

SIZE = 16


def shares(old, new):
    """Returns the share of each old pixel in the area of each new one, [new, old]."""
    starts, pixels = np.arange(new) * old / new, np.arange(old)
    ends = starts + old / new
    overlap = np.minimum(ends[:, None], pixels + 1) - np.maximum(starts[:, None], pixels)
    return overlap.clip(0) * new / old


def interpolation(old, new):
    """Returns the weight of each old pixel in each new one between its centres, [new, old]."""
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0, 1 - abs(centres[:, None] - np.arange(old)))


def by_the_words(file, steps):
    """Returns what a caller has to give the program for a photo, computed by NumPy and Pillow."""
    assert steps["orientation"] == "EXIF" and steps["value_range"] == [0, 255]
    assert (steps["shrinking"], steps["enlarging"]) == ("area", "bilinear")
    image = ImageOps.exif_transpose(Image.open(file))
    if image.mode == "I;16":
        pixels = np.rint(np.asarray(image) * 255.0 / steps["max_value"])
    else:
        pixels = np.asarray(image.convert({"RGB": "RGB", "gray": "L"}[steps["channels"]]), float)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    height, width = pixels.shape[:2]
    if steps["shortest_edge"] is not None:
        scale = steps["shortest_edge"] / min(height, width)
        weights = shares if scale < 1 else interpolation
        down, right = (weights(side, round(side * scale)) for side in (height, width))
        pixels = np.rint(np.einsum("ah,hwc,bw->abc", down, pixels, right))
        rows, columns = steps["centre_crop"]
        top, left = (pixels.shape[0] - rows) // 2, (pixels.shape[1] - columns) // 2
        pixels = pixels[top : top + rows, left : left + columns]
    if steps["normalised"] == "by the program":
        return pixels
    assert steps["normalisation"] == "(pixels / 255 - mean) / std"
    return (pixels / 255 - np.array(steps["mean"])) / np.array(steps["std"])


def write(file, pixels, **options):
    """Writes an image, which would look the same neither mirrored nor turned."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **options)


def turned():
    """Returns EXIF data that say: the top of the photo is at the right."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.fixture
def photos(tmp_path):
    """Writes photos of several sizes and formats; returns their folder, with test/cat and so on."""
    large = picture(200, 300)
    with_alpha = np.dstack([picture(40, 60), np.full((40, 60), 7, np.uint8)])
    for split in ("train", "test"):
        write(tmp_path / split / "cat/shrunk.png", picture(40, 60))
        write(tmp_path / split / "cat/turned.jpg", picture(50, 36), exif=turned(), quality=95)
        write(tmp_path / split / "dog/alpha.png", with_alpha)
        write(tmp_path / split / "dog/enlarged.png", picture(11, 9))
        write(tmp_path / split / "dog/large.jpg", large, exif=turned(), quality=95)
    return tmp_path


# Levels of 255 by which pixels may differ. Both sides round once, and JPEG decoders round their
# transforms differently. For the crop 'resized' JPEG files of at least twice the size are decoded
# at a fraction of it, as both are here.
TOLERANCE = {"padded": {"png": 1, "jpg": 2}, "resized": {"png": 1, "jpg": 5}}


@pytest.mark.parametrize("crop", ["padded", "resized"])
@pytest.mark.parametrize("uint8", [True, False])
def test_the_words_of_the_card_give_the_images_of_the_evaluation(photos, crop, uint8):
    # Catches a card that names another size, order of channels, rounding or normalisation.
    chosen = config("folder", dir=str(photos), crop=crop, image_size=SIZE, workers=1)
    dataset, files = load(chosen), open_source(chosen).test
    trained = TrainingData.of(dataset)
    steps = json.loads(json.dumps(PhotoPreprocessing.of(trained, uint8).to_json()))
    raw = dataset.read_test(np.arange(dataset.test_count))
    batch = Images(jnp.asarray(raw), jnp.zeros(len(raw), jnp.int32))
    normalised = Preprocessing(trained.mean, trained.std).normalise(None, batch).images
    for i in range(len(files)):
        name = files.path(i)
        expected, unit = (raw[i], 1) if uint8 else (normalised[i], 255 * min(trained.std))
        found, allowed = by_the_words(name, steps), TOLERANCE[crop][name[-3:]]
        assert found.shape == (SIZE, SIZE, 3)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=allowed / unit)


def test_gray_photos_of_16_bits_by_the_words_of_the_card(tmp_path):
    # Catches a card without the value of white.
    random = np.random.default_rng(0)
    for i in range(4):
        deep = random.integers(0, 4096, (20, 30), np.uint16)
        write(tmp_path / f"{'ab'[i % 2]}/{i}.png", deep)
    chosen = config("folder", dir=str(tmp_path), image_size=SIZE, max_value=4095)
    dataset, files = load(chosen), open_source(chosen).test
    steps = PhotoPreprocessing.of(TrainingData.of(dataset), uint8=True).to_json()
    assert (steps["channels"], steps["max_value"]) == ("gray", 4095)
    for i, image in enumerate(dataset.read_test(np.arange(len(files)))):
        np.testing.assert_allclose(by_the_words(files.path(i), steps), image, rtol=0, atol=1)


def test_photos_that_were_not_resized_keep_their_size(tmp_path):
    # Catches a card that tells callers to crop although the evaluation did not.
    for i in range(4):
        write(tmp_path / f"{'ab'[i % 2]}/{i}.png", picture(10, 12))
    chosen = config("folder", dir=str(tmp_path))
    dataset, files = load(chosen), open_source(chosen).test
    steps = PhotoPreprocessing.of(TrainingData.of(dataset), uint8=True).to_json()
    assert steps["shortest_edge"] is steps["centre_crop"] is None
    np.testing.assert_array_equal(by_the_words(files.path(0), steps), dataset.test_images[0])
