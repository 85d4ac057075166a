"""The inputs of a retraining and everything derived from them, such as its compiled step."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from drnas_jax import data, spaces
from drnas_jax.config import Config
from drnas_jax.data import (
    Batch,
    ImageDataset,
    Images,
    Loader,
    Schedule,
    Subset,
    TrainingData,
    augmentation_streams,
    preprocessing_of,
)
from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype, from_json, load, to_json
from drnas_jax.nn import backend
from drnas_jax.nn.backend import Backend
from drnas_jax.nn.counting import count_macs, widest_channels
from drnas_jax.phases.retrain.step import RetrainState, StepConfig, init_state, retrain_step
from drnas_jax.spaces import NetworkSpec, Space
from drnas_jax.training import devices, losses, optimisers
from drnas_jax.training.programs import step_program, sum_program
from drnas_jax.training.random_keys import (
    host_generator,
    module_streams,
    stream_keys,
    stream_number,
)


def choose_genotype(config: Config, space: Space, workdir: Path) -> Genotype:
    """Returns the genotype that the config names, or the result of the search in this workdir.

    Args:
      config: Config of the run. `genotype` may be a file or the text of a cell, a published name,
        or `random` for one that the seed determines.
      space: Search space.
      workdir: Directory of the run.

    Raises:
      UserError: There is no genotype, or it cannot be read.
    """
    if config.genotype == "random":
        return spaces.random_genotype(space, config.seed)
    if config.genotype:
        return spaces.load_genotype(config.genotype)
    file = workdir / "search" / "genotype.json"
    if not file.exists():
        raise UserError(
            f"there is no genotype to retrain: {file} does not exist; run the search phase first, "
            "or set a genotype with --config.genotype=FILE_OR_NAME_OR_TEXT"
        )
    return load(file)


@dataclasses.dataclass(frozen=True, eq=False)
class Retraining:
    """The inputs of a retraining, from which everything else is derived (see also `Experiment`).

    Attributes:
      config: Config of the run.
      genotype: Genotype of the network.
      dataset: Images and labels.
      mesh: Device mesh with the single axis `data`.
    """

    config: Config
    genotype: Genotype
    dataset: ImageDataset
    mesh: Mesh

    @functools.cached_property
    def space(self) -> Space:
        """Search space of the config."""
        return spaces.create(self.config.space, self.config.space_options)

    def check(self) -> None:
        """Raises UserError if the retraining cannot begin; builds nothing on the devices."""
        devices.check_batch(self.config.retrain.batch_size, self.mesh, "retrain.batch_size")
        spaces.check_genotype(self.genotype, self.space)
        spec = self.spec(self.config.retrain.channels)
        self.space.check(spec)
        _ = self.steps  # raises if there is less than one batch
        fraction = self.config.retrain.train_fraction
        if fraction < 1 and not len(self.split[1]):
            raise UserError(
                f"retrain.train_fraction is {fraction}, which leaves none of the "
                f"{self.dataset.count} training images for validation: lower it, or set it to 1"
            )
        # A module may refuse its input, as an auxiliary head does if the images are too small.
        network = self.space.network(spec, self.backend())
        shape = self.dataset.shape
        jax.eval_shape(lambda: init_state(network, optax.identity(), shape, 0))

    def spec(self, channels: int) -> NetworkSpec:
        """Returns the spec of the network with C channels."""
        config, dataset = self.config.retrain, self.dataset
        return NetworkSpec(
            self.genotype,
            channels,
            config.cells,
            dataset.num_classes,
            dataset.shape,
            config.auxiliary_weight > 0,
            config.drop_path,
        )

    @functools.cached_property
    def channels(self) -> int:
        """Number of channels C: the config's, or the largest even one within `retrain.max_macs`."""
        config = self.config.retrain
        if not config.max_macs:
            return config.channels
        return widest_channels(self.macs, config.max_macs, config.channels)

    def macs(self, channels: int) -> int:
        """Returns the number of multiply-adds of the network with C channels, for one image."""
        spec = dataclasses.replace(self.spec(channels), auxiliary=False)
        return count_macs(self.space.network(spec, backend.PLAIN), self.dataset.shape)

    @functools.cached_property
    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the images to train on and of those for validation, int32 [n].

        They are the same for all seeds, whose networks can then be compared.
        """
        numbers = np.arange(self.dataset.count, dtype=np.int32)
        fraction = self.config.retrain.train_fraction
        if fraction == 1:
            return numbers, numbers[:0]
        order = host_generator(0, "retrain split").permutation(numbers)
        count = round(len(order) * fraction)
        return order[:count], order[count:]

    @functools.cached_property
    def steps(self) -> int:
        """Number of steps in an epoch."""
        batch_size = self.config.retrain.batch_size
        return data.steps_per_epoch(len(self.split[0]), batch_size, "the training set")

    @functools.cached_property
    def loader(self) -> Loader:
        """Loader of the batches."""
        config, (train, valid) = self.config.retrain, self.split
        schedule = Schedule(
            batch_size=config.batch_size,
            seed=self.config.seed,
            subsets=(Subset("retrain/order", train),),
            epochs=config.epochs,
            steps=self.steps,
            evaluated=valid,
        )
        return Loader(self.dataset, schedule, self.mesh)

    def backend(self) -> Backend:
        """Returns the backend that the config names."""
        config, compute = self.config.retrain, self.config.compute
        axis_name = devices.AXIS if config.sync_batchnorm else None
        platform = devices.platform(self.mesh)
        return backend.choose(compute.kernels, platform, compute.remat, axis_name)

    def step_config(self, chosen: Backend | None = None) -> StepConfig:
        """Returns the static inputs of the step.

        Args:
          chosen: Backend to use instead of the config's.
        """
        config = self.config.retrain
        return StepConfig(
            network=self.space.network(self.spec(self.channels), chosen or self.backend()),
            optimiser=optimisers.weight_optimiser(
                config, self.steps, config.epochs, config.nesterov
            ),
            total_steps=self.steps * config.epochs,
            label_smoothing=config.label_smoothing,
            drop_path=config.drop_path,
            auxiliary_weight=config.auxiliary_weight,
        )

    def init(self, seed: jax.Array | int) -> RetrainState:
        """Returns the state at the start of retraining."""
        config = self.step_config()
        return init_state(config.network, config.optimiser, self.dataset.shape, seed)

    def step_program(self, chosen: Backend | None = None) -> Any:
        """Returns the jitted step (state, raw, dispatch) -> state, see `training.programs`.

        Args:
          chosen: Backend to use instead of the config's.
        """
        config, step_config = self.config, self.step_config(chosen)
        preprocessing = preprocessing_of(
            self.dataset,
            crop_padding=config.data.crop_padding,
            cutout=config.retrain.cutout,
            dtype=config.compute.dtype,
            jitter=config.retrain.color_jitter,
        )

        numbers = jax.tree.map(stream_number, augmentation_streams("retrain/augment"))

        def step(
            state: RetrainState, raw: Images | None, batches: tuple[Batch], idle: jax.Array
        ) -> RetrainState:
            del idle  # no epoch is without training images
            keys = stream_keys(state.seed, numbers, state.step)
            return retrain_step(step_config, state, preprocessing.augment(raw, *batches, keys))

        return step_program(step, self.mesh, config.compute.donate)

    def validation_program(self) -> Any:
        """Returns the jitted function (state, raw, batch [b], weight [b]) -> totals."""
        spec = dataclasses.replace(self.spec(self.channels), auxiliary=False, drop_path=0.0)
        network = self.space.network(spec, self.backend())
        preprocessing = preprocessing_of(self.dataset, dtype=self.config.compute.dtype)

        def totals(
            state: RetrainState, raw: Images | None, batch: Batch, weight: jax.Array
        ) -> losses.Totals:
            images, labels = preprocessing.normalise(raw, batch)
            streams = module_streams(
                state.seed, "retrain/validation", state.step, lax.axis_index(devices.AXIS)
            )
            variables = {"params": state.params, **state.variables}
            logits = cast(jax.Array, network.apply(variables, images, False, rngs=streams))
            return losses.totals(logits, labels, weight)

        return sum_program(totals, self.mesh)


@dataclasses.dataclass(frozen=True)
class RetrainMetadata:
    """The facts about a retraining that evaluation needs, stored in each checkpoint.

    Attributes:
      genotype: Genotype of the network.
      space: Value of `config.space`.
      channels: Number of channels C of the first cell.
      depth: Number of cells, see NetworkSpec.
      data: Description of the training images.
    """

    genotype: Genotype
    space: str
    channels: int
    depth: int
    data: TrainingData

    @property
    def spec(self) -> NetworkSpec:
        """Spec of the network, without an auxiliary head."""
        classes = len(self.data.classes)
        return NetworkSpec(self.genotype, self.channels, self.depth, classes, self.data.shape)

    def to_json(self) -> dict[str, Any]:
        """Converts to JSON values."""
        return {**dataclasses.asdict(self), "genotype": to_json(self.genotype)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RetrainMetadata":
        """Converts back what `to_json` returned."""
        genotype = from_json(values["genotype"], "the checkpoint's genotype")
        data = TrainingData.from_json(values["data"])
        return cls(**{**values, "genotype": genotype, "data": data})
