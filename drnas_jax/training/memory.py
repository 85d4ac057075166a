"""The memory that a compiled program needs, and that a device has."""

import ctypes
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from drnas_jax.errors import UserError


class NotEnoughMemoryError(UserError):
    """A program needs more memory than a device has."""


def needed(compiled: Any) -> int:
    """Returns the bytes that a compiled program needs on each device, its arguments included."""
    analysis = compiled.memory_analysis()
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
        + analysis.generated_code_size_in_bytes
    )


def available(mesh: Mesh) -> int | None:
    """Returns the bytes that JAX may use on each device, or None if devices do not report them."""
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in mesh.local_devices]
    return min(limits) or None


def or_remat(remat: str) -> str:
    """Returns the last part of advice on memory; '' if `compute.remat` already saves the most."""
    return "" if remat == "cells" else f", or set compute.remat ('{remat}') to 'cells'"


def compile_within(lowered: Any, mesh: Mesh, what: str, advice: Callable[[], str]) -> Any:
    """Compiles a program, and checks that the devices have enough memory for it.

    The process gives the memory of an earlier stage and that of the compiler back to the system.

    Args:
      lowered: Lowered program.
      mesh: Device mesh with the single axis `data`.
      what: Name of the program in the message.
      advice: Function that returns what the user can do if the memory does not suffice.

    Raises:
      NotEnoughMemoryError: The program needs more memory than a device has.
    """
    limit = available(mesh)
    give_back_freed()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).splitlines()[0][:200]
        raise NotEnoughMemoryError(
            f"{what} does not fit in memory ({reason}): {advice()}"
        ) from error
    if limit is not None and needed(compiled) > limit:
        raise NotEnoughMemoryError(
            f"{what} needs {needed(compiled) / 2**30:.2f} GiB of memory on each device, and JAX "
            f"may use {limit / 2**30:.2f} GiB: {advice()}"
        )
    give_back_freed()
    return compiled


def give_back_freed() -> None:
    """Gives freed memory of the process back to the operating system.

    The C library keeps it otherwise: after the first stage of a search on CPUs that is 300 MiB.
    Does nothing if the C library is not glibc.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
