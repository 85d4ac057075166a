"""The inputs of a search and everything derived from them, such as the programs of a stage."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from drnas_jax import components, data, distributions, spaces
from drnas_jax.config import Config
from drnas_jax.data import (
    Batch,
    ImageDataset,
    Images,
    Loader,
    Preprocessing,
    Schedule,
    Subset,
    preprocessing_of,
)
from drnas_jax.distributions import Distribution
from drnas_jax.genotype import Genotype
from drnas_jax.nn import backend
from drnas_jax.nn.backend import Backend
from drnas_jax.penalties.base import Penalty
from drnas_jax.phases.search.costing import Costing
from drnas_jax.phases.search.labels import labels_of
from drnas_jax.phases.search.stages import (
    Columns,
    columns_to_keep,
    first_spec,
    resized_spec,
    resized_state,
    stage_at,
)
from drnas_jax.phases.search.state import SearchState, init_state, with_fixed
from drnas_jax.phases.search.step import (
    SUBSETS,
    Alpha,
    StepConfig,
    mean_logits,
    search_step,
)
from drnas_jax.spaces import Mix, NetworkSpec, Space, SupernetSpec
from drnas_jax.training import devices, losses, optimisers
from drnas_jax.training.programs import step_program, sum_program
from drnas_jax.training.random_keys import host_generator


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """The inputs of a search, from which everything else is derived.

    Derived values are never passed in: after `dataclasses.replace` of an input, for example of the
    mesh, all of them are derived again.

    Attributes:
      config: Config of the run.
      dataset: Images and labels.
      mesh: Device mesh with the single axis `data`.
      labels_file: File that stores the labels of a streamed data set after they were first read;
        None to read them again each time.
    """

    config: Config
    dataset: ImageDataset
    mesh: Mesh
    labels_file: Path | None = None

    @functools.cached_property
    def space(self) -> Space:
        """Search space of the config."""
        return spaces.create(self.config.space, self.config.space_options)

    @functools.cached_property
    def distribution(self) -> Distribution:
        """Mixing distribution of the config."""
        return distributions.create(self.config.arch.name, self.config.arch.options)

    @property
    def epochs(self) -> int:
        """Number of epochs of all stages together."""
        return sum(self.config.search.epochs)

    @functools.cached_property
    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the training images for the weights and of those for alpha, int32 [n]."""
        config = self.config.search
        labels = labels_of(self.dataset, config.split_by_class, self.labels_file)
        return data.search_split(
            labels,
            config.train_fraction,
            config.alpha_fraction,
            config.split_by_class,
            self.config.seed,
        )

    @functools.cached_property
    def steps(self) -> int:
        """Number of steps in an epoch."""
        batch_size, what = self.config.search.batch_size, "the search's training split"
        return data.steps_per_epoch(len(self.split[0]), batch_size, what)

    @functools.cached_property
    def schedule(self) -> Schedule:
        """Sequence of all batches."""
        config, (train, valid) = self.config.search, self.split
        frozen = (epoch for epoch in range(self.epochs) if stage_at(config.stages, epoch)[1])
        return Schedule(
            batch_size=config.batch_size,
            seed=self.config.seed,
            subsets=(
                Subset(SUBSETS["weights"], train),
                Subset(SUBSETS["alpha"], valid, frozenset(frozen)),
            ),
            epochs=self.epochs,
            steps=self.steps,
            evaluated=valid,
        )

    @functools.cached_property
    def loader(self) -> Loader:
        """Loader of the batches."""
        return Loader(self.dataset, self.schedule, self.mesh)

    @functools.cached_property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of the images, such as their augmentation."""
        config = self.config
        padding, dtype = config.data.crop_padding, config.compute.dtype
        return preprocessing_of(self.dataset, crop_padding=padding, dtype=dtype)

    @functools.cached_property
    def optimisers(self) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
        """Optimisers of the weights and of alpha."""
        config = self.config
        return (
            optimisers.weight_optimiser(config.search, self.steps, self.epochs),
            optimisers.alpha_optimiser(config.arch),
        )

    def first_spec(self) -> SupernetSpec:
        """Returns the spec of the first stage's supernet."""
        dataset = self.dataset
        return first_spec(self.space, self.config.search, dataset.num_classes, dataset.shape)

    def check(self) -> None:
        """Raises UserError if the search cannot begin; builds nothing on the devices."""
        devices.check_batch(self.config.search.batch_size, self.mesh, "search.batch_size")
        spec = self.first_spec()
        self.space.check(spec)
        _ = self.steps  # raises if the split has less than one batch
        state = self.state_shapes(spec)
        jax.eval_shape(functools.partial(self._penalty_of, spec=spec), state.alpha)
        jax.eval_shape(functools.partial(self._sample, spec), state.alpha)
        self._check_stages(spec, state)
        target = self.config.cost.target
        self.costing.check_targets("cost.target", [target] if target else [], spec)

    def _check_stages(self, spec: SupernetSpec, state: SearchState) -> None:
        """Raises UserError if a state, here of zeros, cannot be taken from stage to stage."""
        state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
        for number, stage in enumerate(self.config.search.stages[1:], start=1):
            columns = _first_columns(spec, stage.operations)
            self.space.check(resized_spec(spec, columns, stage.partial_channels))
            spec, state = self._resized(spec, state, columns, number)

    def _sample(self, spec: SupernetSpec, alpha: Alpha) -> Mix:
        """Draws mixing weights, to find out before the search whether that is possible."""
        return {
            name: self.distribution.sample(
                alpha[name], cell, jax.random.key(0), jnp.zeros(()), "alpha"
            )
            for name, cell in spec.cells
        }

    def backend(self, name: str | None = None) -> Backend:
        """Returns the backend that the config names, or another one.

        Args:
          name: Name of the other backend, as in `config.compute.kernels`.
        """
        config, platform = self.config.compute, devices.platform(self.mesh)
        axis_name = devices.AXIS if self.config.search.sync_batchnorm else None
        return backend.choose(name or config.kernels, platform, config.remat, axis_name)

    def step_config(self, spec: SupernetSpec, chosen: Backend | None = None) -> StepConfig:
        """Returns the static inputs of the steps of a stage.

        Args:
          spec: Spec of the supernet.
          chosen: Backend to use instead of the config's.
        """
        chosen = chosen or self.backend()
        weight_optimiser, alpha_optimiser = self.optimisers
        return StepConfig(
            spec=spec,
            supernet=self.space.supernet(spec, chosen),
            share_program=chosen.share_program,
            distribution=self.distribution,
            penalty=functools.partial(self._penalty_of, spec=spec),
            cost=self.costing.term(spec),
            weight_optimiser=weight_optimiser,
            alpha_optimiser=alpha_optimiser,
            alpha_clip=self.config.arch.clip,
            total_steps=self.epochs * self.steps,
            sample_per_device=self.config.search.sample_per_device,
        )

    def measuring_config(self, spec: SupernetSpec, chosen: Backend | None = None) -> StepConfig:
        """Returns the static inputs of measurements, such as the validation.

        Batch statistics are those of the whole batch, whatever `search.sync_batchnorm` says about
        the training. Otherwise the selected cell would depend on the number of devices.

        Args:
          spec: Spec of the supernet.
          chosen: Backend to use instead of the config's.
        """
        return self.step_config(spec, (chosen or self.backend())._replace(axis_name=devices.AXIS))

    @functools.cached_property
    def _penalty(self) -> Penalty | None:
        config = self.config.arch
        if config.regulariser == "none":
            return None
        field = "arch.regulariser"
        return components.create(
            "penalty", config.regulariser, config.regulariser_options, field=field
        )

    def _penalty_of(
        self, alpha: Alpha, progress: jax.Array | float = 0.0, *, spec: SupernetSpec
    ) -> jax.Array:
        if self._penalty is None:
            return jnp.zeros(())
        penalty = self._penalty(alpha, dict(spec.cells), self.distribution, jnp.asarray(progress))
        return self.config.arch.strength * penalty

    @functools.cached_property
    def costing(self) -> Costing:
        """Costs of the networks and operations of this search."""
        return Costing(self.config, self.space, self.network_spec())

    def network_spec(self) -> NetworkSpec:
        """Returns the spec of the network whose cost counts, with an arbitrary genotype."""
        config, dataset = self.config.retrain, self.dataset
        return NetworkSpec(
            spaces.random_genotype(self.space, 0),
            config.channels,
            config.cells,
            dataset.num_classes,
            self.config.cost.image(dataset.shape),
        )

    def advance(
        self, old: SupernetSpec, state: SearchState, stage: int
    ) -> tuple[SupernetSpec, SearchState]:
        """Takes a supernet and its state from the end of a stage to the start of the next.

        Args:
          old: Spec of the supernet before.
          state: State before, of NumPy arrays.
          stage: Number of the next stage, from 0.
        """
        target = self.config.search.stages[stage]
        scores = {
            name: self.distribution.scores(state.alpha[name], cell) for name, cell in old.cells
        }
        ranks = {name: np.asarray(r) for name, r in with_fixed(scores, state.fixed).items()}
        needed = self.derived(state, old) if self.config.cost.target else None
        columns = columns_to_keep(ranks, old, target.operations, needed)
        return self._resized(old, state, columns, stage)

    def derived(self, state: SearchState, spec: SupernetSpec) -> Genotype:
        """Returns the genotype that is derived from a state.

        Args:
          state: State of the search.
          spec: Spec of the state's supernet.
        """
        ranks = {name: self.distribution.ranking(state.alpha[name], c) for name, c in spec.cells}
        fixed = with_fixed(ranks, state.fixed)
        return self.costing.derive({name: np.asarray(rows) for name, rows in fixed.items()}, spec)

    def _resized(
        self, old: SupernetSpec, state: SearchState, columns: Columns, stage: int
    ) -> tuple[SupernetSpec, SearchState]:
        """Returns the spec and the state with which a stage begins if it keeps these columns."""
        new = resized_spec(old, columns, self.config.search.stages[stage].partial_channels)
        like = self.state_shapes(new)
        seed = int(host_generator(self.config.seed, "search/widen", stage).integers(2**63))
        return new, resized_state(self.space, state, old, new, columns, like, seed)

    def init(self, spec: SupernetSpec, seed: jax.Array | int) -> SearchState:
        """Returns the state at the start of a search, see `init_state`."""
        supernet = self.space.supernet(spec, self.backend())
        return init_state(spec, supernet, self.distribution, *self.optimisers, seed)

    def state_shapes(self, spec: SupernetSpec) -> SearchState:
        """Returns the shapes of the state at the start of a stage; tracing it takes a second."""
        if spec not in self._state_shapes:
            self._state_shapes[spec] = jax.eval_shape(lambda: self.init(spec, 0))
        return self._state_shapes[spec]

    @functools.cached_property
    def _state_shapes(self) -> dict[SupernetSpec, SearchState]:
        return {}

    def abstract_state(self, spec: SupernetSpec) -> SearchState:
        """Returns the shapes and shardings of the state at the start of a stage, for compiling."""
        return devices.abstract(self.state_shapes(spec), self.mesh)

    def step_program(
        self, spec: SupernetSpec, chosen: Backend | None = None, seeds: int = 1
    ) -> Any:
        """Returns the jitted step (state, raw, dispatch) -> state, see `training.programs`.

        Alpha is frozen in steps in which its subset is idle.

        Args:
          spec: Spec of the supernet.
          chosen: Backend to use instead of the config's.
          seeds: Number of runs for which the program takes steps at once.
        """
        config = self.step_config(spec, chosen)

        def step(
            state: SearchState, raw: Images | None, batches: tuple[Batch, Batch], idle: jax.Array
        ) -> SearchState:
            augment = functools.partial(self.preprocessing.augment, raw)
            return search_step(config, state, *batches, idle[1], augment)

        return step_program(step, self.mesh, self.config.compute.donate, seeds)

    def validation_program(self, spec: SupernetSpec, seeds: int = 1) -> Any:
        """Returns the jitted function (state, raw, batch [b], weight [b]) -> totals at the mean.

        Args:
          spec: Spec of the supernet.
          seeds: Number of runs that are validated at once, see `training.programs.sum_program`.
        """
        config = self.measuring_config(spec)

        def totals(
            state: SearchState, raw: Images | None, batch: Batch, weight: jax.Array
        ) -> losses.Totals:
            images, labels = self.preprocessing.normalise(raw, batch)
            return losses.totals(mean_logits(config, state, images), labels, weight)

        return sum_program(totals, self.mesh, seeds)


def state_at(
    experiment: Experiment, stage: int, random_alpha: bool = False
) -> tuple[SupernetSpec, SearchState]:
    """Returns the spec and the state with which a stage would begin, for measurements.

    Args:
      experiment: Inputs of the search.
      stage: Number of the stage, from 1; a later one is pruned and widened.
      random_alpha: Whether to skip the initialisation: all arrays are then 0, except the
        architecture parameters, which are N(0, 1).
    """
    spec, seed = experiment.first_spec(), experiment.config.seed
    init = functools.partial(experiment.init, spec)
    if random_alpha:
        random, shapes = np.random.default_rng(seed), jax.eval_shape(init, seed)
        state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        alpha = jax.tree.map(lambda leaf: random.normal(size=leaf.shape), state.alpha)
        state = state.replace(alpha=jax.tree.map(np.float32, alpha))
    else:
        state = jax.tree.map(np.asarray, devices.run_once(init, experiment.mesh, seed))
    for number in range(1, stage):
        spec, state = experiment.advance(spec, state, number)
    return spec, state


def _first_columns(spec: SupernetSpec, operations: int) -> Columns:
    """Returns the columns that a stage keeps if the scores of all operations are equal."""
    scores = {name: np.zeros(cell.shape) for name, cell in spec.cells}
    return columns_to_keep(scores, spec, operations)
