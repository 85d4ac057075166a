"""What every search space must do: the bundled ones, found by themselves, and the examples."""

import contextlib
import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from drnas_jax import components, spaces
from drnas_jax.errors import UserError
from drnas_jax.nn import backend
from drnas_jax.nn.counting import count_parameters
from drnas_jax.phases.search import stages
from drnas_jax.spaces.base import NetworkSpec, SupernetSpec, one_hot
from drnas_jax.training.optimisers import map_like_params

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = [*components.names("space"), *(str(EXAMPLES / f"{name}.py") for name in ("chain", "vit"))]
CHANNELS, CLASSES, IMAGE = 8, 5, (8, 8, 3)
# Compiled for one run: optimisation would take longer than it saves.
FAST_COMPILE = {"xla_backend_optimization_level": 0}

SUBSPACES = ("darts_s1", "darts_s2", "darts_s3", "darts_s4")


def all_but(*slow):
    """Runs a test with all spaces, but with the `slow` ones only among the slow tests."""
    names = [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in NAMES]
    return pytest.mark.parametrize("space", names, ids=components.short_name, indirect=True)


# The largest supernets; the tests of their cells compare the same gradients with plain code.
BUT_DARTS = all_but("darts", *SUBSPACES)
# They have the code of the DARTS space, which runs at once.
BUT_SUBSPACES = all_but(*SUBSPACES)


@pytest.fixture(params=NAMES, ids=components.short_name)
def space(request):
    return created(request.param)


@functools.cache
def created(name):
    return spaces.create(name)


def depth_of(space):
    """Returns a depth at which there are cells of all types: that of DARTS is 3, of macro 8."""
    if space.name == "macro":
        return 8
    return 3 if len(space.cells) > 1 else 2


def first_spec(space, partial_channels=4):
    """Returns the supernet with all operations; K is 1 if the space has no partial channels."""
    cells, depth = tuple(space.cells.items()), depth_of(space)
    spec = SupernetSpec(cells, CHANNELS, depth, CLASSES, IMAGE, partial_channels)
    with contextlib.suppress(UserError):
        space.check(spec)
        return spec
    return dataclasses.replace(spec, partial_channels=1)


def pruned(spec, count, seed=0, partial_channels=None):
    """Returns the spec with `count` operations on each edge, chosen at random."""
    random = np.random.default_rng(seed)
    scores = {cell_type: random.random(cell.shape) for cell_type, cell in spec.cells}
    columns = stages.columns_to_keep(scores, spec, count)
    return stages.resized_spec(spec, columns, partial_channels or spec.partial_channels)


def network_spec(space, genotype, image=IMAGE):
    return NetworkSpec(genotype, CHANNELS, depth_of(space), CLASSES, image)


def random_mix(spec):
    """Returns positive mixing weights that are 0 beyond the end of an edge's list."""
    random = np.random.default_rng(0)
    mix = {}
    for cell_type, cell in spec.cells:
        weights = random.uniform(0.2, 1, cell.shape) * (True if cell.mask is None else cell.mask)
        mix[cell_type] = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
    return mix


def random_images(shape=IMAGE):
    return np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)


def streams():
    return {name: jax.random.key(0) for name in ("params", "dropout", "noise", "drop_path")}


@functools.cache
def variables_of(space, spec):
    """Returns the shapes of a supernet's variables; nothing is compiled."""
    module = space.supernet(spec, backend.GPU)
    mix = {cell_type: jnp.ones(cell.shape) for cell_type, cell in spec.cells}
    images = jnp.zeros((1, *spec.image))
    return jax.eval_shape(lambda: module.init(streams(), images, mix, True))


def random_values(variables):
    """Returns random numbers in place of an initialisation, which takes longer to compile.

    Weights are about as large as in an initialisation. All are such that values neither vanish nor
    explode in evaluation.
    """
    random = np.random.default_rng(0)

    def values(path, leaf):
        if path[-1].startswith("mean"):
            return random.uniform(-0.5, 0.5, leaf.shape).astype(leaf.dtype)
        if path[-1].startswith(("var", "scale", "bias")):
            return random.uniform(0.3, 1, leaf.shape).astype(leaf.dtype)
        inputs = np.prod(leaf.shape[-3:-1])
        return (random.normal(size=leaf.shape) / np.sqrt(inputs)).astype(leaf.dtype)

    return unflatten_dict({path: values(path, leaf) for path, leaf in paths(variables).items()})


def numbered(tree):
    """Returns the tree with another number in every place, from 0 on."""
    leaves, structure = jax.tree.flatten(tree)
    firsts = np.cumsum([0, *(leaf.size for leaf in leaves)])
    values = (first + np.arange(leaf.size) for first, leaf in zip(firsts, leaves, strict=False))
    return structure.unflatten(
        [value.reshape(leaf.shape) for value, leaf in zip(values, leaves, strict=True)]
    )


def paths(tree):
    return flatten_dict(dict(tree))


def primitives_of(space):
    return {op for cell in space.cells.values() for edge in cell.edges for op in edge.primitives}


# Cells and genotypes


def test_edges_and_their_operations_are_in_order(space):
    # Would catch edges that `derive` would group wrongly, and names that no genotype.json can hold.
    names = [space.name, *space.cells]
    for cell in space.cells.values():
        targets = [edge.target for edge in cell.edges]
        assert targets == sorted(targets)
        assert set(targets) == set(range(cell.inputs, max(targets) + 1))
        assert len({(edge.target, edge.source) for edge in cell.edges}) == len(cell.edges)
        for edge in cell.edges:
            assert 0 <= edge.source < edge.target
            assert len(set(edge.primitives)) == len(edge.primitives) > 1
            names += edge.primitives
    assert all(name.isascii() and name.isidentifier() for name in names)


def test_a_genotype_is_derived_from_its_one_hot_mixing_weights(space):
    # Would catch mixing weights of the wrong row, and an operation that is read from another list.
    spec = first_spec(space)
    for seed in range(10):
        genotype = spaces.random_genotype(space, seed)
        mix = one_hot(space.cells, genotype)
        for cell_type, cell in space.cells.items():
            assert mix[cell_type].shape == cell.shape
            assert mix[cell_type].sum() == sum(len(node) for node in genotype.cell(cell_type))
        assert space.derive(mix, spec) == genotype


def test_one_operation_on_each_edge_derives_it(space):
    # Would catch a derivation that numbers operations by the space's list, not the edge's.
    spec = pruned(first_spec(space), 1)
    scores = {cell_type: np.random.default_rng(0).random(c.shape) for cell_type, c in spec.cells}
    kept = {
        (cell_type, edge.target, edge.source): edge.primitives
        for cell_type, cell in spec.cells
        for edge in cell.edges
    }
    for cell_type, cell in space.derive(scores, spec).cells:
        for target, node in enumerate(cell, start=spec.cell(cell_type).inputs):
            for name, source in node:
                assert kept[cell_type, target, source] == (name,)


def test_an_operation_that_was_pruned_has_no_mixing_weight(space):
    genotype = spaces.random_genotype(space, 0)
    cells = dict(pruned(first_spec(space), 1, seed=1).cells)
    with pytest.raises(UserError, match="the supernet has no operation '.*' on the edge .*<-"):
        one_hot(cells, genotype)


def test_random_genotypes_cover_the_space(space):
    many = [spaces.random_genotype(space, seed) for seed in range(40)]
    assert many == [spaces.random_genotype(space, seed) for seed in range(40)]
    assert len(set(many)) > 30
    # That one of 40 cells' operations is missing has a probability below 1e-4 even if there are 10
    # operations and 3 edges; `none` may be one that no network keeps.
    drawn = {
        op for genotype in many for _, cell in genotype.cells for node in cell for op, _ in node
    }
    assert primitives_of(space) - {"none"} <= drawn <= primitives_of(space)
    assert "\n" not in space.describe(many[0])


def test_a_genotype_of_another_space_is_refused(space):
    genotype = spaces.random_genotype(space, 0)
    spaces.check_genotype(genotype, space)
    other = dataclasses.replace(genotype, space="other")
    with pytest.raises(UserError, match=f"expected {space.name!r}; set .* the space 'other'"):
        spaces.check_genotype(other, space)
    more = dataclasses.replace(genotype, cells=(*genotype.cells, ("more", genotype.cells[0][1])))
    for unfit in (more, dataclasses.replace(genotype, cells=())):
        with pytest.raises(UserError, match=f"the cells .*: expected .* the space {space.name}"):
            spaces.check_genotype(unfit, space)


# What `check` lets pass can be built


@BUT_SUBSPACES
@pytest.mark.parametrize("image", [(7, 9, 1), (10, 6, 3), (8, 16, 1)])
def test_what_the_check_lets_pass_can_be_built(space, image):
    # Would catch an image size that fails only when the last stage or the retraining begins.
    spec = dataclasses.replace(pruned(first_spec(space), 2), image=image)
    network = network_spec(space, spaces.random_genotype(space, 0), image)
    refused = 0
    for some in (spec, network):
        try:
            space.check(some)
        except UserError as error:
            refused += 1
            assert "data.image_size" in str(error)
            continue
        if some is spec:
            variables_of(space, spec)
        else:
            assert logits_shapes(space, network)[0].shape == (2, CLASSES)
    assert refused in (0, 2)


def logits_shapes(space, spec, *more):
    """Returns the shapes of a network's outputs in training, as a list."""
    module = space.network(spec, backend.GPU)
    images = jnp.zeros((2, *spec.image))

    def outputs():
        variables = module.init(streams(), images, True, *more)
        return module.apply(
            variables, images, True, *more, rngs=streams(), mutable=list(variables)
        )[0]

    return jax.tree.leaves(jax.eval_shape(outputs))


@BUT_SUBSPACES
def test_a_network_has_an_auxiliary_head_and_drops_paths_or_the_check_says_it_does_not(space):
    # Would catch a setting that a space ignores, or that fails inside Flax.
    spec = network_spec(space, spaces.random_genotype(space, 0), (32, 32, 3))
    for changed, field, more, outputs in (
        (dataclasses.replace(spec, auxiliary=True), "auxiliary_weight", (), 2),
        (dataclasses.replace(spec, drop_path=0.25), "drop_path", (jnp.float32(0.1),), 1),
    ):
        try:
            space.check(changed)
        except UserError as error:
            value = {"drop_path": "0.25", "auxiliary_weight": "more than 0"}[field]
            fault = f"retrain.{field} is {value}, but networks of the space {space.name}"
            assert fault in str(error)
        else:
            shapes = logits_shapes(space, changed, *more)
            assert [leaf.shape for leaf in shapes] == [(2, CLASSES)] * outputs


# Logits and gradients


def evaluation(space, spec, chosen, dtype="float32"):
    """Returns a function that computes gradients, and its arguments: weights and mixing weights.

    It returns the gradients of the weights and of the mixing weights, the logits and the new
    statistics.
    """
    module = space.supernet(spec, chosen)
    images = random_images(spec.image).astype(dtype)
    variables = random_values(variables_of(space, spec))
    params = variables.pop("params")
    slopes = np.random.default_rng(1).normal(size=(len(images), CLASSES)).astype(np.float32)

    def loss(params, mix):
        logits, updated = module.apply(
            {"params": params, **variables},
            images,
            mix,
            True,
            rngs=streams(),
            mutable=list(variables),
        )
        return jnp.sum(slopes * logits), (logits, updated)

    def function(params, mix):
        gradients, (logits, updated) = jax.grad(loss, (0, 1), has_aux=True)(params, mix)
        return *gradients, logits, updated

    return function, (params, random_mix(spec))


def evaluate(*case):
    function, arguments = evaluation(*case)
    return jax.jit(function, compiler_options=FAST_COMPILE)(*arguments)


@BUT_DARTS
def test_every_choice_has_a_gradient(space):
    # Would catch an operation that is not connected, or a mixing weight that is not used.
    spec = first_spec(space)
    function, (params, mix) = evaluation(space, spec, backend.GPU)
    # The compiler leaves out the gradient of the weights.
    compute = jax.jit(lambda mix: function(params, mix)[1:3], compiler_options=FAST_COMPILE)
    d_mix, logits = compute(mix)
    assert logits.shape == (4, CLASSES)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((logits, d_mix)))
    idle = set()
    for cell_type, cell in spec.cells:
        for row, edge in enumerate(cell.edges):
            slopes = np.asarray(d_mix[cell_type][row])
            assert not slopes[len(edge.primitives) :].any()  # beyond the end of the list
            idle |= {
                name for name, slope in zip(edge.primitives, slopes, strict=False) if slope == 0
            }
    # Only an operation that adds nothing has no gradient, and a space has at most one of these.
    assert len(idle) <= 1, idle


@BUT_DARTS
def test_gradients_and_statistics_are_float32_if_images_are_not(space):
    # Would catch parameters or running averages that become half precision after the first step.
    spec = pruned(first_spec(space), 2)
    function, arguments = evaluation(space, spec, backend.GPU, "bfloat16")
    for leaf in jax.tree.leaves(jax.eval_shape(function, *arguments)):
        assert leaf.dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_bfloat16_is_near_float32(space, platform):
    # Would catch a sum of many numbers in half precision, which loses its digits.
    spec = dataclasses.replace(first_spec(space), depth=1)
    # The eight layers of macro are one after another. At 8x8 pixels the last BatchNorms have four
    # values a channel, and an error of a hundredth in the activations flips many ReLUs.
    tolerance = 0.5 if space.name == "macro" else 0.1
    if space.name == "macro":
        spec = dataclasses.replace(spec, image=(16, 16, 3), depth=8)
    chosen = backend.for_platform(platform)
    low, high = (evaluate(space, spec, chosen, dtype) for dtype in ("bfloat16", "float32"))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(low))
    # 8 bits of mantissa through some 20 layers leave an error of a hundredth, averaged over many
    # numbers.
    for a, b in zip(low, high, strict=True):
        if not jax.tree.leaves(a):  # the space has no statistics
            continue
        a, b = (np.concatenate([np.ravel(v) for v in jax.tree.leaves(t)]) for t in (a, b))
        assert np.linalg.norm(a - b) < tolerance * np.linalg.norm(b)
    assert np.any(np.asarray(low[2]) != np.asarray(high[2]))


def random_spec(space, seed):
    """Returns a supernet whose size and operations are random; edges are of unequal length."""
    random, spec = np.random.default_rng(seed), first_spec(space)
    columns = {
        cell_type: [
            np.sort(random.permutation(n)[: random.integers(1, n + 1)])
            for n in (len(edge.primitives) for edge in cell.edges)
        ]
        for cell_type, cell in spec.cells
    }
    partial_channels = int(random.choice([1, 2, 4])) if spec.partial_channels > 1 else 1
    spec = stages.resized_spec(spec, columns, partial_channels)
    depths = range(1, 4) if space.name != "macro" else [8]
    return dataclasses.replace(
        spec, channels=4 * int(random.integers(1, 4)), depth=int(random.choice(depths))
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_all_kernels_agree_on_any_supernet(space, seed):
    spec = random_spec(space, seed)
    expected = evaluate(space, spec, backend.PLAIN)
    for platform in ("cpu", "gpu", "tpu"):
        found = evaluate(space, spec, backend.for_platform(platform))
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            # A ReLU whose input is within rounding of 0 may flip, which changes few numbers much:
            # compared as a whole.
            assert np.linalg.norm(a - b) <= 1e-2 * np.linalg.norm(b) + 1e-6, spec


# The final network is the supernet at one-hot mixing weights


def rows_of(cell_type, cell, genotype, primitive):
    """Returns, for each edge of a genotype with a primitive, its row in the stacked arrays.

    In DARTS a skip connection has arrays only if it halves the size.
    """
    kept = [
        (edge.target, edge.source)
        for edge in cell.edges
        if primitive in edge.primitives
        and (primitive != "skip_connect" or (cell_type == "reduce" and edge.source < cell.inputs))
    ]
    edges = [
        (target, source)
        for target, node in enumerate(genotype.cell(cell_type), start=cell.inputs)
        for name, source in node
        if name == primitive
    ]
    return [kept.index(edge) for edge in edges if edge in kept]


def network_variables(space, genotype, variables, like):
    """Returns the variables of a network that has the weights of a supernet.

    In the bundled spaces the arrays of a primitive are stacked, [cells, rows, ...], and the network
    gets the rows of its edges. With `MixedOp` each operation has a subtree of its own, and the
    network gets the subtrees of its operations. Only the network's cells have scales and biases in
    BatchNorm: they are 1 and 0.
    """
    supernet, network = paths(variables), {}
    for path, leaf in paths(like).items():
        # The whole model is a submodule of the network, but not of every supernet.
        source = path if path in supernet else tuple(key for key in path if key != "model")
        if source not in supernet:
            assert path[-1].startswith(("scale", "bias")), path
            network[path] = np.full(leaf.shape, path[-1].startswith("scale"), np.float32)
            continue
        network[path] = supernet[source]
        if network[path].shape != leaf.shape:
            cell_type, cell = next(
                (cell_type, cell)
                for cell_type, cell in space.cells.items()
                if any(key.startswith(f"{cell_type}_") for key in path)
            )
            network[path] = network[path][:, rows_of(cell_type, cell, genotype, path[-2])]
        assert network[path].shape == leaf.shape, path
    return unflatten_dict(network)


@BUT_SUBSPACES
def test_a_supernet_at_one_hot_mixing_weights_is_the_final_network(space):
    # Would catch a network of other cells than the search evaluated.
    # It holds only for K = 1. With K > 1 the network has all channels, and not C / K, in every
    # operation, so its weights have other shapes; and the channels that bypass the operations take
    # every edge of the supernet, also those that the network lacks.
    spec, genotype = first_spec(space, partial_channels=1), spaces.random_genotype(space, 1)
    supernet, variables = (
        space.supernet(spec, backend.GPU),
        random_values(variables_of(space, spec)),
    )
    images = random_images()

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def logits_at(mix):
        return supernet.apply(variables, images, mix, False, rngs=streams())

    network = space.network(network_spec(space, genotype), backend.GPU)
    like = jax.eval_shape(lambda: network.init(streams(), images, False))
    copied = network_variables(space, genotype, variables, like)

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def apply(variables):
        return network.apply(variables, images, False, rngs=streams())

    expected, found = apply(copied), logits_at(one_hot(space.cells, genotype))
    other = logits_at(one_hot(space.cells, spaces.random_genotype(space, 2)))
    largest = np.abs(expected).max()
    assert np.isfinite(largest)
    # Sums in another order through some 20 layers; and another genotype has other logits.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * largest)
    assert np.abs(other - expected).max() > 1e-2 * largest


# Pruning and widening


def parameters_by_hand(space, edge, cell_type, primitive):
    """Returns the parameters of an operation on an edge, in all cells of the first supernet."""
    depth = depth_of(space)
    if space.name.startswith("darts"):
        # One normal cell of C channels, then two reduction cells of 2 C and 4 C.
        widths, halves = {"normal": ([2], False), "reduce": ([4, 8], edge.source < 2)}[cell_type]
        kind, _, size = primitive.rpartition("_")
        if kind in ("sep_conv", "dil_conv"):
            layers, taps = {"sep_conv": 2, "dil_conv": 1}[kind], int(size[0]) ** 2
            return sum(layers * (taps * w + w * w) for w in widths)
        return sum(w * w for w in widths) if primitive == "skip_connect" and halves else 0
    if space.name == "nasbench201":
        taps = {"nor_conv_1x1": 1, "nor_conv_3x3": 9}.get(primitive, 0)
        return sum(depth * taps * w * w for w in (2, 4, 8))
    if space.name == "macro":
        layer = edge.target - 1
        wide = 8 * 2 ** sum(layer > first for first in (0, 2, 5))  # channels of the input
        output = 2 * wide if layer in (0, 2, 5) else wide
        if primitive == "identity":
            return wide * output if output > wide else 0
        taps, expansion = {"mbconv_3x3_e3": (9, 3), "mbconv_5x5_e6": (25, 6)}[primitive]
        return expansion * wide * (wide + taps + output)
    if space.name == "chain":
        return depth * {"conv_1x1": 1, "conv_3x3": 9}.get(primitive, 0) * 2 * 2
    assert space.name == "vit"
    kind, _, number = primitive.partition("_")
    # Query, key, value and output, and the two layers of a perceptron, each with a bias.
    if kind == "heads":
        return depth * 4 * (CHANNELS * CHANNELS + CHANNELS)
    wide = int(number or 0) * CHANNELS
    return depth * (CHANNELS * wide + wide + wide * CHANNELS + CHANNELS) if wide else 0


COUNTED = ("darts", *SUBSPACES, "nasbench201", "macro", "chain", "vit")


@BUT_SUBSPACES
@pytest.mark.parametrize("count", [1, 2])
def test_pruning_removes_exactly_the_parameters_of_the_dropped_operations(space, count):
    # Would catch parameters that stay although nothing reads them, or that two operations share.
    if space.name not in COUNTED:
        pytest.skip("its parameters were not counted by hand")
    old = first_spec(space)
    new = pruned(old, count)
    before, after = variables_of(space, old), variables_of(space, new)
    dropped = sum(
        parameters_by_hand(space, edge, cell_type, primitive)
        for cell_type, cell in old.cells
        for edge, kept in zip(cell.edges, new.cell(cell_type).edges, strict=True)
        for primitive in edge.primitives
        if primitive not in kept.primitives
    )
    tree = numbered(before["params"])
    resized = space.resize(tree, after["params"], old, new, seed=0)
    assert count_parameters(resized) == count_parameters(tree) - dropped
    assert dropped > 0 or count >= max(cell.shape[1] for cell in space.cells.values())
    # None is changed, and none is there twice.
    left = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(resized)])
    assert len(np.unique(left)) == len(left)
    assert set(left) <= set(range(count_parameters(tree)))


OPTIMISERS = {
    "sgd": optax.sgd(0.1, momentum=0.9),
    "adamw": optax.adamw(0.1),
    "masked adamw": optax.masked(
        optax.adamw(0.1),
        lambda params: jax.tree.map_with_path(lambda path, _: "kernel" in str(path[-1]), params),
    ),
}


def with_values(params, tree):
    """Returns a tree of moments whose values are those of the parameters; masked ones stay."""

    def masked(leaf):
        return isinstance(leaf, optax.MaskedNode)

    return jax.tree.map(
        lambda leaf, value: leaf if masked(leaf) else value, tree, params, is_leaf=masked
    )


def assert_equal(found, expected):
    if isinstance(expected, jax.ShapeDtypeStruct):  # a counter
        assert found == expected
    else:
        np.testing.assert_array_equal(found, expected)


@BUT_SUBSPACES
@pytest.mark.parametrize("count, partial_channels", [(2, 4), (99, 2), (1, 1)])
def test_a_resized_state_is_shaped_like_a_fresh_one(space, count, partial_channels):
    # Would catch arrays or moments that keep the old shape, or other copies in the moments.
    old = first_spec(space)
    new = pruned(old, count, partial_channels=min(partial_channels, old.partial_channels))
    before, after = variables_of(space, old), variables_of(space, new)

    def resize(tree, collection="params"):
        return space.resize(tree, after[collection], old, new, seed=1)

    values = {name: numbered(tree) for name, tree in before.items()}
    resized = {name: resize(tree, name) for name, tree in values.items()}
    assert jax.tree.map(np.shape, resized) == jax.tree.map(lambda leaf: leaf.shape, after)

    def state(optimiser, params):
        """Returns the optimiser's state, in which each moment is the parameter itself."""
        fill = functools.partial(with_values, params)
        return map_like_params(params, fill, jax.eval_shape(optimiser.init, params))

    for name, optimiser in OPTIMISERS.items():
        moved = map_like_params(values["params"], resize, state(optimiser, values["params"]))
        expected = state(optimiser, resized["params"])
        assert jax.tree.structure(moved) == jax.tree.structure(expected), name
        jax.tree.map(assert_equal, moved, expected)


def copied_channels(space, old, new, axis):
    """Returns which old channels an axis of each array copies, by operation and path inside it.

    An array has a set of lists of channels: one list if all its rows copy the same channels.
    """
    before, after = variables_of(space, old), variables_of(space, new)
    primitives, copies = primitives_of(space), {}

    def channel_numbers(leaf):
        if leaf.ndim < -axis:
            return np.zeros(leaf.shape, int)
        ends = [leaf.shape[axis]] + [1] * (-axis - 1)
        return np.broadcast_to(np.arange(leaf.shape[axis]).reshape(ends), leaf.shape)

    for name, tree in before.items():
        marked = jax.tree.map(channel_numbers, tree)
        resized = space.resize(marked, after[name], old, new, seed=1)
        for path, array in paths(resized).items():
            inside = next((i for i, key in enumerate(path) if key in primitives), None)
            if inside is not None and array.ndim >= -axis:
                rows = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
                operation = copies.setdefault(path[: inside + 1], {})
                operation[name, *path[inside + 1 :]] = set(map(tuple, rows.tolist()))
    return copies


@BUT_SUBSPACES
def test_widening_copies_whole_channels(space):
    # Would catch a copied output that gets the statistics of another channel.
    old = dataclasses.replace(first_spec(space), channels=32, depth=1)
    if old.partial_channels == 1:
        pytest.skip("the space has no partial channels")
    new = dataclasses.replace(pruned(old, 2), partial_channels=2)
    copies = copied_channels(space, old, new, axis=-1)
    assert copies
    for operation, leaves in copies.items():
        weights = [rows for (name, *_), rows in leaves.items() if name == "params"]
        for (name, *path), rows in leaves.items():
            for row in rows:
                length = max(row) + 1
                # The old channels come first. A skip connection of DARTS halves the width.
                assert row[:length] == tuple(range(length)), (operation, path)
                assert len(row) == 2 * length
            if name != "params" and weights:
                assert rows in weights, (operation, path)
