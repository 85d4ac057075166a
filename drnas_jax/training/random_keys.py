"""Random keys as pure functions of seed, stream name and step.

A key is never passed from one step to the next, so a resumed run draws the same numbers.
"""

import zlib

import jax


def stream_key(seed: jax.Array | int, stream: str, step: jax.Array | int = 0) -> jax.Array:
    """Returns the key of a named random stream at a step, the same on every host.

    Args:
      seed: Seed of the run. It may be traced, so that several seeds share a compiled program.
      stream: Name of what the randomness is for, such as 'search/alpha-sample'.
      step: Number of the step within the stream. It may be traced.
    """
    key = jax.random.key(seed)
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(stream.encode())), step)


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
        for name in ("dropout", "noise")
    }
