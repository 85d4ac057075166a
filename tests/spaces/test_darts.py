"""The DARTS space: its model, pruning and widening, derivation, drop path and the auxiliary head.

tests/tools/test_torch_import.py compares what it computes with the reference in PyTorch.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnas_jax import spaces
from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype
from drnas_jax.nn.backend import CPU, GPU, PLAIN
from drnas_jax.nn.blocks import AuxiliaryHead
from drnas_jax.nn.stacked_params import ApplyContext
from drnas_jax.phases.search.stages import columns_to_keep, keep_columns, resized_spec
from drnas_jax.spaces.base import Cell, Edge, NetworkSpec, SupernetSpec
from drnas_jax.spaces.darts import CHANNEL_AXES, PAIRS, PUBLISHED, Options, genotype_edges
from drnas_jax.spaces.darts.cell import MixedCell
from drnas_jax.spaces.darts.model import cell_runs, draw_path_factors
from drnas_jax.spaces.darts.operations import PRIMITIVES

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"
SPACE = spaces.create("darts")
SPEC = SupernetSpec(tuple(SPACE.cells.items()), 8, 5, 10, (16, 16, 3), 4)


@functools.cache
def shapes(spec, train=True):
    """Returns the shapes of a supernet's variables; nothing is compiled."""
    module = SPACE.supernet(spec, GPU)
    mix = {cell_type: jnp.ones(cell.shape) for cell_type, cell in spec.cells}
    images = jnp.zeros((1, *spec.image))
    return jax.eval_shape(lambda: module.init(jax.random.key(0), images, mix, train))


def random_scores(seed=0):
    random = np.random.default_rng(seed)
    return {cell_type: random.normal(size=cell.shape) for cell_type, cell in SPEC.cells}


def filled(fill):
    """Returns variables of the first supernet, each array of which is fill(path, shape)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: fill([key.key for key in path], leaf.shape), shapes(SPEC)
    )


def resize(variables, new):
    return {
        name: SPACE.resize(tree, shapes(new)[name], SPEC, new, seed=1)
        for name, tree in variables.items()
    }


# The model


def test_variables_are_the_same_in_training_and_in_evaluation():
    assert shapes(SPEC, train=True) == shapes(SPEC, train=False)


def test_twenty_cells_are_nine_runs():
    # Would catch a reduction at another depth than in DARTS, or cells stacked with unequal inputs.
    runs = cell_runs(36, 20, "cifar", 108)
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
    assert cell_runs(48, 14, "imagenet", 144)[0].halve  # its stem halves the size once more


@pytest.mark.parametrize("depth", [1, 2, 3, 8])
def test_runs_cover_all_cells(depth):
    runs = cell_runs(16, depth, "cifar", 48)
    assert [run.first for run in runs] == list(np.cumsum([0, *[r.length for r in runs]]))[:-1]
    assert sum(run.length for run in runs) == depth


# Pruning and widening


def by_edge(path, shape):
    """Fills each row of stacked arrays with its edge's number."""
    if path[-2] not in PRIMITIVES:
        return np.zeros(shape, np.float32)
    halving = [edge for edge, (_, source) in enumerate(PAIRS) if source < 2]
    edges = halving if path[-2] == "skip_connect" else range(14)  # other skips have no arrays
    spread = np.asarray(edges, np.float32).reshape(1, -1, *[1] * (len(shape) - 2))
    return np.broadcast_to(spread, shape).copy()


def test_pruning_removes_the_rows_of_dropped_operations():
    # Would catch a row that stays under the number of another edge.
    scores = random_scores()
    new = resized_spec(SPEC, columns_to_keep(scores, SPEC, 4), 4)
    for cell_type, cell in new.cells:
        for edge, row in zip(cell.edges, scores[cell_type], strict=True):
            assert set(edge.primitives) == {PRIMITIVES[i] for i in np.argsort(row)[-4:]}
    for tree in resize(filled(by_edge), new).values():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree["model"]):
            cell_type, name = path[0].key.split("_")[0], path[1].key
            if name in PRIMITIVES:
                edges = [
                    number
                    for number, edge in enumerate(new.cell(cell_type).edges)
                    if name in edge.primitives
                    and (name != "skip_connect" or (cell_type == "reduce" and edge.source < 2))
                ]
                rows = np.asarray(leaf).reshape(*leaf.shape[:2], -1)[0, :, 0]
                np.testing.assert_array_equal(rows, edges, err_msg=f"{path}")


def test_widened_channels_stay_aligned_within_an_operation():
    # Would catch a copied channel whose filter, matrix and statistics come from different ones.
    new = resized_spec(SPEC, columns_to_keep(random_scores(), SPEC, 7), 2)

    def by_channel(label):
        """Returns the arrays of sep_conv_3x3 on edge 5, filled with the channels of an axis."""

        def fill(path, shape):
            axes = CHANNEL_AXES.get(path[-2], {}).get(path[-1], {})
            numbers = np.zeros(shape, np.float32)
            for axis in (axis for axis, own in axes.items() if own == label):
                length = [1] * len(shape)
                length[axis] = shape[axis]
                numbers = numbers + np.arange(shape[axis], dtype=np.float32).reshape(length)
            return numbers

        leaves = {}
        for tree in resize(filled(fill), new).values():
            leaves |= tree["model"]["normal_2"].get("sep_conv_3x3", {})
        return {leaf: np.asarray(array)[0, 5] for leaf, array in leaves.items()}

    inputs, middle, outputs = (by_channel(label) for label in ("in", "mid", "out"))
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
    # Would catch another choice among operations than the official code makes.
    file = REFERENCE / "darts_search_pruned.npz"
    if not file.exists():
        pytest.skip(f"there is no {file}")
    values = np.load(file)
    alpha = {cell_type: values[f"alphas_{cell_type}"] for cell_type in SPACE.cells}
    count = int(values["mask_normal"].sum(1)[0])
    columns = columns_to_keep(alpha, SPEC, count)
    new = resized_spec(SPEC, columns, 4)
    for cell_type, cell in new.cells:
        mask, expected = values[f"mask_{cell_type}"], values[f"pruned_alphas_{cell_type}"]
        for number, edge in enumerate(cell.edges):
            assert edge.primitives == tuple(np.array(PRIMITIVES)[mask[number]])
        kept = keep_columns(alpha[cell_type], SPEC.cell(cell_type), columns[cell_type])
        np.testing.assert_array_equal(kept, expected[mask].reshape(14, count))


LISTS = (("none", "skip_connect", "sep_conv_3x3"), ("max_pool_3x3", "avg_pool_3x3"))


def test_edges_may_have_other_primitives_each_and_none():
    # Would catch arrays for `none`, or a space that reads the list of another edge (S1 to S4).
    space = spaces.create("darts")
    edges = tuple(Edge(*pair, LISTS[number % 2]) for number, pair in enumerate(PAIRS))
    space.cells = {cell_type: Cell(edges, 2, keep=2) for cell_type in SPACE.cells}
    old = dataclasses.replace(SPEC, cells=tuple(space.cells.items()))
    scores = {cell_type: np.tile([3.0, 2.0, 1.0], (14, 1)) for cell_type in space.cells}
    new = resized_spec(old, columns_to_keep(scores, old, 2), 2)
    assert [edge.primitives for edge in new.cell("normal").edges[:2]] == [LISTS[0][:2], LISTS[1]]
    values = jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes(old))
    resized = {
        name: space.resize(tree, shapes(new)[name], old, new, seed=1)
        for name, tree in values.items()
    }
    assert jax.tree.map(np.shape, resized) == jax.tree.map(lambda leaf: leaf.shape, shapes(new))
    assert set(values["params"]["model"]["normal_0"]) == {"sep_conv_3x3", "squeeze_0", "squeeze_1"}
    # In a network `none` never wins, although its scores are the largest.
    genotype = space.derive(scores, old)
    assert genotype.cell("normal")[0] == (("skip_connect", 0), ("max_pool_3x3", 1))
    space.check(NetworkSpec(genotype, 8, 5, 10, (16, 16, 3)))


# Genotypes


def mean_of(strongest):
    """Returns mean mixing weights from {(node, source): (operation, weight)}; others are equal."""
    rows = np.full((14, 7), 1 / 7)
    for (node, source), (name, weight) in strongest.items():
        row = rows[PAIRS.index((node + 2, source))]
        row[:] = (1 - weight) / 6
        row[PRIMITIVES.index(name)] = weight
    return rows


def test_derive_keeps_the_two_strongest_inputs():
    # Would catch edges ranked by another number than their best operation's.
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
    genotype = SPACE.derive({"normal": normal, "reduce": np.full((14, 7), 1 / 7)}, SPEC)
    assert genotype.cell("normal") == (
        (("skip_connect", 0), ("sep_conv_3x3", 1)),
        (("max_pool_3x3", 0), ("dil_conv_5x5", 2)),
        (("avg_pool_3x3", 1), ("sep_conv_5x5", 3)),
        (("max_pool_3x3", 3), ("dil_conv_3x3", 4)),
    )
    # If all are equal, the first ones win.
    assert genotype.cell("reduce")[3] == (("max_pool_3x3", 0), ("max_pool_3x3", 1))


def test_describe():
    text = SPACE.describe(PUBLISHED["darts_v2"])
    assert text.startswith("normal: sep_conv_3x3(0) + sep_conv_3x3(1), ")
    assert "; reduce: max_pool_3x3(0) + max_pool_3x3(1), " in text


def cell_with(node):
    """Returns a genotype of skip connections whose second node has these inputs."""
    inputs = ((0, 1), node, (0, 1), (0, 1))
    cell = tuple(tuple(("skip_connect", source) for source in sources) for sources in inputs)
    return Genotype("darts", (("normal", cell), ("reduce", cell)))


@pytest.mark.parametrize(
    ("genotype", "message"),
    [
        (Genotype("nasbench201", (("cell", ((("none", 0),),)),)), "no cell 'normal'"),
        (
            Genotype("darts", (("normal", ((("none", 0),),)),)),
            "cell has 1 nodes: expected 4",
        ),
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
def test_unfit_genotypes_are_refused(genotype, message):
    # Would catch a genotype file from elsewhere that fails inside the model.
    with pytest.raises(UserError, match=message):
        SPACE.check(NetworkSpec(genotype, 8, 5, 10, (32, 32, 3)))


# Stems


def test_the_image_must_fit_the_stem():
    # Would catch a size that a reduction cannot halve.
    imagenet = spaces.create("darts", Options(stem="imagenet"))
    genotype = PUBLISHED["darts_v2"]
    imagenet.check(NetworkSpec(genotype, 8, 5, 10, (224, 224, 3)))
    with pytest.raises(UserError, match="100x224 pixels.*divisible by 32"):
        imagenet.check(NetworkSpec(genotype, 8, 5, 10, (100, 224, 3)))
    with pytest.raises(UserError, match="even number of channels, not 7"):
        imagenet.check(NetworkSpec(genotype, 7, 5, 10, (224, 224, 3)))
    SPACE.check(NetworkSpec(genotype, 7, 5, 10, (100, 224, 3)))


def test_a_network_with_the_imagenet_stem_has_its_channels():
    # Would catch the stem of the supernet, which has 3 C channels, in the network.
    imagenet = spaces.create("darts", Options(stem="imagenet"))
    network = imagenet.network(NetworkSpec(PUBLISHED["darts_v2"], 4, 3, 10, (64, 64, 3)), PLAIN)
    variables = jax.eval_shape(
        lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), False)
    )
    stem = variables["params"]["model"]["stem"]
    assert [stem[f"kernel_{i}"].shape[-1] for i in range(3)] == [2, 4, 4]


# Drop path


def pools_and_skips(x, chosen, factors=None):
    """Returns two nodes: the first averages input 1 and skips input 0, the second skips input 0."""
    first = (Edge(2, 1, ("avg_pool_3x3",)), Edge(2, 0, ("skip_connect",)))
    edges = (*first, *(Edge(target, 0, ("skip_connect",)) for target in (3, 4, 5)))
    cell = MixedCell(ApplyContext(chosen, True), "normal", edges, 8, 1)
    x = chosen.transpose(x)
    output, _ = cell((x, x), {"avg_pool_3x3": {}}, jnp.ones((len(edges), 1)), factors)
    return jnp.split(chosen.transpose(output), 4, axis=-1)[:2]


@pytest.mark.parametrize("chosen", [PLAIN, CPU, GPU], ids=["plain", "cpu", "gpu"])
def test_drop_path_drops_examples_of_an_edge_but_no_identity(chosen):
    # Would catch a node without any input, and factors that go to another edge.
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4, 4, 8)), jnp.float32)
    whole, skip = pools_and_skips(x, chosen)
    pool_factors = np.where(np.arange(16) % 3 > 0, 1.5, 0)
    factors = jnp.stack([pool_factors, *[pool_factors * 0] * 4], axis=1)
    dropped, same = pools_and_skips(x, chosen, factors)
    np.testing.assert_array_equal(same, skip)
    pool = (whole - skip) * pool_factors[:, None, None, None]
    np.testing.assert_allclose(dropped - skip, pool, atol=1e-5)


def test_paths_are_dropped_at_the_rate():
    # Would catch factors that change the mean, or one draw for all edges.
    edges = tuple(Edge(target, 0, ("skip_connect",)) for target in range(2, 6))
    for chosen in (PLAIN, CPU):
        cell = MixedCell(ApplyContext(chosen, True), "normal", edges, 8, 1)
        x = chosen.transpose(jnp.zeros((5000, 1, 1, 8)))
        factors = np.asarray(draw_path_factors(cell, 0.3, jax.random.key(0), x))
        assert factors.shape == (5000, 4)
        assert set(factors.ravel()) == {np.float32(0), np.float32(1) / np.float32(0.7)}
        assert abs(factors.mean() - 1) < 4.5 * factors.std() / np.sqrt(factors.size)
        assert len(np.unique(factors, axis=0)) == 2**4


def test_the_key_and_the_rate_decide_which_paths_are_dropped():
    # Would catch a key that does not reach the cells.
    spec = NetworkSpec(PUBLISHED["darts_v2"], 4, 3, 10, (8, 8, 3), drop_path=0.5)
    network = SPACE.network(spec, GPU)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, *spec.image)), jnp.float32)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), x, True))
    variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1, leaf.dtype), shapes)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def logits(rate, key):
        rngs = {"drop_path": jax.random.key(key)}
        return network.apply(variables, x, True, rate, rngs=rngs, mutable=["batch_stats"])[0]

    np.testing.assert_array_equal(logits(0.0, 1), logits(0.0, 2))
    assert np.any(logits(0.5, 1) != logits(0.5, 2))
    np.testing.assert_array_equal(logits(0.5, 1), logits(0.5, 1))


# The auxiliary head


def test_the_auxiliary_head_needs_room():
    # Would catch an average over no pixel, whose gradient is nan.
    head = AuxiliaryHead(10, "cifar", None)
    jax.eval_shape(lambda: head.init(jax.random.key(0), jnp.zeros((1, 8, 8, 4)), True))
    with pytest.raises(UserError, match="needs 8x8 pixels .* there are 7x7: enlarge"):
        head.init(jax.random.key(0), jnp.zeros((1, 7, 7, 4)), True)


def test_the_auxiliary_head_is_used_in_training_only():
    # Would catch an evaluation that pays for it, or a network without it when training starts.
    spec = NetworkSpec(PUBLISHED["darts_v2"], 4, 3, 10, (32, 32, 3), auxiliary=True)
    network, x = SPACE.network(spec, PLAIN), jnp.zeros((2, 32, 32, 3))

    def outputs(train):
        def both():
            variables = network.init(jax.random.key(0), x, False)
            return network.apply(variables, x, train, mutable=["batch_stats"])[0]

        return jax.eval_shape(both)

    logits, auxiliary = outputs(train=True)
    assert logits.shape == auxiliary.shape == (2, 10)
    assert outputs(train=False).shape == (2, 10)


def test_the_edges_of_a_network_are_those_of_the_genotype():
    # Would catch a node numbered without the two inputs.
    edges = dict(genotype_edges(PUBLISHED["darts_v2"]))["normal"]
    assert edges[0] == Edge(2, 0, ("sep_conv_3x3",))
    assert [edge.target for edge in edges] == [2, 2, 3, 3, 4, 4, 5, 5]
