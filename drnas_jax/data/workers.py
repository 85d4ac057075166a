"""Worker processes that read a sequence of chunks, by Grain."""

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator
from typing import Any, Protocol

import cv2
import grain
from absl import flags

AHEAD = 2  # chunks of each worker that wait to be sent


class Chunks(Protocol):
    """A sequence that reads a chunk when it is indexed; it is pickled to be sent to workers."""

    def __len__(self) -> int:
        """Returns the number of chunks."""

    def __getitem__(self, k: int) -> Any:
        """Reads one chunk."""


def read_in_workers(chunks: Chunks, workers: int) -> Generator[Any, None, None]:
    """Yields chunks in order, read by worker processes, which end with the generator.

    Args:
      chunks: What to read.
      workers: Number of processes.

    Raises:
      ChildProcessError: A worker was killed.
    """
    if not flags.FLAGS.is_parsed():  # Grain reads flags of its own; their defaults are right
        flags.FLAGS.mark_as_parsed()
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    dataset = grain.MapDataset.source(chunks).map(_Sent).to_iter_dataset(options)
    processes = grain.MultiprocessingOptions(workers, per_worker_buffer_size=AHEAD)
    iterator = iter(dataset.mp_prefetch(processes, worker_init_fn=_begin_worker))
    try:
        for element in iterator:
            yield element.value
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):  # what Grain says if a worker was killed
            raise
        reason = str(error).partition(". ")[0]
        advice = f"set data.workers below {workers}" if workers > 1 else "free some of it"
        raise ChildProcessError(
            f"an input worker was killed ({reason}); if memory ran out, {advice}"
        ) from error
    finally:
        iterator.close()


@dataclasses.dataclass(frozen=True)
class _Sent:
    """A chunk, sent as a whole: otherwise Grain makes a file in shared memory of each array."""

    value: Any


def _begin_worker(number: int, count: int) -> None:
    """Ignores signals, which are for the main process, and ends if the main process is killed."""
    del number, count
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    cv2.setNumThreads(1)
    main = multiprocessing.parent_process()

    def watch() -> None:
        if main is not None:
            main.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
