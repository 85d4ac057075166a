"""Losses, accuracies and their sums over an epoch, compared with NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from drnas_jax.training import losses


@pytest.fixture
def batch():
    """Returns logits [50, 8], labels [50] and weights [50], a third of which are 0."""
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(50, 8)).astype(np.float32)
    weight = rng.uniform(0.5, 2, 50) * (rng.uniform(size=50) > 1 / 3)
    return logits, rng.integers(0, 8, 50).astype(np.int32), weight.astype(np.float32)


def log_softmax(logits):
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_pytorchs(batch, smoothing):
    # Catches smoothing over the wrong classes only: PyTorch's includes the true class.
    logits, labels, _ = batch
    log = log_softmax(logits)
    true = log[np.arange(50), labels]
    expected = -(1 - smoothing) * true - smoothing * log.mean(1)
    # Roundings of float32, in losses from 1 to 10.
    np.testing.assert_allclose(
        losses.cross_entropy(logits, labels, smoothing), expected, rtol=1e-5, atol=1e-5
    )


def test_large_logits_do_not_overflow():
    logits = np.array([[1e4, 0.0], [0.0, 1e4]], np.float32)
    # Catches a softmax without a shift, since exp(1e4) is infinite.
    np.testing.assert_array_equal(losses.cross_entropy(logits, np.array([0, 0])), [0, 1e4])


def test_the_auxiliary_loss_is_weighted():
    # Catches an auxiliary head that counts fully, or also if there is none.
    logits = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]]))
    auxiliary = jnp.log(jnp.array([[0.125, 0.875], [0.5, 0.5]]))
    labels = jnp.array([0, 1])
    main, other = -np.log([0.5, 0.75]).mean(), -np.log([0.125, 0.5]).mean()
    with_head = losses.training_loss(logits, auxiliary, labels, 0.0, 0.4)
    np.testing.assert_allclose(with_head, main + 0.4 * other, rtol=1e-6)
    np.testing.assert_allclose(losses.training_loss(logits, None, labels, 0.0, 0.4), main, 1e-6)


@pytest.mark.parametrize("weighted", [True, False])
def test_totals_are_weighted_sums(batch, weighted):
    # Catches padding that counts, and top-5 hits that leave out the first place.
    logits, labels, weight = batch
    actual = losses.totals(logits, labels, weight if weighted else None)
    weight = weight if weighted else np.ones(50)
    order = np.argsort(-logits, axis=1)
    hits = order == labels[:, None]
    expected = {
        "loss": weight @ -log_softmax(logits)[np.arange(50), labels],
        "correct": weight @ hits[:, 0],
        "correct5": weight @ hits[:, :5].any(1),
        "count": weight.sum(),
    }
    assert set(actual) == set(expected) == set(losses.zero_totals())
    assert 0 < expected["correct"] < expected["correct5"] < expected["count"]
    for name, value in expected.items():
        assert float(actual[name]) == pytest.approx(value, rel=1e-5)  # sums of 50 in float32


def test_ties_rank_as_in_argmax():
    # Catches a constant network that is correct on every class instead of only on class 0.
    labels = np.arange(8, dtype=np.int32)
    constant = [losses.totals(np.zeros((1, 8), np.float32), labels[i : i + 1]) for i in range(8)]
    assert [float(sums["correct"]) for sums in constant] == [1, 0, 0, 0, 0, 0, 0, 0]
    assert [float(sums["correct5"]) for sums in constant] == [1, 1, 1, 1, 1, 0, 0, 0]

    rng = np.random.default_rng(0)
    logits = rng.integers(0, 3, (200, 8)).astype(np.float32)  # many ties
    many = rng.integers(0, 8, 200).astype(np.int32)
    order = np.argsort(-logits, axis=1, kind="stable")
    actual = losses.totals(logits, many)
    assert float(actual["correct"]) == (logits.argmax(1) == many).sum()
    assert float(actual["correct5"]) == (order[:, :5] == many[:, None]).any(1).sum()


def test_top5_of_fewer_than_five_classes():
    # Catches a top_k that fails with fewer classes than five.
    actual = losses.totals(np.eye(3, dtype=np.float32), np.array([2, 0, 1], np.int32))
    assert [float(actual[name]) for name in ("correct", "correct5", "count")] == [0, 3, 3]


def test_averages_divide_by_the_number_of_examples():
    # Catches a division by zero before the first batch.
    sums = {"loss": 6.0, "correct": 1.0, "correct5": 3.0, "count": 4.0}
    assert losses.averages(sums) == {"loss": 1.5, "accuracy": 0.25, "top5": 0.75}
    assert losses.averages(losses.zero_totals()) == {"loss": 0, "accuracy": 0, "top5": 0}


def test_a_diverged_network_is_wrong():
    # Catches a rank from comparisons with nan, which are all false, so the true class comes first.
    logits = jnp.full((1, 8), jnp.nan)
    sums = losses.totals(logits, jnp.array([3]))
    assert (sums["correct"], sums["correct5"]) == (0, 0)
