"""The space of NAS-Bench-Macro: its codes, what it refuses, and the counts of its networks."""

import csv
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnas_jax import spaces
from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype
from drnas_jax.nn import backend
from drnas_jax.nn.counting import Counts, count_network
from drnas_jax.spaces.base import NetworkSpec, SupernetSpec
from drnas_jax.spaces.macro import CELL, PRIMITIVES, Layer, Macro, parse

SPACE = Macro()
BENCHMARK = dict(channels=32, depth=8, classes=10, image=(32, 32, 3))


def network_spec(code, **changes):
    return NetworkSpec(parse(code), **{**BENCHMARK, **changes})


# Codes


def test_describe_and_parse_are_inverse_for_every_network():
    # Would catch a network whose true accuracy would be looked up under another one's code.
    for digits in itertools.product("012", repeat=8):
        code = "".join(digits)
        genotype = parse(code)
        names = [name for ((name, _),) in genotype.cell("layers")]
        assert names == [PRIMITIVES[int(digit)] for digit in digits]
        assert SPACE.describe(genotype) == code
        spaces.check_genotype(genotype, SPACE)
    assert parse(" 22212220\n") == parse("22212220")  # as a file may hold it


@pytest.mark.parametrize("bad", ["", "2221222", "222122200", "22212223", "2221222a", "x" * 10_000])
def test_other_texts_are_no_codes(bad):
    # Would catch a text that is silently read as another network.
    with pytest.raises(UserError, match="is not a code of NAS-Bench-Macro: expected 8") as raised:
        parse(bad)
    assert len(str(raised.value)) < 500


def test_a_code_is_a_genotype(tmp_path):
    # Would catch a code that is taken for a number or for a path.
    expected = parse("00000120")
    (tmp_path / "code.txt").write_text("00000120\n")
    for given in ("00000120", tmp_path / "code.txt"):
        assert spaces.load_genotype(given) == expected
    with pytest.raises(UserError, match="neither a file nor a published name"):
        spaces.load_genotype("33333333")


# What the space refuses


@pytest.mark.parametrize(
    "cell, message",
    [
        (tuple((("identity", i),) for i in range(7)), "expected one operation on each edge"),
        (tuple((("identity", 0),) for i in range(8)), "expected one operation on each edge"),
        (tuple((("skip_connect", i),) for i in range(8)), "'skip_connect'.*mbconv_3x3_e3"),
    ],
)
def test_unfit_genotypes_are_refused(cell, message):
    # Would catch a genotype file from elsewhere that fails inside the model.
    genotype = Genotype("macro", (("layers", cell),))
    with pytest.raises(UserError, match=message):
        SPACE.describe(genotype)
    with pytest.raises(UserError, match=message):
        SPACE.check(NetworkSpec(genotype, **BENCHMARK))


def test_other_depths_and_partial_channels_are_refused():
    # Would catch a setting that is ignored without a word.
    supernet = SupernetSpec((("layers", CELL),), **BENCHMARK)
    SPACE.check(supernet)
    SPACE.check(network_spec("22212220"))
    for spec, message in (
        (dataclasses.replace(supernet, depth=5), r"search\.cells is 5, .* set it to 8"),
        (network_spec("22212220", depth=9), r"retrain\.cells is 9, .* set it to 8"),
        (dataclasses.replace(supernet, partial_channels=4), r"K 4, .* set each K to 1"),
    ):
        with pytest.raises(UserError, match=message):
            SPACE.check(spec)


# Layers


@pytest.mark.parametrize("first", [True, False])
def test_a_layer_is_the_sum_written_out_by_hand(first):
    # Would catch a missing shortcut, a ReLU at the wrong place, a stride on the wrong convolution,
    # and a mixing weight that is applied inside an operation.
    layer = Layer(PRIMITIVES, first, backend.PLAIN, affine=True, train=False)
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 5, 4, 3)).astype(np.float32)
    weights = jnp.asarray([0.5, 0.3, 0.2])
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), x, weights))
    variables = jax.tree.map(
        lambda leaf: random.uniform(0.2, 1, leaf.shape).astype(leaf.dtype), shapes
    )

    def convolve(y, kernel, stride=1, groups=1):
        pad = kernel.shape[0] // 2
        return jax.lax.conv_general_dilated(
            y, kernel, (stride, stride), [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        )  # fmt: skip

    def normalise(y, name, suffix):
        params, stats = variables["params"][name], variables["batch_stats"][name]
        centred = (y - stats["mean" + suffix]) / np.sqrt(stats["var" + suffix] + 1e-5)
        return params["scale" + suffix] * centred + params["bias" + suffix]

    def block(name):
        params, stride = variables["params"][name], 2 if first else 1
        y = normalise(convolve(x, params["expand"][None, None]), name, "_expand")
        filters = params["depthwise"][:, :, None]
        y = convolve(jax.nn.relu(y), filters, stride, groups=y.shape[-1])
        y = jax.nn.relu(normalise(y, name, "_depthwise"))
        y = normalise(convolve(y, params["project"][None, None]), name, "_project")
        return y if first else y + x

    passing = x
    if first:
        kernel = variables["params"]["identity"]["kernel"][None, None]
        passing = normalise(convolve(x, kernel, 2), "identity", "")
    expected = 0.5 * passing + 0.3 * block("mbconv_3x3_e3") + 0.2 * block("mbconv_5x5_e6")
    found = layer.apply(variables, x, weights)
    assert found.shape == ((2, 3, 2, 6) if first else (2, 5, 4, 3))
    # Sums of up to 25 and 36 products of size 1, one after the other, reach some hundreds.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


# Parameters and multiply-adds


@functools.cache
def counted(code):
    return count_network(SPACE.network(network_spec(code), backend.PLAIN), (32, 32, 3))


@functools.cache
def counts_of_all():
    """Returns the counts of all networks, as sums over the layers of 17 traced networks."""
    base = np.array(counted("0" * 8))
    added = np.zeros((8, 3, 2), int)
    for layer, digit in itertools.product(range(8), (1, 2)):
        code = "0" * layer + str(digit) + "0" * (7 - layer)
        added[layer, digit] = np.array(counted(code)) - base
    return {
        "".join(map(str, code)): Counts(*(base + added[range(8), code].sum(0)).tolist())
        for code in itertools.product(range(3), repeat=8)
    }


def test_counts_are_those_of_the_benchmark():
    # Would catch a layer, a bias or a stride that the benchmark's networks do not have.
    assert counted("00000000") == Counts(387_882, 7_713_280)
    assert counted("22222222") == Counts(2_932_586, 105_660_928)
    assert counted("22212220") == Counts(1_985_514, 85_164_544)


def test_counts_are_sums_over_the_layers():
    # Would catch a layer whose cost depends on its neighbours.
    found = counts_of_all()
    for code in ("22222222", "22212220", "10210102", "02011221"):
        assert found[code] == counted(code)


def test_counts_of_all_networks_are_those_of_the_table(shared):
    # Would catch any network whose cost differs from what the benchmark publishes.
    with (shared / "nasbench_macro" / "nasbench_macro_cifar10.csv").open() as file:
        table = {
            line["arch"]: Counts(int(line["params"]), int(line["flops"]))
            for line in csv.DictReader(file)
        }
    assert len(table) == 3**8
    assert counts_of_all() == table
