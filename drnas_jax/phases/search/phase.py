"""The search phase: runs all stages, and asks the rules for their decisions after each epoch."""

import dataclasses
import os
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from drnas_jax import components
from drnas_jax.config import Config
from drnas_jax.costs.base import expected_cost
from drnas_jax.errors import UserError
from drnas_jax.files import write_text
from drnas_jax.genotype import Genotype, load, save, search_seconds, to_cells
from drnas_jax.nn.counting import count_parameters
from drnas_jax.phases import loop
from drnas_jax.phases.search.advice import is_cheapest, warnings_about
from drnas_jax.phases.search.comparison import Comparison, compare
from drnas_jax.phases.search.compilation import StageCompiler
from drnas_jax.phases.search.diagnostics import Diagnostics
from drnas_jax.phases.search.experiment import Experiment
from drnas_jax.phases.search.history import (
    all_columns,
    draw_genotypes,
    entropy,
    random_cells,
)
from drnas_jax.phases.search.memory_check import check_later_stages
from drnas_jax.phases.search.metadata import FixedEdges, SearchMetadata
from drnas_jax.phases.search.provenance import provenance, result_cost
from drnas_jax.phases.search.shown import describe_stage, explain_scores, show_scores
from drnas_jax.phases.search.stages import stage_at
from drnas_jax.phases.search.state import SearchState, fix_edges, mean_mix
from drnas_jax.phases.search.together import Programs, SeedThread
from drnas_jax.phases.setup import Run, open_run
from drnas_jax.picture import to_svg
from drnas_jax.rules.base import Fix, Rule, Stop, View, checked_edges
from drnas_jax.spaces import SupernetSpec
from drnas_jax.spaces.base import one_hot
from drnas_jax.training import devices
from drnas_jax.training.devices import replicate, run_once
from drnas_jax.training.hosts import from_primary
from drnas_jax.training.metrics import Display


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
      genotype: Genotype that the selection rule chose.
      seconds: Duration in seconds, including compilation and earlier runs that were interrupted.
    """

    genotype: Genotype
    seconds: float


def search(
    config: Config | Mapping[str, Any],
    workdir: str | os.PathLike[str],
    dataset: Mapping[str, np.ndarray] | None = None,
    display: Display | None = None,
) -> SearchResult:
    """Searches for a genotype, or resumes a search in this workdir that was interrupted.

    Writes search/history.jsonl, search/checkpoints and, at the end, search/genotype.svg and
    search/genotype.json. If search/genotype.json exists already, it is the result.

    Args:
      config: Config of the run, a Config or a ConfigDict.
      workdir: Directory of the run.
      dataset: Arrays `x_train`, `y_train`, `x_test`, `y_test` in place of the config's data set.
      display: Messages and progress for the user; by default on standard error.

    Raises:
      UserError: The config or the data is invalid, or the loss is not finite.
      Interrupted: A signal stopped the run, after a checkpoint was written.
    """
    return run_search(open_run(config, workdir, dataset, display))


def run_search(run: Run, thread: SeedThread | None = None) -> SearchResult:
    """Runs the search phase; see `search`, and `search_together` for `thread`."""
    directory = run.workdir / "search"
    file = directory / "genotype.json"
    if from_primary(file.exists):
        return SearchResult(load(str(file)), search_seconds(file) or 0.0)
    run.check_writers()
    experiment = Experiment(run.config, run.dataset, run.mesh, directory / "labels.npy")
    if run.config.cost.name:
        run.display.message(f"counting what the operations cost ({run.config.cost.name})")
    experiment.check()
    if run.config.cost.name:
        for message in experiment.costing.describe(experiment.first_spec()):
            run.display.message(message)
    if thread is not None:
        thread.share_raw(experiment.loader)
    phase = SearchPhase(experiment, run.display, thread)  # before any checkpoint is made
    with run.locked("search"):
        hooks = None if thread is None else thread.interrupt, partial(run.open_writers, "search")
        state, progress = loop.run(phase, directory, *hooks, run.watch)
        genotype, comparison = phase.result, phase.compare(state, progress.epochs_done - 1)
        cost = result_cost(experiment, genotype, run.display)
        cheapest = cost is not None and is_cheapest(
            cost["exact"], cost["smallest"], cost["largest"]
        )
        for warning in warnings_about(run.config, comparison, cheapest):
            run.display.message(f"warning: {warning}")
        origin = provenance(run.config, progress, phase.stopped, cost, comparison)

        def write() -> None:
            write_text(directory / "genotype.svg", to_svg(genotype))
            save(file, genotype, origin)

        from_primary(write)
    return SearchResult(genotype, progress.seconds)


class SearchPhase:
    """The search phase, see `loop.Phase`; it keeps the static values of the current stage.

    Args:
      experiment: Inputs of the search.
      display: What the user sees.
      thread: Thread of this search if several seeds are searched at once, or None.
    """

    def __init__(self, experiment: Experiment, display: Display, thread: SeedThread | None = None):
        self.experiment, self.display, self.thread = experiment, display, thread
        config = experiment.config
        self.epochs, self.steps = experiment.epochs, experiment.steps
        self.loader, self.mesh = experiment.loader, experiment.mesh
        self.checkpoint_steps, self.remat = config.checkpoint_steps, config.compute.remat
        self.stages = config.search.stages
        self.rules: dict[str, Rule] = {}
        for kind, name, options in (  # in the order in which they are asked
            ("stopping", config.search.stopping, config.search.stopping_options),
            ("selection", config.search.selection, config.search.selection_options),
        ):
            if name:
                self.rules[kind] = components.create(kind, name, options, field=f"search.{kind}")
                if check := getattr(self.rules[kind], "check", None):
                    check(experiment.first_spec(), self.epochs)
        self.memory: dict[str, dict[str, Any]] = {kind: {} for kind in self.rules}
        self.fixed: FixedEdges = ()
        self.decision: Stop | None = None
        self.memory_checked = False  # for all stages
        self.frozen = self.explained = False  # alpha in this epoch; the tables of scores
        self._enter(0, experiment.first_spec())

    @property
    def name(self) -> str:
        """Name shown to the user, for example `search, stage 1/2, alpha frozen`."""
        frozen = ", alpha frozen" if self.frozen else ""
        return f"search, stage {self.stage + 1}/{len(self.stages)}{frozen}"

    @property
    def finished(self) -> bool:
        """Whether a rule has ended the search."""
        return self.decision is not None

    @property
    def result(self) -> Genotype:
        """Genotype that the selection rule chose."""
        if self.decision is None:
            name = self.experiment.config.search.selection
            raise RuntimeError(f"the selection rule {name!r} chose nothing at the last epoch")
        return self.decision.genotype

    @property
    def stopped(self) -> str:
        """Why a rule has ended the search early, or an empty string."""
        return self.decision.reason if self.decision else ""

    def _enter(self, stage: int, spec: SupernetSpec) -> None:
        self.stage, self.spec = stage, spec
        self.programs: Programs | None = None  # the step and the validation
        self.compiler = StageCompiler(self.experiment, spec)
        self.diagnostics = Diagnostics(self.experiment, spec)
        self.cost_table = self.experiment.costing.table(spec)

    def start(self) -> SearchState:
        """Returns a fresh state on the devices; meanwhile the step is traced."""
        if self.thread is None:  # else the number of seeds is not known yet
            self.compiler.trace(self.experiment.abstract_state(self.spec))
        init = partial(self.experiment.init, self.spec)
        return run_once(init, self.mesh, self.experiment.config.seed)

    def state_shapes(self, metadata: Mapping[str, Any]) -> SearchState:
        """Returns the shapes of the state at the stage of a checkpoint."""
        saved = SearchMetadata.from_json(metadata)
        spec = saved.spec(self.experiment.first_spec())
        state = self.experiment.state_shapes(spec)
        if saved.fixed:
            shapes = {name: cell.shape for name, cell in spec.cells}
            fixed = {name: jax.ShapeDtypeStruct(s, np.float32) for name, s in shapes.items()}
            state = state.replace(fixed=fixed)
        return state

    def resume(self, metadata: Mapping[str, Any]) -> None:
        """Enters the stage of a checkpoint, and restores the fixed edges and the rules' memory."""
        saved = SearchMetadata.from_json(metadata)
        self.memory, self.fixed = dict(saved.memory), saved.fixed
        self.decision = saved.decision
        self._enter(saved.stage, saved.spec(self.experiment.first_spec()))

    def metadata(self) -> dict[str, Any]:
        """Returns the `SearchMetadata` of a checkpoint as JSON values."""
        return SearchMetadata.of(
            self.stage, self.spec, self.fixed, self.memory, self.decision
        ).to_json()

    def begin_epoch(self, state: SearchState, epoch: int) -> tuple[SearchState, Any]:
        """Returns the state for an epoch, which a new stage changes, and its compiled step."""
        self.frozen = False  # for the description of a stage
        stage, frozen = stage_at(self.stages, epoch)
        if stage != self.stage:
            state = self._advance(state, stage)
        shapes = devices.abstract(state, self.mesh)
        if self.programs is None:
            words = describe_stage(self.spec, self.stages[stage], count_parameters(state.params))
            self.display.message(f"{self.name}: {words}")
        self.frozen = frozen
        if self.thread is not None:
            leaves, structure = jax.tree.flatten(shapes)
            key, step = (self.spec, structure, tuple(leaves)), int(state.step)
            self.programs = self.thread.join_epoch(step, key, partial(self._compile, shapes))
        elif self.programs is None:
            self.programs = self._compile(shapes)
        return state, self.programs[0]

    def _advance(self, state: SearchState, stage: int) -> SearchState:
        host_state = jax.tree.map(np.asarray, state)
        spec, host_state = self.experiment.advance(self.spec, host_state, stage)
        self._enter(stage, spec)
        return replicate(host_state, self.mesh)

    def _compile(self, state: SearchState, seeds: int = 1) -> Programs:
        """Returns the compiled step and validation, given the shapes of the state."""
        began = time.monotonic()
        step, validation = self.compiler.compile(state, seeds)
        self.display.message(f"step compiled in {time.monotonic() - began:.1f} s")
        if not self.memory_checked:
            check_later_stages(self.experiment, self.stage, self.spec, step)
            self.memory_checked = True
        return step, validation

    def _scores(self, state: SearchState) -> dict[str, Any]:
        distribution = self.experiment.distribution
        return {name: distribution.scores(state.alpha[name], c) for name, c in self.spec.cells}

    def end_epoch(
        self, state: SearchState, epoch: int, train: Mapping[str, float]
    ) -> tuple[SearchState, dict[str, Any]]:
        """Validates, asks the rules how the search continues, and returns the history line."""
        experiment = self.experiment
        assert self.programs is not None  # since the step of this epoch is compiled
        batches, program = self.loader.evaluation(epoch), self.programs[1]
        valid = loop.evaluate(program, state, self.loader.raw, batches)
        genotype = experiment.derived(state, self.spec)
        scores = to_numpy(self._scores(state))
        mean = to_numpy(mean_mix(experiment.distribution, self.spec, state))
        expected = self._expected_cost(mean)
        self._show_epoch(valid, genotype, scores, expected)
        line = {
            "stage": self.stage + 1,
            "epoch": epoch + 1,
            "train_loss": train["loss"],
            "train_accuracy": train["accuracy"],
            "valid_loss": valid["loss"],
            "valid_accuracy": valid["accuracy"],
            "entropy": entropy(mean),
            "concentration": {
                cell_type: all_columns(self.experiment.space, cell_type, cell, scores[cell_type])
                for cell_type, cell in self.spec.cells
            },
            "genotype": to_cells(genotype),
            **self._diagnose(state, epoch),
        }
        if expected is not None:
            line["expected_cost"] = expected
        derive, draw = experiment.costing.derive, experiment.distribution.draw
        seed = [experiment.config.seed, epoch + 1]
        view = View(
            epoch=epoch + 1,
            epochs=self.epochs,
            seed=experiment.config.seed,
            space=experiment.space,
            spec=self.spec,
            mean=mean,
            scores=scores,
            genotype=genotype,
            line=line,
            fixed=self.fixed,
            accuracy=lambda mix, n: self.diagnostics.accuracy(state, mix, epoch, n),
            curvature=lambda n: self.diagnostics.curvature(state, epoch, n),
            derive=lambda ranks: derive(ranks, self.spec),
            draw=lambda n: draw_genotypes(derive, self.spec, scores, draw, n, seed),
            say=self.display.message,
        )
        return self._decide(view, state), line

    def _expected_cost(self, mean: Mapping[str, np.ndarray]) -> float | None:
        """Returns the expected cost of mean mixing weights, or None without a cost."""
        if self.cost_table is None:
            return None
        mix = jax.tree.map(jnp.asarray, mean)
        return float(expected_cost(self.cost_table, dict(self.spec.cells), mix))

    def _show_epoch(
        self,
        valid: Mapping[str, float],
        genotype: Genotype,
        scores: Mapping[str, np.ndarray],
        expected: float | None,
    ) -> None:
        """Prints the scores of all edges, the validation, the expected cost and the genotype."""
        if not self.explained:
            self.display.explain(explain_scores(self.spec))
            self.explained = True
        show_scores(self.display, self.spec, scores)
        cost = self.experiment.costing.cost
        costs = f"expected cost {expected:.4g} {cost.unit}; " if cost and expected else ""
        self.display.message(
            f"validation of the supernet: loss {valid['loss']:.4f}, accuracy "
            f"{100 * valid['accuracy']:.2f} %; {costs}genotype now: "
            f"{self.experiment.space.describe(genotype)}"
        )

    def _decide(self, view: View, state: SearchState) -> SearchState:
        for kind, rule in self.rules.items():
            decision = rule.decide(view, self.memory[kind])
            if isinstance(decision, Stop):
                self.decision = decision
                if decision.reason:
                    self.display.message(f"the search stops: {decision.reason}")
                break
            if isinstance(decision, Fix):
                edges = checked_edges(decision, view.spec, self.rule_name(kind))
                state = self._fix(state, edges)
        return state

    def rule_name(self, kind: str) -> str:
        """Returns a rule's kind and name, for example `selection rule 'my/rule.py'`."""
        return f"{kind} rule {getattr(self.experiment.config.search, kind)!r}"

    def _fix(self, state: SearchState, edges: FixedEdges) -> SearchState:
        """Returns the state in which the mixing weights of these edges are fixed."""
        for cell_type, row, primitive in edges:
            name = self.spec.cell(cell_type).edges[row].name
            self.display.message(f"fixed: {cell_type} {name} to {primitive or 'no edge'}")
        if not state.fixed:  # the state has new arrays now: compile again
            self.programs = None
        self.fixed += edges
        fixed = fix_edges(state.fixed, self.spec, edges)
        return state.replace(fixed=replicate(fixed, self.mesh))

    def _diagnose(self, state: SearchState, epoch: int) -> dict[str, Any]:
        """Returns the measurements that the config asks for; they have no effect on the search."""
        config = self.experiment.config.search
        measured: dict[str, Any] = {}
        if config.hessian_batches:
            measured["hessian"] = self.diagnostics.curvature(state, epoch, config.hessian_batches)
            self.display.message(f"largest eigenvalue in alpha: {measured['hessian']:.4g}")
        if config.ranked_cells:
            seed = [self.experiment.config.seed, epoch]
            cells = random_cells(self.experiment.space, self.spec, config.ranked_cells, seed)
            mixes = [one_hot(dict(self.spec.cells), cell) for cell in cells]
            accuracies = self.diagnostics.accuracies(state, mixes, epoch, config.ranked_batches)
            measured["ranked"] = [
                {"cells": to_cells(cell), "accuracy": accuracy}
                for cell, accuracy in zip(cells, accuracies, strict=True)
            ]
        return measured

    def compare(self, state: SearchState, epoch: int) -> Comparison | None:
        """Compares the result with random cells, see `comparison.compare`, and prints that."""
        try:
            given = self.experiment, self.diagnostics, self.spec, state, self.result, epoch
            comparison = compare(*given)
        except UserError as error:
            self.display.message(f"the result is not compared with random cells: {error}")
            return None
        if comparison:
            self.display.message(f"the result in the supernet: {comparison.describe()}")
        return comparison


def to_numpy(mix: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Copies arrays to the host."""
    return {name: np.asarray(rows) for name, rows in mix.items()}
