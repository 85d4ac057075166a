"""What every search space must do: the bundled ones, found by themselves, and the examples."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_space import (
    BUT_DARTS,
    BUT_SUBSPACES,
    CLASSES,
    FAST_COMPILE,
    NAMES,
    created,
    first_spec,
    network_spec,
    paths,
    primitives_of,
    pruned,
    random_images,
    random_mix,
    random_values,
    streams,
    variables_of,
)
from flax.traverse_util import unflatten_dict

from drnas_jax import components, spaces
from drnas_jax.errors import UserError
from drnas_jax.nn import backend
from drnas_jax.phases.search import stages
from drnas_jax.spaces.base import one_hot


@pytest.fixture(params=NAMES, ids=components.short_name)
def space(request):
    return created(request.param)


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
@pytest.mark.parametrize(
    "image", [(7, 9, 1), (10, 6, 3), pytest.param((8, 16, 1), marks=pytest.mark.slow)]
)
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


@BUT_DARTS
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
