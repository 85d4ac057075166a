"""The NAS-Bench-201 space against the PyTorch reference, and its genotypes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype
from drnas_jax.nn import backend, norm
from drnas_jax.phases.search.stages import resized_spec
from drnas_jax.spaces.base import Edge, NetworkSpec, SupernetSpec
from drnas_jax.spaces.darts.published import PUBLISHED
from drnas_jax.spaces.nasbench201 import (
    CELL,
    FILTER_SIZES,
    PRIMITIVES,
    MixedCell,
    NasBench201,
    parse,
)
from drnas_jax.training.losses import cross_entropy

SPACE = NasBench201()
EDGE_NAMES = tuple(edge.name for edge in CELL.edges)
FILES = ("nb201_search_k1", "nb201_search_k4", "nb201_search_pruned")
# Compiled for one run: optimisation would take longer than it saves.
FAST_COMPILE = {"xla_backend_optimization_level": 0}


# Parity with the PyTorch reference


class Reference:
    """A file of reference values, in our layout.

    Attributes:
      values: Arrays by name, see the file's keys.
      spec: The supernet.
    """

    def __init__(self, file):
        with np.load(file) as archive:
            self.values = dict(archive)
        assert tuple(self.values["edge_order"]) == EDGE_NAMES
        self.mask = self.values.get("mask", np.ones((6, 5), bool))
        channels, depth, partial_channels = (int(self.values[name]) for name in ("C", "N", "k"))
        image = self.values["x"].shape[1:]
        first = SupernetSpec((("cell", CELL),), channels, depth, 10, image, partial_channels)
        columns = {"cell": [np.flatnonzero(row) for row in self.mask]}
        self.spec = resized_spec(first, columns, partial_channels)

    def kept(self, name):
        """Returns the columns of an array [e, 5] that the mask keeps, [e, o]."""
        pairs = zip(self.values[name], self.mask, strict=True)
        return np.stack([row[kept] for row, kept in pairs])

    def params(self, prefix="w:"):
        """Returns the weights, or with 'g:' their gradients, as our parameters."""

        def norm(name):
            scale, bias = (self.values[f"{prefix}{name}.{leaf}"] for leaf in ("weight", "bias"))
            return {"scale": scale, "bias": bias}

        def conv(name):
            return np.transpose(self.values[f"{prefix}{name}.weight"], (2, 3, 1, 0))

        tree = {
            "stem_kernel": conv("stem.0"),
            "stem_norm": norm("stem.1"),
            "last_norm": norm("lastact.0"),
            "classifier": {
                "kernel": self.values[prefix + "classifier.weight"].T,
                "bias": self.values[prefix + "classifier.bias"],
            },
        }
        for stage, block in self.reductions():
            tree[f"reduction_{stage}"] = {
                "conv_a_kernel": conv(f"{block}.conv_a.op.1"),
                "conv_a_norm": norm(f"{block}.conv_a.op.2"),
                "conv_b_kernel": conv(f"{block}.conv_b.op.1"),
                "conv_b_norm": norm(f"{block}.conv_b.op.2"),
                "shortcut_kernel": conv(f"{block}.downsample.1"),
            }
        return tree | self.stacked(lambda name: {"kernel": conv(f"{name}.op.1")})

    def batch_stats(self, prefix="w:"):
        """Returns the running statistics, or with 'after:' those after the training pass."""

        def norm(name):
            mean, var = (self.values[f"{prefix}{name}.running_{leaf}"] for leaf in ("mean", "var"))
            return {"mean": mean, "var": var}

        tree = {"stem_norm": norm("stem.1"), "last_norm": norm("lastact.0")}
        for stage, block in self.reductions():
            tree[f"reduction_{stage}"] = {
                f"conv_{which}_norm": norm(f"{block}.conv_{which}.op.2") for which in "ab"
            }
        return tree | self.stacked(lambda name: norm(f"{name}.op.2"))

    def reductions(self):
        return [(s, f"cells.{s * (self.spec.depth + 1) - 1}") for s in (1, 2)]

    def stacked(self, leaves):
        """Stacks the arrays `leaves(name)` of each cell and edge: leading axes (cells, edges)."""

        def of_primitive(stage, primitive):
            first = stage * (self.spec.depth + 1)
            column = PRIMITIVES.index(primitive)
            edges = [e.name for e in self.spec.cell("cell").edges if primitive in e.primitives]
            rows = [
                [leaves(f"cells.{first + cell}.edges.{edge}.{column}") for edge in edges]
                for cell in range(self.spec.depth)
            ]
            cells = [jax.tree.map(lambda *edge: np.stack(edge), *row) for row in rows]
            return jax.tree.map(lambda *cell: np.stack(cell), *cells)

        return {
            f"cell_{stage}": {name: of_primitive(stage, name) for name in FILTER_SIZES}
            for stage in range(3)
        }


# With the plain kernels; tests/tools/test_torch_import.py has those of the platform.
@pytest.fixture(
    params=[
        pytest.param(file, marks=() if file == "nb201_search_k4" else pytest.mark.slow)
        for file in FILES  # one checks all that the others do
    ],
    scope="module",
)
def reference(request, shared):
    return Reference(shared / "reference" / f"{request.param}.npz")


@pytest.fixture(scope="module")
def ours(reference):
    """What our supernet computes on the reference's inputs."""
    module = SPACE.supernet(reference.spec, backend.PLAIN)
    x, y = reference.values["x"], reference.values["y"].astype(np.int32)

    def loss(params, mix, stats, x):
        variables = {"params": params, "batch_stats": stats}
        logits, updated = module.apply(variables, x, mix, True, mutable=["batch_stats"])
        return jnp.mean(cross_entropy(logits, y)), (logits, updated["batch_stats"])

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def compute(params, mix, stats, x):
        logits_eval = module.apply({"params": params, "batch_stats": stats}, x, mix, False)
        return logits_eval, jax.value_and_grad(loss, (0, 1), has_aux=True)(params, mix, stats, x)

    logits_eval, ((value, aux), gradients) = compute(
        reference.params(), {"cell": reference.kept("mix")}, reference.batch_stats(), x
    )
    return {
        "logits_eval": logits_eval,
        "loss": value,
        "logits_train": aux[0],
        "batch_stats": aux[1],
        "params_gradient": gradients[0],
        "mix_gradient": gradients[1]["cell"],
    }


# Both compute in float32: roundings of 1e-7 grow a hundredfold over up to 30 normalised layers. The
# reference's logits are of size 1. Its gradients are between 1e-3 and 10, so their tolerance is
# relative to the largest of an array.


@pytest.mark.parametrize("name", ["logits_eval", "logits_train"])
def test_logits_agree_with_pytorch(reference, ours, name):
    np.testing.assert_allclose(ours[name], reference.values[name], rtol=0, atol=1e-4)


def test_loss_agrees_with_pytorch(reference, ours):
    assert float(ours["loss"]) == pytest.approx(float(reference.values["loss"]), abs=1e-5)


def assert_close_to_largest(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_gradients_agree_with_pytorch(reference, ours):
    jax.tree.map(assert_close_to_largest, ours["params_gradient"], reference.params("g:"))


def test_gradient_of_the_mixing_weights_agrees_with_pytorch(reference, ours):
    expected = reference.kept("grad_mix")
    assert_close_to_largest(ours["mix_gradient"], expected)
    assert np.abs(expected).max() > 0.01


def test_running_statistics_agree_with_pytorch(reference, ours):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-4),
        ours["batch_stats"],
        reference.batch_stats("after:"),
    )


# Genotypes


def genotype(*names):
    """Returns the genotype of six operations in the order of the edges."""
    nodes = (names[:1], names[1:3], names[3:])
    pairs = (tuple((name, source) for source, name in enumerate(node)) for node in nodes)
    return Genotype("nasbench201", (("cell", tuple(pairs)),))


def test_describe_and_parse_are_inverse_for_every_cell():
    # Would catch a cell whose true accuracy would be looked up under another cell's name.
    seen = set()
    for names in itertools.product(PRIMITIVES, repeat=6):
        a, b, c, d, e, f = names
        arch = f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"  # the benchmark's own format
        assert parse(arch) == genotype(*names)
        assert SPACE.describe(genotype(*names)) == arch
        seen.add(arch)
    assert len(seen) == 5**6
    assert parse(f" {arch}\n") == genotype(*names)  # as a file may hold it


GOOD = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"


@pytest.mark.parametrize(
    "bad",
    [
        "",
        GOOD[1:],
        GOOD + "|",
        GOOD + "\n" + GOOD,
        GOOD.replace("+", ""),
        GOOD.replace("~2", "~1"),
        GOOD.replace("none~2", "sep_conv_3x3~2"),
        GOOD.replace("none~2", "None~2"),
        GOOD.replace("|none~2", ""),
        GOOD.replace("none~0", "none~00"),
        GOOD.replace("none~1", "none~-1"),
        "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|none~3|",
        "x" * 10_000,
    ],
)
def test_other_texts_are_no_arch_strings(bad):
    # Would catch a text that is silently read as another cell.
    with pytest.raises(UserError, match="is not an arch string: expected .op~0") as raised:
        parse(bad)
    assert len(str(raised.value)) < 500


# The right edges, but not all at the right nodes.
NODES = tuple(tuple(("none", source) for source in node) for node in ((0,), (0, 1, 0), (1, 2)))
MISPLACED = Genotype("nasbench201", (("cell", NODES),))


def network_spec(cell, depth=1):
    return NetworkSpec(cell, 4, depth, 10, (8, 8, 3))


@pytest.mark.parametrize("function", [SPACE.describe, lambda g: SPACE.check(network_spec(g))])
@pytest.mark.parametrize(
    "wrong, message",
    [
        (PUBLISHED["drnas_cifar10"], "no cell 'cell'"),
        (
            Genotype("nasbench201", (("cell", ((("none", 0),),)),)),
            "expected one operation on each edge",
        ),
        (MISPLACED, "expected one operation on each edge"),
        (genotype("none", "none", "none", "none", "none", "max_pool_3x3"), "'max_pool_3x3'.*none"),
    ],
)
def test_unfit_genotypes_are_refused(function, wrong, message):
    # Would catch a genotype file from elsewhere that fails inside the model.
    with pytest.raises(UserError, match=message):
        function(wrong)


def test_derive_takes_the_largest_of_each_edge():
    # Would catch a ranking of edges, or `none` that cannot win, as in DARTS.
    scores = np.random.default_rng(0).dirichlet(np.ones(5), 6)
    scores[0] = [0.9, 0.1, 0, 0, 0]
    expected = [max(zip(row, PRIMITIVES, strict=True))[1] for row in scores]
    spec = SupernetSpec((("cell", CELL),), 4, 1, 10, (8, 8, 3))
    assert SPACE.derive({"cell": scores}, spec) == genotype(*expected)
    assert expected[0] == "none" and len(set(expected)) > 2


# Networks


def network(cell, depth=1):
    return SPACE.network(network_spec(cell, depth), backend.PLAIN)


def leaf_names(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves}


def test_a_network_has_affine_normalisation():
    # Would catch a BatchNorm without scale and bias, as in the supernet.
    cell = genotype("none", "skip_connect", *["nor_conv_3x3"] * 2, "avg_pool_3x3", "nor_conv_1x1")
    x = jnp.zeros((2, 8, 8, 3))
    variables = jax.eval_shape(lambda: network(cell, 2).init(jax.random.key(0), x, True))
    params = variables["params"]["model"]
    # Leading axes: 2 cells, and as many edges as keep the operation.
    assert jax.tree.map(lambda leaf: leaf.shape, params["cell_0"]) == {
        "nor_conv_1x1": {"kernel": (2, 1, 1, 1, 4, 4), "scale": (2, 1, 4), "bias": (2, 1, 4)},
        "nor_conv_3x3": {"kernel": (2, 2, 3, 3, 4, 4), "scale": (2, 2, 4), "bias": (2, 2, 4)},
    }
    scales = {name.removesuffix("/scale") for name in leaf_names(params) if "scale" in name}
    means = {
        name.removesuffix("/mean")
        for name in leaf_names(variables["batch_stats"]["model"])
        if "mean" in name
    }
    assert scales == means


def fill(shapes):
    """Returns random numbers in place of an initialisation, which takes longer to compile."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.uniform(0.5, 1, leaf.shape).astype(leaf.dtype), shapes)


@functools.partial(jax.jit, static_argnums=(0, 3), compiler_options=FAST_COMPILE)
def apply(module, variables, x, train):
    return module.apply(variables, x, train, mutable=["batch_stats"])[0]


@pytest.mark.parametrize("affine", [True, False])
def test_a_cell_is_the_sum_written_out_by_hand(affine):
    # Would catch an edge between other nodes, or an operation with another edge's arrays.
    names = ("nor_conv_3x3", "avg_pool_3x3", "nor_conv_1x1", "none", "nor_conv_3x3", "skip_connect")
    edges = tuple(
        Edge(edge.target, edge.source, (name,))
        for edge, name in zip(CELL.edges, names, strict=True)
    )
    cell = MixedCell(edges, 1, backend.PLAIN, affine, train=False)
    x = np.random.default_rng(1).normal(size=(2, 5, 4, 3)).astype(np.float32)
    mix = np.ones((6, 1), np.float32)
    variables = fill(jax.eval_shape(cell.init, jax.random.key(0), x, mix))

    def conv(y, name, row):
        of_edge = {
            collection: {leaf: array[row] for leaf, array in arrays[name].items()}
            for collection, arrays in variables.items()
        }
        y = backend.PLAIN.conv(jax.nn.relu(y), of_edge["params"].pop("kernel"), 1)
        of_edge["params"] = {"scale": np.ones(3), "bias": np.zeros(3)} | of_edge["params"]
        return norm.BatchNorm().apply(of_edge, y, False)

    node_1 = conv(x, "nor_conv_3x3", 0)
    node_2 = backend.PLAIN.avg_pool(x, 1) + conv(node_1, "nor_conv_1x1", 0)
    node_3 = node_2 + conv(node_1, "nor_conv_3x3", 1)  # the edge from the input is `none`
    # Two sums of up to 27 products of size 1, one after the other, reach some hundreds.
    np.testing.assert_allclose(cell.apply(variables, x, mix)[0], node_3, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "operation, train",
    [("none", False), ("none", True), ("skip_connect", False), ("avg_pool_3x3", False)],
)
def test_cells_without_weights(operation, train):
    # Would catch a cell that needs a convolution, and a sum over no operation.
    module = network(genotype(*[operation] * 6), depth=2)
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, False))
    assert not any("cell" in name for name in leaf_names(shapes))
    logits = apply(module, fill(shapes), x, train)
    assert logits.shape == (4, 10)
    assert np.all(np.isfinite(logits))
    # If all operations are `none`, nothing of the image reaches the classifier.
    assert bool(np.ptp(np.asarray(logits), axis=0).max() > 0) == (operation != "none")
