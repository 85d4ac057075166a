"""Exported state_dicts have the names, shapes and values of the authors' PyTorch networks."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from trained_run import random_variables

from drnas_jax import spaces
from drnas_jax.errors import UserError
from drnas_jax.export_formats import torch
from drnas_jax.export_formats.base import Network
from drnas_jax.genotype import Genotype
from drnas_jax.nn.backend import PLAIN
from drnas_jax.spaces import NetworkSpec, darts, nasbench201
from drnas_jax.spaces.darts.published import PUBLISHED
from drnas_jax.tools.torch_networks import from_torch

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"
ARCH = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|nor_conv_3x3~2|"


def network_of(space, genotype, channels=4, depth=1, image=(8, 8, 3)):
    """Returns a network of random weights."""
    spec = NetworkSpec(genotype, channels, depth, 3, image)
    module = space.network(spec, PLAIN)
    variables = random_variables(module, image)

    def apply(x):
        return module.apply(variables, x, False)

    return Network(apply, image, "float32", ("a", "b", "c"), space, spec, variables)


def imported_again(network, genotype=None):
    """Asserts that a state_dict leads back to the same variables; returns the import."""
    imported = from_torch(torch.state_dict(network), genotype or network.genotype)
    assert_same(imported.variables, network.variables)
    return imported


def assert_same(ours, theirs):
    paths = jax.tree_util.tree_leaves_with_path(ours)
    for (path, leaf), other in zip(paths, jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(leaf, other, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("depth", [1, 2])
def test_a_network_whose_cells_have_no_tensors_is_read(depth):
    # Would catch a number of cells that is taken from the cells that have tensors.
    arch = "|none~0|+|none~0|skip_connect~1|+|skip_connect~0|avg_pool_3x3~1|none~2|"
    imported_again(network_of(nasbench201.create(), nasbench201.parse(arch), depth=depth))


def test_a_network_of_nasbench201_has_the_names_of_tiny_network():
    # Would catch an edge that is numbered otherwise, or an operation with tensors that it lacks.
    network = network_of(nasbench201.create(), nasbench201.parse(ARCH))
    shapes = {name: value.shape for name, value in torch.state_dict(network).items()}
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

    def conv(name, *shape):
        return {f"{name}.weight": shape}

    def normalised(name, size):
        return {f"{name}.{kind}": (size,) if kind != norm[-1] else () for kind in norm}

    expected = {**conv("stem.0", 4, 3, 3, 3), **normalised("stem.1", 4)}
    for cell, width in ((0, 4), (2, 8), (4, 16)):
        for layer, size in ((0, 3), (4, 1), (5, 3)):  # of the six edges, those with convolutions
            expected |= conv(f"cells.{cell}.layers.{layer}.op.1", width, width, size, size)
            expected |= normalised(f"cells.{cell}.layers.{layer}.op.2", width)
    for cell, width in ((1, 8), (3, 16)):
        expected |= conv(f"cells.{cell}.conv_a.op.1", width, width // 2, 3, 3)
        expected |= conv(f"cells.{cell}.conv_b.op.1", width, width, 3, 3)
        expected |= conv(f"cells.{cell}.downsample.1", width, width // 2, 1, 1)
        for name in ("conv_a", "conv_b"):
            expected |= normalised(f"cells.{cell}.{name}.op.2", width)
    expected |= normalised("lastact.0", 16)
    expected |= {"classifier.weight": (3, 16), "classifier.bias": (3,)}
    assert shapes == expected


def test_a_network_of_nasbench201_is_imported_again():
    # Would catch a tensor in another layout than the import expects.
    network = network_of(nasbench201.create(), nasbench201.parse(ARCH), depth=2, image=(8, 8, 1))
    model = imported_again(network).module.model
    assert (model.channels, model.depth, model.classes) == (4, 2, 3)


def test_both_files_hold_the_state_dict(tmp_path):
    # Would catch a file in another layout, such as that of an array that is not contiguous.
    network = network_of(nasbench201.create(), nasbench201.parse(ARCH))
    expected = torch.state_dict(network)
    files = torch.create().write(network, tmp_path)
    assert [file.name for file in files] == ["model.npz", "model.safetensors"]
    with np.load(files[0], allow_pickle=False) as arrays:
        loaded = dict(arrays)
    for state in (loaded, safetensors.numpy.load_file(files[1])):
        assert state.keys() == expected.keys()
        for name, value in expected.items():
            assert (state[name].dtype, state[name].shape) == (value.dtype, value.shape), name
            np.testing.assert_array_equal(state[name], value, err_msg=name)


@pytest.mark.parametrize("name", ["macro", str(Path(__file__).parents[1] / "small_space.py")])
def test_other_spaces_are_refused_with_a_format_that_works(name):
    # Would catch a KeyError while files are written.
    space = spaces.create(name)
    with pytest.raises(UserError, match=f"space {space.name} .*export.formats=stablehlo"):
        torch.create().check(space)


def test_noise_is_refused():
    # Would catch a file that the authors' code cannot load.
    space = spaces.create("darts_s4")
    torch.create().check(space)  # not every network of the space has noise
    nodes = tuple((("noise", 0), ("sep_conv_3x3", 1)) for _ in range(4))
    genotype = Genotype("darts_s4", (("normal", nodes), ("reduce", nodes)))
    network = dataclasses.replace(
        network_of(nasbench201.create(), nasbench201.parse(ARCH)),
        space=space,
        spec=NetworkSpec(genotype, 4, 3, 3, (8, 8, 3)),
    )
    with pytest.raises(UserError, match="'noise'.*export.formats=stablehlo"):
        torch.create().write(network, Path("nowhere"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stem", "side"), [("cifar_network", "cifar", 32), ("imagenet_network", "imagenet", 64)]
)
def test_tensors_of_pytorch_come_out_as_they_went_in(name, stem, side):
    # Would catch a name, a shape or a value that is not PyTorch's own, and a missing tensor.
    file = REFERENCE / f"{name}.npz"
    if not file.exists():
        pytest.skip(f"there is no {file}")
    with np.load(file, allow_pickle=False) as arrays:
        state = {key[2:]: value for key, value in arrays.items() if key.startswith("w:")}
    state = {key: value for key, value in state.items() if not key.startswith("auxiliary_head")}
    genotype = PUBLISHED["drnas_cifar10" if stem == "cifar" else "drnas_imagenet"]
    imported = from_torch(state, genotype)
    network = Network(
        apply=lambda x: imported.module.apply(imported.variables, x, False),
        shape=(side, side, 3),
        dtype="float32",
        classes=(),
        space=darts.create(darts.Options(stem)),
        spec=imported.module.spec,
        variables=imported.variables,
    )
    exported = torch.state_dict(network)
    counts = {key for key in exported if key.endswith("num_batches_tracked")}
    norms = {key for key in state if key.endswith("running_mean")}
    assert len(counts) == len(norms) and exported.keys() - counts == state.keys()
    for key, value in state.items():
        assert (exported[key].dtype, exported[key].shape) == (value.dtype, value.shape), key
        np.testing.assert_array_equal(exported[key], value, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("space", ["darts", "darts_s1", "darts_s2", "darts_s3"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_networks_of_the_darts_spaces_are_imported_again(space, stem):
    # Would catch logits that change on the way to PyTorch's names and back.
    image = (32, 32, 3) if stem == "cifar" else (224, 224, 3)
    made = spaces.create(space, darts.Options(stem))
    network = network_of(made, spaces.random_genotype(made, 1), depth=3, image=image)
    genotype = dataclasses.replace(network.genotype, space="darts")  # as in the authors' code
    imported = imported_again(network, genotype)
    assert imported.module.spec == dataclasses.replace(network.spec, genotype=genotype)
    again = darts.create(darts.Options(stem)).network(imported.module.spec, PLAIN)
    x = np.random.default_rng(0).normal(size=(2, *image)).astype(np.float32)
    apply = jax.jit(lambda variables: again.apply(variables, x, False))  # one program for both
    np.testing.assert_array_equal(apply(imported.variables), apply(network.variables))
