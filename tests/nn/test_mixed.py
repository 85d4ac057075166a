"""Building blocks for users' search spaces: mixed operations, partial channels, final networks."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from drnas_jax.genotype import Genotype
from drnas_jax.nn.mixed import FinalNetwork, MixedOp, partial_channels

OPERATIONS = {"skip": lambda x: x, "dense": nn.Dense(3), "twice": nn.Dense(3, use_bias=False)}
X = jnp.arange(6.0).reshape(2, 3)


def mixed(*primitives):
    return MixedOp(primitives, OPERATIONS.get)


def test_a_mixed_operation_is_the_weighted_sum_and_survives_pruning():
    # Would catch parameters that are named by order: pruning would give them to another operation.
    whole, pruned = mixed("dense", "skip", "twice"), mixed("skip", "twice")
    weights = jnp.array([0.5, 2.0, 3.0])
    params = whole.init(jax.random.key(0), X, weights)["params"]
    assert set(params) == {"dense", "twice"}
    dense = X @ params["dense"]["kernel"] + params["dense"]["bias"]
    rest = 2 * X + 3 * X @ params["twice"]["kernel"]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)  # sums in another order
    close(whole.apply({"params": params}, X, weights), 0.5 * dense + rest)
    kept = {"params": {"twice": params["twice"]}}
    close(pruned.apply(kept, X, jnp.array([2.0, 3.0, 0.0])), rest)


def test_partial_channels_bypass_the_function_and_are_interleaved():
    # Would catch channels that never meet an operation, since they stay in the same place.
    x = jnp.arange(6.0).reshape(1, 1, 1, 6)
    result = partial_channels(lambda part: -10 * part, x, 3)
    assert result.flatten().tolist() == [0, 2, 4, -10, 3, 5]
    assert partial_channels(lambda part: -part, x, 1).flatten().tolist() == [0, -1, -2, -3, -4, -5]


class Supernet(nn.Module):
    """One mixed operation on each edge of two cell types."""

    names: dict

    @nn.compact
    def __call__(self, x, mix, train):
        for cell_type, names in self.names.items():
            for row, name in enumerate(names):
                op = MixedOp((name,), OPERATIONS.get, name=f"{cell_type}_{row}")
                x = op(x, mix[cell_type][row])
        return x


def test_a_final_network_is_the_supernet_with_all_mixing_weights_1():
    # Would catch a cell with several edges to a node, which needs a weight for each of them.
    genotype = Genotype(
        "space", (("left", ((("dense", 0), ("skip", 1)), (("twice", 0),))), ("right", ()))
    )
    model = Supernet({"left": ("dense", "skip", "twice"), "right": ()})
    network = FinalNetwork(model, genotype)
    variables = network.init(jax.random.key(0), X, False)
    mix = {"left": jnp.ones((3, 1)), "right": jnp.ones((0, 1))}
    expected = model.apply({"params": variables["params"]["model"]}, X, mix, False)
    np.testing.assert_array_equal(network.apply(variables, X, False), expected)
