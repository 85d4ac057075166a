"""The check that all searches of a sweep over `cost.targets` can meet their targets."""

from drnas_jax.config import elements
from drnas_jax.phases.search.experiment import Experiment
from drnas_jax.phases.setup import Run
from drnas_jax.training.hosts import from_primary
from drnas_jax.workdir import has_work


def check_sweep(run: Run) -> None:
    """Raises UserError if no network meets one of `cost.targets`, before the first search begins.

    Once the search of the smallest target has begun there is nothing to check.

    Args:
      run: Inputs of the sweep: the config of the command and its workdir.
    """
    targets = run.config.cost.targets
    if not targets:
        return
    smallest = (
        name for name, one in elements(run.config).items() if one.cost.target == min(targets)
    )
    searches = [run.workdir / name / "search" for name in smallest]
    if from_primary(lambda: any(map(has_work, searches))):
        return
    run.display.message(f"counting what the operations cost ({run.config.cost.name})")
    experiment = Experiment(run.config, run.dataset, run.mesh)
    spec = experiment.first_spec()
    experiment.costing.check_targets("one of cost.targets", targets, spec)
    for message in experiment.costing.describe(spec):
        run.display.message(message)
