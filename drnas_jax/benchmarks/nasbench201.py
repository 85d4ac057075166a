"""NAS-Bench-201's table: the true accuracies of all 15,625 cells (Dong & Yang, ICLR 2020).

A CSV with a cell a line and the columns `arch_str` and DATASET_SPLIT_EPOCHS, in percent, means over
seeds: the accuracy of DATASET on SPLIT ('valid' or 'test') after training for EPOCHS (12 or 200).
"""

import csv
import dataclasses
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drnas_jax.errors import UserError

DATASETS = ("cifar10", "cifar100", "imagenet16_120")
_COLUMN = re.compile(rf"({'|'.join(DATASETS)})_((?:valid|test)_(?:12|200))")
_JUDGED_BY = ("cifar10", "test_200")  # ranks are by this column


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """All cells by their arch string.

    Attributes:
      accuracy: arch string -> data set -> 'SPLIT_EPOCHS' -> percent.
      ranks: arch string -> rank by CIFAR-10 test accuracy after 200 epochs; 1 is the best.
    """

    accuracy: Mapping[str, Mapping[str, Mapping[str, float]]]
    ranks: Mapping[str, int]

    def query(self, arch: str) -> dict[str, Any]:
        """What the benchmark knows of a cell.

        Returns:
          For each data set its accuracies in percent; `rank`, and `percentile` (100: the best).

        Raises:
          UserError: the arch string is not in the table.
        """
        if arch not in self.accuracy:
            raise UserError(f"{arch[:200]!r} is not in the NAS-Bench-201 table")
        rank, cells = self.ranks[arch], len(self.ranks)
        percentile = round(100 * (cells - rank) / max(cells - 1, 1), 3)
        return {**self.accuracy[arch], "rank": rank, "percentile": percentile}


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
        if not Path(table).is_file():
            raise UserError(f"nasbench201.table is {table!r}, and there is no such file")
        return Path(table)
    beside = Path(data_dir).absolute().parent / "nasbench201" / "nasbench201.csv"
    return beside if data_dir and beside.is_file() else None


def load(path: str | os.PathLike[str]) -> Table:
    """Reads the CSV.

    Raises:
      UserError: a column is missing, or a line has no proper number, too few fields, or a cell
        that another line has; it names the file and the line.
    """
    accuracy: dict[str, dict[str, dict[str, float]]] = {}
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        for needed in ("arch_str", "_".join(_JUDGED_BY)):
            if needed not in header:
                raise UserError(f"{path} has no column {needed!r}: it is no NAS-Bench-201 table")
        name = header.index("arch_str")
        columns = [
            (i, match[1], match[2])
            for i, match in enumerate(map(_COLUMN.fullmatch, header))
            if match
        ]
        for number, fields in enumerate(lines, start=2):
            try:
                arch = fields[name]
                cell: dict[str, dict[str, float]] = {dataset: {} for dataset in DATASETS}
                for i, dataset, split in columns:
                    cell[dataset][split] = _percent(fields[i])
            except (ValueError, IndexError) as error:
                raise UserError(f"{path}, line {number}, is damaged ({error})") from error
            if arch in accuracy:
                raise UserError(f"{path}, line {number}: {arch} stands there twice")
            accuracy[arch] = cell
    dataset, split = _JUDGED_BY
    ordered = sorted(accuracy, key=lambda arch: -accuracy[arch][dataset][split])
    return Table(accuracy, {arch: rank for rank, arch in enumerate(ordered, start=1)})


def _percent(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and 0 <= value <= 100):
        raise ValueError(f"{text} is not a percentage")
    return value
