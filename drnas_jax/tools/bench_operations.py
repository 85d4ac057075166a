"""Measures the layers of a space's final networks on this device, for the cost `table`."""

import csv
import dataclasses
import io
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from scipy import stats

from drnas_jax import components, spaces
from drnas_jax.costs.base import typical_genotypes
from drnas_jax.files import write_text
from drnas_jax.genotype import Genotype
from drnas_jax.nn import backend
from drnas_jax.nn.layers import COLUMNS, REST, Layer, network_layers
from drnas_jax.spaces import NetworkSpec, Space
from drnas_jax.training.random_keys import module_streams

_NETWORKS = 3  # random networks, seeds 0, 1, ..., that are measured beside their layers
_COMPARED = 30  # other random networks, whose times a table is to predict
_SECONDS = 0.05  # for which each program runs at least


def measure_operations(
    space: Space, network: NetworkSpec, file: str, batch: int, steps: int
) -> dict[str, Any]:
    """Measures the layers of all final networks of a space, and writes them to a CSV file.

    Each layer is a program of its own, in evaluation mode, with a scale, a shift and a ReLU in the
    place of BatchNorm and activation. Some random networks are measured as a whole: if they take
    less time than their layers together, the same time, that of starting a program, is subtracted
    from every layer; if they take more, the difference is a row of its own.

    Args:
      space: Search space.
      network: Spec of the networks; their size counts, but not their genotype.
      file: Path of the file.
      batch: Number of images of a batch.
      steps: Smallest number of runs of each program; their median counts.

    Returns:
      Number of `operations` that were measured, and the seconds `rest_s` of what is in no layer.
    """

    def module(genotype: Genotype) -> nn.Module:
        return space.network(dataclasses.replace(network, genotype=genotype), backend.PLAIN)

    shapes = [jax.ShapeDtypeStruct((1,), jnp.float32)]
    empty, seconds = _median_time(lambda x: x + 1, shapes, steps), dict[Layer, float]()

    def measure(layers_of: nn.Module) -> Counter[Layer]:
        """Measures the layers that are not known yet; returns how often each is computed."""
        counts, programs = network_layers(layers_of, network.image, batch)
        for layer in sorted(programs.keys() - seconds.keys()):
            taken = _median_time(programs[layer].function, programs[layer].shapes, steps)
            seconds[layer] = max(taken - empty, 0.0)
        return counts

    for genotype in typical_genotypes(space):
        measure(module(genotype))
    wholes: list[tuple[float, Counter[Layer]]] = []
    image = jax.ShapeDtypeStruct((batch, *network.image), jnp.float32)
    streams = module_streams(0, "bench", 0, 0)
    for seed in range(_NETWORKS):
        whole = module(spaces.random_genotype(space, seed))
        variables = jax.eval_shape(lambda x, m=whole: m.init(jax.random.key(0), x, False), image)
        counts = measure(whole)  # also of work that edges share
        taken = _median_time(
            lambda v, x, m=whole: m.apply(v, x, False, rngs=streams), (variables, image), steps
        )
        wholes.append((taken, counts))
    corrected, rest = _without_starts(seconds, wholes)
    rows = [(*layer, f"{value:.4g}") for layer, value in sorted(corrected.items())]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([COLUMNS, *rows, (*REST, f"{rest:.4g}")])
    write_text(file, text.getvalue())
    return {"operations": len(rows), "rest_s": float(f"{rest:.4g}")}


def compare_networks(
    space: Space, network: NetworkSpec, file: str, batch: int, steps: int
) -> dict[str, Any]:
    """Compares the times that a table predicts with those of whole networks on this device.

    The networks are random, and others than those that were measured for the table. They are
    compiled first and then run in turn, so that a change in the machine's speed affects all of
    them.

    Args:
      space: Search space.
      network: Spec of the networks; their size counts, but not their genotype.
      file: Path of the table that `measure_operations` wrote.
      batch: Number of images of a batch.
      steps: Number of runs of each network; their median counts.

    Returns:
      Number of `networks`; Spearman's rank correlation of predicted and measured times, or None if
      all of one kind are equal; the mean relative error of the prediction; and both times of each
      network in seconds, by `genotype`.

    Raises:
      UserError: The table cannot be read, or lacks a layer.
    """
    table = components.find("cost", "table", "cost.name")
    cost, networks, programs = table.create(table.Options(file, batch)), [], []
    image = jnp.zeros((batch, *network.image), jnp.float32)
    streams = module_streams(0, "bench", 0, 0)
    for seed in range(_NETWORKS, _NETWORKS + _COMPARED):
        spec = dataclasses.replace(network, genotype=spaces.random_genotype(space, seed))
        networks.append((space.describe(spec.genotype), cost.exact(space, spec)))
        module = space.network(spec, backend.PLAIN)
        variables = module.init(jax.random.key(0), image, False)
        run = jax.jit(lambda v, x, m=module: m.apply(v, x, False, rngs=streams))
        programs.append(partial(run.lower(variables, image).compile(), variables, image))
    times = np.array([[_time(program) for program in programs] for _ in range(steps + 1)])
    measured = np.median(times[1:], axis=0)  # the first runs are cold
    predicted = np.array([seconds for _, seconds in networks])
    errors = np.abs(predicted - measured) / measured
    ranked = np.ptp(predicted) > 0 and np.ptp(measured) > 0
    correlation = stats.spearmanr(predicted, measured).statistic if ranked else 0.0
    return {
        "networks": len(networks),
        "rank_correlation": round(float(correlation), 3) if ranked else None,
        "mean_relative_error": round(float(errors.mean()), 3),
        "seconds": [
            {"genotype": name, "predicted": float(f"{p:.4g}"), "measured": float(f"{m:.4g}")}
            for (name, p), m in zip(networks, measured, strict=True)
        ],
    }


def _without_starts(
    seconds: dict[Layer, float], wholes: Sequence[tuple[float, Counter[Layer]]]
) -> tuple[dict[Layer, float], float]:
    """Subtracts from each layer what it takes only because it is a program of its own.

    Args:
      seconds: Time of each layer.
      wholes: Time of whole networks, and how often they compute each layer.

    Returns:
      Corrected times, at least 0, and the mean time of what is in no layer, at least 0.
    """

    def corrected(start: float) -> tuple[dict[Layer, float], float]:
        left = {layer: max(value - start, 0.0) for layer, value in seconds.items()}
        rest = [whole - sum(n * left[layer] for layer, n in of.items()) for whole, of in wholes]
        return left, statistics.mean(rest)

    low, high = 0.0, max(seconds.values())
    if corrected(low)[1] >= 0:
        return corrected(low)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if corrected(middle)[1] >= 0 else (middle, high)
    return corrected(high)


def _median_time(function: Callable[..., Any], shapes: Any, steps: int) -> float:
    """Returns the median time of a compiled function of zeros, in seconds."""
    arguments = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    compiled = jax.jit(function).lower(*arguments).compile()
    times: list[float] = []
    while len(times) < steps + 1 or sum(times) < _SECONDS:
        times.append(_time(partial(compiled, *arguments)))
    return statistics.median(times[1:])  # the first run is cold


def _time(function: Callable[[], Any]) -> float:
    """Returns the seconds of one call."""
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began
