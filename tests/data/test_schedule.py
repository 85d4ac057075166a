"""Schedules: against a plain enumeration of all their batches."""

import itertools
import pickle

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from drnas_jax.data import Part, Schedule, epoch_order


@st.composite
def schedules(draw):
    """Schedules of up to two parts, each idle in some epochs, with or without an evaluation."""
    epochs, steps = draw(st.integers(1, 4)), draw(st.integers(0, 4))
    sizes = draw(st.lists(st.integers(1, 30), max_size=2))
    parts = tuple(
        Part(
            name,
            # Numbers that are no places: multiples of 7.
            np.random.default_rng(size).permutation(size).astype(np.int32) * 7,
            draw(st.frozensets(st.integers(0, epochs - 1))),
        )
        for name, size in zip(("weights", "alpha"), sizes, strict=False)
    )
    held = 5 * np.arange(draw(st.integers(0, 30)), dtype=np.int32) + 1
    batch_size, seed = draw(st.integers(1, 9)), draw(st.integers(0, 2**32 - 1))
    return Schedule(batch_size, seed, parts, epochs, steps, held, "test")


def enumerated(schedule):
    """(epoch, steps done, split, numbers, weight, stream, step) of every batch in order."""
    size = schedule.batch_size
    for epoch in range(schedule.epochs):
        for step in range(schedule.steps):
            for part in schedule.parts:
                if epoch in part.idle:
                    continue
                n = len(part.index)
                order = epoch_order(n, size, schedule.steps, schedule.seed, part.name, epoch)
                numbers = [part.index[i] for i in order[step]]
                place = epoch * schedule.steps + step
                yield epoch, step, schedule.split, numbers, None, part.name, place
        for start in range(0, len(schedule.evaluated), size):
            numbers = list(schedule.evaluated[start : start + size])
            weight = [1] * len(numbers) + [0] * (size - len(numbers))
            numbers += itertools.islice(itertools.cycle(schedule.evaluated), size - len(numbers))
            yield epoch, schedule.steps, schedule.split, numbers, weight, "", 0


def as_plain(request):
    weight = None if request.weight is None else list(request.weight)
    return request.split, list(request.numbers), weight, request.name, request.step


@given(schedules())
@settings(deadline=None)
def test_a_schedule_is_its_enumeration(schedule):
    expected = [rest for _, _, *rest in enumerated(schedule)]
    assert len(schedule) == len(expected)
    assert [list(as_plain(schedule[k])) for k in range(len(schedule))] == expected
    for k in range(len(schedule)):
        request = schedule[k]
        assert request.numbers.dtype == np.int32
        assert request.weight is None or request.weight.dtype == np.float32


@given(schedules())
@settings(deadline=None)
def test_a_position_is_that_of_the_enumeration(schedule):
    places = [(epoch, done) for epoch, done, *_ in enumerated(schedule)]
    for epoch in range(schedule.epochs):
        for done in range(schedule.steps + 1):
            before = sum(place < (epoch, done) for place in places)
            assert schedule.position(epoch, done) == before
    assert schedule.evaluation_batches == -(-len(schedule.evaluated) // schedule.batch_size)


@given(schedules(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_a_batch_depends_on_its_place_alone(schedule, random):
    expected = [as_plain(schedule[k]) for k in range(len(schedule))]
    again = pickle.loads(pickle.dumps(schedule))  # as a worker process gets it
    order = list(range(len(schedule)))
    random.shuffle(order)
    found = {k: as_plain(again[k]) for k in order}
    assert [found[k] for k in range(len(schedule))] == expected


def test_idle_epochs_have_no_such_part():
    index = np.arange(8, dtype=np.int32)
    parts = (Part("weights", index), Part("alpha", index, idle=frozenset([0, 2])))
    schedule = Schedule(4, 0, parts, epochs=3, steps=2)
    streams = [schedule[k].name for k in range(len(schedule))]
    assert streams == ["weights"] * 2 + ["weights", "alpha"] * 2 + ["weights"] * 2
    assert [part.name for part in schedule.parts_in(1)] == ["weights", "alpha"]
    assert [part.name for part in schedule.parts_in(2)] == ["weights"]


@given(n=st.integers(1, 200), batch_size=st.integers(1, 70))
def test_an_evaluation_counts_each_held_example_once(n, batch_size):
    held = np.random.default_rng(n).permutation(1000)[:n].astype(np.int32)
    schedule = Schedule(batch_size, 0, epochs=2, evaluated=held)
    for epoch in range(2):
        first = schedule.position(epoch, 0)
        requests = [schedule[first + k] for k in range(schedule.evaluation_batches)]
        numbers, weight = (
            np.concatenate([getattr(request, name) for request in requests])
            for name in ("numbers", "weight")
        )
        assert all(len(request.numbers) == batch_size for request in requests)
        np.testing.assert_array_equal(numbers[weight == 1], held)
        assert weight.sum() == n
        assert set(numbers[weight == 0]) <= set(held)
        assert {request.split for request in requests} == {"train"}
