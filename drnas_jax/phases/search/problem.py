"""What stays the same over a whole search, and the programs that it compiles for a stage."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from drnas_jax import data, distributions, spaces
from drnas_jax.config import Config
from drnas_jax.data import Dataset, Part, Schedule, Stream, read_labels
from drnas_jax.data.feed import Batch, Feed, Images, Reader, make_feed, step_program, sum_program
from drnas_jax.distributions import MixingDistribution
from drnas_jax.files import write_array
from drnas_jax.nn import backend
from drnas_jax.phases.search.stages import first_structure, stage_at
from drnas_jax.phases.search.state import SearchState, init_state
from drnas_jax.phases.search.step import Recipe, mean_logits, search_step
from drnas_jax.spaces import Space, Structure
from drnas_jax.training import devices, losses, optimisers
from drnas_jax.training.hosts import from_primary, total

STREAMS = ("search/train", "search/valid")  # of the batches for the weights, and for alpha


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
      reader: reads them.
      classes: how many there are.
      image_shape: h, w, c.
      steps: in an epoch.
    """

    config: Config
    space: Space
    distribution: MixingDistribution
    weight_optimiser: optax.GradientTransformation
    alpha_optimiser: optax.GradientTransformation
    mesh: Mesh
    feed: Feed
    reader: Reader
    classes: int
    image_shape: tuple[int, int, int]
    steps: int

    @property
    def epochs(self) -> int:
        """Of all stages together."""
        return sum(self.config.search.epochs)

    def first_structure(self) -> Structure:
        """The structure of the first stage, see `stages.first_structure`."""
        config = self.config
        return first_structure(self.space, config.search, self.classes, config.stem)

    def recipe(self, structure: Structure) -> Recipe:
        """The step's static part for a structure."""
        config = self.config
        axis_name = devices.AXIS if config.search.sync_batchnorm else None
        compute = config.compute
        platform = devices.platform(self.mesh)
        chosen = backend.choose(compute.kernels, platform, compute.remat)
        return Recipe(
            supernet=self.space.supernet(structure, chosen, axis_name),
            one_pass=chosen.one_pass,
            distribution=self.distribution,
            weight_optimiser=self.weight_optimiser,
            alpha_optimiser=self.alpha_optimiser,
            alpha_clip=config.arch.clip,
            total_steps=self.epochs * self.steps,
            sample_per_device=config.search.sample_per_device,
        )

    def init(self, structure: Structure, seed: jax.Array | int) -> SearchState:
        """A fresh state, see `init_state`."""
        return init_state(
            structure,
            self.recipe(structure).supernet,
            self.distribution,
            self.weight_optimiser,
            self.alpha_optimiser,
            self.image_shape,
            seed,
        )

    def step_program(self, structure: Structure, frozen: bool) -> Any:
        """A jitted (state, raw, train [steps, b], valid [steps, b]) -> state; frozen: no valid."""
        recipe = self.recipe(structure)

        def step(state: SearchState, raw: Images | None, *batches: Batch) -> SearchState:
            augmented = (
                self.feed.augmented(raw, batch, name, state.seed, state.step)
                for name, batch in zip(STREAMS, batches, strict=not frozen)
            )
            return search_step(recipe, state, *augmented, frozen=frozen)

        parts, donate = 1 if frozen else 2, self.config.compute.donate
        return step_program(step, self.mesh, parts, donate)

    def validation_program(self, structure: Structure) -> Callable[..., Any]:
        """(state, raw, batch [b], weight [b]) -> totals at the mean mixing weights."""
        recipe = self.recipe(structure)

        def totals(
            state: SearchState, raw: Images | None, batch: Batch, weight: jax.Array
        ) -> losses.Totals:
            images, labels = self.feed.plain(raw, batch)
            return losses.totals(mean_logits(recipe, state, images), labels, weight)

        return sum_program(totals, self.mesh)


def make_problem(
    config: Config,
    dataset: Dataset | Stream | None = None,
    mesh: Mesh | None = None,
    labels_file: Path | None = None,
) -> Problem:
    """Finds the data and builds everything that a search needs and that does not change.

    Args:
      config: of the run.
      dataset: in place of the config's own.
      mesh: in place of one of all devices.
      labels_file: where labels are kept that cost reading a whole stored data set.

    Raises:
      UserError: a mistake in the config, or data that is not there or does not fit.
    """
    space, distribution = spaces.find(config.space), distributions.create(config.arch)
    part, mesh = config.search, mesh or devices.make_mesh()
    devices.check_batch(part.batch_size, mesh, "search.batch_size")
    dataset = dataset or data.load(config.data)
    spaces.check_image(space, config.stem, dataset.shape[:2])
    labels = _labels(dataset, part.split_by_class, labels_file)
    train, valid = data.search_split(
        labels, part.train_fraction, part.alpha_fraction, part.split_by_class, config.seed
    )
    what = "the search's training split"
    steps = data.steps_per_epoch(len(train), part.batch_size, what)
    epochs = sum(part.epochs)
    frozen = frozenset(epoch for epoch in range(epochs) if stage_at(part.stages, epoch)[1])
    schedule = Schedule(
        batch_size=part.batch_size,
        seed=config.seed,
        parts=(Part(STREAMS[0], train), Part(STREAMS[1], valid, idle=frozen)),
        epochs=epochs,
        steps=steps,
        evaluated=valid,
    )
    return Problem(
        config=config,
        space=space,
        distribution=distribution,
        weight_optimiser=optimisers.weight_optimiser(part, steps, epochs),
        alpha_optimiser=optimisers.alpha_optimiser(config.arch),
        mesh=mesh,
        feed=make_feed(dataset, config.data.crop_padding, 0, config.compute.dtype),
        reader=Reader(dataset, schedule, mesh),
        classes=dataset.num_classes,
        image_shape=dataset.shape,
        steps=steps,
    )


def _labels(dataset: Dataset | Stream, needed: bool, file: Path | None) -> np.ndarray:
    """Of the training images, int [n]; zeros where they are not needed and cost reading them."""
    if isinstance(dataset, Dataset):
        return dataset.labels
    if not needed:
        return np.zeros(dataset.count, np.int32)
    if file is not None:
        file = file.with_stem(f"{file.stem}-{dataset.fingerprint:08x}")
    if file is not None and from_primary(lambda: _holds(file, dataset.count)):
        return np.load(file)
    labels = total(read_labels(dataset, jax.process_index(), jax.process_count()))
    if file is not None:
        from_primary(lambda: write_array(file, labels))
    return labels


def _holds(file: Path, count: int) -> bool:
    """Whether there are labels of so many images in a file."""
    try:
        return np.load(file).shape == (count,)
    except (OSError, ValueError, EOFError):
        return False
