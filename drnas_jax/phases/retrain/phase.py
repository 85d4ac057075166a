"""The retraining phase: trains the derived network from scratch on the whole training set."""

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from drnas_jax import spaces
from drnas_jax.config import Config
from drnas_jax.data import TrainingData
from drnas_jax.errors import UserError
from drnas_jax.genotype import from_json, to_json
from drnas_jax.nn.counting import MIN_CHANNELS, count_parameters
from drnas_jax.phases import loop
from drnas_jax.phases.retrain.retraining import Retraining, RetrainMetadata, choose_genotype
from drnas_jax.phases.retrain.step import RetrainState
from drnas_jax.phases.setup import Run, open_run
from drnas_jax.training import devices, memory
from drnas_jax.training.hosts import from_primary
from drnas_jax.training.metrics import Display
from drnas_jax.training.programs import in_background
from drnas_jax.workdir import has_work


@dataclasses.dataclass(frozen=True)
class RetrainResult:
    """The length of a retraining.

    Attributes:
      steps: Number of updates of the weights.
      seconds: Duration in seconds, including compilation and earlier runs that were interrupted.
    """

    steps: int
    seconds: float


def retrain(
    config: Config | Mapping[str, Any],
    workdir: str | os.PathLike[str],
    dataset: Mapping[str, np.ndarray] | None = None,
    display: Display | None = None,
) -> RetrainResult:
    """Trains the network of a genotype, or resumes a retraining that was interrupted.

    The genotype is `config.genotype` (a file or a published name), or the result of the search in
    this workdir. Writes retrain/history.jsonl and retrain/checkpoints.

    Args:
      config: Config of the run, a Config or a ConfigDict.
      workdir: Directory of the run.
      dataset: Arrays `x_train`, `y_train`, `x_test`, `y_test` in place of the config's data set.
      display: Messages and progress for the user; by default on standard error.

    Raises:
      UserError: The config or the data is invalid, there is no genotype, or the loss is not finite.
      Interrupted: A signal stopped the run, after a checkpoint was written.
    """
    return run_retrain(open_run(config, workdir, dataset, display))


def run_retrain(run: Run) -> RetrainResult:
    """Runs the retraining phase; see `retrain`."""
    run.check_writers()

    def chosen() -> dict[str, Any]:
        return to_json(choose_genotype(run.config, run.space, run.workdir))

    genotype = from_json(from_primary(chosen), "the genotype")
    retraining = Retraining(run.config, genotype, run.dataset, run.mesh)
    retraining.check()
    phase = RetrainPhase(retraining, run.display)
    with run.locked("retrain") as directory:
        open_writers = functools.partial(run.open_writers, "retrain")
        state, progress = loop.run(phase, directory, open_writers=open_writers, watch=run.watch)
    return RetrainResult(int(state.step), progress.seconds)


def check_retrain(run: Run) -> None:
    """Raises UserError if retraining cannot begin, whatever genotype the search will return.

    A retraining that has already begun is not checked.
    """
    if has_work(run.workdir / "retrain"):
        return
    genotype = spaces.random_genotype(run.space, 0)
    retraining = Retraining(run.config, genotype, run.dataset, run.mesh)
    retraining.check()
    limit, cells = run.config.retrain.max_macs, run.space.cells.values()
    if limit and all(cell.mask is None for cell in cells):  # then a uniform genotype is cheapest
        least = min(
            dataclasses.replace(retraining, genotype=one).macs(MIN_CHANNELS)
            for one in spaces.uniform_genotypes(run.space)
        )
        if least > limit:
            raise UserError(
                f"retrain.max_macs is {limit:,.0f}, but every network of {MIN_CHANNELS} channels "
                f"needs {least:,} multiply-adds or more: raise it, or lower retrain.cells or "
                "data.image_size"
            )


class RetrainPhase:
    """The retraining phase, see `loop.Phase`."""

    name = "retrain"
    finished = False

    def __init__(self, retraining: Retraining, display: Display):
        self.retraining, self.display = retraining, display
        config = retraining.config
        self.epochs, self.steps = config.retrain.epochs, retraining.steps
        self.checkpoint_steps, self.remat = config.checkpoint_steps, config.compute.remat
        self.loader, self.mesh = retraining.loader, retraining.mesh
        self.program: Callable[..., Any] | None = None
        self.lowered: Future[Any] | None = None  # the step, before it is compiled
        display.message(f"retrain: {retraining.space.describe(retraining.genotype)}")
        if limit := config.retrain.max_macs:
            display.message(
                f"retrain: C {retraining.channels} is the widest within retrain.max_macs = "
                f"{limit:,.0f}"
            )

    def start(self) -> RetrainState:
        """Returns a fresh state on the devices; meanwhile the step is traced."""
        self._trace(jax.eval_shape(self.retraining.init, 0))
        return devices.run_once(self.retraining.init, self.mesh, self.retraining.config.seed)

    def state_shapes(self, metadata: Mapping[str, Any]) -> RetrainState:
        """Returns the shapes of the state, and checks that the checkpoint has the same genotype."""
        if RetrainMetadata.from_json(metadata).genotype != self.retraining.genotype:
            raise UserError(
                "the retraining in this workdir was begun with another genotype: set that "
                "genotype again, or use a new --workdir"
            )
        return jax.eval_shape(self.retraining.init, 0)

    def resume(self, metadata: Mapping[str, Any]) -> None:
        """Does nothing, since only the state changes during retraining."""

    def begin_epoch(self, state: RetrainState, epoch: int) -> tuple[RetrainState, Any]:
        """Returns the state and the step, which is compiled before the first epoch."""
        if self.program is None:
            began = time.monotonic()
            lowered = (self.lowered or self._trace(state)).result()
            self.lowered = None  # it takes memory
            self.program = memory.compile_within(lowered, self.mesh, "retraining", self._advice)
            self.display.message(
                f"retrain: {count_parameters(state.params):,} parameters, step compiled in "
                f"{time.monotonic() - began:.1f} s"
            )
        return state, self.program

    def _trace(self, state: RetrainState) -> "Future[Any]":
        """Begins to trace the step, given the state or its shapes."""
        program, loader = self.retraining.step_program(), self.loader
        abstract = devices.abstract(state, self.mesh), loader.abstract_raw, loader.abstract_dispatch
        self.lowered = in_background(lambda: program.lower(*abstract))
        return self.lowered

    def _advice(self) -> str:
        config = self.retraining.config
        ways = f"lower retrain.batch_size ({config.retrain.batch_size})"
        return ways + memory.or_remat(config.compute.remat)

    def end_epoch(
        self, state: RetrainState, epoch: int, train: Mapping[str, float]
    ) -> tuple[RetrainState, dict[str, Any]]:
        """Returns the state, and the epoch's line of the history; validates if images are left."""
        line = {
            "epoch": epoch + 1,
            "train_loss": train["loss"],
            "train_accuracy": train["accuracy"],
        }
        if len(self.retraining.split[1]):
            batches = self.loader.evaluation(epoch)
            valid = loop.evaluate(self._validation_program, state, self.loader.raw, batches)
            line |= {"valid_loss": valid["loss"], "valid_accuracy": valid["accuracy"]}
        return state, line

    @functools.cached_property
    def _validation_program(self) -> Callable[..., Any]:
        return self.retraining.validation_program()

    def metadata(self) -> dict[str, Any]:
        """Returns the `RetrainMetadata` of a checkpoint as JSON values."""
        retraining = self.retraining
        return RetrainMetadata(
            retraining.genotype,
            retraining.config.space,
            retraining.channels,
            retraining.config.retrain.cells,
            TrainingData.of(retraining.dataset),
        ).to_json()
