"""Compiles functions of one device's shard to the programs that a phase runs over all devices."""

import contextvars
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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


def step_program(step: Callable[..., Any], mesh: Mesh, donate: bool = True, seeds: int = 1) -> Any:
    """Compiles a training step so that several of them may run in one dispatch.

    Args:
      step: Function (state, raw, batches, idle) -> state of one device's shard. `raw` is a data set
        in memory, or None; `batches` has a batch [b] of each subset, and `idle` is that of the
        `Dispatch`.
      mesh: Device mesh with the single axis `data`.
      donate: Whether the new state may take the memory of the old one.
      seeds: Number of runs for which the program takes steps at once.

    Returns:
      A jitted function (state, raw, dispatch) -> state. For several seeds, states and dispatches
      are tuples with an item for each of them; the dispatches have the same `steps` and `idle`.
    """

    def several(state: Any, raw: Any, dispatch: Dispatch) -> Any:
        def one(i: Any, state: Any) -> Any:
            return step(state, raw, jax.tree.map(lambda rows: rows[i], batches), dispatch.idle)

        batches = dispatch.batches
        if jax.tree.leaves(batches)[0].shape[0] == 1:
            return one(0, state)
        return lax.fori_loop(0, dispatch.steps, one, state)

    def of_seeds(states: Any, raw: Any, dispatches: tuple[Dispatch, ...]) -> Any:
        def one_seed(state: Any, shared: Any, batches: Any) -> Any:
            raw, steps, idle = shared  # not batched, so that loops and conditions stay as they are
            return several(state, raw, Dispatch(batches, steps, idle))

        shared = (raw, dispatches[0].steps, dispatches[0].idle)
        return _side_by_side(one_seed, states, shared, tuple(d.batches for d in dispatches))

    spec = Dispatch(STEPS, REPLICATED, REPLICATED)
    donated = (0,) if donate else ()
    if seeds == 1:
        return data_parallel(several, mesh, (REPLICATED, REPLICATED, spec), donate=donated)
    specs = (REPLICATED, REPLICATED, (spec,) * seeds)
    return data_parallel(of_seeds, mesh, specs, donate=donated)


def _side_by_side(
    function: Callable[..., Any], states: Sequence[Any], shared: Any, *inputs: Sequence[Any]
) -> tuple[Any, ...]:
    """Returns function(state, shared, *inputs) of every seed, computed with a leading seed axis."""

    def stack(trees: Sequence[Any]) -> Any:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    axes = (0, None, *(0 for _ in inputs))
    results = jax.vmap(function, in_axes=axes)(stack(states), shared, *map(stack, inputs))
    return tuple(jax.tree.map(lambda leaf, i=i: leaf[i], results) for i in range(len(states)))


def sum_program(function: Callable[..., Any], mesh: Mesh, seeds: int = 1) -> Any:
    """Compiles an evaluation whose results are summed over all devices.

    Args:
      function: Function (state, raw, batch [b], weight [b]) -> sums of one device's shard.
      mesh: Device mesh with the single axis `data`.
      seeds: Number of runs that are evaluated at once.

    Returns:
      A jitted function of the same arguments that returns the sums over all devices. For several
      seeds, all arguments but `raw` and the result are tuples with an item for each of them.
    """

    def summed(*args: Any) -> Any:
        return lax.psum(function(*args), AXIS)

    def of_seeds(*args: Any) -> Any:
        return _side_by_side(summed, *args)

    chosen = summed if seeds == 1 else of_seeds
    return data_parallel(chosen, mesh, (REPLICATED, REPLICATED, SHARDED, SHARDED))
