"""Readers: whole dispatches wherever a run goes on, and pipelines that end."""

import jax
import numpy as np
import pytest
from loading import config, write_folder

from drnas_jax import feed, sharding
from drnas_jax.data import Part, Schedule, load
from drnas_jax.data.stream import Rows
from drnas_jax.feed import Reader

STEPS, BATCH = 8, 4


@pytest.fixture
def mesh():
    return sharding.make_mesh(jax.devices()[:1])


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
        patch.setattr(sharding, "platform", lambda mesh: "gpu")
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
