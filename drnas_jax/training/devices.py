"""Data parallelism: `jit` of `shard_map` over a device mesh with the single axis `data`.

This is what `pmap` does today: since jax 0.8 it is itself built on `jit` and `shard_map`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from drnas_jax.errors import UserError
from drnas_jax.training import compiler

AXIS = "data"
REPLICATED = PartitionSpec()
SHARDED = PartitionSpec(AXIS)
STEPS = PartitionSpec(None, AXIS)  # the batches of several steps: [steps, batch, ...]

_MAX_STEPS_PER_DISPATCH = 16


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Creates the mesh of the given devices, or of all devices of the run."""
    return Mesh(np.array(devices if devices is not None else jax.devices()), (AXIS,))


def platform(mesh: Mesh) -> str:
    """Returns the platform of the mesh's devices: 'cpu', 'gpu' or 'tpu'."""
    return mesh.devices.flat[0].platform


def check_batch(batch_size: int, mesh: Mesh, field: str) -> None:
    """Raises a UserError unless the global batch divides evenly over the mesh's devices.

    Args:
      batch_size: Number of examples in a global batch.
      mesh: Device mesh with the single axis `data`.
      field: Name of the config field that holds the batch size, for the message.
    """
    if batch_size % mesh.size:
        raise UserError(
            f"{field} = {batch_size} is not divisible by the {mesh.size} devices: "
            f"choose a multiple of {mesh.size}"
        )


def place(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """Places arrays on the devices, given that every process holds the same whole arrays.

    Args:
      tree: Pytree of arrays.
      mesh: Device mesh with the single axis `data`.
      spec: Partition of every array: REPLICATED, SHARDED or STEPS.
    """
    sharding = NamedSharding(mesh, spec)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def place_array(array: Any) -> jax.Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place_array, tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Places a copy of every array of a pytree on every device."""
    return place(tree, mesh, REPLICATED)


def abstract(tree: Any, mesh: Mesh) -> Any:
    """Returns the shapes and shardings of replicated arrays, for compiling.

    Args:
      tree: Pytree of arrays or shapes.
      mesh: Device mesh with the single axis `data`.
    """
    sharding = NamedSharding(mesh, REPLICATED)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def local_rows(mesh: Mesh, size: int) -> np.ndarray:
    """Returns which examples of a global batch this process's devices hold.

    Args:
      mesh: Device mesh with the single axis `data`.
      size: Number of examples in a global batch.

    Returns:
      Sorted indices into the global batch, int [b].
    """
    slices = NamedSharding(mesh, SHARDED).addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[index] for index in slices]))


def place_rows(tree: Any, mesh: Mesh, spec: PartitionSpec, size: int) -> Any:
    """Places a batch on the devices, given that each process holds only its `local_rows`.

    Args:
      tree: Pytree of arrays. Their batch axis is the first one or, with STEPS, the second one.
      mesh: Device mesh with the single axis `data`.
      spec: Partition of every array: SHARDED or STEPS.
      size: Number of examples in the global batch.
    """
    sharding, axis = NamedSharding(mesh, spec), tuple(spec).index(AXIS)

    def place_array(array: np.ndarray) -> jax.Array:
        shape = (*array.shape[:axis], size, *array.shape[axis + 1 :])
        return jax.make_array_from_process_local_data(sharding, array, shape)

    return jax.tree.map(place_array, tree)


def run_once(function: Callable[[jax.Array], Any], mesh: Mesh, seed: int) -> Any:
    """Compiles a function of the seed, runs it once, and replicates its result on all devices.

    Args:
      function: Function from a seed (uint32 scalar) to a pytree of arrays.
      mesh: Device mesh with the single axis `data`.
      seed: Seed of the run.
    """
    compiled = jax.jit(function, compiler_options=compiler.options(platform(mesh), once=True))
    return replicate(compiled(np.uint32(seed)), mesh)


def data_parallel(
    function: Callable[..., Any],
    mesh: Mesh,
    in_specs: tuple[Any, ...],
    out_specs: Any = REPLICATED,
    donate: tuple[int, ...] = (),
) -> Any:
    """Compiles a function that every device runs on its shards of the arguments.

    The function communicates between devices by collectives over AXIS. It must itself make its
    replicated outputs equal on all devices, for example by `lax.pmean`.

    Args:
      function: Function of one device's shards.
      mesh: Device mesh with the single axis `data`.
      in_specs: Partition of each argument, a PartitionSpec or a pytree of them.
      out_specs: Partition of the result, a prefix of its pytree.
      donate: Positions of the arguments whose memory the result may reuse.
    """
    # check_vma=False: gradients are averaged explicitly, and custom gradients stay free of casts.
    sharded = jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    options = compiler.options(platform(mesh))
    return jax.jit(sharded, donate_argnums=donate, compiler_options=options)


def steps_per_dispatch(mesh: Mesh, steps: int) -> int:
    """Returns the largest number of steps in one dispatch.

    On CPUs it is 1, since a dispatch costs little there and convolutions inside a loop are slow.

    Args:
      mesh: Device mesh with the single axis `data`.
      steps: Number of steps in an epoch.
    """
    return 1 if platform(mesh) == "cpu" else min(steps, _MAX_STEPS_PER_DISPATCH)
