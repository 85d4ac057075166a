"""The loader: whole dispatches, worker processes that end, and nothing placed too early."""

import dataclasses

import jax
import numpy as np
import pytest
from loading import config, write_folder

from drnas_jax.data import (
    Images,
    Loader,
    Schedule,
    Stream,
    Subset,
    augmentation_streams,
    load,
    preprocessing_of,
)
from drnas_jax.data.dataset import Rows
from drnas_jax.data.preprocess import augment_batch, color_jitter
from drnas_jax.training import devices
from drnas_jax.training.random_keys import stream_key

STEPS, BATCH = 8, 4
STATISTICS = dict(mean=(0.5,) * 3, std=(0.2,) * 3)  # otherwise a stream reads images for them


@pytest.fixture
def mesh():
    return devices.make_mesh(jax.devices()[:1])


def scheduled(dataset, epochs=3):
    index, evaluated = (np.arange(n, dtype=np.int32) for n in (STEPS * BATCH, 2 * BATCH - 1))
    subsets = (Subset("weights", index), Subset("alpha", index[::-1]))
    return Schedule(BATCH, 0, subsets, epochs, STEPS, evaluated, "test")


@pytest.mark.parametrize(
    ("most", "resumed", "sizes"),
    [
        (16, 0, [8]),
        (8, 0, [8]),
        (5, 0, [5, 3]),
        (3, 0, [3, 3, 2]),
        (3, 4, [3, 1]),
        (1, 6, [1, 1]),
        (16, 7, [1]),
    ],
)
def test_an_epoch_is_full_dispatches_and_a_rest(mesh, monkeypatch, most, resumed, sizes):
    # Catches steps that are lost or repeated at the end of an epoch, or after a resume on other
    # devices, where the steps before had run one by one.
    dataset = load(config("digits"))
    schedule = scheduled(dataset)
    monkeypatch.setattr(devices, "_MAX_STEPS_PER_DISPATCH", most)
    monkeypatch.setattr(devices, "platform", lambda mesh: "gpu")
    loader = Loader(dataset, schedule, mesh)
    assert loader.steps_per_dispatch == min(most, STEPS)
    for epoch, done in ((1, resumed), (2, 0)):
        counts, dispatches = zip(*loader.training(epoch, done), strict=True)
        assert epoch == 2 or list(counts) == sizes
        assert [int(d.steps) for d in dispatches] == list(counts)
        position = schedule.position(epoch, done)
        for subset in (0, 1):
            read = [d.batches[subset] for d in dispatches]
            assert {len(rows) for rows in read} == {min(most, STEPS)}  # one program serves all
            steps = [row for rows, n in zip(read, counts, strict=True) for row in rows[:n]]
            last = schedule.position(epoch, STEPS)
            expected = [schedule[k].indices for k in range(position + subset, last, 2)]
            np.testing.assert_array_equal(steps, expected)
        assert len(list(loader.evaluation(epoch))) == schedule.evaluation_batches


@pytest.mark.parametrize("limit", [0, 4096])
def test_an_idle_subset_gets_the_batch_of_the_first(tmp_path, mesh, monkeypatch, limit):
    # Catches images that are read for nothing, and an epoch that counts as idle which is not.
    given = dict(dir=str(write_folder(tmp_path)), memory_limit_mb=limit, **STATISTICS)
    dataset = load(config("folder", **given))
    monkeypatch.setattr(Stream, "batches", pretend)
    schedule = scheduled(dataset)
    first, second = schedule.subsets
    idle = dataclasses.replace(second, idle=frozenset([1]))
    loader = Loader(dataset, dataclasses.replace(schedule, subsets=(first, idle)), mesh)
    for epoch in range(3):
        for _, dispatch in loader.training(epoch, 0):
            assert dispatch.idle.tolist() == [False, epoch == 1]
            assert (dispatch.batches[1] is dispatch.batches[0]) == (epoch == 1)
        list(loader.evaluation(epoch))
    loader.close()


def test_all_settings_reach_the_images(tmp_path, mesh):
    # Catches a setting that is dropped on its way, and random streams that are exchanged.
    dataset, jitter = load(config("folder", dir=str(write_folder(tmp_path)))), (0.4, 0.5, 0.6, 0.1)
    settings = preprocessing_of(dataset, crop_padding=2, cutout=5, jitter=jitter)
    assert settings.flip and settings.crop_padding == 2 and settings.cutout == 5
    np.testing.assert_array_equal(settings.mean, dataset.mean)
    np.testing.assert_array_equal(settings.std, dataset.std)
    batch = Images(dataset.images[:8], dataset.labels[:8])
    keys = jax.tree.map(lambda name: stream_key(7, name, 3), augmentation_streams("name"))
    program = devices.data_parallel(
        lambda batch: settings.augment(None, batch, keys),
        mesh,
        (devices.SHARDED,),
    )

    @jax.jit
    def expected(images):
        changed = color_jitter(stream_key(7, "name/jitter", 3), np.arange(8), images, jitter)
        return augment_batch(stream_key(7, "name", 3), np.arange(8), changed, settings)

    images, labels = program(batch)
    # Values up to 3 after some twenty roundings in float32.
    np.testing.assert_allclose(images, expected(batch.images), atol=1e-4)
    np.testing.assert_array_equal(labels, batch.labels)


@pytest.mark.parametrize(("crop", "padding"), [("padded", 4), ("resized", 0)])
def test_a_resized_crop_is_not_cropped_again(tmp_path, crop, padding):
    # Catches training on crops of crops.
    given = dict(memory_limit_mb=0, image_size=8, **STATISTICS)
    stream = load(config("folder", dir=str(write_folder(tmp_path)), crop=crop, **given))
    assert preprocessing_of(stream, crop_padding=4).crop_padding == padding


@pytest.mark.parametrize("limit", [0, 4096])
def test_abstract_shapes_are_those_of_what_is_read(tmp_path, mesh, monkeypatch, limit):
    # Catches a program that is compiled for other shapes or shardings than the batches have.
    given = dict(dir=str(write_folder(tmp_path)), memory_limit_mb=limit, **STATISTICS)
    dataset = load(config("folder", **given))
    monkeypatch.setattr(Stream, "batches", pretend)
    loader = Loader(dataset, scheduled(dataset), mesh)

    def described(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)

    _, dispatch = next(loader.training(0, 0))
    assert described(loader.abstract_dispatch) == described(dispatch)
    assert loader.in_memory == (limit > 0)
    assert described(loader.abstract_raw) == described(loader.raw)
    loader.close()


def test_nothing_is_placed_before_it_is_read(mesh, monkeypatch):
    # Catches a loader that cannot be made for devices that do not exist, as planning does.
    dataset, placed = load(config("digits")), []
    place = devices.place
    monkeypatch.setattr(devices, "place", lambda *args: placed.append(1) or place(*args))
    loader = Loader(dataset, scheduled(dataset), mesh)
    assert loader.abstract_raw.images.shape == dataset.test_images.shape
    assert not placed
    assert loader.raw is loader.raw and len(placed) == 1


# Worker processes, pretended


def pretend(stream, schedule, start, rows):
    """Yields black images for `Stream.batches`; two are skipped in every batch."""
    for k in range(start, len(schedule)):
        images = np.zeros((len(rows), *stream.shape), np.uint8)
        weight = np.ones(len(rows), np.float32)
        yield schedule[k], Rows(images, np.zeros(len(rows), np.int32), weight, ("a", "b"))


@pytest.fixture
def pipelines(monkeypatch):
    """Replaces worker processes; lists the first requests of the pipelines opened and closed."""
    opened, closed = [], []

    def batches(stream, schedule, start, rows):
        opened.append(start)
        try:
            yield from pretend(stream, schedule, start, rows)
        finally:
            closed.append(start)

    monkeypatch.setattr(Stream, "batches", batches)
    return opened, closed


@pytest.fixture
def streamed(tmp_path, mesh):
    given = dict(memory_limit_mb=0, **STATISTICS)
    stream = load(config("folder", dir=str(write_folder(tmp_path)), **given))
    return Loader(stream, scheduled(stream), mesh)


def test_one_pipeline_serves_a_whole_run(streamed, pipelines):
    # Catches worker processes that are started again for every epoch or evaluation.
    for epoch in range(3):
        assert len(list(streamed.training(epoch, 0))) == STEPS
        assert len(list(streamed.evaluation(epoch))) == 2
    assert pipelines == ([0], [0])  # it has come to its end


def test_a_jump_closes_the_pipeline_before_it(streamed, pipelines):
    # Catches worker processes that stay behind after a jump or a close.
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


def test_a_skipped_image_is_counted_once(streamed, pipelines):
    # Catches a report that counts an unreadable image in every epoch.
    for epoch in range(2):
        list(streamed.training(epoch, 0))
    assert list(streamed.skipped) == ["a", "b"]
    streamed.close()
