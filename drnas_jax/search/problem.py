"""What stays the same over a whole search, and the programs that it compiles for a stage."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from drnas_jax import arch, data, loop, losses, optimise, sharding, spaces
from drnas_jax.arch import MixingDistribution
from drnas_jax.config import Config
from drnas_jax.data import Dataset
from drnas_jax.feed import Feed, Images, make_feed, on_devices, step_program, sum_program
from drnas_jax.nn import kernels
from drnas_jax.search.stages import first_structure
from drnas_jax.search.state import SearchState, init_state
from drnas_jax.search.step import Recipe, mean_logits, search_step
from drnas_jax.spaces import Space, Structure


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Built by `make_problem`.

    Attributes:
      config: of the run.
      space: of the supernet.
      distribution: of the mixing weights.
      weight_optimiser, alpha_optimiser: the two optimisers.
      mesh: the devices.
      feed: makes batches.
      raw: the training images, on the devices.
      train_index, valid_index: which of them train weights and which alpha.
      classes: how many there are.
      steps: in an epoch.
    """

    config: Config
    space: Space
    distribution: MixingDistribution
    weight_optimiser: optax.GradientTransformation
    alpha_optimiser: optax.GradientTransformation
    mesh: Mesh
    feed: Feed
    raw: Images
    train_index: np.ndarray
    valid_index: np.ndarray
    classes: int
    steps: int

    @property
    def epochs(self) -> int:
        """Of all stages together."""
        return sum(self.config.search.epochs)

    def stage_at(self, epoch: int) -> tuple[int, bool]:
        """The stage (from 0) of an epoch (from 0), and whether alpha is frozen in it."""
        for number, stage in enumerate(self.config.search.stages):
            if epoch < stage.epochs:
                return number, epoch < stage.warmup_epochs
            epoch -= stage.epochs
        raise IndexError("the search has no such epoch")

    def first_structure(self) -> Structure:
        """The structure of the first stage, see `stages.first_structure`."""
        config = self.config
        return first_structure(self.space, config.search, self.classes, config.stem)

    def recipe(self, structure: Structure) -> Recipe:
        """The step's static part for a structure."""
        config = self.config
        axis_name = sharding.AXIS if config.search.sync_batchnorm else None
        compute = config.compute
        platform = sharding.platform(self.mesh)
        chosen = kernels.choose(compute.kernels, platform, compute.remat)
        return Recipe(
            supernet=self.space.supernet(structure, chosen, axis_name),
            one_pass=chosen.one_pass,
            distribution=self.distribution,
            weight_optimiser=self.weight_optimiser,
            alpha_optimiser=self.alpha_optimiser,
            alpha_clip=config.arch.clip,
            total_steps=self.epochs * self.steps,
            seed=config.seed,
            sample_per_device=config.search.sample_per_device,
        )

    def init(self, structure: Structure) -> SearchState:
        """A fresh state, see `init_state`."""
        return init_state(
            structure,
            self.recipe(structure).supernet,
            self.distribution,
            self.weight_optimiser,
            self.alpha_optimiser,
            self.raw.images.shape[1:],
            self.config.seed,
        )

    def step_program(self, structure: Structure, frozen: bool) -> Any:
        """A jitted (state, raw, train index [steps, b], valid index [steps, b]) -> state."""
        recipe = self.recipe(structure)

        def step(
            state: SearchState, raw: Images, train: jax.Array, valid: jax.Array
        ) -> SearchState:
            batches = (
                self.feed.augmented(raw, index, f"search/{name}", state.step)
                for name, index in (("train", train), ("valid", valid))
            )
            return search_step(recipe, state, *batches, frozen=frozen)

        donate = self.config.compute.donate
        return step_program(step, self.mesh, arguments=1, index_arrays=2, donate=donate)

    def validation_program(self, structure: Structure) -> Callable[..., Any]:
        """(state, raw, valid_index, index [b], weight [b]) -> totals at the mean mixing weights."""
        recipe = self.recipe(structure)

        def totals(
            state: SearchState, raw: Images, chosen: jax.Array, index: jax.Array, weight: jax.Array
        ) -> losses.Totals:
            batch = self.feed.plain(raw, chosen[index])
            return losses.totals(mean_logits(recipe, state, batch.images), batch.labels, weight)

        return sum_program(totals, self.mesh, arguments=3)

    def validate(self, program: Callable[..., Any], state: SearchState) -> dict[str, float]:
        """Loss, accuracy and top-5 over the whole validation split."""
        arguments = (state, self.raw, self.valid_index)
        batch_size = self.config.search.batch_size
        return loop.evaluate(program, arguments, len(self.valid_index), batch_size)

    def mean(self, alpha: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Mean mixing weights by cell type, [e, o]."""
        return {cell_type: self.distribution.mean(rows) for cell_type, rows in alpha.items()}


def make_problem(
    config: Config, dataset: Dataset | None = None, mesh: Mesh | None = None
) -> Problem:
    """Loads the data and builds everything that a search needs and that does not change.

    Args:
      config: of the run.
      dataset: in place of the config's own.
      mesh: in place of one of all devices.

    Raises:
      UserError: a mistake in the config, or data that is not there or does not fit.
    """
    space, distribution = spaces.find(config.space), arch.create(config.arch)
    mesh = mesh or sharding.make_mesh()
    sharding.check_batch(config.search.batch_size, mesh, "search.batch_size")
    dataset = dataset or data.load(config.data)
    part = config.search
    train, valid = data.search_split(
        dataset.labels, part.train_fraction, part.alpha_fraction, part.split_by_class, config.seed
    )
    steps = data.steps_per_epoch(
        len(train), config.search.batch_size, "the search's training split"
    )
    epochs = sum(config.search.epochs)
    spaces.check_image(space, config.stem, dataset.images.shape[1:3])
    return Problem(
        config=config,
        space=space,
        distribution=distribution,
        weight_optimiser=optimise.weight_optimiser(config.search, steps, epochs),
        alpha_optimiser=optimise.alpha_optimiser(config.arch),
        mesh=mesh,
        feed=make_feed(dataset, config.data.crop_padding, 0, config.seed, config.compute.dtype),
        raw=on_devices(dataset.images, dataset.labels, mesh),
        train_index=train,
        valid_index=valid,
        classes=dataset.num_classes,
        steps=steps,
    )
