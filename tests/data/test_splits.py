"""Splits and orders are disjoint, complete, and depend on nothing but their arguments."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drnas_jax.data.splits import epoch_order, eval_batches, search_split, steps_per_epoch
from drnas_jax.errors import UserError

seeds = st.integers(0, 2**40)


@given(n=st.integers(2, 500), fraction=st.floats(0.01, 0.99), seed=seeds)
def test_search_split_divides_all_examples(n, fraction, seed):
    # Catches an image that both levels of the search see, or neither.
    count = round(n * fraction)
    if count in (0, n):
        with pytest.raises(UserError, match=r"search\.train_fraction is"):
            search_split(np.zeros(n), fraction, 0.0, False, seed)
        return
    weights, alpha = search_split(np.zeros(n), fraction, 0.0, False, seed)
    assert weights.dtype == alpha.dtype == np.int32
    assert len(weights) == count
    assert sorted([*weights, *alpha]) == list(range(n))


def test_search_split_is_shuffled_and_depends_only_on_the_seed():
    # Catches a cut by position in data that are sorted by class.
    labels = np.zeros(50_000)
    weights, alpha = search_split(labels, 0.5, 0.0, False, seed=3)
    np.random.seed(0)  # a global state must not matter
    again, _ = search_split(labels, 0.5, 0.0, False, seed=3)
    other, _ = search_split(labels, 0.5, 0.0, False, seed=4)
    np.testing.assert_array_equal(weights, again)
    assert len(weights) == len(alpha) == 25_000
    # Two independent halves share 12,500 examples on average, with standard deviation 56.
    assert abs(len(np.intersect1d(weights, other)) - 12_500) < 300
    assert abs(np.mean(weights) - 25_000) < 500  # standard deviation 65: no cut by position


def test_search_split_error_says_what_each_side_would_get():
    # Catches a search that starts with an empty split.
    with pytest.raises(UserError, match=r"0\.1 .*: of 3 .* in 1 groups .* 0 to .* 3 to alpha"):
        search_split(np.zeros(3), 0.1, 0.0, False, seed=0)
    with pytest.raises(
        UserError, match=r"fraction 0\.2: of 6 .* in 3 groups .* 3 to .* 0 to alpha"
    ):
        search_split(np.array([0, 0, 1, 1, 2, 2]), 0.5, 0.2, True, seed=0)


@given(
    counts=st.lists(st.integers(10, 40), min_size=1, max_size=6),
    train=st.floats(0.1, 0.5),
    alpha=st.floats(0.1, 0.45),
    seed=seeds,
)
def test_search_split_takes_its_shares_of_each_class(counts, train, alpha, seed):
    # Catches shares of all images where those of each class were asked for.
    labels = np.repeat(np.arange(len(counts)), counts)
    shares = search_split(labels, train, alpha, True, seed)
    assert not set(shares[0]) & set(shares[1])
    for part, fraction in zip(shares, (train, alpha), strict=True):
        assert len(set(part)) == len(part)
        assert part.dtype == np.int32
        counted = np.bincount(labels[part], minlength=len(counts))
        assert list(counted) == [round(count * fraction) for count in counts]


def test_search_split_by_class_mixes_the_classes_of_alpha():
    # Catches validation batches of one class, whose statistics are biased.
    labels = np.repeat(np.arange(20), 50)
    _, alpha = search_split(labels, 0.5, 0.0, True, seed=0)
    # A batch of 25 in the order of classes would hold one class, a random one about 14.
    assert all(len(set(batch)) > 6 for batch in labels[alpha].reshape(-1, 25))


@given(
    n=st.integers(1, 60),
    batch_size=st.integers(1, 80),
    steps=st.integers(0, 8),
    seed=seeds,
    epoch=st.integers(0, 1000),
)
@settings(deadline=None)
def test_epoch_order_chains_whole_permutations(n, batch_size, steps, seed, epoch):
    # Catches an image that comes twice in an epoch while others are missing.
    order = epoch_order(n, batch_size, steps, seed, "weights", epoch)
    assert order.shape == (steps, batch_size)
    assert order.dtype == np.int32
    flat = order.reshape(-1)
    for start in range(0, len(flat), n):
        part = flat[start : start + n]
        assert len(set(part)) == len(part)
        assert len(part) < n or sorted(part) == list(range(n))
    np.testing.assert_array_equal(order, epoch_order(n, batch_size, steps, seed, "weights", epoch))


def test_epoch_order_differs_by_seed_stream_epoch_and_lap():
    # Catches an order that repeats in every epoch.
    def order(steps=1, **changes):
        return epoch_order(
            100, 100, steps, **{"seed": 1, "stream": "weights", "epoch": 2, **changes}
        )

    others = [order(seed=2), order(stream="alpha"), order(epoch=3), order(steps=2)[1:]]
    for other in others:
        # Independent permutations agree in one place on average; 10 or more: chance 1e-7.
        assert np.sum(order() == other) < 10
    # More steps only extend the order.
    np.testing.assert_array_equal(order(), order(steps=2)[:1])


def test_epoch_order_draws_uniformly():
    # Catches a shuffle that favours the first images.
    first = [epoch_order(10, 2, 5, 0, "weights", epoch)[0, 0] for epoch in range(2000)]
    counts = np.bincount(first, minlength=10)
    assert np.all(np.abs(counts - 200) < 68)  # 5 standard deviations of a binomial


def test_steps_per_epoch():
    # Catches an epoch without a step.
    assert steps_per_epoch(25_000, 64, "the split for weights") == 390
    assert steps_per_epoch(64, 64, "the split for weights") == 1
    with pytest.raises(UserError, match=r"the split for alpha has 63 images.* batch of 64"):
        steps_per_epoch(63, 64, "the split for alpha")


@given(n=st.integers(0, 300), batch_size=st.integers(1, 70))
def test_eval_batches_hold_every_example_once(n, batch_size):
    # Catches an accuracy that counts the padding.
    index, weight = eval_batches(n, batch_size)
    assert index.shape == weight.shape == (-(-n // batch_size), batch_size)
    assert index.dtype == np.int32
    assert weight.dtype == np.float32
    np.testing.assert_array_equal(index[weight == 1], np.arange(n))
    fillers = index[weight != 1]  # the examples from the first on
    np.testing.assert_array_equal(fillers, np.arange(len(fillers)) % max(n, 1))
    assert weight.sum() == n
