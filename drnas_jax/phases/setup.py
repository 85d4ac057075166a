"""The inputs that all phases of a run share; a command makes them once."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drnas_jax import data, spaces
from drnas_jax.config import Config, DataConfig, freeze
from drnas_jax.data import ImageDataset
from drnas_jax.errors import UserError
from drnas_jax.spaces import Space
from drnas_jax.training import devices
from drnas_jax.training.hosts import from_primary, is_primary
from drnas_jax.training.metrics import Display
from drnas_jax.training.progress import Status
from drnas_jax.workdir import open_workdir, phase_lock
from drnas_jax.writers import RunInfo, Writers, check


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """The inputs of a run, from which everything else is derived.

    Attributes:
      config: Config of the run.
      workdir: Directory of the run, already opened for this config.
      display: Messages and progress for the user.
      load: Function that opens the data set, and decodes it if it fits in memory.
      sweep: Workdir and config of the command, if this is one of its several runs.
      watch: Function that process 0 calls after each epoch of a search or retraining, or None.
    """

    config: Config
    workdir: Path
    display: Display
    load: Callable[[], ImageDataset]
    sweep: tuple[Path, Config] | None = None
    watch: Callable[[Status], None] | None = None

    @functools.cached_property
    def dataset(self) -> ImageDataset:
        """Images and labels, loaded at first use."""
        return self.load()

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """Mesh of all devices."""
        return devices.make_mesh()

    @functools.cached_property
    def space(self) -> Space:
        """Search space of the config."""
        return spaces.create(self.config.space, self.config.space_options)

    def with_display(self, display: Display) -> "Run":
        """Returns the same run with another display."""
        return dataclasses.replace(self, display=display)

    def check_writers(self) -> None:
        """Raises UserError if a writer does not exist or cannot work, in all processes."""
        from_primary(lambda: check(self.config))

    def open_writers(self, phase: str, resume_step: int) -> Writers:
        """Opens the writers of a phase's curves.

        Args:
          phase: `search` or `retrain`.
          resume_step: First step that is written now.
        """
        sweep = self.sweep[0] if self.sweep else self.workdir
        say = self.display.message
        return Writers(RunInfo(self.config, self.workdir, sweep, phase, resume_step, say))

    @contextlib.contextmanager
    def locked(self, phase: str) -> Iterator[Path]:
        """Yields the directory of a phase, which is locked while the context is active.

        Raises:
          UserError: Another run is at work there, or another command has opened the workdir with
            another config since this one did.
        """
        with phase_lock(self.workdir / phase):
            for opened in filter(None, (self.sweep, (self.workdir, self.config))):
                open_workdir(*opened)
            yield self.workdir / phase


def dataset_loader(config: DataConfig, display: Display) -> Callable[[], ImageDataset]:
    """Returns a function that loads a data set once, and prints what was read.

    Args:
      config: Names the data set.
      display: Messages for the user.
    """

    @functools.cache
    def load() -> ImageDataset:
        dataset = data.load(config)
        for note in dataset.notes:
            display.message(note)
        return dataset

    return load


def open_run(
    config: Config | Mapping[str, Any],
    workdir: str | os.PathLike[str],
    dataset: Mapping[str, np.ndarray] | None = None,
    display: Display | None = None,
) -> Run:
    """Opens a workdir for a config.

    Args:
      config: Config of the run, a Config or a ConfigDict.
      workdir: Directory of the run.
      dataset: Arrays that replace the config's data set: `x_train`, `y_train`, `x_test`, `y_test`,
        uint8 [n, h, w, c] and integers [n]. `data.name` is then recorded as `arrays`.
      display: Messages and progress for the user; by default on standard error.

    Raises:
      UserError: The config or the arrays are invalid, or the workdir belongs to another config.
    """
    config = freeze(config)
    if config.cost.targets:
        raise UserError(
            f"cost.targets is {config.cost.targets}, but this is a single run: set cost.target for "
            "each, or use the command drnas_jax.main"
        )
    arrays = None
    if dataset is not None:
        named = dataclasses.replace(config.data, name="arrays", dir="")
        config = dataclasses.replace(config, data=named)
        arrays = data.from_arrays(
            dataset, named
        )  # before the workdir is made, in case of a mistake
    shown = display or Display(quiet=not is_primary())
    load = dataset_loader(config.data, shown) if arrays is None else lambda: arrays
    return Run(config, open_workdir(workdir, config), shown, load)


def split_variables(variables: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Splits the variables of a module into its parameters and its other collections by name."""
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    return variables["params"], rest
