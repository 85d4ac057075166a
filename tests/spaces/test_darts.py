"""The DARTS space: its layout, pruning and widening, derivation, and the networks' own parts.

That it computes what the reference computes is tested in tests/test_torch_import.py.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from drnas_jax import spaces
from drnas_jax.errors import UserError
from drnas_jax.genotype import PUBLISHED, Genotype
from drnas_jax.nn.backend import CPU, GPU, PLAIN
from drnas_jax.nn.banks import Mode
from drnas_jax.nn.blocks import AuxiliaryHead
from drnas_jax.phases.search.stages import prune, widen
from drnas_jax.phases.search.state import SearchState
from drnas_jax.spaces import Structure, darts
from drnas_jax.spaces.darts.cell import Cell
from drnas_jax.spaces.darts.operations import Edge
from drnas_jax.training import losses

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"
SPACE = spaces.find("darts")
EVERY = tuple((kind, (darts.PRIMITIVES,) * 14) for kind in darts.EDGES)
STRUCTURE = Structure(8, 5, 10, 4, EVERY, "cifar")


@functools.cache
def shapes(structure, train=True):
    """The supernet's variables: shapes only, nothing is compiled."""
    module = darts.supernet(structure, GPU, None)
    mix = {kind: jnp.ones((14, len(structure.kept(kind)[0]))) for kind in darts.EDGES}
    return jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), mix, train)
    )


def state_of(structure, alpha, fill):
    """A state whose every array is fill(path, shape); momentum and statistics alike."""
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: fill([key.key for key in path], leaf.shape), shapes(structure)
    )
    return SearchState(
        seed=jnp.zeros((), jnp.uint32),
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        alpha=alpha,
        weight_opt=optax.trace(0.9).init(variables["params"]),
        alpha_opt=optax.scale_by_adam().init(alpha),
        totals=losses.zero_totals(),
    )


def random_alpha(seed=0):
    random = np.random.default_rng(seed)
    return {kind: jnp.asarray(random.normal(size=(14, 7)), jnp.float32) for kind in darts.EDGES}


def by_edge(path, shape):
    """Each row of a bank holds its edge's number; a skip has rows for stride 2 alone."""
    if path[-2] not in darts.PRIMITIVES:
        return np.zeros(shape, np.float32)
    halving = [edge for edge, (_, source) in enumerate(darts.PAIRS) if source < 2]
    edges = halving if path[-2] == "skip_connect" else range(14)
    spread = np.asarray(edges, np.float32).reshape(1, -1, *[1] * (len(shape) - 2))
    return np.broadcast_to(spread, shape).copy()


def test_variables_are_the_same_in_training_and_in_evaluation():
    assert shapes(STRUCTURE, train=True) == shapes(STRUCTURE, train=False)


def test_twenty_cells_are_nine_runs():
    runs = darts.cell_runs(36, 20, "cifar", 108)
    assert [(run.name, run.length, run.channels) for run in runs] == [
        ("normal_0", 1, 36),
        ("normal_1", 1, 36),
        ("normal_2", 4, 36),
        ("reduce_6", 1, 72),
        ("normal_7", 1, 72),
        ("normal_8", 5, 72),
        ("reduce_13", 1, 144),
        ("normal_14", 1, 144),
        ("normal_15", 5, 144),
    ]
    assert [run.name for run in runs if run.halve] == ["normal_7", "normal_14"]
    assert darts.cell_runs(48, 14, "imagenet", 144)[0].halve  # its stem halves once more


@pytest.mark.parametrize("cells", [1, 2, 3, 8])
def test_runs_cover_all_cells(cells):
    runs = darts.cell_runs(16, cells, "cifar", 48)
    assert [run.first for run in runs] == list(np.cumsum([0, *[r.length for r in runs]]))[:-1]
    assert sum(run.length for run in runs) == cells


def test_pruning_removes_the_rows_of_dropped_operations():
    alpha = random_alpha()
    state, smaller = prune(SPACE, state_of(STRUCTURE, alpha, by_edge), STRUCTURE, 4)
    for kind, operations in smaller.operations:
        for kept, row in zip(operations, np.asarray(alpha[kind]), strict=True):
            assert set(kept) == {darts.PRIMITIVES[i] for i in np.argsort(row)[-4:]}
    for tree in (state.params, state.batch_stats):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree["model"]):
            cell, name = path[0].key, path[1].key
            if name in darts.PRIMITIVES:
                kind = cell.split("_")[0]
                edges = [
                    edge
                    for edge, kept in enumerate(smaller.kept(kind))
                    if name in kept and darts.has_row(kind, edge, name)
                ]
                rows = np.asarray(leaf).reshape(*leaf.shape[:2], -1)[0, :, 0]
                np.testing.assert_array_equal(rows, edges, err_msg=f"{path}")


def test_pruned_and_widened_arrays_have_the_shapes_of_the_new_supernet():
    state, structure = prune(SPACE, state_of(STRUCTURE, random_alpha(), by_edge), STRUCTURE, 3)
    state, structure = widen(SPACE, state, structure, 2, seed=1)
    want = shapes(structure)
    for got, tree in ((state.params, "params"), (state.batch_stats, "batch_stats")):
        assert jax.tree.map(np.shape, got) == jax.tree.map(lambda leaf: leaf.shape, want[tree])
    assert jax.tree.map(np.shape, state.weight_opt.trace) == jax.tree.map(np.shape, state.params)


def test_widened_channels_stay_aligned_within_an_operation():
    def by_channel(axis):  # the arrays hold the number of the channel that an axis runs over
        def fill(path, shape):
            axes = darts.CHANNEL_AXES.get(path[-2], {}).get(path[-1], {})
            own = [i for i, label in axes.items() if label == axis]
            spread = np.zeros(shape, np.float32)
            if own:
                length = [1] * len(shape)
                length[own[0]] = shape[own[0]]
                spread = spread + np.arange(shape[own[0]], dtype=np.float32).reshape(length)
            return spread

        state, _ = widen(SPACE, state_of(STRUCTURE, random_alpha(), fill), STRUCTURE, 2, seed=1)
        return state

    def bank(state, name):
        leaves = {}
        for tree in (state.params, state.batch_stats):
            leaves |= tree["model"]["normal_2"].get(name, {})
        return {leaf: np.asarray(array)[0, 5] for leaf, array in leaves.items()}  # edge 5

    inputs, middle, outputs = (
        bank(by_channel(axis), "sep_conv_3x3") for axis in ("in", "mid", "out")
    )
    np.testing.assert_array_equal(inputs["depthwise_0"][0, 0], inputs["pointwise_0"][:, 0])
    copied = middle["mean_0"]
    np.testing.assert_array_equal(middle["pointwise_0"][0], copied)
    np.testing.assert_array_equal(middle["depthwise_1"][2, 1], copied)
    np.testing.assert_array_equal(middle["pointwise_1"][:, 1], copied)
    np.testing.assert_array_equal(outputs["pointwise_1"][0], outputs["var_1"])
    old = len(copied) // 2
    np.testing.assert_array_equal(copied[:old], np.arange(old))
    assert set(copied[old:]) <= set(range(old))


def test_pruning_keeps_what_the_reference_keeps():
    file = REFERENCE / "darts_search_pruned.npz"
    if not file.exists():
        pytest.skip(f"there is no {file}")
    values = np.load(file)
    alpha = {kind: jnp.asarray(values[f"alphas_{kind}"]) for kind in darts.EDGES}
    count = int(values["mask_normal"].sum(1)[0])
    state, structure = prune(SPACE, state_of(STRUCTURE, alpha, by_edge), STRUCTURE, count)
    for kind in darts.EDGES:
        mask, pruned = values[f"mask_{kind}"], values[f"pruned_alphas_{kind}"]
        for edge, kept in enumerate(structure.kept(kind)):
            assert kept == tuple(np.array(darts.PRIMITIVES)[mask[edge]])
        np.testing.assert_array_equal(state.alpha[kind], pruned[mask].reshape(14, count))


def mean_of(strongest):
    """Mean mixing weights by {(node, source): (operation, weight)}; the others are equal."""
    rows = np.full((14, 7), 1 / 7)
    for pair, (name, weight) in strongest.items():
        row = rows[darts.PAIRS.index(pair)]
        row[:] = (1 - weight) / 6
        row[darts.PRIMITIVES.index(name)] = weight
    return rows


def test_derive_keeps_the_two_strongest_inputs():
    normal = mean_of(
        {
            (0, 0): ("skip_connect", 0.5),
            (0, 1): ("sep_conv_3x3", 0.4),
            (1, 2): ("dil_conv_5x5", 0.9),
            (1, 0): ("max_pool_3x3", 0.3),
            (1, 1): ("avg_pool_3x3", 0.2),
            (2, 3): ("sep_conv_5x5", 0.6),
            (2, 1): ("avg_pool_3x3", 0.5),
            (3, 4): ("dil_conv_3x3", 0.8),
            (3, 3): ("max_pool_3x3", 0.7),
        }
    )
    mean = {"normal": normal, "reduce": np.full((14, 7), 1 / 7)}
    genotype = darts.derive(mean, dict(EVERY))
    assert genotype.cell("normal") == (
        (("skip_connect", 0), ("sep_conv_3x3", 1)),
        (("max_pool_3x3", 0), ("dil_conv_5x5", 2)),
        (("avg_pool_3x3", 1), ("sep_conv_5x5", 3)),
        (("max_pool_3x3", 3), ("dil_conv_3x3", 4)),
    )
    assert genotype.cell("reduce")[3] == (("max_pool_3x3", 0), ("max_pool_3x3", 1))  # all equal


def test_describe():
    text = darts.describe(PUBLISHED["darts_v2"])
    assert text.startswith("normal: sep_conv_3x3(0) + sep_conv_3x3(1), ")
    assert "; reduce: max_pool_3x3(0) + max_pool_3x3(1), " in text
    assert "\n" not in text


def pools_and_skips(x, own, keep=None):
    """A cell whose node 0 averages input 1 and skips input 0, and whose others skip input 0."""
    first = (Edge(0, 1, ("avg_pool_3x3",)), Edge(0, 0, ("skip_connect",)))
    edges = (*first, *(Edge(node, 0, ("skip_connect",)) for node in (1, 2, 3)))
    cell = Cell(Mode(own, True, None), "normal", edges, 8, 1)
    x = own.transpose(x)
    out, _ = cell((x, x), {"avg_pool_3x3": {}}, jnp.ones((len(edges), 1)), keep)
    return jnp.split(own.transpose(out), 4, axis=-1)[:2]


@pytest.mark.parametrize("own", [PLAIN, CPU, GPU])
def test_drop_path_drops_examples_of_an_edge_but_no_identity(own):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4, 4, 8)), jnp.float32)
    whole, skip = pools_and_skips(x, own)
    keep = np.where(np.arange(16) % 3 > 0, 1.5, 0)  # of the pool; the identities have no say
    dropped, same = pools_and_skips(x, own, jnp.stack([keep, *[keep * 0] * 4], axis=1))
    np.testing.assert_array_equal(same, skip)
    pool = (whole - skip) * keep[:, None, None, None]
    np.testing.assert_allclose(dropped - skip, pool, atol=1e-5)


def test_paths_are_dropped_at_the_rate():
    edges = tuple(Edge(node, 0, ("skip_connect",)) for node in range(4))
    for own in (PLAIN, CPU):
        cell = Cell(Mode(own, True, None), "normal", edges, 8, 1)
        x = own.transpose(jnp.zeros((5000, 1, 1, 8)))
        keep = np.asarray(darts._keep(cell, 0.3, jax.random.key(0), x))
        assert keep.shape == (5000, 4)
        assert set(keep.ravel()) == {np.float32(0), np.float32(1) / np.float32(0.7)}
        assert abs(keep.mean() - 1) < 4.5 * keep.std() / np.sqrt(keep.size)
        assert len(np.unique(keep, axis=0)) == 2**4  # each edge by itself


def test_the_key_drops_other_paths():
    network = darts.network(PUBLISHED["darts_v2"], 4, 3, 10, "cifar", False, CPU, None)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 32, 32, 3)), jnp.float32)
    variables = jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, 0.1, leaf.dtype),
        jax.eval_shape(lambda: network.init(jax.random.key(0), x, True)),
    )

    @jax.jit
    def logits(rate, key):
        rngs = {"drop_path": jax.random.key(key)}
        return network.apply(variables, x, True, rate, rngs=rngs, mutable=["batch_stats"])[0][0]

    np.testing.assert_array_equal(logits(0.0, 1), logits(0.0, 2))
    assert np.any(logits(0.5, 1) != logits(0.5, 2))
    np.testing.assert_array_equal(logits(0.5, 1), logits(0.5, 1))


def cell_with(node):
    """A genotype of skip connections; its second node has these inputs."""
    cell = tuple(tuple(("skip_connect", i) for i in own) for own in ((0, 1), node, (0, 1), (0, 1)))
    return Genotype("darts", (("normal", cell), ("reduce", cell)))


@pytest.mark.parametrize(
    ("genotype", "message"),
    [
        (Genotype("nasbench201", (("cell", ((("none", 0),),)),)), "no cell 'normal'"),
        (Genotype("darts", (("normal", ((("none", 0),),)),)), "has 4 nodes, and the normal cell 1"),
        (
            Genotype("darts", (("normal", ((("none", 0),),) * 4),)),
            "unknown DARTS operation 'none': choose one of avg_pool_3x3",
        ),
        *(
            (cell_with(node), r"node 1 of the normal cell is .*: expected 2 operations, on 2 of")
            for node in ((0,), (0, 1, 2), (0, 0), (0, 3), (-1, 0))
        ),
    ],
)
def test_unfit_genotypes_are_user_errors(genotype, message):
    with pytest.raises(UserError, match=message):
        darts.network(genotype, 8, 5, 10, "cifar", False, PLAIN, None)


def test_stem_and_image_size_are_checked():
    spaces.check_image(SPACE, "imagenet", (224, 224))
    with pytest.raises(UserError, match="100x224 pixels.*divisible by 32"):
        spaces.check_image(SPACE, "imagenet", (100, 224))
    with pytest.raises(UserError, match="unknown stem 'x'"):
        spaces.check_image(SPACE, "x", (32, 32))
    with pytest.raises(UserError, match="unknown stem 'imagenet': choose one of cifar"):
        spaces.check_image(spaces.find("nasbench201"), "imagenet", (32, 32))
    with pytest.raises(UserError, match="even number of channels, not 7"):
        darts.network(PUBLISHED["darts_v2"], 7, 5, 10, "imagenet", False, PLAIN, None)


def test_auxiliary_head_needs_room():
    head = AuxiliaryHead(10, "cifar", None)
    jax.eval_shape(lambda: head.init(jax.random.key(0), jnp.zeros((1, 8, 8, 4)), True))
    with pytest.raises(UserError, match="needs 8 pixels a side.*has 7x7"):
        head.init(jax.random.key(0), jnp.zeros((1, 7, 7, 4)), True)


def test_auxiliary_head_speaks_in_training_only():
    network = darts.network(PUBLISHED["darts_v2"], 4, 3, 10, "cifar", True, PLAIN, None)
    x = jnp.zeros((2, 32, 32, 3))

    def outputs(train):
        def both():
            variables = network.init(jax.random.key(0), x, False)
            return network.apply(variables, x, train, mutable=["batch_stats"])[0]

        return jax.eval_shape(both)

    logits, auxiliary = outputs(train=True)
    assert logits.shape == auxiliary.shape == (2, 10)
    assert outputs(train=False)[1] is None
