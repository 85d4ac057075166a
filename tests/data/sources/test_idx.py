"""IDX files, the format of MNIST: read as published, or refused in one line."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from loading import config, error

from drnas_jax.data import load, open_source
from drnas_jax.data.sources.idx import Options

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
COUNTS = {"train": 12, "test": 6}


def images(split):
    return np.random.default_rng(len(split)).integers(0, 256, (COUNTS[split], 8, 7), np.uint8)


def labels(split, first=0):
    return (np.arange(COUNTS[split]) % 3 + first).astype(np.uint8)


def idx(array):
    """Returns an array as the bytes of an IDX file."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write(folder, prefix="", test="t10k", end="-ubyte.gz", dash="-", first=0):
    """Writes the four files of a data set; returns their folder."""
    folder.mkdir(exist_ok=True)
    for split, stored in (("train", "train"), ("test", test)):
        for kind, array in (("images", images(split)), ("labels", labels(split, first))):
            content = idx(array)
            name = f"{prefix}{stored}-{kind}{dash}idx{array.ndim}{end}"
            packed = gzip.compress(content) if end.endswith(".gz") else content
            (folder / name).write_bytes(packed)
    return folder


@pytest.mark.parametrize(("end", "dash"), [("-ubyte.gz", "-"), ("-ubyte", "-"), ("-ubyte", ".")])
def test_all_images_are_read(end, dash, tmp_path):
    # Catches rows taken for columns, and names that some programs make when they unpack.
    data = load(config("idx", dir=str(write(tmp_path, end=end, dash=dash))))
    np.testing.assert_array_equal(data.images[..., 0], images("train"))
    np.testing.assert_array_equal(data.test_images[..., 0], images("test"))
    np.testing.assert_array_equal(data.labels, labels("train"))
    np.testing.assert_array_equal(data.test_labels, labels("test"))
    assert data.classes == ("0", "1", "2")
    assert data.shape == (8, 7, 1) and not data.flip
    assert load(config("idx", dir=str(tmp_path), flip="yes")).flip


def test_packed_and_unpacked_files_are_one_data_set(tmp_path):
    # Catches a folder that was unpacked in place and counts as two sets, or as another one.
    packed = load(config("idx", dir=str(write(tmp_path))))
    both = load(config("idx", dir=str(write(tmp_path, end="-ubyte"))))
    assert both.fingerprint == packed.fingerprint
    # A browser may unpack a file and leave its name.
    file = tmp_path / "train-labels-idx1-ubyte.gz"
    (tmp_path / "train-labels-idx1-ubyte").replace(file)
    assert load(config("idx", dir=str(tmp_path))).fingerprint == packed.fingerprint


def test_only_files_of_the_right_names_count(tmp_path):
    # Catches a folder or a file of macOS beside the files that is taken for one of them.
    write(tmp_path, end="-ubyte", dash=".")
    (tmp_path / "train-images-idx3-ubyte").mkdir()
    (tmp_path / "._train-images.idx3-ubyte").write_bytes(b"x")
    (tmp_path / "t10k-labels.idx1-ubyte").rename(tmp_path / "T10K-Labels.idx1-ubyte")
    assert load(config("idx", dir=str(tmp_path))).count == COUNTS["train"]


def test_emnist_is_turned_upright_and_its_labels_count_from_0(tmp_path):
    # Catches letters that lie on their side, and a class 0 that no image has.
    write(tmp_path, "emnist-letters-", test="test", first=1)
    source = open_source(config("idx", dir=str(tmp_path)))
    np.testing.assert_array_equal(source.train.images[..., 0], images("train").swapaxes(1, 2))
    np.testing.assert_array_equal(source.test.labels, labels("test"))
    assert source.classes == ("1", "2", "3")
    assert "emnist-letters-test-labels-idx1-ubyte.gz" in source.notes[0]
    assert "rows and columns" in source.notes[1]


def test_one_of_several_sets_is_chosen_by_its_prefix(tmp_path):
    # Catches images of one set with the labels of another.
    write(tmp_path, "emnist-letters-", test="test", first=1)
    write(tmp_path, "emnist-digits-", test="test")
    message = error("idx", dir=str(tmp_path))
    assert "'emnist-digits-', 'emnist-letters-'" in message and "data.options.prefix" in message
    for prefix, names in (("emnist-letters-", "123"), ("emnist-digits-", "012")):
        source = open_source(config("idx", dir=str(tmp_path), options=Options(prefix)))
        assert source.classes == tuple(names)
    with pytest.raises(ValueError, match="holds no IDX files that begin with 'kmnist-'"):
        open_source(config("idx", dir=str(tmp_path), options=Options("kmnist-")))


@pytest.mark.parametrize("name", ["", "absent", "empty"])
def test_a_folder_without_the_files_is_refused(name, tmp_path):
    # Catches a message that does not say which files are expected, or where to get some.
    (tmp_path / "empty").mkdir()
    message = error("idx", dir=str(tmp_path / name) if name else "")
    assert "train-images-idx3-ubyte" in message and "dataset-fashion-mnist" in message


def test_missing_and_doubled_files_are_named(tmp_path):
    # Catches a training set that is taken for the test set, and a choice between two files.
    write(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").rename(tmp_path / "labels.gz")
    assert "lacks t10k-labels-idx1-ubyte (or .gz)" in error("idx", dir=str(tmp_path))
    write(tmp_path, test="test")
    assert "both t10k-images-idx3-ubyte.gz and test-images" in error("idx", dir=str(tmp_path))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "begins with b''"),
        (b"<!DOCTYPE html>", "not an IDX file"),
        (idx(images("train"))[:-1], "damaged: it has 671 bytes, but its header says 12 x 8 x 7"),
        (idx(images("train")) + b"\0", "damaged"),
        (idx(labels("train")), "not an IDX file of unsigned bytes with 3 dimensions"),
        (gzip.compress(idx(images("train")))[:-20], "cannot be read"),
        (gzip.compress(b"")[:4] + b"nothing", "cannot be read"),
        (bytes([0, 0, 8, 3, 0, 0]), "not an IDX file"),
        (bytes([0, 0, 8, 3]) + b"\xff" * 12, "damaged"),
        (idx(images("test")), "12 labels"),
    ],
)
def test_damaged_files_are_refused(content, expected, tmp_path):
    # Catches a page of an error in place of a file, a traceback of gzip, and half an array.
    (write(tmp_path) / "train-images-idx3-ubyte.gz").write_bytes(content)
    assert expected in error("idx", dir=str(tmp_path))


@pytest.mark.slow
def test_the_real_fashion_mnist():
    # Catches what only the published files have: their size, their compression and their order.
    if not DEBIAN.is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    data = load(config("idx", dir=str(DEBIAN)))
    assert data.images.shape == (60_000, 28, 28, 1)
    assert data.test_images.shape == (10_000, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(data.labels), [6000] * 10)
    np.testing.assert_array_equal(np.bincount(data.test_labels), [1000] * 10)
    # Values that many preprocessing scripts state.
    np.testing.assert_allclose(data.mean, 0.2860, atol=1e-4)
    np.testing.assert_allclose(data.std, 0.3530, atol=1e-4)
    # Trousers are tall: rows in place of columns would show here.
    trousers = data.images[data.labels == 1].mean((0, 3))
    assert trousers.mean(0)[:6].max() < 5 < 20 < trousers.mean(1)[:6].min()
