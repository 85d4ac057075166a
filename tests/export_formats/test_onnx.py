"""Networks give the same logits in onnxruntime as in JAX, for any number of images."""

import importlib.util
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from drnas_jax import components, spaces
from drnas_jax.data.preprocess import normalise
from drnas_jax.errors import UserError
from drnas_jax.export_formats import onnx as export
from drnas_jax.nn import backend
from drnas_jax.spaces.base import NetworkSpec, SupernetSpec

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
ort = pytest.importorskip("onnxruntime", reason="needs the extra onnx")

EXAMPLES = Path(__file__).parents[2] / "examples"
SHAPE = (7, 5, 4)  # odd, and all sizes differ: an axis in the wrong place shows
CLASSES = 5
FAST_COMPILE = {"xla_backend_optimization_level": 0}
LAYOUT = ("NHWC", "HWIO", "NHWC")


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def images(count, shape=SHAPE, dtype="float32"):
    if dtype == "uint8":
        return np.random.default_rng(count).integers(0, 256, (count, *shape), np.uint8)
    return random(count, *shape, seed=count)


def run(model, x):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # no pool of threads for a tiny network
    session = ort.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {"images": x})[0]


def check_same(model, apply, x):
    """Checks the logits of a batch, and those of its first image alone.

    Sums in another order differ by some 1e-7 of the largest.
    """
    expected = np.asarray(jax.jit(apply, compiler_options=FAST_COMPILE)(x))
    assert np.ptp(expected) > 0
    bound = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(run(model, x), expected, rtol=0, atol=bound)
    np.testing.assert_allclose(run(model, x[:1]), expected[:1], rtol=0, atol=bound)


def operators(model):
    return Counter(node.op_type for node in model.graph.node)


# Operations


def conv(x, shape, stride=1, padding="SAME", **options):
    return lax.conv_general_dilated(
        x, random(*shape), (stride, stride), padding, dimension_numbers=LAYOUT, **options
    )


def window_mean(x, stride):
    return backend.PLAIN.avg_pool(x, stride)


def attention(x):
    tokens = x.reshape(x.shape[0], -1, x.shape[3]) @ random(4, 6)
    heads = jnp.tanh(tokens).reshape(x.shape[0], -1, 2, 3)
    scores = jnp.einsum("bqhc,bkhc->bhqk", heads, heads)
    return jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(scores), heads)


def shuffled(x):
    b, h, w, c = x.shape
    return jnp.swapaxes(x.reshape(b, h, w, 2, c // 2), 3, 4).reshape(x.shape)


def loop(x):
    step = lambda carry, matrix: (jnp.tanh(carry @ matrix), carry[:, 0, 0])  # noqa: E731
    last, firsts = lax.scan(step, x, random(3, 4, 4))
    return last[:, 0].reshape(x.shape[0], -1) + jnp.sum(firsts, (0, 2))[:, None]


def squeeze_and_excite(x):
    weights = jnp.mean(x, (1, 2), keepdims=True)
    return x * jax.nn.sigmoid(weights @ random(4, 4))


OPERATIONS = {
    "the images": lambda x: x,
    "convolution with stride": lambda x: conv(x, (3, 3, 4, 6), 2),
    "convolution with uneven padding": lambda x: conv(x, (3, 2, 4, 6), 2, [(0, 1), (2, 0)]),
    "dilated depthwise convolution": lambda x: conv(
        x, (3, 3, 1, 4), 2, [(2, 2)] * 2, rhs_dilation=(2, 2), feature_group_count=4
    ),
    "grouped convolution": lambda x: conv(x, (3, 3, 2, 6), feature_group_count=2),
    "convolution with a constant filter": lambda x: lax.conv_general_dilated(
        x, jnp.ones((2, 2, 4, 1)), (1, 1), "VALID", dimension_numbers=LAYOUT
    ),
    "convolution of channels first": lambda x: lax.conv_general_dilated(
        jnp.moveaxis(x, 3, 1), random(6, 4, 2, 2), (2, 2), "SAME"
    ),
    "maximum with padding": lambda x: backend.PLAIN.max_pool(x, 3, 2),
    "maximum of 2x2": lambda x: backend.PLAIN.max_pool(x, 2, 2),
    "maximum over channels": lambda x: nn.max_pool(jnp.moveaxis(x, 3, 1), (2, 3)),
    "mean without padding": lambda x: window_mean(x, 2),
    "mean with padding": lambda x: nn.avg_pool(x, (3, 3), (2, 2), "SAME"),
    "mean of whole windows": lambda x: nn.avg_pool(x, (2, 2), (2, 2)),
    "sum over windows": lambda x: lax.reduce_window(
        x, 0.0, lax.add, (1, 3, 2, 1), (1, 1, 1, 1), "SAME"
    ),
    "mean of 2x2": lambda x: backend.PLAIN.halve(x[:, :6, :4]),
    "product at every pixel": lambda x: x @ random(4, 6),
    "product with rows": lambda x: jnp.einsum("bhwc,hd->bwcd", x, random(7, 3)),
    "product over two axes": lambda x: jnp.einsum("bhwc,hwd->bdc", x, random(7, 5, 3)),
    "product with a matrix turned": lambda x: x.reshape(x.shape[0], -1) @ random(6, 140).T,
    "attention": attention,
    "squeeze and excite": squeeze_and_excite,
    "layer normalisation": lambda x: nn.LayerNorm().apply(
        {"params": {"scale": random(4), "bias": random(4)}}, x
    ),
    "variance": lambda x: jnp.var(x, (1, 3)),
    "activations": lambda x: jnp.concatenate(
        [
            f(x)
            for f in (
                *(jax.nn.relu, jax.nn.relu6, jax.nn.leaky_relu, jax.nn.elu, jax.nn.silu),
                *(jax.nn.gelu, jax.nn.softplus, jax.nn.hard_swish, jax.nn.mish, jnp.square),
                lambda x: jax.nn.gelu(x, approximate=False),
            )
        ],
        2,
    ),
    "powers": lambda x: x**3 + jnp.sqrt(jnp.abs(x)) + lax.rsqrt(1 + x * x),
    "constants on either side": lambda x: (1 - x) / 2 + 3 / (2 + x * x) - random(7, 1, 4),
    "comparisons": lambda x: jnp.where((x > 0) & ~(x >= 1) | (x != x), x, jnp.minimum(x, -0.5)),
    "clipping": lambda x: jnp.clip(x, -0.5, random(4) ** 2),
    "extremes": lambda x: jnp.max(x, 1) - jnp.min(x, 1) + jnp.prod(x, 1),
    "integers": lambda x: jnp.floor(x).astype(jnp.int32).astype(jnp.float32),
    "slices": lambda x: jnp.stack(
        [x[:, 1::2, ::2, 1], x[:, ::2, :3, -1][:, :3], x[:, 1:4, 2:, 0]], 1
    ),
    "chosen rows and channels": lambda x: x[:, jnp.array([4, 1, 1])][..., jnp.array([3, 0])],
    "channels of single rows": lambda x: x[:, jnp.array([4, 0])[:, None], 1, jnp.array([2, 1, 2])],
    "one pixel": lambda x: x[:, 3, 2],
    "a mirror image": lambda x: x[:, :, ::-1] - jnp.flip(x, 1),
    "a slice that may be moved": lambda x: lax.dynamic_slice(
        x, (0, 1, 2, 0), (x.shape[0], 3, 2, 4)
    ),
    "padding": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)), constant_values=2.0),
    "channel shuffle": shuffled,
    "a part without channels": lambda x: jnp.concatenate(jnp.split(x, (0, 1), 3)[::-1], 3),
    "channels of zeros": lambda x: jnp.concatenate([x, jnp.zeros_like(x[..., :2])], 3),
    "repeated pixels": lambda x: jnp.repeat(jnp.repeat(x, 2, 1), 3, 2),
    "a value for each image": lambda x: jnp.broadcast_to(jnp.sum(x, 3, keepdims=True), x.shape),
    "a loop": loop,
    "a branch": lambda x: lax.cond(jnp.sum(random(3)) > 9, lambda x: x, lambda x: 2 * x, x),
    "recomputation": jax.checkpoint(lambda x: jnp.tanh(x) * x),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_gives_the_same_numbers(name):
    # Catches an operator at the wrong axis or with other padding; the logits are its
    # flattened result, so their order shows as well.
    def apply(x):
        return OPERATIONS[name](x).reshape(x.shape[0], -1)

    model = export.to_onnx(apply, SHAPE)
    check_same(model, apply, images(3))


# Networks


def genotype_of(space):
    """Returns a random genotype without random numbers in it."""
    generator = np.random.default_rng(0)
    scores = {cell_type: generator.random(cell.shape) for cell_type, cell in space.cells.items()}
    for cell_type, cell in space.cells.items():
        for row, edge in enumerate(cell.edges):
            if "noise" in edge.primitives:
                scores[cell_type][row, edge.primitives.index("noise")] = -1
    return space.derive(scores, SupernetSpec(tuple(space.cells.items()), 8, 8, 5, (32, 32, 3)))


def random_variables(shapes):
    """Returns random parameters, and running statistics that are not those of a new network."""
    generator = np.random.default_rng(0)

    def values(path, leaf):
        name = path[-1].key
        if name.startswith("mean"):
            return generator.uniform(-0.5, 0.5, leaf.shape).astype(leaf.dtype)
        if name.startswith(("var", "scale", "bias")):
            return generator.uniform(0.3, 1, leaf.shape).astype(leaf.dtype)
        inputs = np.prod(leaf.shape[-3:-1])
        return (generator.normal(size=leaf.shape) / np.sqrt(inputs)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(values, shapes)


def network_of(name, image, depth, stem=""):
    """Returns the function of a network in evaluation mode with random variables."""
    options = components.find("space", name, "space").Options(stem=stem) if stem else None
    space = spaces.create(name, options)
    spec = NetworkSpec(genotype_of(space), 8, depth, CLASSES, image)
    space.check(spec)
    network = space.network(spec, backend.PLAIN)
    streams = {stream: jax.random.key(0) for stream in ("params", "dropout", "noise")}
    shapes = jax.eval_shape(lambda: network.init(streams, jnp.zeros((1, *image)), False))
    variables = random_variables(shapes)
    return lambda x: network.apply(variables, x, False, rngs=streams)


def normalised(apply):
    """Returns a function of uint8 images."""
    mean, std = jnp.array([0.4, 0.5, 0.45]), jnp.array([0.25, 0.2, 0.3])
    return lambda x: apply(normalise(x, mean, std))


@pytest.mark.parametrize("name", ["chain", "vit"])
def test_a_network_of_a_users_space_gives_the_same_logits(name):
    image = (8, 12, 3) if name == "vit" else (10, 14, 3)
    apply = network_of(str(EXAMPLES / f"{name}.py"), image, 2)
    check_same(export.to_onnx(apply, image), apply, images(3, image))


def test_a_network_with_loops_takes_raw_images():
    # Catches a loop of cells with the parameters of one cell, and pixels that are cast too late.
    image = (12, 20, 3)
    apply = normalised(network_of("nasbench201", image, 2))
    model = export.to_onnx(apply, image, "uint8")
    check_same(model, apply, images(3, image, "uint8"))
    assert operators(model)["Transpose"] == 1  # of the images, once


ALL = [
    *(name for name in components.names("space") if not name.startswith("darts")),
    *(
        f"{name}/{stem}"
        for name in components.names("space")
        if name.startswith("darts")
        for stem in ("cifar", "imagenet")
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", export.DTYPES)
@pytest.mark.parametrize("name", ALL)
def test_every_bundled_space_gives_the_same_classes(name, dtype):
    space, _, stem = name.partition("/")
    size = 64 if stem == "imagenet" else 24
    image, depth = (size, size - 8 * (not stem), 3), {"macro": 8}.get(space, 3)
    apply = network_of(space, image, depth, stem)
    apply = normalised(apply) if dtype == "uint8" else apply
    model = export.to_onnx(apply, image, dtype)
    batch = images(100, image, dtype)
    expected = np.asarray(jax.jit(apply)(batch))
    logits = np.concatenate([run(model, part) for part in np.split(batch, [1, 4, 68])])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    # Random networks prefer one class, so classes are compared by what exceeds the mean.
    found, wanted = ((some - expected.mean(0)).argmax(1) for some in (logits, expected))
    assert (found == wanted).all()
    assert len(set(wanted)) > 1


# What the model is made of


def batch_norm_network(x):
    x = conv(x, (3, 3, 4, 6))
    x = jax.nn.relu((x - random(6)) * lax.rsqrt(random(6) ** 2 + 1e-5) * random(6) + random(6))
    x = backend.PLAIN.avg_pool(x, 1) + backend.PLAIN.max_pool(x, 3, 1) + jnp.zeros_like(x)
    return jnp.mean(x, (1, 2)) @ random(6, CLASSES) + random(CLASSES)


def test_batch_normalisation_and_means_are_one_operator():
    # Catches a model that is right but several times as long as it needs to be.
    model = export.to_onnx(batch_norm_network, SHAPE)
    names = "Transpose Conv Relu AveragePool MaxPool Add ReduceMean Gemm Identity"
    assert operators(model) == Counter(names.split())
    check_same(model, batch_norm_network, images(3))


def test_a_result_that_is_used_twice_keeps_its_numbers():
    # Catches a factor merged into a convolution whose own result is needed too.
    def apply(x):
        y = conv(x, (3, 3, 4, 6))
        return jnp.mean(y * random(6) + y, (1, 2))

    check_same(export.to_onnx(apply, SHAPE), apply, images(3))


def test_the_model_describes_its_input():
    names = ["cat", "dog", "höhle", "d", "e"]
    steps = {"channels": "RGB", "mean": [0.5]}
    model = export.to_onnx(batch_norm_network, SHAPE, classes=names, preprocessing=steps)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(properties["classes"]) == names
    assert json.loads(properties["shape"]) == [None, *SHAPE]
    assert json.loads(properties["preprocessing"]) == steps
    assert (properties["dtype"], properties["layout"]) == ("float32", "NHWC")
    (dims,) = [entry.type.tensor_type.shape.dim for entry in model.graph.input]
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", *SHAPE]


def test_the_format_writes_one_file(tmp_path):
    network = SimpleNamespace(
        apply=batch_norm_network,
        shape=SHAPE,
        dtype="float32",
        classes=tuple("abcde"),
        preprocessing={"channels": "RGB"},
        batch_size=0,
    )
    written = export.create()
    written.check(None)
    (path,) = written.write(network, tmp_path)
    assert path == tmp_path / "model.onnx"
    model = onnx.load(path)
    properties = {entry.key: json.loads(entry.value) for entry in model.metadata_props[-1:]}
    assert properties == {"preprocessing": network.preprocessing}
    check_same(model, batch_norm_network, images(3))


# Errors


@pytest.mark.parametrize(
    ("apply", "fault"),
    [
        (lambda x: jnp.sort(x.reshape(x.shape[0], -1)), "'sort'.*'stablehlo'"),
        (
            lambda x: jnp.mean(x, (1, 2)) + jax.random.normal(jax.random.key(0), (x.shape[0], 4)),
            "random numbers",
        ),
        (lambda x: jnp.mean(x.astype(jnp.bfloat16), (1, 2)).astype("float32"), "in bfloat16"),
        (lambda x: x.reshape(len(x), -1), "write x.shape"),
        (lambda x: x if x.shape[0] < 4 else x * 2, "needs to know the number of images"),
        (lambda x: x, "expected logits"),
        (lambda x: jnp.mean(x, (1, 2, 3)), "expected logits"),
    ],
    ids=["primitive", "random", "bfloat16", "length", "number", "rank", "one"],
)
def test_what_cannot_be_exported_is_an_error_that_says_why(apply, fault):
    with pytest.raises(UserError, match=fault) as raised:
        export.to_onnx(apply, SHAPE)
    assert "\n" not in str(raised.value)


def test_names_that_are_not_those_of_the_logits_are_refused():
    with pytest.raises(UserError, match="4 names of classes for 5 logits"):
        export.to_onnx(batch_norm_network, SHAPE, classes=list("abcd"))


def test_a_model_for_one_number_of_images_may_depend_on_it():
    def apply(x):
        return jnp.mean(x, (1, 2)) * len(x)

    model = export.to_onnx(apply, SHAPE, batch_size=3)
    x = images(3)
    np.testing.assert_allclose(run(model, x), apply(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidArgument, match="Expected: 3"):
        run(model, images(2))


def test_a_fault_of_the_network_remains_its_own():
    with pytest.raises(ZeroDivisionError):
        export.to_onnx(lambda x: x / (1 // 0), SHAPE)


def test_images_of_another_type_are_refused():
    with pytest.raises(UserError, match="cannot be int8: take one of float32, uint8"):
        export.to_onnx(batch_norm_network, SHAPE, "int8")


def test_the_missing_package_is_named_before_any_work(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install 'drnas_jax\\[onnx\\]'"):
        export.Onnx().check(None)
