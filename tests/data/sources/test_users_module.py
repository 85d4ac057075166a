"""A data source in a module of the user: the example of the documentation, and wrong modules."""

import importlib
import textwrap

import cv2
import numpy as np
import pytest
from loading import config, error

from drnas_jax.data import Schedule, Subset, load
from drnas_jax.data.sources import base

STATISTICS = dict(mean=(0.5,) * 3, std=(0.2,) * 3)


def documented():
    """Returns the module that the documentation shows."""
    text = base.__doc__
    block = text[text.index("    import csv") : text.index("Images that are already arrays")]
    return textwrap.dedent(block)


@pytest.fixture
def folder(tmp_path):
    """Writes twelve training and four test images, their list, and the documented module."""
    random, lines = np.random.default_rng(0), []
    for split, count in (("train", 12), ("test", 4)):
        for i in range(count):
            path = tmp_path / f"{split}{i}.png"
            assert cv2.imwrite(str(path), random.integers(0, 256, (6, 5, 3), np.uint8))
            lines.append(f"{split},{path},{i % 2}\n")
    (tmp_path / "images.csv").write_text("".join(lines))
    (tmp_path / "my_images.py").write_text(documented())
    return tmp_path


def check_images(dataset, folder):
    """Compares a data set in memory with the files."""
    for split, count in (("train", 12), ("test", 4)):
        images, labels = dataset.arrays(split)
        files = [cv2.imread(str(folder / f"{split}{i}.png"))[..., ::-1] for i in range(count)]
        np.testing.assert_array_equal(images, files)
        np.testing.assert_array_equal(labels, np.arange(count) % 2)


@pytest.mark.parametrize("name", ["path", "dotted path"])
def test_the_documented_module_is_read(folder, monkeypatch, name):
    # Catches documentation that does not run, and one of the two ways to name a module.
    if name == "path":
        name = str(folder / "my_images.py")
    else:
        (folder / "my_package").mkdir()
        (folder / "my_images.py").rename(folder / "my_package/my_images.py")
        monkeypatch.syspath_prepend(folder)
        importlib.invalidate_caches()
        name = "my_package.my_images"
    dataset = load(config(name, dir=str(folder)))
    check_images(dataset, folder)
    assert dataset.classes == ("cat", "dog") and dataset.flip and dataset.name == name


def test_worker_processes_read_a_users_module(folder, monkeypatch):
    # Catches a split whose class the worker processes do not find; the path is relative to the
    # current directory, as a user gives it.
    monkeypatch.chdir(folder)
    given = dict(dir=str(folder), memory_limit_mb=0, workers=1, **STATISTICS)
    stream, memory = (
        load(config("my_images.py", **fields)) for fields in (given, dict(dir=str(folder)))
    )
    subset = Subset("weights", np.arange(12, dtype=np.int32))
    schedule = Schedule(4, 0, (subset,), steps=2, evaluated=subset.index)
    read = list(stream.batches(schedule, 0, np.arange(4)))
    assert len(read) == len(schedule) == 5
    images, labels = memory.arrays("train")
    for request, rows in read:
        np.testing.assert_array_equal(rows.images, images[request.indices])
        np.testing.assert_array_equal(rows.labels, labels[request.indices])


ARRAYS = """
import numpy as np
from drnas_jax.data import Example, Source, source_from_arrays
from drnas_jax.data.sources.base import ArraySplit

IMAGES, LABELS = np.zeros((4, 6, 5), np.uint8), np.array([0, 1, 0, 1])
SPLIT = ArraySplit(IMAGES, LABELS)
SOURCE = dict(title="mine", train=SPLIT, test=SPLIT, classes=("a", "b"), channels=1)

def create(directory):
    return """


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ("SOURCE", ["returned a dict", "drnas_jax.data.Source"]),
        ("Source(**SOURCE | dict(classes=('a',)))", ["data set mine", "at least 2 classes"]),
        ("Source(**SOURCE | dict(channels=4))", ["data set mine", "channels = 4", "3 (RGB)"]),
        ("Source(**SOURCE | dict(channels=3))", ["image 0", "uint8 [6, 5]", "[h, w, 3]"]),
        ("Source(**SOURCE | dict(test=ArraySplit(IMAGES / 255, LABELS)))", ["float64 [6, 5]"]),
        ("Source(**SOURCE | dict(train=ArraySplit(IMAGES, LABELS + 1)))", ["label 2", "train"]),
        ("Source(**SOURCE | dict(train=ArraySplit(IMAGES, LABELS - 1)))", ["no labels", "train"]),
        ("Source(**SOURCE | dict(test=ArraySplit(IMAGES, LABELS / 2)))", ["float64 [4]", "test"]),
        (
            "Source(**SOURCE | dict(test=ArraySplit(IMAGES[:0], LABELS[:0])))",
            ["no readable", "test"],
        ),
        ("Source(**SOURCE | dict(test=[1, 2]))", ["test split", "a list without labels"]),
        ("source_from_arrays(dict(x_train=IMAGES))", ["given as arrays", "no y_train"]),
    ],
)
def test_a_wrong_module_is_refused_in_one_line(tmp_path, returned, words):
    # Catches a mistake that shows only as a traceback, or as nonsense after hours of training.
    (tmp_path / "wrong.py").write_text(ARRAYS + returned)
    message = error(str(tmp_path / "wrong.py"))
    assert all(word in message for word in words), message


def test_a_label_beyond_the_classes_is_found_while_reading(tmp_path):
    # Catches labels that a split does not list and that are out of range.
    module = """Source(**SOURCE | dict(train=Unlisted()))

class Unlisted:
    labels = None

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return Example(IMAGES[index], index)
"""
    (tmp_path / "wrong.py").write_text(ARRAYS + module)
    assert "label 3" in error(str(tmp_path / "wrong.py"))


def test_a_missing_module_is_refused(tmp_path):
    # Catches a misspelt path that is taken for a data set of TFDS.
    assert "absent.py" in error(str(tmp_path / "absent.py"))
    (tmp_path / "empty.py").write_text("")
    assert "no function `create`" in error(str(tmp_path / "empty.py"))
