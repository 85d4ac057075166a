"""Cross-entropy and the sums of an epoch against numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from drnas_jax.training import losses


@pytest.fixture
def batch():
    """Logits [50, 8], labels [50] and weights [50], a third of them 0."""
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(50, 8)).astype(np.float32)
    weight = rng.uniform(0.5, 2, 50) * (rng.uniform(size=50) > 1 / 3)
    return logits, rng.integers(0, 8, 50).astype(np.int32), weight.astype(np.float32)


def log_softmax(logits):
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy(batch, smoothing):
    """PyTorch's: smoothed over all classes, the right one included."""
    logits, labels, _ = batch
    log = log_softmax(logits)
    own = log[np.arange(50), labels]
    expected = -(1 - smoothing) * own - smoothing * log.mean(1)
    # float32, losses of size 1 to 10.
    np.testing.assert_allclose(
        losses.cross_entropy(logits, labels, smoothing), expected, rtol=1e-5, atol=1e-5
    )


def test_cross_entropy_of_large_logits():
    logits = np.array([[1e4, 0.0], [0.0, 1e4]], np.float32)
    # exp(1e4) is infinite: only the shifted form gives these.
    np.testing.assert_array_equal(losses.cross_entropy(logits, np.array([0, 0])), [0, 1e4])


def test_auxiliary_loss_is_weighted():
    logits = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]]))
    auxiliary = jnp.log(jnp.array([[0.125, 0.875], [0.5, 0.5]]))
    labels = jnp.array([0, 1])
    main, other = -np.log([0.5, 0.75]).mean(), -np.log([0.125, 0.5]).mean()
    with_head = losses.training_loss(logits, auxiliary, labels, 0.0, 0.4)
    np.testing.assert_allclose(with_head, main + 0.4 * other, rtol=1e-6)
    np.testing.assert_allclose(losses.training_loss(logits, None, labels, 0.0, 0.4), main, 1e-6)


@pytest.mark.parametrize("weighted", [True, False])
def test_totals(batch, weighted):
    logits, labels, weight = batch
    found = losses.totals(logits, labels, weight if weighted else None)
    weight = weight if weighted else np.ones(50)
    order = np.argsort(-logits, axis=1)
    hits = order == labels[:, None]
    expected = {
        "loss": weight @ -log_softmax(logits)[np.arange(50), labels],
        "correct": weight @ hits[:, 0],
        "correct5": weight @ hits[:, :5].any(1),
        "count": weight.sum(),
    }
    assert set(found) == set(expected) == set(losses.zero_totals())
    assert 0 < expected["correct"] < expected["correct5"] < expected["count"]
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-5)  # sums of 50 in float32


def test_ties_count_as_argmax_has_them():
    """Equal logits rank by their class: a constant network has only class 0 right."""
    labels = np.arange(8, dtype=np.int32)
    constant = [losses.totals(np.zeros((1, 8), np.float32), labels[i : i + 1]) for i in range(8)]
    assert [float(sums["correct"]) for sums in constant] == [1, 0, 0, 0, 0, 0, 0, 0]
    assert [float(sums["correct5"]) for sums in constant] == [1, 1, 1, 1, 1, 0, 0, 0]

    rng = np.random.default_rng(0)
    logits = rng.integers(0, 3, (200, 8)).astype(np.float32)  # many ties
    many = rng.integers(0, 8, 200).astype(np.int32)
    order = np.argsort(-logits, axis=1, kind="stable")
    found = losses.totals(logits, many)
    assert float(found["correct"]) == (logits.argmax(1) == many).sum()
    assert float(found["correct5"]) == (order[:, :5] == many[:, None]).any(1).sum()


def test_top5_of_fewer_classes():
    found = losses.totals(np.eye(3, dtype=np.float32), np.array([2, 0, 1], np.int32))
    assert [float(found[name]) for name in ("correct", "correct5", "count")] == [0, 3, 3]


def test_averages():
    sums = {"loss": 6.0, "correct": 1.0, "correct5": 3.0, "count": 4.0}
    assert losses.averages(sums) == {"loss": 1.5, "accuracy": 0.25, "top5": 0.75}
    assert losses.averages(losses.zero_totals()) == {"loss": 0, "accuracy": 0, "top5": 0}


def test_a_diverged_network_is_wrong():
    """Comparisons with nan are false; that must not rank the true class first."""
    logits = jnp.full((1, 8), jnp.nan)
    sums = losses.totals(logits, jnp.array([3]))
    assert (sums["correct"], sums["correct5"]) == (0, 0)
