"""Memory that the main process shares with its workers, for arrays that are too large to send.

Its pages are used again and again: touching a page for the first time costs more than filling it.
"""

import math
import mmap
import os
import sys
import tempfile
import time
from typing import Any

import numpy as np

_POLL = 1e-3  # seconds


class Ring:
    """A sequence of pieces, written by workers and read in order by the main process.

    Only a few pieces fit at a time, so a writer may have to wait until its slot is free. Pickled,
    a ring is the same memory in another process, as long as the process that made it is alive.

    Args:
      slots: Number of pieces that fit.
      shape: Shape of a piece, whose dtype is uint8.
    """

    def __init__(self, slots: int, shape: tuple[int, ...]):
        self._shape = (slots, *shape)
        size = mmap.PAGESIZE + math.prod(self._shape)
        if hasattr(os, "memfd_create"):  # has no name, so that no crash can leave it behind
            self._file = os.memfd_create("drnas_jax")
            self._path, self._named = f"/proc/{os.getpid()}/fd/{self._file}", False
        else:
            self._file, self._path = tempfile.mkstemp(prefix="drnas_jax_")
            self._named = True
        os.ftruncate(self._file, size)
        self._attach()

    def _attach(self) -> None:
        with open(self._path, "r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
        self._released = np.ndarray((), np.int64, memory)  # number of pieces that were read
        self._slots = np.ndarray(self._shape, np.uint8, memory, mmap.PAGESIZE)

    def __getstate__(self) -> dict[str, Any]:
        return {"_shape": self._shape, "_path": self._path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._attach()

    def wait_to_write(self, k: int) -> np.ndarray:
        """Returns the slot for piece k, after waiting until the piece before it was read."""
        while k >= self._released + len(self._slots):
            time.sleep(_POLL)
        return self._slots[k % len(self._slots)]

    def read(self, k: int) -> np.ndarray:
        """Returns piece k, which stays valid until it is released."""
        return self._slots[k % len(self._slots)]

    def release(self, k: int) -> None:
        """Frees the slots of all pieces up to k for writing."""
        self._released[...] = k + 1

    def release_all(self) -> None:
        """Frees all slots for good, so that no writer waits any more."""
        self.release(sys.maxsize // 2)

    def close(self) -> None:
        """Lets no other process attach. The memory is freed when the last process has ended."""
        os.close(self._file)
        if self._named:
            os.unlink(self._path)
