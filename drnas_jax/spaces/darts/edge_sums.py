"""The operations of an edge of a DARTS cell, for loops on CPUs. Images are [c, h, w, b].

A loop is compiled once for all of its edges, so an operation that some edges lack is in a
conditional.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from drnas_jax.nn import weight_gradients
from drnas_jax.nn.stacked_params import (
    ApplyContext,
    Arrays,
    Moments,
    PrimitiveArrays,
)
from drnas_jax.spaces.darts.operations import (
    CONVOLUTIONS,
    NODES,
    PRIMITIVES,
    begins_with_relu,
    operate,
)

Array = jax.Array


class PrimitiveRows(NamedTuple):
    """The edges of a loop that keep a primitive.

    Attributes:
      name: Name of the primitive.
      rows: For each edge of the loop the row of its arrays among the primitive's stacked arrays, 0
        if the primitive has no arrays, or -1 if the edge lacks the primitive.
    """

    name: str
    rows: tuple[int, ...]


class Values(NamedTuple):
    """The values that the operations of a loop read.

    Attributes:
      arrays: Stacked arrays [rows, ...] of each primitive.
      mix: Mixing weights [edges, PRIMITIVES].
      factors: Drop path's factor of each edge and example, [edges, b], which has no gradient; None
        if all paths are kept.
      wanted: See `drnas_jax.nn.weight_gradients`.
    """

    arrays: PrimitiveArrays
    mix: Array
    factors: Array | None
    wanted: Array | None


@dataclasses.dataclass(frozen=True)
class EdgeLoop:
    """Edges of a cell, all of the same stride, over which one loop runs.

    Attributes:
      context: Kernels, layout and mode.
      stride: Stride of the operations.
      sources: Number of each edge's source among the images that the loop reads.
      nodes: Node that each edge leads to, from 0, in ascending order.
      primitives: The primitives that some edge keeps.
    """

    context: ApplyContext
    stride: int
    sources: tuple[int, ...]
    nodes: tuple[int, ...]
    primitives: tuple[PrimitiveRows, ...]

    @property
    def bounds(self) -> np.ndarray:
        """Numbers [NODES + 1] of which n and n + 1 bound the edges that lead to node n."""
        return np.searchsorted(self.nodes, np.arange(NODES + 1))

    def add_edge(self, e: Array, x: Array, total: Array, values: Values) -> tuple[Array, Array]:
        """Adds the weighted results of an edge's operations to a sum.

        Args:
          e: Number of the edge in this loop.
          x: Source of the edge, [c, h, w, b].
          total: Sum so far, [c, h', w', b].
          values: What the operations read.

        Returns:
          The new sum, and the moments [slots, c] of the batch.
        """

        def step(name: str, row: Array, total: Array, empty: Array) -> tuple[Array, Array]:
            weight = values.mix[e, PRIMITIVES.index(name)]
            run = self._operation(name, e, values)
            y, moments = run(_row(values.arrays[name], row), x, weight)
            return total + y, _packed(moments, empty)

        moments = {name: jnp.zeros((2 * norms, len(x))) for name, norms in NORMS.items()}
        total, moments = self._run_kept(e, step, total, moments)
        return total, jnp.concatenate([moments[name] for name in PRIMITIVES])

    def _run_kept(
        self,
        e: Array,
        step: Callable[[str, Array, Any, Any], tuple[Any, Any]],
        carry: Any,
        by_primitive: dict[str, Any],
    ) -> tuple[Any, dict[str, Any]]:
        """Takes a step for each primitive that an edge keeps.

        Args:
          e: Number of the edge in this loop.
          step: Function (name, row, carry, own) -> (carry, own) of a primitive's name, the row of
            its arrays, and the primitive's entry `own` in `by_primitive`.
          carry: What the steps hand on.
          by_primitive: What only the steps of one primitive change, by name.

        Returns:
          `carry` and `by_primitive` after these steps.
        """
        shape = (len(self.primitives), len(self.sources))
        kept = np.array([rows for _, rows in self.primitives]).reshape(shape) >= 0
        tables = {name: jnp.asarray(rows) for name, rows in self.primitives}
        if len(kept) > 1 and (kept.sum(0) == 1).all():  # a branch for each primitive

            def branch(name: str, carry: Any, by_primitive: dict[str, Any]) -> Any:
                carry, own = step(name, tables[name][e], carry, by_primitive[name])
                return carry, {**by_primitive, name: own}

            branches = [partial(branch, name) for name in tables]
            return lax.switch(jnp.asarray(kept.argmax(0))[e], branches, carry, by_primitive)
        by_primitive = dict(by_primitive)
        for i, (name, table) in enumerate(tables.items()):
            row, own = table[e], by_primitive[name]
            if kept[i].all():
                carry, by_primitive[name] = step(name, row, carry, own)
            else:
                run = partial(step, name, row)
                carry, by_primitive[name] = lax.cond(row >= 0, run, lambda *same: same, carry, own)
        return carry, by_primitive

    def _operation(
        self, name: str, e: Array, values: Values
    ) -> Callable[[Arrays, Array, Array], tuple[Array, Moments]]:
        """Returns an operation as a function of its arrays, the source and the mixing weight."""
        wanted, identity = values.wanted, name == "skip_connect" and self.stride == 1

        def function(arrays: Arrays, x: Array, weight: Array) -> tuple[Array, Moments]:
            x = jax.nn.relu(x) if begins_with_relu(name, self.stride) else x
            # `wanted` comes as an argument, because a function with a custom gradient must not
            # close over a traced value of its caller.
            with weight_gradients.computed_if(wanted):
                y, moments = operate(self.context, name, arrays, x, weight, self.stride)
            if values.factors is not None and not identity:  # so that a path remains
                y = y * self.context.backend.per_example(values.factors[e].astype(y.dtype))
            return y, moments

        return function

    def add_gradients(
        self,
        e: Array,
        x: Array,
        g: Array,
        dx: Array,
        values: Values,
        gradients: tuple[PrimitiveArrays, Array],
    ) -> tuple[Array, tuple[PrimitiveArrays, Array]]:
        """Computes the gradients of what an edge adds to a sum.

        Args:
          e: Number of the edge in this loop.
          x: Source of the edge, [c, h, w, b].
          g: Gradient of the sum, [c, h', w', b].
          dx: Gradient of x so far.
          values: What the operations read.
          gradients: Gradients of `arrays` and `mix` in `values` so far.

        Returns:
          `dx` with the edge's share added, and `gradients` with those of this edge filled in.
        """

        def step(name: str, row: Array, dx: Array, own: tuple[Arrays, Array]) -> Any:
            weight = values.mix[e, PRIMITIVES.index(name)]
            arguments = (_row(values.arrays[name], row), x, weight)
            _, pull, _ = jax.vjp(self._operation(name, e, values), *arguments, has_aux=True)
            d_row, dx_row, d_weight = pull(g)
            return dx + dx_row, (jax.tree.map(partial(put, row=row), own[0], d_row), d_weight)

        d_arrays, d_mix = gradients
        none = jnp.zeros((), d_mix.dtype)
        own = {name: (d_arrays.get(name, {}), none) for name in PRIMITIVES}
        dx, own = self._run_kept(e, step, dx, own)
        d_weights = jnp.stack([own[name][1] for name in PRIMITIVES])
        d_arrays = {name: own[name][0] for name in d_arrays}
        return dx, (d_arrays, put(d_mix, d_weights, e))

    def no_moments(self, x: Array) -> Array:
        """Returns zeros [edges, slots, c] for the moments of all edges."""
        return jnp.zeros((len(self.sources), 2 * sum(NORMS.values()), len(x)))


# Number of BatchNorms of each operation. Each has two slots in an edge's moments: mean, variance.
NORMS = {name: CONVOLUTIONS[name].layers if name in CONVOLUTIONS else 1 for name in PRIMITIVES}


def _packed(moments: Moments, empty: Array) -> Array:
    """Stacks means and variances as [2 * norms, c]; returns `empty` if there are none."""
    if not moments:
        return empty
    return jnp.stack([values.reshape(-1) for pair in moments.values() for values in pair])


def at(x: Array, index: Array | int) -> Array:
    """Returns x[index]."""
    return lax.dynamic_index_in_dim(x, index, keepdims=False)


def put(x: Array, value: Array, row: Array) -> Array:
    """Returns x with x[row] replaced."""
    return lax.dynamic_update_index_in_dim(x, value.astype(x.dtype), row, 0)


def _row(arrays: Arrays, row: Array) -> Arrays:
    return {name: at(array, row) for name, array in arrays.items()}
