"""Compares the speed of a final network in onnxruntime with that in JAX, on this CPU.

    python benchmarks/onnx_speed.py [--genotype=drnas_cifar10] [--channels=36] [--cells=20]
        [--batches 1 64] [--rounds=5]

The programs run in turn: the ONNX model, JAX with the kernels for CPUs, and JAX with the plain
ones. Prints a JSON line about the model, and one for each batch size with the median seconds of a
batch.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime

from drnas_jax import load_genotype, spaces
from drnas_jax.export_formats.onnx import to_onnx
from drnas_jax.nn import backend
from drnas_jax.spaces.base import NetworkSpec
from drnas_jax.training import compiler

IMAGE, CLASSES = (32, 32, 3), 10


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genotype", default="drnas_cifar10")
    parser.add_argument("--channels", type=int, default=36)
    parser.add_argument("--cells", type=int, default=20)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    genotype = load_genotype(arguments.genotype)
    spec = NetworkSpec(genotype, arguments.channels, arguments.cells, CLASSES, IMAGE)
    space = spaces.create(genotype.space)
    networks = {
        name: space.network(spec, backend.choose(name, "cpu")) for name in ("auto", "plain")
    }
    variables = _variables(networks["plain"])
    begin = time.perf_counter()
    model = to_onnx(lambda x: networks["plain"].apply(variables, x, False), IMAGE)
    content = model.SerializeToString()
    print(
        json.dumps(
            {
                "cores": len(os.sched_getaffinity(0)),
                "seconds_to_convert": round(time.perf_counter() - begin, 1),
                "nodes": len(model.graph.node),
                "transposes": sum(node.op_type == "Transpose" for node in model.graph.node),
                "megabytes": round(len(content) / 1e6, 2),
            }
        ),
        flush=True,
    )
    for batch in arguments.batches:
        x = np.random.default_rng(0).normal(size=(batch, *IMAGE)).astype(np.float32)
        programs = {"onnxruntime": _session(content)}
        for name, network in networks.items():
            programs[f"jax_{name}"] = _compiled(network, variables, x)
        print(json.dumps(_compare(programs, x, arguments.rounds)), flush=True)


def _variables(network: Any) -> Any:
    """Returns random weights; an initialisation would be compiled first."""
    image = jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32)
    shapes = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, False), image)
    generator = np.random.default_rng(0)

    def values(path: Any, leaf: Any) -> np.ndarray:
        if path[-1].key.startswith(("scale", "var")):
            return np.ones(leaf.shape, leaf.dtype)
        if path[-1].key.startswith(("bias", "mean")):
            return np.zeros(leaf.shape, leaf.dtype)
        inputs = np.prod(leaf.shape[-3:-1])
        return (generator.normal(size=leaf.shape) / np.sqrt(inputs)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(values, shapes)


def _session(content: bytes) -> Callable[[np.ndarray], Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"images": x})[0]


def _compiled(network: Any, variables: Any, x: np.ndarray) -> Callable[[np.ndarray], Any]:
    program = jax.jit(
        lambda variables, x: network.apply(variables, x, False),
        compiler_options=compiler.options("cpu"),
    )
    return lambda x: program(variables, x).block_until_ready()


def _compare(
    programs: dict[str, Callable[[np.ndarray], Any]], x: np.ndarray, rounds: int
) -> dict[str, Any]:
    """Returns the median seconds of each program for a batch, and how far their logits differ."""
    logits = {name: np.asarray(program(x)) for name, program in programs.items()}  # warm
    largest = np.abs(logits["jax_plain"]).max()
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    repeats = max(1, 64 // len(x) // 4)
    for _ in range(rounds):
        for name, program in programs.items():
            begin = time.perf_counter()
            for _ in range(repeats):
                program(x)
            seconds[name].append((time.perf_counter() - begin) / repeats)
    difference = np.abs(logits["onnxruntime"] - logits["jax_plain"]).max() / largest
    medians = {name: round(statistics.median(times), 4) for name, times in seconds.items()}
    return {"batch": len(x), **medians, "relative_difference": float(difference)}


if __name__ == "__main__":
    main()
