"""Data parallelism: `jit` of `shard_map` over a mesh with the one axis `data`.

That is the pmapped step in its current form: since jax 0.8 `pmap` is itself built so.
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
STEPS = PartitionSpec(None, AXIS)  # batches of several steps

_MOST_STEPS_A_DISPATCH = 16


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of these devices, or of all."""
    return Mesh(np.array(devices if devices is not None else jax.devices()), (AXIS,))


def platform(mesh: Mesh) -> str:
    """The platform of the mesh's devices: 'cpu', 'gpu' or 'tpu'."""
    return mesh.devices.flat[0].platform


def check_batch(batch_size: int, mesh: Mesh, field: str) -> None:
    """Raises UserError unless the mesh's devices divide the global batch."""
    if batch_size % mesh.size:
        raise UserError(
            f"{field} = {batch_size} is not divisible by the {mesh.size} devices: "
            f"choose a multiple of {mesh.size}"
        )


def place(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """Puts arrays that every process has whole, and alike, onto the devices."""
    sharding = NamedSharding(mesh, spec)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def one(array: Any) -> jax.Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(one, tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of every array on every device."""
    return place(tree, mesh, REPLICATED)


def local_rows(mesh: Mesh, size: int) -> np.ndarray:
    """The places in a global batch that lie on devices of this process, in order, int [b]."""
    slices = NamedSharding(mesh, SHARDED).addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[index] for index in slices]))


def place_rows(tree: Any, mesh: Mesh, spec: PartitionSpec, size: int) -> Any:
    """Puts onto the devices arrays of which each process has only its `local_rows`.

    Args:
      tree: arrays with the batch on the first axis or, with STEPS, on the second.
      mesh: the devices.
      spec: SHARDED or STEPS.
      size: of the global batch.
    """
    sharding, axis = NamedSharding(mesh, spec), tuple(spec).index(AXIS)

    def one(array: np.ndarray) -> jax.Array:
        shape = (*array.shape[:axis], size, *array.shape[axis + 1 :])
        return jax.make_array_from_process_local_data(sharding, array, shape)

    return jax.tree.map(one, tree)


def run_once(function: Callable[[jax.Array], Any], mesh: Mesh, seed: int) -> Any:
    """Runs a function of a seed compiled, once; a copy of what it gives lies on every device."""
    compiled = jax.jit(function, compiler_options=compiler.options(platform(mesh), once=True))
    return replicate(compiled(np.uint32(seed)), mesh)


def data_parallel(
    function: Callable[..., Any],
    mesh: Mesh,
    in_specs: tuple[PartitionSpec, ...],
    out_specs: Any = REPLICATED,
    donate: tuple[int, ...] = (),
) -> Any:
    """Compiles a function of per-device shards; it communicates by collectives over AXIS.

    Args:
      function: called once a device with its shards; must make replicated outputs equal itself.
      mesh: the devices.
      in_specs: of each argument; out_specs: of the result.
      donate: arguments whose memory the result may take.
    """
    # check_vma=False: gradients are averaged explicitly, and custom gradients stay free of casts.
    sharded = jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    options = compiler.options(platform(mesh))
    return jax.jit(sharded, donate_argnums=donate, compiler_options=options)


def steps_per_dispatch(mesh: Mesh, steps: int) -> int:
    """How many steps to scan over in one dispatch: a divisor of these steps.

    One on the CPU, where a dispatch costs little and convolutions in a loop are slow.
    """
    if platform(mesh) == "cpu":
        return 1
    return max(n for n in range(1, _MOST_STEPS_A_DISPATCH + 1) if steps % n == 0)
