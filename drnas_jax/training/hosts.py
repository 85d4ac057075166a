"""Lets several processes, on one host or many, find each other and agree.

The runtime is JAX's own (`jax.distributed`). The scripts in launch/ start the processes.
"""

import glob
import importlib.util
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from drnas_jax.errors import UserError
from drnas_jax.training import devices

_TIMEOUT = 300  # seconds that the processes wait for each other at the start
_GOOGLE = "0x1ae0"  # PCI vendor of TPUs, and of network cards in Google's cloud


class PrimaryFailedError(RuntimeError):
    """Process 0 failed; only that process has the traceback of the error."""


def initialize(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    detect: bool = False,
) -> None:
    """Joins the other processes of a run, if there are any.

    It must run before anything else that uses JAX's devices. Without arguments it asks JAX to
    find the other processes, but only if the environment says that there are several, or if this
    may be the host of a TPU. If JAX finds that it is none, this process runs alone and says so.

    Args:
      coordinator: Address of process 0, as HOST:PORT.
      num_processes: Number of processes of the run.
      process_id: Number of this process, from 0.
      detect: Whether to let JAX find the three values even if the environment does not say that
        there are several processes.

    Raises:
      UserError: If only some of the three values are given, or if one is out of range.
      ConnectionError: If JAX cannot find the other processes, or if this process cannot be their
        coordinator. If the others do not come in time, the process prints one line and exits
        with code 1.
    """
    given = (coordinator, num_processes, process_id)
    sure = True  # whether there are certainly other processes
    if coordinator is None and num_processes is None and process_id is None:
        sure = detect or launched(os.environ)
        if not (sure or may_be_tpu_host()):
            return
    else:
        _check_given(*given)
    # JAX's preemption service would swallow a SIGTERM that comes before our handlers are set.
    jax.config.update("jax_enable_preemption_service", False)
    # JAX aborts with a stack trace when its own timeout ends, so ours ends a minute earlier.
    timer = threading.Timer(_TIMEOUT, _exit_after_timeout)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(*given, initialization_timeout=_TIMEOUT + 60)
    except (ValueError, RuntimeError, OSError) as error:  # OSError: from the metadata of a TPU
        if not sure and "coordinator_address should be defined" in str(error):
            print(
                "this machine may have TPUs, but JAX knows of no other hosts: this process runs "
                "alone; if there are others, start each with --distributed",
                file=sys.stderr,
            )
            return
        reason = " ".join(str(error).split())[:300]
        raise ConnectionError(_connection_message(reason)) from error
    finally:
        timer.cancel()


def _check_given(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Raises UserError unless all three values are given and in range; see `initialize`."""
    if coordinator is None or num_processes is None or process_id is None:
        raise UserError(
            "--coordinator, --num_processes and --process_id belong together: give all three, or "
            "none if the launcher sets them (TPU, Slurm, Open MPI 4)"
        )
    if not 0 <= process_id < num_processes:
        raise UserError(f"--process_id is {process_id}: expected 0 to {num_processes - 1}")
    if not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"--coordinator is {coordinator}: expected HOST:PORT")


def _exit_after_timeout() -> None:
    os.write(2, f"error: {_connection_message(f'waited for {_TIMEOUT} s')}\n".encode())
    os._exit(1)


def _connection_message(reason: str) -> str:
    return (
        f"the processes of this run did not find each other ({reason}): start all of them with the "
        "same --coordinator, or by one of the scripts in launch/"
    )


def launched(environment: Mapping[str, str]) -> bool:
    """Returns whether a launcher that JAX knows has started several processes.

    Args:
      environment: Environment variables of this process.

    Raises:
      UserError: If Open MPI has started several processes in a version that JAX does not know.
    """
    if environment.get("JAX_COORDINATOR_ADDRESS"):
        return True
    if int(environment.get("SLURM_NTASKS") or 1) > 1 and "SLURM_STEP_NODELIST" in environment:
        return True
    if int(environment.get("OMPI_COMM_WORLD_SIZE") or 1) > 1:
        if "OMPI_MCA_orte_hnp_uri" in environment:
            return True
        raise UserError(
            "JAX finds the processes of Open MPI only up to version 4: give each process "
            "--coordinator=HOST:PORT --num_processes=$OMPI_COMM_WORLD_SIZE "
            "--process_id=$OMPI_COMM_WORLD_RANK"
        )
    return False


def may_be_tpu_host() -> bool:
    """Returns whether this machine may have TPUs; then JAX can ask it for the other hosts.

    Devices under /dev/vfio exist wherever a device is passed through to a virtual machine, and
    libtpu may be installed only to plan. So there must also be a PCI device of Google.
    """
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    if not chips or importlib.util.find_spec("libtpu") is None:
        return False
    return _GOOGLE in _pci_vendors()


def _pci_vendors() -> set[str]:
    """Returns the vendors of all PCI devices, such as `0x10de`."""
    return {Path(file).read_text().strip() for file in glob.glob("/sys/bus/pci/devices/*/vendor")}


def cores() -> int:
    """Returns the number of CPU cores that this process may use.

    A scheduler may allow a job fewer cores than the machine has.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_primary() -> bool:
    """Returns whether this is process 0, which writes the logs and files."""
    return jax.process_index() == 0


def from_primary(function: Callable[[], Any]) -> Any:
    """Calls a function in process 0 and returns its result in all processes, which wait for it.

    Args:
      function: Function that is called only in process 0. It returns JSON values.

    Raises:
      UserError, OSError: If the function raised it. All processes raise it.
      PrimaryFailedError: In the other processes, if the function raised anything else.
    """
    if jax.process_count() == 1:
        return function()
    text, failure = b"", None
    if is_primary():
        try:
            text = json.dumps({"value": function()}).encode()
        except BaseException as error:  # of any kind: without an answer the others would wait
            failure = error
            text = json.dumps(_describe(error)).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(text), np.int32)))
    buffer = np.frombuffer(text, np.uint8) if is_primary() else np.zeros(size, np.uint8)
    outcome = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes())
    if failure is not None:
        raise failure
    if "error" in outcome:
        raise _KINDS[outcome["kind"]](outcome["error"])
    return outcome["value"]


_KINDS = {"user": UserError, "system": OSError, "other": PrimaryFailedError}


def _describe(error: BaseException) -> dict[str, str]:
    """Describes an error so that the other processes can raise it too."""
    if isinstance(error, UserError):
        return {"kind": "user", "error": str(error)}
    if isinstance(error, OSError):
        return {"kind": "system", "error": str(error)}
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return {"kind": "other", "error": f"process 0 failed ({reason}): see its output"}


def gather(value: Any) -> list[Any]:
    """Returns the values of all processes in their order; all of them wait for each other.

    Args:
      value: JSON value of this process.
    """
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(text), np.int32))
    padded = np.zeros(np.max(sizes), np.uint8)
    padded[: len(text)] = text
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def total(value: np.ndarray | int) -> np.ndarray:
    """Sums a number or an array over all processes, which wait for each other."""
    if jax.process_count() == 1:
        return np.asarray(value)
    return np.sum(multihost_utils.process_allgather(np.asarray(value)), axis=0)


class Agreement:
    """An all-reduce by which all processes learn the highest number that any of them submits.

    All processes must call its methods in the same order.

    Args:
      mesh: Mesh of all devices of the run, with the single axis `data`.
    """

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self._pending: jax.Array | None = None
        self._program = devices.data_parallel(
            lambda numbers: lax.pmax(numbers[0], devices.AXIS), mesh, (devices.SHARDED,)
        )

    def before(self, number: int) -> int:
        """Submits a number and returns the answer to the previous one, without waiting.

        The answer to the first call is 0. A single process gets its number back at once.

        Args:
          number: Number of this process, 0 or more.
        """
        if jax.process_count() == 1:
            return number
        answer, self._pending = self._pending, self._reduce(number)
        return 0 if answer is None else int(answer)

    def now(self, number: int) -> int:
        """Submits a number and waits for the answer, which includes the previous numbers.

        Args:
          number: Number of this process, 0 or more.
        """
        if jax.process_count() == 1:
            return number
        return max(self.before(number), self.before(number))

    def _reduce(self, number: int) -> jax.Array:
        """Starts the all-reduce; every device of this process contributes the number."""
        numbers = np.full(len(devices.local_rows(self._mesh, self._mesh.size)), number, np.int32)
        return self._program(
            devices.place_rows(numbers, self._mesh, devices.SHARDED, self._mesh.size)
        )
