"""Parameters and multiply-adds against counts by hand, and against those of PyTorch."""

import csv
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from drnas_jax.errors import UserError
from drnas_jax.nn import backend
from drnas_jax.nn.counting import (
    Counts,
    count_macs,
    count_network,
    count_parameters,
    count_work,
    widest_channels,
)
from drnas_jax.spaces import NetworkSpec, create, nasbench201
from drnas_jax.spaces.darts import PUBLISHED, Options
from drnas_jax.tools.torch_import import GENOTYPES
from drnas_jax.training import devices

COUNTS = Path(__file__).parents[2].parent / "shared" / "reference" / "counts.csv"
SIZE = {"cifar": (32, 32, 3), "imagenet": (224, 224, 3)}


class Layers(nn.Module):
    """Each kind of layer that is counted."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(5, (3, 3), strides=2, padding=1)(x)
        x = nn.Conv(10, (1, 5), feature_group_count=5, padding="SAME", use_bias=False)(x)
        return nn.Dense(7)(x.mean((1, 2)))


def scan(module, length):
    return nn.scan(
        module,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=length,
    )


class Body(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(4)(x), None


class Inner(nn.Module):
    length: int

    @nn.compact
    def __call__(self, x, _):
        return scan(Body, self.length)()(x, None)


class Loop(nn.Module):
    """A loop of 3 steps, each of which is a loop of `inner` steps."""

    inner: int

    @nn.compact
    def __call__(self, x, train):
        return scan(Inner, 3)(self.inner)(x.mean((1, 2)), None)[0]


def parameters(module, shape):
    x = jnp.zeros((1, *shape))
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x, False))
    return count_parameters(variables["params"])


def test_layers():
    # Would catch a grouped convolution that counts all input channels, or a bias as a multiply-add.
    shape = (8, 6, 3)
    assert parameters(Layers(), shape) == (9 * 3 * 5 + 5) + (5 * 1 * 10) + (10 * 7 + 7)
    # Half the size after the first layer: 4 x 3 pixels. A group has one input channel.
    assert count_macs(Layers(), shape) == 4 * 3 * (9 * 3 * 5) + 4 * 3 * (5 * 1 * 10) + 10 * 7


@pytest.mark.parametrize("inner", [1, 5])
def test_loops_count_as_often_as_they_run(inner):
    # Would catch the body of a loop that counts once.
    assert parameters(Loop(inner), (2, 2, 4)) == 3 * inner * (16 + 4)
    assert count_macs(Loop(inner), (2, 2, 4)) == 3 * inner * 16


def test_work_of_a_strided_convolution_and_its_gradients():
    # Would catch the zeros between pixels counted as work.
    def function(x, kernel):
        return jnp.sum(backend.PLAIN.conv(x, kernel, 2))

    shapes = ((1, 8, 8, 3), (3, 3, 3, 5))
    arguments = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    gradient = jax.make_jaxpr(jax.grad(function, argnums=(0, 1)))(*arguments)
    assert count_work(gradient.jaxpr).macs == 3 * 4 * 4 * 9 * 3 * 5  # forward, image, filter


def test_work_of_the_larger_branch():
    # Would catch the update of alpha, which a search skips at first, counted as no work.
    def function(skip, x):
        return jax.lax.cond(skip, lambda x: x, lambda x: jax.lax.cond(skip, f, g, x), x)

    def f(x):
        return x @ x

    def g(x):
        return f(x) @ x

    matrix = jax.ShapeDtypeStruct((3, 3), "float32")
    program = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((), bool), matrix)
    assert count_work(program.jaxpr) == (2 * 27, 2 * 4 * 27)


def test_work_of_a_gradient_on_two_devices():
    # Would catch the work of one device only, or a result that counts as never written.
    def function(x, kernel, matrix):
        y = backend.PLAIN.max_pool(backend.PLAIN.conv(x, kernel, 1), 2, 2)
        return jnp.sum(y.reshape(len(y), -1) @ matrix)

    mesh = devices.make_mesh(jax.devices()[:2])
    specs = (devices.SHARDED, devices.REPLICATED, devices.REPLICATED)
    gradient = jax.grad(function, argnums=(1, 2))
    program = devices.data_parallel(gradient, mesh, specs)
    shapes = ((2, 4, 4, 3), (3, 3, 3, 5), (20, 7))
    arguments = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    work = count_work(program.trace(*arguments).jaxpr.jaxpr)
    # For each image the convolution and the gradient of its filters, the product and both of its
    # gradients.
    conv, product = 16 * 9 * 3 * 5, 20 * 7
    assert work.macs == 2 * (2 * conv + 3 * product)
    # Numbers read and written by these five, then by the pool and its gradient (x, g -> dx).
    image, filters, y, pooled, matrix, logits = 16 * 3, 9 * 3 * 5, 16 * 5, 20, 20 * 7, 7
    numbers = 2 * (image + filters + y) + 3 * (pooled + matrix + logits)
    numbers += (y + pooled) + (y + pooled + y)
    scalars = work.bytes / 4 / 2 - numbers
    assert 0 <= scalars <= 4  # initial values of the pool, one each


# By arch string: weights of a cell's convolutions at width 1 (a filter of 3x3 has 9), number of
# convolutions, and the count in millions that NAS-Bench-201 gives (Dong and Yang 2020), if known.
# The second cell is the best one on CIFAR-10.
CELLS = {
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|"
    "+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|": (6 * 9, 6, 1.53),
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|"
    "+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|": (4 * 9 + 1, 5, None),
    "|none~0|+|none~0|none~1|+|none~0|avg_pool_3x3~1|skip_connect~2|": (0, 0, None),
}


@pytest.mark.parametrize("arch", CELLS)
def test_nasbench201_network(arch):
    # Would catch a layer that the benchmark's networks do not have.
    taps, convolutions, millions = CELLS[arch]
    spec = NetworkSpec(nasbench201.parse(arch), 16, 5, 10, (32, 32, 3))
    network = create("nasbench201").network(spec, backend.PLAIN)
    expected_parameters = 3 * 9 * 16 + 2 * 16  # stem, and its normalisation (scale and bias)
    expected_macs = 32 * 32 * 3 * 9 * 16
    for stage, (width, side) in enumerate([(16, 32), (32, 16), (64, 8)]):
        if stage:
            half = width // 2
            block = 9 * half * width + 9 * width * width + half * width
            expected_parameters += block + 2 * (2 * width)
            expected_macs += side * side * block  # all three at the smaller size
        expected_parameters += 5 * (taps * width * width + convolutions * 2 * width)
        expected_macs += 5 * side * side * taps * width * width
    expected_parameters += 2 * 64 + (64 * 10 + 10)  # last normalisation, classifier
    expected_macs += 64 * 10
    assert parameters(network, (32, 32, 3)) == expected_parameters
    assert count_macs(network, (32, 32, 3)) == expected_macs
    if millions:
        assert round(expected_parameters / 1e6, 2) == millions


def published():
    """Returns the rows of counts.csv; the default run takes one of each kind of network."""
    if not COUNTS.exists():
        return []
    with COUNTS.open() as file:
        cases = list(csv.DictReader(file))
    quick = {case["network"]: i for i, case in enumerate(cases)}.values()
    return [
        pytest.param(
            case,
            id="-".join(list(case.values())[:5]),
            marks=[] if i in quick else pytest.mark.slow,
        )
        for i, case in enumerate(cases)
    ]


@pytest.mark.skipif(not COUNTS.exists(), reason="there is no counts.csv")
@pytest.mark.parametrize("row", published())
def test_published_networks(row):
    # Would catch another network than the official code's. It counts without the auxiliary head.
    genotype = PUBLISHED[GENOTYPES[row["genotype"]]]
    numbers = (int(row[name]) for name in ("init_channels", "layers", "classes"))
    spec = NetworkSpec(genotype, *numbers, SIZE[row["network"]])
    network = create("darts", Options(row["network"])).network(spec, backend.PLAIN)
    expected = Counts(int(row["params"]), int(row["conv_and_linear_macs"]))
    assert count_network(network, SIZE[row["network"]]) == expected


@pytest.mark.parametrize("start", [2, 7, 48, 300])
@pytest.mark.parametrize("best", [2, 4, 46, 256])
def test_widest_channels(best, start):
    # Would catch a search that stops one step early, or beyond the limit.
    def macs(channels):
        return 7 * channels * channels + 100 * channels + 5

    for limit in (macs(best), macs(best + 2) - 1):
        assert widest_channels(macs, limit, start) == best
    with pytest.raises(UserError, match=r"max_macs is 232, .* needs 233 multiply-adds"):
        widest_channels(macs, macs(2) - 1, start)
