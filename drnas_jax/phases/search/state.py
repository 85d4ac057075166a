"""The state of a search, which is immutable and changes only by `replace`."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct

from drnas_jax.distributions import Distribution
from drnas_jax.phases.setup import split_variables
from drnas_jax.spaces import SupernetSpec
from drnas_jax.training import losses
from drnas_jax.training.random_keys import stream_key


class SearchState(struct.PyTreeNode):
    """The arrays that change during a search; the static values are in a `SupernetSpec`.

    Attributes:
      seed: Seed of the run, uint32 []. It is an array, so that all seeds share compiled programs.
      step: Number of updates of the weights over all stages, int32 [].
      params: Weights of the supernet.
      variables: Other collections of the supernet by name, such as `batch_stats`; may be empty.
      alpha: Architecture parameters by cell type, each a pytree; usually float32 [e, o].
      fixed: Mixing weights of the edges that a selection rule has fixed, by cell type, float32
        [e, o], with -1 in the rows of the other edges; empty until an edge is fixed.
      weight_opt: State of the weights' optimiser.
      alpha_opt: State of alpha's optimiser.
      totals: Sums over the training batches of the epoch so far (see `losses.totals`).
    """

    seed: jax.Array
    step: jax.Array
    params: Any
    variables: dict[str, Any]
    alpha: dict[str, Any]
    fixed: dict[str, jax.Array]
    weight_opt: optax.OptState
    alpha_opt: optax.OptState
    totals: losses.Totals


def with_fixed(
    mix: Mapping[str, jax.Array], fixed: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Replaces the mixing weights of fixed edges by their fixed values.

    Args:
      mix: Mixing weights by cell type [e, o].
      fixed: Fixed mixing weights, as in `SearchState.fixed`.
    """
    if not fixed:
        return dict(mix)
    return {
        cell_type: jnp.where(fixed[cell_type] < 0, rows, fixed[cell_type])
        for cell_type, rows in mix.items()
    }


def fix_edges(
    fixed: Mapping[str, Any], spec: SupernetSpec, edges: Iterable[tuple[str, int, str | None]]
) -> dict[str, np.ndarray]:
    """Returns the fixed mixing weights after the operations of more edges were fixed.

    Args:
      fixed: Fixed mixing weights before, as in `SearchState.fixed`.
      spec: Spec of the supernet.
      edges: Cell type, row and operation of each of these edges, as in `rules.base.Fix`.
    """
    weights = {
        name: np.array(fixed[name]) if fixed else np.full(cell.shape, -1, np.float32)
        for name, cell in spec.cells
    }
    for cell_type, row, primitive in edges:
        weights[cell_type][row] = 0
        if primitive is not None:
            column = spec.cell(cell_type).edges[row].primitives.index(primitive)
            weights[cell_type][row, column] = 1
    return weights


def mean_mix(
    distribution: Distribution, spec: SupernetSpec, state: SearchState
) -> dict[str, jax.Array]:
    """Returns the mean mixing weights by cell type [e, o]."""
    mean = {name: distribution.mean(state.alpha[name], cell) for name, cell in spec.cells}
    return with_fixed(mean, state.fixed)


def init_state(
    spec: SupernetSpec,
    supernet: nn.Module,
    distribution: Distribution,
    weight_optimiser: optax.GradientTransformation,
    alpha_optimiser: optax.GradientTransformation,
    seed: jax.Array | int,
) -> SearchState:
    """Returns the state at the start of a search.

    Args:
      spec: Spec of the supernet.
      supernet: Module of the supernet.
      distribution: Mixing distribution, which initialises alpha.
      weight_optimiser: Optimiser of the weights.
      alpha_optimiser: Optimiser of the architecture parameters.
      seed: Seed of the run.
    """
    alpha = {
        name: distribution.init(stream_key(seed, f"init/alpha/{name}"), cell)
        for name, cell in spec.cells
    }
    mix = {name: distribution.mean(alpha[name], cell) for name, cell in spec.cells}
    images = jax.ShapeDtypeStruct((1, *spec.image), jnp.float32)
    streams = {name: stream_key(seed, f"init/{name}") for name in ("dropout", "noise")}
    streams["params"] = stream_key(seed, "init/weights")
    params, variables = split_variables(supernet.lazy_init(streams, images, mix, True))
    return SearchState(
        seed=jnp.asarray(seed, jnp.uint32),
        step=jnp.zeros((), jnp.int32),
        params=params,
        variables=variables,
        alpha=alpha,
        fixed={},
        weight_opt=weight_optimiser.init(params),
        alpha_opt=alpha_optimiser.init(alpha),
        totals=losses.zero_totals(),
    )
