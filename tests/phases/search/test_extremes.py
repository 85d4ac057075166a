"""A step stays finite where numbers or shapes are at an edge."""

import dataclasses

import jax
import numpy as np
import pytest

from drnas_jax.training.devices import replicate
from drnas_jax.training.programs import Dispatch

CASES = {
    "one image": dict(search__batch_size=1),
    "one class": dict(classes=1),
    "one operation": dict(primitives=("nor_conv_3x3",)),
    "nothing but none": dict(primitives=("none",)),
    "large concentrations": dict(alpha=1e4),
    "small concentrations": dict(alpha=-1e4),
    "far apart": dict(alpha=(1e4, -1e4, 0, -30, 30)),
    "bfloat16": dict(compute__dtype="bfloat16"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_steps_stay_finite(tiny, case):
    # Would catch a division by zero, or an infinity times zero in a gradient.
    fields = dict(CASES[case])
    primitives, alpha = fields.pop("primitives", None), fields.pop("alpha", None)
    experiment = tiny(search__partial_channels=(2, 2), **fields)
    spec = experiment.first_spec()
    if primitives:
        cell = spec.cell("cell")
        edges = tuple(dataclasses.replace(edge, primitives=primitives) for edge in cell.edges)
        cell = dataclasses.replace(cell, edges=edges)
        spec = dataclasses.replace(spec, cells=(("cell", cell),))
    state = jax.device_get(experiment.init(spec, 0))
    if alpha is not None:
        rows = np.broadcast_to(np.float32(alpha), state.alpha["cell"].shape)
        state = state.replace(alpha={"cell": rows})
    state = replicate(state, experiment.mesh)
    before = jax.device_get(state)
    batch_size = experiment.config.search.batch_size
    batches = np.arange(2 * batch_size, dtype=np.int32).reshape(2, 1, -1)
    dispatch = Dispatch(tuple(batches), np.int32(1), np.zeros(2, bool))
    program = experiment.step_program(spec)
    for _ in range(2):
        state = program(state, experiment.loader.raw, dispatch)
    after = jax.device_get(state)
    for path, leaf in jax.tree_util.tree_leaves_with_path(after):
        assert np.all(np.isfinite(leaf)), jax.tree_util.keystr(path)
    assert after.step == 2
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before.params, after.params)
    assert any(jax.tree.leaves(moved))
