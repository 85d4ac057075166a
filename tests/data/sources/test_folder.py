"""Folders of images: what is read and resized, and every error a user can cause."""

import cv2
import numpy as np
import pytest
from loading import config, error

from drnas_jax.data import Dataset, Stream, load


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.asarray(image))


@pytest.fixture
def folder(tmp_path):
    """Writes ten colour images of each of two classes; image i is all RGB (i, class, 200)."""
    for label, name in enumerate(["cat", "dog"]):
        for i in range(10):
            rgb = np.full((6, 5, 3), (i, label, 200), np.uint8)
            write(tmp_path / name / f"{i}.png", rgb[..., ::-1])
    return tmp_path


def test_folder_holds_out_a_fifth(folder):
    # Catches a split that is random, or unequal for the classes.
    data, again = (load(config("folder", dir=str(folder))) for _ in range(2))
    np.testing.assert_array_equal(data.images, again.images)
    assert data.images.shape == (16, 6, 5, 3)
    assert data.test_images.shape == (4, 6, 5, 3)
    assert data.classes == ("cat", "dog")
    assert data.flip
    assert not load(config("folder", dir=str(folder), flip="no")).flip
    pixels = np.concatenate([data.images, data.test_images])[:, 0, 0]
    labels = np.concatenate([data.labels, data.test_labels])
    np.testing.assert_array_equal(pixels[:, 1], labels)
    assert np.all(pixels[:, 2] == 200)
    assert sorted(map(tuple, pixels[:, :2])) == [(i, y) for i in range(10) for y in range(2)]
    np.testing.assert_array_equal(np.bincount(data.test_labels), [2, 2])
    order = list(map(tuple, pixels[:16, 1::-1]))
    assert order == sorted(order)  # by class, then by file


@pytest.mark.parametrize("limit", [4096, 0])
def test_a_fingerprint_changes_with_the_files(folder, limit):
    # Catches a resume on other images.
    def fingerprint():
        return load(config("folder", dir=str(folder), memory_limit_mb=limit)).fingerprint

    first = fingerprint()
    assert first == fingerprint()
    (folder / "cat/3.png").rename(folder / "cat/33.png")
    renamed = fingerprint()
    (folder / "cat/33.png").rename(folder / "dog/33.png")
    moved = fingerprint()
    write(folder / "dog/34.png", np.zeros((6, 5, 3)))
    assert len({first, renamed, moved, fingerprint()}) == 4


def test_split_folders_without_classes_are_refused(tmp_path):
    # Catches a training on two classes called train and test.
    for split in ("train", "test"):
        write(tmp_path / split / "0.png", np.zeros((4, 4, 3)))
        write(tmp_path / split / "1.png", np.zeros((4, 4, 3)))
    assert "no folder for each class in its train/" in error("folder", dir=str(tmp_path))


def test_folder_with_its_own_test_split(tmp_path):
    # Catches test images that are trained on.
    for split, count in (("train", 3), ("test", 2)):
        for name, value in (("cat", 10), ("dog", 20)):
            for i in range(count):
                image = np.full((4, 4, 3), value + i, np.uint8)
                write(tmp_path / split / name / f"{i}.png", image)
    data = load(config("folder", dir=str(tmp_path)))
    np.testing.assert_array_equal(data.images[:, 0, 0, 0], [10, 11, 12, 20, 21, 22])
    np.testing.assert_array_equal(data.labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(data.test_images[:, 0, 0, 0], [10, 11, 20, 21])
    np.testing.assert_array_equal(data.test_labels, [0, 0, 1, 1])

    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "wolf")
    assert "only one of them has dog, wolf" in error("folder", dir=str(tmp_path))
    (tmp_path / "test").rename(tmp_path / "valid")
    assert "only one of them has cat, dog" in error("folder", dir=str(tmp_path))


def test_folder_converts_depth_and_alpha(tmp_path):
    # Catches one unusual file that stops the run or is clipped.
    for i in range(2):
        write(tmp_path / "alpha" / f"{i}.png", np.full((3, 3, 4), (30, 20, 10, 0), np.uint8))
        write(tmp_path / "deep" / f"{i}.png", np.full((3, 3, 3), (7710, 5140, 2570), np.uint16))
        write(tmp_path / "gray" / f"{i}.png", np.full((3, 3), 99, np.uint8))
    data = load(config("folder", dir=str(tmp_path)))
    assert data.images.dtype == np.uint8
    np.testing.assert_array_equal(data.images[:, 1, 1], [(10, 20, 30), (10, 20, 30), (99, 99, 99)])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_folder_of_gray_images_stays_gray(tmp_path, dtype):
    # Catches three equal channels where one is enough.
    for i in range(3):
        value = 50 + i if dtype == np.uint8 else (50 + i) * 256
        for name in "ab":
            write(tmp_path / name / f"{i}.png", np.full((3, 4), value, dtype))
    data = load(config("folder", dir=str(tmp_path)))
    assert data.images.shape == (4, 3, 4, 1)
    assert set(np.concatenate([data.images, data.test_images]).ravel()) == {50, 51, 52}


def test_a_folder_of_broken_images(folder):
    # Catches a data set without images.
    for file in folder.rglob("*.*"):
        file.write_bytes(b"no image")
    for changes in (dict(), dict(image_size=4), dict(image_size=4, crop="resized")):
        text = error("folder", dir=str(folder), corrupt="skip", **changes)
        assert "no readable image in its train split" in text


def test_folder_ignores_hidden_files(folder):
    # Catches what file managers leave behind.
    (folder / ".cache").mkdir()
    (folder / "notes.txt").write_text("beside the classes")
    (folder / "cat" / ".DS_Store").write_text("no image")
    assert len(load(config("folder", dir=str(folder))).images) == 16


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n and no more"])
def test_folder_with_an_unreadable_image(folder, content):
    # Catches a broken file that shifts the labels of the others.
    (folder / "dog" / "bad.png").write_bytes(content)
    assert str(folder / "dog" / "bad.png") in error("folder", dir=str(folder))
    data = load(config("folder", dir=str(folder), corrupt="skip"))
    (folder / "dog" / "bad.png").unlink()
    without = load(config("folder", dir=str(folder)))
    assert len(data.skipped) == 1 and not without.skipped
    assert data.count + data.test_count == without.count + without.test_count


def test_folder_with_a_nested_folder(folder):
    # Catches a folder that is read as an image.
    (folder / "dog" / "more").mkdir()
    assert str(folder / "dog" / "more") in error("folder", dir=str(folder))


def test_folder_of_different_sizes(folder):
    # Catches an error of NumPy about shapes.
    write(folder / "dog" / "z.png", np.zeros((9, 12, 3), np.uint8))
    message = error("folder", dir=str(folder))
    assert "6x5 and 9x12" in message
    assert "set data.image_size" in message
    assert load(config("folder", dir=str(folder), image_size=7)).images.shape[1:] == (7, 7, 3)


def test_folder_larger_than_the_limit(tmp_path):
    # Catches a limit that ignores image_size.
    for i in range(4):
        write(tmp_path / "ab"[i % 2] / f"{i}.png", np.zeros((600, 600), np.uint8))
    for limit, size, kind in ((1, 0, Stream), (1, 100, Dataset), (2, 0, Dataset)):
        fields = dict(dir=str(tmp_path), memory_limit_mb=limit, image_size=size)
        assert isinstance(load(config("folder", **fields)), kind)


def test_folder_errors(folder):
    # Catches a mistake that is reported only after long work.
    assert "data.dir is ''" in error("folder")
    assert "is no directory" in error("folder", dir=str(folder / "absent"))
    (folder / "bird").mkdir()
    assert f"{folder / 'bird'} has no images" in error("folder", dir=str(folder))
    write(folder / "bird" / "0.png", np.zeros((6, 5, 3), np.uint8))
    assert f"{folder / 'bird'} has 1 image" in error("folder", dir=str(folder))
    assert "at least 2 classes, but has none" in error("folder", dir=str(folder / "cat"))


def test_folder_of_one_class(folder):
    # Catches a classification without a choice.
    (folder / "dog").rename(folder / ".dog")
    assert "at least 2 classes, but has cat" in error("folder", dir=str(folder))


# Resizing


def resized(tmp_path, image, size):
    for name in "ab":
        for i in range(2):
            write(tmp_path / name / f"{i}.png", image)
    return load(config("folder", dir=str(tmp_path), image_size=size)).images[0, ..., 0]


def test_shrinking_averages_areas(tmp_path):
    # Catches aliasing.
    image = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    exact = image.reshape(4, 2, 4, 2).mean((1, 3))
    np.testing.assert_allclose(resized(tmp_path, image, 4), exact, atol=0.51)


def test_enlarging_interpolates(tmp_path):
    # Catches pixels that are repeated.
    image = np.array([[0, 0], [200, 200]], np.uint8)
    result = resized(tmp_path, image, 4).astype(int)
    np.testing.assert_array_equal(result, [[0] * 4, [50] * 4, [150] * 4, [200] * 4])


@pytest.mark.parametrize("transpose", [False, True])
def test_long_sides_are_cut_in_the_middle(tmp_path, transpose):
    # Catches height and width that are exchanged.
    image = np.arange(4 * 9, dtype=np.uint8).reshape(4, 9)
    expected = image[:, 2:6]
    if transpose:
        image, expected = image.T, expected.T
    np.testing.assert_array_equal(resized(tmp_path, image, 4), expected)
