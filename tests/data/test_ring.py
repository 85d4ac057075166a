"""Shared memory: all processes see it, writers wait for it, and none is left behind."""

import os
import pickle
import threading

import numpy as np
import pytest

from drnas_jax.data.ring import Ring


@pytest.fixture(params=["memfd", "file"])
def make(request, monkeypatch, tmp_path):
    """Makes rings of both kinds: without a name in the file system, and with one."""
    if request.param == "memfd":
        if not hasattr(os, "memfd_create"):
            pytest.skip("this system has no memfd")
    else:
        monkeypatch.delattr(os, "memfd_create", raising=False)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return Ring


def test_a_pickled_ring_is_the_same_memory(make):
    # Catches a worker that writes into a copy.
    ring = make(3, (2, 5))
    other = pickle.loads(pickle.dumps(ring))
    for k in range(3):
        other.wait_to_write(k)[...] = k
    ring.close()  # processes that are attached keep the memory
    for k in range(3):
        np.testing.assert_array_equal(ring.read(k), np.full((2, 5), k, np.uint8))
    ring.release(1)
    other.wait_to_write(3)[...] = 9
    np.testing.assert_array_equal(ring.read(3), np.full((2, 5), 9))


def test_a_writer_waits_until_its_slot_was_read(make):
    # Catches a batch that a fast worker overwrites.
    ring = make(2, (4,))
    other, written = pickle.loads(pickle.dumps(ring)), threading.Event()

    def write():
        other.wait_to_write(2)[...] = 2
        written.set()

    ring.wait_to_write(0)[...] = 7
    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    assert not written.wait(0.2)
    np.testing.assert_array_equal(ring.read(0), [7] * 4)
    ring.release(0)
    assert written.wait(60)
    np.testing.assert_array_equal(ring.read(2), [2] * 4)
    thread.join()
    ring.close()


def test_no_writer_waits_after_all_is_released(make):
    # Catches workers that never end because they wait for a slot.
    ring = make(1, (4,))
    ring.release_all()
    assert ring.wait_to_write(10**9).shape == (4,)
    ring.close()


def test_a_closed_ring_leaves_nothing_behind(make, tmp_path):
    # Catches files that fill up the disk over many runs.
    ring = make(1, (4,))
    ring.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError):
        pickle.loads(pickle.dumps(ring))
