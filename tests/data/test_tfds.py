"""Data sets of TFDS, some of one's own: what is read, and every error a user can cause."""

import json
import socket
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from loading import config, error

from drnas_jax.data import load


@pytest.fixture
def prepare(tmp_path):
    """Makes a TFDS data set 'own' of PNG files under the test's directory, which it returns."""
    tfds.disable_progress_bar()

    def prepare(splits, shape=(6, 5, 3), label=("cat", "dog"), title="own"):
        features = {
            "image": tfds.features.Image(shape=shape),
            "label": tfds.features.ClassLabel(names=label) if isinstance(label, tuple) else label,
        }

        class Images(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            name = title
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                kinds = tfds.features.FeaturesDict(features)
                return tfds.core.DatasetInfo(builder=self, features=kinds)

            def _split_generators(self, dl_manager):
                del dl_manager
                return {split: self._generate_examples(x) for split, x in splits.items()}

            def _generate_examples(self, examples):
                for i, (image, label) in enumerate(examples):
                    # Encoded here: TFDS would need TensorFlow to.
                    png = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
                    yield i, {"image": png, "label": label}

        builder = Images(data_dir=tmp_path / title)
        builder.download_and_prepare(file_format="array_record")
        return str(tmp_path / title)

    return prepare


def examples(n, shape=(6, 5, 3), labels=(0, 1)):
    random = np.random.default_rng(n)
    return [(random.integers(0, 256, shape, np.uint8), labels[i % len(labels)]) for i in range(n)]


def as_set(images, labels):
    """Images with their labels, whatever their order: TFDS shuffles them."""
    return {(x.tobytes(), int(y)) for x, y in zip(images, labels, strict=True)}


def test_tfds_set_of_ones_own_is_read_from_its_files(prepare, capsys):
    train, test = examples(600), examples(4)
    directory = prepare({"train": train, "test": test})
    capsys.readouterr()
    data = load(config("own", dir=directory))
    assert as_set(data.images, data.labels) == as_set(*zip(*train, strict=True))
    assert as_set(data.test_images, data.test_labels) == as_set(*zip(*test, strict=True))
    assert data.classes == ("cat", "dog")
    assert data.flip
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "other", [{}, {"test": examples(3, labels=(-1,))}], ids=["no", "unlabelled"]
)
def test_tfds_validation_stands_in_for_the_test_split(prepare, other):
    valid = examples(5)
    directory = prepare({"train": examples(9), "validation": valid, **other})
    data = load(config("own", dir=directory))
    assert as_set(data.test_images, data.test_labels) == as_set(*zip(*valid, strict=True))


def test_tfds_gray_images_and_flip(prepare):
    train = examples(9, shape=(28, 28, 1))
    directory = prepare({"train": train, "test": train}, shape=(28, 28, 1), title="mnist_like")
    data = load(config("mnist_like", dir=directory))
    assert data.images.shape == (9, 28, 28, 1)
    assert as_set(data.images, data.labels) == as_set(*zip(*train, strict=True))
    assert not data.flip
    assert load(config("mnist_like", dir=directory, flip="yes")).flip


@pytest.mark.parametrize(
    ("splits", "label", "expected"),
    [
        (("train", "test"), np.int64, "with a class label each: it has image, label"),
        (("train",), ("cat", "dog"), "'test' and 'validation', but has train (4)"),
        (("train", "test"), ("cat",), "at least 2 classes, but has cat"),
    ],
)
def test_tfds_set_that_does_not_fit(prepare, splits, label, expected):
    directory = prepare(dict.fromkeys(splits, examples(4, labels=(0,))), label=label)
    assert expected in error("own", dir=directory)


def test_tfds_set_without_labels(prepare):
    directory = prepare({"train": examples(4, labels=(-1,)), "test": examples(4)})
    assert "no labels in its train split" in error("own", dir=directory)


def test_tfds_set_in_another_format_or_broken(prepare):
    directory = prepare({"train": examples(4), "test": examples(4)})
    files = Path(directory, "own", "1.0.0")
    info = json.loads((files / "dataset_info.json").read_text())
    (files / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    message = error("own", dir=directory)
    assert "prepared as tfrecord" in message
    assert "file_format='array_record'" in message

    (files / "dataset_info.json").write_text(json.dumps(info))
    next(files.glob("*train*")).unlink()
    assert "is broken" in error("own", dir=directory)


def test_tfds_set_with_an_empty_split(prepare):
    directory = prepare({"train": examples(4), "test": examples(4)})
    file = Path(directory, "own", "1.0.0", "dataset_info.json")
    info = json.loads(file.read_text())
    next(split for split in info["splits"] if split["name"] == "test")["shardLengths"] = ["0"]
    file.write_text(json.dumps(info))
    assert "but has train (4), test (0)" in error("own", dir=directory)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        pytest.fail("tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("directory", ["", "absent", "empty"])
def test_tfds_set_that_is_not_prepared(directory, tmp_path, no_network, capsys):
    (tmp_path / "empty").mkdir()
    where = str(tmp_path / directory) if directory else ""
    message = error("cifar100", dir=where)
    assert "is not prepared" in message
    argument = f", data_dir='{where}'" if where else ""
    assert f"tfds.builder('cifar100'{argument}).download_and_prepare(" in message
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "name", ["", "cifra10", "huggingface:cifar10", "../cifar10", "cifar10:0.0.1"]
)
def test_tfds_name_that_does_not_exist(name, tmp_path, no_network, capsys):
    message = error(name, dir=str(tmp_path))
    assert repr(name) in message
    assert "'folder'" in message
    assert capsys.readouterr().out == ""
