"""Confusions between classes, and the pictures of the largest ones."""

import dataclasses

import jax
import numpy as np
import pytest

from drnas_jax.data import Dataset
from drnas_jax.errors import UserError
from drnas_jax.files import write_arrays
from drnas_jax.phases.confusions import (
    Predictions,
    evaluation_of,
    join,
    read_evaluation,
    shard_predictions,
)
from drnas_jax.training.devices import make_mesh
from drnas_jax.training.programs import sum_program


def dataset(count, side=4, channels=3):
    """Returns a data set whose test image number i has the value i in all pixels."""
    images = np.broadcast_to(
        np.arange(count, dtype=np.uint8)[:, None, None, None], (count, side, side + 2, channels)
    )
    labels = np.zeros(count, np.int32)
    return Dataset("numbers", images, labels, images, labels, ("a", "b", "c"), flip=False)


def evaluation(**changes):
    predictions = Predictions(
        number=np.arange(9),
        label=np.array([0, 0, 0, 0, 0, 1, 1, 0, 1]),
        predicted=np.array([0, 1, 1, 1, 1, 0, 0, 2, 1]),
        confidence=np.float32([0.9, 0.4, 0.9, 0.6, 0.7, 0.5, 0.8, 0.99, 1]),
    )
    found = evaluation_of(predictions, ("a", "b", "c"), dataset(9))
    return dataclasses.replace(found, **changes)


def test_predictions_of_several_devices_are_joined_in_order():
    # Would catch examples that are lost, counted twice or in the order of the devices, and padding
    # that counts.
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(12, 3)).astype(np.float32)
    labels = rng.integers(0, 3, 12).astype(np.int32)
    weight = np.float32([1] * 4 + [0] + [1] * 4 + [0] * 3)
    found = {}
    for devices in (1, 2):
        program = sum_program(
            lambda logits, raw, labels, weight, n=devices: shard_predictions(
                logits[raw[labels]], raw[12 + labels], weight, n
            ),
            make_mesh(jax.devices()[:devices]),
        )
        raw = np.concatenate([np.arange(12), labels]).astype(np.int32)
        batches = [
            program(logits, raw, np.arange(i, i + 4, dtype=np.int32), weight[i : i + 4])
            for i in (0, 4, 8)
        ]
        found[devices] = join(batches)
    kept = np.flatnonzero(weight)
    for one, other in zip(found[1], found[2], strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(found[2].number, kept)
    np.testing.assert_array_equal(found[2].label, labels[kept])
    np.testing.assert_array_equal(found[2].predicted, logits[kept].argmax(1))
    shares = np.exp(logits[kept]) / np.exp(logits[kept]).sum(1, keepdims=True)
    np.testing.assert_allclose(found[2].confidence, shares.max(1), rtol=1e-6)  # float32


def test_confusions_are_counted_and_pictured():
    # Would catch rows and columns that are exchanged, and pictures of other images.
    found = evaluation()
    np.testing.assert_array_equal(found.confusion, [[1, 4, 1], [2, 1, 0], [0, 0, 0]])
    assert found.images == 9
    np.testing.assert_array_equal(found.class_accuracy, [1 / 6, 1 / 3, np.nan])
    assert found.largest(2) == [(0, 1, 4), (1, 0, 2)]
    # Of each confusion the three most confident errors.
    np.testing.assert_array_equal(found.number, [2, 4, 3, 6, 5, 7])
    np.testing.assert_array_equal(found.label, [0, 0, 0, 1, 1, 0])
    np.testing.assert_array_equal(found.predicted, [1, 1, 1, 0, 0, 2])
    np.testing.assert_array_equal(found.picture[:, 0, 0, 0], found.number)


def test_large_images_become_small_pictures():
    # Would catch a file of the size of the photographs, and squeezed pictures.
    predictions = Predictions(*np.int64([[3], [0], [1]]), np.float32([0.5]))
    for channels in (1, 3):
        images = dataset(4, 190, channels)
        found = evaluation_of(predictions, ("a", "b", "c"), images)
        assert found.picture.shape == (1, 95, 96, channels)
        assert (found.picture == 3).all()


def test_a_file_is_read_back(tmp_path):
    # Would catch a field that is lost on the way to the report.
    file = tmp_path / "evaluation.npz"
    assert read_evaluation(file) is None
    first = evaluation()
    first.save(file)
    again = read_evaluation(file)
    for field in dataclasses.fields(first):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(again, field.name))
    with np.load(file) as arrays:
        np.testing.assert_array_equal(arrays["class_accuracy"], first.class_accuracy)


def test_a_network_without_an_error_has_no_picture(tmp_path):
    # Would catch a page that fails for a perfect network.
    predictions = Predictions(*np.int64([[0, 1], [0, 1], [0, 1]]), np.float32([1, 1]))
    evaluation_of(predictions, ("a", "b", "c"), dataset(2)).save(tmp_path / "evaluation.npz")
    assert not read_evaluation(tmp_path / "evaluation.npz").largest(5)


@pytest.mark.parametrize(
    "change",
    [
        {"confusion": np.zeros((2, 2), int)},
        {"confusion": np.full((3, 3), -1)},
        {"label": np.full(6, 7)},
        {"picture": np.zeros((6, 2, 2, 3))},
        {"picture": np.zeros((6,), np.uint8)},
        {"picture": np.zeros((6, 2, 2, 2), np.uint8)},
        {"number": np.array(3)},
        {"classes": np.array([object()], object)},
        None,
        b"PK\x03\x04",
        b"no zip",
        b"",
    ],
)
def test_a_damaged_file_is_named(tmp_path, change):
    # Would catch a traceback instead of one line.
    file = tmp_path / "evaluation.npz"
    evaluation().save(file)
    if change is None:
        file.write_bytes(file.read_bytes()[:-700])
    elif isinstance(change, bytes):
        file.write_bytes(change)
    else:
        with np.load(file) as arrays:
            write_arrays(file, {**arrays, **change})
    with pytest.raises(UserError, match=r"evaluation\.npz is damaged") as caught:
        read_evaluation(file)
    assert "\n" not in str(caught.value)
