"""Freed memory goes back to the operating system."""

import ctypes
import resource

import numpy as np
import pytest

from drnas_jax.training import memory

MIB = 2**20


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_freed_memory_is_given_back():
    # Would catch a process that keeps the memory of its compiler and of an earlier stage.
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("needs glibc")
    arrays = [np.ones(8192) for _ in range(4000)]  # small enough to come from the heap
    kept = arrays[::100]  # so that the heap has no free end
    arrays.clear()
    before = resident()
    memory.give_back_freed()
    assert before - resident() > 150 * MIB
    assert all(array.sum() == 8192 for array in kept)
