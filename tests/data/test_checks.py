"""Checks of images in memory and streamed: unreadable classes, and images of 16 bits."""

import cv2
import numpy as np
import pytest
from loading import config, error
from test_stream import Unlisted

from drnas_jax.data import Schedule, load
from drnas_jax.data import checks as lib
from drnas_jax.data.sources.base import ArraySplit, Example, Source, UnreadableImage
from drnas_jax.data.stream import _Labels, read_rows
from drnas_jax.errors import UserError

GRAY = dict(mean=(0.5,), std=(0.2,))
both = pytest.mark.parametrize("limit", [4096, 0], ids=["memory", "stream"])


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


# Classes


@pytest.fixture
def folder(tmp_path):
    """Writes train/ and test/ with six images of each of three classes."""
    for split in ("train", "test"):
        for name in ("bird", "cat", "dog"):
            for i in range(6):
                write(tmp_path / split / name / f"{i}.png", np.full((4, 4), 9 * i, np.uint8))
    return tmp_path


def skipping(folder, limit, **changes):
    return dict(dir=str(folder), memory_limit_mb=limit, corrupt="skip", **changes)


@both
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("given", [{}, dict(image_size=3, crop="resized")])
def test_a_class_without_a_readable_image_is_named(folder, limit, split, given):
    # Catches a class that stays in the network although it has no images.
    files = sorted((folder / split / "cat").iterdir())
    for file in files[:5]:
        file.write_bytes(b"heic")
    data = load(config("folder", **skipping(folder, limit, **given)))
    assert data.num_classes == 3
    files[5].write_bytes(b"heic")
    message = error("folder", **skipping(folder, limit, **given))
    assert f"no readable image of cat in its {split} split" in message
    for file in (folder / split / "dog").iterdir():
        file.unlink()
        file.symlink_to("absent")
    assert "image of cat, dog in its" in error("folder", **skipping(folder, limit, **given))


class Bad:
    """A split of which some examples cannot be read."""

    def __init__(self, split, bad, labels):
        self.split, self.bad, self.labels = split, bad, split.labels if labels else None

    def __len__(self):
        return len(self.split)

    def __getitem__(self, index):
        label = int(self.split.labels[index])
        if index in self.bad:
            return Example(b"no image", label, f"image {index}")
        return self.split[index]


def source(bad, labels):
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4), np.uint8)
    split = ArraySplit(images, np.array([0, 0, 1, 1, 3, 3]))
    return Source("mine", Bad(split, bad, labels), split, tuple("abcd"), 1)


@both
@pytest.mark.parametrize("labels", [True, False])
def test_classes_of_other_sources(monkeypatch, limit, labels):
    # Catches labels that a split does not list, and a class that never had an image.
    def opened(bad):
        monkeypatch.setattr("drnas_jax.data.decoding.open_source", lambda _: source(bad, labels))
        return load(config("mine", memory_limit_mb=limit, corrupt="skip", **GRAY))

    assert opened({0, 2, 5}).num_classes == 4
    with pytest.raises(UserError, match="no readable image of b in its train split"):
        opened({0, 2, 3})
    with pytest.raises(UserError, match="no readable image in its train split"):
        opened(set(range(6)))


def test_labels_of_a_large_split_are_not_read_for_the_check(monkeypatch):
    # Catches a start that reads all of ImageNet.
    monkeypatch.setattr(lib, "_MOST_READ", 5)
    lib.check_each_class(source({0, 2, 3}, labels=False))


class Unreadable(Unlisted):
    def __getitem__(self, i):
        if i == 3:
            raise UnreadableImage("image 3 is gone")
        return self.split[i]


def test_labels_are_read_past_an_unreadable_image():
    # Catches a stream with data.corrupt='skip' that ends before its first step.
    split = Unreadable(ArraySplit(np.zeros((6, 4, 4), np.uint8), np.array([1, 1, 2, 2, 1, 2])))
    start, labels = _Labels(split, 0, 1, skip=True)[0]
    assert start == 0
    np.testing.assert_array_equal(labels, [1, 1, 2, 0, 1, 2])
    with pytest.raises(UnreadableImage):
        _Labels(split, 0, 1)[0]


# Depth


def deep(root, top, suffix, colour, count=10):
    """Writes two classes of 16-bit images with values from 0 to `top`; returns these, RGB."""
    random, images = np.random.default_rng(0), {}
    for name in "ab":
        for i in range(count):
            image = random.integers(0, top + 1, (5, 6, 3) if colour else (5, 6), np.uint16)
            image.ravel()[:3] = top
            write(root / name / f"{i}.{suffix}", image[..., ::-1] if colour else image)
            images[f"{root}/{name}/{i}.{suffix}"] = image if colour else image[..., None]
    return images


@both
@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize(("top", "white"), [(4095, 4095), (800, 1023), (65535, 0)])
def test_deep_images_are_scaled_by_max_value(tmp_path, limit, suffix, colour, top, white):
    # Catches 12 bits that become 16 levels of gray, and colours in another order.
    images = deep(tmp_path, top, suffix, colour, count=2)
    fields = dict(dir=str(tmp_path), memory_limit_mb=limit, max_value=white)
    data = load(config("folder", **fields))
    assert data.max_value == white
    stream = load(config("folder", **fields | dict(memory_limit_mb=0)))
    split = stream.source.train
    for i in range(len(split)):
        exact = images[split.path(i)] * 255.0 / (white or 65535)
        schedule = Schedule(1, 0, evaluated=np.array([i], np.int32), split="train")
        image = data.images[i] if limit else read_rows(data, schedule[0], np.arange(1), 0).images[0]
        assert image.shape == exact.shape
        np.testing.assert_allclose(image, exact, atol=0.5)


@both
@pytest.mark.parametrize("given", [{}, GRAY], ids=["measured", "given"])
@pytest.mark.parametrize(("top", "white"), [(8191, 8191), (3000, 4095), (600, 1023), (9, 255)])
def test_deep_images_that_use_fewer_bits_need_max_value(tmp_path, limit, given, top, white):
    # Catches a range that is guessed, or images that become nearly black.
    deep(tmp_path, top, "png", False)
    fields = dict(dir=str(tmp_path), memory_limit_mb=limit, **given)
    message = error("folder", **fields)
    assert f"no value above {top}" in message and f"such as {white} " in message
    for chosen in (white, 65535):
        assert load(config("folder", max_value=chosen, **fields)).count == 16


@both
def test_deep_images_that_use_their_range_need_no_max_value(tmp_path, limit):
    # Catches a check that refuses images that are fine.
    deep(tmp_path, 8192, "png", False)
    assert load(config("folder", dir=str(tmp_path), memory_limit_mb=limit)).max_value == 0


@both
def test_one_deep_image_among_others_is_checked_too(tmp_path, limit):
    # Catches a check of the first image only.
    for name in "ab":
        for i in range(5):
            write(tmp_path / name / f"{i}.png", np.full((5, 6), 50, np.uint8))
    write(tmp_path / "b" / "1.png", np.full((5, 6), 4000, np.uint16))
    write(tmp_path / "b" / "2.png", np.full((5, 6), 3000, np.uint16))
    assert "data.max_value" in error("folder", dir=str(tmp_path), memory_limit_mb=limit)
    data = load(config("folder", dir=str(tmp_path), max_value=4095))
    assert set(np.concatenate([data.images, data.test_images]).ravel()) == {50, 249, 187}


@both
def test_deep_test_images_are_checked_too(tmp_path, limit):
    # Catches test images that are nearly black, found only if they fit in memory.
    for split, image in (("train", np.uint8), ("test", np.uint16)):
        for name in "ab":
            write(tmp_path / split / name / "0.png", np.full((4, 4), 200, image))
    message = error("folder", dir=str(tmp_path), memory_limit_mb=limit, **GRAY)
    assert "data.max_value" in message


@both
def test_a_value_above_max_value_is_an_error(tmp_path, limit):
    # Catches values that are clipped or wrap around.
    deep(tmp_path, 5000, "png", False)
    message = error("folder", dir=str(tmp_path), memory_limit_mb=limit, max_value=4095)
    assert f"{tmp_path}/" in message
    assert "has the value 5000, but data.max_value is 4095" in message and "8191" in message
