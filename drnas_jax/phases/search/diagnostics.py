"""What a supernet says of single cells, and how curved its validation loss is in alpha."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from drnas_jax.data.feed import Batch, Images, sum_program
from drnas_jax.genotype import Genotype
from drnas_jax.nn import backend
from drnas_jax.phases import loop
from drnas_jax.phases.search.cells import one_hot
from drnas_jax.phases.search.problem import Problem
from drnas_jax.phases.search.state import SearchState
from drnas_jax.phases.search.step import Mix, logits_at, mean_logits
from drnas_jax.spaces import Structure
from drnas_jax.training import losses
from drnas_jax.training.devices import replicate


class Probe:
    """Measurements at one stage, on the first batches of the validation split.

    Programs are compiled at their first use.

    Args:
      problem: of the search.
      structure: of the stage.
    """

    def __init__(self, problem: Problem, structure: Structure):
        self._problem, self._structure = problem, structure

    def accuracies(
        self, state: SearchState, cells: Sequence[Genotype], epoch: int, batches: int
    ) -> list[float]:
        """Of single cells with the supernet's weights and the batch's statistics, 0 to 1.

        With partial channels (K > 1) they differ in 1/K of the channels alone.

        Args:
          state: of the search.
          cells: of the supernet.
          epoch: after which, from 0.
          batches: how many to measure on.

        Raises:
          UserError: a cell is not in the supernet.
        """
        problem, read = self._problem, self._read(epoch, batches)
        operations, found = dict(self._structure.operations), []
        for cell in cells:
            mix = replicate(one_hot(problem.space, operations, cell), problem.mesh)
            sums = loop.evaluate(self._cell_program, (state, mix), problem.reader.raw, read)
            found.append(sums["accuracy"])
        return found

    def curvature(self, state: SearchState, epoch: int, batches: int) -> float:
        """The largest eigenvalue of the Hessian of the validation loss in alpha.

        The loss is that of validation, at the mean mixing weights, without the regulariser. The
        Hessian is exact, built of a product with every unit vector.

        Args:
          state: of the search.
          epoch: after which, from 0.
          batches: how many to measure on.
        """
        problem, read = self._problem, self._read(epoch, batches)
        flat, unravel = ravel_pytree(jax.tree.map(np.asarray, state.alpha))
        rows, count = [], 0.0
        for unit in np.eye(flat.size, dtype=np.float32):
            direction = replicate(unravel(jnp.asarray(unit)), problem.mesh)
            row, count = np.zeros(flat.size), 0.0
            for batch, weight in read:
                product, examples = jax.device_get(
                    self._hessian_program((state, direction), problem.reader.raw, batch, weight)
                )
                row += ravel_pytree(product)[0]
                count += float(examples)
            rows.append(row)
        matrix = np.stack(rows) / count
        return float(np.linalg.eigvalsh((matrix + matrix.T) / 2)[-1])

    def _read(self, epoch: int, batches: int) -> list[tuple[Any, jax.Array]]:
        return list(itertools.islice(self._problem.reader.evaluation(epoch), batches))

    @functools.cached_property
    def _cell_program(self) -> Callable[..., losses.Totals]:
        problem, recipe = self._problem, self._problem.recipe(self._structure)

        def totals(
            given: tuple[SearchState, Mix], raw: Images | None, batch: Batch, weight: jax.Array
        ) -> losses.Totals:
            (state, mix), (images, labels) = given, problem.feed.plain(raw, batch)
            return losses.totals(logits_at(recipe, state, mix, images), labels, weight)

        return sum_program(totals, problem.mesh)

    @functools.cached_property
    def _hessian_program(self) -> Callable[..., Any]:
        problem, structure = self._problem, self._structure
        # The other kernels have gradients of their own, which cannot be differentiated again.
        supernet = problem.space.supernet(structure, backend.PLAIN, None)
        recipe = dataclasses.replace(problem.recipe(structure), supernet=supernet)

        def product(
            given: tuple[SearchState, Mix], raw: Images | None, batch: Batch, weight: jax.Array
        ) -> tuple[Mix, jax.Array]:
            (state, direction), (images, labels) = given, problem.feed.plain(raw, batch)

            def loss(alpha: Mix) -> jax.Array:
                logits = mean_logits(recipe, state.replace(alpha=alpha), images)
                return jnp.sum(weight * losses.cross_entropy(logits, labels))

            tangent = jax.jvp(jax.grad(loss), (state.alpha,), (direction,))[1]
            return tangent, jnp.sum(weight)

        return sum_program(product, problem.mesh)
