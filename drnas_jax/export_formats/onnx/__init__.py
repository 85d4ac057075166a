"""Writes a network as an ONNX model, which onnxruntime and most inference engines read.

The network is traced to a JAX program, and each of its operations becomes an ONNX operator. So it
serves every network that consists of known operations, whatever its search space is.
"""

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import symbolic_shape

from drnas_jax.errors import UserError
from drnas_jax.export_formats.base import Format, Network
from drnas_jax.files import write_bytes
from drnas_jax.spaces.base import Space

FILE = "model.onnx"
DTYPES = ("float32", "uint8")


def to_onnx(
    apply: Callable[[jax.Array], jax.Array],
    shape: tuple[int, int, int],
    dtype: Any = "float32",
    classes: Sequence[str] = (),
    batch_size: int = 0,
    preprocessing: Mapping[str, Any] | None = None,
) -> Any:
    """Returns the ONNX model of a network.

    The input of the model is `images`, [batch, h, w, c], and its output `logits`, float32
    [batch, classes]. What does not depend on the images is computed now, and batch normalisation
    becomes part of the convolution before it, so logits differ from those of JAX by rounding.

    Args:
      apply: Pure function from images [batch, h, w, c] to logits [batch, classes], with its
        parameters inside. Unless `batch_size` is given, the batch is a symbol when it is traced, so
        it is `x.shape[0]` and not `len(x)`.
      shape: Height, width and channels of an image.
      dtype: Type of the images, `float32` or `uint8`.
      classes: Names of the classes in the order of the logits, or none.
      batch_size: Number of images in a batch, or 0 if the model must take any number.
      preprocessing: JSON values of `PhotoPreprocessing`, or None.

    Returns:
      The model, an `onnx.ModelProto` that `onnx.checker` has checked. Its `metadata_props` are
      `classes` (a JSON list), `dtype`, `layout` (NHWC), `shape` (n, h, w, c, a JSON list in which n
      is null if the model takes any number of images) and, if it is given, `preprocessing` (JSON).

    Raises:
      UserError: Package `onnx` is missing, the dtype is another one, the network has an operation
        that is not known, or its logits do not fit the classes.
    """
    check_installed()
    from drnas_jax.export_formats.onnx import model  # only here, because it imports the package

    dtype = _image_dtype(dtype)
    program = _trace(apply, shape, dtype, batch_size)
    _check_logits(program, classes)
    properties = {
        "classes": json.dumps(list(classes)),
        "dtype": dtype.name,
        "layout": "NHWC",
        "shape": json.dumps([batch_size or None, *shape]),
    }
    if preprocessing is not None:
        properties["preprocessing"] = json.dumps(dict(preprocessing))
    return model.build(program, properties)


def check_installed() -> None:
    """Raises UserError unless the package `onnx` can be imported."""
    if importlib.util.find_spec("onnx") is None:
        raise UserError(
            "the format 'onnx' needs the package onnx, which is not installed: "
            "pip install 'drnas_jax[onnx]'"
        )


def _image_dtype(dtype: Any) -> np.dtype:
    """Returns the type of the images, or raises UserError if it is not one of DTYPES."""
    name = jnp.dtype(dtype).name
    if name not in DTYPES:
        raise UserError(f"images for ONNX cannot be {name}: take one of {', '.join(DTYPES)}")
    return np.dtype(name)


def _trace(
    apply: Callable[[jax.Array], jax.Array],
    shape: tuple[int, int, int],
    dtype: np.dtype,
    batch_size: int,
) -> Any:
    """Returns the network's program, a ClosedJaxpr.

    Raises:
      UserError: It needs to know the number of images, and `batch_size` is 0.
    """

    def trace(size: Any) -> Any:
        return jax.make_jaxpr(apply)(jax.ShapeDtypeStruct((size, *shape), dtype))

    if batch_size:
        return trace(batch_size)
    try:
        return trace(symbolic_shape("batch")[0])
    except Exception as error:
        trace(1)  # raises if the fault is another one
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            "the network needs to know the number of images, and the exported one must take any "
            f"number ({reason}): write x.shape[0] instead of len(x), and -1 for a size in a "
            "reshape that follows from the others, or set export.batch_size"
        ) from error


def _check_logits(program: Any, classes: Sequence[str]) -> None:
    """Raises UserError unless a program returns logits, one for each class."""
    batch = program.in_avals[0].shape[0]
    shapes = [(*aval.shape, aval.dtype.name) for aval in program.out_avals]
    if len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][::2] != (batch, "float32"):
        raise UserError(
            f"the network returns {shapes}: expected logits (batch, classes, 'float32')"
        )
    if classes and len(classes) != shapes[0][1]:
        raise UserError(
            f"there are {len(classes)} names of classes for {shapes[0][1]} logits: name each class"
        )


class Onnx:
    """The format `onnx`, one file `model.onnx`; see `base.Format`."""

    def check(self, space: Space) -> None:
        """Raises UserError if the package `onnx` is not installed."""
        check_installed()

    def write(self, network: Network, directory: Path) -> list[Path]:
        """Writes the model; raises UserError if the network has an operation that is not known."""
        given = network.shape, network.dtype, network.classes, network.batch_size
        path = directory / FILE
        write_bytes(path, to_onnx(network.apply, *given, network.preprocessing).SerializeToString())
        return [path]


def create() -> Format:
    """Returns the format."""
    return Onnx()
