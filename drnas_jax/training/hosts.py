"""Several processes, on one host or many: how they find each other and agree.

The runtime is JAX's own (`jax.distributed`); what starts the processes lies in launch/.
"""

import glob
import importlib.util
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from drnas_jax.errors import UserError
from drnas_jax.training import devices

_TIMEOUT = 300  # seconds that processes wait for each other at the start


def initialize(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    detect: bool = False,
) -> None:
    """Joins the other processes of a run, if there are any. Before anything else that JAX does.

    Args:
      coordinator: HOST:PORT of process 0; with the next two, names a run by hand.
      num_processes: how many there are.
      process_id: the number of this one.
      detect: let JAX find the three, even where the environment does not tell of several.

    Raises:
      UserError: only some of the three are given, or they do not fit.
      ConnectionError: JAX cannot tell where they are, or this one cannot be their coordinator.
        When the others do not come in time, the process ends: with 1 and a line that says so.
    """
    given = (coordinator, num_processes, process_id)
    if all(value is None for value in given):
        if not (detect or launched(os.environ)):
            return
    elif None in given:
        raise UserError(
            "--coordinator, --num_processes and --process_id belong together: give all three, or "
            "none where the launcher tells (TPU, Slurm, Open MPI 4)"
        )
    elif not 0 <= process_id < num_processes:  # type: ignore[operator]
        raise UserError(
            f"--process_id is {process_id}: expected 0 to {num_processes - 1}"  # type: ignore[operator]
        )
    elif not re.fullmatch(r".+:\d+", coordinator):  # type: ignore[arg-type]
        raise UserError(f"--coordinator is {coordinator}: expected HOST:PORT")
    # It would swallow a SIGTERM that comes before our own handlers are there.
    jax.config.update("jax_enable_preemption_service", False)
    # When JAX's own time is over it aborts, with a stack trace.
    timer = threading.Timer(_TIMEOUT, _give_up)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(*given, initialization_timeout=_TIMEOUT + 60)
    except (ValueError, RuntimeError) as error:
        raise ConnectionError(_not_found(" ".join(str(error).split())[:300])) from error
    finally:
        timer.cancel()


def _give_up() -> None:
    os.write(2, f"error: {_not_found(f'waited for {_TIMEOUT} s')}\n".encode())
    os._exit(1)


def _not_found(reason: str) -> str:
    return (
        f"the processes of this run did not find each other ({reason}): start all of them with the "
        "same --coordinator, or let a script of launch/ do so"
    )


def launched(environment: Mapping[str, str]) -> bool:
    """Whether a launcher that JAX knows has started several processes, or this is a TPU host.

    Raises:
      UserError: Open MPI has, in a version that JAX does not know.
    """
    if environment.get("JAX_COORDINATOR_ADDRESS"):
        return True
    if int(environment.get("SLURM_NTASKS") or 1) > 1 and "SLURM_STEP_NODELIST" in environment:
        return True
    if int(environment.get("OMPI_COMM_WORLD_SIZE") or 1) > 1:
        if "OMPI_MCA_orte_hnp_uri" in environment:
            return True
        raise UserError(
            "JAX finds the processes of Open MPI up to version 4 alone: give each "
            "--coordinator=HOST:PORT --num_processes=$OMPI_COMM_WORLD_SIZE "
            "--process_id=$OMPI_COMM_WORLD_RANK"
        )
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def is_primary() -> bool:
    """Whether this process writes the logs and files."""
    return jax.process_index() == 0


def from_primary(function: Callable[[], Any]) -> Any:
    """What a function gives in process 0, in all processes. They wait for it.

    Args:
      function: called in process 0 alone; gives JSON values.

    Raises:
      UserError, OSError: the function raised it; in all processes.
    """
    if jax.process_count() == 1:
        return function()
    text = b""
    if is_primary():
        try:
            outcome = {"value": function()}
        except (UserError, OSError) as error:
            outcome = {"error": str(error), "user": isinstance(error, UserError)}
        text = json.dumps(outcome).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(text), np.int32)))
    buffer = np.frombuffer(text, np.uint8) if is_primary() else np.zeros(size, np.uint8)
    outcome = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes())
    if "error" in outcome:
        raise (UserError if outcome["user"] else OSError)(outcome["error"])
    return outcome["value"]


def total(value: np.ndarray | int) -> np.ndarray:
    """The sum of a number or an array over all processes. They wait for each other."""
    if jax.process_count() == 1:
        return np.asarray(value)
    return np.sum(multihost_utils.process_allgather(np.asarray(value)), axis=0)


class Agreement:
    """The highest of the numbers that the processes name: they all get the same answer.

    Args:
      mesh: all devices.
    """

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self._asked: jax.Array | None = None
        self._program = devices.data_parallel(
            lambda numbers: lax.pmax(numbers[0], devices.AXIS), mesh, (devices.SHARDED,)
        )

    def before(self, number: int) -> int:
        """Names a number and gives the answer to the one before, so that nothing has to wait."""
        if jax.process_count() == 1:
            return number
        answer, self._asked = self._asked, self._ask(number)
        return 0 if answer is None else int(answer)

    def now(self, number: int) -> int:
        """Names a number and waits for the answer; those named before count too."""
        if jax.process_count() == 1:
            return number
        return max(self.before(number), self.before(number))

    def _ask(self, number: int) -> jax.Array:
        numbers = np.full(len(devices.local_rows(self._mesh, self._mesh.size)), number, np.int32)
        return self._program(
            devices.place_rows(numbers, self._mesh, devices.SHARDED, self._mesh.size)
        )
