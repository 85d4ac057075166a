"""Measurements on a supernet: accuracies of single cells, and the curvature in alpha."""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from drnas_jax.data import Batch, Images
from drnas_jax.nn import backend
from drnas_jax.phases import loop
from drnas_jax.phases.search.experiment import Experiment
from drnas_jax.phases.search.state import SearchState
from drnas_jax.phases.search.step import Alpha, logits_at, mean_logits
from drnas_jax.spaces import Mix, SupernetSpec
from drnas_jax.training import losses
from drnas_jax.training.devices import replicate
from drnas_jax.training.programs import sum_program

PRODUCTS = 12  # largest number of products of the Hessian with a vector, for one curvature
TOLERANCE = 0.01  # relative error of a curvature


class Diagnostics:
    """Measurements on the supernet of one stage, with batches of the validation split.

    Programs are compiled at their first use.

    Args:
      experiment: Inputs of the search.
      spec: Spec of the stage's supernet.
    """

    def __init__(self, experiment: Experiment, spec: SupernetSpec):
        self._experiment, self._spec = experiment, spec

    def accuracy(
        self, state: SearchState, mix: Mapping[str, np.ndarray], epoch: int, batches: int | None
    ) -> float:
        """Returns the validation accuracy, in 0..1, at given mixing weights; see `accuracies`."""
        return self.accuracies(state, [mix], epoch, batches)[0]

    def accuracies(
        self,
        state: SearchState,
        mixes: Iterable[Mapping[str, np.ndarray]],
        epoch: int,
        batches: int | None,
    ) -> list[float]:
        """Returns the validation accuracies, in 0..1, at several mixing weights.

        The supernet is not trained further, and BatchNorm uses the statistics of each batch over
        all devices. With partial channels (K > 1) single cells differ only in 1/K of the channels.

        Args:
          state: State of the search.
          mixes: Mixing weights by cell type [e, o], one mapping for each accuracy.
          epoch: Number of the epoch, from 0, that has just ended.
          batches: Number of batches to measure on, from the first one; None for the whole split.
        """
        raw, read = self._experiment.loader.raw, self._read(epoch, batches)
        placed = (replicate(dict(mix), self._experiment.mesh) for mix in mixes)
        return [
            loop.evaluate(self._accuracy_program, (state, mix), raw, read)["accuracy"]
            for mix in placed
        ]

    def curvature(self, state: SearchState, epoch: int, batches: int) -> float:
        """Returns the largest eigenvalue of the Hessian of the validation loss in alpha.

        The loss is taken at the mean mixing weights and without penalties. For the eigenvalue's
        accuracy see `largest_eigenvalue`.

        Args:
          state: State of the search.
          epoch: Number of the epoch, from 0, that has just ended.
          batches: Number of batches to measure on, from the first one.
        """
        experiment, read = self._experiment, self._read(epoch, batches)
        flat, unravel = ravel_pytree(jax.tree.map(np.asarray, state.alpha))

        def product(vector: np.ndarray) -> np.ndarray:
            direction = replicate(unravel(jnp.asarray(vector, jnp.float32)), experiment.mesh)
            total, count = np.zeros(flat.size), 0.0
            for batch, weight in read:
                tangent, examples = jax.device_get(
                    self._hessian_program((state, direction), experiment.loader.raw, batch, weight)
                )
                total += ravel_pytree(tangent)[0]
                count += float(examples)
            return total / count

        return largest_eigenvalue(product, flat.size)

    def _read(self, epoch: int, batches: int | None) -> list[tuple[Any, jax.Array]]:
        return list(itertools.islice(self._experiment.loader.evaluation(epoch), batches))

    @functools.cached_property
    def _accuracy_program(self) -> Callable[..., losses.Totals]:
        experiment, config = self._experiment, self._experiment.measuring_config(self._spec)

        def totals(
            given: tuple[SearchState, Mix], raw: Images | None, batch: Batch, weight: jax.Array
        ) -> losses.Totals:
            (state, mix), (images, labels) = given, experiment.preprocessing.normalise(raw, batch)
            return losses.totals(logits_at(config, state, mix, images), labels, weight)

        return sum_program(totals, experiment.mesh)

    @functools.cached_property
    def _hessian_program(self) -> Callable[..., Any]:
        experiment = self._experiment
        # The other kernels define custom gradients, which cannot be differentiated again.
        config = experiment.measuring_config(self._spec, backend.PLAIN)

        def product(
            given: tuple[SearchState, Alpha], raw: Images | None, batch: Batch, weight: jax.Array
        ) -> tuple[Alpha, jax.Array]:
            (state, direction), (images, labels) = (
                given,
                experiment.preprocessing.normalise(raw, batch),
            )

            def loss(alpha: Alpha) -> jax.Array:
                logits = mean_logits(config, state.replace(alpha=alpha), images)
                return jnp.sum(weight * losses.cross_entropy(logits, labels))

            tangent = jax.jvp(jax.grad(loss), (state.alpha,), (direction,))[1]
            return tangent, jnp.sum(weight)

        return sum_program(product, experiment.mesh)


def largest_eigenvalue(product: Callable[[np.ndarray], np.ndarray], size: int) -> float:
    """Estimates the largest eigenvalue of a symmetric matrix by Lanczos' method.

    It starts from a fixed vector and ends after `PRODUCTS` products, or before if the estimate is
    known to be within 1 % of an eigenvalue (by the length of the residual). The vectors are made
    orthogonal to all before them twice, since rounding would bring known directions back.

    Args:
      product: Function from a unit vector [size] to the matrix times this vector.
      size: Number of rows of the matrix.
    """
    vector = np.random.default_rng(0).normal(size=size)
    basis, images = np.zeros((0, size)), np.zeros((0, size))
    value = 0.0
    for _ in range(min(PRODUCTS, size)):
        basis = np.vstack([basis, vector / np.linalg.norm(vector)])
        images = np.vstack([images, product(basis[-1])])
        projected = basis @ images.T
        values, vectors = np.linalg.eigh((projected + projected.T) / 2)
        value, weights = float(values[-1]), vectors[:, -1]
        if np.linalg.norm(weights @ images - value * (weights @ basis)) <= TOLERANCE * abs(value):
            break
        vector = images[-1]
        for _ in range(2):
            vector = vector - (basis @ vector) @ basis
    return value
