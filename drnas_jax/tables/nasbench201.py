"""The table of NAS-Bench-201: true accuracies of all 15,625 cells (Dong & Yang, ICLR 2020).

The file is a CSV with one cell per line and the columns `arch_str` and DATASET_SPLIT_EPOCHS, for
example `cifar10_test_200`: the accuracy in percent on SPLIT (`valid` or `test`) of DATASET after
training for EPOCHS (12 or 200), averaged over seeds.
"""

import csv
import dataclasses
import functools
import io
import operator
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from drnas_jax import spaces
from drnas_jax.errors import UserError
from drnas_jax.files import write_text
from drnas_jax.genotype import Genotype
from drnas_jax.tables.base import Table

FILE = "nasbench201/nasbench201.csv"
DATASETS = ("cifar10", "cifar100", "imagenet16_120")
_COLUMN = re.compile(rf"({'|'.join(DATASETS)})_((?:valid|test)_(?:12|200))")
_FINAL = "test_200"  # the split and the epochs of the true accuracies
_RANKED_BY = (DATASETS[0], _FINAL)

# Where nats_bench keeps each column: data set, epochs, metric. Its `cifar10` was trained on all
# training images, so the accuracy on the validation half is that of `cifar10-valid`.
_NATS_BENCH = {
    "cifar10_test_12": ("cifar10", "12", "test-accuracy"),
    "cifar10_valid_12": ("cifar10-valid", "12", "valid-accuracy"),
    "cifar100_test_12": ("cifar100", "12", "test-accuracy"),
    "cifar100_valid_12": ("cifar100", "12", "valid-accuracy"),
    "imagenet16_120_test_12": ("ImageNet16-120", "12", "test-accuracy"),
    "imagenet16_120_valid_12": ("ImageNet16-120", "12", "valid-accuracy"),
    "cifar10_test_200": ("cifar10", "200", "test-accuracy"),
    "cifar100_test_200": ("cifar100", "200", "test-accuracy"),
    "imagenet16_120_test_200": ("ImageNet16-120", "200", "test-accuracy"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class NasBench201(Table):
    """The accuracies of all cells, by arch string.

    A cell is given as a genotype or as the arch string that the benchmark uses for it.

    Attributes:
      rows: Row of each arch string in `values`.
      columns: Data set and `SPLIT_EPOCHS` of each column of `values`.
      values: Accuracies in percent, float64 [cells, columns].
    """

    rows: Mapping[str, int]
    columns: tuple[tuple[str, str], ...]
    values: np.ndarray
    title: str = "NAS-Bench-201"
    space: str = "nasbench201"

    def accuracies(self, genotype: str | Genotype) -> dict[str, float] | None:
        """Returns the test accuracies after 200 epochs in percent, CIFAR-10 first."""
        row = self._row(genotype)
        if row is None:
            return None
        return {dataset: float(self.values[row, column]) for dataset, column in self._final}

    def query(self, genotype: str | Genotype) -> dict[str, Any] | None:
        """Returns all accuracies of a cell and its rank.

        Returns:
          For each data set its accuracies in percent by `SPLIT_EPOCHS`; `rank` by the CIFAR-10 test
          accuracy after 200 epochs (1 is the best), and `percentile` (100 is the best).
        """
        row = self._row(genotype)
        if row is None:
            return None
        known: dict[str, Any] = {dataset: {} for dataset in DATASETS}
        for (dataset, name), value in zip(self.columns, self.values[row].tolist(), strict=True):
            known[dataset][name] = value
        cells, rank = len(self.rows), int(self._ranks[row])
        percentile = round(100 * (cells - rank) / max(cells - 1, 1), 3)
        return {**known, "rank": rank, "percentile": percentile}

    def rank(self, genotype: str | Genotype) -> tuple[int, int] | None:
        """Returns the rank by CIFAR-10 test accuracy after 200 epochs, and the number of cells."""
        row = self._row(genotype)
        return None if row is None else (int(self._ranks[row]), len(self.rows))

    def _row(self, genotype: str | Genotype) -> int | None:
        if isinstance(genotype, str):
            return self.rows.get(genotype)
        if genotype.space != self.space:
            return None
        return self.rows.get(spaces.create(self.space).describe(genotype))

    @functools.cached_property
    def _final(self) -> list[tuple[str, int]]:
        """The data sets with a true accuracy, and their columns."""
        return [
            (dataset, self.columns.index((dataset, _FINAL)))
            for dataset in DATASETS
            if (dataset, _FINAL) in self.columns
        ]

    @functools.cached_property
    def _ranks(self) -> np.ndarray:
        order = np.argsort(-self.values[:, self.columns.index(_RANKED_BY)], kind="stable")
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.arange(1, len(order) + 1)
        return ranks


def create(file: str) -> NasBench201:
    """Opens the CSV as the table of a run."""
    return load(file)


def load(path: str | os.PathLike[str]) -> NasBench201:
    """Reads the CSV.

    Raises:
      UserError: The file cannot be read, a column is missing, or a line has a value that is not a
        percentage, too few fields, or the cell of another line. The message names file and line.
    """
    try:
        return _load(path)
    except (OSError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read as a NAS-Bench-201 table ({error}): check the path"
        ) from error


def convert(nats_bench: str | os.PathLike[str], table: str | os.PathLike[str]) -> int:
    """Writes the CSV from an official NATS-Bench file of the topology space (arXiv 2009.00437).

    The file is a pickle: convert it only if you trust its origin.

    Args:
      nats_bench: Path of `NATS-tss-v1_0-3ffb9.pickle.pbz2`, or of the unpacked folder
        `NATS-tss-v1_0-3ffb9-simple`, which needs less memory.
      table: Path of the CSV, which is written in one atomic step.

    Returns:
      The number of cells.

    Raises:
      UserError: The package nats_bench is not installed, or the file does not exist or is not a
        NATS-Bench file of the topology space.
    """
    try:
        from nats_bench import create
    except ImportError as error:
        raise UserError(
            "reading NATS-Bench files needs the package nats_bench: pip install nats_bench"
        ) from error
    if not os.path.exists(nats_bench):
        raise UserError(f"{nats_bench} does not exist: expected a NATS-Bench file or folder")
    try:
        api = create(
            os.fspath(nats_bench), "tss", fast_mode=os.path.isdir(nats_bench), verbose=False
        )
    except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{nats_bench} is not a NATS-Bench topology file ({error}): expected NATS-tss"
        ) from error
    columns, text = ("index", "arch_str", *_NATS_BENCH), io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(from_nats_bench(api))
    write_text(table, text.getvalue())
    return len(api)


def from_nats_bench(api: Any) -> Iterator[dict[str, str]]:
    """Yields the lines of the CSV as a mapping from column to text.

    Checked against the source of nats_bench 1.8 and with small files in its format, but not with
    the official file.

    Args:
      api: Result of `nats_bench.create(path, "tss")`. Its `get_more_info` averages over the seeds
        if `is_random` is false.

    Raises:
      UserError: A result of a cell is missing.
    """
    for index in range(len(api)):
        row = {"index": str(index), "arch_str": api.arch(index)}
        for column, (dataset, epochs, metric) in _NATS_BENCH.items():
            try:
                info = api.get_more_info(index, dataset, hp=epochs, is_random=False)
                row[column] = f"{info[metric]:.4f}"
            except (KeyError, ValueError, AssertionError) as error:
                raise UserError(
                    f"NATS-Bench has no {metric} of cell {index} on {dataset} after {epochs} "
                    f"epochs ({error!r}): expected a whole file of NATS-tss"
                ) from error
        yield row


def _load(path: str | os.PathLike[str]) -> NasBench201:
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        for needed in ("arch_str", "_".join(_RANKED_BY)):
            if needed not in header:
                raise UserError(
                    f"{path} has no column {needed!r}: expected a table of NAS-Bench-201"
                )
        matches = [(i, match) for i, match in enumerate(map(_COLUMN.fullmatch, header)) if match]
        pick = operator.itemgetter(header.index("arch_str"), *(i for i, _ in matches))
        rows: dict[str, int] = {}
        values = []
        for number, fields in enumerate(lines, start=2):
            try:
                arch, *texts = pick(fields)
                values.append(list(map(float, texts)))
            except (ValueError, IndexError) as error:
                raise UserError(
                    f"{path}, line {number}, is damaged ({error}): restore the file"
                ) from error
            if arch in rows:
                raise UserError(
                    f"{path}, line {number}: {arch[:200]} occurs twice; remove one of its lines"
                )
            rows[arch] = number - 2
    columns = tuple((match[1], match[2]) for _, match in matches)
    percents = np.array(values).reshape(-1, len(columns))
    for row, column in np.argwhere(~((percents >= 0) & (percents <= 100))):
        wrong = percents[row, column]
        raise UserError(
            f"{path}, line {row + 2}, is damaged ({wrong} is not a percentage): restore the file"
        )
    return NasBench201(rows, columns, percents)
