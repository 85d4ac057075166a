"""Sources: what is decoded, against independent reading, and every error a user can cause."""

import json
import socket
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from drnas_jax.config import DataConfig
from drnas_jax.configs import base
from drnas_jax.data import Dataset, Stream, load
from drnas_jax.errors import UserError

TFDS = Path(__file__).parents[2].parent / "shared" / "tfds"


def config(name, **changes):
    """The fields of configs/base.py, with others changed."""
    fields = {**base.get_config().data.to_dict(), "name": name, **changes}
    return DataConfig(**fields)


def error(name, **changes):
    """The message of the error that `load` gives, which must be one line."""
    with pytest.raises(UserError) as raised:
        load(config(name, **changes))
    message = str(raised.value)
    assert "\n" not in message
    return message


def toy(images):
    images = np.asarray(images, np.uint8)
    return Dataset("toy", images, np.zeros(len(images), np.int32), images, None, ("a", "b"), True)


@pytest.fixture(scope="session")
def shared_tfds():
    if not TFDS.is_dir():
        pytest.skip(f"needs prepared TFDS data in {TFDS}")
    return str(TFDS)


@pytest.fixture(scope="session")
def cifar10(shared_tfds):
    return load(config("cifar10", dir=shared_tfds))


# Dataset


@pytest.mark.parametrize("shape", [(50, 9, 7, 3), (3000, 32, 32, 1)])
def test_mean_and_std_are_exact(shape):
    images = np.random.default_rng(0).integers(0, 200, shape, np.uint8)
    data, exact = toy(images), images / 255
    assert data.mean.dtype == data.std.dtype == np.float32
    np.testing.assert_allclose(data.mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(data.std, exact.std((0, 1, 2)), rtol=1e-6)
    assert data.mean is data.mean  # computed once


def test_std_of_a_constant_channel_is_one():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 2), np.uint8)
    images[..., 1] = 77
    data = toy(images)
    assert data.std[1] == 1
    assert 0 < data.std[0] < 1
    assert data.mean[1] == np.float32(77 / 255)


# Digits


def test_digits_are_all_of_scikit_learns():
    data = load(config("digits"))
    assert data.images.dtype == data.test_images.dtype == np.uint8
    assert data.labels.dtype == data.test_labels.dtype == np.int32
    assert data.images.shape[1:] == data.test_images.shape[1:] == (8, 8, 1)
    assert data.classes == tuple("0123456789")
    assert data.num_classes == 10
    assert not data.flip
    assert data.images.min() == 0
    assert data.images.max() == 255

    bunch = load_digits()
    images = np.concatenate([data.images, data.test_images])[..., 0] / 255 * 16
    labels = np.concatenate([data.labels, data.test_labels])
    ours = sorted((*np.rint(x).ravel(), y) for x, y in zip(images, labels, strict=True))
    assert ours == sorted((*x.ravel(), y) for x, y in zip(bunch.images, bunch.target, strict=True))


def test_digits_test_split_is_a_fixed_fifth_of_each_class():
    data, again = load(config("digits")), load(config("digits"))
    np.testing.assert_array_equal(data.test_images, again.test_images)
    train, test = np.bincount(data.labels), np.bincount(data.test_labels)
    np.testing.assert_array_equal(test, np.rint(0.2 * (train + test)))
    # Drawn from all of them: the first and the last come from different writers.
    places = {image.tobytes(): i for i, image in enumerate(load_digits().images)}
    test = np.rint(data.test_images[..., 0] / 255 * 16)
    held_out = [places[image.tobytes()] for image in test]
    assert 850 < np.mean(held_out) < 950  # all 1,797: 898, standard deviation 25


# TFDS


def test_cifar10_is_complete_and_has_its_known_statistics(cifar10):
    assert cifar10.images.shape == (50_000, 32, 32, 3)
    assert cifar10.test_images.shape == (10_000, 32, 32, 3)
    assert cifar10.images.dtype == np.uint8
    assert cifar10.labels.dtype == np.int32
    assert cifar10.classes[:2] == ("airplane", "automobile")
    assert cifar10.flip
    np.testing.assert_array_equal(np.bincount(cifar10.labels), [5000] * 10)
    np.testing.assert_array_equal(np.bincount(cifar10.test_labels), [1000] * 10)
    # As published everywhere; the copy here went through JPEG, which takes some contrast.
    np.testing.assert_allclose(cifar10.mean, [0.4914, 0.4822, 0.4465], atol=2e-3)
    np.testing.assert_allclose(cifar10.std, [0.2470, 0.2435, 0.2616], atol=2e-3)


@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar10_equals_what_tfds_decodes(cifar10, shared_tfds, split):
    source = tfds.data_source("cifar10", data_dir=shared_tfds, split=split, download=False)
    train = split == "train"
    images = cifar10.images if train else cifar10.test_images
    labels = cifar10.labels if train else cifar10.test_labels
    for i in (0, 1, 255, 256, 5000, len(source) - 1):
        np.testing.assert_array_equal(images[i], source[i]["image"])
        assert labels[i] == source[i]["label"]


def test_what_exceeds_the_memory_limit_is_not_decoded(shared_tfds, monkeypatch):
    calls, decode = [], cv2.imdecode

    def counted(*args):
        calls.append(args)
        if len(calls) > 100:
            raise UserError("enough")
        return decode(*args)

    monkeypatch.setattr(cv2, "imdecode", counted)
    # 60,000 * 3,072 bytes are 175.8 MB of 2 ** 20 bytes.
    given = dict(dir=shared_tfds, mean=(0.5,) * 3, std=(0.2,) * 3)
    data = load(config("cifar10", memory_limit_mb=175, **given))
    assert isinstance(data, Stream)
    assert (data.count, data.test_count, data.shape) == (50_000, 10_000, (32, 32, 3))
    assert data.num_classes == 10 and data.flip
    assert len(calls) == 1
    with pytest.raises(UserError, match="enough"):
        load(config("cifar10", memory_limit_mb=176, **given))


def test_statistics_of_a_stream_are_estimated(shared_tfds, cifar10):
    data = load(config("cifar10", dir=shared_tfds, memory_limit_mb=1))
    # Of 1,024 images: the mean of an image's mean has a standard deviation of 0.12 / 32.
    np.testing.assert_allclose(data.mean, cifar10.mean, atol=0.015)
    np.testing.assert_allclose(data.std, cifar10.std, atol=0.015)


def test_given_statistics_are_used(shared_tfds):
    given = dict(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    gray = dict(mean=(0.1,), std=(0.4,))
    for data, own in (
        (load(config("cifar10", dir=shared_tfds, memory_limit_mb=1, **given)), given),
        (load(config("digits", **gray)), gray),
    ):
        np.testing.assert_allclose(data.mean, own["mean"])
        np.testing.assert_allclose(data.std, own["std"])
    message = error("digits", **given)
    assert "data.mean is (0.1, 0.2, 0.3)" in message and "1 channels" in message


def test_imagenet_as_it_is_differs_in_size(shared_tfds):
    assert "set data.image_size" in error("imagenet2012", dir=shared_tfds)


def test_imagenet_is_resized(shared_tfds):
    data = load(config("imagenet2012", dir=shared_tfds, image_size=16))
    assert data.images.shape == (384, 16, 16, 3)
    assert data.test_images.shape == (128, 16, 16, 3)  # its validation split
    assert data.num_classes == 1000
    # The middle of the picture, not all of it squeezed, and in RGB.
    source = tfds.data_source("imagenet2012", data_dir=shared_tfds, split="train", download=False)
    wide = next(
        i for i in range(384) if source[i]["image"].shape[1] > 1.3 * len(source[i]["image"])
    )
    image = source[wide]["image"].astype(float)
    side = len(image)
    left = (image.shape[1] - side) // 2
    middle = image[:, left : left + side].mean((0, 1))
    # The means of a picture and of its exact area averages differ by the crop's rounding only.
    np.testing.assert_allclose(data.images[wide].mean((0, 1)), middle, atol=3)


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


# Folders


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.asarray(image))


@pytest.fixture
def folder(tmp_path):
    """Ten colour images of each of two classes: number i is filled with RGB (i, class, 200)."""
    for label, name in enumerate(["cat", "dog"]):
        for i in range(10):
            rgb = np.full((6, 5, 3), (i, label, 200), np.uint8)
            write(tmp_path / name / f"{i}.png", rgb[..., ::-1])
    return tmp_path


def test_folder_holds_out_a_fifth(folder):
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


def test_folder_with_its_own_test_split(tmp_path):
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
    for i in range(2):
        write(tmp_path / "alpha" / f"{i}.png", np.full((3, 3, 4), (30, 20, 10, 0), np.uint8))
        write(tmp_path / "deep" / f"{i}.png", np.full((3, 3, 3), (7710, 5140, 2570), np.uint16))
        write(tmp_path / "gray" / f"{i}.png", np.full((3, 3), 99, np.uint8))
    data = load(config("folder", dir=str(tmp_path)))
    assert data.images.dtype == np.uint8
    np.testing.assert_array_equal(data.images[:, 1, 1], [(10, 20, 30), (10, 20, 30), (99, 99, 99)])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_folder_of_gray_images_stays_gray(tmp_path, dtype):
    for i in range(3):
        value = 50 + i if dtype == np.uint8 else (50 + i) * 256
        for name in "ab":
            write(tmp_path / name / f"{i}.png", np.full((3, 4), value, dtype))
    data = load(config("folder", dir=str(tmp_path)))
    assert data.images.shape == (4, 3, 4, 1)
    assert set(np.concatenate([data.images, data.test_images]).ravel()) == {50, 51, 52}


def test_folder_ignores_hidden_files(folder):
    (folder / ".cache").mkdir()
    (folder / "notes.txt").write_text("beside the classes")
    (folder / "cat" / ".DS_Store").write_text("no image")
    assert len(load(config("folder", dir=str(folder))).images) == 16


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n and no more"])
def test_folder_with_an_unreadable_image(folder, content):
    (folder / "dog" / "bad.png").write_bytes(content)
    assert str(folder / "dog" / "bad.png") in error("folder", dir=str(folder))
    data = load(config("folder", dir=str(folder), corrupt="skip"))
    (folder / "dog" / "bad.png").unlink()
    without = load(config("folder", dir=str(folder)))
    assert data.skipped == 1 and without.skipped == 0
    assert data.count + data.test_count == without.count + without.test_count


def test_folder_with_a_nested_folder(folder):
    (folder / "dog" / "more").mkdir()
    assert str(folder / "dog" / "more") in error("folder", dir=str(folder))


def test_folder_of_different_sizes(folder):
    write(folder / "dog" / "z.png", np.zeros((9, 12, 3), np.uint8))
    message = error("folder", dir=str(folder))
    assert "6x5 and 9x12" in message
    assert "set data.image_size" in message
    assert load(config("folder", dir=str(folder), image_size=7)).images.shape[1:] == (7, 7, 3)


def test_folder_larger_than_the_limit(tmp_path):
    for i in range(4):
        write(tmp_path / "ab"[i % 2] / f"{i}.png", np.zeros((600, 600), np.uint8))
    for limit, size, kind in ((1, 0, Stream), (1, 100, Dataset), (2, 0, Dataset)):
        fields = dict(dir=str(tmp_path), memory_limit_mb=limit, image_size=size)
        assert isinstance(load(config("folder", **fields)), kind)


def test_folder_errors(folder):
    assert "data.dir is ''" in error("folder")
    assert "is no directory" in error("folder", dir=str(folder / "absent"))
    (folder / "bird").mkdir()
    assert f"{folder / 'bird'} has no images" in error("folder", dir=str(folder))
    write(folder / "bird" / "0.png", np.zeros((6, 5, 3), np.uint8))
    assert f"{folder / 'bird'} has 1 image" in error("folder", dir=str(folder))
    assert "at least 2 classes, but has none" in error("folder", dir=str(folder / "cat"))


def test_folder_of_one_class(folder):
    (folder / "dog").rename(folder / ".dog")
    assert "at least 2 classes, but has cat" in error("folder", dir=str(folder))


# Resizing


def resized(tmp_path, image, size):
    for name in "ab":
        for i in range(2):
            write(tmp_path / name / f"{i}.png", image)
    return load(config("folder", dir=str(tmp_path), image_size=size)).images[0, ..., 0]


def test_shrinking_averages_areas(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    exact = image.reshape(4, 2, 4, 2).mean((1, 3))
    np.testing.assert_allclose(resized(tmp_path, image, 4), exact, atol=0.51)


def test_enlarging_interpolates(tmp_path):
    image = np.array([[0, 0], [200, 200]], np.uint8)
    result = resized(tmp_path, image, 4).astype(int)
    np.testing.assert_array_equal(result, [[0] * 4, [50] * 4, [150] * 4, [200] * 4])


@pytest.mark.parametrize("transpose", [False, True])
def test_long_sides_are_cut_in_the_middle(tmp_path, transpose):
    image = np.arange(4 * 9, dtype=np.uint8).reshape(4, 9)
    expected = image[:, 2:6]
    if transpose:
        image, expected = image.T, expected.T
    np.testing.assert_array_equal(resized(tmp_path, image, 4), expected)


@pytest.mark.parametrize("name", ["imagenet2012", "folder"])
def test_a_bucket_is_no_path(name):
    assert "'gs://bucket/tfds'" in error(name, dir="gs://bucket/tfds")
