"""Readers: whole dispatches wherever a run goes on, and pipelines that end; augmentation."""

import jax
import numpy as np
import pytest
from loading import config, write_folder

from drnas_jax.data import Part, Schedule, augment_batch, color_jitter, feed, load
from drnas_jax.data.feed import Images, Reader
from drnas_jax.data.stream import Rows
from drnas_jax.training import devices
from drnas_jax.training.random_keys import stream_key

STEPS, BATCH = 8, 4


@pytest.fixture
def mesh():
    return devices.make_mesh(jax.devices()[:1])


def scheduled(dataset, epochs=3):
    index, held = (np.arange(n, dtype=np.int32) for n in (STEPS * BATCH, 2 * BATCH - 1))
    parts = (Part("weights", index), Part("alpha", index[::-1]))
    return Schedule(BATCH, 0, parts, epochs, STEPS, held, "test")


@pytest.mark.parametrize(
    ("step", "dispatch"), [(0, 8), (8, 8), (4, 4), (8 + 6, 2), (16 + 3, 1), (16 + 7, 1)]
)
def test_a_run_goes_on_in_whole_dispatches(mesh, monkeypatch, step, dispatch):
    """Also where the steps before ran one by one, on a CPU."""
    dataset = load(config("digits"))
    schedule = scheduled(dataset)
    with monkeypatch.context() as patch:
        patch.setattr(devices, "platform", lambda mesh: "gpu")
        reader = Reader(dataset, schedule, mesh)
        reader.go_on(step)
        assert reader.dispatch == dispatch
        for epoch in range(step // STEPS, 3):
            done = step % STEPS if epoch == step // STEPS else 0
            parts = zip(*reader.training(epoch, done), strict=True)
            first, last = schedule.position(epoch, done), schedule.position(epoch, STEPS)
            for part, dispatches in enumerate(parts):
                expected = [schedule[k].numbers for k in range(first + part, last, 2)]
                np.testing.assert_array_equal(np.concatenate(dispatches), expected)
            assert len(list(reader.evaluation(epoch))) == schedule.evaluation_batches


def test_what_is_asked_for_reaches_the_images(tmp_path, mesh):
    dataset, jitter = load(config("folder", dir=str(write_folder(tmp_path)))), (0.4, 0.5, 0.6, 0.1)
    own = feed.make_feed(dataset, 2, 5, jitter=jitter)
    batch = Images(dataset.images[:8], dataset.labels[:8])
    program = devices.data_parallel(
        lambda batch: own.augmented(None, batch, "name", 7, 3), mesh, (devices.SHARDED,)
    )

    @jax.jit
    def expected(images):
        changed = color_jitter(stream_key(7, "name/jitter", 3), np.arange(8), images, jitter)
        of_data = dict(mean=dataset.mean, std=dataset.std, flip=True)
        key = stream_key(7, "name", 3)
        return augment_batch(key, np.arange(8), changed, **of_data, crop_padding=2, cutout=5)

    images, labels = program(batch)
    # Values up to 3 after some twenty roundings in float32.
    np.testing.assert_allclose(images, expected(batch.images), atol=1e-4)
    np.testing.assert_array_equal(labels, batch.labels)


@pytest.mark.parametrize(("crop", "padding"), [("padded", 4), ("resized", 0)])
def test_a_resized_crop_is_not_cropped_again(tmp_path, crop, padding):
    given = dict(memory_limit_mb=0, mean=(0.5,) * 3, std=(0.2,) * 3, image_size=8)
    stream = load(config("folder", dir=str(write_folder(tmp_path)), crop=crop, **given))
    assert feed.make_feed(stream, 4, 0).crop_padding == padding


@pytest.fixture
def pipelines(monkeypatch):
    """In place of worker processes: the first requests of what was opened, and of what closed."""
    opened, closed = [], []

    def stream_batches(stream, schedule, start, rows):
        opened.append(start)
        try:
            for k in range(start, len(schedule)):
                images = np.zeros((len(rows), *stream.shape), np.uint8)
                weight = np.ones(len(rows), np.float32)
                yield schedule[k], Rows(images, np.zeros(len(rows), np.int32), weight, ("a", "b"))
        finally:
            closed.append(start)

    monkeypatch.setattr(feed, "stream_batches", stream_batches)
    return opened, closed


@pytest.fixture
def streamed(tmp_path, mesh):
    given = dict(memory_limit_mb=0, mean=(0.5,) * 3, std=(0.2,) * 3)
    stream = load(config("folder", dir=str(write_folder(tmp_path)), **given))
    return Reader(stream, scheduled(stream), mesh)


def test_one_pipeline_serves_a_whole_run(streamed, pipelines):
    for epoch in range(3):
        assert len(list(streamed.training(epoch, 0))) == STEPS
        assert len(list(streamed.evaluation(epoch))) == 2
    assert pipelines == ([0], [0])  # it has come to its end


def test_a_jump_closes_the_pipeline_behind_it(streamed, pipelines):
    next(streamed.training(0, 0))
    next(streamed.evaluation(1))
    opened, closed = pipelines
    assert len(opened) == 2 and closed == [0]
    streamed.close()
    assert closed == opened
    streamed.close()
    next(streamed.evaluation(0))  # it can be read again
    assert len(opened) == 3 and len(closed) == 2
    streamed.close()
    assert closed == opened


def test_an_image_is_counted_once(streamed, pipelines):
    for epoch in range(2):
        list(streamed.training(epoch, 0))
    assert list(streamed.skipped) == ["a", "b"]
    streamed.close()
