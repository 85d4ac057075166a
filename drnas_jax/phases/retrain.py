"""Retraining: the derived network from scratch, on the whole training set."""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax import lax

from drnas_jax import data, spaces
from drnas_jax.config import Config, freeze
from drnas_jax.data import Dataset, Part, Schedule, Stream, feed
from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype, from_json, load_genotype, to_json
from drnas_jax.nn import backend
from drnas_jax.nn.counting import count_macs, count_parameters, widest_channels
from drnas_jax.phases import loop
from drnas_jax.training import devices, losses, optimisers
from drnas_jax.training.checkpoints import Checkpoints, Saved
from drnas_jax.training.hosts import from_primary, is_primary
from drnas_jax.training.metrics import Display
from drnas_jax.training.random_keys import stream_key
from drnas_jax.workdir import alone, open_workdir


class RetrainState(struct.PyTreeNode):
    """Everything that retraining remembers.

    Attributes:
      seed: uint32 [], of the run. Not static, so that runs share compiled programs.
      step: int32 [], updates done.
      params, batch_stats: of the network.
      opt: the optimiser's state.
      totals: sums over the training batches of the epoch so far.
    """

    seed: jax.Array
    step: jax.Array
    params: Any
    batch_stats: Any
    opt: optax.OptState
    totals: losses.Totals


class RetrainResult(NamedTuple):
    """Updates done, and seconds (compilation and earlier, killed runs included)."""

    steps: int
    seconds: float


def retrain(
    config: Config | Mapping[str, Any],
    workdir: str | os.PathLike[str],
    display: Display | None = None,
) -> RetrainResult:
    """Trains the network of a genotype, or goes on where an earlier call was stopped.

    The genotype is `config.genotype` (a file or a published name), or what the search in this
    workdir found. Writes retrain/history.jsonl and retrain/checkpoints.

    Args:
      config: of the run, a Config or a ConfigDict.
      workdir: its directory.
      display: what a person sees; None: the default one on standard error.

    Raises:
      UserError: a mistake in the config or the data, no genotype, or a loss that is not finite.
      Interrupted: a signal came; a checkpoint was written first.
    """
    config = freeze(config)
    workdir = open_workdir(workdir, config)
    directory = workdir / "retrain"
    genotype = from_json(from_primary(lambda: to_json(choose_genotype(config, workdir))), "")
    phase = Retraining(config, genotype, display or Display(quiet=not is_primary()))
    with alone(directory):
        state, progress = loop.run(phase, directory)
    return RetrainResult(int(state.step), progress.seconds)


def choose_genotype(config: Config, workdir: Path) -> Genotype:
    """The genotype that the config names ('random': drawn by the seed), or that was searched here.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    if config.genotype == "random":
        return spaces.random_genotype(config.space, config.seed)
    if config.genotype:
        return load_genotype(config.genotype)
    file = workdir / "search" / "genotype.json"
    if not file.exists():
        raise UserError(
            f"there is no genotype to retrain: {file} does not exist; run the search phase first, "
            "or name a genotype by --config.genotype=FILE_OR_NAME"
        )
    return load_genotype(str(file))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is static in a step.

    Attributes:
      network: see Space.network.
      optimiser: of its weights.
      total_steps: of the whole retraining.
      label_smoothing: of the loss.
      drop_path: rate at the end; it rises linearly from 0.
      auxiliary_weight: of the auxiliary head's loss.
    """

    network: nn.Module
    optimiser: optax.GradientTransformation
    total_steps: int
    label_smoothing: float
    drop_path: float
    auxiliary_weight: float


def init_state(
    network: nn.Module,
    optimiser: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    seed: jax.Array | int,
) -> RetrainState:
    """A fresh state for images of shape [h, w, c]."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = network.lazy_init(stream_key(seed, "retrain/init"), images, True)
    return RetrainState(
        seed=jnp.asarray(seed, jnp.uint32),
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt=optimiser.init(variables["params"]),
        totals=losses.zero_totals(),
    )


def retrain_step(recipe: Recipe, state: RetrainState, batch: feed.Images) -> RetrainState:
    """One update on this device's shard of a training batch."""

    def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        (logits, auxiliary), updated = recipe.network.apply(
            variables,
            batch.images,
            True,
            recipe.drop_path * state.step / recipe.total_steps,
            rngs=_drop_path_key(recipe, state),
            mutable=["batch_stats"],
        )
        loss = losses.training_loss(
            logits, auxiliary, batch.labels, recipe.label_smoothing, recipe.auxiliary_weight
        )
        return loss, (logits, updated["batch_stats"])

    gradient, (logits, batch_stats) = jax.grad(loss_of, has_aux=True)(state.params)
    gradient, batch_stats = lax.pmean((gradient, batch_stats), devices.AXIS)
    updates, opt = recipe.optimiser.update(gradient, state.opt, state.params)
    sums = lax.psum(losses.totals(logits, batch.labels), devices.AXIS)
    return state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt=opt,
        totals=jax.tree.map(jnp.add, state.totals, sums),
    )


def _drop_path_key(recipe: Recipe, state: RetrainState) -> dict[str, jax.Array]:
    if not recipe.drop_path:
        return {}
    key = stream_key(state.seed, "retrain/drop_path", state.step)
    return {"drop_path": jax.random.fold_in(key, lax.axis_index(devices.AXIS))}


class Retraining:
    """Retraining as `loop.run` runs it.

    Args:
      config: of the run.
      genotype: of the network.
      display: what a person sees.
      dataset: in place of the config's own.
    """

    name = "retrain"

    def __init__(
        self,
        config: Config,
        genotype: Genotype,
        display: Display,
        dataset: Dataset | Stream | None = None,
    ):
        self.config, self.genotype, self.display = config, genotype, display
        part = config.retrain
        self.mesh = devices.make_mesh()
        devices.check_batch(part.batch_size, self.mesh, "retrain.batch_size")
        space = spaces.find(config.space)
        spaces.check_genotype(genotype, config.space)
        spaces.check_retraining(config)
        self.dataset = dataset or data.load(config.data)
        spaces.check_image(space, config.stem, self.dataset.shape[:2])
        count = self.dataset.count
        self.epochs, self.checkpoint_steps = part.epochs, config.checkpoint_steps
        self.steps = data.steps_per_epoch(count, part.batch_size, "the training set")
        self.channels = self._widest() if part.max_macs else part.channels
        compute = config.compute
        chosen = backend.choose(compute.kernels, devices.platform(self.mesh), compute.remat)
        self.recipe = Recipe(
            network=self._network(self.channels, part.auxiliary_weight > 0, chosen),
            optimiser=optimisers.weight_optimiser(part, self.steps, part.epochs, part.nesterov),
            total_steps=self.steps * part.epochs,
            label_smoothing=part.label_smoothing,
            drop_path=part.drop_path,
            auxiliary_weight=part.auxiliary_weight,
        )
        schedule = Schedule(
            batch_size=part.batch_size,
            seed=config.seed,
            parts=(Part("retrain/order", np.arange(count, dtype=np.int32)),),
            epochs=part.epochs,
            steps=self.steps,
        )
        self.reader = feed.Reader(self.dataset, schedule, self.mesh)
        self.program: Callable[..., Any] | None = None
        display.message(f"retrain: {space.describe(genotype)}")

    def _network(self, channels: int, auxiliary: bool, chosen: backend.Kernels) -> nn.Module:
        config, part = self.config, self.config.retrain
        return spaces.find(config.space).network(
            self.genotype,
            channels,
            part.cells,
            self.dataset.num_classes,
            config.stem,
            auxiliary,
            chosen,
            devices.AXIS if part.sync_batchnorm else None,
        )

    def _widest(self) -> int:
        """The widest even C within retrain.max_macs multiply-adds."""
        part, shape = self.config.retrain, self.dataset.shape
        channels = widest_channels(
            lambda c: count_macs(self._network(c, False, backend.PLAIN), shape),
            part.max_macs,
            part.channels,
        )
        self.display.message(
            f"retrain: C {channels} is the widest within retrain.max_macs = {part.max_macs:,.0f}"
        )
        return channels

    def _init(self, seed: jax.Array | int) -> RetrainState:
        return init_state(self.recipe.network, self.recipe.optimiser, self.dataset.shape, seed)

    def start(self) -> RetrainState:
        """See Phase.start."""
        return devices.run_once(self._init, self.mesh, self.config.seed)

    def restore(self, checkpoints: Checkpoints) -> tuple[Saved, RetrainState] | None:
        """See Phase.restore."""

        def like(metadata: Mapping[str, Any]) -> RetrainState:
            if metadata["genotype"] != to_json(self.genotype):
                raise UserError(
                    "the retraining in this workdir was begun with another genotype: give that one "
                    "again, or take a new --workdir"
                )
            return jax.eval_shape(self._init, 0)

        return checkpoints.restore(like, self.mesh, self.display.message)

    def step_program(self) -> Any:
        """A jitted (state, raw, batch [steps, b]) -> state."""
        config, compute = self.config, self.config.compute
        batches = feed.make_feed(
            self.dataset,
            config.data.crop_padding,
            config.retrain.cutout,
            compute.dtype,
            config.retrain.color_jitter,
        )

        def step(state: RetrainState, raw: feed.Images | None, batch: feed.Batch) -> RetrainState:
            augmented = batches.augmented(raw, batch, "retrain/augment", state.seed, state.step)
            return retrain_step(self.recipe, state, augmented)

        return feed.step_program(step, self.mesh, parts=1, donate=compute.donate)

    def begin_epoch(self, state: RetrainState, epoch: int) -> tuple[RetrainState, Any]:
        """See Phase.begin_epoch; compiles before the first epoch that runs here."""
        if self.program is None:
            began = time.monotonic()
            batches = self.reader.abstract(epoch)
            lowered = self.step_program().lower(state, self.reader.raw, *batches)
            self.program = lowered.compile()
            self.display.message(
                f"retrain: {count_parameters(state.params):,} parameters, step compiled in "
                f"{time.monotonic() - began:.1f} s"
            )
        return state, self.program

    def end_epoch(
        self, state: RetrainState, epoch: int, train: Mapping[str, float]
    ) -> dict[str, Any]:
        """See Phase.end_epoch."""
        del state
        return {
            "epoch": epoch + 1,
            "train_loss": train["loss"],
            "train_accuracy": train["accuracy"],
        }

    def metadata(self) -> dict[str, Any]:
        """See Phase.metadata."""
        part = self.config.retrain
        return {
            "genotype": to_json(self.genotype),
            "channels": self.channels,
            "cells": part.cells,
            "classes": self.dataset.num_classes,
            "stem": self.config.stem,
        }
