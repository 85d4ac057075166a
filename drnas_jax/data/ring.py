"""Memory that the main process shares with its workers, for what is too large to send.

Its pages are used again and again: the first touch of a page costs more than to fill it.
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
    """Pieces of a sequence, written by workers and read in order; a piece may wait for its slot.

    Pickled, it is the same memory in another process, while the one that made it is alive.

    Args:
      slots: pieces that it holds.
      shape: of a piece, uint8.
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
        self._released = np.ndarray((), np.int64, memory)  # how many pieces were read
        self._slots = np.ndarray(self._shape, np.uint8, memory, mmap.PAGESIZE)

    def __getstate__(self) -> dict[str, Any]:
        return {"_shape": self._shape, "_path": self._path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._attach()

    def to_write(self, k: int) -> np.ndarray:
        """The slot of piece k, once the piece that was there has been read."""
        while k >= self._released + len(self._slots):
            time.sleep(_POLL)
        return self._slots[k % len(self._slots)]

    def to_read(self, k: int) -> np.ndarray:
        """Piece k, until it is released."""
        return self._slots[k % len(self._slots)]

    def release(self, k: int) -> None:
        """All pieces up to k have been read."""
        self._released[...] = k + 1

    def release_all(self) -> None:
        """Nobody reads any more, and nobody waits."""
        self.release(sys.maxsize // 2)

    def close(self) -> None:
        """No other process may begin to use it. What is in use is freed with the last one's end."""
        os.close(self._file)
        if self._named:
            os.unlink(self._path)
