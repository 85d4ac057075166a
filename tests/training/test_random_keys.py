"""Random keys as functions of seed, stream name and step."""

import jax
import numpy as np

from drnas_jax.training.random_keys import stream_key, stream_keys, stream_number


def test_keys_of_many_streams_at_once_are_those_of_each():
    # Catches a stream whose numbers change when another one is added.
    names = {"a": "search/weights", "b": ("x", "init/alpha/cell")}
    numbers = jax.tree.map(stream_number, names)
    together = jax.jit(stream_keys)(np.uint32(7), numbers, np.int32(3))
    alone = jax.tree.map(lambda name: stream_key(7, name, 3), names)
    assert jax.tree.structure(together) == jax.tree.structure(alone)
    for key, expected in zip(*map(jax.tree.leaves, (together, alone)), strict=True):
        assert jax.random.key_data(key).tolist() == jax.random.key_data(expected).tolist()
