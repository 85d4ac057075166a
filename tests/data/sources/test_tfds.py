"""Data sets of TFDS: what is read, and every error that a user can cause."""

import json
import socket
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from loading import config, error

from drnas_jax.data import load, open_source


@pytest.fixture
def prepare(tmp_path):
    """Prepares a TFDS data set 'own' of PNG files, and returns its directory."""
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
                    # Encoded here, for which TFDS would need TensorFlow.
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
    """Returns images with their labels without an order, since TFDS shuffles them."""
    return {(x.tobytes(), int(y)) for x, y in zip(images, labels, strict=True)}


def test_all_examples_are_read(prepare, capsys):
    # Catches records that are lost or read with labels of others.
    train, test = examples(600), examples(4)
    directory = prepare({"train": train, "test": test})
    capsys.readouterr()
    data = load(config("own", dir=directory))
    assert as_set(data.images, data.labels) == as_set(*zip(*train, strict=True))
    assert as_set(data.test_images, data.test_labels) == as_set(*zip(*test, strict=True))
    assert data.classes == ("cat", "dog")
    assert data.flip
    assert capsys.readouterr().out == ""


def test_a_fingerprint_changes_with_the_records(prepare):
    # Catches a set that was prepared again from other images.
    directory = prepare({"train": examples(6), "test": examples(4)})
    prints = [open_source(config("own", dir=directory)).fingerprint for _ in range(2)]
    for file in sorted(Path(directory).rglob("*.array_record*")):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        prints.append(open_source(config("own", dir=directory)).fingerprint)
    assert len(prints) == 4
    assert prints[0] == prints[1] and len(set(prints)) == 3


@pytest.mark.parametrize(
    "other", [{}, {"test": examples(3, labels=(-1,))}], ids=["no", "unlabelled"]
)
def test_validation_replaces_a_test_split_that_is_missing_or_unlabelled(prepare, other):
    # Catches ImageNet's test split, whose labels are secret.
    valid = examples(5)
    directory = prepare({"train": examples(9), "validation": valid, **other})
    data = load(config("own", dir=directory))
    assert as_set(data.test_images, data.test_labels) == as_set(*zip(*valid, strict=True))


def test_gray_images_and_characters_that_are_not_mirrored(prepare):
    # Catches letters that augmentation turns into others.
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
        (("train", "test"), np.int64, "has the features image, label: expected unsigned images"),
        (("train",), ("cat", "dog"), "has the splits train (4): expected images in 'train'"),
        (("train", "test"), ("cat",), "at least 2 classes, but has cat"),
    ],
)
def test_a_set_of_something_else_is_refused(prepare, splits, label, expected):
    # Catches a data set of detection or text.
    directory = prepare(dict.fromkeys(splits, examples(4, labels=(0,))), label=label)
    assert expected in error("own", dir=directory)


def test_a_set_without_labels_is_refused(prepare):
    # Catches training on the label -1.
    directory = prepare({"train": examples(4, labels=(-1,)), "test": examples(4)})
    assert "no labels in its train split" in error("own", dir=directory)


def test_another_format_and_a_missing_file_are_refused(prepare):
    # Catches an error of TFDS that does not say how to prepare the data.
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


def test_an_empty_split_is_refused(prepare):
    # Catches a download that was interrupted.
    directory = prepare({"train": examples(4), "test": examples(4)})
    file = Path(directory, "own", "1.0.0", "dataset_info.json")
    info = json.loads(file.read_text())
    next(split for split in info["splits"] if split["name"] == "test")["shardLengths"] = ["0"]
    file.write_text(json.dumps(info))
    assert "has the splits train (4), test (0)" in error("own", dir=directory)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        pytest.fail("tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("directory", ["", "absent", "empty"])
def test_a_set_that_is_not_prepared_is_refused(directory, tmp_path, no_network, capsys):
    # Catches a download that nobody asked for.
    (tmp_path / "empty").mkdir()
    where = str(tmp_path / directory) if directory else ""
    message = error("svhn_cropped", dir=where)
    assert "is not prepared" in message
    argument = f", data_dir='{where}'" if where else ""
    assert f"tfds.builder('svhn_cropped'{argument}).download_and_prepare(" in message
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "name", ["", "cifra10", "huggingface:cifar10", "../cifar10", "cifar10:0.0.1"]
)
def test_a_name_that_does_not_exist_is_refused(name, tmp_path, no_network, capsys):
    # Catches a misspelt name that goes to the network.
    message = error(name, dir=str(tmp_path))
    assert repr(name) in message
    assert "'digits', 'folder'" in message and "FILE.py" in message
    assert capsys.readouterr().out == ""
