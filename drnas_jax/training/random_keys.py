"""Random keys and NumPy generators, as pure functions of seed, stream name and step.

No key is passed from one step to the next, so a resumed run draws the same numbers.
"""

import zlib
from typing import Any

import jax
import numpy as np

MODULE_STREAMS = ("dropout", "noise")  # random streams that every call of a module gets


def stream_number(stream: str) -> np.uint32:
    """Returns the number of a named random stream."""
    return np.uint32(zlib.crc32(stream.encode()))


def stream_key(seed: jax.Array | int, stream: str, step: jax.Array | int = 0) -> jax.Array:
    """Returns the key of a named random stream at a step, the same on every host.

    Args:
      seed: Seed of the run. It may be traced, so that several seeds share a compiled program.
      stream: Name of what the randomness is for, such as 'search/alpha-sample'.
      step: Number of the step within the stream. It may be traced.
    """
    key = jax.random.key(seed)
    return jax.random.fold_in(jax.random.fold_in(key, stream_number(stream)), step)


def stream_keys(seed: jax.Array | int, numbers: Any, step: jax.Array | int) -> Any:
    """Returns the keys of many streams, each as `stream_key` does, by a single computation.

    Args:
      seed: Seed of the run.
      numbers: Pytree of the streams' numbers, see `stream_number`. They may be traced.
      step: Number of the step within the streams.

    Returns:
      A pytree of keys, shaped like `numbers`.
    """
    leaves, structure = jax.tree.flatten(numbers)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    keys = fold(jax.random.key(seed), jax.numpy.stack(leaves))
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
    return jax.tree.unflatten(structure, list(keys))


def host_generator(seed: int, stream: str, *numbers: int) -> np.random.Generator:
    """Returns a NumPy generator for a named stream, the same on every host.

    Args:
      seed: Seed of the run.
      stream: Name of what the randomness is for; streams of different names are independent.
      *numbers: Position within the stream, such as the number of a stage.
    """
    key = (zlib.crc32(stream.encode()), *numbers)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def module_streams(
    seed: jax.Array | int, stream: str, step: jax.Array | int, device: jax.Array | int
) -> dict[str, jax.Array]:
    """Returns the keys that every call of a module gets: the Linen streams `dropout` and `noise`.

    Args:
      seed: Seed of the run.
      stream: Name of what the module is called for, such as `search/weights`.
      step: Number within the stream.
      device: Number of the device, so that each draws for itself.
    """
    return {
        name: jax.random.fold_in(stream_key(seed, f"{stream}/{name}", step), device)
        for name in MODULE_STREAMS
    }
