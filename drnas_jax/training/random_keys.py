"""Random keys as pure functions of (seed, stream name, step): nothing is threaded through loops."""

import zlib

import jax


def stream_key(seed: jax.Array | int, stream: str, step: jax.Array | int = 0) -> jax.Array:
    """The key of a named random stream at a step; the same on every host and after a resume.

    Args:
      seed: the run's seed; may be traced, so that runs share a compiled program.
      stream: what the randomness is for, such as 'search/alpha-sample'.
      step: a number within the stream; may be traced.
    """
    key = jax.random.key(seed)
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(stream.encode())), step)
