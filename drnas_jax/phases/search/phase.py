"""The progressive controller: stages, epochs, checkpoints; a new compiled step for each stage."""

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from drnas_jax.config import Config, freeze
from drnas_jax.distributions.base import draw_by_mean, softmax
from drnas_jax.files import write_text
from drnas_jax.genotype import Genotype, load_genotype, save, search_seconds, to_cells
from drnas_jax.nn.counting import count_parameters
from drnas_jax.phases import loop
from drnas_jax.phases.search.cells import draw_cell
from drnas_jax.phases.search.diagnostics import Probe
from drnas_jax.phases.search.problem import Problem, make_problem
from drnas_jax.phases.search.stages import advance, stage_at
from drnas_jax.phases.search.state import SearchState, mean_mix
from drnas_jax.picture import to_svg
from drnas_jax.spaces import Structure
from drnas_jax.training.checkpoints import Checkpoints, Saved
from drnas_jax.training.devices import replicate, run_once
from drnas_jax.training.hosts import from_primary, is_primary
from drnas_jax.training.metrics import Display
from drnas_jax.workdir import alone, open_workdir, version


class SearchResult(NamedTuple):
    """What a search found, and how long it took (compilation and earlier, killed runs included)."""

    genotype: Genotype
    seconds: float


def search(
    config: Config | Mapping[str, Any],
    workdir: str | os.PathLike[str],
    display: Display | None = None,
) -> SearchResult:
    """Searches a cell, or goes on where an earlier call in this workdir was stopped.

    Writes search/history.jsonl, search/checkpoints and, at the end, search/genotype.svg and
    search/genotype.json; where that is there already, it is the result.

    Args:
      config: of the run, a Config or a ConfigDict.
      workdir: its directory.
      display: what a person sees; None: the default one on standard error.

    Raises:
      UserError: a mistake in the config or the data, or a loss that is not finite.
      Interrupted: a signal came; a checkpoint was written first.
    """
    config = freeze(config)
    directory = open_workdir(workdir, config) / "search"
    file = directory / "genotype.json"
    if from_primary(file.exists):
        return _result(file)
    problem = make_problem(config, labels_file=directory / "labels.npy")
    phase = _SearchPhase(
        problem, display or Display(quiet=not is_primary())
    )  # before any checkpoint is made
    with alone(directory):
        state, progress = loop.run(phase, directory)
        began = time.monotonic()
        with contextlib.closing(problem.reader):
            genotype = phase.result(state)
        seconds = progress.seconds + time.monotonic() - began

        def write() -> None:
            write_text(directory / "genotype.svg", to_svg(genotype))
            save(file, genotype, _provenance(config, seconds))

        from_primary(write)
    return SearchResult(genotype, seconds)


def _result(file: Path) -> SearchResult:
    return SearchResult(load_genotype(str(file)), search_seconds(file) or 0.0)


class _SearchPhase:
    """The search as `loop.run` runs it: holds what is static at the present stage."""

    def __init__(self, problem: Problem, display: Display):
        self.problem, self.display = problem, display
        self.epochs, self.steps = problem.epochs, problem.steps
        self.reader, self.mesh = problem.reader, problem.mesh
        self.checkpoint_steps = problem.config.checkpoint_steps
        self.stages = problem.config.search.stages
        self._enter(0, problem.first_structure())

    @property
    def name(self) -> str:
        return f"search, stage {self.stage + 1}/{len(self.stages)}"

    def _enter(self, stage: int, structure: Structure) -> None:
        self.stage, self.structure = stage, structure
        self.programs: dict[bool, Callable[..., Any]] = {}
        self.validation = self.problem.validation_program(structure)
        self.probe = Probe(self.problem, structure)

    def start(self) -> SearchState:
        init = functools.partial(self.problem.init, self.structure)
        return run_once(init, self.mesh, self.problem.config.seed)

    def restore(self, checkpoints: Checkpoints) -> tuple[Saved, SearchState] | None:
        def like(metadata: Mapping[str, Any]) -> SearchState:
            structure = self._structure(metadata)
            return jax.eval_shape(lambda: self.problem.init(structure, 0))

        restored = checkpoints.restore(like, self.mesh, self.display.message)
        if restored is not None:
            metadata = restored[0].metadata
            self._enter(metadata["stage"], self._structure(metadata))
        return restored

    def _structure(self, metadata: Mapping[str, Any]) -> Structure:
        operations = tuple(
            (cell_type, tuple(map(tuple, metadata["operations"][cell_type])))
            for cell_type, _ in self.structure.operations
        )
        return dataclasses.replace(
            self.structure, partial_channels=metadata["partial_channels"], operations=operations
        )

    def metadata(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "partial_channels": self.structure.partial_channels,
            "operations": {
                cell_type: list(map(list, kept)) for cell_type, kept in self.structure.operations
            },
        }

    def begin_epoch(self, state: SearchState, epoch: int) -> tuple[SearchState, Any]:
        stage, frozen = stage_at(self.stages, epoch)
        if stage != self.stage:
            config, here = self.problem.config, jax.tree.map(np.asarray, state)
            state, structure = advance(
                self.problem.space, here, self.structure, config.search, stage, config.seed
            )
            state = replicate(state, self.mesh)
            self._enter(stage, structure)
        if not self.programs:
            self._describe_stage(state)
        if frozen not in self.programs:
            self.programs[frozen] = self._compile(state, epoch, frozen)
        return state, self.programs[frozen]

    def _describe_stage(self, state: SearchState) -> None:
        operations = ", ".join(
            f"{len(edges[0])} operations on each {cell_type} edge"
            for cell_type, edges in self.structure.operations
        )
        self.display.message(
            f"{self.name}: {operations}, K {self.structure.partial_channels}, "
            f"{count_parameters(state.params):,} parameters"
        )

    def _compile(self, state: SearchState, epoch: int, frozen: bool) -> Callable[..., Any]:
        began = time.monotonic()
        program = self.problem.step_program(self.structure, frozen)
        batches = self.reader.abstract(epoch)
        compiled = program.lower(state, self.reader.raw, *batches).compile()
        trained = "weights only, alpha frozen" if frozen else "alpha and weights"
        self.display.message(f"step ({trained}) compiled in {time.monotonic() - began:.1f} s")
        return compiled

    def result(self, state: SearchState) -> Genotype:
        """The best of the candidates by the supernet's validation accuracy, or the mean's cell."""
        search = self.problem.config.search
        if not search.candidates:
            return self.genotype(state)
        self.display.message(f"{search.candidates} candidates are judged by the supernet")
        concentration, last = self._concentration(state), self.epochs - 1
        draw_edge = self.problem.distribution.draw
        cells = self._draw_cells(concentration, draw_edge, search.candidates, self.epochs)
        found = self.probe.accuracies(state, cells, last, search.candidate_batches)
        best = int(np.argmax(found))
        self.display.message(
            f"the best of {len(cells)} different ones: {100 * found[best]:.2f} % on validation "
            f"images, {self.problem.space.describe(cells[best])}"
        )
        return cells[best]

    def genotype(self, state: SearchState) -> Genotype:
        """The cell of the mean."""
        strength = self._mean(state)
        if self.problem.config.search.edge_ranking == "softmax":
            # On one edge it orders operations as the mean does; it only compares edges otherwise.
            strength = {
                cell_type: np.asarray(softmax(alpha)) for cell_type, alpha in state.alpha.items()
            }
        return self.problem.space.derive(strength, dict(self.structure.operations))

    def _mean(self, state: SearchState) -> dict[str, np.ndarray]:
        mean = mean_mix(self.problem.distribution, state.alpha)
        return {cell_type: np.asarray(mix) for cell_type, mix in mean.items()}

    def end_epoch(
        self, state: SearchState, epoch: int, train: Mapping[str, float]
    ) -> dict[str, Any]:
        problem = self.problem
        batches = self.reader.evaluation(epoch)
        valid = loop.evaluate(self.validation, state, self.reader.raw, batches)
        genotype = self.genotype(state)
        concentration = self._concentration(state)
        for cell_type, values in concentration.items():
            edges, kept = problem.space.EDGES[cell_type], self.structure.kept(cell_type)
            self.display.concentrations(cell_type, edges, kept, values)
        self.display.message(
            f"validation: loss {valid['loss']:.4f}, accuracy {100 * valid['accuracy']:.2f} %; "
            f"genotype now: {problem.space.describe(genotype)}"
        )
        return {
            "stage": self.stage + 1,
            "epoch": epoch + 1,
            "train_loss": train["loss"],
            "train_accuracy": train["accuracy"],
            "valid_loss": valid["loss"],
            "valid_accuracy": valid["accuracy"],
            "entropy": _entropy(self._mean(state)),
            "concentration": {
                cell_type: self._all_columns(cell_type, values)
                for cell_type, values in concentration.items()
            },
            "genotype": to_cells(genotype),
            **self._insight(state, epoch),
        }

    def _insight(self, state: SearchState, epoch: int) -> dict[str, Any]:
        """What the config asks to measure beside the search; the search does not depend on it."""
        search = self.problem.config.search
        insight: dict[str, Any] = {}
        if search.hessian_batches:
            insight["hessian"] = self.probe.curvature(state, epoch, search.hessian_batches)
            self.display.message(f"largest eigenvalue in alpha: {insight['hessian']:.4g}")
        if search.ranked_cells:
            flat = {
                cell_type: np.ones((len(kept), len(kept[0])))
                for cell_type, kept in self.structure.operations
            }
            cells = self._draw_cells(flat, draw_by_mean, search.ranked_cells, epoch)
            found = self.probe.accuracies(state, cells, epoch, search.candidate_batches)
            insight["ranked"] = [
                {"cells": to_cells(cell), "accuracy": accuracy}
                for cell, accuracy in zip(cells, found, strict=True)
            ]
        return insight

    def _draw_cells(
        self,
        concentration: Mapping[str, np.ndarray],
        draw_edge: Callable[[np.ndarray, np.random.Generator], np.ndarray],
        count: int,
        epoch: int,
    ) -> list[Genotype]:
        """So many draws, each cell once; others in every epoch."""
        space, rng = self.problem.space, np.random.default_rng([self.problem.config.seed, epoch])
        operations = dict(self.structure.operations)
        drawn = (draw_cell(space, operations, concentration, draw_edge, rng) for _ in range(count))
        return list(dict.fromkeys(drawn))

    def _concentration(self, state: SearchState) -> dict[str, np.ndarray]:
        return {
            cell_type: np.asarray(self.problem.distribution.concentration(alpha))
            for cell_type, alpha in state.alpha.items()
        }

    def _all_columns(self, cell_type: str, values: np.ndarray) -> np.ndarray:
        """[e, o] over all primitives, nan (null in the file) where one is pruned."""
        primitives = self.problem.space.PRIMITIVES
        full = np.full((len(values), len(primitives)), np.nan)
        for edge, kept in enumerate(self.structure.kept(cell_type)):
            full[edge, [primitives.index(name) for name in kept]] = values[edge]
        return full


def _entropy(mean: Mapping[str, np.ndarray]) -> float:
    """Entropy of the mean mixing weights in nats, averaged over all edges."""
    rows = np.concatenate(list(mean.values())).astype(np.float64)
    return float(-np.sum(rows * np.log(np.maximum(rows, 1e-300)), axis=1).mean())


def _provenance(config: Config, seconds: float) -> dict[str, Any]:
    return {
        "distribution": config.arch.name,
        "data": config.data.name,
        "epochs": sum(config.search.epochs),
        "seed": config.seed,
        "search_seconds": round(seconds, 1),
        "drnas_jax": version("drnas_jax"),
        "jax": version("jax"),
    }
