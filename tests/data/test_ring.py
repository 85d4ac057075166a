"""Shared memory: seen by all, waited for, and not left behind."""

import os
import pickle
import threading

import numpy as np
import pytest

from drnas_jax.data.ring import Ring


@pytest.fixture(params=["memfd", "file"])
def make(request, monkeypatch, tmp_path):
    """Makes rings, of either kind."""
    if request.param == "memfd":
        if not hasattr(os, "memfd_create"):
            pytest.skip("this system has no memfd")
    else:
        monkeypatch.delattr(os, "memfd_create", raising=False)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return Ring


def test_another_process_sees_the_same(make):
    ring = make(3, (2, 5))
    other = pickle.loads(pickle.dumps(ring))
    for k in range(3):
        other.to_write(k)[...] = k
    ring.close()  # those who have it may go on
    for k in range(3):
        np.testing.assert_array_equal(ring.to_read(k), np.full((2, 5), k, np.uint8))
    ring.release(1)
    other.to_write(3)[...] = 9
    np.testing.assert_array_equal(ring.to_read(3), np.full((2, 5), 9))


def test_a_piece_waits_for_the_one_in_its_place(make):
    ring = make(2, (4,))
    other, written = pickle.loads(pickle.dumps(ring)), threading.Event()

    def write():
        other.to_write(2)[...] = 2
        written.set()

    ring.to_write(0)[...] = 7
    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    assert not written.wait(0.2)
    np.testing.assert_array_equal(ring.to_read(0), [7] * 4)
    ring.release(0)
    assert written.wait(60)
    np.testing.assert_array_equal(ring.to_read(2), [2] * 4)
    thread.join()
    ring.close()


def test_nobody_waits_once_all_is_released(make):
    ring = make(1, (4,))
    ring.release_all()
    assert ring.to_write(10**9).shape == (4,)
    ring.close()


def test_nothing_is_left(make, tmp_path):
    ring = make(1, (4,))
    ring.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError):
        pickle.loads(pickle.dumps(ring))
