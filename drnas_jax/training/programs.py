"""Compiles functions of one device's shard to the programs that a phase runs over all devices."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import Mesh

from drnas_jax.training.devices import AXIS, REPLICATED, SHARDED, STEPS, data_parallel


def step_program(step: Callable[..., Any], mesh: Mesh, batches: int, donate: bool = True) -> Any:
    """Compiles a training step so that several of them may run in one dispatch.

    Args:
      step: Function (state, raw, *batches [b]) -> state of one device's shard. `raw` is a data set
        in memory, or None.
      mesh: Device mesh with the single axis `data`.
      batches: Number of batches that a step takes.
      donate: Whether the new state may take the memory of the old one.

    Returns:
      A jitted function (state, raw, *batches [steps, b]) -> state.
    """

    def several(state: Any, raw: Any, *stacked: Any) -> Any:
        if jax.tree.leaves(stacked)[0].shape[0] == 1:
            return step(state, raw, *jax.tree.map(lambda rows: rows[0], stacked))
        return lax.scan(lambda carry, rows: (step(carry, raw, *rows), None), state, stacked)[0]

    specs = (REPLICATED, REPLICATED, *(STEPS,) * batches)
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
