"""Where numbers or shapes are at an edge, a step stays finite."""

import dataclasses

import jax
import numpy as np
import pytest

from drnas_jax.spaces import nasbench201
from drnas_jax.training.devices import replicate

EDGES = len(nasbench201.EDGES["cell"])


def only(*kept):
    """A structure with these operations on each edge."""
    return (("cell", (kept,) * EDGES),)


CASES = {
    "one image": dict(batch_size=1),
    "one class": dict(classes=1),
    "one operation": dict(kept=only("nor_conv_3x3")),
    "nothing but none": dict(kept=only("none")),
    "large concentrations": dict(alpha=1e4),
    "small concentrations": dict(alpha=-1e4),
    "far apart": dict(alpha=(1e4, -1e4, 0, -30, 30)),
    "bfloat16": dict(compute=[("dtype", "bfloat16")]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_steps_stay_finite(tiny, case):
    fields = dict(CASES[case])
    kept, alpha = fields.pop("kept", None), fields.pop("alpha", None)
    problem = tiny(partial_channels=(2, 2), **fields)
    structure = problem.first_structure()
    if kept:
        structure = dataclasses.replace(structure, operations=kept)
    state = jax.device_get(problem.init(structure, 0))
    if alpha is not None:
        rows = np.broadcast_to(np.float32(alpha), state.alpha["cell"].shape)
        state = state.replace(alpha={"cell": rows})
    state = replicate(state, problem.mesh)
    before = jax.device_get(state)
    batches = np.arange(2 * problem.config.search.batch_size, dtype=np.int32).reshape(2, 1, -1)
    program = problem.step_program(structure, frozen=False)
    for _ in range(2):
        state = program(state, problem.reader.raw, *batches)
    after = jax.device_get(state)
    for path, leaf in jax.tree_util.tree_leaves_with_path(after):
        assert np.all(np.isfinite(leaf)), jax.tree_util.keystr(path)
    assert after.step == 2
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before.params, after.params)
    assert any(jax.tree.leaves(moved))
