"""The Pareto front of a sweep over targets: accuracies of the found networks by their costs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from drnas_jax.phases.search.budget import undominated
from drnas_jax.report.runs import Run
from drnas_jax.tables import Table

CHANCE = 10.0  # accuracy of the reference point in percent: chance for ten classes
KINDS = {
    "table": "true test accuracy",
    "test": "test accuracy",
    "validation": "validation accuracy of the supernet",
}


@dataclasses.dataclass(frozen=True)
class Point:
    """A network that a run has found.

    Attributes:
      name: Name of the run, its directory below the workdir of the sweep.
      seed: Seed of the run.
      target: Largest cost that the run allowed.
      cost: Cost on the axis of the front.
      network_cost: Exact cost of the final network.
      accuracy: Accuracy in percent, of the front's kind.
      genotype: Genotype as a line of text.
    """

    name: str
    seed: int
    target: float
    cost: float
    network_cost: float
    accuracy: float
    genotype: str


@dataclasses.dataclass(frozen=True)
class Front:
    """The networks that a sweep has found so far, and the best ones of the space.

    Attributes:
      cost: Name of the cost.
      unit: Unit of the cost.
      kind: Key of `KINDS`: which accuracies these are.
      source: Name of the table that accuracies and costs are from, or an empty string.
      points: Networks of all runs that have found one.
      missing: Names of the runs that have not.
      largest: Cost of the largest network of the space, or None if it is unknown.
      true: Cost and accuracy of the networks on the true front, float64 [n, 2], or None.
    """

    cost: str
    unit: str
    kind: str
    source: str
    points: tuple[Point, ...]
    missing: tuple[str, ...]
    largest: float | None
    true: np.ndarray | None

    @property
    def best(self) -> tuple[Point, ...]:
        """Points on the Pareto front by increasing cost, with all that are equal in both values."""
        costs, accuracies = self._columns()
        front = {(costs[i], accuracies[i]) for i in undominated(costs, accuracies)}
        best = (point for point in self.points if (point.cost, point.accuracy) in front)
        return tuple(sorted(best, key=lambda point: point.cost))

    @property
    def found_hypervolume(self) -> float | None:
        """Hypervolume of the found networks, see `hypervolume`; None without a largest network."""
        if self.largest is None:
            return None
        costs, accuracies = self._columns()
        return hypervolume(costs, accuracies, self.largest)

    @property
    def true_hypervolume(self) -> float | None:
        """Hypervolume of the true front, or None."""
        if self.largest is None or self.true is None:
            return None
        costs, accuracies = self.true.T
        return hypervolume(costs, accuracies, self.largest)

    def _columns(self) -> tuple[np.ndarray, np.ndarray]:
        rows = [(point.cost, point.accuracy) for point in self.points]
        costs, accuracies = np.array(rows, np.float64).reshape(-1, 2).T
        return costs, accuracies

    def to_json(self) -> dict[str, Any]:
        """Returns the content of front.json."""
        true = None
        if self.true is not None:
            rows = [{"cost": cost, "accuracy": accuracy} for cost, accuracy in self.true.tolist()]
            true = {"front": rows, "hypervolume": self.true_hypervolume}
        return {
            "cost": self.cost,
            "unit": self.unit,
            "accuracy": self.kind,
            "table": self.source or None,
            "points": [dataclasses.asdict(point) for point in self.points],
            "front": [point.name for point in self.best],
            "missing": list(self.missing),
            "reference": {"cost": self.largest, "accuracy": CHANCE},
            "hypervolume": self.found_hypervolume,
            "true": true,
        }


def hypervolume(
    costs: np.ndarray, accuracies: np.ndarray, cost: float, accuracy: float = CHANCE
) -> float:
    """Returns the area that points dominate, up to a reference point.

    It is the area of all (c, a) with c at most `cost` and a at least `accuracy` that some point
    has at a cost of c or less and an accuracy of a or more.

    Args:
      costs: Cost of each point, float64 [n]; less is better.
      accuracies: Accuracy of each point in percent, float64 [n]; more is better.
      cost: Cost of the reference point. Points beyond it have no effect.
      accuracy: Accuracy of the reference point in percent.

    Returns:
      The area in percent times the unit of the cost.
    """
    inside = (costs < cost) & (accuracies > accuracy)
    costs, accuracies = costs[inside], accuracies[inside]
    order = undominated(costs, accuracies)
    gains = np.diff(accuracies[order], prepend=accuracy)
    return float(np.sum((cost - costs[order]) * gains))


def front_of(runs: Mapping[str, Run | None]) -> Front | None:
    """Returns the front of the runs of a sweep over targets.

    The accuracies are those of the table, if it knows one of the networks, else those on test
    images, else those of the supernets on validation images. If the table also has costs, all
    costs are those of its networks, whatever the size of the runs' final networks is.

    Args:
      runs: Runs by their names; None for one that has not begun.

    Returns:
      The front, or None if no run has found a network yet.
    """
    found = {
        name: run for name, run in runs.items() if run and run.provenance.cost and run.genotype
    }
    accuracies = {name: _accuracies(run) for name, run in found.items()}
    kinds = [kind for kind in KINDS if any(kind in known for known in accuracies.values())]
    if not kinds:
        return None
    kind, first = kinds[0], next(iter(found.values()))
    assert first.provenance.cost is not None
    cost, unit, largest = (
        first.config.cost.name,
        first.provenance.cost.unit,
        first.provenance.cost.largest,
    )
    table = first.table if kind == "table" else None
    networks = table.networks(cost) if table else None
    true = None
    if networks is not None:
        true, largest = networks[undominated(*networks.T)], float(networks[:, 0].max())
    points = tuple(
        _point(name, run, accuracies[name][kind], None if networks is None else table)
        for name, run in found.items()
        if kind in accuracies[name]
    )
    missing = tuple(name for name in runs if name not in {point.name for point in points})
    title = table.title if table else ""
    return Front(cost, unit, kind, title, points, missing, largest, true)


def _point(name: str, run: Run, accuracy: float, table: Table | None) -> Point:
    """Returns the point of a run, at the cost that a table has, if one is given."""
    assert run.provenance.cost is not None and run.genotype is not None
    exact = run.provenance.cost.exact
    known = table.cost(run.config.cost.name, run.genotype) if table else None
    return Point(
        name=name,
        seed=run.config.seed,
        target=run.config.cost.target,
        cost=exact if known is None else known,
        network_cost=exact,
        accuracy=accuracy,
        genotype=run.describe(run.genotype),
    )


def _accuracies(run: Run) -> dict[str, float]:
    """Returns what is known of a run's network, in percent, by the keys of `KINDS`."""
    valid = [line.valid_accuracy for line in run.search if line.valid_accuracy is not None]
    known = {
        "table": run.accuracy(run.genotype),
        "test": 100 * run.result.test_accuracy if run.result else None,
        "validation": 100 * valid[-1] if valid else None,
    }
    return {kind: value for kind, value in known.items() if value is not None}
