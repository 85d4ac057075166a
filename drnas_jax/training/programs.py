"""Compiles functions of one device's shard to the programs that a phase runs over all devices."""

import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.sharding import Mesh

from drnas_jax.training.devices import AXIS, REPLICATED, SHARDED, STEPS, data_parallel


class Dispatch(NamedTuple):
    """The input of the steps that run in one dispatch.

    The shapes are always the same, so that one program serves all dispatches of a phase.

    Attributes:
      batches: Tuple of the batches [steps, b], one of each subset that a step takes images of.
      steps: Number of steps to take, int32 []; the rows after them are not read.
      idle: Whether a subset is idle, bool [subsets]; its batch is then that of the first subset,
        and must not be used.
    """

    batches: Any
    steps: Any
    idle: Any


_THREADS = ThreadPoolExecutor(2, "compile")


def in_background(function: Callable[[], Any]) -> "Future[Any]":
    """Calls a function in another thread, such as one that traces or compiles a program.

    XLA uses one core for much of a compilation, and releases Python's lock meanwhile.
    """
    return _THREADS.submit(contextvars.copy_context().run, function)


def step_program(step: Callable[..., Any], mesh: Mesh, donate: bool = True) -> Any:
    """Compiles a training step so that several of them may run in one dispatch.

    Args:
      step: Function (state, raw, batches, idle) -> state of one device's shard. `raw` is a data set
        in memory, or None; `batches` has a batch [b] of each subset, and `idle` is that of the
        `Dispatch`.
      mesh: Device mesh with the single axis `data`.
      donate: Whether the new state may take the memory of the old one.

    Returns:
      A jitted function (state, raw, dispatch) -> state.
    """

    def several(state: Any, raw: Any, dispatch: Dispatch) -> Any:
        def one(i: Any, state: Any) -> Any:
            return step(state, raw, jax.tree.map(lambda rows: rows[i], batches), dispatch.idle)

        batches = dispatch.batches
        if jax.tree.leaves(batches)[0].shape[0] == 1:
            return one(0, state)
        return lax.fori_loop(0, dispatch.steps, one, state)

    specs = (REPLICATED, REPLICATED, Dispatch(STEPS, REPLICATED, REPLICATED))
    return data_parallel(several, mesh, specs, donate=(0,) if donate else ())


def sum_program(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Compiles an evaluation whose results are summed over all devices.

    Args:
      function: Function (state, raw, batch [b], weight [b]) -> sums of one device's shard.
      mesh: Device mesh with the single axis `data`.

    Returns:
      A jitted function of the same arguments that returns the sums over all devices.
    """

    def summed(*args: Any) -> Any:
        return lax.psum(function(*args), AXIS)

    return data_parallel(summed, mesh, (REPLICATED, REPLICATED, SHARDED, SHARDED))
