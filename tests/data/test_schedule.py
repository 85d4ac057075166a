"""Schedules: against a plain enumeration of all their batches."""

import itertools
import pickle

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from drnas_jax.data import Schedule, Subset
from drnas_jax.data.splits import epoch_order


@st.composite
def schedules(draw):
    """Draws schedules of up to two subsets, idle in some epochs, with or without an evaluation."""
    epochs, steps = draw(st.integers(1, 4)), draw(st.integers(0, 4))
    sizes = draw(st.lists(st.integers(1, 30), max_size=2))
    subsets = tuple(
        Subset(
            name,
            # Multiples of 7, so that an index cannot be mistaken for a position in the subset.
            np.random.default_rng(size).permutation(size).astype(np.int32) * 7,
            draw(st.frozensets(st.integers(0, epochs - 1))),
        )
        for name, size in zip(("weights", "alpha"), sizes, strict=False)
    )
    evaluated = 5 * np.arange(draw(st.integers(0, 30)), dtype=np.int32) + 1
    batch_size, seed = draw(st.integers(1, 9)), draw(st.integers(0, 2**32 - 1))
    return Schedule(batch_size, seed, subsets, epochs, steps, evaluated, "test")


def enumerated(schedule):
    """(epoch, steps done, split, indices, weight, stream, step) of every batch in order."""
    size = schedule.batch_size
    for epoch in range(schedule.epochs):
        for step in range(schedule.steps):
            for subset in schedule.subsets:
                if epoch in subset.idle:
                    continue
                n = len(subset.index)
                order = epoch_order(n, size, schedule.steps, schedule.seed, subset.name, epoch)
                indices = [subset.index[i] for i in order[step]]
                number = epoch * schedule.steps + step
                yield epoch, step, schedule.split, indices, None, subset.name, number
        for start in range(0, len(schedule.evaluated), size):
            indices = list(schedule.evaluated[start : start + size])
            weight = [1] * len(indices) + [0] * (size - len(indices))
            indices += itertools.islice(itertools.cycle(schedule.evaluated), size - len(indices))
            yield epoch, schedule.steps, schedule.split, indices, weight, "", 0


def as_plain(request):
    weight = None if request.weight is None else list(request.weight)
    return request.split, list(request.indices), weight, request.name, request.step


@given(schedules())
@settings(deadline=None)
def test_a_schedule_is_its_enumeration(schedule):
    # Catches an off-by-one at the borders of epochs, steps and evaluations.
    expected = [rest for _, _, *rest in enumerated(schedule)]
    assert len(schedule) == len(expected)
    assert [list(as_plain(schedule[k])) for k in range(len(schedule))] == expected
    for k in range(len(schedule)):
        request = schedule[k]
        assert request.indices.dtype == np.int32
        assert request.weight is None or request.weight.dtype == np.float32


@given(schedules())
@settings(deadline=None)
def test_a_position_is_a_count_of_earlier_requests(schedule):
    # Catches a resume that repeats or loses a batch.
    positions = [(epoch, done) for epoch, done, *_ in enumerated(schedule)]
    for epoch in range(schedule.epochs):
        for done in range(schedule.steps + 1):
            before = sum(position < (epoch, done) for position in positions)
            assert schedule.position(epoch, done) == before
    assert schedule.evaluation_batches == -(-len(schedule.evaluated) // schedule.batch_size)


@given(schedules(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_a_batch_depends_only_on_its_position(schedule, random):
    # Catches hidden state: workers read out of order and in copies.
    expected = [as_plain(schedule[k]) for k in range(len(schedule))]
    again = pickle.loads(pickle.dumps(schedule))  # as a worker process gets it
    order = list(range(len(schedule)))
    random.shuffle(order)
    read = {k: as_plain(again[k]) for k in order}
    assert [read[k] for k in range(len(schedule))] == expected


def test_a_subset_is_left_out_of_its_idle_epochs():
    # Catches warm-up epochs that still read batches for alpha.
    index = np.arange(8, dtype=np.int32)
    subsets = (Subset("weights", index), Subset("alpha", index, idle=frozenset([0, 2])))
    schedule = Schedule(4, 0, subsets, epochs=3, steps=2)
    streams = [schedule[k].name for k in range(len(schedule))]
    assert streams == ["weights"] * 2 + ["weights", "alpha"] * 2 + ["weights"] * 2
    assert [subset.name for subset in schedule.subsets_in(1)] == ["weights", "alpha"]
    assert [subset.name for subset in schedule.subsets_in(2)] == ["weights"]


@given(n=st.integers(1, 200), batch_size=st.integers(1, 70))
def test_an_evaluation_counts_each_example_once(n, batch_size):
    # Catches an accuracy that misses or repeats examples.
    evaluated = np.random.default_rng(n).permutation(1000)[:n].astype(np.int32)
    schedule = Schedule(batch_size, 0, epochs=2, evaluated=evaluated)
    for epoch in range(2):
        first = schedule.position(epoch, 0)
        requests = [schedule[first + k] for k in range(schedule.evaluation_batches)]
        indices, weight = (
            np.concatenate([getattr(request, name) for request in requests])
            for name in ("indices", "weight")
        )
        assert all(len(request.indices) == batch_size for request in requests)
        np.testing.assert_array_equal(indices[weight == 1], evaluated)
        assert weight.sum() == n
        assert set(indices[weight == 0]) <= set(evaluated)
        assert {request.split for request in requests} == {"train"}
