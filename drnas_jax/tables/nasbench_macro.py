"""The table of NAS-Bench-Macro: true accuracies of all 6,561 networks (arXiv 2103.11922).

The file is a CSV with one network per line and the columns `arch` (the code of a network, for
example 22212220), `mean_test_accuracy` and `test_1`, `test_2`, ... (CIFAR-10 test accuracy in
percent: the mean, and one for each training), `params` and `flops` (parameters and multiply-adds
at 32x32 pixels).

Each network was trained three times for 50 epochs, and the accuracy of a training is that of its
best epoch on the test set. An identity after the first layer of a stage does nothing, so only 3,969
networks differ; the benchmark gives equal ones equal values.
"""

import csv
import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from drnas_jax import spaces
from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype
from drnas_jax.tables.base import Table

FILE = "nasbench_macro/nasbench_macro_cifar10.csv"
SPACE = "macro"
_COLUMNS = ("arch", "mean_test_accuracy", "params", "flops")


@dataclasses.dataclass(frozen=True, eq=False)
class NasBenchMacro(Table):
    """The accuracies and costs of all networks, by code.

    A network is given as a genotype or as the code that the benchmark uses for it.

    Attributes:
      rows: Row of each code in the arrays.
      means: Mean test accuracy of each network in percent, float64 [n].
      runs: Test accuracy of each training in percent, float64 [n, trainings].
      parameters: Number of parameters of each network, int64 [n].
      macs: Number of multiply-adds of each network for one image, int64 [n].
    """

    rows: Mapping[str, int]
    means: np.ndarray
    runs: np.ndarray
    parameters: np.ndarray
    macs: np.ndarray
    title: str = "NAS-Bench-Macro"
    space: str = SPACE

    def accuracies(self, genotype: str | Genotype) -> dict[str, float] | None:
        """Returns the mean CIFAR-10 test accuracy in percent."""
        row = self._row(genotype)
        return None if row is None else {"cifar10": float(self.means[row])}

    def query(self, genotype: str | Genotype) -> dict[str, Any] | None:
        """Returns what the table knows of a network.

        Returns:
          `code`; `cifar10` with the test accuracy in percent, `test` (the mean) and `runs` (each
          training); `params` and `macs`; `rank` by the mean test accuracy (1 is the best; equal
          accuracies share a rank), and `percentile` (100 is the best).
        """
        row = self._row(genotype)
        if row is None:
            return None
        networks, rank = len(self.rows), int(self._ranks[row])
        return {
            "code": self._code(genotype),
            "cifar10": {"test": float(self.means[row]), "runs": self.runs[row].tolist()},
            "params": int(self.parameters[row]),
            "macs": int(self.macs[row]),
            "rank": rank,
            "percentile": round(100 * (networks - rank) / max(networks - 1, 1), 3),
        }

    def rank(self, genotype: str | Genotype) -> tuple[int, int] | None:
        """Returns the rank by mean test accuracy, and the number of networks."""
        row = self._row(genotype)
        return None if row is None else (int(self._ranks[row]), len(self.rows))

    def cost(self, name: str, genotype: str | Genotype) -> float | None:
        """Returns the parameters (`params`) or multiply-adds (`macs`) of a network."""
        row, costs = self._row(genotype), self._costs.get(name)
        return None if row is None or costs is None else float(costs[row])

    def networks(self, cost: str) -> np.ndarray | None:
        """Returns cost and mean test accuracy in percent of all networks, float64 [n, 2]."""
        costs = self._costs.get(cost)
        return None if costs is None else np.stack([costs, self.means], axis=1)

    @property
    def _costs(self) -> dict[str, np.ndarray]:
        return {"params": self.parameters, "macs": self.macs}

    def _code(self, genotype: str | Genotype) -> str | None:
        """Returns the code of a network, or None if it is of another space."""
        if isinstance(genotype, str):
            return genotype
        if genotype.space != self.space:
            return None
        return spaces.create(self.space).describe(genotype)

    def _row(self, genotype: str | Genotype) -> int | None:
        code = self._code(genotype)
        return None if code is None else self.rows.get(code)

    @functools.cached_property
    def _ranks(self) -> np.ndarray:
        """Ranks [n]: one more than the number of networks with a higher accuracy."""
        ascending = np.sort(self.means)
        return len(ascending) - np.searchsorted(ascending, self.means, side="right") + 1


def create(file: str) -> NasBenchMacro:
    """Opens the CSV as the table of a run."""
    return load(file)


def load(path: str | os.PathLike[str]) -> NasBenchMacro:
    """Reads the CSV.

    Raises:
      UserError: The file cannot be read, a column is missing, or a line has an accuracy that is not
        a percentage, a count that is not a positive integer, too few fields, or the network of
        another line. The message names file and line.
    """
    try:
        return _load(path)
    except (OSError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read as a NAS-Bench-Macro table ({error}): check the path"
        ) from error


def _load(path: str | os.PathLike[str]) -> NasBenchMacro:
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        lines = csv.DictReader(file)
        header = lines.fieldnames or []
        for needed in _COLUMNS:
            if needed not in header:
                raise UserError(
                    f"{path} has no column {needed!r}: expected a table of NAS-Bench-Macro"
                )
        trainings = [name for name in header if name.startswith("test_")]
        rows: dict[str, int] = {}
        percents, counts = [], []
        for number, line in enumerate(lines, start=2):
            try:
                percents.append(_percents(line["mean_test_accuracy"], *map(line.get, trainings)))
                counts.append(_counts(line["params"], line["flops"]))
            except (ValueError, TypeError) as error:  # TypeError: a field is missing
                raise UserError(
                    f"{path}, line {number}, is damaged ({error}): restore the file"
                ) from error
            if line["arch"] in rows:
                raise UserError(
                    f"{path}, line {number}: {line['arch'][:200]} occurs twice; remove one of its "
                    "lines"
                )
            rows[line["arch"]] = number - 2
    accuracies = np.array(percents, np.float64).reshape(len(rows), 1 + len(trainings))
    sizes = np.array(counts, np.int64).reshape(len(rows), 2)
    return NasBenchMacro(rows, accuracies[:, 0], accuracies[:, 1:], sizes[:, 0], sizes[:, 1])


def _percents(*texts: Any) -> list[float]:
    values = [float(text) for text in texts]
    for value in values:
        if not 0 <= value <= 100:
            raise ValueError(f"{value} is not a percentage")
    return values


def _counts(*texts: Any) -> list[int]:
    values = [int(text) for text in texts]
    for value in values:
        if not 0 < value < 2**63:
            raise ValueError(f"{value} is not a positive count")
    return values
