"""Streams: the same batches however they are read, and what cannot be read."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from loading import config, write_folder
from tensorflow_datasets.proto import tf_example_pb2

from drnas_jax.data import Dataset, Part, Schedule, Stream, load, read_labels, stream_batches
from drnas_jax.data import stream as lib
from drnas_jax.data.images import Example, UnreadableImage, centre_crop, random_resized_crop
from drnas_jax.data.sources import Source, Split, _Records
from drnas_jax.data.splits import generator
from drnas_jax.data.stream import read_rows
from drnas_jax.errors import UserError

ROOT = Path(__file__).parents[2]
GIVEN = dict(mean=(0.5,) * 3, std=(0.2,) * 3)  # else a stream reads images to measure them


@pytest.fixture(scope="module")
def digits():
    return load(config("digits", crop="resized", image_size=6, workers=1))


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path)


def streamed(folder, **changes):
    return load(config("folder", dir=str(folder), memory_limit_mb=0, **GIVEN, **changes))


def scheduled(stream, batch_size, epochs=2, steps=2, seed=3):
    """One part, idle in no epoch, and an evaluation of the last examples, as in a search."""
    index = np.arange(stream.count, dtype=np.int32)
    parts = (Part("weights", index),)
    return Schedule(batch_size, seed, parts, epochs, steps, index[1 - 2 * batch_size :])


def here(stream, schedule, rows):
    """All batches, read in this process."""
    requests = [schedule[k] for k in range(len(schedule))]
    return [read_rows(stream, request, rows, schedule.seed) for request in requests]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        for name in ("images", "labels", "weight"):
            found, expected = getattr(one, name), getattr(other, name)
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
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
def test_workers_give_what_is_read_here(digits, workers, start, rows):
    schedule = scheduled(digits, 70)
    stream = dataclasses.replace(digits, workers=workers)
    read = list(stream_batches(stream, schedule, start, rows))
    assert_same([rows for _, rows in read], here(digits, schedule, rows)[start:])
    for k, (request, _) in enumerate(read, start):
        np.testing.assert_array_equal(request.numbers, schedule[k].numbers)


def test_rows_are_those_of_the_whole_batch(digits):
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
    schedule, rows = scheduled(digits, 8), np.arange(8)
    for k, batch in enumerate(here(digits, schedule, rows)):
        request, split = schedule[k], digits.source.train
        numbers = generator(3, "weights/crop", request.step).random((8, 10, 4))
        for row, i in enumerate(request.numbers):
            expected = (
                random_resized_crop(split[i], 1, 6, numbers[row])
                if request.name
                else centre_crop(split[i], 1, 6)
            )
            np.testing.assert_array_equal(batch.images[row, ..., 0], expected)
            assert batch.labels[row] == split[i].label
        expected = np.ones(8) if request.weight is None else request.weight
        np.testing.assert_array_equal(batch.weight, expected)


def test_crops_differ_by_row_step_stream_and_seed(digits):
    index = np.full(8, 5, np.int32)

    def images(seed=3, name="weights"):
        schedule = Schedule(4, seed, (Part(name, index),), steps=2)
        return np.concatenate([batch.images for batch in here(digits, schedule, np.arange(4))])

    found = np.concatenate([images(), images(seed=4), images(name="alpha")])
    # A few of the 24 coincide, of so small an image; with one of the four ignored, at least 8.
    assert len(np.unique(found, axis=0)) > 16


@pytest.mark.parametrize("size", [0, 6])
def test_padded_images_are_those_in_memory(folder, size):
    stream = streamed(folder, image_size=size)
    memory = load(config("folder", dir=str(folder), image_size=size))
    assert isinstance(stream, Stream) and isinstance(memory, Dataset)
    assert stream.shape == memory.shape
    test = Schedule(2, 0, evaluated=np.arange(stream.test_count, dtype=np.int32), split="test")
    for schedule in (scheduled(stream, 3), test):
        for k, batch in enumerate(here(stream, schedule, np.arange(schedule.batch_size))):
            request = schedule[k]
            images, labels = memory.split(request.split)
            np.testing.assert_array_equal(batch.images, images[request.numbers])
            np.testing.assert_array_equal(batch.labels, labels[request.numbers])


# What cannot be read


def train_request(stream, numbers):
    part = Part("weights", np.array(numbers, np.int32))
    schedule = Schedule(len(numbers), 0, (part,), steps=1)
    return schedule[0]


def test_an_unreadable_file_is_named(folder):
    stream = streamed(folder)
    file = stream.source.train.files[4]
    for damage in (lambda: file.write_bytes(b"no image"), file.unlink):
        damage()
        with pytest.raises(UnreadableImage, match=f"{file}"):
            read_rows(stream, train_request(stream, range(8)), np.arange(8), 0)


def test_an_unreadable_record_is_named(folder):
    record = tf_example_pb2.Example()
    record.features.feature["image"].bytes_list.value.append(b"no image")
    record.features.feature["label"].int64_list.value.append(1)
    record.features.feature["file_name"].bytes_list.value.append(b"n01_7.JPEG")
    records = [record.SerializeToString(), b"broken"]
    split = _Records(records, "image", "label", "'own' in DIR, split train")
    stream = replaced(streamed(folder), split)
    with pytest.raises(UnreadableImage, match=r"n01_7\.JPEG, image 0 of 'own' in DIR, split train"):
        read_rows(stream, train_request(stream, [0]), np.arange(1), 0)
    with pytest.raises(UserError, match=r"'own' in DIR, split train is broken"):
        read_rows(stream, train_request(stream, [1]), np.arange(1), 0)


@pytest.mark.parametrize("crop", ["padded", "resized"])
def test_an_unreadable_image_is_replaced_and_does_not_count(folder, crop):
    stream = streamed(folder, crop=crop, image_size=8, corrupt="skip")
    request = train_request(stream, range(8))
    good = read_rows(stream, request, np.arange(8), 0)
    bad = [int(request.numbers[row]) for row in (2, 3, 7)]
    for i in bad:
        stream.source.train.files[i].write_bytes(b"no image")
    found = read_rows(stream, request, np.arange(8), 0)
    np.testing.assert_array_equal(found.weight, [1, 1, 0, 0, 1, 1, 1, 0])
    files = stream.source.train.files
    assert all(str(files[i]) in text for i, text in zip(bad, found.skipped, strict=True))
    stand_in = [0, 1, 4, 4, 4, 5, 6, 0]  # the next, of the batch in a ring
    np.testing.assert_array_equal(found.labels, good.labels[stand_in])
    counted = found.weight == 1
    np.testing.assert_array_equal(found.images[counted], good.images[counted])
    if crop == "padded":
        np.testing.assert_array_equal(found.images, good.images[stand_in])
    # However the rows are divided: each is counted by who reads it.
    part = read_rows(stream, request, np.array([7, 3]), 0)
    np.testing.assert_array_equal(part.images, found.images[[7, 3]])
    assert part.skipped == (found.skipped[2], found.skipped[1])


def test_an_unreadable_image_that_only_fills_a_batch_is_counted_once(folder):
    stream = streamed(folder, corrupt="skip")
    stream.source.test.files[0].write_bytes(b"no image")
    schedule = Schedule(3, 0, evaluated=np.arange(4, dtype=np.int32), split="test")
    batches = here(stream, schedule, np.arange(3))
    assert [len(batch.skipped) for batch in batches] == [1, 0]
    np.testing.assert_array_equal([batch.weight for batch in batches], [[0, 1, 1], [1, 0, 0]])


def test_a_batch_of_nothing_readable_is_an_error(folder):
    stream = streamed(folder, corrupt="skip")
    for file in stream.source.test.files:
        file.write_bytes(b"no image")
    schedule = Schedule(3, 0, evaluated=np.arange(4, dtype=np.int32), split="test")
    for k, row in ((0, 0), (1, 2)):
        with pytest.raises(UserError, match=r"a whole batch of 'folder' .* is unreadable: .*png"):
            read_rows(stream, schedule[k], np.array([row]), 0)


def test_an_image_without_a_label_is_an_error(folder):
    stream = streamed(folder)
    stream.source.train.labels[5] = -1
    with pytest.raises(UserError, match=rf"{stream.source.train.files[5]} has no label"):
        read_rows(stream, train_request(stream, range(8)), np.arange(8), 0)


def test_an_image_of_another_size_is_an_error(folder):
    stream = streamed(folder)
    cv2.imwrite(str(stream.source.train.files[5]), np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(UserError, match=r"differ in size \(9x11 and 4x5\): set data.image_size"):
        read_rows(stream, train_request(stream, range(8)), np.arange(8), 0)


# Labels


@dataclasses.dataclass(frozen=True, eq=False)
class Unlisted:
    """A split whose labels have to be read."""

    split: Split
    labels: None = None

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> Example:
        return self.split[i]


def replaced(stream: Stream, train: Split) -> Stream:
    source: Source = dataclasses.replace(stream.source, train=train)
    return dataclasses.replace(stream, source=source)


def test_listed_labels_are_given_by_the_first(digits):
    labels = digits.source.train.labels
    assert labels.any()
    np.testing.assert_array_equal(read_labels(digits, 0, 2), labels)
    np.testing.assert_array_equal(read_labels(digits, 1, 2), np.zeros(len(labels)))


def test_labels_that_are_not_listed_are_read(digits):
    labels = digits.source.train.labels
    stream = replaced(digits, Unlisted(digits.source.train))
    found = read_labels(stream, 0, 1)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, labels)


def test_shares_of_labels_make_up_all(digits, monkeypatch):
    monkeypatch.setattr(lib, "_LABELS", 200)
    split = digits.source.train
    pieces, labels = -(-len(split) // 200), np.full(len(split), -1)
    for part in range(3):
        share = lib._Labels(Unlisted(split), part, 3)
        assert len(share) == len(range(part, pieces, 3)) > 1
        for k in range(len(share)):
            begin, values = share[k]
            assert np.all(labels[begin : begin + 200] == -1)
            labels[begin : begin + 200] = values
    np.testing.assert_array_equal(labels, split.labels)
    # More take part than there are pieces.
    nothing = read_labels(replaced(digits, Unlisted(split)), pieces, pieces + 1)
    np.testing.assert_array_equal(nothing, np.zeros(len(split)))
