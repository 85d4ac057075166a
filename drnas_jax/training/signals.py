"""SIGTERM, Ctrl-C and a closed terminal end a run at the next step, after a checkpoint.

A second Ctrl-C ends it at once.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _signals() -> list[signal.Signals]:
    """Those to note: all, but for a SIGHUP that nohup told to ignore."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signum for signum in _SIGNALS if not (ignored and signum == signal.SIGHUP)]


class Interrupted(Exception):
    """The run was asked to stop, and nothing is unsaved; `signum` says by which signal."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Interrupt:
    """Notes signals while it is entered. Outside the main thread it notes none.

    Who enters it asks for `signum` and raises Interrupted; it is raised at the end where a signal
    came after the last question.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._old: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for signum in _signals():
                self._old[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._put_back()
        if kind is None and self.signum is not None:
            raise Interrupted(self.signum)

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Within it signals do what they did before it was entered: there is nothing to save.

        Raises:
          Interrupted: one was noted already.
        """
        noting = {signum: signal.getsignal(signum) for signum in self._old}
        self._put_back()
        if self.signum is not None:
            raise Interrupted(self.signum)
        try:
            yield
        finally:
            for signum, handler in noting.items():
                signal.signal(signum, handler)

    def _put_back(self) -> None:
        for signum, handler in self._old.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum


@contextlib.contextmanager
def exit_at_once() -> Iterator[None]:
    """Ends the process on a signal where no Interrupt is entered: there is nothing to save there.

    Not by a KeyboardInterrupt, which is lost where it is raised in a callback, such as the one that
    JAX has in the garbage collector.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {signum: signal.signal(signum, _exit) for signum in _signals()}
    try:
        yield
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)


def _exit(signum: int, frame: FrameType | None) -> None:
    name = signal.Signals(signum).name
    os.write(2, f"stopped by {name}; the same command goes on from the last checkpoint\n".encode())
    os._exit(128 + signum)
