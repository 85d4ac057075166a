"""Signals that stop a run: SIGTERM, Ctrl-C and a closed terminal.

Inside `Interrupt` the run stops at the next step, after a checkpoint; a second Ctrl-C stops it at
once. Inside `exit_at_once`, which covers the rest of the program, any of these signals does.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

RESUMES = "the same command resumes from the last checkpoint, or begins again if there is none"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _signals() -> list[signal.Signals]:
    """Returns the signals to handle: all of them, without SIGHUP if nohup made it ignored."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signum for signum in _SIGNALS if not (ignored and signum == signal.SIGHUP)]


class Interrupted(Exception):
    """A signal stopped the run, and everything worth keeping is saved.

    Attributes:
      signum: Number of the signal.
    """

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Interrupt:
    """A context in which a signal only sets `signum`.

    The loop polls `signum`, saves a checkpoint and raises `Interrupted`. If a signal comes after
    the last poll, the context raises it at its end. Outside the main thread Python delivers no
    signals, so the context does nothing there.

    Attributes:
      signum: Number of the last signal, or None if none has come.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, object] = {}  # the handlers outside this context

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for signum in _signals():
                self._previous[signum] = signal.signal(signum, self._record)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._restore_handlers()
        if kind is None and self.signum is not None:
            raise Interrupted(self.signum)

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Lets signals act for a while as they did outside: there is nothing to save.

        Raises:
          Interrupted: If a signal has already come.
        """
        handlers = {signum: signal.getsignal(signum) for signum in self._previous}
        self._restore_handlers()
        if self.signum is not None:
            raise Interrupted(self.signum)
        try:
            yield
        finally:
            for signum, handler in handlers.items():
                signal.signal(signum, handler)

    def _restore_handlers(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def _record(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum


@contextlib.contextmanager
def exit_at_once() -> Iterator[None]:
    """A context in which a signal ends the process at once, since there is nothing to save.

    `Interrupt` takes precedence while it is active inside. The handler does not raise
    KeyboardInterrupt, because an exception is lost if it is raised in a callback such as the one
    that JAX registers with the garbage collector.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {signum: signal.signal(signum, _exit) for signum in _signals()}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _exit(signum: int, frame: FrameType | None) -> None:
    name = signal.Signals(signum).name
    os.write(2, f"stopped by {name}; {RESUMES}\n".encode())
    os._exit(128 + signum)
