"""Arrays in an .npz file: read as they are; any other file is refused in one line."""

import pickle

import numpy as np
import pytest
from loading import config, error

from drnas_jax.data import from_arrays, load


def arrays(**changes):
    random = np.random.default_rng(0)
    values = {}
    for name, n in (("train", 9), ("test", 6)):
        values[f"x_{name}"] = random.integers(0, 256, (n, 6, 5, 3), np.uint8)
        values[f"y_{name}"] = np.arange(n) % 3
    return values | changes


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_is_read_as_its_arrays(save, tmp_path):
    # Catches images in another order, and a file that counts as other data than its arrays.
    save(tmp_path / "my images.npz", **arrays())
    data, expected = load(config("npz", dir=str(tmp_path / "my images.npz"))), arrays()
    np.testing.assert_array_equal(data.images, expected["x_train"])
    np.testing.assert_array_equal(data.labels, expected["y_train"])
    np.testing.assert_array_equal(data.test_images, expected["x_test"])
    np.testing.assert_array_equal(data.test_labels, expected["y_test"])
    assert data.fingerprint == from_arrays(expected, config("digits")).fingerprint


@pytest.mark.parametrize("name", ["", "absent.npz", "."])
def test_a_missing_file_is_refused(name, tmp_path):
    # Catches a folder that is searched for any file.
    directory = str(tmp_path / name) if name else ""
    message = error("npz", dir=directory)
    assert f"data.dir is {directory!r}" in message and "x_train" in message


class Trap:
    """An object whose pickle writes a file as soon as it is read."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


def test_pickles_are_never_read(tmp_path):
    # Catches code in a downloaded file that runs.
    trap, written = Trap(tmp_path / "trap"), tmp_path / "images.npz"
    np.savez(written, **arrays(y_test=np.array([trap] * 6, object)))
    assert "allow_pickle=False" in error("npz", dir=str(written))
    written.write_bytes(pickle.dumps({"x_train": trap}))
    assert "is not an .npz file" in error("npz", dir=str(written))
    assert not (tmp_path / "trap").exists()


def test_damaged_files_are_refused(tmp_path):
    # Catches a traceback of zipfile, zlib or NumPy, and images of which a part is lost.
    file = tmp_path / "images.npz"
    np.savez_compressed(file, **arrays())
    whole = file.read_bytes()
    for content in (b"", b"x", whole[:-60], whole[:300] + bytes(100) + whole[400:]):
        file.write_bytes(content)
        assert str(file) in error("npz", dir=str(file))
    np.savez(file, **arrays())
    plain = file.read_bytes()
    flag, method = plain.index(b"PK\1\2") + 8, plain.index(b"PK\1\2") + 10
    for content in (
        plain[:6] + b"\1" + plain[7:flag] + b"\1" + plain[flag + 1 :],  # encrypted
        plain[:8] + b"a" + plain[9:method] + b"a" + plain[method + 1 :],  # packed in another way
        plain.replace(b"(9, 6, 5, 3)", b"(9, 6, 5, 3'"),
        plain.replace(b"(9, 6, 5, 3)", b"(9, 9**9999)"),
    ):
        file.write_bytes(content)
        assert str(file) in error("npz", dir=str(file))
    with file.open("wb") as npy:
        np.save(npy, arrays()["x_train"])
    assert "is not an .npz file" in error("npz", dir=str(file))


def test_other_arrays_are_refused(tmp_path):
    # Catches arrays that are not checked if they come from a file; test_arrays.py has all cases.
    file = tmp_path / "images.npz"
    np.savez(file, **arrays(x_train=np.zeros((9, 6, 5), np.uint8)))
    message = error("npz", dir=str(file))
    assert str(file) in message and "uint8 [9, 6, 5]: expected uint8 [n, h, w, c]" in message
    np.savez(file, **arrays(x_val=np.zeros(3)))
    assert "'x_val'" in error("npz", dir=str(file))
