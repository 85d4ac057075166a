"""Worker processes that read a sequence of chunks, by Grain."""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator
from multiprocessing import spawn
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

    The workers import the modules of what they read, but not the main script.

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
        with _without_main_script():
            for element in iterator:
                yield element.value
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):  # what Grain says if a worker was killed
            raise
        raise ChildProcessError(_describe(str(error).partition(". ")[0], workers)) from error
    finally:
        iterator.close()


def _describe(reason: str, workers: int) -> str:
    """Describes why a worker ended and what to do, given Grain's reason."""
    if "exit code -" in reason:  # by a signal
        advice = f"set data.workers below {workers}" if workers > 1 else "free some of it"
        return f"an input worker was killed ({reason}); if memory ran out, {advice}"
    # Before 0.2.18 Grain's workers have no name, and import the main script.
    return (
        f"an input worker failed ({reason}), for a reason printed above; if your script began "
        'again there, put its commands below `if __name__ == "__main__":`'
    )


@dataclasses.dataclass(frozen=True)
class _Sent:
    """A chunk, sent as a whole: otherwise Grain makes a file in shared memory of each array."""

    value: Any


_lock = threading.Lock()
_readers = 0  # number of contexts that are active
_prepare = spawn.get_preparation_data


@contextlib.contextmanager
def _without_main_script() -> Iterator[None]:
    """While this context is active, the workers that Grain starts do not import the main script.

    Python lets each new process import it, so that pickled objects can refer to it. A script
    without the guard `if __name__ == "__main__"` would then begin the whole run again in every
    worker, and one from standard input cannot be imported at all. Grain pickles by value what the
    script defines, so its workers do not need the script.
    """
    global _readers
    with _lock:
        _readers += 1
        spawn.get_preparation_data = _prepare_worker
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if not _readers:
                spawn.get_preparation_data = _prepare


def _prepare_worker(name: str) -> dict[str, Any]:
    """Returns the preparation data of a new process, without the main script if it is Grain's."""
    preparation = _prepare(name)
    if not name.startswith("grain-"):
        return preparation
    return {key: value for key, value in preparation.items() if not key.startswith("init_main")}


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
