"""A state with all kinds of arrays, and checkpoints of it."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from drnas_jax.training.checkpoints import Checkpoints
from drnas_jax.training.progress import Progress

PROGRESS = Progress(
    epochs_done=3, seconds=0.5, devices=2, jax="0.10", images=718, fingerprint=2**63, steps=11
)


class Moments(NamedTuple):
    mu: dict
    nu: tuple


def state(offset=0.0):
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 1 / 3, 16777217], np.float32)
    return {
        "step": jnp.int32(7),
        "params": {
            "a": jnp.arange(6.0).reshape(2, 3) + offset,
            "b": {"bias": jnp.asarray(special)},
        },
        "opt": (Moments({"a": jnp.ones((3,), jnp.bfloat16)}, (jnp.float32(0.5),)),),
        "images": jnp.arange(200_000, dtype=jnp.uint8),
    }


def progress(step):
    return dataclasses.replace(PROGRESS, epochs_done=step)


def save(directory, *steps):
    with Checkpoints(directory) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step), progress(step), {"stage": step})


def assert_equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
