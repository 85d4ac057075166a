"""Searches several seeds at once: one program takes the step of all seeds that are equally far.

The search of each seed runs in its own thread, but hands its calls of compiled programs to the main
thread. When all searches have made a call or have ended, the main thread runs the calls, equal ones
as one program over the seeds, and lets each search go on with its result.

Only one thread works at a time, and the main thread waits only for that one. So nothing needs to be
thread-safe, and no search can wait for a call that does not come.
"""

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple

import jax

from drnas_jax.data import Loader
from drnas_jax.errors import UserError
from drnas_jax.phases.setup import Run
from drnas_jax.training import devices
from drnas_jax.training.memory import NotEnoughMemoryError
from drnas_jax.training.metrics import Display
from drnas_jax.training.signals import Interrupt, Interrupted

Programs = tuple[Callable[..., Any], ...]
Compile = Callable[[int], Programs]  # from a number of seeds to the programs for all of them

THREAD = "search of a seed"  # name of the threads
_MOST = 8  # seeds at once if the config leaves the choice


def seeds_at_once(run: Run) -> int:
    """Returns the largest number of seeds searched at once; 1 if there are several processes."""
    if jax.process_count() > 1:
        return 1
    if wanted := run.config.compute.seeds_at_once:
        return wanted
    return 1 if devices.platform(run.mesh) == "cpu" or run.dataset.workers else _MOST


class _Call(NamedTuple):
    """A call that waits: equal keys are served by one function of a list of their arguments."""

    key: Hashable
    function: Callable[[list[Any]], Sequence[Any]]
    argument: Any


class _AbandonedError(BaseException):
    """Ends the search of a seed because the run ends."""


class SeedThread:
    """The thread that searches one seed, and its exchange of calls with the main thread.

    Attributes:
      interrupt: Signal that ends the search; the main thread sets it, for all seeds between the
        same two calls.
      epoch_step: Steps that were done when the current epoch was joined.
      call: Call that waits for its result; None if the search has ended.
      error: Error with which the search has ended, or None.
    """

    def __init__(self, shared: "_Shared", run: Run, search: Callable[[Run, "SeedThread"], Any]):
        self.run, self.interrupt = run, Interrupt()
        self.epoch_step = 0
        self.call: _Call | None = None
        self.error: BaseException | None = None
        self._shared, self._search, self._abandoned = shared, search, False
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=THREAD, daemon=True)

    def share_raw(self, loader: Loader) -> None:
        """Lets the loaders of all seeds share the images of a data set in memory."""
        if self._shared.loader is None:
            self._shared.loader = loader
        else:
            loader.share_raw(self._shared.loader)

    def join_epoch(self, step: int, key: Hashable, compile_for: Compile) -> Programs:
        """Returns the programs of an epoch, which run together for all seeds with the same key.

        Seeds that are behind, because a run was killed between two checkpoints, come first.

        Args:
          step: Number of steps done. Only seeds that have done equally many run together.
          key: What determines the programs.
          compile_for: Function that compiles them for a number of seeds. It raises
            NotEnoughMemoryError if there should be fewer seeds.

        Raises:
          Interrupted: A signal has come; nothing was done since the last checkpoint.
        """
        self.epoch_step = step
        programs: Programs = self._wait_for(
            ("epoch", key), self._shared.programs_of, (self, key, compile_for)
        )
        if self.interrupt.signum:
            raise Interrupted(self.interrupt.signum)
        return programs

    def caller(self, group: object, size: int, program: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function (state, raw, *inputs) that runs a program of the group."""

        def call(*arguments: Any) -> Any:
            return self._wait_for(group, partial(_call_together, program, size), arguments)

        return call

    def _wait_for(self, key: Hashable, function: Callable[..., Any], argument: Any) -> Any:
        answer = None
        if not self._abandoned:
            self._calls.put(_Call(key, function, argument))
            answer = self._answers.get()
        if self._abandoned:
            raise _AbandonedError
        return answer

    def _work(self) -> None:
        try:
            self._search(self.run, self)
        except BaseException as error:
            self.error = error
        finally:
            self._calls.put(None)

    # What follows is called by the main thread.

    def go_on(self, answer: Any = None) -> None:
        """Lets the search begin, or go on with the result of its call, up to its next call."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._answers.put(answer)
        self.call = self._calls.get()

    def abandon(self) -> None:
        """Ends the search at its next call, and waits for its end.

        KeyboardInterrupt may end `go_on` anywhere, so this does not depend on how far it came.
        """
        self._abandoned = True
        self._answers.put(None)
        if self._thread.ident is not None:
            self._thread.join()


class _Shared:
    """The values that the searches of all seeds share.

    Attributes:
      interrupt: Signals to the process.
      loader: Loader whose images all loaders share.
    """

    def __init__(self, display: Display, interrupt: Interrupt):
        self.interrupt, self._display = interrupt, display
        self.loader: Loader | None = None
        self._programs: dict[Hashable, Programs | None] = {}  # None: they do not fit in memory

    def programs_of(
        self, members: Sequence[tuple[SeedThread, Hashable, Compile]]
    ) -> list[Programs]:
        """Returns the programs of each of these seeds, which run together as far as they fit."""
        size, (_, key, compile_for) = len(members), members[0]
        if (key, size) not in self._programs:
            self._programs[key, size] = self._compiled(size, compile_for)
        programs = self._programs[key, size]
        if programs is None:
            half = (size + 1) // 2
            return [*self.programs_of(members[:half]), *self.programs_of(members[half:])]
        group = object()
        return [tuple(thread.caller(group, size, p) for p in programs) for thread, *_ in members]

    def _compiled(self, size: int, compile_for: Compile) -> Programs | None:
        try:
            with self.interrupt.suspended():  # all seeds are at the beginning of an epoch
                return compile_for(size)
        except NotEnoughMemoryError:
            if size == 1:
                raise
            self._display.message(f"{size} seeds at once do not fit in memory: trying half of them")
            return None


def _call_together(
    program: Callable[..., Any], size: int, calls: Sequence[tuple[Any, ...]]
) -> Sequence[Any]:
    """Returns the results of one call (state, raw, *inputs) of each seed of a group."""
    assert len(calls) == size, "the seeds of a group take the same steps in an epoch"
    if size == 1:
        return [program(*calls[0])]
    states, raws, *inputs = zip(*calls, strict=True)
    results: Sequence[Any] = program(states, raws[0], *inputs)
    return results


def search_together(runs: Sequence[Run], search: Callable[[Run, SeedThread], Any]) -> None:
    """Runs the searches of several seeds at once.

    Args:
      runs: Runs of one config with several seeds.
      search: Function that searches for one of them, such as `run_search`.

    Raises:
      UserError: One of them raised it, which ended the others at their last checkpoints.
      Interrupted: A signal stopped all of them at the same step, after checkpoints were written.
    """
    with contextlib.ExitStack() as stack:
        interrupt = stack.enter_context(Interrupt())
        shared, threads = _Shared(runs[0].display, interrupt), []
        waiting = [run for run in runs if not (run.workdir / "search" / "genotype.json").exists()]
        for run in runs:
            display = run.display.of_seed(run.config.seed, in_front=run in waiting[:1])
            stack.enter_context(display)
            threads.append(SeedThread(shared, run.with_display(display), search))
        for thread in threads:
            stack.callback(thread.abandon)
        for thread in threads:
            _advance(thread)
        while any(thread.call for thread in threads):
            answers = list(_answers(threads))
            for thread, _ in answers:
                thread.interrupt.signum = interrupt.signum
            for thread, answer in answers:
                _advance(thread, answer)
        for thread in threads:
            if thread.error is not None:
                raise thread.error


def _advance(thread: SeedThread, answer: Any = None) -> None:
    """Lets a search go on; raises its error, unless it is that of a signal, which stops all."""
    thread.go_on(answer)
    if isinstance(thread.error, UserError):
        raise UserError(f"seed {thread.run.config.seed}: {thread.error}") from thread.error
    if thread.error is not None and not isinstance(thread.error, Interrupted):
        raise thread.error


def _answers(threads: Sequence[SeedThread]) -> Iterator[tuple[SeedThread, Any]]:
    """Yields the results of the waiting calls of those seeds that have done the fewest steps."""
    first = min(thread.epoch_step for thread in threads if thread.call)
    groups: dict[Hashable, list[tuple[SeedThread, _Call]]] = {}
    for thread in threads:
        if thread.call and thread.epoch_step == first:
            groups.setdefault(thread.call.key, []).append((thread, thread.call))
    for group in groups.values():
        results = group[0][1].function([call.argument for _, call in group])
        yield from zip((thread for thread, _ in group), results, strict=True)
