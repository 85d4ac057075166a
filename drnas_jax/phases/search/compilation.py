"""Compiles the programs of a stage of the search: the step and the validation."""

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from drnas_jax.phases.search.experiment import Experiment
from drnas_jax.phases.search.state import SearchState
from drnas_jax.spaces import SupernetSpec
from drnas_jax.training import memory
from drnas_jax.training.programs import in_background


class StageCompiler:
    """Compiles the step and the validation of one stage, and works in the background if it can.

    Args:
      experiment: Inputs of the search.
      spec: Spec of the stage's supernet.
    """

    def __init__(self, experiment: Experiment, spec: SupernetSpec):
        self._experiment, self._spec = experiment, spec
        self._lowered: Future[Any] | None = None

    def trace(self, state: SearchState, seeds: int = 1) -> "Future[Any]":
        """Begins to trace the step in the background.

        Args:
          state: Shapes of the state.
          seeds: Number of runs for which the step is taken at once.
        """
        lower = partial(lower_step, self._experiment, self._spec, state, seeds)
        self._lowered = in_background(lower)
        return self._lowered

    def compile(
        self, state: SearchState, seeds: int = 1
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Returns the compiled step, and the validation, which waits for its compilation if called.

        Args:
          state: Shapes of the state.
          seeds: Number of runs for which the programs are called at once.

        Raises:
          NotEnoughMemoryError: The devices do not have enough memory for the step.
        """
        traced, self._lowered = self._lowered or self.trace(state, seeds), None  # it takes memory
        lowered = traced.result()
        validation = in_background(partial(self._compile_validation, state, seeds))
        step = compile_step(self._experiment, self._spec, lowered)
        return step, lambda *arguments: validation.result()(*arguments)

    def _compile_validation(self, state: Any, seeds: int) -> Callable[..., Any]:
        program = self._experiment.validation_program(self._spec, seeds)
        loader = self._experiment.loader
        inputs: Any = loader.abstract_evaluation
        if seeds > 1:
            state, inputs = (state,) * seeds, tuple((each,) * seeds for each in inputs)
        return program.lower(state, loader.abstract_raw, *inputs).compile()


def lower_step(experiment: Experiment, spec: SupernetSpec, state: Any, seeds: int = 1) -> Any:
    """Lowers the step of a stage.

    Args:
      experiment: Inputs of the search.
      spec: Spec of the stage's supernet.
      state: State at this stage, or its shapes.
      seeds: Number of runs for which the step is taken at once.
    """
    program, loader = experiment.step_program(spec, seeds=seeds), experiment.loader
    dispatch: Any = loader.abstract_dispatch
    if seeds > 1:
        state, dispatch = (state,) * seeds, (dispatch,) * seeds
    return program.lower(state, loader.abstract_raw, dispatch)


def compile_step(experiment: Experiment, spec: SupernetSpec, lowered: Any) -> Any:
    """Compiles the step of a stage.

    Args:
      experiment: Inputs of the search.
      spec: Spec of the stage's supernet.
      lowered: Result of `lower_step`.

    Raises:
      NotEnoughMemoryError: The devices do not have enough memory.
    """
    config = experiment.config
    what = f"the search with K = {spec.partial_channels}"

    def advice() -> str:
        batch_size, k = config.search.batch_size, config.search.partial_channels
        ways = f"lower search.batch_size ({batch_size}), or raise search.partial_channels {k}"
        return ways + memory.or_remat(config.compute.remat)

    return memory.compile_within(lowered, experiment.mesh, what, advice)
