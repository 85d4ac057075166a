"""Folders of images: what is read and resized, and every error a user can cause."""

import dataclasses
import os

import cv2
import numpy as np
import pytest
from loading import config, error

from drnas_jax.data import Dataset, Schedule, Stream, UnreadableImage, load
from drnas_jax.data.sources import base
from drnas_jax.data.stream import read_rows


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
    message = error("folder", dir=str(tmp_path))
    assert "only train/ has dog" in message and "only test/ has wolf" in message


def test_folder_converts_depth_and_alpha(tmp_path):
    # Catches one unusual file that stops the run or is clipped.
    for i in range(2):
        write(tmp_path / "alpha" / f"{i}.png", np.full((3, 3, 4), (30, 20, 10, 0), np.uint8))
        write(tmp_path / "deep" / f"{i}.png", np.full((3, 3, 3), (7710, 5140, 2570), np.uint16))
        write(tmp_path / "gray" / f"{i}.png", np.full((3, 3), 99, np.uint8))
    data = load(config("folder", dir=str(tmp_path), max_value=65535))
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


@pytest.mark.parametrize("image_size", [0, 6])
def test_all_unreadable_images_are_named_at_once(folder, image_size):
    # Catches an error that names one file in each run, and counts that include unreadable ones.
    bad = [folder / "cat/0.png", folder / "dog/4.png", folder / "dog/gone.png"]
    for file in bad[:2]:
        file.write_bytes(b"no image")
    bad[2].symlink_to("absent.png")
    text = error("folder", dir=str(folder), image_size=image_size)
    assert f"data set 'folder' in {folder} has 3 unreadable images (" in text
    assert all(str(file) in text for file in bad) and text.count("data.corrupt=skip") == 1
    # The sample of training images from which a stream's mean is estimated has all of these.
    names = load(config("folder", dir=str(folder), corrupt="skip", memory_limit_mb=0)).source.train
    in_train = [str(file) in map(names.path, range(len(names))) for file in bad]
    text = error("folder", dir=str(folder), image_size=image_size, memory_limit_mb=0)
    assert [str(file) in text for file in bad] == in_train and any(in_train)
    data = load(config("folder", dir=str(folder), corrupt="skip", image_size=image_size))
    assert len(data.skipped) == 3
    read, left_out = data.notes
    assert "training images" in read
    counts = f"{data.count} training images and {data.test_count} test images remain: "
    assert f": 3 unreadable images are left out, so {counts}" in left_out
    assert all(str(file) in left_out for file in bad) and "data.corrupt" not in left_out
    assert data.count + data.test_count == 18


def test_one_note_says_what_was_read(folder):
    # Catches files that are left out without a word.
    (folder / "dog" / "more" / "empty").mkdir(parents=True)
    (folder / "dog" / "0.png").rename(folder / "dog" / "more" / "0.png")
    (folder / "cat" / "Thumbs.db").write_text("no image")
    (folder / "__MACOSX" / "cat").mkdir(parents=True)
    (folder / "__MACOSX" / "cat" / "._0.png").write_text("no image")
    os.mkfifo(folder / "cat" / "pipe")  # a reader would wait for ever
    for limit in (4096, 0):
        data = load(config("folder", dir=str(folder), memory_limit_mb=limit))
        (note,) = data.notes
        assert note.startswith(f"data set 'folder' in {folder}: 2 classes (cat, dog), 16 training")
        assert "4 test images" in note
        assert note.endswith("left out: 1 Thumbs.db, 1 __MACOSX, 1 pipe")


def test_labels_of_a_file_reach_the_images(tmp_path):
    # Catches tiny-imagenet-200 with labels that do not belong to the images.
    for name, value in (("cat", 10), ("dog", 20)):
        for i in range(2):
            write(tmp_path / "train" / name / "images" / f"{i}.png", np.full((4, 4), value))
    for i, value in enumerate((20, 10, 20)):
        write(tmp_path / "val" / "images" / f"{i}.png", np.full((4, 4), value))
    lines = "".join(f"{i}.png\t{name}\n" for i, name in enumerate(("dog", "cat", "dog")))
    (tmp_path / "val" / "val_annotations.txt").write_text(lines)
    data = load(config("folder", dir=str(tmp_path)))
    assert data.classes == ("cat", "dog")
    np.testing.assert_array_equal(data.test_images[:, 0, 0, 0], 10 + 10 * data.test_labels)
    np.testing.assert_array_equal(np.bincount(data.test_labels), [1, 2])


# Links


@pytest.mark.parametrize("target", ["absent.png", "self.png"])
@pytest.mark.parametrize("limit", [4096, 0])
def test_a_broken_link_is_named_or_skipped(folder, target, limit):
    # Catches a stream that ends at what is skipped in memory.
    link, fields = folder / "dog" / "self.png", dict(dir=str(folder), memory_limit_mb=limit)
    link.symlink_to(target)
    if limit:
        assert str(link) in error("folder", **fields)
    data = load(config("folder", corrupt="skip", workers=1, **fields))
    if limit:
        assert [str(link) in text for text in data.skipped] == [True]
        assert data.count + data.test_count == 20
        return
    splits = {name: data.source.split(name) for name in ("train", "test")}
    (split,) = [n for n, s in splits.items() if str(link) in map(s.path, range(len(s)))]
    size = len(splits[split])
    schedule = Schedule(size, 0, evaluated=np.arange(size, dtype=np.int32), split=split)
    with pytest.raises(UnreadableImage, match="self.png"):
        read_rows(dataclasses.replace(data, skip=False), schedule[0], np.arange(size), 0)
    rows = read_rows(data, schedule[0], np.arange(size), 0)
    assert len(rows.skipped) == 1 and str(link) in rows.skipped[0]
    assert rows.weight.sum() == size - 1


def test_a_link_to_a_folder_above_is_refused(folder):
    # Catches a listing without an end.
    (folder / "dog" / "loop").symlink_to(folder)
    assert f"{folder}/dog/loop is a link to a folder that contains it" in error(
        "folder", dir=str(folder)
    )


def test_a_linked_class_is_read(folder, tmp_path_factory):
    # Catches a check for loops that refuses any link.
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "wolf"
    (folder / "dog").rename(elsewhere)
    (folder / "wolf").symlink_to(elsewhere)
    assert load(config("folder", dir=str(folder))).classes == ("cat", "wolf")


# Fingerprints


def test_a_fingerprint_changes_with_the_contents(folder):
    # Catches a retraining that is judged on other images under the same names.
    def fingerprint():
        return load(config("folder", dir=str(folder))).fingerprint

    file = folder / "cat" / "3.bmp"  # its size does not depend on the pixels
    write(file, np.full((6, 5, 3), 3, np.uint8))
    content, first = file.read_bytes(), fingerprint()
    file.write_bytes(content + b" ")
    longer = fingerprint()
    write(file, np.full((6, 5, 3), 4, np.uint8))
    assert len(file.read_bytes()) == len(content)
    assert len({first, longer, fingerprint()}) == 3
    file.write_bytes(content)
    os.utime(file, (0, 0))
    assert fingerprint() == first


@pytest.mark.parametrize("limit", ["_ALL_FILES", "_ALL_BYTES"])
def test_the_fingerprint_of_a_large_set_takes_sizes_and_a_sample(tmp_path, monkeypatch, limit):
    # Catches a sample of the first files only, and one that misses all of a set's new contents.
    monkeypatch.setattr(base, limit, 7)
    monkeypatch.setattr(base, "_FILES", 5)
    monkeypatch.setattr(base, "_BLOCK", 4)
    files = [tmp_path / str(i) for i in range(20)]
    for file in files:
        file.write_bytes(bytes(100))

    def fingerprint():
        return base.fingerprint_of(map(str, files), files)

    def changes(index, position, inserted=0):
        before = fingerprint()
        files[index].write_bytes(bytes(position) + b"x" + bytes(99 - position + inserted))
        after = fingerprint()
        files[index].write_bytes(bytes(100))
        assert fingerprint() == before
        return after != before

    assert not changes(1, 0)
    assert changes(1, 0, inserted=1)
    assert all(changes(index, position) for index in range(0, 20, 4) for position in (0, 33, 99))
    files[3].unlink()
    assert fingerprint() == fingerprint() != base.fingerprint_of(map(str, files))


def test_a_fingerprint_without_files_is_that_of_the_names():
    # Catches names that run into each other.
    assert base.fingerprint_of(["ab", "c"]) != base.fingerprint_of(["a", "bc"])
    assert base.fingerprint_of(["a"]) == base.fingerprint_of(iter(["a"]), ())


# Images


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
    assert "is not a directory" in error("folder", dir=str(folder / "absent"))
    (folder / "bird").mkdir()
    assert f"{folder / 'bird'} has no images" in error("folder", dir=str(folder))
    write(folder / "bird" / "0.png", np.zeros((6, 5, 3), np.uint8))
    assert f"{folder / 'bird'} has 1 image" in error("folder", dir=str(folder))
    assert "has no folders, only 10 files" in error("folder", dir=str(folder / "cat"))


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
