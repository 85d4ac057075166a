"""NAS-Bench-201's table: the true accuracies of all 15,625 cells (Dong & Yang, ICLR 2020).

A CSV with a cell a line and the columns `arch_str` and DATASET_SPLIT_EPOCHS, in percent, means over
seeds: the accuracy of DATASET on SPLIT ('valid' or 'test') after training for EPOCHS (12 or 200).
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
from pathlib import Path
from typing import Any

import numpy as np

from drnas_jax import spaces
from drnas_jax.errors import UserError
from drnas_jax.files import write_text
from drnas_jax.genotype import Genotype

DATASETS = ("cifar10", "cifar100", "imagenet16_120")
_COLUMN = re.compile(rf"({'|'.join(DATASETS)})_((?:valid|test)_(?:12|200))")
_JUDGED_BY = ("cifar10", "test_200")  # ranks are by this column

# Where nats_bench keeps each column: data set, epochs, metric. Its 'cifar10' was trained on all
# training images, so that the accuracy on the validation half is that of 'cifar10-valid'.
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
class Table:
    """All cells by their arch string.

    Attributes:
      rows: arch string -> row of `values`.
      columns: (data set, 'SPLIT_EPOCHS') of each column of `values`.
      values: float64 [cells, columns], percent.
    """

    rows: Mapping[str, int]
    columns: tuple[tuple[str, str], ...]
    values: np.ndarray

    def accuracy(self, cell: str | Genotype, dataset: str, split: str, epochs: int) -> float:
        """One number: percent, the mean over the benchmark's seeds.

        Args:
          cell: an arch string, or a genotype of the space.
          dataset: one of DATASETS.
          split: 'valid' or 'test'.
          epochs: for which the cell was trained, 12 or 200.

        Raises:
          UserError: the table has no such cell or no such column.
        """
        column = (dataset, f"{split}_{epochs}")
        if column not in self.columns:
            known = ", ".join("_".join(names) for names in self.columns)
            raise UserError(f"the NAS-Bench-201 table has no {'_'.join(column)}; it has {known}")
        return float(self.values[self._row(cell), self.columns.index(column)])

    def query(self, cell: str | Genotype) -> dict[str, Any]:
        """All that the benchmark knows of a cell.

        Returns:
          For each data set its accuracies in percent by 'SPLIT_EPOCHS'; `rank` by CIFAR-10 test
          accuracy after 200 epochs (1: the best), and `percentile` (100: the best).

        Raises:
          UserError: the cell is not in the table.
        """
        row = self._row(cell)
        found: dict[str, Any] = {dataset: {} for dataset in DATASETS}
        for (dataset, name), value in zip(self.columns, self.values[row].tolist(), strict=True):
            found[dataset][name] = value
        cells, rank = len(self.rows), int(self._ranks[row])
        percentile = round(100 * (cells - rank) / max(cells - 1, 1), 3)
        return {**found, "rank": rank, "percentile": percentile}

    def _row(self, cell: str | Genotype) -> int:
        arch = cell if isinstance(cell, str) else spaces.find(cell.space).describe(cell)
        if arch not in self.rows:
            raise UserError(f"{arch[:200]!r} is not in the NAS-Bench-201 table")
        return self.rows[arch]

    @functools.cached_property
    def _ranks(self) -> np.ndarray:
        order = np.argsort(-self.values[:, self.columns.index(_JUDGED_BY)], kind="stable")
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.arange(1, len(order) + 1)
        return ranks


def locate(table: str, data_dir: str) -> Path | None:
    """The table's file: the one that is named, else nasbench201/nasbench201.csv beside the data.

    Args:
      table: a path, or empty.
      data_dir: of the data set, or empty.

    Returns:
      Its path; None if none is named and none lies there.

    Raises:
      UserError: the one that is named does not exist.
    """
    if table:
        if not Path(table).expanduser().is_file():
            raise UserError(f"nasbench201.table is {table!r}, and there is no such file")
        return Path(table).expanduser()
    beside = Path(data_dir).expanduser().absolute().parent / "nasbench201" / "nasbench201.csv"
    return beside if data_dir and beside.is_file() else None


def load(path: str | os.PathLike[str]) -> Table:
    """Reads the CSV.

    Raises:
      UserError: it cannot be read, a column is missing, or a line has no proper number, too few
        fields, or a cell that another line has; it names the file and the line.
    """
    try:
        return _load(path)
    except (OSError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a NAS-Bench-201 table: {error}") from error


def convert(nats_bench: str | os.PathLike[str], table: str | os.PathLike[str]) -> int:
    """Makes the CSV from an official NATS-Bench file of the topology space (arXiv 2009.00437).

    The file is a pickle: convert only one whose origin you trust.

    Args:
      nats_bench: `NATS-tss-v1_0-3ffb9.pickle.pbz2`, or the unpacked folder
        `NATS-tss-v1_0-3ffb9-simple`, which needs less memory.
      table: the CSV to write, with its folder; it is there whole or not at all.

    Returns:
      The number of cells.

    Raises:
      UserError: nats_bench is not installed, or there is no such file, or it is another.
    """
    try:
        from nats_bench import create
    except ImportError as error:
        raise UserError(
            "NATS-Bench files are read by the package nats_bench: pip install nats_bench"
        ) from error
    if not os.path.exists(nats_bench):
        raise UserError(f"{nats_bench} does not exist: expected a NATS-Bench file or folder")
    try:
        api = create(
            os.fspath(nats_bench), "tss", fast_mode=os.path.isdir(nats_bench), verbose=False
        )
    except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{nats_bench} is no NATS-Bench topology file: {error}") from error
    columns, text = ("index", "arch_str", *_NATS_BENCH), io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(from_nats_bench(api))
    write_text(table, text.getvalue())
    return len(api)


def from_nats_bench(api: Any) -> Iterator[dict[str, str]]:
    """The lines of the CSV, column -> text, from what `nats_bench.create(path, 'tss')` gives.

    Uses `len(api)`, `api.arch(index)` and `api.get_more_info(index, dataset, hp=...,
    is_random=False)`, which averages over the seeds. Checked with nats_bench 1.8: against its
    source, and on small files in its format; not on the official file.

    Raises:
      UserError: a cell has not all results.
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
                    f"epochs: {error!r}"
                ) from error
        yield row


def _load(path: str | os.PathLike[str]) -> Table:
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        for needed in ("arch_str", "_".join(_JUDGED_BY)):
            if needed not in header:
                raise UserError(f"{path} has no column {needed!r}: it is no NAS-Bench-201 table")
        matches = [(i, match) for i, match in enumerate(map(_COLUMN.fullmatch, header)) if match]
        pick = operator.itemgetter(header.index("arch_str"), *(i for i, _ in matches))
        rows: dict[str, int] = {}
        values = []
        for number, fields in enumerate(lines, start=2):
            try:
                arch, *texts = pick(fields)
                values.append(list(map(float, texts)))
            except (ValueError, IndexError) as error:
                raise UserError(f"{path}, line {number}, is damaged ({error})") from error
            if arch in rows:
                raise UserError(f"{path}, line {number}: {arch} stands there twice")
            rows[arch] = number - 2
    columns = tuple((match[1], match[2]) for _, match in matches)
    percents = np.array(values).reshape(-1, len(columns))
    for row, column in np.argwhere(~((percents >= 0) & (percents <= 100))):
        wrong = percents[row, column]
        raise UserError(f"{path}, line {row + 2}, is damaged ({wrong} is not a percentage)")
    return Table(rows, columns, percents)
