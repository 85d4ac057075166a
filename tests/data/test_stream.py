"""Streams: the same batches whoever reads them, and what happens if an image cannot be read."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from loading import config, write_folder
from tensorflow_datasets.proto import tf_example_pb2

from drnas_jax.data import Dataset, Schedule, Source, Split, Stream, Subset, load
from drnas_jax.data import stream as lib
from drnas_jax.data.images import centre_crop, random_resized_crop
from drnas_jax.data.sources._tfds import _Records
from drnas_jax.data.sources.base import Example, UnreadableImage
from drnas_jax.data.stream import read_rows
from drnas_jax.errors import UserError
from drnas_jax.training.random_keys import host_generator

ROOT = Path(__file__).parents[2]
GIVEN = dict(mean=(0.5,) * 3, std=(0.2,) * 3)  # otherwise a stream reads images for them


@pytest.fixture(scope="module")
def digits():
    return load(config("digits", crop="resized", image_size=6, workers=1))


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path)


def streamed(folder, **changes):
    return load(config("folder", dir=str(folder), memory_limit_mb=0, **GIVEN, **changes))


def file_of(split, index):
    return Path(split.path(index))


def scheduled(stream, batch_size, epochs=2, steps=2, seed=3):
    """Returns a schedule of one subset and an evaluation of the last examples, as in a search."""
    index = np.arange(stream.count, dtype=np.int32)
    subsets = (Subset("weights", index),)
    return Schedule(batch_size, seed, subsets, epochs, steps, index[1 - 2 * batch_size :])


def here(stream, schedule, rows):
    """Reads all batches in this process."""
    requests = [schedule[k] for k in range(len(schedule))]
    return [read_rows(stream, request, rows, schedule.seed) for request in requests]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        for name in ("images", "labels", "weight"):
            actual, expected = getattr(one, name), getattr(other, name)
            assert actual.dtype == expected.dtype
            np.testing.assert_array_equal(actual, expected)
        assert one.skipped == other.skipped


# Batches


@pytest.mark.parametrize(
    ("workers", "start", "rows"),
    [
        (1, 0, np.arange(70)),  # more than a worker hands over at a time
        pytest.param(2, 3, np.arange(69, 0, -2), marks=pytest.mark.slow),
        pytest.param(3, 7, np.arange(5), marks=pytest.mark.slow),
        pytest.param(2, 1, np.arange(70), marks=pytest.mark.slow),
    ],
)
def test_workers_read_the_same_as_this_process(digits, workers, start, rows):
    # Catches chunks that arrive in another order, or that overwrite each other in shared memory.
    schedule = scheduled(digits, 70)
    stream = dataclasses.replace(digits, workers=workers)
    read = list(stream.batches(schedule, start, rows))
    assert_same([rows for _, rows in read], here(digits, schedule, rows)[start:])
    for k, (request, _) in enumerate(read, start):
        np.testing.assert_array_equal(request.indices, schedule[k].indices)


def test_rows_are_those_of_the_whole_batch(digits):
    # Catches randomness that depends on which process reads a row.
    schedule = scheduled(digits, 8)
    whole, *parts = (
        here(digits, schedule, rows)
        for rows in (np.arange(8), np.array([0, 1, 4, 5]), [7, 2, 3, 6])
    )
    for k, batch in enumerate(whole):
        for part, rows in zip(parts, ([0, 1, 4, 5], [7, 2, 3, 6]), strict=True):
            np.testing.assert_array_equal(part[k].images, batch.images[rows])
            np.testing.assert_array_equal(part[k].labels, batch.labels[rows])
            np.testing.assert_array_equal(part[k].weight, batch.weight[rows])


def test_a_batch_holds_the_crops_of_its_examples(digits):
    # Catches crops that follow another random stream, and labels of other images.
    schedule, rows = scheduled(digits, 8), np.arange(8)
    for k, batch in enumerate(here(digits, schedule, rows)):
        request, split = schedule[k], digits.source.train
        draws = host_generator(3, "weights/crop", request.step).random((8, 10, 4))
        for row, i in enumerate(request.indices):
            expected = (
                random_resized_crop(split[i], 1, 6, draws[row])
                if request.name
                else centre_crop(split[i], 1, 6)
            )
            np.testing.assert_array_equal(batch.images[row, ..., 0], expected)
            assert batch.labels[row] == split[i].label
        expected = np.ones(8) if request.weight is None else request.weight
        np.testing.assert_array_equal(batch.weight, expected)


def test_crops_differ_by_row_step_stream_and_seed(digits):
    # Catches a random stream that ignores one of the four.
    index = np.full(8, 5, np.int32)

    def images(seed=3, name="weights"):
        schedule = Schedule(4, seed, (Subset(name, index),), steps=2)
        return np.concatenate([batch.images for batch in here(digits, schedule, np.arange(4))])

    crops = np.concatenate([images(), images(seed=4), images(name="alpha")])
    # A few of the 24 coincide because the image is so small; if one were ignored, at least 8.
    assert len(np.unique(crops, axis=0)) > 16


@pytest.mark.parametrize("size", [0, 6])
def test_padded_images_are_those_in_memory(folder, size):
    # Catches a data set that changes when it grows beyond the memory limit.
    stream = streamed(folder, image_size=size)
    memory = load(config("folder", dir=str(folder), image_size=size))
    assert isinstance(stream, Stream) and isinstance(memory, Dataset)
    assert stream.shape == memory.shape
    test = Schedule(2, 0, evaluated=np.arange(stream.test_count, dtype=np.int32), split="test")
    for schedule in (scheduled(stream, 3), test):
        for k, batch in enumerate(here(stream, schedule, np.arange(schedule.batch_size))):
            request = schedule[k]
            images, labels = memory.arrays(request.split)
            np.testing.assert_array_equal(batch.images, images[request.indices])
            np.testing.assert_array_equal(batch.labels, labels[request.indices])
    some = np.array([3, 0])
    np.testing.assert_array_equal(stream.read_test(some), memory.test_images[some])
    np.testing.assert_array_equal(memory.read_test(some), memory.test_images[some])


# What cannot be read


def train_request(stream, indices):
    subset = Subset("weights", np.array(indices, np.int32))
    schedule = Schedule(len(indices), 0, (subset,), steps=1)
    return schedule[0]


def test_an_unreadable_file_is_named(folder):
    # Catches an error that leaves the user to look for the file among millions.
    stream = streamed(folder)
    file = file_of(stream.source.train, 4)
    for damage in (lambda: file.write_bytes(b"no image"), file.unlink):
        damage()
        with pytest.raises(UnreadableImage, match=f"{file}"):
            read_rows(stream, train_request(stream, range(8)), np.arange(8), 0)


def test_an_unreadable_record_is_named(folder):
    # Catches an error that says nothing about where in TFDS's files the image is.
    record = tf_example_pb2.Example()
    record.features.feature["image"].bytes_list.value.append(b"no image")
    record.features.feature["label"].int64_list.value.append(1)
    record.features.feature["file_name"].bytes_list.value.append(b"n01_7.JPEG")
    records = [record.SerializeToString(), b"broken"]
    split = _Records(records, "image", "label", "'own' in DIR, split train")
    stream = with_train(streamed(folder), split)
    with pytest.raises(UnreadableImage, match=r"n01_7\.JPEG, image 0 of 'own' in DIR, split train"):
        read_rows(stream, train_request(stream, [0]), np.arange(1), 0)
    with pytest.raises(UserError, match=r"'own' in DIR, split train is broken"):
        read_rows(stream, train_request(stream, [1]), np.arange(1), 0)


@pytest.mark.parametrize("crop", ["padded", "resized"])
def test_an_unreadable_image_is_replaced_and_does_not_count(folder, crop):
    # Catches a replacement that counts in the accuracy, or that depends on who reads the row.
    stream = streamed(folder, crop=crop, image_size=8, corrupt="skip")
    request = train_request(stream, range(8))
    good = read_rows(stream, request, np.arange(8), 0)
    bad = [int(request.indices[row]) for row in (2, 3, 7)]
    for i in bad:
        file_of(stream.source.train, i).write_bytes(b"no image")
    replaced = read_rows(stream, request, np.arange(8), 0)
    np.testing.assert_array_equal(replaced.weight, [1, 1, 0, 0, 1, 1, 1, 0])
    split = stream.source.train
    assert all(split.path(i) in text for i, text in zip(bad, replaced.skipped, strict=True))
    stand_in = [0, 1, 4, 4, 4, 5, 6, 0]  # the next in the batch, the first after the last
    np.testing.assert_array_equal(replaced.labels, good.labels[stand_in])
    counted = replaced.weight == 1
    np.testing.assert_array_equal(replaced.images[counted], good.images[counted])
    if crop == "padded":
        np.testing.assert_array_equal(replaced.images, good.images[stand_in])
    # The same if the rows are divided; each is counted by the process that reads it.
    part = read_rows(stream, request, np.array([7, 3]), 0)
    np.testing.assert_array_equal(part.images, replaced.images[[7, 3]])
    assert part.skipped == (replaced.skipped[2], replaced.skipped[1])


def test_an_unreadable_image_that_only_fills_a_batch_is_counted_once(folder):
    # Catches a report that counts the copy which pads the last batch.
    stream = streamed(folder, corrupt="skip")
    file_of(stream.source.test, 0).write_bytes(b"no image")
    schedule = Schedule(3, 0, evaluated=np.arange(4, dtype=np.int32), split="test")
    batches = here(stream, schedule, np.arange(3))
    assert [len(batch.skipped) for batch in batches] == [1, 0]
    np.testing.assert_array_equal([batch.weight for batch in batches], [[0, 1, 1], [1, 0, 0]])


def test_a_batch_of_nothing_readable_is_an_error(folder):
    # Catches an endless search for a replacement.
    stream = streamed(folder, corrupt="skip")
    for i in range(stream.test_count):
        file_of(stream.source.test, i).write_bytes(b"no image")
    schedule = Schedule(3, 0, evaluated=np.arange(4, dtype=np.int32), split="test")
    for k, row in ((0, 0), (1, 2)):
        with pytest.raises(UserError, match=r"a whole batch of 'folder' .* is unreadable: .*png"):
            read_rows(stream, schedule[k], np.array([row]), 0)


def test_an_image_without_a_label_is_an_error(folder):
    # Catches training on TFDS's label of secret test sets, -1.
    stream = streamed(folder)
    stream.source.train.labels[5] = -1
    with pytest.raises(UserError, match=rf"{stream.source.train.path(5)} has no label"):
        read_rows(stream, train_request(stream, range(8)), np.arange(8), 0)


def test_an_image_of_another_size_is_an_error(folder):
    # Catches a shape error deep inside a worker.
    stream = streamed(folder)
    cv2.imwrite(stream.source.train.path(5), np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(UserError, match=r"differ in size \(9x11 and 4x5\): set data.image_size"):
        read_rows(stream, train_request(stream, range(8)), np.arange(8), 0)


# Labels


@dataclasses.dataclass(frozen=True, eq=False)
class Unlisted:
    """A split that does not list its labels."""

    split: Split
    labels: None = None

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> Example:
        return self.split[i]


def with_train(stream: Stream, train: Split) -> Stream:
    source: Source = dataclasses.replace(stream.source, train=train)
    return dataclasses.replace(stream, source=source)


def test_only_the_first_process_returns_listed_labels(digits):
    # Catches labels that are added up over several processes.
    labels = digits.source.train.labels
    assert labels.any()
    np.testing.assert_array_equal(digits.labels, labels)
    np.testing.assert_array_equal(digits.read_labels(0, 2), labels)
    np.testing.assert_array_equal(digits.read_labels(1, 2), np.zeros(len(labels)))


def test_labels_that_are_not_listed_are_read(digits):
    # Catches labels that worker processes return in another order.
    labels = digits.source.train.labels
    stream = with_train(digits, Unlisted(digits.source.train))
    assert stream.labels is None
    read = stream.read_labels(0, 1)
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, labels)


def test_shares_of_labels_make_up_all(digits, monkeypatch):
    # Catches chunks that no process reads, or that two read.
    monkeypatch.setattr(lib, "_LABELS", 200)
    split = digits.source.train
    pieces, labels = -(-len(split) // 200), np.full(len(split), -1)
    for number in range(3):
        share = lib._Labels(Unlisted(split), number, 3)
        assert len(share) == len(range(number, pieces, 3)) > 1
        for k in range(len(share)):
            begin, values = share[k]
            assert np.all(labels[begin : begin + 200] == -1)
            labels[begin : begin + 200] = values
    np.testing.assert_array_equal(labels, split.labels)
    # There are more processes than pieces.
    nothing = with_train(digits, Unlisted(split)).read_labels(pieces, pieces + 1)
    np.testing.assert_array_equal(nothing, np.zeros(len(split)))
